"""Feed a real allocation trace to the model, and see how near its free lists come.

    result = replay(trace, before, after)
    result.follow.counts["allocated"], result.follow.lists.blocks_of("kernel"), ...

Two ways: `follow` does with every frame what the kernel did with it (`memdesc.model.follow`), so
it judges splitting and merging; `own` gives the model the requests and lets it choose
(`memdesc.model.own`), so it judges everything: lists of CPUs, watermarks, fallbacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.kernels.allocator import MAX_ORDER, MIGRATETYPES
from memdesc.model import state as s
from memdesc.model.compiled import array
from memdesc.model.follow import COUNTS, PageEvents, follow
from memdesc.model.machine import Machine
from memdesc.model.own import C_FAILED_HERE, C_SAME, TICK, choose
from memdesc.model.replay_state import blocks_in, machine_of, model_types
from memdesc.model.served import as_served
from memdesc.traces.events import Event, Trace
from memdesc.traces.explain import seen_at
from memdesc.traces.state import AllocatorState, Blocks

__all__ = ["Lists", "Outcome", "Replay", "Replayer", "bounds", "replay"]

_PAGE_EVENTS = (
    Event.PAGE_ALLOC, Event.PAGE_FREE, Event.ZONE_LOCKED, Event.PCPU_DRAIN, Event.EXTFRAG,
)  # fmt: skip
_SECOND_NS = 10**9
_MOST_PASSES = 64


@dataclass(frozen=True)
class Lists:
    """Free blocks by order (columns 0 to 10) and migratetype (rows): at the start, and at the end
    in the kernel and in the model."""

    start: NDArray[np.int64]
    kernel: NDArray[np.int64] | None
    """None where the state after is not known."""
    model: NDArray[np.int64]
    names: tuple[str, ...]
    """Of the rows. One row, "all", where the kernel's types are not known."""
    frames_wrong: int | None
    """Frames that are free in one of kernel and model, and not in the other."""
    cpu_frames_wrong: int | None
    """The same for the CPUs' lists; None where those are not known."""
    pageblocks_wrong: int | None
    """Pageblocks of different type."""

    @property
    def blocks_wrong(self) -> int | None:
        """Sum over orders and types of the difference of the numbers of blocks."""
        return None if self.kernel is None else int(np.abs(self.kernel - self.model).sum())

    @property
    def is_exact(self) -> bool:
        """Whether every list has as many blocks as the kernel's, of the very same frames."""
        return self.blocks_wrong == 0 and self.frames_wrong == 0


@dataclass(frozen=True)
class Outcome:
    """What came out of one way to replay."""

    mode: str
    """"follow" or "own"."""
    counts: Mapping[str, int]
    lists: Lists
    machine: Machine
    """As it is at the end."""


@dataclass(frozen=True)
class Replay:
    """A trace replayed."""

    first: int
    end: int
    """The rows of the trace that were replayed: [first, end)."""
    events: int
    follow: Outcome | None
    own: Outcome | None


class Replayer:
    """A trace made ready: checked, bounded, and the ways of its frees found.

    `movable`: bool[frames], which frames in use at the start could be moved; fallbacks ask.
    Raises QuestionError for a trace without page events, or with frames that the machine has not.
    """

    def __init__(
        self,
        trace: Trace,
        before: AllocatorState,
        after: AllocatorState | None = None,
        movable: NDArray[np.bool_] | None = None,
    ) -> None:
        self.before, self.after, self._movable = before, after, movable
        self.first, self.end = bounds(trace, before, after)
        self._trace = trace.between(self.first, self.end)
        self._rows = self._trace.of(*_PAGE_EVENTS)
        _check(self._trace, self._rows, before)
        self._in_order = self._rows
        self._straight = np.zeros(self._rows.size, np.uint8)
        self._reordered = 0
        self._machine, self._events, self._late = self._followed()

    @property
    def events(self) -> int:
        """Page events that are replayed."""
        return int(self._rows.size)

    def ends_between(self, low: int, high: int, most: int) -> list[int]:
        """Rows of the trace at which one might stop between two of its rows: each makes another
        number of page events, at most `most` of them."""
        first, last = np.searchsorted(self._in_order, (low - self.first, high - self.first))
        counts = np.unique(np.linspace(first, last, min(most, last - first + 1)).astype(np.int64))
        rows = np.append(self._in_order, self._trace.columns["event"].size)
        return [int(rows[count]) + self.first for count in counts]

    def follow(self) -> Outcome:
        """What came of following the recorded addresses."""
        return _outcome(
            "follow",
            self._machine,
            self._events,
            self.before,
            self.after,
            late=self._late,
            moved=self._reordered,
        )

    def choose(self, end: int | None = None) -> Outcome:
        """What comes of choosing its own, up to row `end` of the trace; the free lists are held
        against the state after only where that is the end."""
        count = self._rows.size
        if end is not None:
            count = int(np.searchsorted(self._in_order, end - self.first))
        machine = machine_of(self.before, movable=self._movable)
        frames = array(machine.state.frame).size
        where = np.arange(frames)
        unused = np.zeros(frames, np.bool_)
        unused[: self.before.pfn_end] = self.before.is_free() | self.before.is_on_cpus()
        where[unused] = -1
        events = _events(
            self._trace,
            self._rows[:count],
            self._straight[:count],
            where,
            model_types(self.before),
            ticks=True,
        )
        choose(machine.state, events, array(events.event).size)
        after = self.after if end is None else None
        return _outcome("own", machine, events, self.before, after, moved=self._reordered)

    def _followed(self) -> tuple[Machine, PageEvents, int]:
        """Follow, as often as it takes until no free is found to have gone another way.

        The last value: frees whose way only the state after shows, as nothing took them again.
        """
        late = 0
        for _ in range(_MOST_PASSES):
            machine = machine_of(self.before, movable=self._movable)
            scratch = np.full(array(machine.state.frame).size, -1, np.int64)
            events = _events(
                self._trace, self._rows, self._straight, scratch, model_types(self.before)
            )
            if follow(machine.state, events, self._rows.size):
                continue
            found = _straight_at_the_end(machine, events, self.after)
            if found.size:
                self._straight[found] = 1
                late += int(found.size)
                continue
            order, moved = as_served(self._trace, self._rows, events)
            if not moved:
                break
            self._rows, self._straight = self._rows[order], self._straight[order]
            self._reordered += moved
        return machine, events, late


def replay(
    trace: Trace,
    before: AllocatorState,
    after: AllocatorState | None = None,
    *,
    modes: tuple[str, ...] = ("follow", "own"),
    movable: NDArray[np.bool_] | None = None,
) -> Replay:
    """Replay a trace, between its markers where it has some; see `Replayer`."""
    player = Replayer(trace, before, after, movable)
    return Replay(
        player.first,
        player.end,
        player.events,
        player.follow() if "follow" in modes else None,
        player.choose() if "own" in modes else None,
    )


def bounds(trace: Trace, before: AllocatorState, after: AllocatorState | None) -> tuple[int, int]:
    """The rows between the two states, by the markers of `memdesc vm trace`; the whole trace
    where there are none.

    Page files were read right before a marker; a dump was made a few events after it, and tells
    after which (`seen_at`).
    """
    marks = {text: row for row, text in reversed(trace.markers())}
    first, end = marks.get("before", 0), len(trace)
    if before.exact and "begin" in marks:
        first = seen_at(trace, before, first, marks["begin"])
    if after is not None and "after" in marks:
        end = marks["after"]
        if after.exact and "held" in marks:
            end = seen_at(trace, after, end, marks["held"])
    return first, end


# --- helpers -----------------------------------------------------------------------------


def _straight_at_the_end(
    machine: Machine, events: PageEvents, after: AllocatorState | None
) -> NDArray[np.int64]:
    """Rows of frees that put a frame on a CPU's list here, which is on a free list there."""
    if after is None or not after.exact:
        return np.zeros(0, np.int64)
    _, on_cpus = blocks_in(machine.state)
    pfns = on_cpus.pfn[after.is_free()[on_cpus.pfn]]
    rows = array(events.freed_at)[pfns]
    return rows[rows >= 0]


def _events(
    trace: Trace,
    rows: NDArray[np.int64],
    straight: NDArray[np.uint8],
    scratch: NDArray[np.int64],
    numbers: NDArray[np.uint8],
    *,
    ticks: bool = False,
) -> PageEvents:
    """The columns of the page events; with `ticks` a row more for each second that passes."""
    columns: dict[str, NDArray[Any]] = {
        name: trace.columns[name][rows].astype(np.int64)
        for name in PageEvents._fields
        if name in trace.columns
    }
    # An event without a type has -1, which the table leaves alone.
    for name in ("migratetype", "fallback_migratetype"):
        has = columns[name] >= 0
        columns[name][has] = numbers[columns[name][has]]
    columns["straight"] = straight
    if ticks and rows.size:
        seconds = (trace.time_ns[rows] - trace.time_ns[0]) // _SECOND_NS
        at = np.flatnonzero(np.diff(seconds, prepend=0))
        columns = {
            name: np.insert(values, at, TICK if name == "event" else 0)
            for name, values in columns.items()
        }
    columns["freed_at"] = scratch
    for name in ("passed_over", "behind"):
        columns[name] = np.full(columns["event"].size, -1, np.int64)
    columns["counts"] = np.zeros(16, np.int64)
    return PageEvents(
        **{name: cast("Any", np.ascontiguousarray(columns[name])) for name in PageEvents._fields}
    )


def _check(trace: Trace, rows: NDArray[np.int64], before: AllocatorState) -> None:
    """Compiled code does not look where it writes: refuse what would lead it astray."""
    if not rows.size:
        raise QuestionError(
            "the trace has no event of a page",
            hint="record kmem:mm_page_alloc, mm_page_free, mm_page_alloc_zone_locked, "
            "mm_page_pcpu_drain and mm_page_alloc_extfrag",
        )
    pfn, order = trace.pfn[rows], trace.order[rows].astype(np.int64)
    has = pfn >= 0
    if bool((order > MAX_ORDER).any()):
        raise QuestionError("the trace has blocks larger than the largest order")
    inside = np.zeros(before.pfn_end + 1, np.bool_)
    for zone in before.zones:
        inside[zone.pfn_start : zone.pfn_end] = True
    size = 1 << order
    ends = pfn + size
    wrong = has & ((ends > before.pfn_end) | (pfn & (size - 1) != 0))
    wrong[has & ~wrong] = ~inside[pfn[has & ~wrong]]
    if wrong.any():
        raise QuestionError(
            f"the trace has frames that the machine before it has not ({pfn[wrong][0]:#x})",
            hint="the trace and the capture must be of the same machine",
        )
    cpus = 1 + max((item.cpu for zone in before.zones for item in zone.cpus), default=0)
    if int(trace.cpu[rows].max()) >= cpus:
        raise QuestionError(f"the trace has more processors than the capture, which has {cpus}")
    kinds = np.concatenate((trace.migratetype[rows], trace.fallback_migratetype[rows]))
    if (model_types(before)[kinds[kinds >= 0]] > s.ISOLATE).any():
        raise QuestionError("the trace has a migratetype that is not modelled (CMA)")


# --- the outcome -------------------------------------------------------------------------


def _outcome(
    mode: str,
    machine: Machine,
    events: PageEvents,
    before: AllocatorState,
    after: AllocatorState | None,
    *,
    late: int = 0,
    moved: int = 0,
) -> Outcome:
    found = array(events.counts)
    counts = {name: int(found[index]) for index, name in enumerate(COUNTS)}
    if not before.exact:
        # A frame on a CPU's list looks as if it were in use, until it is handed out.
        counts["from CPUs' lists that the start does not show"] = counts.pop("contradictions")
    if moved:
        counts["put back to where they were served"] = moved
    if late:
        counts["of these, seen only in the state after"] = late
    if mode == "own":
        for name in ("taken off the free lists", "drained", "fallbacks"):
            del counts[name]
        counts["given the kernel's own frame"] = int(found[C_SAME])
        counts["failed here"] = int(found[C_FAILED_HERE])
    return Outcome(mode, counts, _lists(machine, before, after), machine)


def _lists(machine: Machine, before: AllocatorState, after: AllocatorState | None) -> Lists:
    free, on_cpus = blocks_in(machine.state)
    known = before.exact and (after is None or after.exact)
    names = MIGRATETYPES if known else ("all",)
    numbers = model_types(before) if known else np.zeros(256, np.uint8)
    frames = before.pfn_end
    wrong = cpu_wrong = blocks_wrong = None
    if after is not None:
        wrong = int((_mask(free, frames) != after.is_free()[:frames]).sum())
        if after.exact:
            cpu_wrong = int((_mask(on_cpus, frames) != after.is_on_cpus()[:frames]).sum())
            mine = array(machine.state.block)[: after.pageblocks.size]
            theirs = after.pageblocks[: mine.size]
            blocks_wrong = int(((mine != numbers[theirs]) & (theirs != 255)).sum())
    return Lists(
        start=_table(before.free, numbers, len(names)),
        kernel=None if after is None else _table(after.free, numbers, len(names)),
        model=_table(free, np.arange(256) if known else numbers, len(names)),
        names=names,
        frames_wrong=wrong,
        cpu_frames_wrong=cpu_wrong,
        pageblocks_wrong=blocks_wrong,
    )


def _table(blocks: Blocks, numbers: NDArray[Any], types: int) -> NDArray[np.int64]:
    """int64[types, 11]: blocks by migratetype, as `numbers` gives it, and order."""
    kind = np.minimum(numbers[blocks.migratetype], types - 1).astype(np.int64)
    cells = kind * (MAX_ORDER + 1) + blocks.order
    return np.bincount(cells, minlength=types * (MAX_ORDER + 1)).reshape(types, -1)


def _mask(blocks: Blocks, frames: int) -> NDArray[np.bool_]:
    mask = np.zeros(frames, np.bool_)
    mask[blocks.frames()] = True
    return mask

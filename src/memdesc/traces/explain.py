"""Is every page that changed between free and used explained by an event?

Free are the frames in free blocks, and those on the CPUs' lists where the state has them.  A
frame that was free and is in use must have been handed out; one that was in use and is free must
have been given back; a frame that moved between free lists and a CPU's list must have a refill or
a drain.  What no `mm_page_alloc` tells of (the bulk allocator has no such event) is named by the
event that took the frame off the free lists.

Source: `mm/page_alloc.c` @6.12: trace_mm_page_alloc is in __alloc_pages and not in
alloc_pages_bulk; rmqueue_bulk and free_pcppages_bulk trace each block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.allocator import MAX_ORDER
from memdesc.traces.events import Event, Trace
from memdesc.traces.state import AllocatorState

__all__ = ["Change", "Explanation", "explain", "seen_at"]

USED, ON_CPU, FREE = 0, 1, 2
PLACES = ("in use", "on a CPU's list", "free")

_MOST_FRAMES = 16
"""Unexplained frames that are listed."""


@dataclass(frozen=True)
class Change:
    """Frames that went from one place to another, by what explains them."""

    before: str
    after: str
    explanation: str
    """"" where no event explains them."""
    frames: int


@dataclass(frozen=True)
class Explanation:
    """The changes between two states, and the events between them that explain them."""

    changes: tuple[Change, ...]
    events: int
    """Events of pages between the two states."""
    unexplained: NDArray[np.int64]
    """int64[n]: frames that changed without an event, at most 16 of them."""
    first: int
    """The row of the trace that comes after the state before."""
    end: int
    """The row that comes after the state after."""

    @property
    def frames_changed(self) -> int:
        return sum(change.frames for change in self.changes)

    @property
    def frames_unexplained(self) -> int:
        return sum(change.frames for change in self.changes if not change.explanation)


def explain(
    trace: Trace, before: AllocatorState, after: AllocatorState, first: int = 0, end: int = -1
) -> Explanation:
    """Compare two states and look for an event of each frame that changed.

    `first` and `end` bound the rows between the states; see `seen_at`.
    """
    end = len(trace) if end < 0 else end
    pages = max(before.pfn_end, after.pfn_end)
    was, now = _places(before, pages), _places(after, pages)
    both = before.exact and after.exact
    if not both:
        # Without the CPUs' lists a frame on one looks as if it were in use.
        was[was == ON_CPU] = USED
        now[now == ON_CPU] = USED
    part = trace.between(first, end)
    last = _last_events(part, pages)
    codes = was.astype(np.int64) * 3 + now
    changes: list[Change] = []
    unexplained = np.zeros(0, np.int64)
    for old in (USED, ON_CPU, FREE):
        for new in (USED, ON_CPU, FREE):
            if old == new:
                continue
            frames = np.flatnonzero(codes == old * 3 + new)
            names, ok = _named(last[frames], new, both=both)
            for name in np.unique(names[ok]).tolist():
                count = int((names[ok] == name).sum())
                changes.append(Change(PLACES[old], PLACES[new], str(name), count))
            if not ok.all():
                unexplained = np.concatenate((unexplained, frames[~ok]))
                changes.append(Change(PLACES[old], PLACES[new], "", int((~ok).sum())))
    events = part.of(*_PAGE_EVENTS).size
    return Explanation(tuple(changes), events, unexplained[:_MOST_FRAMES], first, end)


def seen_at(trace: Trace, state: AllocatorState, first: int, end: int) -> int:
    """The row in [first, end] at which `state` was seen: what is handed out before it is in use
    there, what is handed out after it is not.

    A guest that holds still goes on for a handful of events before its dump.  The earliest row
    with the fewest contradictions; `end` where no page event lies between.
    """
    rows = first + trace.between(first, end).of(Event.PAGE_ALLOC, Event.PAGE_FREE)
    rows = rows[(trace.pfn[rows] >= 0) & (trace.pfn[rows] < state.pfn_end)]
    if not rows.size:
        return end
    unused = (state.is_free() | state.is_on_cpus())[trace.pfn[rows]]
    is_alloc = trace.event[rows] == Event.PAGE_ALLOC
    # Of what comes before the row, allocated frames must be in use; of what comes after, free.
    wrong_before = np.concatenate(([0], np.cumsum(unused == is_alloc)))
    wrong_after = np.concatenate((np.cumsum((unused != is_alloc)[::-1])[::-1], [0]))
    best = int(np.argmin(wrong_before + wrong_after))
    return int(rows[best]) if best < rows.size else end


# --- helpers -----------------------------------------------------------------------------

_PAGE_EVENTS = (
    Event.PAGE_ALLOC, Event.PAGE_FREE, Event.ZONE_LOCKED, Event.PCPU_DRAIN, Event.EXTFRAG,
)  # fmt: skip

_NAMES = {
    Event.PAGE_ALLOC: "mm_page_alloc",
    Event.PAGE_FREE: "mm_page_free",
    Event.ZONE_LOCKED: "mm_page_alloc_zone_locked",
    Event.PCPU_DRAIN: "mm_page_pcpu_drain",
    Event.EXTFRAG: "mm_page_alloc_extfrag",
}
_BULK = "mm_page_alloc_zone_locked, then the bulk allocator, which has no event"
_DIRECT = "mm_page_free, straight to the free lists (the CPU's list was locked or not meant)"
_KEPT = "mm_page_free, kept on the CPU's list"
_REFILL = "mm_page_alloc_zone_locked, kept on the CPU's list"
_CLAIM = "mm_page_alloc_extfrag, kept on the CPU's list"


def _places(state: AllocatorState, pages: int) -> NDArray[np.int8]:
    places = np.zeros(pages, np.int8)
    places[: state.pfn_end][state.is_on_cpus()] = ON_CPU
    places[: state.pfn_end][state.is_free()] = FREE
    return places


def _last_events(trace: Trace, pages: int) -> NDArray[np.uint8]:
    """uint8[pages]: the last event of each frame, 0 for none.

    An event speaks of all frames of its block.
    """
    rows = trace.of(*_PAGE_EVENTS)
    rows = rows[(trace.pfn[rows] >= 0) & (trace.pfn[rows] < pages)]
    rows = rows[trace.order[rows] <= MAX_ORDER]
    last_row = np.full(pages, -1, np.int64)
    orders = trace.order[rows]
    for order in range(MAX_ORDER + 1):
        chosen = rows[orders == order]
        if not chosen.size:
            continue
        # Of several events of one block the last one counts: rows ascend.
        pfn, back = np.unique(trace.pfn[chosen][::-1], return_index=True)
        row = chosen[::-1][back]
        frames = (pfn[:, None] + np.arange(1 << order)).ravel()
        whole = np.repeat(row, 1 << order)
        inside = frames < pages
        np.maximum.at(last_row, frames[inside], whole[inside])
    last = np.zeros(pages, np.uint8)
    found = last_row >= 0
    last[found] = trace.event[last_row[found]]
    return last


def _named(
    last: NDArray[np.uint8], new: int, *, both: bool
) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """What explains that frames are at the place `new`, given their last event."""
    answers: dict[int, str]
    if new == USED:
        answers = {Event.PAGE_ALLOC: _NAMES[Event.PAGE_ALLOC], Event.ZONE_LOCKED: _BULK}
        if not both:  # "in use" may mean: on a CPU's list
            answers[Event.ZONE_LOCKED] = "mm_page_alloc_zone_locked (to a CPU's list, or further)"
            answers[Event.PAGE_FREE] = _KEPT
            answers[Event.EXTFRAG] = _CLAIM
    elif new == ON_CPU:
        answers = {
            Event.PAGE_FREE: _KEPT, Event.ZONE_LOCKED: _REFILL, Event.EXTFRAG: _CLAIM
        }  # fmt: skip
    else:
        # What was taken off as part of a larger block comes back with the next drain beside it.
        answers = {Event.PCPU_DRAIN: _NAMES[Event.PCPU_DRAIN], Event.PAGE_FREE: _DIRECT}
    names = np.array([answers.get(int(event), "") for event in range(len(Event) + 1)])[last]
    return names, names != ""

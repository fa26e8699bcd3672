"""What would a memory error do here? Every present frame asked, and the answers added up.

The rule (`memdesc.rules.failure`) is asked once per distinct kind of frame; this module
counts frames per outcome, and gives the odds: one random present frame goes bad, what
happens?  Where a source leaves several types or outcomes open, the odds are a range.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from memdesc.answers.ledger import (
    CountedBy,
    cgroup_column,
    column_cells,
    present_cells,
    region_part,
)
from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.map.extents import MemoryMap, Totals
from memdesc.map.facts import FactTable
from memdesc.map.held import held_of
from memdesc.map.machine import Machine
from memdesc.map.parts import facts_of_folios
from memdesc.rules.failure import Consequence, HardOutcome, SoftOutcome, hard_failure, soft_offline
from memdesc.rules.subject import Knowledge, Rule, Ruling, Subjects, ask, merged
from memdesc.types import PAGE_SIZE_BYTES, MemoryType, TypeSet

__all__ = [
    "Failure",
    "FailureRow",
    "Observed",
    "Odds",
    "failure",
    "hard_json",
    "knowledge_of",
    "observed_on",
    "odds_json",
    "soft_json",
    "sysctl_notes",
]

_T = TypeVar("_T")

Observed = Callable[[MemoryType, tuple[str, ...]], tuple[str, ...]]
"""Kernel series on which a hard failure of a type ended so: (type, (verdict, message, errno))."""


@dataclass(frozen=True, slots=True)
class FailureRow:
    """Frames of one type (of one part) that fail in the same way."""

    part: str
    types: TypeSet
    frames: int
    hard: Ruling[HardOutcome]
    soft: Ruling[SoftOutcome]
    observed_on: tuple[str, ...] = ()
    """Kernel series on which a frame of this type failed in the first of these ways."""
    is_observed: bool = False
    """Every one of these outcomes was seen on this machine's series."""
    is_observed_in_part: bool = False
    """The first of them was, and others were not."""

    @property
    def basis(self) -> str:
        """ "observed" or "inferred"."""
        return "observed" if self.is_observed else "inferred"

    @property
    def size_bytes(self) -> int:
        return self.frames * PAGE_SIZE_BYTES

    def to_json(self) -> dict[str, Any]:
        return {
            "part": self.part or None,
            "type": self.types.json,
            "frames": self.frames,
            "size_bytes": self.size_bytes,
            "hard": hard_json(self.hard),
            "soft": soft_json(self.soft),
            "basis": self.basis,
            "observed_on": list(self.observed_on),
        }


@dataclass(frozen=True, slots=True)
class Odds:
    """How many frames have a consequence: at least, and at most."""

    consequence: Consequence
    frames_min: int
    frames_max: int


@dataclass(frozen=True)
class Failure:
    """The whole answer. Rows by falling number of frames."""

    by: CountedBy
    rows: tuple[FailureRow, ...]
    notes: tuple[str, ...] = ()
    odds: tuple[Odds, ...] = field(init=False)
    """On broken hardware, from harmless to fatal."""
    odds_injected: tuple[Odds, ...] = field(init=False)
    """When failures are only simulated."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "odds", _odds(self.rows, hardware=True))
        object.__setattr__(self, "odds_injected", _odds(self.rows, hardware=False))

    @property
    def frames(self) -> int:
        return sum(row.frames for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Schema memdesc-failure/1."""
        return {
            "schema": "memdesc-failure/1",
            "by": self.by,
            "frames_present": self.frames,
            "size_bytes_present": self.frames * PAGE_SIZE_BYTES,
            "odds": [odds_json(odds, self.frames) for odds in self.odds],
            "odds_injected": [odds_json(odds, self.frames) for odds in self.odds_injected],
            "rows": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }


def failure(
    source: Totals | MemoryMap, by: CountedBy = "type", *, observed: Observed | None = None
) -> Failure:
    """What a failure of each present frame would do, added up.

    Who holds a frame counts where the source sees that (`MemoryMap.references`,
    `Totals.held`). `observed` tells on which kernels an outcome was seen; without it every row
    is inferred.
    `by` cgroup needs a MemoryMap with cgroups (QuestionError). Precision: exact counts of
    what was read; outcomes as sure as their rule says.
    """
    machine, table = source.machine, source.table
    kernel = knowledge_of(machine)
    hard = {held: _by_fact(hard_failure, table, kernel, held) for held in _HELD}
    soft = {held: _by_fact(soft_offline, table, kernel, held) for held in _HELD}
    sums: dict[tuple[str, int, Ruling[HardOutcome], Ruling[SoftOutcome]], int] = defaultdict(int)
    for part, held, fact, frames in _cells(source, by):
        mask = int(table.types[fact])
        sums[part, mask, _bare(hard[held][fact]), _bare(soft[held][fact])] += frames
    rows = [
        _row(part, TypeSet(mask), frames, how, gently, observed, machine)
        for (part, mask, how, gently), frames in sums.items()
    ]
    rows.sort(key=lambda row: (-row.frames, row.part, row.types.mask))
    return Failure(by, tuple(rows), sysctl_notes(machine))


def knowledge_of(machine: Machine) -> Knowledge:
    """What `machine` tells of its kernel: release, settings, huge pages promised."""
    meminfo = (machine.after or machine.before).meminfo
    reserved = meminfo.get("HugePages_Rsvd")
    return Knowledge(machine.behaviour, machine.sysctls, reserved)


def hard_json(ruling: Ruling[HardOutcome]) -> dict[str, Any]:
    """The JSON form of a hard failure's ruling."""
    return {
        "verdicts": _distinct(outcome.verdict.value for outcome in ruling.outcomes),
        "certainty": ruling.certainty.value,
        "outcomes": [
            {
                "verdict": outcome.verdict.value,
                "message": outcome.message or None,
                "errno": outcome.errno,
                "injected": outcome.injected.name.lower(),
                "on_hardware": outcome.on_hardware.name.lower(),
                "reason": outcome.reason,
            }
            for outcome in ruling.outcomes
        ],
        "source": ruling.source,
    }


def soft_json(ruling: Ruling[SoftOutcome]) -> dict[str, Any]:
    """The JSON form of a soft offline's ruling."""
    return {
        "verdicts": _distinct(outcome.errno for outcome in ruling.outcomes),
        "certainty": ruling.certainty.value,
        "outcomes": [
            {"errno": outcome.errno, "reason": outcome.reason} for outcome in ruling.outcomes
        ],
        "source": ruling.source,
    }


def odds_json(odds: Odds, frames: int) -> dict[str, Any]:
    """The JSON form of the odds among `frames`."""
    return {
        "consequence": odds.consequence.name.lower(),
        "frames_min": odds.frames_min,
        "frames_max": odds.frames_max,
        "probability_min": odds.frames_min / frames if frames else None,
        "probability_max": odds.frames_max / frames if frames else None,
    }


def sysctl_notes(machine: Machine) -> tuple[str, ...]:
    """What to know about the settings that the answers rest on."""
    notes = []
    for name, default in (("vm.memory_failure_early_kill", 0), ("vm.memory_failure_recovery", 1)):
        value = machine.sysctls.get(name)
        if value is None:
            notes.append(f"{name} is not visible here: the default, {default}, is assumed")
        elif value != default:
            notes.append(f"{name} is {value} here (default {default})")
    if machine.sysctls.get("vm.memory_failure_recovery") == 0:
        notes.append("with memory_failure_recovery 0, every hard failure panics the machine")
    return tuple(notes)


# --- helpers -----------------------------------------------------------------------------


def observed_on(
    types: TypeSet, ruling: Ruling[HardOutcome], observed: Observed | None
) -> tuple[tuple[str, ...], ...]:
    """For each outcome of `ruling`, the series on which it was seen; none for a union."""
    kind = types.only
    if observed is None or kind is None:
        return tuple(() for _ in ruling.outcomes)
    return tuple(
        observed(kind, (out.verdict.value, out.message, out.errno)) for out in ruling.outcomes
    )


def _row(
    part: str,
    types: TypeSet,
    frames: int,
    hard: Ruling[HardOutcome],
    soft: Ruling[SoftOutcome],
    observed: Observed | None,
    machine: Machine,
) -> FailureRow:
    seen = observed_on(types, hard, observed)
    series = f"{machine.release.major}.{machine.release.minor}"
    here = [machine.release.is_known and series in one for one in seen]
    in_part = here[0] and not all(here)
    return FailureRow(part, types, frames, hard, soft, seen[0], all(here), in_part)


_HELD = (-1, 0, 1)
"""Values of `MemoryMap.references`."""


def _by_fact(rule: Rule[_T], table: FactTable, kernel: Knowledge, held: int) -> list[Ruling[_T]]:
    """The ruling for each fact of a table, of frames with one value of `_HELD`.

    Until 6.9 a tail does not show its head's flags, and totals do not keep heads and tails
    together: whether a tail of the page cache is dirty is open then.
    """
    flags, references = table.flags, np.full(len(table), held, np.int8)
    if not kernel.behaviour.tails_show_own_flags:
        answers = ask(rule, Subjects(table.types, flags, None, references), kernel)
        return [answers[fact] for fact in range(len(table))]
    tails = table.with_flags(KPF.COMPOUND_TAIL) & ~table.with_flags(KPF.COMPOUND_HEAD)
    swapped = table.types & np.uint64(_SWAPPABLE.mask) != 0
    flags = np.where(tails, flags | np.uint64(KPF.LRU), flags)
    flags = np.where(tails & swapped, flags | np.uint64(KPF.SWAPBACKED), flags)
    answers = ask(rule, Subjects(table.types, flags, None, references), kernel)
    flags = flags | np.uint64(KPF.DIRTY)
    dirty = ask(rule, Subjects(table.types, flags, None, references), kernel)
    is_file = tails & ~swapped
    return [
        merged([answers[fact], dirty[fact]])
        if is_file[fact] and answers[fact] != dirty[fact]
        else answers[fact]
        for fact in range(len(table))
    ]


_SWAPPABLE = TypeSet.of(MemoryType.ANON, MemoryType.KSM, MemoryType.SWAP_CACHE, MemoryType.SHMEM)


def _cells(source: Totals | MemoryMap, by: CountedBy) -> Iterable[tuple[str, int, int, int]]:
    """(part, reference, fact, frames) of the present frames."""
    if by == "cgroup":
        if not isinstance(source, MemoryMap):
            raise QuestionError("failures by cgroup need the extents of the map")
        codes, name = cgroup_column(source)
        column = codes.astype(np.int64) * len(_HELD)
        if source.references is not None:
            column += source.references + 1
            source = dataclasses.replace(source, facts=facts_of_folios(source))
        for here, code, fact, frames in column_cells(source, column):
            if here:
                cgroup, held = divmod(code, len(_HELD))
                yield name(cgroup)[0], held - 1, fact, frames
        return
    totals = source.totals if isinstance(source, MemoryMap) else source
    held_pages = held_of(source) if isinstance(source, MemoryMap) else source.held
    pages = totals.pages[np.newaxis] if held_pages is None else held_pages
    pages = np.where(present_cells(totals), pages, 0)
    parts = [region_part(totals.machine, region, by)[0] for region in totals.regions.all]
    for held, region, fact in zip(*np.nonzero(pages), strict=True):
        yield parts[region], int(held) - 1, int(fact), int(pages[held, region, fact])


def _odds(rows: Iterable[FailureRow], *, hardware: bool) -> tuple[Odds, ...]:
    least: dict[Consequence, int] = dict.fromkeys(Consequence, 0)
    most: dict[Consequence, int] = dict.fromkeys(Consequence, 0)
    for row in rows:
        ends = {out.on_hardware if hardware else out.injected for out in row.hard.outcomes}
        for end in ends:
            most[end] += row.frames
        if len(ends) == 1:
            least[ends.pop()] += row.frames
    return tuple(Odds(end, least[end], most[end]) for end in Consequence if most[end])


def _bare(ruling: Ruling[Any]) -> Ruling[Any]:
    """The ruling without what differs between equal answers."""
    return Ruling(ruling.outcomes, ruling.certainty, ruling.source)


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))

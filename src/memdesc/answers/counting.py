"""What a line of the reconciliation is made of: a counter, the frames, and what may lie between.

`Book` counts frames of a map by type and flags and looks the kernel's counters up; `Line` is
the result, with the tolerance within which the two agree.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.ledger import ledger as ledger_of
from memdesc.answers.words import size
from memdesc.kernels.kpageflags import KPF
from memdesc.map.extents import MemoryMap, Totals
from memdesc.map.machine import Machine
from memdesc.rules.classify import Backing
from memdesc.types import PAGE_SIZE_BYTES, MemoryType, TypeSet

__all__ = ["Book", "Line", "Status", "judged"]

Status = Literal["agrees", "explained", "differs", "not visible"]

_DRIFT_PAGES_PER_CPU = 125
"""vmstat counters are per CPU and folded at a threshold of at most 125 frames
(mm/vmstat.c:calculate_normal_threshold @7.2)."""


@dataclass(frozen=True, slots=True)
class Line:
    """One counter beside what the ledger says. Sizes in bytes."""

    counter: str
    counter_bytes: int | None
    """The mean of the counter before and after the scan; None where it was not read."""
    moved_bytes: int
    """How far the counter moved during the scan."""
    ledger_bytes: int | None
    """What the map counts; None where its frames are not visible as a type."""
    ledger_bytes_max: int | None
    """Upper bound where honest unions may belong to the counter; else `ledger_bytes`."""
    status: Status
    explanation: str
    tolerance_bytes: int = 0
    """How far the two may lie apart and still agree: what the counter moved during the scan,
    and the drift of per-CPU counters."""

    @property
    def difference_bytes(self) -> int | None:
        """Ledger minus counter; 0 where the counter lies between the bounds."""
        if self.counter_bytes is None or self.ledger_bytes is None:
            return None
        high = self.ledger_bytes if self.ledger_bytes_max is None else self.ledger_bytes_max
        if self.counter_bytes < self.ledger_bytes:
            return self.ledger_bytes - self.counter_bytes
        return min(0, high - self.counter_bytes)

    def to_json(self) -> dict[str, Any]:
        return {
            "counter": self.counter,
            "counter_bytes": self.counter_bytes,
            "moved_bytes": self.moved_bytes,
            "ledger_bytes": self.ledger_bytes,
            "ledger_bytes_max": self.ledger_bytes_max,
            "difference_bytes": self.difference_bytes,
            "tolerance_bytes": self.tolerance_bytes,
            "status": self.status,
            "explanation": self.explanation,
        }


class Book:
    """Counts frames of a map by flags and types, and looks counters up."""

    def __init__(self, source: Totals | MemoryMap) -> None:
        self.map = source if isinstance(source, MemoryMap) else None
        totals = source.totals if isinstance(source, MemoryMap) else source
        self.machine = totals.machine
        self.before = self.machine.before.meminfo
        self.after = self.machine.after.meminfo or self.before
        ram = [region.backing is not Backing.HOLE for region in totals.regions.all]
        self.table = totals.table
        present = ledger_of(totals)
        self.present_bytes = present.frames_present * PAGE_SIZE_BYTES
        self.pages: NDArray[np.int64] = totals.pages[np.array(ram, np.bool_)].sum(axis=0)
        self.has_mapcounts = self.map is not None and self.map.mapcounts is not None
        self.churn_bytes = _churn_bytes(self.machine)
        self.drift_bytes = _DRIFT_PAGES_PER_CPU * self.machine.nr_cpus * PAGE_SIZE_BYTES

    def counter(self, *names: str) -> tuple[int | None, int]:
        """(mean, movement) of the sum of counters; None where one is missing."""
        if any(name not in self.before for name in names):
            return None, 0
        first = sum(self.before[name] for name in names)
        last = sum(self.after.get(name, self.before[name]) for name in names)
        return (first + last) // 2, abs(last - first)

    def share_of(self, name: str, share: float) -> int:
        """A part of a counter, as slack for a line; 0 where the counter was not read."""
        value, _moved = self.counter(name)
        return int((value or 0) * share)

    def vmstat_bytes(self, name: str) -> int | None:
        """A frame counter of /proc/vmstat in bytes, mean of before and after."""
        first = self.machine.before.vmstat.get(name)
        if first is None:
            return None
        last = self.machine.after.vmstat.get(name, first)
        return (first + last) // 2 * PAGE_SIZE_BYTES

    def bytes_of(
        self, *kinds: MemoryType, having: int = 0, lacking: int = 0, mapped: bool = False
    ) -> int:
        """Bytes of frames that are certainly one of `kinds`, by flags and map count."""
        chosen = self.table.within(TypeSet.of(*kinds))
        return self._sum(chosen, having, lacking, mapped)

    def bytes_maybe(self, *kinds: MemoryType, having: int = 0) -> int:
        """Bytes of frames whose honest union has one of `kinds` among others."""
        wanted = np.uint64(TypeSet.of(*kinds).mask)
        chosen = ((self.table.types & wanted) != 0) & ~self.table.within(TypeSet.of(*kinds))
        return self._sum(chosen, having, 0, False)

    def _sum(self, chosen: NDArray[np.bool_], having: int, lacking: int, mapped: bool) -> int:
        flags = self.table.flags
        if having:
            chosen = chosen & ((flags & np.uint64(having)) == np.uint64(having))
        if lacking:
            chosen = chosen & ((flags & np.uint64(lacking)) == 0)
        if mapped and self.map is not None and self.map.mapcounts is not None:
            rows = chosen[self.map.facts] & (self.map.mapcounts > 0)
            return int(self.map.nr_pages[rows].sum()) * PAGE_SIZE_BYTES
        if mapped:
            chosen = chosen & ((flags & np.uint64(KPF.MMAP)) != 0)
        return int(self.pages[: chosen.size][chosen].sum()) * PAGE_SIZE_BYTES

    def line(
        self,
        counter: str | tuple[str, ...],
        ledger: int | None,
        explanation: str,
        *,
        most: int | None = None,
        slack: int = 0,
        explained: bool = False,
        drifts: bool = True,
    ) -> Line | None:
        """Build a line; None where this kernel has no such counter."""
        names = (counter,) if isinstance(counter, str) else counter
        value, moved = self.counter(*names)
        if value is None:
            return None
        title = " + ".join(names)
        if ledger is None:
            return Line(title, value, moved, None, None, "not visible", explanation)
        high = ledger if most is None else max(most, ledger)
        tolerance = moved + slack + (self.drift_bytes if drifts else 0)
        line = Line(title, value, moved, ledger, high, "agrees", explanation, tolerance)
        difference = abs(line.difference_bytes or 0)
        if difference <= tolerance:
            return line
        if not explained and difference <= tolerance + self.churn_bytes:
            explained = True
            explanation += (
                f"; {size(self.churn_bytes)} were allocated or freed while the map was read"
            )
        status: Status = "explained" if explained else "differs"
        return dataclasses.replace(line, status=status, explanation=explanation)


def judged(
    title: str,
    counter: int,
    ledger: int,
    explanation: str,
    *,
    tolerance: int,
    most: int | None = None,
) -> Line:
    """A line whose tolerance is given: it agrees within that, or differs."""
    line = Line(title, counter, 0, ledger, most or ledger, "agrees", explanation, tolerance)
    if abs(line.difference_bytes or 0) > tolerance:
        return dataclasses.replace(line, status="differs")
    return line


def _churn_bytes(machine: Machine) -> int:
    """Bytes that the page allocator handed out or took back during the scan, the larger."""
    before, after = machine.before.vmstat, machine.after.vmstat
    allocated = sum(
        after.get(name, count) - count
        for name, count in before.items()
        if name.startswith("pgalloc_")
    )
    freed = after.get("pgfree", 0) - before.get("pgfree", 0) if after else 0
    return max(allocated, freed, 0) * PAGE_SIZE_BYTES

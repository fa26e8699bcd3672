"""The same operations on every design: what does each design take, and what goes wrong by it?

Each run starts from the same memory; a design with a smaller memory map starts with more of it
free.  Where a design allocates nothing beside, its addresses are those of every other such
design: struct page of 2021 and of today differ in nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.model.cache_lines import Lines, Simulation
from memdesc.model.compiled import array
from memdesc.model.described import DescribedMachine, Metadata
from memdesc.model.designs import DESIGNS, Design
from memdesc.model.operations import ALLOC, CODES, KMEM_ALLOC, Operations
from memdesc.model.workloads import Workload
from memdesc.model.zones import Layout
from memdesc.types import PAGE_SIZE_BYTES

__all__ = ["Comparison", "DesignRun", "LineCount", "compare"]


@dataclass(frozen=True, slots=True)
class LineCount:
    """Cache lines of metadata that one kind of operation touched."""

    operation: str
    """As in `memdesc.model.operations.CODES`."""
    count: int
    lines: float
    """Distinct lines per operation, on average."""
    misses: float
    """Of those, per operation, what a cache of 32 KiB had not."""


@dataclass(frozen=True, slots=True)
class DesignRun:
    """One design after the run."""

    design: Design
    free_bytes_at_boot: int
    now: Metadata
    peak: Metadata
    descriptor_allocs: int
    descriptor_frees: int
    failed: int
    """Allocations of frames or objects that failed."""
    failed_for_descriptors: int
    """Of frames: the frames might have been had, and the descriptor not."""
    failed_only_here: int
    """Allocations that failed, and did not with today's struct page."""
    failed_only_today: int
    """Allocations that did not fail, and did with today's struct page."""
    lines: tuple[LineCount, ...]

    @property
    def lines_per_operation(self) -> float:
        """Over all operations."""
        total = sum(each.count for each in self.lines)
        return sum(each.lines * each.count for each in self.lines) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """All designs after the same workload."""

    workload: str
    operations: int
    memory_bytes: int
    kernel: str
    runs: tuple[DesignRun, ...]


def compare(
    workload: Workload,
    layout: Layout,
    *,
    kernel: str = "6.12",
    cpus: int = 2,
    designs: Iterable[Design] = tuple(DESIGNS.values()),
    lines: bool = True,
) -> Comparison:
    """Run `workload` on a machine of each design. `lines`: count cache lines (3 times slower)."""
    memory = sum(zone.frames_present for zone in layout.zones) * PAGE_SIZE_BYTES
    today = _Run(DESIGNS["today"], workload, layout, kernel, cpus, lines)
    runs = [
        (
            today if design is today.design else _Run(design, workload, layout, kernel, cpus, lines)
        ).report(today.failed)
        for design in designs
    ]
    return Comparison(workload.name, len(workload), memory, kernel, tuple(runs))


class _Run:
    def __init__(
        self,
        design: Design,
        workload: Workload,
        layout: Layout,
        kernel: str,
        cpus: int,
        lines: bool,
    ) -> None:
        self.design = design
        self.machine = DescribedMachine(layout, design, kernel, cpus)
        self.free_at_boot = self.machine.pages.counters()["nr_free_pages"] * PAGE_SIZE_BYTES
        operations = workload.on(self.machine)
        self.code: NDArray[np.uint8] = array(operations.code)
        self.seen: list[Lines] = []
        if lines:
            self._run_traced(operations)
        else:
            self.machine.slabs.run(operations)
        allocates = np.isin(self.code, (ALLOC, KMEM_ALLOC))
        self.failed: NDArray[np.bool_] = allocates & (array(operations.result) < 0)

    def _run_traced(self, operations: Operations) -> None:
        slabs = self.machine.slabs
        cache = Simulation()
        slabs.trace()
        at = 0
        while at < self.code.size:
            at = slabs.run(operations, at)
            self.seen.append(cache.feed(slabs.take_trace()))
        slabs.trace(0)

    def report(self, failed_today: NDArray[np.bool_]) -> DesignRun:
        machine = self.machine
        return DesignRun(
            design=self.design,
            free_bytes_at_boot=self.free_at_boot,
            now=machine.metadata(),
            peak=machine.peak(),
            descriptor_allocs=machine.descriptor_allocs,
            descriptor_frees=machine.descriptor_frees,
            failed=int(self.failed.sum()),
            failed_for_descriptors=machine.failures["descriptors"],
            failed_only_here=int((self.failed & ~failed_today).sum()),
            failed_only_today=int((~self.failed & failed_today).sum()),
            lines=tuple(self._lines()),
        )

    def _lines(self) -> list[LineCount]:
        if not self.seen:
            return []
        distinct = np.concatenate([each.distinct for each in self.seen])
        misses = np.concatenate([each.misses for each in self.seen])
        return [
            LineCount(
                name, int(mine.sum()), float(distinct[mine].mean()), float(misses[mine].mean())
            )
            for code, name in enumerate(CODES)
            if (mine := self.code == code).any()
        ]

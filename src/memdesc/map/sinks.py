"""Where encoded runs go: into totals, or into extents.

A sink takes the chunks of one scan in order.  `TotalsSink` only counts, so that a summary
of a terabyte needs no memory; `ExtentSink` keeps columns and joins runs across chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.map.codebook import CodeBook
from memdesc.map.encode import Runs
from memdesc.map.extents import MemoryMap, ScanStats, Totals
from memdesc.map.facts import FactTable
from memdesc.map.machine import Machine
from memdesc.map.regions import Regions

__all__ = ["Columns", "ExtentSink", "TotalsSink"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Extents of one chunk, in the map's own types, already joined to the chunk before."""

    pfn_starts: NDArray[np.unsignedinteger]
    facts: NDArray[np.uint16]
    mapcounts: NDArray[np.uint32] | None
    cgroups: NDArray[np.uint32] | None


class TotalsSink:
    """Counts runs by region and fact, and forgets them."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self._pages: dict[int, NDArray[np.float64]] = {}
        self.pfn_end = 0

    def count(self, runs: Runs) -> dict[int, NDArray[np.float64]]:
        """Frames per fact in each region that `runs` touches. May run in any thread."""
        lengths = runs.lengths()
        pfn_end = runs.pfn_start + runs.nr_pages
        edges = [
            runs.pfn_start,
            *self.regions.borders_within(runs.pfn_start, pfn_end),
            pfn_end,
        ]
        cuts = np.searchsorted(runs.starts, np.array(edges) - runs.pfn_start)
        return {
            self.regions.index_of(pfn): np.bincount(
                runs.facts[low:high], weights=lengths[low:high]
            )
            for low, high, pfn in zip(cuts, cuts[1:], edges, strict=False)
        }

    def add(self, counted: dict[int, NDArray[np.float64]], pfn_end: int) -> None:
        """Merge what `count` returned. Call in one thread."""
        for region, pages in counted.items():
            old = self._pages.get(region)
            if old is None or old.size < pages.size:
                grown = np.zeros(max(pages.size, 256 if old is None else old.size * 2))
                if old is not None:
                    grown[: old.size] = old
                self._pages[region] = old = grown
            old[: pages.size] += pages
        self.pfn_end = max(self.pfn_end, pfn_end)

    def totals(self, machine: Machine, table: FactTable, stats: ScanStats) -> Totals:
        """Everything counted so far."""
        pages = np.zeros((len(self.regions), max(1, len(table))), np.int64)
        for region, counts in self._pages.items():
            pages[region] = counts[: pages.shape[1]].astype(np.int64)
        return Totals(machine, self.regions, table, pages, self.pfn_end, stats)


class ExtentSink:
    """Collects runs in order, joined across chunk borders."""

    def __init__(self, regions: Regions, cgroup_codes: CodeBook) -> None:
        self._borders = frozenset(regions.starts)
        self._codes = cgroup_codes
        self._parts: list[Columns] = []
        self._empty = True
        self._last: tuple[int, int | None, int | None] | None = None
        self.pfn_start = self.pfn_end = 0

    def add(self, runs: Runs) -> None:
        """Append `runs`, which start where the last ones ended."""
        columns = self.columns(runs)
        if columns.pfn_starts.size:
            self._parts.append(columns)

    def columns(self, runs: Runs) -> Columns:
        """Narrow `runs` and join its first run to the previous chunk's last."""
        mapcounts = None
        if runs.mapcounts is not None:
            mapcounts = np.minimum(runs.mapcounts, np.uint64(0xFFFFFFFF)).astype(np.uint32)
        cgroups = None if runs.cgroups is None else self._codes.codes(runs.cgroups)
        starts = (runs.starts + runs.pfn_start).astype(np.uint64)
        first = 0
        head = (
            int(runs.facts[0]),
            None if mapcounts is None else int(mapcounts[0]),
            None if cgroups is None else int(cgroups[0]),
        )
        if self._last == head and runs.pfn_start not in self._borders:
            first = 1
        self._last = (
            int(runs.facts[-1]),
            None if mapcounts is None else int(mapcounts[-1]),
            None if cgroups is None else int(cgroups[-1]),
        )
        if self._empty:
            self.pfn_start, self._empty = runs.pfn_start, False
        self.pfn_end = runs.pfn_start + runs.nr_pages
        wide = self.pfn_end > 0xFFFFFFFF
        return Columns(
            starts[first:] if wide else starts[first:].astype(np.uint32),
            runs.facts[first:],
            None if mapcounts is None else mapcounts[first:],
            None if cgroups is None else cgroups[first:],
        )

    def map(
        self, machine: Machine, table: FactTable, stats: ScanStats, unseen: Mapping[str, str]
    ) -> MemoryMap:
        """The map of everything added."""
        parts = self._parts
        with_counts = bool(parts) and parts[0].mapcounts is not None
        with_cgroups = bool(parts) and parts[0].cgroups is not None
        return MemoryMap(
            machine=machine,
            table=table,
            pfn_starts=_joined([p.pfn_starts for p in parts], np.uint32),
            facts=_joined([p.facts for p in parts], np.uint16),
            pfn_end=self.pfn_end,
            pfn_start=self.pfn_start,
            mapcounts=_joined([p.mapcounts for p in parts], np.uint32) if with_counts else None,
            cgroups=_joined([p.cgroups for p in parts], np.uint32) if with_cgroups else None,
            cgroup_inodes=self._codes.keys,
            unseen=unseen,
            stats=stats,
        )



def _joined(
    parts: Sequence[NDArray[np.unsignedinteger] | None], dtype: type[np.unsignedinteger]
) -> NDArray[np.unsignedinteger]:
    """One column; wider than `dtype` where a part is."""
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)

"""Where encoded runs go: into totals, or into extents.

A sink takes the chunks of one scan in order.  `TotalsSink` only counts, so that a summary
of a terabyte needs no memory; `ExtentSink` keeps columns and joins runs across chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.map.codebook import CodeBook
from memdesc.map.encode import Runs
from memdesc.map.extents import MemoryMap, ScanStats, Totals
from memdesc.map.facts import FactBook, FactTable
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
    owners: NDArray[np.uint32] | None = None
    references: NDArray[np.int8] | None = None


class TotalsSink:
    """Adds up frames by region and fact."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self._pages = np.zeros((len(regions), 256))
        self.pfn_end = 0

    def add(self, counted: Iterable[tuple[int, NDArray[np.float64]]], pfn_end: int) -> None:
        """Add what `Encoder.count` gave for frames below `pfn_end`. Call in one thread."""
        for region, pages in counted:
            while self._pages.shape[1] < pages.size:
                self._pages = np.hstack([self._pages, np.zeros_like(self._pages)])
            self._pages[region, : pages.size] += pages
        self.pfn_end = max(self.pfn_end, pfn_end)

    def merge(self, other: TotalsSink) -> None:
        """Add what another thread's sink holds."""
        self.add(enumerate(other._pages), other.pfn_end)

    def totals(self, machine: Machine, table: FactTable, stats: ScanStats) -> Totals:
        """Everything added so far."""
        pages = np.zeros((len(self.regions), max(1, len(table))), np.int64)
        width = min(pages.shape[1], self._pages.shape[1])
        pages[:, :width] = self._pages[:, :width]
        return Totals(machine, self.regions, table, pages, self.pfn_end, stats)


class ExtentSink:
    """Collects runs in order, joined across chunk borders.

    It settles the codes of facts and cgroups, so these follow the order of frames.
    """

    def __init__(self, regions: Regions, book: FactBook, cgroup_codes: CodeBook) -> None:
        self._borders = frozenset(regions.starts)
        self._book = book
        self._codes = cgroup_codes
        self._parts: list[Columns] = []
        self._empty = True
        self._last: tuple[int | None, ...] | None = None
        self.pfn_start = self.pfn_end = 0

    def add(self, runs: Runs) -> None:
        """Append `runs`, which start where the last ones ended."""
        columns = self.columns(runs)
        if columns.pfn_starts.size:
            self._parts.append(columns)

    def columns(self, runs: Runs) -> Columns:
        """Join the first of `runs` to the previous chunk's last; columns as in a map."""
        facts, mapcounts, cgroups = self._book.settle(runs.facts), runs.mapcounts, None
        if runs.cgroups is not None:
            cgroups = self._codes.codes(runs.cgroups).astype(np.uint32)
        first, owners, references = 0, runs.owners, runs.references
        columns = (facts, mapcounts, cgroups, owners, references)
        head = tuple(None if column is None else int(column[0]) for column in columns)
        if self._last == head and runs.pfn_start not in self._borders:
            first = 1
        self._last = tuple(None if column is None else int(column[-1]) for column in columns)
        if self._empty:
            self.pfn_start, self._empty = runs.pfn_start, False
        self.pfn_end = runs.pfn_start + runs.nr_pages
        narrow = self.pfn_end <= 0xFFFFFFFF
        dtype: type[np.unsignedinteger[Any]] = np.uint32 if narrow else np.uint64
        return Columns(
            runs.starts[first:].astype(dtype) + dtype(runs.pfn_start),
            facts[first:],
            None if mapcounts is None else mapcounts[first:],
            None if cgroups is None else cgroups[first:],
            None if owners is None else owners[first:],
            None if references is None else references[first:],
        )

    def map(
        self,
        machine: Machine,
        table: FactTable,
        stats: ScanStats,
        unseen: Mapping[str, str],
        *,
        owner_names: Sequence[str] = (),
    ) -> MemoryMap:
        """The map of everything added; `owner_names` by the code of an owner."""
        parts = self._parts
        with_counts = bool(parts) and parts[0].mapcounts is not None
        with_cgroups = bool(parts) and parts[0].cgroups is not None
        with_owners = bool(parts) and parts[0].owners is not None
        references = [part.references for part in parts if part.references is not None]
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
            owners=_joined([p.owners for p in parts], np.uint32) if with_owners else None,
            owner_names=tuple(owner_names),
            references=np.concatenate(references) if references else None,
            unseen=unseen,
            stats=stats,
        )


# --- helpers -----------------------------------------------------------------------------


def _joined(
    parts: Sequence[NDArray[np.unsignedinteger] | None], dtype: type[np.unsignedinteger]
) -> NDArray[np.unsignedinteger]:
    """One column; wider than `dtype` where a part is."""
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)

"""The map itself: every frame of a machine once, as extents with the same facts.

A `MemoryMap` is a value. It comes from a live kernel, a raw file or a capture, and every
answer works on every map. Extents are columns: the first frame of each run, a code into
the table of distinct facts, and, where the source shows them, the map count and the
memory cgroup.  The map has no gaps: an extent ends where the next one starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.map.facts import Fact, FactTable
from memdesc.map.machine import Machine
from memdesc.map.regions import Regions, regions_of
from memdesc.types import Pfn, PfnRange

__all__ = ["Extent", "MemoryMap", "ReadFrom", "ScanStats", "Totals"]

ReadFrom = Literal["proc", "structs"]


@dataclass(frozen=True, slots=True)
class Extent:
    """One run of frames with the same facts."""

    pages: PfnRange
    fact: Fact
    mapcount: int | None
    """kpagecount of each frame; None where the source does not show it."""
    cgroup: int | None
    """Inode of the memory cgroup charged, 0 for none; None where not visible."""


@dataclass(frozen=True, slots=True)
class ScanStats:
    """How the map was read."""

    seconds: float = 0.0
    threads: int = 0
    frames_reread: int = 0
    """Frames of the sample that was read a second time after the scan."""
    frames_changed: int = 0
    """How many of those had another word then."""
    mapcounts_read: int = 0
    cgroups_read: int = 0
    frames_torn: int = 0
    """Tails whose head could not be: memory changed meanwhile, or is damaged (struct pages)."""
    frames_unreadable: int = 0
    """Frames whose struct page could not be read."""


@dataclass(frozen=True)
class Totals:
    """Frames per region and fact, without the extents: all that a summary needs."""

    machine: Machine
    regions: Regions
    table: FactTable
    pages: NDArray[np.int64]
    """int64[regions, facts]: frames."""
    pfn_end: int
    stats: ScanStats = ScanStats()
    held: NDArray[np.int64] | None = None
    """int64[3, regions, facts]: the same frames by `MemoryMap.references` + 1 first, tails by the
    facts of their heads (`memdesc.map.held`); None where nobody asked, or the source has no
    reference counts."""

    @property
    def frames(self) -> int:
        return int(self.pages.sum())


@dataclass(frozen=True)
class MemoryMap:
    """A typed map of frames [pfn_start, pfn_end)."""

    machine: Machine
    table: FactTable
    pfn_starts: NDArray[np.unsignedinteger]
    """uint32 or uint64[n], strictly rising; the first is `pfn_start`."""
    facts: NDArray[np.uint16]
    """uint16[n]: codes into `table`."""
    pfn_end: int
    pfn_start: int = 0
    """Above 0 only in a window of the machine (`PageScan.window`)."""
    mapcounts: NDArray[np.uint32] | None = None
    """uint32[n]: kpagecount of each frame (saturating); None where not visible."""
    cgroups: NDArray[np.uint32] | None = None
    """uint32[n]: index into `cgroup_inodes`; None where not visible."""
    cgroup_inodes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(1, np.uint64))
    """uint64[m]: inode numbers; index 0 is "charged to none"."""
    owners: NDArray[np.uint32] | None = None
    """uint32[n]: index into `owner_names`; None where the source does not tell owners."""
    owner_names: tuple[str, ...] = ()
    """Slab caches, file systems, callers of vmalloc, tasks of stacks; index 0 is "": nobody."""
    references: NDArray[np.int8] | None = None
    """int8[n]: 1 where somebody holds references beyond mappings, caches and private data, 0
    where nobody does, -1 where that has no meaning; None where the source has no counts."""
    unseen: Mapping[str, str] = field(default_factory=dict)
    """Column or file -> why it is not visible."""
    stats: ScanStats = ScanStats()
    read_from: ReadFrom = "proc"
    """"proc": kpageflags and its like; "structs": struct pages, of which `flags` is what
    kpageflags would show."""

    def __len__(self) -> int:
        return int(self.pfn_starts.size)

    @cached_property
    def nr_pages(self) -> NDArray[np.int64]:
        """int64[n]: frames in each extent."""
        edges = np.append(self.pfn_starts.astype(np.int64), self.pfn_end)
        lengths: NDArray[np.int64] = edges[1:] - edges[:-1]
        return lengths

    @cached_property
    def regions(self) -> Regions:
        return regions_of(self.machine)

    @cached_property
    def region_of_extent(self) -> NDArray[np.int64]:
        """int64[n]: index into `regions.all`."""
        starts = np.array(self.regions.starts, np.uint64)
        cuts = np.searchsorted(self.pfn_starts, starts)
        cuts[starts <= self.pfn_start] = 0
        marks = np.zeros(len(self) + 1, np.int64)
        np.add.at(marks, cuts, 1)
        return np.cumsum(marks[:-1]) - 1

    def index_of(self, pfn: int) -> int:
        """Index of the extent that holds `pfn`. Raises QuestionError outside the map."""
        if not self.pfn_start <= pfn < self.pfn_end:
            raise QuestionError(
                f"frame {pfn:#x} is outside the map, which ends at {self.pfn_end:#x}",
                hint="a physical address is written phys:0x..., a frame number 0x...",
            )
        # A key of another dtype would make searchsorted convert the whole column first.
        key = self.pfn_starts.dtype.type(pfn)
        return int(np.searchsorted(self.pfn_starts, key, side="right")) - 1

    def extent(self, index: int) -> Extent:
        """The extent at `index`."""
        end = int(self.pfn_starts[index + 1]) if index + 1 < len(self) else self.pfn_end
        return Extent(
            pages=PfnRange(Pfn(int(self.pfn_starts[index])), Pfn(end)),
            fact=self.table[int(self.facts[index])],
            mapcount=None if self.mapcounts is None else int(self.mapcounts[index]),
            cgroup=None
            if self.cgroups is None
            else int(self.cgroup_inodes[int(self.cgroups[index])]),
        )

    def extents(self, pfn_start: int | None = None, pfn_end: int | None = None) -> Iterator[Extent]:
        """Extents that overlap [pfn_start, pfn_end)."""
        pfn_start = self.pfn_start if pfn_start is None else max(pfn_start, self.pfn_start)
        end = self.pfn_end if pfn_end is None else min(pfn_end, self.pfn_end)
        if pfn_start >= end:
            return
        index = self.index_of(pfn_start)
        while index < len(self) and self.pfn_starts[index] < end:
            yield self.extent(index)
            index += 1

    def words(self, pfn_start: int, pfn_end: int) -> NDArray[np.uint64]:
        """uint64[pfn_end - pfn_start]: the kpageflags words, as the source read them."""
        low, high = self.index_of(pfn_start), self.index_of(pfn_end - 1) + 1
        edges = self.pfn_starts[low:high].astype(np.int64)
        edges = np.append(edges, pfn_end)
        edges[0] = pfn_start
        lengths = edges[1:] - edges[:-1]
        return np.repeat(self.table.flags[self.facts[low:high]], lengths)

    @cached_property
    def totals(self) -> Totals:
        """Frames per region and fact."""
        shape = (len(self.regions), max(1, len(self.table)))
        key = self.region_of_extent * shape[1] + self.facts
        pages = np.bincount(key, weights=self.nr_pages, minlength=shape[0] * shape[1])
        return Totals(
            self.machine,
            self.regions,
            self.table,
            pages.astype(np.int64).reshape(shape),
            self.pfn_end,
            self.stats,
        )

    def check(self) -> None:
        """Assert every invariant of the map; complete and slow. Raises AssertionError."""
        starts = self.pfn_starts.astype(np.int64)
        assert starts.size == self.facts.size, (starts.size, self.facts.size)
        if starts.size:
            assert starts[0] == self.pfn_start, starts[:4]
            assert (np.diff(starts) > 0).all(), "starts must rise"
            assert starts[-1] < self.pfn_end, (starts[-1], self.pfn_end)
            assert int(self.facts.max()) < len(self.table), (self.facts.max(), len(self.table))
        else:
            assert self.pfn_end == self.pfn_start, self.pfn_end
        for name, column in (
            ("mapcounts", self.mapcounts),
            ("cgroups", self.cgroups),
            ("owners", self.owners),
            ("references", self.references),
        ):
            assert column is None or column.size == starts.size, name
        if self.cgroups is not None and self.cgroups.size:
            assert int(self.cgroups.max()) < self.cgroup_inodes.size
        frames = self.pfn_end - self.pfn_start
        assert self.totals.frames == frames, (self.totals.frames, frames)

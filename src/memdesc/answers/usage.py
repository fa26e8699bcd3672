"""A map and an attribution laid over each other: what `memdesc.answers.who` adds up.

Both see the same frames at different moments.  Segments of the inverse are cut where an
extent of the map begins; what comes out are pieces, each with one set of mappers and one
set of facts.  An entry is one mapping of one piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.smaps import PSS_SHIFT
from memdesc.map.attribution import Attribution
from memdesc.map.extents import MemoryMap
from memdesc.map.inverse import Inverse
from memdesc.types import (
    DEVICE,
    FREE_LIKE,
    KERNEL_MAPPED,
    KERNEL_UNKNOWN,
    NOT_BACKED,
    PAGE_SIZE_BYTES,
    MemoryType,
    TypeSet,
)

__all__ = ["Sums", "Usage"]

_T = TypeVar("_T", bound=np.generic)
_ZERO_PAGES = TypeSet.of(MemoryType.ZERO, MemoryType.HUGE_ZERO)
_HUGETLB = TypeSet.of(MemoryType.HUGETLB)
_NOT_NORMAL = (
    KERNEL_MAPPED
    | KERNEL_UNKNOWN
    | DEVICE
    | NOT_BACKED
    | TypeSet.of(MemoryType.RESERVED, MemoryType.PAGE_TABLE, MemoryType.LARGE_KMALLOC)
)
_OUTSIDE = NOT_BACKED
"""The type of a frame beyond the end of the map."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of pages by (group, type), int64[groups, types] each."""

    rss: NDArray[np.int64]
    """Bytes mapped."""
    pss_fixed: NDArray[np.int64]
    """Bytes << PSS_SHIFT: each page divided by the mappings of it that were read, rounded
    down as the kernel does."""
    uss: NDArray[np.int64]
    """Bytes of pages with a single mapping."""
    unread: NDArray[np.int64]
    """Bytes of pages that the kernel counts more mappings of than were read."""


@dataclass(frozen=True)
class Usage:
    """Pieces and entries. Build with `Usage.of`."""

    map: MemoryMap
    attribution: Attribution
    inverse: Inverse
    segment: NDArray[np.int64]
    """int64[p]: segment of the inverse that each piece belongs to."""
    extent: NDArray[np.int64]
    """int64[p]: extent of the map; `len(map)` for frames beyond its end."""
    nr_pages: NDArray[np.int64]
    """int64[p]."""

    @classmethod
    def of(cls, map: MemoryMap, attribution: Attribution) -> Self:  # noqa: A002
        """Lay `attribution` over `map`."""
        inverse = Inverse.of(attribution)
        low = inverse.pfn_start
        high = low + inverse.nr_pages
        edges = np.append(map.pfn_starts.astype(np.int64), map.pfn_end)
        first = _last_at_or_below(edges, low)
        last = _last_at_or_below(edges, high - 1)
        counts = last - first + 1
        segment = np.repeat(np.arange(low.size), counts)
        extent = np.repeat(first - (np.cumsum(counts) - counts), counts)
        extent += np.arange(segment.size)
        ends = np.append(edges[1:], 1 << 62)
        start = np.maximum(low[segment], edges[extent])
        return cls(
            map,
            attribution,
            inverse,
            segment,
            extent,
            np.minimum(high[segment], ends[extent]) - start,
        )

    # --- pieces --------------------------------------------------------------------------

    @cached_property
    def types(self) -> tuple[TypeSet, ...]:
        """The distinct types of the map's facts; the last is for frames outside the map."""
        masks = sorted({int(mask) for mask in self.map.table.types})
        return (*(TypeSet(mask) for mask in masks), _OUTSIDE)

    @cached_property
    def type_of_piece(self) -> NDArray[np.int64]:
        """int64[p]: index into `types`."""
        code = {types.mask: index for index, types in enumerate(self.types[:-1])}
        of_fact = np.array([code[int(mask)] for mask in self.map.table.types], np.int64)
        return self._of_piece(of_fact, len(self.types) - 1)

    @cached_property
    def anon_piece(self) -> NDArray[np.bool_]:
        """bool[p]: the map says anonymous."""
        return self._of_piece(self.map.table.with_flags(KPF.ANON), 0)

    @cached_property
    def share_of_piece(self) -> NDArray[np.int64]:
        """int64[p]: proportional share of one page, in bytes << PSS_SHIFT, rounded down."""
        return (PAGE_SIZE_BYTES << PSS_SHIFT) // self.inverse.mapcount[self.segment].astype(
            np.int64
        )

    @cached_property
    def unread_piece(self) -> NDArray[np.bool_]:
        """bool[p]: kpagecount is above the mappings that were read. False where not visible."""
        if self.map.mapcounts is None:
            return np.zeros(self.segment.size, np.bool_)
        kernel = np.append(self.map.mapcounts, np.uint32(0))[self.extent]
        return kernel > self.inverse.mapcount[self.segment]

    @cached_property
    def kind_of_type(self) -> NDArray[np.uint8]:
        """uint8[types]: 0 counts as Rss, 1 zero page, 2 hugetlb, 3 maybe special entries."""
        kinds = [
            1
            if not types.mask & ~_ZERO_PAGES.mask
            else 2
            if not types.mask & ~_HUGETLB.mask
            else 3
            if not types.mask & ~_NOT_NORMAL.mask
            else 0
            for types in self.types
        ]
        return np.array(kinds, np.uint8)

    # --- entries -------------------------------------------------------------------------

    @cached_property
    def piece_of_entry(self) -> NDArray[np.int64]:
        """int64[e]: piece of each entry."""
        return np.repeat(np.arange(self.segment.size), self._mappers)

    @cached_property
    def run_of_entry(self) -> NDArray[np.uint32]:
        """uint32[e]: mapping of each entry."""
        counts = self._mappers
        place = np.repeat(self.inverse.offsets[self.segment] - (np.cumsum(counts) - counts), counts)
        place += np.arange(place.size)
        runs: NDArray[np.uint32] = self.inverse.runs[place]
        return runs

    @cached_property
    def vma_of_entry(self) -> NDArray[np.uint32]:
        """uint32[e]."""
        return self.attribution.mappings.vma[self.run_of_entry]

    @cached_property
    def process_of_entry(self) -> NDArray[np.uint32]:
        """uint32[e]."""
        return self.attribution.vmas.process[self.vma_of_entry]

    @cached_property
    def kind_of_entry(self) -> NDArray[np.uint8]:
        """uint8[e]: 0 counts as Rss, 1 zero page, 2 hugetlb, 3 special entry.

        A special entry (a driver's, without reverse mapping) shows neither "file" nor
        anonymous; anonymous VMAs have none, so there it is memory that changed since the
        map was read, and counts.
        """
        kind = self.kind_of_type[self.type_of_piece][self.piece_of_entry]
        maybe = np.flatnonzero(kind == 3)
        normal = self.attribution.mappings.file[self.run_of_entry[maybe]] != 0
        normal |= self.attribution.vmas.inode[self.vma_of_entry[maybe]] == 0
        kind[maybe[normal]] = 0
        return kind

    @cached_property
    def stale_pages(self) -> int:
        """Mappings of frames that are free in the map, which was read at another moment."""
        free = [not types.mask & ~FREE_LIKE.mask for types in self.types]
        chosen = np.array(free)[self.type_of_piece][self.piece_of_entry]
        return int(self.nr_pages[self.piece_of_entry[chosen]].sum())

    def sums(
        self, group: NDArray[np.integer], groups: int, entries: NDArray[np.intp] | None = None
    ) -> Sums:
        """Add up the entries that count as Rss by `group` (one number per entry) and type.

        `entries` limits it to some of them, of which `group` then holds the numbers.
        Exact up to 2 TiB per cell.
        """
        if entries is None:
            entries = np.arange(self.piece_of_entry.size)
        counted = self.kind_of_entry[entries] == 0
        entries, group = entries[counted], group[counted]
        piece = self.piece_of_entry[entries]
        types = len(self.types)
        key = group.astype(np.int64) * types + self.type_of_piece[piece]
        pages = self.nr_pages[piece]

        def add(weights: NDArray[np.int64]) -> NDArray[np.int64]:
            cells = np.bincount(key, weights=weights, minlength=groups * types)
            return cells.astype(np.int64).reshape(groups, types)

        single = self.inverse.mapcount[self.segment[piece]] == 1
        single &= ~self.unread_piece[piece]
        return Sums(
            rss=add(pages) * PAGE_SIZE_BYTES,
            pss_fixed=add(pages * self.share_of_piece[piece]),
            uss=add(pages * single) * PAGE_SIZE_BYTES,
            unread=add(pages * self.unread_piece[piece]) * PAGE_SIZE_BYTES,
        )

    def pages_by(
        self, group: NDArray[np.integer], groups: int, chosen: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """int64[groups]: pages of the `chosen` entries, every mapping counted."""
        pages = self.nr_pages[self.piece_of_entry[chosen]]
        return np.bincount(group[chosen], weights=pages, minlength=groups).astype(np.int64)

    def distinct(
        self, group: NDArray[np.integer], chosen: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(piece, group) of the `chosen` entries, each pair once."""
        groups = int(group.max(initial=0)) + 1
        key = self.piece_of_entry[chosen] * groups + group[chosen]
        key.sort()
        if key.size:
            key = key[np.concatenate([[True], key[1:] != key[:-1]])]
        return key // groups, key % groups

    # --- helpers -------------------------------------------------------------------------

    @cached_property
    def _mappers(self) -> NDArray[np.int64]:
        return self.inverse.mapcount[self.segment].astype(np.int64)

    def _of_piece(self, of_fact: NDArray[_T], outside: int) -> NDArray[_T]:
        """A column of the fact table, per piece."""
        column = np.append(of_fact, np.array([outside], of_fact.dtype))
        fact = np.append(self.map.facts.astype(np.int64), of_fact.size)
        found: NDArray[_T] = column[fact[self.extent]]
        return found


def _last_at_or_below(edges: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the last of the rising `edges` that is not above each of the rising `values`."""
    if edges.size > values.size:
        return np.searchsorted(edges, values, side="right") - 1
    cuts = np.searchsorted(values, edges)
    return np.cumsum(np.bincount(cuts, minlength=values.size + 1)[: values.size]) - 1

"""From a frame to its mappers: the mappings of an attribution, turned round.

Runs of several processes overlap in any way, so they are cut into segments: frames with
exactly the same mappers.  A segment lists its mappings (compressed sparse rows), 4 bytes
each.  Memory: at most 12 bytes per segment and 4 per mapping of a segment, whatever the
number of frames.

How: runs are sorted by first frame and fall into clusters that do not touch.  A cluster
whose runs are all equal (private memory, or shared after fork) is one segment; only the
others are cut, at every border of one of their runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from memdesc.map.attribution import Attribution, Process, Vma
from memdesc.types import PAGE_SHIFT

__all__ = ["Inverse", "Mapper"]


class Mapper(NamedTuple):
    """One mapping of one frame."""

    process: Process
    address: int
    """Virtual address of the frame in that process, in bytes."""
    vma: Vma


@dataclass(frozen=True)
class Inverse:
    """Segments by rising frame; frames between them are mapped by nobody who was read."""

    attribution: Attribution
    pfn_start: NDArray[np.int64]
    """int64[s]: first frame of each segment."""
    nr_pages: NDArray[np.uint32]
    """uint32[s]: frames in it."""
    offsets: NDArray[np.int64]
    """int64[s + 1]: segment i has the mappings `runs[offsets[i]:offsets[i + 1]]`."""
    runs: NDArray[np.uint32]
    """uint32[offsets[-1]]: indices into `attribution.mappings`, rising in each segment."""

    @classmethod
    def of(cls, attribution: Attribution) -> Self:
        """Turn `attribution` round."""
        mappings = attribution.mappings
        count = len(mappings)
        if not count:
            empty = np.zeros(0, np.int64)
            return cls(attribution, empty, empty.astype(np.uint32), _ZERO, _NO_RUNS)
        order, starts = _order(mappings.pfn_start)
        ends = starts + mappings.nr_pages[order]
        first, uneven = _clusters(starts, ends)
        if uneven is None:
            low = starts[first]
            nr_pages = (ends[first] - low).astype(np.uint32)
            return cls(attribution, low, nr_pages, np.append(first, count), order)
        sizes = np.diff(first, append=count)
        return cls(attribution, *_assemble(order, starts, ends, first, sizes, uneven))

    def __len__(self) -> int:
        return int(self.pfn_start.size)

    @cached_property
    def mapcount(self) -> NDArray[np.uint32]:
        """uint32[s]: mappings of each frame of a segment, over all processes that were read.

        The kernel's own count (kpagecount) also counts processes that could not be read.
        """
        return np.diff(self.offsets).astype(np.uint32)

    def segment_of(self, pfn: int) -> int | None:
        """Index of the segment that holds `pfn`; None where nobody who was read maps it."""
        index = int(np.searchsorted(self.pfn_start, pfn, side="right")) - 1
        if index < 0 or pfn >= int(self.pfn_start[index]) + int(self.nr_pages[index]):
            return None
        return index

    def mapcount_of(self, pfn: int) -> int:
        """How many mappings of `pfn` were read."""
        segment = self.segment_of(pfn)
        return 0 if segment is None else int(self.mapcount[segment])

    def mappers_of(self, pfn: int) -> list[Mapper]:
        """Every mapping of `pfn`, by process and address. Frames of no segment: []."""
        segment = self.segment_of(pfn)
        if segment is None:
            return []
        runs = self.runs[self.offsets[segment] : self.offsets[segment + 1]]
        return [mapper(self.attribution, int(run), pfn) for run in runs]

    def check(self) -> None:
        """Assert every invariant; complete and slow. Raises AssertionError."""
        mappings = self.attribution.mappings
        ends = self.pfn_start + self.nr_pages
        assert (self.nr_pages > 0).all(), "empty segment"
        assert (self.pfn_start[1:] >= ends[:-1]).all(), "segments overlap"
        assert self.offsets[0] == 0, self.offsets[0]
        assert self.offsets[-1] == self.runs.size, (self.offsets[-1], self.runs.size)
        assert (np.diff(self.offsets) > 0).all(), "segment without a mapping"
        counts = np.diff(self.offsets)
        segment = np.repeat(np.arange(len(self)), counts)
        starts = mappings.pfn_start[self.runs].astype(np.int64)
        assert (starts <= self.pfn_start[segment]).all(), "run starts inside its segment"
        run_ends = starts + mappings.nr_pages[self.runs]
        assert (run_ends >= ends[segment]).all(), "run ends inside its segment"
        pages = int((self.nr_pages.astype(np.int64) * counts).sum())
        assert pages == mappings.present_pages, (pages, mappings.present_pages)


def mapper(attribution: Attribution, run: int, pfn: int) -> Mapper:
    """The mapping of `pfn` through the run at index `run`, which must hold it."""
    mappings = attribution.mappings
    vma = attribution.vma(int(mappings.vma[run]))
    page = int(mappings.page[run]) + pfn - int(mappings.pfn_start[run])
    return Mapper(attribution.process(vma.process), page << PAGE_SHIFT, vma)


# --- building ----------------------------------------------------------------------------

_ZERO = np.zeros(1, np.int64)
_NO_RUNS = np.zeros(0, np.uint32)
_INDEX_BITS = np.uint64(32)


def _order(keys: NDArray[np.unsignedinteger]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """(stable order of `keys` as indices, the keys in that order).

    Sorting key and index packed in one word is three to four times as fast as argsort, and
    leaves the keys in order without another walk through memory.
    """
    if keys.dtype != np.uint32 and int(keys.max()) >> 32:
        wide = np.argsort(keys, kind="stable")
        return wide.astype(np.uint32), keys[wide].astype(np.int64)
    packed = keys.astype(np.uint64) << _INDEX_BITS
    packed |= np.arange(keys.size, dtype=np.uint64)
    packed.sort()
    order = packed.astype(np.uint32)  # the low half
    packed >>= _INDEX_BITS
    return order, packed.view(np.int64)


def _clusters(
    starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    """(first run of each cluster, whether its runs differ; None where none do)."""
    reach = np.maximum.accumulate(ends)
    begins = np.ones(starts.size, np.bool_)
    np.greater_equal(starts[1:], reach[:-1], out=begins[1:])
    first = np.flatnonzero(begins)
    if first.size == starts.size:
        return first, None
    differs = np.zeros(starts.size, np.bool_)
    np.logical_or(starts[1:] != starts[:-1], ends[1:] != ends[:-1], out=differs[1:])
    differs[first] = False
    if not differs.any():
        return first, None
    return first, np.logical_or.reduceat(differs, first)


def _assemble(
    order: NDArray[np.uint32],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    first: NDArray[np.int64],
    sizes: NDArray[np.int64],
    uneven: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64], NDArray[np.uint32]]:
    """Segments of even and uneven clusters, in the order of the clusters."""
    cut = np.repeat(uneven, sizes)
    low, high, counts, runs = _cut(order[cut], starts[cut], ends[cut])
    # Which cluster a cut segment belongs to: that of the last cluster start at or below it.
    uneven_first = first[uneven]
    edges = np.searchsorted(low, starts[uneven_first])
    segments = np.ones(first.size, np.int64)
    segments[uneven] = np.diff(edges, append=low.size)
    base = np.cumsum(segments) - segments
    total = int(segments.sum())

    place = np.repeat(uneven, segments)
    pfn_start = np.empty(total, np.int64)
    nr_pages = np.empty(total, np.uint32)
    mappers = np.empty(total, np.int64)
    even = base[~uneven]
    pfn_start[place], nr_pages[place], mappers[place] = low, high - low, counts
    even_first = first[~uneven]
    pfn_start[even] = starts[even_first]
    nr_pages[even] = ends[even_first] - starts[even_first]
    mappers[even] = sizes[~uneven]

    offsets = np.concatenate([_ZERO, np.cumsum(mappers)])
    all_runs = np.empty(int(offsets[-1]), np.uint32)
    from_cut = np.repeat(place, mappers)
    all_runs[from_cut] = runs
    all_runs[~from_cut] = order[~cut]
    return pfn_start, nr_pages, offsets, all_runs


def _cut(
    order: NDArray[np.uint32], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
    """Cut overlapping runs (sorted by start) at all borders.

    Returns segments (first frame, frame after the last, mappings) and their runs.
    """
    borders = np.concatenate([starts, ends])
    borders.sort()
    borders = borders[np.concatenate([[True], borders[1:] != borders[:-1]])]
    low, high = np.searchsorted(borders, starts), np.searchsorted(borders, ends)
    counts = high - low
    total = int(counts.sum())
    # One row per run and segment: the segments of a run are consecutive.
    segment = np.repeat(low - (np.cumsum(counts) - counts), counts)
    segment += np.arange(total)
    packed = segment.astype(np.uint64) << _INDEX_BITS
    packed |= np.repeat(order.astype(np.uint64), counts)
    packed.sort()
    mappers = np.bincount(segment, minlength=borders.size)[:-1]
    kept = mappers > 0  # gaps between clusters have none
    return (
        borders[:-1][kept],
        borders[1:][kept],
        mappers[kept],
        packed.astype(np.uint32),
    )

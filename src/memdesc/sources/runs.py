"""From pagemap entries to runs of frames: the encoding of one full buffer.

All work is numpy on a buffer that holds pieces of many VMAs, so its twenty calls are paid
once per 32768 entries: 5 to 20 ns per entry, the more the less the frames follow each
other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.pagemap import PM
from memdesc.sources.proc_files import Target

__all__ = ["Filled", "Job", "Part", "encode", "sample_entry"]

_PRESENT = np.uint64(PM.PRESENT)
_FRAME = np.uint64(PM.FRAME)
_FILE = np.uint64(PM.FILE)
_KEPT = np.uint64(PM.PRESENT | PM.FRAME | PM.FILE)
_SWAP = np.uint64(PM.SWAP)
_GUARD = np.uint64(PM.GUARD)
_ABSENT_KIND = np.uint64(0xFF)
"""Swap type, and the three bits of the offset that tell markers apart."""
_ABSENT_GUARD = np.uint64(8)
_ONE = np.uint64(1)


@dataclass(slots=True)
class Job:
    """The VMAs of one process, in virtual pages; `base` is the index of the first one."""

    target: Target
    base: int
    start: NDArray[np.int64]
    end: NDArray[np.int64]


@dataclass(slots=True)
class Part:
    """What one batch or block gave, in the order of the addresses."""

    pfn_start: NDArray[np.unsignedinteger]
    nr_pages: NDArray[np.uint32]
    vma: NDArray[np.uint32]
    page: NDArray[np.uint64]
    file: NDArray[np.uint8]
    zero: NDArray[np.uint32]
    """VMA of each run of zero pages that was left out."""
    zero_pages: NDArray[np.uint32]
    absent: NDArray[np.uint32]
    """uint32[k, 3]: (VMA, sample, entries) of what is neither present nor empty;
    `sample_entry` makes an entry of `sample` again."""
    hidden: int
    """Present entries whose frame number was blanked."""
    present: int


class Filled(NamedTuple):
    """Where a piece lies in the buffer: entries [position, position + pages)."""

    job: int
    page: int
    pages: int
    low: int
    high: int
    position: int


def encode(
    jobs: list[Job],
    filled: list[Filled],
    entries: NDArray[np.uint64],
    zero: NDArray[np.int64],
) -> Part:
    """Turn the entries of several pieces into runs that end at every border of a VMA."""
    low_edge, high_edge, vma, page_shift = _segments(jobs, filled)
    word = entries & _KEPT
    present = entries.view(np.int64) < 0
    joined = word[1:] - word[:-1] == _ONE
    # A border inside the buffer parts two runs even if frames go on; position 0 has none.
    joined[low_edge[low_edge > 0] - 1] = False
    joined[high_edge[high_edge < entries.size] - 1] = False
    first, last = present.copy(), present
    np.greater(present[1:], joined, out=first[1:])
    last = present.copy()
    np.greater(present[:-1], joined, out=last[:-1])
    starts, ends = np.flatnonzero(first), np.flatnonzero(last)
    ends += 1
    owner = _owners(starts, low_edge, high_edge)
    if owner.size and int(owner.min()) < 0:  # mapped between reading maps and pagemap
        kept = owner >= 0
        starts, ends, owner = starts[kept], ends[kept], owner[kept]
    values = word[starts]
    frames = values & _FRAME
    lengths = (ends - starts).astype(np.uint32)
    hidden = 0
    if frames.size and not frames.all():
        kept = frames != 0
        hidden = int(lengths[~kept].sum())
        starts, values, frames, lengths, owner = (
            column[kept] for column in (starts, values, frames, lengths, owner)
        )
    part = Part(
        pfn_start=frames,
        nr_pages=lengths,
        vma=vma[owner],
        page=(starts + page_shift[owner]).astype(np.uint64),
        file=((values & _FILE) != 0).view(np.uint8),
        zero=_NONE,
        zero_pages=_NONE,
        absent=_absent(entries, low_edge, high_edge, vma),
        hidden=hidden,
        present=int(lengths.sum()) + hidden,
    )
    _drop_zero(part, zero)
    if not frames.size or int(part.pfn_start.max(initial=0)) <= 0xFFFFFFFF:
        part.pfn_start = part.pfn_start.astype(np.uint32)
    return part


def _segments(
    jobs: list[Job], filled: list[Filled]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64]]:
    """Where each VMA lies in the buffer.

    Returns (first position, position after the last, VMA index, page - position).
    """
    job, page, pages, low, high, position = np.array(filled, np.int64).T
    counts = high - low
    piece = np.repeat(np.arange(job.size), counts)
    within = np.arange(piece.size) - np.repeat(np.cumsum(counts) - counts, counts)
    # All jobs' VMAs in one row; a job's own begin at `offset`.
    sizes = np.array([item.start.size for item in jobs])
    offset = np.cumsum(sizes) - sizes
    index = low[piece] + within
    place = index + offset[job[piece]]
    start = jobs[0].start if len(jobs) == 1 else np.concatenate([item.start for item in jobs])
    end = jobs[0].end if len(jobs) == 1 else np.concatenate([item.end for item in jobs])
    shift = (page - position)[piece]
    low_edge = np.maximum(start[place], page[piece]) - shift
    high_edge = np.minimum(end[place], (page + pages)[piece]) - shift
    base = np.array([item.base for item in jobs])
    vma = base[job[piece]] + index
    kept = low_edge < high_edge  # a short read can end before the last VMAs
    if not kept.all():
        low_edge, high_edge, vma, shift = (
            column[kept] for column in (low_edge, high_edge, vma, shift)
        )
    return low_edge, high_edge, vma.astype(np.uint32), shift


def _owners(
    positions: NDArray[np.int64], low_edge: NDArray[np.int64], high_edge: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The segment of each rising position, -1 between segments."""
    edges = np.empty(low_edge.size * 2, np.int64)
    edges[0::2], edges[1::2] = low_edge, high_edge
    cuts = np.searchsorted(positions, edges)
    counts = np.diff(cuts, prepend=0, append=positions.size)
    owner = np.full(edges.size + 1, -1, np.int64)
    owner[1::2] = np.arange(low_edge.size)
    return np.repeat(owner, counts)


def _absent(
    entries: NDArray[np.uint64],
    low_edge: NDArray[np.int64],
    high_edge: NDArray[np.int64],
    vma: NDArray[np.uint32],
) -> NDArray[np.uint32]:
    """uint32[k, 3]: (VMA, sample, entries); usually there are none."""
    if not np.bitwise_or.reduce(entries) & _SWAP:
        return _NO_ABSENT
    positions = np.flatnonzero((entries & (_SWAP | _PRESENT)) == _SWAP)
    owner = _owners(positions, low_edge, high_edge)
    positions, owner = positions[owner >= 0], owner[owner >= 0]
    words = entries[positions]
    sample = words & _ABSENT_KIND | ((words & _GUARD) != 0).astype(np.uint64) << _ABSENT_GUARD
    key = vma[owner].astype(np.uint64) << np.uint64(16) | sample
    key.sort()
    firsts = np.flatnonzero(np.diff(key, prepend=~key[:1]))
    counts = np.diff(firsts, append=key.size)
    key = key[firsts]
    columns = (key >> np.uint64(16), key & np.uint64(0xFFFF), counts)
    return np.stack([column.astype(np.uint32) for column in columns], axis=1)


def sample_entry(sample: int) -> int:
    """A pagemap entry of the same kind as those counted under `sample` in `Part.absent`."""
    kind = sample & int(_ABSENT_KIND)
    # A high bit of the offset: an entry of all zeroes would look like a blanked one.
    guard = int(PM.GUARD) if sample >> int(_ABSENT_GUARD) & 1 else 0
    return int(PM.SWAP) | guard | kind | 1 << 50


def _drop_zero(part: Part, zero: NDArray[np.int64]) -> None:
    """Take runs of zero pages out of `part` and count them by VMA."""
    for low, high in zero.tolist():
        frames = part.pfn_start
        # A run that goes on beyond the zero page, by chance, stays: the map tells it apart.
        drop = (frames >= low) & (frames < high)
        if drop.any():
            drop &= frames.astype(np.int64) + part.nr_pages <= high
        if not drop.any():
            continue
        part.zero = np.concatenate([part.zero, part.vma[drop]])
        part.zero_pages = np.concatenate([part.zero_pages, part.nr_pages[drop]])
        keep = ~drop
        part.pfn_start, part.nr_pages = frames[keep], part.nr_pages[keep]
        part.vma, part.page, part.file = part.vma[keep], part.page[keep], part.file[keep]


_NONE = np.zeros(0, np.uint32)
_NO_ABSENT = np.zeros((0, 3), np.uint32)

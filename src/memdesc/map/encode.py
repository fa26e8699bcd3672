"""From raw words to runs: the inner loop of every scan.

One chunk of kpageflags words goes in; the runs of equal words and a fact code for each
come out, or only how many frames each fact has.  All work is numpy on arrays that fit in
the processor's cache.  Per frame it costs one comparison and one search for the borders;
everything else is proportional to runs, of which there are many times fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from memdesc.map.facts import FactBook
from memdesc.map.regions import Region, Regions
from memdesc.rules.classify import Backing

__all__ = ["Encoder", "ReadWords", "Runs", "zero_sections"]

_LARGEST_COMPOUND = 1 << 18
"""Frames of the largest compound page: 1 GiB hugetlb."""

ReadWords = Callable[[int, NDArray[np.uint64]], None]
"""Fills an array with the kpageflags words from a frame on."""


@dataclass(slots=True)
class Runs:
    """Consecutive runs of one chunk, all columns of the same length."""

    pfn_start: int
    nr_pages: int
    starts: NDArray[np.int64]
    """int64[n]: offset of each run's first frame from `pfn_start`; the first is 0."""
    facts: NDArray[np.uint16]
    mapcounts: NDArray[np.uint32] | None = None
    """uint32[n]: saturating at 2**32 - 1."""
    cgroups: NDArray[np.uint64] | None = None
    """uint64[n]: inode numbers."""
    owners: NDArray[np.uint32] | None = None
    """uint32[n]: codes of owner names; only from struct pages."""
    references: NDArray[np.int8] | None = None
    """int8[n]: as `MemoryMap.references`; only from struct pages."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Frames [low, high) of a chunk, all in one region and judged by one backing."""

    low: int
    high: int
    region: int
    """Index into the regions."""
    backing: Backing


class Encoder:
    """Turns chunks of words into runs. One per scan, for all its threads."""

    def __init__(
        self,
        book: FactBook,
        regions: Regions,
        *,
        section_pages: int,
        read_words: ReadWords,
    ) -> None:
        """`read_words` is asked for frames before a chunk that begins inside a compound page."""
        self.book = book
        self.regions = regions
        self.section_pages = section_pages
        self.read_words = read_words

    def encode(
        self,
        pfn_start: int,
        words: NDArray[np.uint64],
        mapcounts: NDArray[np.uint64] | None = None,
        cgroups: NDArray[np.uint64] | None = None,
        owners: NDArray[np.uint64] | None = None,
        references: NDArray[np.int8] | None = None,
    ) -> Runs:
        """Cut `words` (uint64, frames from `pfn_start`) into runs and name them.

        `mapcounts`, `cgroups`, `owners` and `references`, where given, have the same length
        and cut runs as well.
        """
        pieces = self._pieces(pfn_start, words)
        change = _changes(words)
        for column in (mapcounts, cgroups, owners, references):
            if column is not None:
                change |= _changes(column)
        lows = [piece.low for piece in pieces]
        change[lows] = True
        starts = change.nonzero()[0]
        codes = self.book.words.codes(words[starts])
        cuts = [*np.searchsorted(starts, lows).tolist(), starts.size]
        facts = [
            self._facts(pfn_start, piece, codes[low:high])
            for piece, (low, high) in zip(pieces, pairwise(cuts), strict=True)
        ]
        return Runs(
            pfn_start,
            words.size,
            starts,
            facts[0] if len(facts) == 1 else np.concatenate(facts),
            None if mapcounts is None else _saturated(mapcounts[starts]),
            None if cgroups is None else cgroups[starts],
            None if owners is None else owners[starts].astype(np.uint32),
            None if references is None else references[starts],
        )

    def encode_same(self, pfn_start: int, nr_pages: int, word: int) -> Runs:
        """As `encode`, of frames that all have the same `word`, which is not 0 and no tail's.

        A hole of many TiB (device memory lies at the top of the address space) is one run for
        each region, and costs no more.
        """
        borders = self.regions.borders_within(pfn_start, pfn_start + nr_pages)
        lows = sorted({0, *(pfn - pfn_start for pfn in borders)})
        codes = self.book.words.codes(np.full(1, word, np.uint64))
        regions = [self.regions.all[self.regions.index_of(pfn_start + low)] for low in lows]
        facts = [self.book.facts(codes, region.backing) for region in regions]
        return Runs(pfn_start, nr_pages, np.array(lows, np.int64), np.concatenate(facts))

    def count_same(
        self, pfn_start: int, nr_pages: int, word: int
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """As `count`, of frames that all have the same `word`."""
        runs = self.encode_same(pfn_start, nr_pages, word)
        lengths = np.diff(runs.starts, append=nr_pages).astype(np.float64)
        for place, low in enumerate(runs.starts.tolist()):
            counts = np.bincount(runs.facts[place : place + 1], lengths[place : place + 1])
            yield self.regions.index_of(pfn_start + low), counts.astype(np.float64, copy=False)

    def count(
        self, pfn_start: int, words: NDArray[np.uint64]
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield (index of region, float64 frames by fact code), each region once or more.

        The sums of `encode` without its columns: where no tail needs its head, runs are
        counted by word, and only the sums get a fact. Sums are exact below 2**53.
        """
        for piece in self._pieces(pfn_start, words):
            part = words[piece.low : piece.high]
            starts = _changes(part).nonzero()[0]
            lengths = np.empty(starts.size)
            np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
            lengths[-1] = part.size - starts[-1]
            if self.book.tails_need_heads:
                facts = self._facts(pfn_start, piece, self.book.words.codes(part[starts]))
                yield piece.region, np.bincount(facts, lengths).astype(np.float64, copy=False)
            else:
                by_code = self.book.words.count(part[starts], lengths)
                facts = self.book.facts(np.arange(by_code.size), piece.backing)
                yield piece.region, np.bincount(facts, by_code).astype(np.float64, copy=False)

    def head_before(self, pfn: int) -> tuple[int, NDArray[np.uint64]] | None:
        """The frame and the word (one element) of the head whose tails reach up to `pfn`.

        Hardly ever needed: only gigantic pages are larger than a chunk.
        """
        lowest = pfn & -_LARGEST_COMPOUND
        span = 64
        while pfn > lowest:
            words = np.empty(min(span, pfn - lowest), np.uint64)
            pfn -= words.size
            self.read_words(pfn, words)
            is_tail, is_head = self.book.compound_marks(self.book.words.codes(words))
            others = np.flatnonzero(~is_tail)
            if others.size:
                last = int(others[-1])
                return (pfn + last, words[last : last + 1]) if is_head[last] else None
            span *= 4
        return None

    # --- helpers -------------------------------------------------------------------------

    def _pieces(self, pfn_start: int, words: NDArray[np.uint64]) -> list[_Piece]:
        """Cut a chunk where another region begins, and where whole sections read 0."""
        size = words.size
        edges = {
            pfn - pfn_start for pfn in self.regions.borders_within(pfn_start, pfn_start + size)
        }
        empty: set[int] = set()
        for low in zero_sections(pfn_start, words, self.section_pages):
            empty.update((low, *(edge for edge in edges if low < edge < low + self.section_pages)))
            edges |= {low, low + self.section_pages}
        pieces: list[_Piece] = []
        for low, high in pairwise(sorted(edges | {0, size})):
            index = self.regions.index_of(pfn_start + low)
            region = self.regions.all[index]
            backing = _backing_if_empty(region) if low in empty else region.backing
            if pieces and (pieces[-1].region, pieces[-1].backing) == (index, backing):
                low = pieces.pop().low
            pieces.append(_Piece(low, high, index, backing))
        return pieces

    def _facts(self, pfn_start: int, piece: _Piece, codes: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Fact codes for the runs of one piece, whose words have `codes`."""
        facts = self.book.facts(codes, piece.backing)
        if not self.book.tails_need_heads:
            return facts
        is_tail, is_head = self.book.compound_marks(codes)
        if not is_tail.any():
            return facts
        # The head of a tail is the last head before it, with only tails in between.
        before = np.maximum.accumulate(np.where(is_tail, -1, np.arange(codes.size)))
        owned = np.flatnonzero(is_tail & (before >= 0) & is_head[before])
        facts[owned] = self.book.tail_facts(codes[owned], codes[before[owned]], piece.backing)
        if is_tail[0] and piece.low == 0:
            head = self.head_before(pfn_start)
            if head is not None and head[0] >= self.regions.all[piece.region].pfn_start:
                count = int(np.argmin(is_tail)) or is_tail.size
                facts[:count] = self.book.tail_facts(
                    codes[:count], self.book.words.codes(head[1]).repeat(count), piece.backing
                )
        return facts


def zero_sections(pfn_start: int, words: NDArray[np.uint64], section_pages: int) -> list[int]:
    """Offsets into `words` of the whole, aligned memory sections that read 0."""
    return [
        low
        for low in range(-pfn_start % section_pages, words.size - section_pages + 1, section_pages)
        # Two probes spare the full look at most sections.
        if not words[low]
        and not words[low + section_pages - 1]
        and not words[low : low + section_pages].any()
    ]


def _backing_if_empty(region: Region) -> Backing:
    """What to believe of frames of `region` in a memory section that reads 0."""
    if region.backing is Backing.UNKNOWN:
        return Backing.ZERO_SECTION
    return Backing.ZERO_SECTION_RAM if region.deferred_ok else region.backing


def _changes(column: NDArray[np.integer]) -> NDArray[np.bool_]:
    """bool: True where a run begins, at the first element as well."""
    change = np.empty(column.size, np.bool_)
    change[0] = True
    np.not_equal(column[1:], column[:-1], out=change[1:])
    return change


def _saturated(counts: NDArray[np.uint64]) -> NDArray[np.uint32]:
    return np.minimum(counts, np.uint64(0xFFFFFFFF)).astype(np.uint32)

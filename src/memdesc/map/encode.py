"""From raw words to runs: the inner loop of every scan.

One chunk of kpageflags words goes in, the starts of its runs and a fact code for each
come out.  All work is numpy on arrays that fit in the second-level cache; what costs is
proportional to runs, not frames, except for one comparison and one scan for the borders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.map.facts import FactBook
from memdesc.map.regions import Region, Regions
from memdesc.rules.classify import Backing

__all__ = ["CHUNK_PAGES", "Encoder", "Runs"]

CHUNK_PAGES = 1 << 16
"""Frames per chunk: 512 KiB of words, half of a second-level cache."""

_HEAD_ALIGN = 1 << 18
"""The largest compound page: 1 GiB hugetlb, order 18."""

ReadWord = Callable[[int], int]
"""Reads the kpageflags word of one frame."""


@dataclass(slots=True)
class Runs:
    """Consecutive runs of one chunk, all columns of the same length."""

    pfn_start: int
    nr_pages: int
    starts: NDArray[np.int64]
    """int64[n]: offset of each run's first frame from `pfn_start`; the first is 0."""
    facts: NDArray[np.uint16]
    mapcounts: NDArray[np.uint64] | None = None
    cgroups: NDArray[np.uint64] | None = None

    def lengths(self) -> NDArray[np.int64]:
        """int64[n]: frames in each run."""
        return np.diff(self.starts, append=self.nr_pages)


class Encoder:
    """Turns chunks of words into runs. One per scan; `encode` may run in several threads."""

    def __init__(
        self, book: FactBook, regions: Regions, *, section_pages: int, read_word: ReadWord
    ) -> None:
        self.book = book
        self.regions = regions
        self.section_pages = section_pages
        self.read_word = read_word

    def encode(
        self,
        pfn_start: int,
        words: NDArray[np.uint64],
        mapcounts: NDArray[np.uint64] | None = None,
        cgroups: NDArray[np.uint64] | None = None,
    ) -> Runs:
        """Cut `words` (uint64, frames from `pfn_start`) into runs and name them.

        `mapcounts` and `cgroups`, where given, have the same length and cut runs as well.
        """
        size = words.size
        change = words[1:] != words[:-1]
        if mapcounts is not None:
            change |= mapcounts[1:] != mapcounts[:-1]
        if cgroups is not None:
            change |= cgroups[1:] != cgroups[:-1]
        for border in self.regions.borders_within(pfn_start, pfn_start + size):
            change[border - pfn_start - 1] = True
        zero_sections = self._zero_sections(pfn_start, words, change)
        starts = np.concatenate([_ZERO, np.flatnonzero(change)])
        starts[1:] += 1
        codes = self.book.words.codes(words[starts])
        return Runs(
            pfn_start,
            size,
            starts,
            self._facts(pfn_start, size, starts, codes, zero_sections),
            mapcounts[starts] if mapcounts is not None else None,
            cgroups[starts] if cgroups is not None else None,
        )

    # --- helpers -------------------------------------------------------------------------

    def _zero_sections(
        self, pfn_start: int, words: NDArray[np.uint64], change: NDArray[np.bool_]
    ) -> list[int]:
        """Offsets of whole aligned sections that read 0; cuts the runs at their borders."""
        section = self.section_pages
        found: list[int] = []
        first = -pfn_start % section
        for offset in range(first, words.size - section + 1, section):
            # Two probes spare the full look at most sections.
            if words[offset] or words[offset + section - 1]:
                continue
            if words[offset : offset + section].any():
                continue
            found.append(offset)
            if offset:
                change[offset - 1] = True
            if offset + section < words.size:
                change[offset + section - 1] = True
        return found

    def _facts(
        self,
        pfn_start: int,
        size: int,
        starts: NDArray[np.int64],
        codes: NDArray[np.uint32],
        zero_sections: list[int],
    ) -> NDArray[np.uint16]:
        borders = self.regions.borders_within(pfn_start, pfn_start + size)
        if not borders:
            region = self.regions.of(pfn_start)
            facts = self._facts_in(region, pfn_start, starts, codes, 0)
        else:
            facts = np.empty(starts.size, np.uint16)
            edges = [pfn_start, *borders, pfn_start + size]
            cuts = np.searchsorted(starts, np.array(edges) - pfn_start)
            for low, high, pfn in zip(cuts, cuts[1:], edges, strict=False):
                region = self.regions.of(pfn)
                facts[low:high] = self._facts_in(
                    region, pfn_start, starts[low:high], codes[low:high], int(low)
                )
        for offset in zero_sections:
            region = self.regions.of(pfn_start + offset)
            if region.backing is Backing.UNKNOWN:
                backing = Backing.ZERO_SECTION
            elif region.deferred_ok:
                backing = Backing.ZERO_SECTION_RAM
            else:
                continue
            low = int(np.searchsorted(starts, offset))
            high = int(np.searchsorted(starts, offset + self.section_pages))
            facts[low:high] = self.book.facts(codes[low:high], backing)
        return facts

    def _facts_in(
        self,
        region: Region,
        pfn_start: int,
        starts: NDArray[np.int64],
        codes: NDArray[np.uint32],
        index: int,
    ) -> NDArray[np.uint16]:
        facts = self.book.facts(codes, region.backing)
        if not self.book.tails_need_heads:
            return facts
        is_tail, is_head = self.book.compound_marks(codes)
        if not is_tail.any():
            return facts
        # The head of a tail run is the last head before it, with only tails in between.
        position = np.arange(codes.size)
        last_head = np.maximum.accumulate(np.where(is_head, position, -1))
        last_plain = np.maximum.accumulate(np.where(is_tail | is_head, -1, position))
        tails = np.flatnonzero(is_tail & (last_head > last_plain))
        if tails.size:
            facts[tails] = self.book.tail_facts(
                codes[tails], codes[last_head[tails]], region.backing
            )
        if is_tail[0] and index == 0 and starts[0] == 0:
            self._leading_tails(region, pfn_start, codes, is_tail, facts)
        return facts

    def _leading_tails(
        self,
        region: Region,
        pfn_start: int,
        codes: NDArray[np.uint32],
        is_tail: NDArray[np.bool_],
        facts: NDArray[np.uint16],
    ) -> None:
        """Tails at the start of a chunk: their head lies in an earlier chunk."""
        head_pfn = pfn_start & ~(_HEAD_ALIGN - 1)
        if head_pfn == pfn_start:
            return
        head = np.array([self.read_word(head_pfn)], np.uint64)
        head_code = self.book.words.codes(head)
        if not self.book.compound_marks(head_code)[1][0]:
            return
        count = int(np.argmin(is_tail)) or is_tail.size
        facts[:count] = self.book.tail_facts(
            codes[:count], np.repeat(head_code, count), region.backing
        )


_ZERO = np.zeros(1, np.int64)

"""Frames by region and fact, counted from extents: what `totals.parquet` holds.

A summary of a terabyte needs a few hundred numbers and not forty million rows, so the
writer counts while the extents pass.  Regions are known by their first frames alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.sources.tables import Batch

__all__ = ["RegionCounts"]


class RegionCounts:
    """Counts frames by region and fact; extents may cross the borders of regions."""

    def __init__(self, starts: Sequence[int], facts: int = 1) -> None:
        """`starts`: first frames of the regions, rising from 0; `facts`: codes expected."""
        self.starts = np.array(starts, np.int64)
        self.pages: NDArray[np.int64] = np.zeros((len(starts), max(1, facts)), np.int64)
        """int64[regions, facts]: frames; grows with the facts."""

    def add(self, pfn_start: NDArray[Any], nr_pages: NDArray[Any], fact: NDArray[Any]) -> None:
        """Count extents that follow each other without a gap."""
        if not fact.size:
            return
        begin, end = int(pfn_start[0]), int(pfn_start[-1]) + int(nr_pages[-1])
        first, after = np.searchsorted(self.starts, [begin, end], side="left").tolist()
        inner = self.starts[first:after].tolist()
        edges = sorted({begin, *inner, end})
        region = int(np.searchsorted(self.starts, begin, side="right")) - 1
        missing = int(fact.max()) + 1 - self.pages.shape[1]
        if missing > 0:
            self.pages = np.pad(self.pages, ((0, 0), (0, missing)))
        lows = np.searchsorted(pfn_start, edges, side="right") - 1
        highs = np.searchsorted(pfn_start, edges, side="left")
        for place, (low, high) in enumerate(itertools.pairwise(edges)):
            rows = slice(int(lows[place]), int(highs[place + 1]))
            # float64 is exact: no sum reaches 2**53.
            weights = nr_pages[rows].astype(np.float64)
            weights[0] -= low - int(pfn_start[rows.start])
            weights[-1] -= int(pfn_start[rows.stop - 1]) + int(nr_pages[rows.stop - 1]) - high
            counted = np.bincount(fact[rows], weights=weights)
            self.pages[region + place, : counted.size] += counted.astype(np.int64)

    def counting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches of extents on, and count them."""
        for batch in batches:
            self.add(*(np.asarray(batch[name]) for name in ("pfn_start", "nr_pages", "fact")))
            yield batch

    def rows(self) -> Iterator[Batch]:
        """The table: one row for each region and fact that has frames."""
        region, fact = np.nonzero(self.pages)
        if region.size:
            yield {
                "pfn_start": self.starts[region],
                "fact": fact,
                "frames": self.pages[region, fact],
            }

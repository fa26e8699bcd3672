"""Frames counted by who holds them: what a summary needs of reference counts, without extents.

What a folio's loss does, and whether it moves, often hangs on whether somebody holds it beyond
its mappings and its cache (`memdesc.rules.references`).  Struct pages tell that of each folio;
here it is one more axis of the totals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memdesc.map.encode import Runs
from memdesc.map.extents import MemoryMap
from memdesc.map.facts import FactTable
from memdesc.map.parts import facts_of_folios, facts_of_heads
from memdesc.map.regions import Regions

__all__ = ["HELD_KINDS", "HeldSink", "held_of"]

HELD_KINDS = 3
"""The first axis: `MemoryMap.references` + 1, so not known, held by nobody, held."""


class HeldSink:
    """Adds up frames by reference, region and fact; of a tail that shows its own flags, the
    fact is its head's (`facts_of_folios`)."""

    def __init__(self, regions: Regions, *, tails_show_own_flags: bool) -> None:
        self._starts = np.array(regions.starts, np.int64)
        self._by_heads = tails_show_own_flags
        self._pages = np.zeros((HELD_KINDS, len(regions), 256), np.int64)

    def add(self, runs: Runs, table: FactTable) -> None:
        """Add a chunk; `table` has at least its facts. Runs without references, or tails whose
        head lies outside the chunk, count as not known. Call in one thread."""
        facts = facts_of_heads(runs.facts, table) if self._by_heads else runs.facts
        references = runs.references
        if references is None:
            references = np.full(facts.size, -1, np.int8)
        regions = np.searchsorted(self._starts, runs.starts + runs.pfn_start, side="right") - 1
        nr_pages = np.diff(runs.starts, append=runs.nr_pages)
        self._grow(int(facts.max(initial=0)) + 1)
        self._pages += _counted(references, regions, facts, nr_pages, self._pages.shape)

    def merge(self, other: HeldSink) -> None:
        """Add what another thread's sink holds."""
        self._grow(other._pages.shape[2])
        self._pages[:, :, : other._pages.shape[2]] += other._pages

    def pages(self, facts: int) -> NDArray[np.int64]:
        """int64[3, regions, facts]: everything added so far."""
        self._grow(facts)
        return self._pages[:, :, : max(1, facts)].copy()

    def _grow(self, facts: int) -> None:
        while self._pages.shape[2] < facts:
            self._pages = np.concatenate([self._pages, np.zeros_like(self._pages)], axis=2)


def held_of(result: MemoryMap) -> NDArray[np.int64] | None:
    """`Totals.held` of a map; None where it has no reference counts."""
    if result.references is None:
        return None
    shape = (HELD_KINDS, len(result.regions), max(1, len(result.table)))
    facts = facts_of_folios(result)
    return _counted(result.references, result.region_of_extent, facts, result.nr_pages, shape)


# --- helpers -----------------------------------------------------------------------------


def _counted(
    references: NDArray[np.int8],
    regions: NDArray[np.int64],
    facts: NDArray[np.uint16],
    nr_pages: NDArray[np.int64],
    shape: tuple[int, ...],
) -> NDArray[np.int64]:
    """int64[shape]: frames by reference, region and fact."""
    _kinds, width, depth = shape
    cells = ((references.astype(np.int64) + 1) * width + regions) * depth + facts
    sums = np.bincount(cells, nr_pages, minlength=shape[0] * width * depth)
    return sums.astype(np.int64).reshape(shape)

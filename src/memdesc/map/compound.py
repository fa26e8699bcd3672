"""Compound pages put together again: which frames form one folio, slab or huge page?

The page files say only HEAD and TAIL.  A head at p with the tails that follow it is one
compound page of 1 + tails frames, a power of two, aligned to its size (`mm/page_alloc.c:
prep_compound_page`).  Memory changes while it is read, so some come out torn: they are
counted, never repaired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.kpageflags import KPF
from memdesc.map.extents import MemoryMap
from memdesc.types import Pfn, PfnRange

__all__ = ["Compounds", "compounds_of"]


@dataclass(frozen=True)
class Compounds:
    """All compound pages of a map, as columns in frame order."""

    pfn_heads: NDArray[np.int64]
    """int64[c]: first frame of each whole compound page."""
    orders: NDArray[np.int8]
    """int8[c]: log2 of its frames."""
    facts: NDArray[np.uint16]
    """uint16[c]: the head's fact code."""
    order_of_extent: NDArray[np.int8]
    """int8[extents]: order of the compound page that each extent belongs to; 0 for frames
    that are in none, -1 in torn ones."""
    torn_heads: int
    """Heads whose tails do not make an aligned power of two."""
    orphan_tails: int
    """Tail frames with no head before them."""

    def at(self, pfn: int) -> PfnRange | None:
        """The compound page that holds frame `pfn`, or None."""
        index = int(np.searchsorted(self.pfn_heads, pfn, side="right")) - 1
        if index < 0:
            return None
        head = int(self.pfn_heads[index])
        end = head + (1 << int(self.orders[index]))
        return PfnRange(Pfn(head), Pfn(end)) if pfn < end else None


def compounds_of(result: MemoryMap) -> Compounds:
    """Put the compound pages of `result` together.

    Precision: exact for frames that did not change during the scan. Free blocks carry no
    marks and are not compound pages.
    """
    is_head = result.table.with_flags(KPF.COMPOUND_HEAD)[result.facts]
    is_tail = result.table.with_flags(KPF.COMPOUND_TAIL)[result.facts] & ~is_head
    # A freed block that keeps stale marks is no compound page.
    free = result.table.with_flags(KPF.BUDDY)[result.facts]
    is_head &= ~free
    is_tail &= ~free
    lengths = result.nr_pages
    position = np.arange(len(result))
    last_head = np.maximum.accumulate(np.where(is_head, position, -1))
    last_plain = np.maximum.accumulate(np.where(is_head | is_tail, -1, position))
    owned = is_tail & (last_head > last_plain)
    orphan_tails = int(lengths[is_tail & ~owned].sum())

    heads = np.flatnonzero(is_head)
    tails = np.bincount(last_head[owned], weights=lengths[owned], minlength=len(result))
    sizes = 1 + tails[heads].astype(np.int64)
    # A run of heads is several heads in a row: only its last frame owns the tails.
    pfn_heads = result.pfn_starts[heads].astype(np.int64) + lengths[heads] - 1
    torn_heads = int((lengths[heads] - 1).sum())
    whole = (sizes > 1) & (sizes & (sizes - 1) == 0) & (pfn_heads & (sizes - 1) == 0)
    torn_heads += int(np.count_nonzero(~whole))
    orders = np.where(whole, np.round(np.log2(np.maximum(sizes, 1))), -1).astype(np.int8)

    order_of_extent = np.zeros(len(result), np.int8)
    order_of_extent[is_tail] = -1
    order_of_extent[heads] = np.where(lengths[heads] == 1, orders, -1)
    order_of_extent[owned] = order_of_extent[last_head[owned]]
    return Compounds(
        pfn_heads=pfn_heads[whole],
        orders=orders[whole],
        facts=result.facts[heads][whole],
        order_of_extent=order_of_extent,
        torn_heads=torn_heads,
        orphan_tails=orphan_tails,
    )

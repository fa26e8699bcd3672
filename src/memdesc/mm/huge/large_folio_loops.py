"""A folio's columns become those of its pieces, compiled (see `large_folio.split_folio`)."""

from __future__ import annotations

from typing import Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.frames import Frames
from memdesc.mm.lru import lru_link, lru_unlink
from memdesc.model.compiled import compiled, pointers

__all__ = ["split_columns"]

_LRU: Final = int(KPF.LRU)
_PER_PAGE: Final = int(KPF.OWNER_2 | KPF.HWPOISON)
_KEPT: Final = int(
    KPF.REFERENCED | KPF.UPTODATE | KPF.DIRTY | KPF.ACTIVE | KPF.ANON | KPF.SWAPCACHE
    | KPF.SWAPBACKED | KPF.UNEVICTABLE | KPF.MLOCKED | KPF.LOCKED
)  # fmt: skip
"""Flags that every piece gets of the folio (`mm/huge_memory.c:__split_huge_page_tail @6.12`)."""


@compiled
def split_columns(frames: Frames, pfn: int, new_order: int) -> None:
    """Make the folio at `pfn` several of 2^new_order, each with its own map counts and no others.

    References of a piece are those of its entries; the caller adds what else holds it.
    """
    f = pointers(frames)
    order = f.order[pfn]
    listed = f.flags[pfn] & _LRU
    if listed:
        lru_unlink(f, pfn)
    flags = f.flags[pfn] & _KEPT
    size = 1 << new_order
    for head in range(pfn, pfn + (1 << order), size):
        refs = 0
        for page in range(head, head + size):
            own = f.flags[page] & _PER_PAGE
            f.flags[page] = own | flags if page == head else own
            f.offset[page] = page - head
            refs += f.maps[page]
        f.order[head] = new_order
        f.refs[head] = refs
        f.mapping[head] = f.mapping[pfn]
        f.pgoff[head] = f.pgoff[pfn] + head - pfn
        f.entire[head] = 0
        f.pins[head] = 0
        if listed:
            lru_link(f, head)

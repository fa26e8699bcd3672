"""Reading pages around a fault from swap.

`mm/swap_state.c:swap_vma_readahead, swap_vma_ra_win, __swapin_nr_pages, swap_cache_get_folio
@6.12`.  A device that answers at once is read page by page; any other is asked for as many pages
as the last guesses deserved: each page that readahead brought and that was used counts for the
next window of its area.  The neighbours stay in the swap cache until somebody touches them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import Vma
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.mm.process import Mm
from memdesc.mm.reclaim.swap_state import device_of, read_swap_cache

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["found_in_cache", "swapin_readahead"]

_ORDER_CEILING: Final = 5
"""SWAP_RA_ORDER_CEILING."""
_HITS_MAX: Final = 63
"""SWAP_RA_HITS_MAX."""
_READAHEAD: Final = int(KPF.RECLAIM)
"""PG_readahead is the bit of PG_reclaim."""


def found_in_cache(kernel: Kernel, vma: Vma, vpn: int, pfn: int) -> None:
    """A fault finds its page in the swap cache: was it a good guess? (swap_cache_get_folio)"""
    if kernel.order_of(pfn):
        return
    _, window, hits = vma.swap_readahead
    if kernel.flags(pfn) & _READAHEAD:
        hits = min(hits + 1, _HITS_MAX)
        kernel.clear_flags(pfn, _READAHEAD)
    vma.swap_readahead = (vpn, window, hits)


def swapin_readahead(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, slot: int) -> int:
    """The frame in the swap cache for the slot that an entry names; its neighbours come, too.

    Raises OutOfMemory.
    """
    around = _window(kernel, vma, vpn)
    for at in around:
        entry = mm.tables.entry(at)
        if not entry or e.is_present(entry) or e.swap_type(entry) is not e.SwapType.SWAP:
            continue
        cached = e.swap_offset(entry) in device_of(kernel).cache
        pfn = read_swap_cache(kernel, e.swap_offset(entry))
        if not cached and at != vpn:
            kernel.set_flags(pfn, _READAHEAD)
            kernel.events["swap_ra"] += 1
    if len(around) > 1:
        kernel.drain()
        kernel.say(f"swap_vma_readahead: a window of {len(around)} pages")
    return read_swap_cache(kernel, slot)


# --- helpers -------------------------------------------------------------------------------------


def _window(kernel: Kernel, vma: Vma, vpn: int) -> range:
    """swap_vma_ra_win(): forward or back where the last fault was next to this one, else around."""
    most = 1 << min(int(kernel.knobs["page_cluster"]), _ORDER_CEILING)
    if most == 1:
        return range(vpn, vpn + 1)
    last, before, hits = vma.swap_readahead
    window = _pages(last, vpn, hits, most, before)
    vma.swap_readahead = (vpn, window, 0)
    if window == 1:
        return range(vpn, vpn + 1)
    if vpn == last + 1:
        low = vpn
    elif last == vpn + 1:
        low = vpn - window + 1
    else:
        low = vpn - (window - 1) // 2
    table = vpn // TABLE_ENTRIES * TABLE_ENTRIES
    high = min(low + window, vma.vpn_end, table + TABLE_ENTRIES)
    return range(max(low, vma.vpn_start, table), high)


def _pages(last: int, vpn: int, hits: int, most: int, before: int) -> int:
    """__swapin_nr_pages(): at least half of the window before."""
    pages = hits + 2
    if pages == 2:
        if vpn not in (last - 1, last + 1):
            pages = 1
    else:
        pages = max(4, 1 << (pages - 1).bit_length())
    return max(min(pages, most), before // 2)

"""Reading several pages from swap at once, and mapping all of a large folio of the swap cache.

`mm/memory.c:alloc_swap_folio, can_swapin_thp, thp_swap_suitable_orders, swap_pte_batch,
do_swap_page @6.12, swapin_sync @7.2`.  Where entries that lie in a row name slots in a row, and a
size of large folios is enabled that fits both, fast swap is read in one piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.mm import entries as e
from memdesc.mm.areas.vma import Vma
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.mm.huge.thp_orders import suitable_orders
from memdesc.mm.process import Mm
from memdesc.mm.reclaim.swap_state import device_of

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["entries_of_folio", "swapin_order"]


def swapin_order(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int) -> int:
    """The largest order that a fault at a swap entry may read; 0 for a small page.

    All entries name slots in a row that are equal in everything else, aligned in swap as in memory,
    none of them cached, and all of zeroes or none.
    """
    if not kernel.rules.swaps_in_large_folios:
        return 0
    device, slot = device_of(kernel), e.swap_offset(entry)
    if not device.is_synchronous:
        return 0
    for order in suitable_orders(kernel, mm, vma, vpn):
        pages = 1 << order
        low = vpn >> order << order
        first = slot - (vpn - low)
        if first % pages or not _in_a_row(mm, low, vpn, entry, pages):
            continue
        slots = range(first, first + pages)
        if any(at in device.cache for at in slots):
            kernel.say("swap_cache_alloc_folio: some of the slots are cached already")
            continue
        if len({at in device.zeroes for at in slots}) == 1:
            return order
    return 0


def entries_of_folio(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int, pfn: int) -> range:
    """Pages whose entries name the slots of all of a folio, if they do; else the one page."""
    head = kernel.head(pfn)
    pages = 1 << kernel.order_of(head)
    low = vpn - (pfn - head)
    table = vpn & ~(TABLE_ENTRIES - 1)
    fits = max(table, vma.vpn_start) <= low
    fits &= low + pages <= min(table + TABLE_ENTRIES, vma.vpn_end)
    if pages > 1 and fits and _in_a_row(mm, low, vpn, entry, pages):
        return range(low, low + pages)
    return range(vpn, vpn + 1)


# --- helpers -------------------------------------------------------------------------------------


def _in_a_row(mm: Mm, low: int, vpn: int, entry: int, pages: int) -> bool:
    """swap_pte_batch(): entries that differ in nothing but the slot, which grows by one."""
    return all(
        mm.tables.entry(at) == e.move_offset(entry, at - vpn) for at in range(low, low + pages)
    )

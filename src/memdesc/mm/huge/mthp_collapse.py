"""khugepaged's collapses to folios smaller than a huge page.

`mm/khugepaged.c:mthp_collapse, collapse_max_ptes_none, __collapse_huge_page_isolate,
__collapse_huge_page_swapin @7.2`.  A range of 2 MiB is looked at as a whole; then the largest
enabled sizes are tried from its beginning on.  A folio of such a size takes no page that others map
and none that is swapped out, and replaces nothing that is as large already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import Vma
from memdesc.mm.faults.new_folio import new_anon_folio
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.mm.huge.khugepaged import Scan, can_be_taken, take_contents
from memdesc.mm.huge.large_folio import likely_mapped_shared, map_anon_folio
from memdesc.mm.huge.thp_orders import PMD_ORDER
from memdesc.mm.process import Mm, OutOfMemory
from memdesc.mm.rmap import anon_vma_prepare

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["mthp_collapse"]

_TRY_SMALLER: Final = frozenset(
    (
        Scan.LACK_REFERENCED_PAGE, Scan.EXCEED_NONE_PTE, Scan.EXCEED_SWAP_PTE,
        Scan.EXCEED_SHARED_PTE, Scan.PAGE_LOCK, Scan.PAGE_COUNT, Scan.PAGE_LRU, Scan.PAGE_NULL,
        Scan.PTE_NON_PRESENT, Scan.PTE_UFFD_WP, Scan.ALLOC_HUGE_PAGE_FAIL,
    )
)  # fmt: skip
"""After these a smaller size may do; others end the work on the 2 MiB."""
_ALL_BUT_ONE: Final = TABLE_ENTRIES - 1


def mthp_collapse(
    kernel: Kernel, mm: Mm, vma: Vma, low: int, orders: frozenset[int], max_ptes_none: int,
    collapse_all: Callable[[], Scan],
) -> Scan:  # fmt: skip
    """Collapse what the entries of 2 MiB allow, to sizes of `orders`.

    `collapse_all` makes a huge page of all of it.
    """
    occupied = [_is_occupied(kernel, mm, vpn) for vpn in range(low, low + TABLE_ENTRIES)]
    offset, order, made = 0, PMD_ORDER, False
    while offset < TABLE_ENTRIES:
        pages = 1 << order
        none = _max_none(order, max_ptes_none)
        if order in orders and sum(occupied[offset : offset + pages]) >= pages - none:
            if order == PMD_ORDER:
                result = collapse_all()
            else:
                result = _collapse(kernel, mm, vma, low + offset, order, none)
            made |= result is Scan.SUCCEED
            if result in (Scan.SUCCEED, Scan.PTE_MAPPED_HUGEPAGE):
                offset += pages
                order = _largest_at(offset)
                continue
            if result not in _TRY_SMALLER:
                break
        if any(smaller < order for smaller in orders):
            order -= 1
        else:
            offset += pages
            order = _largest_at(offset)
    return Scan.SUCCEED if made else Scan.FAIL


# --- helpers -----------------------------------------------------------------------------


def _is_occupied(kernel: Kernel, mm: Mm, vpn: int) -> bool:
    entry = mm.tables.entry(vpn)
    return e.is_present(entry) and e.pfn_of(entry) != kernel.zero_pfn


def _largest_at(offset: int) -> int:
    """The largest order that begins at an offset inside the 2 MiB."""
    return min((offset & -offset).bit_length() - 1, PMD_ORDER)


def _max_none(order: int, setting: int) -> int:
    """collapse_max_ptes_none(): below a huge page only all or nothing; what is between counts as
    nothing."""
    if order == PMD_ORDER:
        return setting
    return (1 << order) - 1 if setting == _ALL_BUT_ONE else 0


def _collapse(kernel: Kernel, mm: Mm, vma: Vma, low: int, order: int, max_none: int) -> Scan:
    """collapse_huge_page() to a smaller size: a new folio, mapped by the entries of its pages."""
    anon_vma_prepare(kernel, mm, vma)
    try:
        pfn = new_anon_folio(kernel, vma, low, order)
    except OutOfMemory:
        return Scan.ALLOC_HUGE_PAGE_FAIL
    result = _isolate(kernel, mm, low, order, max_none)
    if result is not Scan.SUCCEED:
        kernel.put(pfn)
        return result
    take_contents(kernel, mm, low, pfn, 1 << order)
    map_anon_folio(kernel, mm, vma, low, pfn)
    kernel.say(f"mthp_collapse: {1 << order} pages became one folio")
    return Scan.SUCCEED


def _isolate(kernel: Kernel, mm: Mm, low: int, order: int, max_none: int) -> Scan:
    """__collapse_huge_page_isolate() of a smaller size."""
    none = referenced = 0
    locked: set[int] = set()
    entries = [mm.tables.entry(vpn) for vpn in range(low, low + (1 << order))]
    if any(entry != e.NONE_ENTRY and not e.is_present(entry) for entry in entries):
        return Scan.EXCEED_SWAP_PTE
    for entry in entries:
        if entry == e.NONE_ENTRY or e.pfn_of(entry) == kernel.zero_pfn:
            none += 1
            if none > max_none:
                return Scan.EXCEED_NONE_PTE
            continue
        head = kernel.head(e.pfn_of(entry))
        if likely_mapped_shared(kernel, e.pfn_of(entry)):
            return Scan.EXCEED_SHARED_PTE
        if kernel.order_of(head) >= order:
            return Scan.PTE_MAPPED_HUGEPAGE
        if head in locked and not kernel.order_of(head):
            return Scan.PAGE_LOCK
        locked.add(head)
        result = can_be_taken(kernel, entry)
        if result is not Scan.SUCCEED:
            return result
        referenced += bool(entry & e.ACCESSED or kernel.flags(head) & KPF.REFERENCED)
    return Scan.SUCCEED if referenced else Scan.LACK_REFERENCED_PAGE

"""Unmapping: entries of a range go, with their references and map counts.

`mm/memory.c:unmap_page_range, zap_pte_range, zap_present_ptes @6.12`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm import loops
from memdesc.mm.areas.mlock_batch import munlock_vma_folio
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.files.filemap import file_entry_gone
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.mm.huge.huge_memory import page_unmapped, zap_huge_pmd
from memdesc.mm.hugetlb.hugetlb import zap_hugetlb
from memdesc.mm.process import Mm
from memdesc.mm.reclaim.swap import zap_swap_entry
from memdesc.mm.reclaim.swap_state import free_page_and_swap_cache

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["drop_mapping", "zap_range"]


def zap_range(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int,
    *, even_cows: bool = True, drop_markers: bool = True,
) -> None:  # fmt: skip
    """Empty every entry of a range of one area; tables stay.

    `even_cows` False leaves anonymous copies in private file mappings (hole punch);
    `drop_markers` False leaves guards (all but unmapping the area itself).
    """
    if vma.flags & VM.HUGETLB:
        zap_hugetlb(kernel, mm, vma, vpn_start, vpn_end, drop_markers=drop_markers)
        return
    for low, high, pmd in mm.tables.runs(vpn_start, vpn_end):
        if pmd.huge and zap_huge_pmd(kernel, mm, vma, low, high):
            continue
        if pmd.table is None:
            continue
        base = pmd.table.first - (low & ~(TABLE_ENTRIES - 1))
        vpn = low
        while vpn < high:
            cached = kernel.swap is not None and kernel.swap.cache
            marks = not drop_markers and vma.flags & VM.UFFD_WP and not vma.is_anonymous
            if even_cows and not (vma.flags & VM.LOCKED or cached or marks):
                vpn += loops.zap_anon(*kernel.columns, base + vpn, high - vpn)
            if vpn < high:
                _zap_entry(kernel, mm, vma, vpn, even_cows=even_cows, drop_markers=drop_markers)
                vpn += 1


def drop_mapping(kernel: Kernel, pfn: int, *, swap_cache: bool = False) -> None:
    """One entry of the lowest level that mapped a page is gone: map count and reference.

    `swap_cache`: also from the swap cache, if nobody needs it there.
    """
    head = kernel.head(pfn)
    kernel.f.maps[pfn] -= 1
    if kernel.order_of(head):
        page_unmapped(kernel, pfn)
    if swap_cache and kernel.flags(head) & KPF.SWAPCACHE:
        free_page_and_swap_cache(kernel, head)
        return
    kernel.put(head)


# --- helpers -----------------------------------------------------------------------------


def _zap_entry(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, even_cows: bool, drop_markers: bool
) -> None:
    entry = mm.tables.entry(vpn)
    if entry == e.NONE_ENTRY:
        return
    if not e.is_present(entry):
        if not drop_markers and _stays(vma, entry):
            return
        if zap_swap_entry(kernel, vma, entry, even_cows=even_cows):
            mm.tables.set(vpn, _left(vma, entry & e.UFFD_WP_SWAP, drop_markers=drop_markers))
        return
    if entry & e.SPECIAL:
        mm.tables.set(vpn, e.NONE_ENTRY)
        return
    pfn = e.pfn_of(entry)
    anon = kernel.flags(pfn) & KPF.ANON
    if anon and not even_cows:
        return
    if not anon:
        file_entry_gone(kernel, vma, pfn, entry)
    mm.tables.set(vpn, _left(vma, entry & e.UFFD_WP, drop_markers=drop_markers))
    munlock_vma_folio(kernel, vma, pfn)
    drop_mapping(kernel, pfn, swap_cache=True)


def _left(vma: Vma, protected: int, *, drop_markers: bool) -> int:
    """zap_install_uffd_wp_if_needed(): an entry of a file stays protected while its area lives."""
    if not protected or drop_markers or vma.is_anonymous or not vma.flags & VM.UFFD_WP:
        return e.NONE_ENTRY
    return e.marker(e.Marker.UFFD_WP)


def _stays(vma: Vma, entry: int) -> bool:
    """Markers that a zap without ZAP_FLAG_DROP_MARKER leaves."""
    if e.swap_type(entry) is not e.SwapType.MARKER:
        return False
    marker = e.swap_offset(entry)
    return marker == e.Marker.GUARD or (marker == e.Marker.UFFD_WP and not vma.is_anonymous)

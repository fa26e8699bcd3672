"""UFFDIO_WRITEPROTECT: entries that are protected until a userfaultfd, or a write, ends it.

`mm/userfaultfd.c:mwriteprotect_range, uffd_wp_range`, `mm/mprotect.c:change_pte_range`,
`mm/huge_memory.c:change_huge_pmd @6.12`.  A protected entry has a bit of its own beside the missing
RW; where nothing is mapped a marker remembers it, for files and where empty memory counts too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from memdesc.mm import entries as e
from memdesc.mm.areas.mprotect import can_change_pte_writable
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.mm.huge.huge_memory import is_huge_zero, split_pmd
from memdesc.mm.process import Errno, Mm

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.page_tables import Pmd

__all__ = ["WP_MARKER", "clear_moved", "wp_range", "writeprotect"]

WP_MARKER: Final = e.marker(e.Marker.UFFD_WP)
"""make_pte_marker(PTEWP_MARKER_UFFD_WP)."""


def writeprotect(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, *, protect: bool) -> None:
    """UFFDIO_WRITEPROTECT: protect what is there, or end that. Raises Errno."""
    areas = mm.vmas.overlapping(vpn_start, vpn_end)
    if not kernel.rules.uffd_wp_several_areas:
        areas = [v for v in areas[:1] if v.vpn_start <= vpn_start and vpn_end <= v.vpn_end]
    if not areas:
        raise Errno("ENOENT")
    for vma in areas:
        if not vma.flags & VM.UFFD_WP:
            raise Errno("ENOENT")
        if vma.flags & VM.HUGETLB and (vpn_start | vpn_end) % TABLE_ENTRIES:
            raise Errno("EINVAL")
        start, end = max(vma.vpn_start, vpn_start), min(vma.vpn_end, vpn_end)
        wp_range(kernel, mm, vma, start, end, protect=protect)


def wp_range(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, *, protect: bool
) -> None:
    """uffd_wp_range(): MM_CP_UFFD_WP or MM_CP_UFFD_WP_RESOLVE of change_protection()."""
    if vma.flags & VM.HUGETLB:
        from memdesc.mm.hugetlb.hugetlb import hugetlb_protect

        hugetlb_protect(kernel, mm, vma, vpn_start, vpn_end, protect=protect)
        kernel.say(f"hugetlb_change_protection: {'protected' if protect else 'as it was'}")
        return
    tables = mm.tables
    markers = protect and (not vma.is_anonymous or (vma.uffd is not None and vma.uffd.wp_async))
    if markers:
        for vpn in range(vpn_start, vpn_end):
            pmd = tables.pmd_of(vpn)
            if pmd is None or not pmd.huge:
                tables.alloc_pte(vpn)
    for low, high, pmd in tables.runs(vpn_start, vpn_end):
        if pmd.huge and _change_huge(kernel, mm, vma, pmd, low, high, protect=protect):
            continue
        if pmd.table is None:
            continue
        for vpn in range(low, high):
            entry = tables.entry(vpn)
            if entry == e.NONE_ENTRY:
                new = WP_MARKER if markers else entry
            elif protect:
                new = _protected(entry)
            else:
                new = _resolved(kernel, vma, entry)
            if new != entry:
                tables.set(vpn, new)
    kernel.say(f"uffdwp_range: entries are {'protected' if protect else 'as they were'}")


def clear_moved(row: NDArray[np.int64]) -> None:
    """Entries on the move lose protection, and markers of it go (`mm/mremap.c:move_ptes`)."""
    here = row & (e.PRESENT | e.PROTNONE) != 0
    markers = ~here & (row & ~np.int64(e.SOFT_DIRTY_SWAP) == WP_MARKER)
    row[here] &= ~np.int64(e.UFFD_WP)
    row[~here] &= ~np.int64(e.UFFD_WP_SWAP)
    row[markers] = e.NONE_ENTRY


# --- helpers -----------------------------------------------------------------------------


def _protected(entry: int) -> int:
    if e.is_present(entry):
        return entry & ~e.RW | e.UFFD_WP
    return entry if e.swap_type(entry) is e.SwapType.MARKER else entry | e.UFFD_WP_SWAP


def _resolved(kernel: Kernel, vma: Vma, entry: int) -> int:
    """Without protection; writable at once where that tells nobody less."""
    if not e.is_present(entry):
        if e.swap_type(entry) is e.SwapType.MARKER:
            return e.NONE_ENTRY if entry & ~e.SOFT_DIRTY_SWAP == WP_MARKER else entry
        return entry & ~e.UFFD_WP_SWAP
    entry &= ~e.UFFD_WP
    if not vma.flags & VM.WRITE:
        return entry
    shared = bool(vma.flags & VM.SHARED)
    if not kernel.rules.uffd_unprotect_asks:
        return entry | e.RW if shared else entry
    if shared:
        # vma_wants_manual_pte_write_upgrade() says no: vm_page_prot has lost RW already.
        return entry
    may = can_change_pte_writable(kernel, vma, np.array([entry], dtype=np.int64))
    return entry | e.RW if may[0] else entry


def _change_huge(
    kernel: Kernel, mm: Mm, vma: Vma, pmd: Pmd, low: int, high: int, *, protect: bool
) -> bool:
    """change_huge_pmd() of all of it; False after it was split, as only a part is meant."""
    if high - low != 1 << 9:
        split_pmd(kernel, mm, vma, low)
        return False
    if protect:
        pmd.huge = pmd.huge & ~e.RW | e.UFFD_WP
        return True
    pmd.huge &= ~e.UFFD_WP
    asks = kernel.rules.uffd_unprotect_asks and vma.flags & VM.WRITE
    if asks and not is_huge_zero(kernel, pmd.huge) and kernel.exclusive(e.pfn_of(pmd.huge)):
        pmd.huge |= e.RW
    return True

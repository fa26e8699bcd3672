"""What the kernel tells of pages in place: PAGEMAP_SCAN, and move_pages(2) that moves nothing.

`fs/proc/task_mmu.c:pagemap_page_category, pagemap_thp_category, pagemap_scan_test_walk @6.12`,
`mm/migrate.c:do_pages_stat_array @6.1, @6.12`.  Written means: not protected by userfaultfd. So
whoever protects what he has seen to be written, in one go, learns each write once, and no write in
between is lost; a userfaultfd whose faults are resolved by the kernel (WP_ASYNC) is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from typing import TYPE_CHECKING

from memdesc.errors import MemdescError
from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.masks import mask
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.process import Errno, Mm
from memdesc.mm.userfault.userfault_wp import wp_range

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["PageIs", "page_nodes", "pagemap_scan"]


@mask
class PageIs(IntFlag):
    """PAGE_IS_* (`include/uapi/linux/fs.h`), without SOFT_DIRTY, which is asked for elsewhere."""

    WPALLOWED = 1 << 0
    WRITTEN = 1 << 1
    FILE = 1 << 2
    PRESENT = 1 << 3
    SWAPPED = 1 << 4
    PFNZERO = 1 << 5
    HUGE = 1 << 6
    GUARD = 1 << 8


def pagemap_scan(
    kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, *, protect: bool = False
) -> list[int]:
    """PAGEMAP_SCAN: the categories of each page; 0 where no area is. Raises Errno.

    `protect`: only of those that were written, and they are protected from now on
    (PM_SCAN_WP_MATCHING, with PM_SCAN_CHECK_WPASYNC).
    """
    if not kernel.rules.pagemap_scan:
        raise Errno("ENOTTY")
    found = [0] * (vpn_end - vpn_start)
    for vma in mm.vmas.overlapping(vpn_start, vpn_end):
        allowed = vma.uffd is not None and vma.uffd.wp_async and bool(vma.flags & VM.UFFD_WP)
        if protect and not allowed:
            raise Errno("EPERM")
        if vma.flags & VM.PFNMAP:
            continue
        start, end = max(vma.vpn_start, vpn_start), min(vma.vpn_end, vpn_end)
        for vpn in range(start, end):
            found[vpn - vpn_start] = (int(PageIs.WPALLOWED) if allowed else 0) | _category(
                kernel, mm, vma, vpn
            )
        if protect:
            written = [v for v in range(start, end) if found[v - vpn_start] & PageIs.WRITTEN]
            for vpn in set(range(start, end)) - set(written):
                found[vpn - vpn_start] = 0
            for first, last in _runs(written):
                wp_range(kernel, mm, vma, first, last, protect=True)
    kernel.say("pagemap_scan: written is what no userfaultfd protects")
    return found


def page_nodes(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int) -> list[int | str]:
    """move_pages(2) without nodes: the node of each page, or why there is none."""
    return [_status(kernel, mm, vpn) for vpn in range(vpn_start, vpn_end)]


# --- helpers -----------------------------------------------------------------------------


def _category(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> int:
    if vma.flags & VM.HUGETLB:
        raise MemdescError("the model does not scan huge pages of a pool")
    entry = mm.tables.entry(vpn)
    pmd = mm.tables.pmd_of(vpn)
    if entry == e.NONE_ENTRY:
        # An empty entry is not protected; where there is no table, there is no entry.
        return int(PageIs.WRITTEN) if pmd is not None and pmd.table is not None else 0
    found = int(PageIs.HUGE) if pmd is not None and pmd.huge else 0
    if not e.is_present(entry):
        marker = e.swap_type(entry) is e.SwapType.MARKER
        protected = entry & e.UFFD_WP_SWAP or (marker and e.swap_offset(entry) == e.Marker.UFFD_WP)
        found |= int(PageIs.SWAPPED) | (0 if protected else int(PageIs.WRITTEN))
        if marker and e.swap_offset(entry) == e.Marker.GUARD:
            found |= int(PageIs.GUARD)
        return found
    found |= int(PageIs.PRESENT) | (0 if entry & e.UFFD_WP else int(PageIs.WRITTEN))
    pfn = e.pfn_of(entry)
    if pfn == kernel.zero_pfn:
        return found | int(PageIs.PFNZERO)
    if not entry & e.SPECIAL and not kernel.flags(pfn) & KPF.ANON:
        found |= int(PageIs.FILE)
    return found


def _status(kernel: Kernel, mm: Mm, vpn: int) -> int | str:
    """do_pages_stat_array() of one page."""
    vma = mm.vmas.find(vpn)
    if vma is None:
        return "-EFAULT"
    entry = mm.tables.entry(vpn)
    if e.is_present(entry):
        # The zero page is everybody's, and a device's has no struct page.
        zero = kernel.flags(e.pfn_of(entry)) & KPF.ZERO_PAGE
        if entry & e.SPECIAL and not zero:
            return "-ENOENT" if kernel.rules.pages_stat_walks else "-EFAULT"
        if entry & e.PROTNONE and not kernel.rules.pages_stat_walks:
            kernel.say("follow_page: PROT_NONE, as if NUMA balancing had hidden it")
            return "-ENOENT"
        return "-EFAULT" if zero else 0
    nothing = entry == e.NONE_ENTRY and vma.is_anonymous
    if nothing and not kernel.rules.pages_stat_walks:
        kernel.say("no_page_table: FOLL_DUMP, nothing there and no file to ask")
        return "-EFAULT"
    return "-ENOENT"


def _runs(vpns: Sequence[int]) -> list[tuple[int, int]]:
    """Pages in a row, half-open."""
    found: list[tuple[int, int]] = []
    for vpn in vpns:
        if found and found[-1][1] == vpn:
            found[-1] = (found[-1][0], vpn + 1)
        else:
            found.append((vpn, vpn + 1))
    return found

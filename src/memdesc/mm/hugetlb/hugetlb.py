"""hugetlb: huge pages out of a pool, reserved when they are mapped.

A fault takes from the pool, by the reservation or from what nobody has reserved, or gets SIGBUS
(`mm/hugetlb.c:hugetlb_fault, hugetlb_no_page, copy_hugetlb_page_range, __unmap_hugepage_range,
hugetlb_change_protection @6.12`).  The pool is in `hugetlb_pool`, what a write to a private page
does in `hugetlb_cow`, files in `hugetlbfs`.

Ranges are in pages of 4 KiB, as everywhere; `index` is the number of the huge page in its file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.errors import MemdescError
from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.hugetlb.hugetlb_cow import copy_content, hugetlb_wp, map_new_anon, unmap_entry
from memdesc.mm.hugetlb.hugetlb_pool import HUGE, huge_index, take
from memdesc.mm.hugetlb.hugetlbfs import add_to_cache
from memdesc.mm.page_tables import PMD_SHIFT, Pmd
from memdesc.mm.process import Mm, OutOfMemory, Signal
from memdesc.mm.rmap import anon_vma_prepare
from memdesc.mm.userfault.userfault_wp import WP_MARKER
from memdesc.mm.userfault.userfaultfd import handle_userfault, wp_fault
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["copy_hugetlb", "hugetlb_fault", "hugetlb_protect", "map_file_page", "zap_hugetlb"]


def hugetlb_fault(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, write: bool, unshare: bool = False
) -> None:
    """A fault in a hugetlb area. Raises Signal: SIGBUS where the pool has nothing left."""
    vpn &= ~(HUGE - 1)
    tables = mm.tables
    tables.alloc_upper(vpn)
    pmd = tables.pmds.setdefault(vpn >> PMD_SHIFT, Pmd())
    entry = pmd.huge
    if not entry or entry == WP_MARKER:
        _no_page(kernel, mm, vma, vpn, pmd, write=write)
    elif not e.is_present(entry):
        kernel.say("hugetlb_fault: lost to a memory error")
        raise Signal("SIGBUS", "MCEERR_AR")
    elif (write or unshare) and not entry & e.RW:
        if write and entry & e.UFFD_WP and vma.flags & VM.UFFD_WP:
            wp_fault(kernel, vma)
            pmd.huge &= ~e.UFFD_WP
        elif write and entry & e.UFFD_WP:
            raise MemdescError(
                f"in {kernel.release} a child that writes to protected huge pages of its parent "
                "faults for ever",
                hint="let the parent end the protection before it forks",
            )
        hugetlb_wp(kernel, mm, vma, vpn, pmd, unshare=unshare)
    else:
        pmd.huge |= e.ACCESSED | (e.DIRTY if write else 0)


def zap_hugetlb(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, *, drop_markers: bool = True
) -> None:
    """__unmap_hugepage_range(): unmap whole huge pages."""
    for low, _, pmd in mm.tables.runs(vpn_start, vpn_end):
        entry = pmd.huge
        if not entry:
            continue
        protected = entry & e.UFFD_WP if e.is_present(entry) else entry == WP_MARKER
        unmap_entry(kernel, vma, low, pmd)
        if protected and not drop_markers:
            pmd.huge = WP_MARKER


def copy_hugetlb(kernel: Kernel, source: Mm, target: Mm, vma: Vma, twin: Vma) -> None:
    """copy_hugetlb_page_range(): fork of an area; pinned pages get a copy at once."""
    keeps = bool(twin.flags & VM.UFFD_WP)
    for low, _, pmd in source.tables.runs(vma.vpn_start, vma.vpn_end):
        if not pmd.huge:
            continue
        target.tables.alloc_upper(low)
        entry = pmd.huge
        if entry == WP_MARKER and not keeps:
            continue
        if e.is_present(entry):
            head = e.pfn_of(entry)
            if kernel.exclusive(head):
                if source.has_pinned and kernel.may_be_pinned(head):
                    copy = take(kernel, twin, low, avoid_reserve=True)
                    copy_content(kernel, head, copy)
                    map_new_anon(kernel, target, twin, low, copy)
                    kernel.say("copy_hugetlb_page_range: pinned, the child gets a copy at once")
                    continue
                kernel.set_exclusive(head, False)
            if vma.is_cow:
                pmd.huge = entry = entry & ~e.RW
            kernel.get(head)
            kernel.f.entire[head] += 1
            if not keeps and not kernel.rules.hugetlb_child_stays_protected:
                entry &= ~e.UFFD_WP
        target.tables.pmds[low >> PMD_SHIFT] = Pmd(huge=entry)


def hugetlb_protect(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, *, protect: bool
) -> None:
    """hugetlb_change_protection() for userfaultfd: protect, with markers, or end that."""
    shared = vma.flags & (VM.WRITE | VM.SHARED) == VM.WRITE | VM.SHARED
    shared = shared and not kernel.rules.uffd_unprotect_asks
    for vpn in range(vpn_start, vpn_end, HUGE):
        pmd = mm.tables.pmd_of(vpn)
        entry = 0 if pmd is None else pmd.huge
        if protect and not entry:
            mm.tables.alloc_upper(vpn)
            mm.tables.pmds.setdefault(vpn >> PMD_SHIFT, Pmd()).huge = WP_MARKER
        elif pmd is not None and e.is_present(entry):
            entry &= ~(e.RW | e.UFFD_WP)
            pmd.huge = entry | (e.UFFD_WP if protect else e.RW if shared else 0)
        elif pmd is not None and entry == WP_MARKER and not protect:
            pmd.huge = 0


def map_file_page(kernel: Kernel, pmd: Pmd, head: int, bits: int) -> None:
    """hugetlb_add_file_rmap() and the entry of a page that a file has."""
    kernel.get(head)
    kernel.f.entire[head] += 1
    pmd.huge = e.present(head, e.HUGE | e.ACCESSED | bits)


# --- helpers -----------------------------------------------------------------------------


def _no_page(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pmd: Pmd, *, write: bool) -> None:
    """hugetlb_no_page(): the file's page, or a new one."""
    assert vma.file is not None
    pool, inode = kernel.hugetlb, vma.file.mapping
    if vma.resv is not None and vma.resv.unmapped:
        kernel.say("hugetlb_no_page: its page was taken for the owner")
        raise Signal("SIGBUS", "ADRERR")
    index = huge_index(vma, vpn)
    head = pool.cache.get((inode.number, index))
    shared = bool(vma.flags & VM.MAYSHARE)
    marker = pmd.huge
    if head is None:
        if index * HUGE * PAGE_SIZE_BYTES >= inode.size:
            raise Signal("SIGBUS", "ADRERR")
        if vma.flags & VM.UFFD_MISSING:
            handle_userfault(kernel, "nothing is there")
        try:
            head = take(kernel, vma, vpn)
        except OutOfMemory:
            kernel.say("hugetlb_no_page: the pool has nothing for this mapping")
            raise Signal("SIGBUS", "ADRERR") from None
        kernel.set_flags(head, KPF.UPTODATE)
        if not shared:
            anon_vma_prepare(kernel, mm, vma)
            map_new_anon(kernel, mm, vma, vpn, head, writable=write and not marker)
            if marker:
                mm.tables.pmds[vpn >> PMD_SHIFT].huge |= e.UFFD_WP
            return
        add_to_cache(kernel, inode, index, head)
    elif head in pool.raw_errors:
        kernel.say("hugetlb_no_page: the file's page is lost to a memory error")
        raise Signal("SIGBUS", "MCEERR_AR")
    elif vma.flags & VM.UFFD_MINOR:
        handle_userfault(kernel, "in the file, and not mapped")
    writable = shared and vma.flags & VM.WRITE
    map_file_page(kernel, pmd, head, e.UFFD_WP if marker else e.RW | e.DIRTY if writable else 0)
    if write and not shared:
        hugetlb_wp(kernel, mm, vma, vpn, pmd)

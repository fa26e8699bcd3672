"""Filling hugetlb memory by userfaultfd: whole huge pages, from the pool.

`mm/hugetlb.c:hugetlb_mfill_atomic_pte`, `mm/userfaultfd.c:mfill_atomic_hugetlb @6.12`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.hugetlb.hugetlb import map_file_page
from memdesc.mm.hugetlb.hugetlb_cow import map_new_anon
from memdesc.mm.hugetlb.hugetlb_pool import HUGE, huge_index, put_hugetlb, take
from memdesc.mm.hugetlb.hugetlbfs import add_to_cache
from memdesc.mm.page_tables import PMD_SHIFT, Pmd
from memdesc.mm.process import Errno, Mm, OutOfMemory
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["continue_hugetlb", "fill_hugetlb", "poison_hugetlb"]


def fill_hugetlb(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, contents: Sequence[int], *, protect: bool
) -> None:
    """UFFDIO_COPY of one huge page. Raises Errno."""
    assert vma.file is not None
    pmd = _empty(mm, vpn)
    inode, index = vma.file.mapping, huge_index(vma, vpn)
    shared = bool(vma.flags & VM.SHARED)
    if shared and (inode.number, index) in kernel.hugetlb.cache:
        kernel.say("hugetlb_mfill_atomic_pte: the file has a page there")
        raise Errno("EEXIST")
    try:
        head = take(kernel, vma, vpn)
    except OutOfMemory:
        kernel.say("hugetlb_mfill_atomic_pte: the pool has nothing for this mapping")
        raise Errno("EEXIST" if kernel.rules.hugetlb_copy_says_exists else "ENOMEM") from None
    array(kernel.f.content)[head : head + HUGE] = contents
    kernel.set_flags(head, KPF.UPTODATE)
    bits = _bits(vma, protect=protect)
    if not shared:
        map_new_anon(kernel, mm, vma, vpn, head)
        mm.tables.pmds[vpn >> PMD_SHIFT].huge = e.present(head, bits)
        return
    if index * HUGE >= inode.pages_in_size:
        put_hugetlb(kernel, head)
        raise Errno("EFAULT")
    add_to_cache(kernel, inode, index, head)
    map_file_page(kernel, pmd, head, bits)


def continue_hugetlb(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, protect: bool) -> None:
    """UFFDIO_CONTINUE of one huge page. Raises Errno."""
    assert vma.file is not None
    head = kernel.hugetlb.cache.get((vma.file.mapping.number, huge_index(vma, vpn)))
    if head is None:
        kernel.say("hugetlb_mfill_atomic_pte: a hole, which it does not fill")
        raise Errno("EFAULT")
    if head in kernel.hugetlb.raw_errors:
        raise Errno("EIO")
    bits = _bits(vma, protect=protect)
    if not vma.flags & VM.SHARED:
        bits &= ~e.RW
    map_file_page(kernel, _empty(mm, vpn), head, bits)


def poison_hugetlb(kernel: Kernel, mm: Mm, vpn: int, marker: int) -> None:
    """UFFDIO_POISON of one huge page; not where another marker is. Raises Errno."""
    pmd = _empty(mm, vpn)
    if pmd.huge:
        raise Errno("EEXIST")
    pmd.huge = marker
    kernel.say("hugetlb_mfill_atomic_pte: a marker, every access brings SIGBUS")


# --- helpers -----------------------------------------------------------------------------


def _empty(mm: Mm, vpn: int) -> Pmd:
    """The entry of a huge page, which is empty or has a marker of userfaultfd. Raises Errno."""
    mm.tables.alloc_upper(vpn)
    pmd = mm.tables.pmds.setdefault(vpn >> PMD_SHIFT, Pmd())
    marker = not e.is_present(pmd.huge) and bool(pmd.huge)
    if pmd.huge and not (marker and e.swap_type(pmd.huge) is e.SwapType.MARKER):
        raise Errno("EEXIST")
    return pmd


def _bits(vma: Vma, *, protect: bool) -> int:
    write = e.UFFD_WP if protect else e.RW if vma.flags & VM.WRITE else 0
    return e.HUGE | e.ACCESSED | e.DIRTY | write

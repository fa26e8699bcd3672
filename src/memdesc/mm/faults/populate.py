"""Filling page tables ahead of time: MADV_POPULATE_READ and _WRITE, MAP_POPULATE, mlock.

`mm/gup.c:populate_vma_page_range, faultin_page_range, __mm_populate, follow_page_pte @6.12`.
The kernel walks the pages as get_user_pages() does, without taking references: it faults where it
must, and touches what is there (FOLL_TOUCH).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.pkeys import pkey_allows
from memdesc.mm.areas.vma import VM, VM_ACCESS, Vma
from memdesc.mm.faults.fault import handle_mm_fault
from memdesc.mm.files.writeback import dirty_folio
from memdesc.mm.process import Errno, Mm, OutOfMemory, Signal
from memdesc.mm.reclaim.mark_accessed import mark_accessed

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["madvise_populate", "mm_populate", "populate_vma"]


def madvise_populate(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, *, write: bool) -> None:
    """MADV_POPULATE_READ and MADV_POPULATE_WRITE. Raises Errno.

    What was done before an error stays done.
    """
    vpn = vpn_start
    while vpn < vpn_end:
        vma = mm.vmas.find(vpn)
        if vma is None:
            raise Errno("ENOMEM")
        if vma.flags & (VM.IO | VM.PFNMAP) or not vma.flags & (VM.WRITE if write else VM.READ):
            raise Errno("EINVAL")
        if not pkey_allows(mm, vma, write=write):
            raise Errno("EINVAL")
        end = min(vma.vpn_end, vpn_end)
        _fault_in(kernel, mm, vma, vpn, end, write=write, tells_poison=True)
        vpn = end
    kernel.drain()


def mm_populate(
    kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, *, ignore_errors: bool = True
) -> None:
    """__mm_populate(): every area of a range. Raises Errno unless errors are ignored."""
    for vma in mm.vmas.overlapping(vpn_start, vpn_end):
        if vma.flags & (VM.IO | VM.PFNMAP):
            continue
        try:
            populate_vma(kernel, mm, vma, max(vpn_start, vma.vpn_start), min(vpn_end, vma.vpn_end))
        except Errno:
            if not ignore_errors:
                raise


def populate_vma(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """populate_vma_page_range(): private memory that may be written is written. Raises Errno."""
    if vma.flags & VM.LOCKONFAULT:
        return
    if not vma.flags & VM_ACCESS:
        raise Errno("EFAULT")
    # Shared memory is only read: it need not be copied, and would be dirtied for nothing.
    write = vma.flags & (VM.WRITE | VM.SHARED) == VM.WRITE
    if not pkey_allows(mm, vma, write=write):
        raise Errno("EFAULT")
    _fault_in(kernel, mm, vma, vpn_start, vpn_end, write=write)
    kernel.drain()


# --- helpers -----------------------------------------------------------------------------


def _fault_in(
    kernel: Kernel,
    mm: Mm,
    vma: Vma,
    vpn_start: int,
    vpn_end: int,
    *,
    write: bool,
    tells_poison: bool = False,
) -> None:
    """__get_user_pages() with FOLL_TOUCH, and FOLL_WRITE. Raises Errno.

    `tells_poison`: FOLL_HWPOISON, lost pages have an error of their own.
    """
    for vpn in range(vpn_start, vpn_end):
        entry = mm.tables.entry(vpn)
        while not e.is_present(entry) or (write and not entry & e.RW):
            try:
                handle_mm_fault(kernel, mm, vma, vpn, write=write)
            except OutOfMemory:
                raise Errno("ENOMEM") from None
            except Signal as signal:
                lost = tells_poison and signal.code == "MCEERR_AR"
                raise Errno("EHWPOISON" if lost else "EFAULT") from None
            entry = mm.tables.entry(vpn)
        _touch(kernel, e.pfn_of(entry), entry, write=write)


def _touch(kernel: Kernel, pfn: int, entry: int, *, write: bool) -> None:
    """FOLL_TOUCH of follow_page_pte(): the accessed bit is the folio's, not the entry's."""
    if write and not entry & e.DIRTY and not kernel.flags(pfn) & KPF.DIRTY:
        dirty_folio(kernel, pfn)
        kernel.say("follow_page_pte: the entry is clean, so the page itself becomes dirty")
    if pfn != kernel.zero_pfn:
        mark_accessed(kernel, pfn)

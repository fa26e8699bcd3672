"""mlock(2) and its relatives: pages that reclaim leaves alone.

`mm/mlock.c @6.12`.  An area is locked (VM_LOCKED); each of its pages is marked MLOCKED at once,
and moved to the unevictable list when the CPU's batch of such pages is emptied.  There it counts
how many locked areas map it, because a page is unlocked only with the last of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.accounting import check_may_lock, may_lock_pages
from memdesc.mm.areas.mlock_batch import MlockOp, add
from memdesc.mm.areas.vma import VM, VM_SPECIAL, Vma
from memdesc.mm.areas.vma_modify import vma_modify_flags
from memdesc.mm.faults.populate import mm_populate
from memdesc.mm.files.inode import SECRETMEM
from memdesc.mm.process import Errno, Mm

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["mlock", "mlockall", "munlock", "munlockall"]

_MASK = VM.LOCKED | VM.LOCKONFAULT


def mlock(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, *, on_fault: bool = False) -> None:
    """mlock2(2): lock what is mapped in a range, and bring it in. Raises Errno.

    `on_fault`: MLOCK_ONFAULT, lock pages as they are touched.
    """
    check_may_lock(kernel, mm)
    if not may_lock_pages(mm, vpn_start, vpn_end):
        kernel.say("do_mlock: more than RLIMIT_MEMLOCK")
        raise Errno("ENOMEM")
    _apply(kernel, mm, vpn_start, vpn_end, _MASK if on_fault else VM.LOCKED)
    try:
        mm_populate(kernel, mm, vpn_start, vpn_end, ignore_errors=False)
    except Errno as error:
        # __mlock_posix_error_return()
        names = {"EFAULT": "ENOMEM", "ENOMEM": "EAGAIN"}
        raise Errno(names.get(error.name, error.name)) from None


def munlock(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int) -> None:
    """munlock(2). Raises Errno."""
    _apply(kernel, mm, vpn_start, vpn_end, VM(0))


def mlockall(
    kernel: Kernel, mm: Mm, *, current: bool, future: bool, on_fault: bool = False
) -> None:
    """mlockall(2): all areas there are, or that come. Raises Errno."""
    if not (current or future):
        raise Errno("EINVAL")
    check_may_lock(kernel, mm)
    limit = mm.limits.locked
    if current and limit is not None and sum(vma.pages for vma in mm.vmas) > limit:
        kernel.say("mlockall: all areas are more than RLIMIT_MEMLOCK")
        raise Errno("ENOMEM")
    flags = _MASK if on_fault else VM.LOCKED
    mm.def_flags = mm.def_flags & ~_MASK | (flags if future else VM(0))
    if current:
        _fix_all(kernel, mm, flags)
        for vma in mm.vmas:
            mm_populate(kernel, mm, vma.vpn_start, vma.vpn_end)


def munlockall(kernel: Kernel, mm: Mm) -> None:
    """munlockall(2)."""
    mm.def_flags &= ~_MASK
    _fix_all(kernel, mm, VM(0))


# --- helpers -----------------------------------------------------------------------------


def _apply(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, flags: VM) -> None:
    """apply_vma_lock_flags(): area by area, until one is missing. Raises Errno."""
    vpn = vpn_start
    while vpn < vpn_end:
        vma = mm.vmas.find(vpn)
        if vma is None:
            raise Errno("ENOMEM")
        end = min(vma.vpn_end, vpn_end)
        _fixup(kernel, mm, vma, vpn, end, vma.flags & ~_MASK | flags)
        vpn = end


def _fix_all(kernel: Kernel, mm: Mm, flags: VM) -> None:
    vpn = 0
    while (vma := mm.vmas.after(vpn)) is not None:
        end = vma.vpn_end
        _fixup(kernel, mm, vma, vma.vpn_start, end, vma.flags & ~_MASK | flags)
        vpn = end


def _fixup(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, flags: VM) -> None:
    """mlock_fixup()."""
    old = vma.flags
    if flags == old or old & (VM_SPECIAL | VM.HUGETLB | VM.DROPPABLE):
        return
    if vma.file is not None and vma.file.mapping.fs is SECRETMEM:
        return
    vma = vma_modify_flags(kernel, mm, vma, vpn_start, vpn_end, flags)
    if bool(flags & VM.LOCKED) != bool(old & VM.LOCKED):
        _lock_pages(kernel, mm, vma, vpn_start, vpn_end, lock=bool(flags & VM.LOCKED))


def _lock_pages(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, *, lock: bool
) -> None:
    """mlock_vma_pages_range(): pages that are mapped already."""
    kernel.drain()
    operation = MlockOp.MLOCK if lock else MlockOp.MUNLOCK
    for low, high, pmd in mm.tables.runs(vpn_start, vpn_end):
        if pmd.huge:
            if e.is_present(pmd.huge) and not kernel.flags(e.pfn_of(pmd.huge)) & KPF.ZERO_PAGE:
                add(kernel, kernel.head(e.pfn_of(pmd.huge)), operation)
            continue
        if pmd.table is None:
            continue
        for vpn in range(low, high):
            entry = mm.tables.entry(vpn)
            if not e.is_present(entry) or entry & e.SPECIAL:
                continue
            head = kernel.head(e.pfn_of(entry))
            # A large folio is looked at once, at its first page, and must lie inside
            # (`mm/mlock.c:folio_mlock_step, allow_mlock_munlock @6.12`).
            if kernel.order_of(head) and not _whole_folio(kernel, mm, vma, vpn, high, lock=lock):
                continue
            add(kernel, head, operation)
    kernel.drain()


def _whole_folio(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, vpn_end: int, *, lock: bool) -> bool:
    """Whether a large folio that is mapped by entries is locked, or unlocked, at this page."""
    if not kernel.rules.mlock_of_mapped_large:
        return False
    pfn = e.pfn_of(mm.tables.entry(vpn))
    head = kernel.head(pfn)
    if pfn != head:
        return False
    pages = 1 << kernel.order_of(head)
    return not lock or (vpn + pages <= vpn_end and vpn + pages <= vma.vpn_end)

"""/proc/PID/clear_refs: forget which pages were accessed, or which were written.

`fs/proc/task_mmu.c:clear_refs_write, clear_refs_pte_range, clear_soft_dirty @6.12`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.page_tables import Pmd
from memdesc.mm.process import Errno, Mm

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["clear_refs"]

ALL: Final = 1
ANON: Final = 2
MAPPED: Final = 3
SOFT_DIRTY: Final = 4
PEAK_RSS: Final = 5


def clear_refs(kernel: Kernel, mm: Mm, value: int) -> None:
    """Write a number to /proc/PID/clear_refs. Raises Errno."""
    if not ALL <= value <= PEAK_RSS:
        raise Errno("EINVAL")
    if value == PEAK_RSS:
        return
    if value == SOFT_DIRTY:
        for vma in mm.vmas:
            vma.flags &= ~VM.SOFTDIRTY
    for vma in mm.vmas:
        if vma.flags & VM.PFNMAP or (value, vma.file is None) in ((ANON, False), (MAPPED, True)):
            continue
        for low, high, pmd in mm.tables.runs(vma.vpn_start, vma.vpn_end):
            if pmd.huge:
                _huge(kernel, pmd, value)
            elif pmd.table is not None:
                for vpn in range(low, high):
                    _entry(kernel, mm, vma, vpn, value)


# --- helpers -----------------------------------------------------------------------------


def _entry(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, value: int) -> None:
    entry = mm.tables.entry(vpn)
    if entry == e.NONE_ENTRY:
        return
    if value != SOFT_DIRTY:
        if e.is_present(entry) and not entry & e.SPECIAL:
            mm.tables.set(vpn, entry & ~e.ACCESSED)
            kernel.clear_flags(e.pfn_of(entry), int(KPF.REFERENCED))
        return
    if e.is_present(entry):
        if _is_pinned(kernel, mm, vma, entry):
            kernel.say("clear_soft_dirty: pinned, left writable and soft-dirty")
            return
        mm.tables.set(vpn, entry & ~(e.RW | e.SOFT_DIRTY))
    elif e.swap_type(entry) is not e.SwapType.MARKER:
        mm.tables.set(vpn, entry & ~e.SOFT_DIRTY_SWAP)


def _huge(kernel: Kernel, pmd: Pmd, value: int) -> None:
    """clear_soft_dirty_pmd(), or the accessed bit of a huge entry."""
    if value == SOFT_DIRTY:
        if e.is_present(pmd.huge):
            pmd.huge &= ~(e.RW | e.SOFT_DIRTY)
        else:
            pmd.huge &= ~e.SOFT_DIRTY_SWAP
    elif e.is_present(pmd.huge):
        pmd.huge &= ~e.ACCESSED
        kernel.clear_flags(e.pfn_of(pmd.huge), int(KPF.REFERENCED))


def _is_pinned(kernel: Kernel, mm: Mm, vma: Vma, entry: int) -> bool:
    """pte_is_pinned()."""
    if not vma.is_cow or not mm.has_pinned or entry & e.SPECIAL:
        return False
    return kernel.may_be_pinned(e.pfn_of(entry))

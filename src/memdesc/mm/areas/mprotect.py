"""mprotect: areas get other permissions, and entries that are there are changed with them.

`mm/mprotect.c:do_mprotect_pkey, mprotect_fixup, change_pte_range, can_change_pte_writable @6.12`.
Taking a permission away changes the entries at once; giving write permission does so only where a
write fault would do nothing else, for instance to an exclusive anonymous page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.accounting import check_commit, check_expand, may_expand
from memdesc.mm.areas.mseal import check_modify
from memdesc.mm.areas.vma import VM, VM_ACCESS, VM_PKEY, Vma
from memdesc.mm.areas.vma_modify import vma_modify_flags
from memdesc.mm.files.filemap import wants_writenotify
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.mm.huge.huge_advice import change_huge_pmd
from memdesc.mm.process import Errno, Mm
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.page_tables import Pmd

__all__ = ["can_change_pte_writable", "change_protection", "mprotect", "protection_bits"]


def mprotect(
    kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, prot: VM, *, pkey: VM | None = None
) -> None:
    """Change what may be done with a range, area by area. Raises Errno.

    `pkey`: the areas' protection key from now on; None: they keep theirs.

    What was changed before an error stays changed.
    """
    vpn = vpn_start
    while vpn < vpn_end:
        vma = mm.vmas.find(vpn)
        if vma is None:
            raise Errno("ENOMEM")
        flags = vma.flags & ~VM_ACCESS | prot
        if pkey is not None:
            flags = flags & ~VM_PKEY | pkey
        if prot & ~(vma.flags >> 4) & VM_ACCESS:
            raise Errno("EACCES")
        end = min(vma.vpn_end, vpn_end)
        vma = _fixup(kernel, mm, vma, vpn, end, flags)
        # A neighbour that was merged with has these permissions already.
        vpn = max(end, vma.vpn_end)


def change_protection(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, *, upgrade: bool
) -> None:
    """change_protection(): entries of a range get the permissions of their area.

    `upgrade`: MM_CP_TRY_CHANGE_WRITABLE, allow writing where no fault is needed for anything else.
    """
    changed = 0
    for low, high, pmd in mm.tables.runs(vpn_start, vpn_end):
        if pmd.huge:
            _change_huge(kernel, mm, vma, pmd, low, high)
            changed += high - low
            continue
        if pmd.table is None:
            continue
        at = pmd.table.first + (low & (TABLE_ENTRIES - 1))
        changed += _change_entries(kernel, vma, at, high - low, upgrade=upgrade)
    if changed:
        kernel.say("change_protection: entries that are there are changed")


def can_change_pte_writable(kernel: Kernel, vma: Vma, row: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which present entries of a writable area may be written without a fault."""
    may = (row & e.PRESENT != 0) & (row & e.RW == 0) & (row & e.UFFD_WP == 0)
    if not vma.flags & VM.SOFTDIRTY:
        may &= row & e.SOFT_DIRTY != 0
    if vma.flags & VM.SHARED or kernel.rules.mprotect_wants_dirty:
        may &= row & e.DIRTY != 0
    if not vma.flags & VM.SHARED:
        pages = (row & e.PFN_MASK) >> e.PFN_SHIFT
        flags = array(kernel.f.flags)
        heads = pages - array(kernel.f.offset)[pages]
        may &= (row & e.SPECIAL == 0) & (flags[heads] & int(KPF.ANON) != 0)
        may &= flags[pages] & int(KPF.OWNER_2) != 0
    return np.asarray(may, np.bool_)


# --- helpers -----------------------------------------------------------------------------


def _fixup(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, flags: VM) -> Vma:
    """mprotect_fixup()."""
    check_modify(kernel, vma)
    old = vma.flags
    if flags == old:
        return vma
    if flags & VM.WRITE:
        pages = vpn_end - vpn_start
        if may_expand(mm, old, pages):
            check_expand(kernel, mm, flags, pages)
        if not old & (VM.ACCOUNT | VM.WRITE | VM.HUGETLB | VM.SHARED | VM.NORESERVE):
            check_commit(kernel, pages)
            flags |= VM.ACCOUNT
    elif (
        kernel.rules.mprotect_unaccounts
        and old & VM.ACCOUNT
        and vma.is_anonymous
        and vma.anon_vma is None
    ):
        flags &= ~VM.ACCOUNT
    vma = vma_modify_flags(kernel, mm, vma, vpn_start, vpn_end, flags)
    if vma.flags & VM.HUGETLB:
        upgrade = False
    elif vma.flags & VM.SHARED:
        upgrade = bool(vma.flags & VM.WRITE) and wants_writenotify(vma)
    else:
        upgrade = bool(vma.flags & VM.WRITE)
    change_protection(kernel, mm, vma, vpn_start, vpn_end, upgrade=upgrade)
    if old & (VM.WRITE | VM.SHARED | VM.LOCKED) == VM.LOCKED and vma.flags & VM.WRITE:
        from memdesc.mm.faults.populate import mm_populate

        mm_populate(kernel, mm, vpn_start, vpn_end)
        kernel.say("mprotect_fixup: locked and writable now, so pages are copied at once")
    return vma


def protection_bits(vma: Vma) -> int:
    """vm_page_prot: private areas have no RW in it, because of copy-on-write."""
    if not vma.flags & VM_ACCESS:
        return e.PROTNONE
    shared = vma.flags & (VM.WRITE | VM.SHARED) == VM.WRITE | VM.SHARED
    writable = shared and (bool(vma.flags & VM.HUGETLB) or not wants_writenotify(vma))
    return e.PRESENT | (e.RW if writable else 0)


def _change_huge(kernel: Kernel, mm: Mm, vma: Vma, pmd: Pmd, low: int, high: int) -> None:
    """A PMD entry; the range has all of it, because areas were split at its ends."""
    if vma.flags & VM.HUGETLB:
        # hugetlb_change_protection()
        if e.is_present(pmd.huge):
            bits = protection_bits(vma)
            pmd.huge = pmd.huge & ~(e.PRESENT | e.PROTNONE | e.RW) | bits
        return
    if e.is_present(pmd.huge):
        whole = change_huge_pmd(kernel, mm, vma, low, high, vma.flags & VM_ACCESS)
        assert whole


def _change_entries(kernel: Kernel, vma: Vma, first: int, count: int, *, upgrade: bool) -> int:
    """change_pte_range() of entries of one table; how many were changed."""
    row = array(kernel.f.entries)[first : first + count]
    present = row & (e.PRESENT | e.PROTNONE) != 0
    if not present.any():
        return 0
    changed: NDArray[np.int64] = _modified_row(row[present], protection_bits(vma))
    if upgrade:
        changed[can_change_pte_writable(kernel, vma, changed)] |= e.RW
    row[present] = changed
    return int(present.sum())


def _modified_row(row: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    return row & ~np.int64(e.PRESENT | e.PROTNONE | e.RW) | bits

"""Guard regions: pages that bring SIGSEGV on any access, without an area of their own.

`mm/madvise.c:madvise_guard_install, madvise_guard_remove @7.2` (since 6.13).  A guard is a marker
in the page table.  Throwing pages away leaves it, unmapping the area takes it along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM, VM_SPECIAL, Vma
from memdesc.mm.faults.zap import zap_range
from memdesc.mm.process import Errno, Mm
from memdesc.mm.rmap import anon_vma_prepare

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["GUARD", "guard_install", "guard_remove"]

GUARD: Final = e.marker(e.Marker.GUARD)
"""make_pte_marker(PTE_MARKER_GUARD)."""

_DISALLOWED: Final = VM_SPECIAL | VM.HUGETLB


def guard_install(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """Every page of a range of one area becomes a guard; what was there is gone. Raises Errno."""
    if vma.flags & (_DISALLOWED | VM.LOCKED):
        raise Errno("EINVAL")
    if not (vma.is_anonymous or kernel.rules.guards_in_files):
        raise Errno("EINVAL")
    remembers = kernel.rules.areas_remember_guards
    if remembers:
        vma.flags |= VM.MAYBE_GUARD
    if vma.is_anonymous or not remembers:
        # So that fork copies the tables.
        anon_vma_prepare(kernel, mm, vma)
    tables = mm.tables
    if any(tables.entry(vpn) not in (e.NONE_ENTRY, GUARD) for vpn in range(vpn_start, vpn_end)):
        zap_range(kernel, mm, vma, vpn_start, vpn_end, drop_markers=False)
    for vpn in range(vpn_start, vpn_end):
        tables.alloc_pte(vpn)
        tables.set(vpn, GUARD)
    kernel.say("madvise_guard_install: markers in the place of pages")


def guard_remove(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """Guards of a range are empty entries again; pages are left alone. Raises Errno."""
    if vma.flags & _DISALLOWED:
        raise Errno("EINVAL")
    tables = mm.tables
    for low, high, pmd in tables.runs(vpn_start, vpn_end):
        if pmd.table is None:
            continue
        for vpn in range(low, high):
            if tables.entry(vpn) == GUARD:
                tables.set(vpn, e.NONE_ENTRY)
                kernel.say("madvise_guard_remove: the marker is gone")

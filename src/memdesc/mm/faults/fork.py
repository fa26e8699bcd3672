"""fork: what the child gets, area by area and entry by entry.

`kernel/fork.c:dup_mmap, mm/memory.c:copy_page_range, vma_needs_copy, copy_present_ptes @6.12`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm import loops
from memdesc.mm.areas.accounting import check_commit
from memdesc.mm.areas.mmap import exit_process
from memdesc.mm.areas.vma import VM, VM_UFFD, Vma
from memdesc.mm.faults.new_folio import map_new_anon_page, new_anon_folio
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.mm.huge.huge_memory import copy_huge_pmd
from memdesc.mm.hugetlb.hugetlb import copy_hugetlb
from memdesc.mm.ksm.ksm import fork_mm
from memdesc.mm.mm_ids import note_child
from memdesc.mm.process import Descriptors, Mm, OutOfMemory, Process
from memdesc.mm.reclaim.swap import copy_nonpresent
from memdesc.mm.rmap import anon_vma_fork

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["fork"]

_DROPPED = e.UFFD_WP
"""Bits that a child's entries lose where it is not registered with userfaultfd."""
_NOT_INHERITED = VM.LOCKED | VM.LOCKONFAULT | VM_UFFD
"""Locks are the parent's alone, and so is its userfaultfd (`dup_userfaultfd`)."""


def fork(kernel: Kernel, parent: Process, name: str) -> Process:
    """A child of a process. Raises OutOfMemory, with nothing left of the child, and QuestionError
    where a process that lives has the name."""
    kernel.check_name(name)
    child = Process(name, Mm(kernel), Descriptors(parent.files), parent=parent)
    child.mm.limits = replace(parent.mm.limits)
    child.mm.start_brk, child.mm.brk = parent.mm.start_brk, parent.mm.brk
    child.fsize_limit = parent.fsize_limit
    for file in child.files.values():
        file.shared()
    child.mm.thp_disabled = parent.mm.thp_disabled
    child.mm.pkru, child.mm.pkeys = parent.mm.pkru, set(parent.mm.pkeys)
    child.mm.may_have_mergeable = True  # flags that are not inherited kept areas apart
    child.mm.khugepaged = parent.mm.khugepaged
    child.mm.merge_any = parent.mm.merge_any
    kernel.processes[name] = child
    try:
        for vma in parent.mm.vmas:
            _dup_area(kernel, parent.mm, child.mm, vma)
    except OutOfMemory:
        exit_process(kernel, child)
        raise
    fork_mm(kernel, parent.mm, child.mm)
    return child


# --- helpers -----------------------------------------------------------------------------


def _dup_area(kernel: Kernel, source: Mm, target: Mm, vma: Vma) -> None:
    """The body of dup_mmap(): an area, and its page tables where faults would not do."""
    if vma.flags & VM.DONTCOPY:
        kernel.say("dup_mmap: VM_DONTCOPY, the child has no such area")
        return
    if vma.flags & VM.ACCOUNT:
        check_commit(kernel, vma.pages)
    twin = Vma(
        vma.vpn_start, vma.vpn_end, vma.flags & ~_NOT_INHERITED,
        vma.pgoff, vma.file, name=vma.name, policy=vma.policy, swap_readahead=vma.swap_readahead,
    )  # fmt: skip
    target.vmas.insert(twin)
    if vma.file is not None:
        vma.file.mapped(target, twin)
    if vma.flags & VM.WIPEONFORK:
        kernel.say("dup_mmap: VM_WIPEONFORK, the child's area is empty")
        return
    anon_vma_fork(kernel, target, twin, vma)
    if _needs_copy(vma):
        _copy_area(kernel, source, target, vma, twin)
    else:
        kernel.say("vma_needs_copy: no, faults will bring the same")


def _needs_copy(vma: Vma) -> bool:
    """vma_needs_copy()."""
    if vma.flags & (VM.PFNMAP | VM.MIXEDMAP | VM.MAYBE_GUARD):
        return True
    return vma.anon_vma is not None


def _copy_area(kernel: Kernel, source: Mm, target: Mm, vma: Vma, twin: Vma) -> None:
    if vma.flags & VM.HUGETLB:
        copy_hugetlb(kernel, source, target, vma, twin)
        return
    private = vma.is_cow
    for low, high, pmd in source.tables.runs(vma.vpn_start, vma.vpn_end):
        if pmd.huge and copy_huge_pmd(kernel, source, target, vma, low):
            continue
        if pmd.table is None:
            continue
        table = target.tables.alloc_pte(low)
        at = pmd.table.first + (low & (TABLE_ENTRIES - 1))
        to = table.first + (low & (TABLE_ENTRIES - 1))
        done = 0
        while done < high - low:
            done += loops.copy_entries(
                kernel.f, at + done, to + done, high - low - done, int(private), ~_DROPPED
            )
            if done < high - low:
                _copy_one(kernel, source, target, vma, twin, low + done)
                done += 1


def _copy_one(kernel: Kernel, source: Mm, target: Mm, vma: Vma, twin: Vma, vpn: int) -> None:
    """An entry that wants a decision."""
    entry = source.tables.entry(vpn)
    if not e.is_present(entry):
        target.tables.set(vpn, copy_nonpresent(kernel, source, vpn, entry))
        return
    pfn = e.pfn_of(entry)
    private = vma.is_cow
    # Taken before it is asked whether the page may be pinned: so 1,023 references look like a pin.
    kernel.get(pfn)
    if kernel.flags(pfn) & KPF.ANON and kernel.exclusive(pfn):
        if source.has_pinned and kernel.may_be_pinned(pfn):
            kernel.put(pfn)
            copy = new_anon_folio(kernel, twin, vpn)
            kernel.f.content[copy] = kernel.f.content[pfn]
            write = e.RW if twin.flags & VM.WRITE else 0
            bits = e.ACCESSED | write | e.DIRTY | e.SOFT_DIRTY
            map_new_anon_page(kernel, target, twin, vpn, copy, bits)
            kernel.say("copy_present_page: pinned, the child gets a copy at once")
            return
        kernel.set_exclusive(pfn, False)
    kernel.f.maps[pfn] += 1
    if kernel.rules.knows_who_maps_large and kernel.order_of(pfn):
        note_child(kernel, pfn, source, target)
    if private:
        source.tables.set(vpn, entry & ~e.RW)
        entry &= ~e.RW
    else:
        entry &= ~e.DIRTY
    target.tables.set(vpn, entry & ~e.ACCESSED & ~_DROPPED)

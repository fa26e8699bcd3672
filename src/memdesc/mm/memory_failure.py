"""Frames that fail, as far as processes see it: MADV_HWPOISON and MADV_SOFT_OFFLINE.

`mm/madvise.c:madvise_inject_error`, `mm/memory-failure.c:memory_failure, hwpoison_user_mappings,
identify_page_state, soft_offline_in_use_page` @6.1, @6.12, @7.2.  What a failure means for any
frame of a machine is told by `memdesc.rules.failure`; how releases differ by
`memdesc.kernels.memory_failure`.  Here the steps are done.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.memory_failure import failure_behaviour
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock_batch import munlock_vma_folio
from memdesc.mm.check import HOLDERS
from memdesc.mm.faults.zap import drop_mapping
from memdesc.mm.files.folio_writeback import wait_writeback
from memdesc.mm.files.inode import SECRETMEM
from memdesc.mm.files.page_cache import remove_folio
from memdesc.mm.files.wb_err import mapping_set_error
from memdesc.mm.huge.large_folio import split_folio
from memdesc.mm.hugetlb.hugetlb_failure import memory_failure_hugetlb, soft_offline_hugetlb
from memdesc.mm.migrate import migrate_folio
from memdesc.mm.process import Errno, OutOfMemory, Process, Signal
from memdesc.mm.reclaim.isolate import isolate
from memdesc.mm.reclaim.vmscan import try_to_unmap
from memdesc.mm.references.gup import FOLL, get_user_pages_fast
from memdesc.mm.rmap import mappings_of

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["inject"]

_LOST: Final = int(KPF.LRU | KPF.ACTIVE | KPF.UNEVICTABLE)


def inject(kernel: Kernel, process: Process, vpn_start: int, vpn_end: int, *, soft: bool) -> None:
    """Let the frames of a range fail, or be taken out of use in good order. Raises Errno, Signal.

    Takes CAP_SYS_ADMIN. The page is looked up as a reader would. SIGBUS comes when the call is
    over.
    """
    if not process.mm.limits.capable:
        raise Errno("EPERM")
    vpn, killed = vpn_start, False
    while vpn < vpn_end:
        (pfn,) = get_user_pages_fast(kernel, process.mm, vpn, 1, FOLL(0))
        wait_writeback(kernel, pfn, "memory_failure")
        pages = 1 << kernel.order_of(pfn)
        if soft:
            _soft_offline(kernel, pfn)
        else:
            killed |= _memory_failure(kernel, pfn)
        vpn += pages
    if killed:
        raise Signal("SIGBUS", "MCEERR_AR")


def holders(kernel: Kernel) -> Iterator[tuple[int, int]]:
    """A frame that failed is held for good, so that nobody gets it."""
    for pfn in kernel.poisoned:
        yield pfn, 1


HOLDERS.append(holders)


# --- hard ----------------------------------------------------------------------------------


def _memory_failure(kernel: Kernel, pfn: int) -> bool:
    """memory_failure() with MF_COUNT_INCREASED: whether the caller is killed. Raises Errno."""
    behaviour = failure_behaviour(kernel.release)
    if kernel.flags(pfn) & KPF.HUGE:
        return memory_failure_hugetlb(kernel, pfn)
    kernel.num_poisoned_pages += 1
    kernel.f.flags[pfn] |= int(KPF.HWPOISON)
    if kernel.flags(pfn) & KPF.ZERO_PAGE:
        kernel.put(pfn)
        kernel.say("memory_failure: the zero page belongs to everybody: Ignored")
        raise Errno("EBUSY")
    kernel.poisoned.add(pfn)
    if kernel.order_of(pfn) and not _split(kernel, pfn):
        raise Errno("EHWPOISON" if behaviour.unsplit_is_failed else "EBUSY")
    kernel.drain()
    if kernel.flags(pfn) & KPF.KSM and not behaviour.ksm_is_handled:
        kernel.say("hwpoison_user_mappings: a KSM page stays mapped: Ignored")
        raise Errno("EBUSY")
    _unmap(kernel, pfn)
    kernel.drain()
    dirty = bool(kernel.flags(pfn) & KPF.DIRTY)
    killed = dirty and kernel.rules.injected_error_is_urgent
    if not _take_out(kernel, pfn):
        if killed:
            raise Signal("SIGBUS", "MCEERR_AR")
        raise Errno("EBUSY")
    kernel.say(f"memory_failure: {'dirty' if dirty else 'clean'} LRU page: Recovered")
    return killed


def _split(kernel: Kernel, pfn: int) -> bool:
    """try_to_split_thp_page(): only the page that failed is lost, which stays held."""
    if split_folio(kernel, pfn, held=1):
        kernel.say("memory_failure: unsplit thp: Failed")
        return False
    return True


def _unmap(kernel: Kernel, pfn: int) -> None:
    """unmap_poisoned_folio(): every entry says that the frame is lost, or goes.

    It goes where the content can be read again: a clean page of a file with a device; and what is
    in the swap cache gets its ordinary swap entry.
    """
    flags = kernel.flags(pfn)
    if flags & KPF.SWAPCACHE:
        try_to_unmap(kernel, pfn)
        return
    places = tuple(mappings_of(kernel, pfn))
    if any(mm.tables.entry(vpn) & e.DIRTY for mm, _, vpn in places):
        kernel.set_flags(pfn, int(KPF.DIRTY))
    poisons = bool(kernel.flags(pfn) & KPF.DIRTY) or not _can_write_back(kernel, pfn)
    for mm, vma, vpn in places:
        entry = mm.tables.entry(vpn)
        bits = e.SOFT_DIRTY_SWAP if entry & e.SOFT_DIRTY else 0
        lost = e.not_present(e.SwapType.HWPOISON, pfn, bits)
        mm.tables.set(vpn, lost if poisons else e.NONE_ENTRY)
        munlock_vma_folio(kernel, vma, pfn)
        drop_mapping(kernel, pfn)
    what = "poisoned" if poisons else "empty, the file has it"
    kernel.say(f"unmap_poisoned_folio: {len(places)} entries are {what} now")


def _take_out(kernel: Kernel, pfn: int) -> bool:
    """identify_page_state(): off the LRU, and out of its file; False for "Failed"."""
    isolate(kernel.f, pfn)
    kernel.clear_flags(pfn, _LOST)
    if kernel.flags(pfn) & KPF.ANON:
        return True
    mapping = kernel.mappings.get(int(kernel.f.mapping[pfn]))
    kept = 0
    if mapping is not None:
        if mapping.fs is SECRETMEM:
            return False
        if mapping.is_shmem:
            kept = 1
        else:
            if kernel.flags(pfn) & KPF.DIRTY:
                # me_pagecache_dirty(): as if writing it had failed.
                mapping_set_error(kernel, mapping, "EIO")
            kernel.clear_flags(pfn, int(KPF.DIRTY))
            remove_folio(kernel, mapping, pfn)
    if kernel.refs(pfn) > 1 + kept:
        kernel.say(f"has_extra_refcount: still referenced by {kernel.refs(pfn) - 1} users: Failed")
        return False
    return True


def _can_write_back(kernel: Kernel, pfn: int) -> bool:
    """mapping_can_writeback()."""
    if kernel.flags(pfn) & KPF.ANON:
        return False
    mapping = kernel.mappings.get(int(kernel.f.mapping[pfn]))
    return mapping is not None and mapping.fs.has_device


# --- soft ----------------------------------------------------------------------------------


def _soft_offline(kernel: Kernel, pfn: int) -> None:
    """soft_offline_page() with MF_COUNT_INCREASED. Raises Errno."""
    if kernel.flags(pfn) & KPF.ZERO_PAGE:
        kernel.put(pfn)
        raise Errno("EIO")
    if kernel.flags(pfn) & KPF.HUGE:
        soft_offline_hugetlb(kernel, pfn)
        return
    if kernel.order_of(pfn) and not _split(kernel, pfn):
        kernel.put(pfn)
        raise Errno("EBUSY")
    if not kernel.flags(pfn) & KPF.LRU:
        kernel.drain()  # shake_folio(), of what get_any_page() cannot handle yet
    flags = kernel.flags(pfn)
    if not flags & (KPF.ANON | KPF.DIRTY | KPF.WRITEBACK) and _invalidate(kernel, pfn):
        kernel.say("soft_offline_in_use_page: invalidated, the file has it")
    else:
        try:
            moved = migrate_folio(kernel, pfn, held=1)
        except OutOfMemory:
            moved = False
        if not moved:
            kernel.put(pfn)
            raise Errno("EBUSY")
    kernel.f.flags[pfn] |= int(KPF.HWPOISON)
    kernel.poisoned.add(pfn)
    kernel.num_poisoned_pages += 1


def _invalidate(kernel: Kernel, pfn: int) -> bool:
    """mapping_evict_folio(): a clean page that nobody maps leaves its file."""
    mapping = kernel.mappings.get(int(kernel.f.mapping[pfn]))
    private = bool(kernel.flags(pfn) & KPF.PRIVATE)
    if mapping is None or mapping.is_shmem or kernel.refs(pfn) > 2 + private:
        return False
    isolate(kernel.f, pfn)
    kernel.clear_flags(pfn, _LOST)
    remove_folio(kernel, mapping, pfn)
    return True

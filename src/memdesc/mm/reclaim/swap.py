"""Entries that are not present: most of them name a slot of swap.

`mm/memory.c:do_swap_page, should_try_to_free_swap, copy_nonpresent_pte, zap_nonpresent_ptes
@6.1, @6.12`.  The other entries are poisoned frames, markers, and pages that move.  Slots and the
swap cache are in `swap_state`, the device comes and goes in `swapfile`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock_batch import mlock_vma_folio
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.faults.new_folio import new_anon_folio
from memdesc.mm.frames import BATCH_ADD
from memdesc.mm.process import Errno, Mm, OutOfMemory, Signal
from memdesc.mm.reclaim.swap_readahead import found_in_cache, swapin_readahead
from memdesc.mm.reclaim.swap_state import (
    device_of,
    free_swap_cache,
    put_slot,
    read_slots,
    read_swap_cache,
    swap_duplicate,
    swap_free,
    swap_refault,
)
from memdesc.mm.reclaim.swapin_large import entries_of_folio, swapin_order
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "add_anon_rmap",
    "copy_nonpresent",
    "do_swap_page",
    "kept_bits",
    "ksm_copy",
    "madvise_willneed",
    "zap_swap_entry",
]  # fmt: skip


# --- what other subsystems ask ---------------------------------------------------------------


def do_swap_page(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int, *, write: bool) -> None:
    """A fault at an entry that is neither empty nor present. Raises Signal, OutOfMemory."""
    kind = e.swap_type(entry)
    if kind is e.SwapType.HWPOISON:
        kernel.say("do_swap_page: the frame was lost to a memory error")
        raise Signal("SIGBUS", "MCEERR_AR")
    if kind is e.SwapType.MARKER:
        _marker_fault(kernel, mm, vma, vpn, entry, write=write)
        return
    # Nothing moves while processes run here, so no migration entry outlives its system call.
    assert kind is e.SwapType.SWAP, entry
    swap_in(kernel, mm, vma, vpn, entry, write=write)
    found = mm.tables.entry(vpn)
    if write and not found & e.RW:
        from memdesc.mm.faults.wp import do_wp_page

        do_wp_page(kernel, mm, vma, vpn, found)


def zap_swap_entry(
    kernel: Kernel, vma: Vma, entry: int,
    *, even_cows: bool, drop_markers: bool = True,
) -> bool:  # fmt: skip
    """Unmap an entry that is not present; False where it stays (`zap_nonpresent_ptes @6.12`).

    `drop_markers` False: the area stays, and so do guards, and write protection of files.
    """
    match e.swap_type(entry):
        case e.SwapType.SWAP:
            if even_cows:
                swap_free(kernel, entry)
        case e.SwapType.MIGRATION:
            return True
        case e.SwapType.MARKER if e.swap_offset(entry) == e.Marker.GUARD:
            return drop_markers
        case e.SwapType.MARKER if e.swap_offset(entry) == e.Marker.UFFD_WP:
            return drop_markers or vma.is_anonymous
    return even_cows


def copy_nonpresent(kernel: Kernel, source: Mm, vpn: int, entry: int) -> int:
    """fork at an entry that is not present: the child's entry (`copy_nonpresent_pte @6.12`).

    The child is not registered with userfaultfd, so it gets nothing of write protection.
    """
    match e.swap_type(entry):
        case e.SwapType.SWAP:
            swap_duplicate(kernel, entry)
            if entry & e.EXCLUSIVE_SWAP:
                entry &= ~e.EXCLUSIVE_SWAP
                source.tables.set(vpn, entry)
            kernel.say("copy_nonpresent_pte: one more entry for the slot")
        case e.SwapType.MARKER:
            if e.swap_offset(entry) == e.Marker.UFFD_WP:
                return e.NONE_ENTRY
    return entry & ~e.UFFD_WP_SWAP


# --- reading in ----------------------------------------------------------------------------------


def swap_in(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int, *, write: bool) -> None:
    """The part of do_swap_page that maps the page, or all of its folio. Raises Signal."""
    device = device_of(kernel)
    slot = e.swap_offset(entry)
    skips = kernel.rules.swapin_skips_cache
    cached = slot in device.cache
    direct = device.is_synchronous and skips and not cached and device.counts[slot] == 1
    order = 0 if cached else swapin_order(kernel, mm, vma, vpn, entry)
    if direct:
        pfn = _read_directly(kernel, vma, vpn, slot, order)
    elif cached:
        pfn = device.cache[slot]
        found_in_cache(kernel, vma, vpn, pfn)
        kernel.get(pfn)
    else:
        if device.is_synchronous and not skips:
            pfn = read_swap_cache(kernel, slot, order)
        else:
            pfn = swapin_readahead(kernel, mm, vma, vpn, slot)
        kernel.get(pfn)
    head = kernel.head(pfn)
    if not kernel.flags(head) & KPF.UPTODATE:
        kernel.say("do_swap_page: the page came without its content")
        kernel.put(head)
        raise Signal("SIGBUS", "ADRERR")
    try:
        copied = 0 if direct else ksm_copy(kernel, vma, vpn, pfn)
    except OutOfMemory:
        kernel.put(head)
        raise
    if not direct and write and not copied and not kernel.flags(head) & (KPF.KSM | KPF.LRU):
        kernel.drain()
    merged = bool(kernel.flags(head) & KPF.KSM)
    exclusive = not merged and (direct or bool(copied) or bool(entry & e.EXCLUSIVE_SWAP))
    if exclusive and not copied and kernel.flags(head) & KPF.WRITEBACK:
        kernel.say("do_swap_page: under write-back to a device that wants stable pages: read-only")
        exclusive = False
    pages = range(vpn, vpn + 1)
    if not copied:
        pages = entries_of_folio(kernel, mm, vma, vpn, entry, pfn)
    for at in pages:
        put_slot(kernel, slot + at - vpn)
    maps_first = not skips
    frees = not direct and not copied and _should_free(kernel, vma, head, write=write)
    if frees and not maps_first:
        free_swap_cache(kernel, head)
    bits = e.ACCESSED | kept_bits(entry)
    target = copied or pfn
    if not merged and not copied and not exclusive:
        exclusive = kernel.refs(head) == 1
    if exclusive and vma.flags & VM.WRITE and not bits & e.UFFD_WP:
        bits |= e.RW | e.DIRTY if write else e.RW if kernel.rules.swapin_maps_writable else 0
    elif exclusive and write and vma.flags & VM.WRITE and not kernel.rules.swapin_maps_writable:
        # Made writable and dirty, and write-protected again for userfaultfd.
        bits |= e.DIRTY
    kernel.get(target, len(pages) - 1)
    for at in pages:
        add_anon_rmap(kernel, vma, at, target + at - vpn, exclusive=exclusive)
        mm.tables.set(at, e.present(target + at - vpn, bits))
    if len(pages) > 1:
        kernel.say(f"do_swap_page: {len(pages)} pages of a large folio at once")
    how = "read from its slot" if direct else "found in the swap cache or read into it"
    kernel.say(f"do_swap_page: {how}, {'exclusive' if exclusive else 'not exclusive'}")
    if frees and maps_first:
        free_swap_cache(kernel, head)
    if copied:
        kernel.put(head)


def madvise_willneed(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int) -> None:
    """MADV_WILLNEED of anonymous memory: slots are read into the swap cache, entries stay."""
    for vpn in range(vpn_start, vpn_end):
        entry = mm.tables.entry(vpn)
        if entry and not e.is_present(entry) and e.swap_type(entry) is e.SwapType.SWAP:
            read_swap_cache(kernel, e.swap_offset(entry))
            kernel.say("swapin_walk_pmd_entry: read into the swap cache")
    kernel.drain()


# --- for swapfile -------------------------------------------------------------------------


def add_anon_rmap(kernel: Kernel, vma: Vma, vpn: int, pfn: int, *, exclusive: bool) -> None:
    """folio_add_anon_rmap_pte(): a page that nobody mapped belongs to the family's first."""
    head = kernel.head(pfn)
    assert vma.anon_vma is not None
    fresh = not kernel.flags(head) & KPF.ANON
    if not kernel.f.mapping[head]:
        owner = vma.anon_vma if exclusive else vma.anon_vma.root
        kernel.f.mapping[head] = owner.number
        kernel.f.pgoff[head] = vma.index_of(vpn) - (pfn - head)
    kernel.set_flags(head, int(KPF.ANON))
    kernel.f.maps[pfn] += 1
    if exclusive:
        kernel.set_exclusive(pfn, True)
    if vma.flags & VM.LOCKED and not (fresh and kernel.rules.swapin_leaves_unlocked):
        mlock_vma_folio(kernel, vma, pfn)


def kept_bits(entry: int) -> int:
    """Bits that an entry has in common with the one that takes its place."""
    bits = e.SOFT_DIRTY if entry & e.SOFT_DIRTY_SWAP else 0
    return bits | (e.UFFD_WP if entry & e.UFFD_WP_SWAP else 0)


def ksm_copy(kernel: Kernel, vma: Vma, vpn: int, pfn: int) -> int:
    """ksm_might_need_to_copy(): a copy for an address that the cached page cannot have, or 0."""
    head = kernel.head(pfn)
    number = int(kernel.f.mapping[head])
    if not number:
        return 0
    if kernel.flags(head) & KPF.KSM:
        if kernel.ksm.run != 2:
            return 0
    else:
        assert vma.anon_vma is not None
        same = kernel.mappings[number].root is vma.anon_vma.root
        if same and int(kernel.f.pgoff[head]) + pfn - head == vma.index_of(vpn):
            return 0
    copy = new_anon_folio(kernel, vma, vpn)
    kernel.f.content[copy] = kernel.f.content[pfn]
    kernel.set_exclusive(copy, False)
    kernel.set_flags(copy, int(KPF.DIRTY))
    kernel.batch(copy, BATCH_ADD)
    kernel.events["ksm_swpin_copy"] += 1
    return copy


# --- helpers -------------------------------------------------------------------------------------


def _read_directly(kernel: Kernel, vma: Vma, vpn: int, slot: int, order: int) -> int:
    """SWP_SYNCHRONOUS_IO and one entry: past the swap cache. Raises OutOfMemory."""
    assert vma.anon_vma is not None
    behind = vpn & ((1 << order) - 1)
    head = kernel.alloc_folio(
        MemoryType.ANON,
        order,
        flags=int(KPF.UPTODATE | KPF.SWAPBACKED),
        mapping=vma.anon_vma.number,
        index=vma.index_of(vpn - behind),
    )
    swap_refault(kernel, head, range(slot - behind, slot - behind + (1 << order)))
    read_slots(kernel, head, slot - behind)
    kernel.batch(head, BATCH_ADD)
    return head + behind


def _should_free(kernel: Kernel, vma: Vma, head: int, *, write: bool) -> bool:
    """should_try_to_free_swap(); the caller holds one reference."""
    device = device_of(kernel)
    maps_first = not kernel.rules.swapin_skips_cache
    if device.is_half_full or (maps_first and device.is_synchronous):
        return True
    if vma.flags & VM.LOCKED or kernel.flags(head) & KPF.MLOCKED:
        return True
    # After it was mapped, a write finds no page with the cache's reference alone.
    pages = 1 << kernel.order_of(head)
    alone = not maps_first and kernel.refs(head) == 1 + pages
    return write and alone and not kernel.flags(head) & KPF.KSM


def _marker_fault(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int, *, write: bool) -> None:
    """handle_pte_marker()."""
    marker = e.swap_offset(entry)
    if marker & e.Marker.SWAPIN_ERROR:
        kernel.say("do_swap_page: swap did not give the page back")
        raise Signal("SIGBUS", "ADRERR")
    if marker & e.Marker.POISONED:
        kernel.say("handle_pte_marker: lost, and nothing tells what was there")
        raise Signal("SIGBUS", "MCEERR_AR")
    if marker & e.Marker.GUARD:
        kernel.say("handle_pte_marker: a guard")
        raise Signal("SIGSEGV", "MAPERR")
    from memdesc.mm.faults.fault import handle_mm_fault

    mm.tables.set(vpn, e.NONE_ENTRY)
    if not vma.flags & VM.UFFD_WP:
        kernel.say("pte_marker_clear: nobody protects the area any more")
        handle_mm_fault(kernel, mm, vma, vpn, write=write)
        return
    # A page that was protected and dropped, or never there: as if it were not, protected again.
    try:
        handle_mm_fault(kernel, mm, vma, vpn, write=write)
    except (Signal, Errno):
        mm.tables.set(vpn, entry)
        raise
    mm.tables.set(vpn, mm.tables.entry(vpn) & ~e.RW | e.UFFD_WP)

"""Swap comes and goes: swapon, swapoff, and shmem's pages in swap.

`mm/swapfile.c:try_to_unuse, unuse_pte`, `mm/shmem.c:shmem_writepage, shmem_swapin_folio,
shmem_unuse @6.12`.  A shmem page that is swapped out has its slot in the file's page cache, not
in page tables.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM_UFFD, Vma
from memdesc.mm.files.folio_writeback import wait_writeback
from memdesc.mm.files.page_cache import file_mappings
from memdesc.mm.frames import BATCH_ADD
from memdesc.mm.process import Errno, Mm
from memdesc.mm.reclaim.swap import add_anon_rmap, kept_bits, ksm_copy
from memdesc.mm.reclaim.swap_slots import SWAP_PAGES, Slots
from memdesc.mm.reclaim.swap_state import (
    SwapDevice,
    add_to_swap,
    device_of,
    drop_swap_cache,
    free_swap_cache,
    put_slot,
    read_swap_cache,
    swap_refault,
    swap_writepage,
)
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.files.inode import AddressSpace
    from memdesc.mm.huge.shmem_huge import FaultAt
    from memdesc.mm.kernel import Kernel

__all__ = ["free_shmem_slot", "shmem_swapin", "shmem_writepage", "swapoff", "swapon"]


def swapon(kernel: Kernel, pages: int = SWAP_PAGES, *, is_synchronous: bool = True) -> None:
    """swapon(2). Raises Errno."""
    if kernel.swap is not None:
        raise Errno("EBUSY")
    room = Slots(kernel.rules.swap_begins_behind_header, pages)
    kernel.swap = SwapDevice(room, pages, is_synchronous)


def swapoff(kernel: Kernel) -> None:
    """swapoff(2): everything is read in again, shared memory first. Raises Errno, OutOfMemory."""
    device = kernel.swap
    if device is None:
        raise Errno("EINVAL")
    for mapping in file_mappings(kernel):
        for index in list(mapping.swapped):
            if index in mapping.swapped:
                # What cannot be read is lost, and no reason to stop (shmem_unuse_swap_entries).
                with suppress(Errno):
                    shmem_swapin(kernel, mapping, index)
    for process in kernel.processes.values():
        for vma in process.mm.vmas:
            _unuse_vma(kernel, process.mm, vma)
    for pfn in list(device.slots):
        if pfn in device.slots and kernel.head(pfn) == pfn:
            wait_writeback(kernel, pfn, "swapoff")
            free_swap_cache(kernel, pfn)
    assert not device.counts
    assert not device.cache
    kernel.swap = None


def shmem_writepage(kernel: Kernel, mapping: AddressSpace, head: int) -> bool:
    """Move an unmapped folio from the page cache to the swap cache, and write it.

    False without room in swap. The caller holds a reference. A large folio stays one entry of the
    file's page cache.
    """
    if not add_to_swap(kernel, head):
        return False
    device = device_of(kernel)
    index = int(kernel.f.pgoff[head])
    for page in kernel.pages_of(head):
        slot = device.slots[page]
        mapping.swapped[index + page - head] = slot
        if order := kernel.order_of(head):
            mapping.swap_orders[index + page - head] = order
        device.counts[slot] += 1
        del mapping.pages[index + page - head]
        kernel.put(head)
    kernel.f.mapping[head] = 0
    swap_writepage(kernel, head)
    kernel.say("shmem_writepage: the file's page cache names the slot now")
    return True


def shmem_swapin(
    kernel: Kernel, mapping: AddressSpace, index: int, *, fault: FaultAt | None = None
) -> int:
    """shmem_swapin_folio(): a page is back in the page cache, dirty, and its slot is free.

    What was swapped out as a large folio comes back as one where the release does that, and
    userfaultfd does not want to see each page. Raises OutOfMemory, Errno where the device fails.
    """
    order = mapping.swap_orders.get(index, 0)
    first = index >> order << order
    device = device_of(kernel)
    pfn = device.cache.get(mapping.swapped[index])
    if pfn is None and order:
        armed = fault is not None and fault.vma.flags & VM_UFFD
        if kernel.rules.shmem_swaps_in_whole and device.is_synchronous and not armed:
            slots = [mapping.swapped[first + page] for page in range(1 << order)]
            pfn = _read_whole(kernel, slots) + index - first
        else:
            for page in range(1 << order):
                mapping.swap_orders.pop(first + page)
            kernel.say("shmem_split_large_entry: an entry for each page of the large folio")
    if pfn is None:
        pfn = read_swap_cache(kernel, mapping.swapped[index])
    head = kernel.head(pfn)
    first = index - (pfn - head)
    wait_writeback(kernel, head, "shmem_swapin_folio")
    if not kernel.flags(head) & KPF.UPTODATE:
        _set_swapin_error(kernel, mapping, index, head)
        raise Errno("EIO")
    pages = list(kernel.pages_of(head))
    # The page cache's references.
    kernel.get(head, len(pages))
    kernel.f.mapping[head] = mapping.number
    kernel.f.pgoff[head] = first
    for page in pages:
        at = first + page - head
        mapping.pages[at] = page
        mapping.swap_orders.pop(at, None)
        put_slot(kernel, mapping.swapped.pop(at))
    drop_swap_cache(kernel, head)
    kernel.set_flags(head, int(KPF.DIRTY))
    kernel.say("shmem_swapin_folio: back from swap, dirty")
    return pfn


def free_shmem_slot(kernel: Kernel, slot: int) -> None:
    """shmem_free_swap(): a page that was swapped out is thrown away (truncation)."""
    put_slot(kernel, slot)
    device = device_of(kernel)
    pfn = device.cache.get(slot)
    if pfn is not None:
        free_swap_cache(kernel, pfn)


# --- helpers -----------------------------------------------------------------------------


def _set_swapin_error(kernel: Kernel, mapping: AddressSpace, index: int, head: int) -> None:
    """shmem_set_folio_swapin_error(): the page cache has an error in the place of the slot."""
    put_slot(kernel, mapping.swapped.pop(index))
    mapping.lost.add(index)
    drop_swap_cache(kernel, head)
    kernel.say("shmem_set_folio_swapin_error: the file has an error in the place of the page")


def _read_whole(kernel: Kernel, slots: list[int]) -> int:
    """shmem_swap_alloc_folio(): a large folio in the swap cache, read from its slots."""
    device = device_of(kernel)
    order = len(slots).bit_length() - 1
    head = kernel.alloc_folio(
        MemoryType.ANON, order, flags=int(KPF.UPTODATE | KPF.SWAPBACKED)
    )  # fmt: skip
    kernel.set_flags(head, int(KPF.SWAPCACHE))
    for page, slot in enumerate(slots, head):
        kernel.f.content[page] = device.stored[slot]
        device.cache[slot] = page
        device.slots[page] = slot
        kernel.events["pswpin"] += 1
    kernel.get(head, len(slots) - 1)
    swap_refault(kernel, head, slots)
    kernel.batch(head, BATCH_ADD)
    return head


def _unuse_vma(kernel: Kernel, mm: Mm, vma: Vma) -> None:
    """unuse_vma(): map what its entries name, without touching."""
    for low, high, pmd in mm.tables.runs(vma.vpn_start, vma.vpn_end):
        if pmd.table is None:
            continue
        for vpn in range(low, high):
            entry = mm.tables.entry(vpn)
            if entry and not e.is_present(entry) and e.swap_type(entry) is e.SwapType.SWAP:
                _unuse_pte(kernel, mm, vma, vpn, entry)


def _unuse_pte(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int) -> None:
    slot = e.swap_offset(entry)
    pfn = read_swap_cache(kernel, slot)
    wait_writeback(kernel, pfn, "swapoff")
    if not kernel.flags(pfn) & KPF.UPTODATE:
        marks = kernel.rules.failed_swapin_leaves_marker
        marker = e.Marker.POISONED if marks else e.Marker.SWAPIN_ERROR
        mm.tables.set(vpn, e.not_present(e.SwapType.MARKER, marker))
        put_slot(kernel, slot)
        kernel.say("unuse_pte: the page came without its content, the entry says so")
        free_swap_cache(kernel, pfn)
        return
    copied = ksm_copy(kernel, vma, vpn, pfn)
    if not copied:
        kernel.get(pfn)
    exclusive = bool(copied) or bool(entry & e.EXCLUSIVE_SWAP)
    put_slot(kernel, slot)
    target = copied or pfn
    add_anon_rmap(kernel, vma, vpn, target, exclusive=exclusive)
    mm.tables.set(vpn, e.present(target, kept_bits(entry)))
    kernel.say(f"unuse_pte: mapped, {'exclusive' if exclusive else 'not exclusive'}")
    free_swap_cache(kernel, pfn)

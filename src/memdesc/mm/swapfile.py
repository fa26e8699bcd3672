"""Swap comes and goes: swapon, swapoff, and shmem's pages in swap.

`mm/swapfile.c:try_to_unuse, unuse_pte`, `mm/shmem.c:shmem_writepage, shmem_swapin_folio,
shmem_unuse @6.12`.  A shmem page that is swapped out has its slot in the file's page cache, not
in page tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.process import Errno, Mm
from memdesc.mm.swap import kept_bits, ksm_copy, map_anon
from memdesc.mm.swap_state import (
    SwapDevice,
    add_to_swap,
    device_of,
    drop_swap_cache,
    free_swap_cache,
    put_slot,
    read_swap_cache,
    swap_writepage,
)
from memdesc.mm.vma import Vma

if TYPE_CHECKING:
    from memdesc.mm.files import AddressSpace
    from memdesc.mm.kernel import Kernel

__all__ = ["free_shmem_slot", "shmem_swapin", "shmem_writepage", "swapoff", "swapon"]


def swapon(kernel: Kernel) -> None:
    """swapon(2). Raises Errno."""
    if kernel.swap is not None:
        raise Errno("EBUSY")
    kernel.swap = SwapDevice()


def swapoff(kernel: Kernel) -> None:
    """swapoff(2): everything is read in again, shared memory first. Raises Errno, OutOfMemory."""
    device = kernel.swap
    if device is None:
        raise Errno("EINVAL")
    from memdesc.mm.page_cache import file_mappings

    for mapping in file_mappings(kernel):
        for index in list(mapping.swapped):
            shmem_swapin(kernel, mapping, index)
    for process in kernel.processes.values():
        for vma in process.mm.vmas:
            _unuse_vma(kernel, process.mm, vma)
    for pfn in list(device.slots):
        if pfn in device.slots and kernel.head(pfn) == pfn:
            free_swap_cache(kernel, pfn)
    assert not device.counts
    assert not device.cache
    kernel.swap = None


def shmem_writepage(kernel: Kernel, mapping: AddressSpace, head: int) -> bool:
    """Move an unmapped page from the page cache to the swap cache, and write it.

    False without room in swap. The caller holds a reference.
    """
    if not add_to_swap(kernel, head):
        return False
    device = device_of(kernel)
    index = int(kernel.f.pgoff[head])
    for page in kernel.pages_of(head):
        slot = device.slots[page]
        mapping.swapped[index + page - head] = slot
        device.counts[slot] += 1
        del mapping.pages[index + page - head]
        kernel.put(head)
    kernel.f.mapping[head] = 0
    swap_writepage(kernel, head)
    kernel.say("shmem_writepage: the file's page cache names the slot now")
    return True


def shmem_swapin(kernel: Kernel, mapping: AddressSpace, index: int) -> int:
    """shmem_swapin_folio(): a page is back in the page cache, dirty, and its slot is free.

    Raises OutOfMemory.
    """
    slot = mapping.swapped[index]
    pfn = read_swap_cache(kernel, slot)
    kernel.get(pfn)
    del mapping.swapped[index]
    kernel.f.mapping[pfn] = mapping.number
    kernel.f.pgoff[pfn] = index
    mapping.pages[index] = pfn
    # The page cache's reference is the one that was taken above.
    put_slot(kernel, slot)
    drop_swap_cache(kernel, pfn)
    kernel.set_flags(pfn, int(KPF.DIRTY))
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
    copied = ksm_copy(kernel, vma, vpn, pfn)
    if not copied:
        kernel.get(pfn)
    exclusive = bool(copied) or bool(entry & e.EXCLUSIVE_SWAP)
    put_slot(kernel, slot)
    target = copied or pfn
    map_anon(kernel, vma, vpn, target, exclusive=exclusive)
    mm.tables.set(vpn, e.present(target, kept_bits(entry)))
    kernel.say(f"unuse_pte: mapped, {'exclusive' if exclusive else 'not exclusive'}")
    free_swap_cache(kernel, pfn)

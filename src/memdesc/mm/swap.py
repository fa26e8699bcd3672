"""Entries that are not present, and the swap behind most of them.

A slot of swap counts the entries that name it.  While a page is read in or written out it is in
the swap cache, which holds a reference and lets everybody who asks for the slot find the same
page.  `mm/memory.c:do_swap_page, should_try_to_free_swap, copy_nonpresent_pte`,
`mm/swapfile.c:folio_free_swap, free_swap_and_cache`, `mm/swap_state.c @6.1, @6.12`.

The other entries are poisoned frames, markers, and pages that move.  The device is compressed
memory (zram): whatever is read or written is there at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.check import HOLDERS
from memdesc.mm.frames import BATCH_ADD
from memdesc.mm.process import Mm, Signal
from memdesc.mm.vma import VM, Vma
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "SwapDevice",
    "add_to_swap",
    "copy_nonpresent",
    "do_swap_page",
    "free_page_and_swap_cache",
    "free_swap_cache",
    "in_swap_cache",
    "madvise_willneed",
    "read_swap_cache",
    "swap_count",
    "swap_duplicate",
    "swap_free",
    "zap_swap_entry",
]

SWAP_PAGES: Final = (64 << 20) // 4096 - 1
"""Slots of the device that `swap on` makes; the header takes one page."""


@dataclass(slots=True)
class SwapDevice:
    """One device, and the swap cache of its slots."""

    pages: int = SWAP_PAGES
    counts: dict[int, int] = field(default_factory=dict)
    """Slot -> entries, and shmem's page-cache slots, that name it (`swap_map`)."""
    stored: dict[int, int] = field(default_factory=dict)
    """Slot -> content that was written."""
    cache: dict[int, int] = field(default_factory=dict)
    """Slot -> frame in the swap cache."""
    slots: dict[int, int] = field(default_factory=dict)
    """Frame in the swap cache -> its slot (`folio->swap`)."""
    free: list[int] = field(default_factory=list)
    used: int = 0
    """Slots that were ever handed out."""

    def alloc(self) -> int | None:
        """A free slot, not counted yet; None where the device is full."""
        if self.free:
            return self.free.pop()
        if self.used == self.pages:
            return None
        self.used += 1
        return self.used

    def release(self, slot: int) -> None:
        """Nobody names it, and no page is cached for it."""
        del self.counts[slot]
        self.stored.pop(slot, None)
        self.free.append(slot)

    @property
    def is_half_full(self) -> bool:
        """vm_swap_full()."""
        return 2 * len(self.counts) > self.pages


# --- what other subsystems ask ---------------------------------------------------------------


def do_swap_page(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int, *, write: bool, unshare: bool
) -> None:
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
        from memdesc.mm.wp import do_wp_page

        do_wp_page(kernel, mm, vma, vpn, found)


def zap_swap_entry(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int,
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


def copy_nonpresent(kernel: Kernel, source: Mm, vma: Vma, vpn: int, entry: int) -> int:
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


def swap_count(kernel: Kernel, entry: int) -> int:
    """swp_swapcount(): how many entries name the slot of one."""
    return device_of(kernel).counts[e.swap_offset(entry)]


def in_swap_cache(kernel: Kernel, entry: int) -> bool:
    """Whether the swap cache has the page of a swap entry (mincore asks)."""
    return e.swap_offset(entry) in device_of(kernel).cache


def free_swap_cache(kernel: Kernel, pfn: int) -> bool:
    """folio_free_swap(): take a folio out of the swap cache if no entry names its slots.

    The folio is dirty then, as its only copy. The caller holds a reference of its own, or an entry
    maps the folio.
    """
    head = kernel.head(pfn)
    device = device_of(kernel)
    pages = list(kernel.pages_of(head))
    if any(device.counts[device.slots[page]] for page in pages):
        return False
    drop_swap_cache(kernel, head)
    kernel.set_flags(head, int(KPF.DIRTY))
    kernel.say("folio_free_swap: the slot is free, the page is dirty")
    return True


def drop_swap_cache(kernel: Kernel, head: int) -> None:
    """delete_from_swap_cache(): the cache's references go, slots that nobody names are free."""
    device = device_of(kernel)
    pages = list(kernel.pages_of(head))
    kernel.clear_flags(head, int(KPF.SWAPCACHE))
    for page in pages:
        slot = device.slots.pop(page)
        del device.cache[slot]
        if not device.counts[slot]:
            device.release(slot)
    kernel.put(head, len(pages))


def free_page_and_swap_cache(kernel: Kernel, pfn: int) -> None:
    """Drop a reference after unmapping; a cached page that nobody maps or names goes with it.

    `mm/swap_state.c:free_swap_cache @6.12`.
    """
    head = kernel.head(pfn)
    if kernel.flags(head) & KPF.SWAPCACHE and not kernel.mapcount(head):
        free_swap_cache(kernel, head)
    kernel.put(head)


# --- slots ---------------------------------------------------------------------------------------


def add_to_swap(kernel: Kernel, head: int) -> bool:
    """Slots for a folio, which enters the swap cache and is dirty; False without room."""
    device = kernel.swap
    if device is None:
        return False
    pages = list(kernel.pages_of(head))
    slots: list[int] = []
    for _ in pages:
        slot = device.alloc()
        if slot is None:
            device.free += slots
            return False
        slots.append(slot)
    for page, slot in zip(pages, slots, strict=True):
        device.counts[slot] = 0
        device.cache[slot] = page
        device.slots[page] = slot
    kernel.get(head, len(pages))
    kernel.set_flags(head, int(KPF.SWAPCACHE | KPF.DIRTY))
    return True


def swap_writepage(kernel: Kernel, head: int) -> None:
    """Write a folio of the swap cache to its slots; it is clean then."""
    device = device_of(kernel)
    for page in kernel.pages_of(head):
        device.stored[device.slots[page]] = int(kernel.f.content[page])
        kernel.events["pswpout"] += 1
    kernel.clear_flags(head, int(KPF.DIRTY))


def swap_duplicate(kernel: Kernel, entry: int) -> None:
    """One more entry names the slot."""
    device_of(kernel).counts[e.swap_offset(entry)] += 1


def swap_free(kernel: Kernel, entry: int) -> None:
    """free_swap_and_cache(): an entry is gone; a cached page that nobody maps goes with the last.

    `mm/swapfile.c @6.12`.
    """
    slot = e.swap_offset(entry)
    put_slot(kernel, slot)
    device = device_of(kernel)
    page = device.cache.get(slot)
    if page is not None and not device.counts[slot]:
        head = kernel.head(page)
        if not kernel.mapcount(head) or device.is_half_full:
            free_swap_cache(kernel, head)


def read_swap_cache(kernel: Kernel, slot: int) -> int:
    """read_swap_cache_async(): the frame in the swap cache, read in if it is not there.

    A page that was read in has the cache's reference alone, beside that of its LRU batch.
    """
    device = device_of(kernel)
    found = device.cache.get(slot)
    if found is not None:
        return found
    # The rmap's part of the flags, and which anon_vma it belongs to, come when it is mapped.
    pfn = kernel.alloc_folio(MemoryType.ANON, flags=int(KPF.UPTODATE | KPF.SWAPBACKED))
    kernel.set_flags(pfn, int(KPF.SWAPCACHE))
    kernel.f.content[pfn] = device.stored[slot]
    device.cache[slot] = pfn
    device.slots[pfn] = slot
    kernel.events["pswpin"] += 1
    kernel.batch(pfn, BATCH_ADD)
    return pfn


def swap_in(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int, *, write: bool) -> None:
    """The part of do_swap_page that maps the page."""
    device = device_of(kernel)
    slot = e.swap_offset(entry)
    direct = (
        slot not in device.cache and device.counts[slot] == 1 and kernel.rules.swapin_skips_cache
    )
    if direct:
        pfn = _read_directly(kernel, vma, vpn, slot)
    else:
        pfn = read_swap_cache(kernel, slot)
        kernel.get(pfn)
    head = kernel.head(pfn)
    copied = 0 if direct else ksm_copy(kernel, vma, vpn, pfn)
    if not direct and write and not copied and not kernel.flags(head) & (KPF.KSM | KPF.LRU):
        kernel.drain()
    merged = bool(kernel.flags(head) & KPF.KSM)
    exclusive = not merged and (direct or bool(copied) or bool(entry & e.EXCLUSIVE_SWAP))
    put_slot(kernel, slot)
    maps_first = kernel.rules.swapin_frees_cache
    frees = not direct and _should_free(kernel, vma, head, write=write and not copied)
    if frees and not maps_first:
        free_swap_cache(kernel, head)
    bits = e.ACCESSED | kept_bits(entry)
    target = copied or pfn
    if not merged and not copied and not exclusive:
        exclusive = kernel.refs(head) == 1
    if exclusive and vma.flags & VM.WRITE and not bits & e.UFFD_WP:
        bits |= e.RW | e.DIRTY if write else e.RW if kernel.rules.swapin_maps_writable else 0
    map_anon(kernel, vma, vpn, target, exclusive=exclusive)
    mm.tables.set(vpn, e.present(target, bits))
    how = "read from its slot" if direct else "found in the swap cache or read into it"
    kernel.say(f"do_swap_page: {how}, {'exclusive' if exclusive else 'not exclusive'}")
    if frees and maps_first:
        free_swap_cache(kernel, head)
    if copied:
        kernel.put(head)


def madvise_willneed(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """MADV_WILLNEED of anonymous memory: slots are read into the swap cache, entries stay."""
    for vpn in range(vpn_start, vpn_end):
        entry = mm.tables.entry(vpn)
        if entry and not e.is_present(entry) and e.swap_type(entry) is e.SwapType.SWAP:
            read_swap_cache(kernel, e.swap_offset(entry))
            kernel.say("swapin_walk_pmd_entry: read into the swap cache")
    kernel.drain()


# --- for mm/swapfile.py ----------------------------------------------------------------------


def device_of(kernel: Kernel) -> SwapDevice:
    """The device, while there are entries that name its slots."""
    assert kernel.swap is not None
    return kernel.swap


def put_slot(kernel: Kernel, slot: int) -> None:
    """swap_free(): without a look at the swap cache."""
    device = device_of(kernel)
    device.counts[slot] -= 1
    assert device.counts[slot] >= 0
    if not device.counts[slot] and slot not in device.cache:
        device.release(slot)


def map_anon(kernel: Kernel, vma: Vma, vpn: int, pfn: int, *, exclusive: bool) -> None:
    """folio_add_anon_rmap_pte(): a page that nobody mapped belongs to the family's first."""
    head = kernel.head(pfn)
    assert vma.anon_vma is not None
    fresh = not kernel.flags(head) & KPF.ANON
    if not kernel.f.mapping[head]:
        owner = vma.anon_vma if exclusive else vma.anon_vma.root
        kernel.f.mapping[head] = owner.number
        kernel.f.index[head] = vma.index_of(vpn)
    kernel.set_flags(head, int(KPF.ANON))
    kernel.f.maps[pfn] += 1
    if exclusive:
        kernel.set_exclusive(pfn, True)
    if vma.flags & VM.LOCKED and not (fresh and kernel.rules.swapin_leaves_unlocked):
        from memdesc.mm.mlock import mlock_vma_folio

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
        if same and int(kernel.f.index[head]) + pfn - head == vma.index_of(vpn):
            return 0
    from memdesc.mm.wp import new_anon_page

    copy = new_anon_page(kernel, vma, vpn)
    kernel.f.content[copy] = kernel.f.content[pfn]
    kernel.set_exclusive(copy, False)
    kernel.set_flags(copy, int(KPF.DIRTY))
    kernel.batch(copy, BATCH_ADD)
    kernel.events["ksm_swpin_copy"] += 1
    return copy


# --- helpers -------------------------------------------------------------------------------------


def _read_directly(kernel: Kernel, vma: Vma, vpn: int, slot: int) -> int:
    """SWP_SYNCHRONOUS_IO and one entry: past the swap cache. Raises OutOfMemory."""
    assert vma.anon_vma is not None
    pfn = kernel.alloc_folio(
        MemoryType.ANON,
        flags=int(KPF.UPTODATE | KPF.SWAPBACKED),
        mapping=vma.anon_vma.number,
        index=vma.index_of(vpn),
    )
    kernel.f.content[pfn] = device_of(kernel).stored[slot]
    kernel.events["pswpin"] += 1
    kernel.batch(pfn, BATCH_ADD)
    return pfn


def _should_free(kernel: Kernel, vma: Vma, head: int, *, write: bool) -> bool:
    """should_try_to_free_swap(); the caller holds one reference."""
    if kernel.rules.swapin_frees_cache or device_of(kernel).is_half_full:
        return True
    if vma.flags & VM.LOCKED or kernel.flags(head) & KPF.MLOCKED:
        return True
    pages = 1 << kernel.order_of(head)
    return write and not kernel.flags(head) & KPF.KSM and kernel.refs(head) == 1 + pages


def _marker_fault(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int, *, write: bool) -> None:
    """handle_pte_marker()."""
    marker = e.swap_offset(entry)
    if marker & e.Marker.POISONED:
        raise Signal("SIGBUS", "MCEERR_AR")
    if marker & e.Marker.GUARD:
        kernel.say("handle_pte_marker: a guard")
        raise Signal("SIGSEGV", "MAPERR")
    from memdesc.mm.fault import handle_mm_fault

    # A page that was write-protected and dropped: as if nothing were there, protected again.
    mm.tables.set(vpn, e.NONE_ENTRY)
    if not vma.flags & VM.UFFD_WP:
        handle_mm_fault(kernel, mm, vma, vpn, write=write)
        return
    handle_mm_fault(kernel, mm, vma, vpn)
    mm.tables.set(vpn, mm.tables.entry(vpn) & ~e.RW | e.UFFD_WP)


def _held(kernel: Kernel) -> Iterator[tuple[int, int]]:
    """References of the swap cache."""
    if kernel.swap is not None:
        for pfn in kernel.swap.cache.values():
            yield pfn, 1


HOLDERS.append(_held)

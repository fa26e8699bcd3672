"""Slots of swap, and the swap cache: pages that are in memory and have a slot.

A slot counts the entries that name it.  While a page is read in or written out it is in the swap
cache, which holds a reference and lets everybody who asks for the slot find the same page.
`mm/swap_state.c`, `mm/swapfile.c:folio_free_swap, free_swap_and_cache @6.1, @6.12`.

The device is compressed memory (zram): whatever is read or written is there at once, unless it is
told to fail, or to hold what it is asked for (`mm/page_io.c:end_swap_bio_write,
end_swap_bio_read`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memdesc.errors import MemdescError
from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.check import HOLDERS
from memdesc.mm.files.folio_writeback import Answers, end_writeback, start_writeback
from memdesc.mm.frames import BATCH_ADD
from memdesc.mm.huge.thp_stats import count_mthp, count_thp
from memdesc.mm.process import Errno
from memdesc.mm.reclaim.swap_slots import SWAP_PAGES, Slots
from memdesc.mm.reclaim.workingset import Shadow, workingset_refault
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "SwapDevice", "add_to_swap", "device_of", "drop_swap_cache", "free_page_and_swap_cache",
    "free_swap_cache", "in_swap_cache", "put_slot", "read_slots", "read_swap_cache", "set_swap",
    "swap_count", "swap_duplicate", "swap_free", "swap_refault", "swap_writepage",
]  # fmt: skip


@dataclass(slots=True)
class SwapDevice:
    """One device, and the swap cache of its slots."""

    room: Slots
    pages: int = SWAP_PAGES
    is_synchronous: bool = True
    """SWP_SYNCHRONOUS_IO: the kernel knows that a read is done when the call returns."""
    counts: dict[int, int] = field(default_factory=dict)
    """Slot -> entries, and shmem's page-cache slots, that name it (`swap_map`)."""
    stored: dict[int, int] = field(default_factory=dict)
    """Slot -> content that was written."""
    cache: dict[int, int] = field(default_factory=dict)
    """Slot -> frame in the swap cache."""
    slots: dict[int, int] = field(default_factory=dict)
    """Frame in the swap cache -> its slot (`folio->swap`)."""
    shadows: dict[int, Shadow] = field(default_factory=dict)
    """Slot -> what is remembered of the page that was reclaimed to it."""
    zeroes: set[int] = field(default_factory=set)
    """Slots whose folio was nothing but zeroes, and not written (`zeromap`)."""
    answers: Answers = Answers.OK
    """Whether slots can be read and written."""
    waiting: list[int] = field(default_factory=list)
    """Folios under write-back."""

    def release(self, slot: int) -> None:
        """Nobody names it, and no page is cached for it."""
        del self.counts[slot]
        self.stored.pop(slot, None)
        self.shadows.pop(slot, None)
        self.zeroes.discard(slot)
        self.room.release(slot)

    @property
    def is_half_full(self) -> bool:
        """vm_swap_full()."""
        return 2 * len(self.counts) > self.pages


# --- the swap cache ------------------------------------------------------------------------------


def add_to_swap(kernel: Kernel, head: int) -> bool:
    """Slots for a folio, which enters the swap cache and is dirty; False without room."""
    device = kernel.swap
    if device is None:
        return False
    pages = list(kernel.pages_of(head))
    first = device.room.alloc(kernel.order_of(head))
    if first is None:
        return False
    for slot, page in enumerate(pages, first):
        device.counts[slot] = 0
        device.cache[slot] = page
        device.slots[page] = slot
    kernel.get(head, len(pages))
    kernel.set_flags(head, int(KPF.SWAPCACHE | KPF.DIRTY))
    return True


def swap_writepage(kernel: Kernel, head: int) -> None:
    """Write a folio of the swap cache to its slots; it is clean then, or dirty again where the
    device fails, or under write-back where it holds."""
    device = device_of(kernel)
    pages = list(kernel.pages_of(head))
    slots = [device.slots[page] for page in pages]
    kernel.clear_flags(head, int(KPF.DIRTY))
    device.zeroes.difference_update(slots)
    if kernel.rules.knows_pages_of_zeroes and not any(kernel.f.content[page] for page in pages):
        device.zeroes.update(slots)
        device.stored.update(dict.fromkeys(slots, 0))
        kernel.say("swap_zeromap_folio_set: all zeroes, noted and not written")
        return
    if device.answers is Answers.HOLD:
        # PG_reclaim: so that it is the first to go when it is written (`mm/vmscan.c:pageout`).
        kernel.set_flags(head, int(KPF.RECLAIM))
        start_writeback(kernel, head)
        device.waiting.append(head)
    else:
        _end_swap_bio_write(kernel, head)
    kernel.events["pswpout"] += len(pages)
    count_thp(kernel, kernel.order_of(head), "thp_swpout")
    count_mthp(kernel, kernel.order_of(head), "swpout")


def set_swap(kernel: Kernel, answers: Answers) -> None:
    """From now on the device does so; what it kept is written, or fails, in the order of asking.

    Raises Errno without a device.
    """
    device = kernel.swap
    if device is None:
        raise Errno("EINVAL")
    if device.is_synchronous:
        raise MemdescError(
            "only swap behind device mapper fails or holds", hint="write `swap on mapped`"
        )
    device.answers = answers
    if answers is Answers.HOLD:
        return
    waiting, device.waiting = device.waiting, []
    for head in waiting:
        _end_swap_bio_write(kernel, head)
        end_writeback(kernel, head)


def read_swap_cache(kernel: Kernel, slot: int, order: int = 0) -> int:
    """read_swap_cache_async(): the frame in the swap cache, read in if it is not there.

    A folio that was read in has the cache's references alone, beside that of its LRU batch.
    `order`: of the folio that is read, with the slots of the aligned range around `slot`, none of
    which is cached.
    """
    device = device_of(kernel)
    found = device.cache.get(slot)
    if found is not None:
        return found
    # The rmap's part of the flags, and which anon_vma it belongs to, come when it is mapped.
    head = kernel.alloc_folio(MemoryType.ANON, order, flags=int(KPF.UPTODATE | KPF.SWAPBACKED))
    kernel.set_flags(head, int(KPF.SWAPCACHE))
    first = slot >> order << order
    for page, at in enumerate(range(first, first + (1 << order)), head):
        device.cache[at] = page
        device.slots[page] = at
    kernel.get(head, (1 << order) - 1)
    swap_refault(kernel, head, range(first, first + (1 << order)))
    read_slots(kernel, head, first)
    kernel.batch(head, BATCH_ADD)
    return device.cache[slot]


def read_slots(kernel: Kernel, head: int, first: int) -> None:
    """swap_read_folio(): the content of a folio from as many slots in a row.

    What the device does not give is not UPTODATE. Raises MemdescError where it would wait.
    """
    device = device_of(kernel)
    for slot, page in enumerate(kernel.pages_of(head), first):
        kernel.f.content[page] = device.stored[slot]
    if first not in device.zeroes:
        if device.answers is Answers.HOLD:
            raise MemdescError(
                "a page is read from swap that holds: it would never come",
                hint="put `swap ok` before this step",
            )
        if device.answers is Answers.FAIL:
            kernel.clear_flags(head, int(KPF.UPTODATE))
            _mark_error(kernel, head)
            kernel.say("end_swap_bio_read: the device does not give it, cached without its content")
        kernel.events["pswpin"] += 1 << kernel.order_of(head)
        count_mthp(kernel, kernel.order_of(head), "swpin")


def swap_refault(kernel: Kernel, head: int, slots: Iterable[int]) -> None:
    """A new folio is for slots whose pages may have been reclaimed."""
    device = device_of(kernel)
    old = [device.shadows.pop(slot, None) for slot in slots]
    shadow = next((found for found in reversed(old) if found is not None), None)
    if shadow is not None:
        workingset_refault(kernel, head, shadow)


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
    if kernel.flags(head) & KPF.WRITEBACK:
        kernel.say("folio_free_swap: under write-back, it keeps its slot")
        return False
    drop_swap_cache(kernel, head)
    kernel.set_flags(head, int(KPF.DIRTY))
    kernel.say("folio_free_swap: the slot is free, the page is dirty")
    return True


def drop_swap_cache(kernel: Kernel, head: int, shadow: Shadow | None = None) -> None:
    """delete_from_swap_cache(): the cache's references go, slots that nobody names are free.

    `shadow`: what reclaim leaves in the folio's place.
    """
    device = device_of(kernel)
    pages = list(kernel.pages_of(head))
    kernel.clear_flags(head, int(KPF.SWAPCACHE))
    for page in pages:
        slot = device.slots.pop(page)
        del device.cache[slot]
        if shadow is not None:
            device.shadows[slot] = shadow
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


def in_swap_cache(kernel: Kernel, entry: int) -> bool:
    """Whether the swap cache has the page of a swap entry with its content (mincore asks)."""
    pfn = device_of(kernel).cache.get(e.swap_offset(entry))
    return pfn is not None and bool(kernel.flags(pfn) & KPF.UPTODATE)


# --- counts of slots -----------------------------------------------------------------------------


def swap_count(kernel: Kernel, entry: int) -> int:
    """swp_swapcount(): how many entries name the slot of one."""
    return device_of(kernel).counts[e.swap_offset(entry)]


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


def put_slot(kernel: Kernel, slot: int) -> None:
    """swap_free(): without a look at the swap cache."""
    device = device_of(kernel)
    device.counts[slot] -= 1
    assert device.counts[slot] >= 0
    if not device.counts[slot] and slot not in device.cache:
        device.release(slot)


def device_of(kernel: Kernel) -> SwapDevice:
    """The device, while there are entries that name its slots."""
    assert kernel.swap is not None
    return kernel.swap


# --- helpers -------------------------------------------------------------------------------------


def _end_swap_bio_write(kernel: Kernel, head: int) -> None:
    """The slots have the folio's content, or the folio keeps the only copy and is dirty."""
    device = device_of(kernel)
    if device.answers is Answers.FAIL:
        kernel.set_flags(head, int(KPF.DIRTY))
        kernel.clear_flags(head, int(KPF.RECLAIM))
        _mark_error(kernel, head)
        kernel.say("end_swap_bio_write: the device does not take it, dirty again")
        return
    for page in kernel.pages_of(head):
        device.stored[device.slots[page]] = int(kernel.f.content[page])


def _mark_error(kernel: Kernel, head: int) -> None:
    if kernel.rules.failed_swap_marks_pages:
        kernel.set_flags(head, int(KPF.ERROR))


def _held(kernel: Kernel) -> Iterator[tuple[int, int]]:
    """References of the swap cache."""
    if kernel.swap is not None:
        for pfn in kernel.swap.cache.values():
            yield pfn, 1


HOLDERS.append(_held)

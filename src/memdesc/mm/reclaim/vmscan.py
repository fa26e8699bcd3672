"""Reclaim: folios are unmapped, written to swap or to nowhere, and freed.

`mm/vmscan.c:shrink_folio_list, pageout, __remove_mapping, folio_check_references,
reclaim_pages`, `mm/rmap.c:try_to_unmap_one` @6.1, @6.12.  The model never runs short of memory by
itself: MADV_PAGEOUT reclaims pages by name, `shrink_lruvec` by list.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock_batch import evictable, mlock_vma_folio
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.faults.zap import drop_mapping
from memdesc.mm.files.filemap import file_entry_gone
from memdesc.mm.files.inode import may_write
from memdesc.mm.files.page_cache import detach_private, remove_folio
from memdesc.mm.frames import (
    BATCH_ADD,
)
from memdesc.mm.huge.huge_advice import madvise_large_folio, madvise_pageout_huge_pmd
from memdesc.mm.huge.huge_memory import split_pmds
from memdesc.mm.huge.large_folio import split_folio
from memdesc.mm.huge.shmem_reclaim import is_shmem, pageout_shmem, split_shmem
from memdesc.mm.huge.thp_stats import count_mthp, count_thp
from memdesc.mm.process import Errno, Mm
from memdesc.mm.reclaim.isolate import isolate
from memdesc.mm.reclaim.mark_accessed import has_recency
from memdesc.mm.reclaim.swap_state import (
    add_to_swap,
    drop_swap_cache,
    free_swap_cache,
    swap_writepage,
)
from memdesc.mm.reclaim.workingset import note_advice, set_cache_shadow, workingset_eviction
from memdesc.mm.rmap import mappings_of

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["Fate", "check_references", "madvise_pageout", "reclaim_folio", "try_to_unmap"]

_CANNOT: Final = VM.LOCKED | VM.PFNMAP | VM.HUGETLB
"""can_madv_lru_vma()."""


class Fate(Enum):
    """What shrink_folio_list() does with a folio."""

    FREED = auto()
    KEPT = auto()
    ACTIVATED = auto()


def madvise_pageout(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """MADV_PAGEOUT: reclaim pages that nobody else maps, wherever they are on their lists.

    `mm/madvise.c:madvise_cold_or_pageout_pte_range @6.12`. Raises Errno.
    """
    if vma.flags & _CANNOT:
        raise Errno("EINVAL")
    others = vma.file is not None and not may_write(mm, vma.file.mapping)
    if others and (vma.flags & VM.MAYSHARE or not kernel.rules.pages_out_copies_of_others_files):
        kernel.say("can_do_file_pageout: another user's file")
        return
    kernel.drain()
    for low, high, pmd in mm.tables.runs(vpn_start, vpn_end):
        isolated: list[int] = []
        if pmd.huge and madvise_pageout_huge_pmd(kernel, mm, vma, low, high, isolated):
            _reclaim_pages(kernel, isolated)
            continue
        for vpn in range(low, high):
            _isolate_at(kernel, mm, vma, vpn, high, isolated, anon_only=others)
        _reclaim_pages(kernel, isolated)


def reclaim_folio(kernel: Kernel, head: int, *, ignore_references: bool = True) -> Fate:
    """shrink_folio_list() for one folio, of which the caller holds a reference (isolation).

    The reference is dropped. Pieces that had to be split off follow when it is done with.
    """
    pieces: list[int] = []
    fate = _shrink_folio(kernel, head, pieces, ignore_references=ignore_references)
    if fate is Fate.ACTIVATED:
        flags = kernel.flags(head)
        half_full = kernel.swap is not None and kernel.swap.is_half_full
        if flags & KPF.SWAPCACHE and (half_full or flags & KPF.MLOCKED):
            free_swap_cache(kernel, head)
        if not flags & KPF.MLOCKED:
            kernel.relist(head, set_flags=int(KPF.ACTIVE))
    if fate is not Fate.FREED:
        kernel.relist(head)  # It goes to the head of its list.
    kernel.put(head)
    for piece in reversed(pieces) if kernel.rules.split_pieces_last_first else pieces:
        reclaim_folio(kernel, piece)
    return fate


def try_to_unmap(kernel: Kernel, head: int) -> None:
    """Empty the entries that map a folio, or let them name its slots of swap."""
    if kernel.f.entire[head]:
        is_file = not kernel.flags(head) & KPF.ANON
        if is_file and any(vma.flags & VM.LOCKED for _, vma, _ in mappings_of(kernel, head)):
            return
        split_pmds(kernel, head)
    for pfn in kernel.pages_of(head):
        for mm, vma, vpn in tuple(mappings_of(kernel, pfn)):
            if not _try_to_unmap_one(kernel, mm, vma, vpn, pfn):
                return


# --- helpers -----------------------------------------------------------------------------


def _isolate_at(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, vpn_end: int, isolated: list[int],
    *, anon_only: bool,
) -> None:  # fmt: skip
    entry = mm.tables.entry(vpn)
    if not e.is_present(entry) or entry & e.SPECIAL:
        return
    head = kernel.head(e.pfn_of(entry))
    if kernel.order_of(head):
        if madvise_large_folio(kernel, mm, vpn, vpn_end) < 0:
            return
        entry = mm.tables.entry(vpn)
        head = kernel.head(e.pfn_of(entry))
    if head in isolated:
        return
    flags = kernel.flags(head)
    if anon_only and not flags & KPF.ANON:
        return
    if not flags & KPF.LRU or kernel.mapcount(head) != 1 << kernel.order_of(head):
        kernel.say("madvise_pageout: mapped by others too, left alone")
        return
    mm.tables.set(vpn, entry & ~e.ACCESSED)
    kernel.clear_flags(head, int(KPF.REFERENCED))
    note_advice(kernel, head)
    if not flags & KPF.UNEVICTABLE:
        kernel.get(head)
        isolated.append(head)


def _reclaim_pages(kernel: Kernel, isolated: list[int]) -> None:
    """reclaim_pages(): none of them counts as active; what is kept goes through the batch again."""
    for head in isolated:
        kernel.relist(head, clear_flags=int(KPF.ACTIVE))
    for head in isolated:
        if reclaim_folio(kernel, head) is not Fate.FREED and isolate(kernel.f, head):
            kernel.batch(head, BATCH_ADD)


def _shrink_folio(kernel: Kernel, head: int, pieces: list[int], *, ignore_references: bool) -> Fate:
    """What becomes of a folio; of pieces that are split off, a reference each is in `pieces`."""
    flags = kernel.flags(head)
    if flags & (KPF.UNEVICTABLE | KPF.MLOCKED):
        return Fate.ACTIVATED
    if not evictable(kernel, head):
        kernel.relist(head, set_flags=int(KPF.UNEVICTABLE), clear_flags=int(KPF.ACTIVE))
        kernel.say("shrink_folio_list: of a file that must stay, to the unevictable list")
        return Fate.KEPT
    if flags & KPF.WRITEBACK:
        kernel.set_flags(head, int(KPF.RECLAIM))
        kernel.say("shrink_folio_list: under write-back, to be looked at right after it")
        return Fate.ACTIVATED
    clean_only = False
    if not ignore_references:
        fate = check_references(kernel, head)
        if fate is not None:
            return fate
        clean_only = bool(flags & KPF.REFERENCED) and not flags & KPF.SWAPBACKED
    if flags & KPF.ANON and flags & KPF.SWAPBACKED and not flags & KPF.SWAPCACHE:
        if kernel.may_be_pinned(head):
            kernel.say("shrink_folio_list: may be pinned, kept")
            return Fate.KEPT
        if not _to_swap_cache(kernel, head, pieces):
            kernel.say("shrink_folio_list: no room in swap, or not to be split: activated")
            return Fate.ACTIVATED
    splits = kernel.order_of(head) and is_shmem(flags) and not kernel.rules.shmem_swaps_whole
    if splits and not split_shmem(kernel, head, pieces):
        return Fate.KEPT
    try_to_unmap(kernel, head)
    if kernel.mapcount(head) or kernel.may_be_pinned(head):
        return Fate.ACTIVATED
    fate = _pageout(kernel, head, pieces, clean_only=clean_only)
    return fate if fate is not None else _remove_mapping(kernel, head)


def _to_swap_cache(kernel: Kernel, head: int, pieces: list[int]) -> bool:
    """Slots for a folio: for all of a large one, or for its first page alone."""
    order = kernel.order_of(head)
    if not order:
        return add_to_swap(kernel, head)
    if kernel.refs(head) != kernel.mapcount(head) + 1:
        return False
    pages = range(head, head + (1 << order))
    entire = bool(kernel.f.entire[head])
    if kernel.rules.swaps_large_folios_by_entries:
        splits = not entire and not all(kernel.f.maps[page] for page in pages)
    else:
        splits = not entire
    if not splits and add_to_swap(kernel, head):
        return True
    if split_folio(kernel, head, held=1):
        return False
    if not splits:
        count_thp(kernel, order, "thp_swpout_fallback")
        count_mthp(kernel, order, "swpout_fallback")
    for piece in pages[1:]:
        if kernel.f.maps[piece]:
            kernel.get(piece)
            pieces.append(piece)
    return add_to_swap(kernel, head)


def _pageout(kernel: Kernel, head: int, pieces: list[int], *, clean_only: bool) -> Fate | None:
    """Write a dirty folio; None where it is clean afterwards."""
    flags = kernel.flags(head)
    if not flags & KPF.DIRTY:
        return None
    if not flags & (KPF.SWAPBACKED | KPF.ANON):
        # Left to the flusher, which does not run by itself.
        kernel.set_flags(head, int(KPF.RECLAIM))
        kernel.say("shrink_folio_list: a dirty page of a file, left to writeback")
        return Fate.ACTIVATED
    if not flags & (KPF.SWAPBACKED | KPF.SWAPCACHE):
        return Fate.KEPT  # MADV_FREE'd, and somebody holds it: try_to_unmap said so.
    if clean_only or kernel.refs(head) != 1 + (1 << kernel.order_of(head)):
        kernel.say(f"pageout: {kernel.refs(head)} references, kept")
        return Fate.KEPT
    if flags & KPF.SWAPCACHE:
        swap_writepage(kernel, head)
    elif not pageout_shmem(kernel, head, pieces):
        return Fate.ACTIVATED
    if kernel.flags(head) & (KPF.WRITEBACK | KPF.DIRTY):
        kernel.say("shrink_folio_list: not written yet, or not at all: stays in the swap cache")
        return Fate.KEPT
    return None


def _remove_mapping(kernel: Kernel, head: int) -> Fate:
    """__remove_mapping(): out of its cache, if nobody else holds it; the caller frees it."""
    flags = kernel.flags(head)
    if flags & KPF.PRIVATE and not flags & KPF.SWAPBACKED:
        detach_private(kernel, head)
    if flags & KPF.ANON and not flags & (KPF.SWAPBACKED | KPF.SWAPCACHE):
        if kernel.refs(head) != 1:
            return Fate.KEPT
        kernel.events["pglazyfreed"] += 1 << kernel.order_of(head)
        kernel.say("shrink_folio_list: MADV_FREE'd and clean, thrown away")
        return Fate.FREED
    if kernel.refs(head) != 1 + (1 << kernel.order_of(head)):
        return Fate.KEPT
    if flags & KPF.SWAPCACHE:
        drop_swap_cache(kernel, head, workingset_eviction(kernel, head))
        kernel.say("shrink_folio_list: in swap only")
        return Fate.FREED
    mapping = kernel.mappings[int(kernel.f.mapping[head])]
    if not flags & KPF.SWAPBACKED:
        set_cache_shadow(kernel, mapping, int(kernel.f.pgoff[head]), head)
    remove_folio(kernel, mapping, head)
    kernel.say("shrink_folio_list: clean, out of the page cache")
    return Fate.FREED


def _try_to_unmap_one(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pfn: int) -> bool:
    """One entry; False where the folio stays mapped."""
    if vma.flags & VM.LOCKED:
        mlock_vma_folio(kernel, vma, pfn)
        return False
    entry, head = mm.tables.entry(vpn), kernel.head(pfn)
    flags = kernel.flags(head)
    if not flags & KPF.ANON:
        file_entry_gone(kernel, vma, pfn, entry)
        marker = e.marker(e.Marker.UFFD_WP)
        mm.tables.set(vpn, marker if entry & e.UFFD_WP else e.NONE_ENTRY)
        drop_mapping(kernel, pfn)
        return True
    if entry & e.DIRTY:
        kernel.set_flags(head, int(KPF.DIRTY))
    if not flags & KPF.SWAPBACKED:
        if not _may_discard(kernel, vma, head):
            return False
        mm.tables.set(vpn, e.NONE_ENTRY)
        drop_mapping(kernel, pfn)
        return True
    if kernel.exclusive(pfn) and kernel.may_be_pinned(pfn):
        return False
    assert kernel.swap is not None
    slot = kernel.swap.slots[pfn]
    kernel.swap.counts[slot] += 1
    bits = e.EXCLUSIVE_SWAP if kernel.exclusive(pfn) else 0
    bits |= e.SOFT_DIRTY_SWAP if entry & e.SOFT_DIRTY else 0
    bits |= e.UFFD_WP_SWAP if entry & e.UFFD_WP else 0
    kernel.set_exclusive(pfn, False)
    mm.tables.set(vpn, e.not_present(e.SwapType.SWAP, slot, bits))
    drop_mapping(kernel, pfn)
    kernel.say("try_to_unmap_one: the entry names a slot of swap")
    return True


def _may_discard(kernel: Kernel, vma: Vma, head: int) -> bool:
    """MADV_FREE'd memory: it may go unless it was written again, or somebody else holds it."""
    dirty = bool(kernel.flags(head) & KPF.DIRTY) and not vma.flags & VM.DROPPABLE
    held = kernel.refs(head) != 1 + kernel.mapcount(head)
    if dirty or (held and kernel.rules.held_lazyfree_is_kept):
        kernel.relist(head, set_flags=int(KPF.SWAPBACKED))
        kernel.say("try_to_unmap_one: MADV_FREE'd, but written again or held: kept")
    return not (dirty or held)


def check_references(kernel: Kernel, head: int) -> Fate | None:
    """folio_check_references(): None where the folio may be reclaimed."""
    referenced = 0
    executable = False
    for pfn in kernel.pages_of(head):
        for mm, vma, vpn in tuple(mappings_of(kernel, pfn)):
            entry = mm.tables.entry(vpn)
            if vma.flags & VM.LOCKED:
                return Fate.ACTIVATED
            if entry & e.ACCESSED and has_recency(kernel, vma):
                referenced += 1
                executable |= bool(vma.flags & VM.EXEC)
            if entry & e.ACCESSED and not entry & e.HUGE:
                mm.tables.set(vpn, entry & ~e.ACCESSED)
    flags = kernel.flags(head)
    kernel.clear_flags(head, int(KPF.REFERENCED))
    if not referenced:
        return None
    kernel.set_flags(head, int(KPF.REFERENCED))
    is_file = not flags & KPF.SWAPBACKED
    if flags & KPF.REFERENCED or referenced > 1 or (executable and is_file):
        return Fate.ACTIVATED
    kernel.say("folio_check_references: touched since it was last looked at, a second chance")
    return Fate.KEPT

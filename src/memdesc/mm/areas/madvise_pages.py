"""Advice about pages themselves: what MADV_DONTNEED, MADV_FREE and MADV_COLD do to them.

`mm/madvise.c:madvise_dontneed_single_vma, madvise_free_pte_range,
madvise_cold_or_pageout_pte_range @6.12`.  Pages that go are unmapped at once; pages that may go,
or go first, are put into the CPU's batches and move on their lists when these are emptied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.faults.zap import zap_range
from memdesc.mm.frames import BATCH_LAZYFREE, TABLE_ENTRIES
from memdesc.mm.huge.huge_advice import (
    madvise_cold_huge_pmd,
    madvise_free_huge_pmd,
    madvise_large_folio,
)
from memdesc.mm.process import Errno, Mm, Process
from memdesc.mm.reclaim.mark_accessed import folio_deactivate
from memdesc.mm.reclaim.swap import zap_swap_entry
from memdesc.mm.reclaim.swap_state import free_swap_cache
from memdesc.mm.reclaim.workingset import note_advice

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["cold", "dontneed", "free", "mark_lazyfree"]

_OfEntries: TypeAlias = "Callable[[Kernel, Mm, Vma, int, int], int]"


def dontneed(
    kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int,
    *, locked: bool = False,
) -> None:  # fmt: skip
    """MADV_DONTNEED: unmap the pages, and leave the area. Raises Errno."""
    end = _dontneed_end(vma, vpn_start, vpn_end, locked=locked)
    if end <= vpn_start:
        return
    if kernel.rules.unmap_drains:
        kernel.drain()
    zap_range(kernel, process.mm, vma, vpn_start, end, drop_markers=False)
    kernel.say("madvise_dontneed_single_vma: unmapped, the area stays")
    if kernel.rules.frees_empty_tables:
        _free_empty_tables(process.mm, vpn_start, end)


def free(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """MADV_FREE: what the pages hold may be thrown away unless it is written again.

    Raises Errno.
    """
    _dontneed_end(vma, vpn_start, vpn_end, locked=False)
    if vma.flags & VM.HUGETLB or not vma.is_anonymous:
        raise Errno("EINVAL")
    _walk(kernel, process.mm, vma, vpn_start, vpn_end, madvise_free_huge_pmd, _free_at)


def cold(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """MADV_COLD: pages that nobody else maps are the first to go when memory is short.

    Raises Errno.
    """
    if vma.flags & (VM.LOCKED | VM.PFNMAP | VM.HUGETLB):
        raise Errno("EINVAL")
    _walk(kernel, process.mm, vma, vpn_start, vpn_end, madvise_cold_huge_pmd, _cold_at)


def mark_lazyfree(kernel: Kernel, pfn: int) -> None:
    """folio_mark_lazyfree(): takes effect when the CPU's batch is emptied."""
    head = kernel.head(pfn)
    flags = kernel.flags(head)
    wanted = KPF.ANON | KPF.SWAPBACKED | KPF.LRU
    if flags & wanted == wanted and not flags & (KPF.SWAPCACHE | KPF.UNEVICTABLE):
        kernel.batch(head, BATCH_LAZYFREE)
        kernel.say("folio_mark_lazyfree: may be dropped until it is written again")


# --- helpers -----------------------------------------------------------------------------


def _dontneed_end(vma: Vma, vpn_start: int, vpn_end: int, *, locked: bool) -> int:
    """madvise_dontneed_free_valid_vma(): how far the advice goes. Raises Errno."""
    if vma.flags & VM.HUGETLB:
        if vpn_start % TABLE_ENTRIES:
            raise Errno("EINVAL")
        return vpn_end - vpn_end % TABLE_ENTRIES
    if vma.flags & (VM.PFNMAP if locked else VM.PFNMAP | VM.LOCKED):
        raise Errno("EINVAL")
    return vpn_end


def _free_empty_tables(mm: Mm, vpn_start: int, vpn_end: int) -> None:
    """mm/pt_reclaim.c @7.2: whole tables of the range that are empty now."""
    for low, high, pmd in list(mm.tables.runs(vpn_start, vpn_end)):
        if high - low < TABLE_ENTRIES or pmd.table is None or pmd.huge:
            continue
        mm.tables.free_empty(low)


def _walk(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int,
    at_pmd: _OfEntries, at_entry: _OfEntries,
) -> None:  # fmt: skip
    """Every entry of a range: `at_pmd` is false where a huge page was split, `at_entry` says how
    many pages it was about, 0 where it wants to look again."""
    kernel.drain()
    for low, high, pmd in mm.tables.runs(vpn_start, vpn_end):
        if pmd.huge and at_pmd(kernel, mm, vma, low, high):
            continue
        vpn = low
        while vpn < high:
            vpn += at_entry(kernel, mm, vma, vpn, high)


def _folio_at(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, vpn_end: int) -> tuple[int, int]:
    """(first frame of the folio at a present entry, how many of its pages come with it).

    (-1, pages) where the folio is left alone, (-1, 0) where it was split.
    """
    head = kernel.head(e.pfn_of(mm.tables.entry(vpn)))
    if not kernel.order_of(head):
        return head, 1
    count = madvise_large_folio(kernel, mm, vpn, vpn_end)
    return (head, count) if count > 0 else (-1, 0 if not count else 1)


def _free_at(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, vpn_end: int) -> int:
    """MADV_FREE at one entry; how many pages it was about."""
    entry = mm.tables.entry(vpn)
    if entry == e.NONE_ENTRY:
        return 1
    if not e.is_present(entry):
        if _goes_with_free(entry) and zap_swap_entry(kernel, vma, entry, even_cows=True):
            mm.tables.set(vpn, e.NONE_ENTRY)
        return 1
    if entry & e.SPECIAL:
        return 1
    head, count = _folio_at(kernel, mm, vma, vpn, vpn_end)
    if head < 0:
        return count
    flags = kernel.flags(head)
    if flags & (KPF.SWAPCACHE | KPF.DIRTY):
        if kernel.mapcount(head) != 1 << kernel.order_of(head):
            kernel.say("madvise_free: dirty and mapped by others too, left alone")
            return count
        if flags & KPF.SWAPCACHE:
            free_swap_cache(kernel, head)
            if kernel.flags(head) & KPF.SWAPCACHE:
                return count
        kernel.clear_flags(head, int(KPF.DIRTY))
    _clear_bits(mm, vpn, count, e.ACCESSED | e.DIRTY)
    mark_lazyfree(kernel, head)
    return count


def _goes_with_free(entry: int) -> bool:
    """What is swapped out or lost goes with MADV_FREE; guards and moving pages stay."""
    kind = e.swap_type(entry)
    if kind is e.SwapType.MARKER:
        return e.swap_offset(entry) == e.Marker.POISONED
    return kind is not e.SwapType.MIGRATION


def _cold_at(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, vpn_end: int) -> int:
    """MADV_COLD at one entry; how many pages it was about."""
    entry = mm.tables.entry(vpn)
    if not e.is_present(entry) or entry & e.SPECIAL:
        return 1
    head, count = _folio_at(kernel, mm, vma, vpn, vpn_end)
    if head < 0:
        return count
    flags = kernel.flags(head)
    if not flags & KPF.LRU or kernel.mapcount(head) != 1 << kernel.order_of(head):
        return count
    _clear_bits(mm, vpn, count, e.ACCESSED)
    kernel.clear_flags(head, int(KPF.REFERENCED))
    note_advice(kernel, head)
    folio_deactivate(kernel, head)
    return count


def _clear_bits(mm: Mm, vpn: int, count: int, bits: int) -> None:
    for page in range(vpn, vpn + count):
        mm.tables.set(page, mm.tables.entry(page) & ~bits)

"""Folios of several pages: small ones at a fault, splitting, and splitting later.

`mm/memory.c:alloc_anon_folio`, `mm/huge_memory.c:split_huge_page_to_list_to_order,
deferred_split_folio, deferred_split_scan`, `mm/rmap.c:__folio_remove_rmap` @6.12.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock_batch import drain, mlock_vma_folio, munlock_vma_folio
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.faults.new_folio import marked_by_area, new_anon_folio
from memdesc.mm.frames import BATCH_ADD, Kind
from memdesc.mm.huge.file_split import split_file_folio
from memdesc.mm.huge.large_folio_loops import split_columns
from memdesc.mm.huge.thp_orders import PMD_ORDER, suitable_orders
from memdesc.mm.huge.thp_stats import PARTIALLY_MAPPED, count_mthp, count_thp
from memdesc.mm.mm_ids import inherit, maybe_mapped_shared, was_noted
from memdesc.mm.process import Mm, OutOfMemory
from memdesc.mm.reclaim.swap_state import free_page_and_swap_cache
from memdesc.mm.rmap import mappings_of
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "can_split_folio", "deferred_split", "deferred_split_scan", "likely_mapped_shared",
    "map_anon_folio", "page_unmapped", "pmd_unmapped", "split_folio", "try_large_anon",
]  # fmt: skip

_DEFERRED: Final = 1 << 60
"""Of `Frames.flags`, above what /proc/kpageflags has: the folio is on the deferred split list."""


def try_large_anon(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> bool:
    """alloc_anon_folio() with an order above 0, and its mapping: whether it was done.

    The largest allowed order whose entries are all empty is tried, then smaller ones.
    """
    tables = mm.tables
    for order in suitable_orders(kernel, mm, vma, vpn):
        low = vpn >> order << order
        pages = range(1 << order)
        if any(tables.entry(low + page) for page in pages):
            continue
        try:
            pfn = new_anon_folio(kernel, vma, low, order)
        except OutOfMemory:
            count_mthp(kernel, order, "anon_fault_fallback")
            kernel.say(f"alloc_anon_folio: no {1 << order} pages are free, a smaller size is tried")
            continue
        count_mthp(kernel, order, "anon_fault_alloc")
        map_anon_folio(kernel, mm, vma, low, pfn)
        kernel.say(f"do_anonymous_page: written, a folio of {len(pages)} pages")
        return True
    return False


def map_anon_folio(kernel: Kernel, mm: Mm, vma: Vma, low: int, pfn: int) -> None:
    """map_anon_folio_pte_nopf(): a new large folio, mapped by an entry per page."""
    write = e.RW | e.DIRTY if vma.flags & VM.WRITE else 0
    bits = e.ACCESSED | e.SOFT_DIRTY | write
    for page, vpn in enumerate(range(low, low + (1 << kernel.order_of(pfn))), pfn):
        kernel.f.maps[page] = 1
        kernel.set_exclusive(page, True)
        mm.tables.set(vpn, e.present(page, bits))
    kernel.get(pfn, (1 << kernel.order_of(pfn)) - 1)
    kernel.batch(pfn, BATCH_ADD)
    marked_by_area(kernel, vma, pfn)


# --- splitting -----------------------------------------------------------------------------


def split_folio(
    kernel: Kernel, pfn: int, new_order: int = 0, *, held: int = 0, evenly: bool = True
) -> str:
    """split_huge_page_to_order(): pieces of 2^new_order, or why not, as an errno's name.

    `held`: references of the caller to the folio; they stay with the piece that has the page
    `pfn`. `evenly` False: only that piece is so small, the others as large as they may be
    (folio_split). Pieces that nobody maps are freed.
    """
    head = kernel.head(pfn)
    flags = kernel.flags(head)
    order = kernel.order_of(head)
    if new_order >= order or (new_order == 1 and flags & KPF.ANON):
        return "EINVAL"
    if flags & (KPF.WRITEBACK | KPF.ZERO_PAGE):
        return "EBUSY"
    if not flags & KPF.ANON:
        return split_file_folio(kernel, pfn, new_order, held=held, evenly=evenly)
    failed = "" if can_split_folio(kernel, head, held=held) else "EAGAIN"
    failed = failed or _split_anon(kernel, pfn, new_order, held=held, evenly=evenly)
    count_thp(kernel, order, "thp_split_page_failed" if failed else "thp_split_page")
    count_mthp(kernel, order, "split_failed" if failed else "split")
    return failed


def can_split_folio(kernel: Kernel, head: int, *, held: int = 0) -> bool:
    """Whether nobody holds an anonymous folio beside its mappings, the swap cache and the caller.

    `mm/huge_memory.c:can_split_folio @6.12`.
    """
    cached = 1 << kernel.order_of(head) if kernel.flags(head) & KPF.SWAPCACHE else 0
    if kernel.refs(head) == kernel.mapcount(head) + cached + held:
        return True
    kernel.say("can_split_folio: somebody else holds it")
    return False


def likely_mapped_shared(kernel: Kernel, pfn: int) -> bool:
    """Whether more than one process seems to map a page's folio.

    6.1 looks at this page's map count (page_mapcount), 6.12 guesses by the first page's
    (folio_likely_mapped_shared), 7.2 knows (folio_maybe_mapped_shared).
    """
    head = kernel.head(pfn)
    total = kernel.mapcount(head)
    order = kernel.order_of(head)
    f = kernel.f
    if not order:
        return total > 1
    if kernel.rules.knows_who_maps_large:
        return maybe_mapped_shared(kernel, pfn)
    if not kernel.rules.small_folios_only_reuse:
        return int(f.maps[pfn]) + int(f.entire[head]) > 1
    if total <= 1:
        return False
    return bool(f.entire[head]) or total > 1 << order or f.maps[head] > 1


# --- splitting later -------------------------------------------------------------------------


def deferred_split(kernel: Kernel, pfn: int, *, partially: bool) -> None:
    """deferred_split_folio(): the shrinker will look at it."""
    if kernel.order_of(pfn) <= 1:
        return
    head = kernel.head(pfn)
    fresh = partially and not kernel.f.flags[head] & PARTIALLY_MAPPED
    kernel.f.flags[head] |= _DEFERRED | (PARTIALLY_MAPPED if partially else 0)
    if fresh:
        count_thp(kernel, kernel.order_of(head), "thp_deferred_split_page")
        count_mthp(kernel, kernel.order_of(head), "split_deferred")
    if partially:
        kernel.say("deferred_split_folio: partly unmapped, memory pressure will split it")


def page_unmapped(kernel: Kernel, pfn: int) -> None:
    """An entry of the lowest level that mapped a page of a large folio is gone."""
    head = kernel.head(pfn)
    if kernel.f.maps[pfn] or kernel.f.entire[head] or not kernel.flags(head) & KPF.ANON:
        return
    if kernel.mapcount(head):
        deferred_split(kernel, head, partially=True)


def pmd_unmapped(kernel: Kernel, head: int) -> None:
    """A PMD that mapped a folio is gone: others may still map some of its pages by entries."""
    if kernel.f.entire[head]:
        return
    mapped = sum(bool(kernel.f.maps[page]) for page in kernel.pages_of(head))
    if 0 < mapped < 1 << kernel.order_of(head):
        deferred_split(kernel, head, partially=True)


def deferred_split_scan(kernel: Kernel) -> None:
    """The shrinker: split what is partly unmapped, and huge pages of which little is used.

    A folio that is in full use leaves the list; one that cannot be split now stays on it only if
    it is partly unmapped.
    """
    flags = array(kernel.f.flags)
    listed = np.flatnonzero((flags & _DEFERRED != 0) & (array(kernel.f.kind) == Kind.FOLIO))
    for head in listed.tolist():
        partially = bool(flags[head] & PARTIALLY_MAPPED)
        if not partially and not _is_underused(kernel, head):
            flags[head] &= ~_DEFERRED
            continue
        failed = split_folio(kernel, head)
        if failed and not partially:
            flags[head] &= ~_DEFERRED
        if not failed and not partially:
            kernel.events["thp_underused_split_page"] += 1


# --- helpers -----------------------------------------------------------------------------


def _split_anon(kernel: Kernel, pfn: int, new_order: int, *, held: int, evenly: bool) -> str:
    """The split itself (`__split_unmapped_folio`), and what the pieces become."""
    head, order = kernel.head(pfn), kernel.order_of(pfn)
    cached = bool(kernel.flags(head) & KPF.SWAPCACHE)
    _unmap_folio(kernel, head)
    noted = was_noted(kernel, head)
    if not kernel.machine.split(head, new_order if evenly else _halves(order, new_order)):
        return "ENOMEM"
    kernel.f.flags[head] &= ~(_DEFERRED | PARTIALLY_MAPPED)
    split_columns(kernel.f, head, new_order if evenly else _halves(order, new_order))
    while (left := kernel.order_of(pfn)) > new_order:
        part, smaller = kernel.head(pfn), _halves(left, new_order)
        if not kernel.machine.split(part, smaller):
            raise AssertionError("no memory for the descriptors of the pieces")
        split_columns(kernel.f, part, smaller)
    pieces = [page for page in range(head, head + (1 << order)) if kernel.head(page) == page]
    for piece in pieces[1:]:
        # A new head begins without flags of its own; a mapping brings AnonExclusive back.
        if not kernel.f.maps[piece]:
            kernel.set_exclusive(piece, False)
    if noted:
        inherit(kernel, head, [piece for piece in pieces if kernel.order_of(piece)])
    kernel.say(f"__folio_split: {len(pieces)} folios")
    drops = kernel.rules.split_drops_zero_pages
    for piece in pieces:
        # The split holds each piece until all is done with it; the caller's stays held.
        size = 1 << kernel.order_of(piece)
        kernel.get(piece, 1 + (size if cached else 0))
        if size == 1:
            _map_piece(kernel, piece, drops_zeroes=drops)
        if piece <= pfn < piece + size:
            kernel.get(piece, held)
        if cached:
            free_page_and_swap_cache(kernel, piece)
        else:
            kernel.put(piece)
    return ""


def _halves(order: int, new_order: int) -> int:
    """The order of the halves of an anonymous folio; there are none of two pages."""
    return new_order if order - 1 == 1 else order - 1


def _unmap_folio(kernel: Kernel, head: int) -> None:
    """unmap_folio(): every PMD that maps the folio becomes 512 entries; dirt moves to the folio."""
    from memdesc.mm.huge.huge_memory import split_pmds

    by_entries = [
        (vma, page)
        for page in kernel.pages_of(head)
        for mm, vma, vpn in mappings_of(kernel, page)
        if vma.flags & VM.LOCKED and not mm.tables.entry(vpn) & e.HUGE
    ]
    split_pmds(kernel, head)
    for vma, page in by_entries:
        munlock_vma_folio(kernel, vma, page)
    if kernel.flags(head) & KPF.DIRTY:
        return
    for page in kernel.pages_of(head):
        if any(mm.tables.entry(vpn) & e.DIRTY for mm, _, vpn in mappings_of(kernel, page)):
            kernel.set_flags(head, int(KPF.DIRTY))
            return


def _map_piece(kernel: Kernel, pfn: int, *, drops_zeroes: bool) -> None:
    """remove_migration_ptes() of a small piece, one area after another.

    Areas that are locked lock it again (folio_add_anon_rmap_pte); a piece of zeroes is not kept in
    others, unless one before them has locked it (try_to_map_unused_to_zeropage).
    """
    drops = drops_zeroes and not kernel.f.content[pfn]
    for mm, vma, vpn in list(mappings_of(kernel, pfn)):
        if vma.flags & VM.LOCKED:
            mlock_vma_folio(kernel, vma, pfn)
            drain(kernel)
            continue
        if not drops or kernel.flags(pfn) & (KPF.MLOCKED | KPF.HWPOISON | KPF.SWAPCACHE):
            continue
        mm.tables.set(vpn, e.present(kernel.zero_pfn, e.SPECIAL | e.ACCESSED))
        kernel.f.maps[pfn] -= 1
        kernel.put(pfn)


def _is_underused(kernel: Kernel, head: int) -> bool:
    """thp_underused(): more pages of zeroes than max_ptes_none."""
    limit = int(kernel.knobs["max_ptes_none"])
    order = kernel.order_of(head)
    if not kernel.rules.split_drops_zero_pages or order < PMD_ORDER or limit == (1 << order) - 1:
        return False
    content = array(kernel.f.content)[head : head + (1 << order)]
    return int((content == 0).sum()) > limit

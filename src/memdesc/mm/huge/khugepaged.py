"""Collapsing small pages into a huge one: MADV_COLLAPSE, and khugepaged's pass over everything.

`mm/khugepaged.c:hpage_collapse_scan_pmd, __collapse_huge_page_isolate, collapse_huge_page,
madvise_collapse, madvise_collapse_errno @6.12`.  khugepaged wants the settings' permission, a page
that was used lately, and obeys three limits; MADV_COLLAPSE wants none of these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM_UFFD, Vma
from memdesc.mm.faults.zap import drop_mapping
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.mm.huge.huge_memory import map_huge_pmd, new_huge_folio
from memdesc.mm.huge.large_folio import likely_mapped_shared
from memdesc.mm.huge.shmem_huge import collapse_allowed
from memdesc.mm.huge.thp_orders import PMD_ORDER, collapse_orders
from memdesc.mm.process import Errno, Mm, OutOfMemory
from memdesc.mm.reclaim.swap import do_swap_page
from memdesc.mm.reclaim.swap_state import free_swap_cache
from memdesc.mm.rmap import anon_vma_prepare
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["Scan", "can_be_taken", "khugepaged_pass", "madvise_collapse", "take_contents"]


class Scan(Enum):
    """enum scan_result, and what MADV_COLLAPSE makes of it."""

    FAIL = "it cannot be"
    SUCCEED = "collapsed"
    PMD_NONE = "nothing was ever there"
    PMD_MAPPED = "huge already"
    EXCEED_NONE_PTE = "more empty entries than max_ptes_none"
    EXCEED_SWAP_PTE = "more swapped pages than max_ptes_swap"
    EXCEED_SHARED_PTE = "more shared pages than max_ptes_shared"
    PTE_NON_PRESENT = "an entry is not present"
    PTE_UFFD_WP = "userfaultfd protects a page"
    PAGE_RO = "no entry is writable"
    LACK_REFERENCED_PAGE = "no page was used lately"
    PAGE_NULL = "an entry without a page"
    PAGE_ANON = "a page that is not anonymous"
    PAGE_COUNT = "somebody else holds a page"
    PAGE_LRU = "a page is on no list"
    PAGE_LOCK = "one page stands there twice, and is locked already"
    ALLOC_HUGE_PAGE_FAIL = "no huge page is free"
    PTE_MAPPED_HUGEPAGE = "the file has a huge page there"
    PMD_NULL = "there is no table for a PMD"
    VMA_CHECK = "the area may have no huge page there"
    TRUNCATED = "the file has nothing there"
    PAGE_COMPOUND = "a large folio, but no huge page"
    DEL_PAGE_LRU = "a page that came just now is on no list"
    PAGE_DIRTY_OR_WRITEBACK = "a page of a file is dirty"


_GO_ON: Final = frozenset(
    (
        Scan.PTE_NON_PRESENT, Scan.PTE_UFFD_WP, Scan.PAGE_RO, Scan.LACK_REFERENCED_PAGE,
        Scan.PAGE_NULL, Scan.PAGE_COUNT, Scan.PAGE_LRU, Scan.PAGE_LOCK, Scan.PMD_NULL,
        Scan.PAGE_COMPOUND, Scan.DEL_PAGE_LRU,
    )
)  # fmt: skip
"""After these MADV_COLLAPSE goes on with the next 2 MiB; others end it."""
_ERRNO: Final = {
    Scan.ALLOC_HUGE_PAGE_FAIL: "ENOMEM",
    Scan.EXCEED_NONE_PTE: "EBUSY",
    Scan.PAGE_COUNT: "EAGAIN",
    Scan.PAGE_LRU: "EAGAIN",
    Scan.PAGE_LOCK: "EAGAIN",
    Scan.DEL_PAGE_LRU: "EAGAIN",
    Scan.PAGE_DIRTY_OR_WRITEBACK: "EAGAIN",
}
"""madvise_collapse_errno(); EINVAL for all others."""


@dataclass(frozen=True, slots=True)
class _Limits:
    """khugepaged's settings."""

    none: int
    swap: int
    shared: int


def madvise_collapse(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """MADV_COLLAPSE of the part of a range that one area has. Raises Errno.

    It is fine if every aligned 2 MiB inside the range is huge afterwards; none inside is fine too.
    """
    if not collapse_allowed(kernel, mm, vma, sysfs=False) or not _has_room(vma):
        raise Errno("EINVAL")
    kernel.drain()
    first = -(-vpn_start // TABLE_ENTRIES) * TABLE_ENTRIES
    end = vpn_end // TABLE_ENTRIES * TABLE_ENTRIES
    huge, last = 0, Scan.FAIL
    for low in range(first, end, TABLE_ENTRIES):
        result = _collapse(kernel, mm, vma, low, None)
        if result in (Scan.SUCCEED, Scan.PMD_MAPPED):
            huge += 1
            continue
        last = result
        if result not in _GO_ON:
            break
    if huge * TABLE_ENTRIES != end - first:
        busy = last is not Scan.EXCEED_NONE_PTE or kernel.rules.collapse_of_holes_is_busy
        raise Errno(_ERRNO.get(last, "EINVAL") if busy else "EINVAL")


def khugepaged_pass(kernel: Kernel) -> None:
    """khugepaged looks at every address space that is registered, once."""
    knobs = kernel.knobs
    limits = _Limits(
        int(knobs["max_ptes_none"]), int(knobs["max_ptes_swap"]), int(knobs["max_ptes_shared"])
    )
    kernel.drain()
    for process in kernel.processes.values():
        if not process.mm.khugepaged:
            continue
        for vma in process.mm.vmas:
            allowed = collapse_allowed(kernel, process.mm, vma, sysfs=True)
            if not allowed and not collapse_orders(kernel, process.mm, vma):
                continue
            first = -(-vma.vpn_start // TABLE_ENTRIES) * TABLE_ENTRIES
            for low in range(first, vma.vpn_end - TABLE_ENTRIES + 1, TABLE_ENTRIES):
                _collapse(kernel, process.mm, vma, low, limits)


# --- helpers -----------------------------------------------------------------------------


def _has_room(vma: Vma) -> bool:
    """Whether any aligned 2 MiB lies in the area."""
    return -(-vma.vpn_start // TABLE_ENTRIES) < vma.vpn_end // TABLE_ENTRIES


def _collapse(kernel: Kernel, mm: Mm, vma: Vma, low: int, limits: _Limits | None) -> Scan:
    """One aligned 2 MiB. `limits`: of khugepaged; None for MADV_COLLAPSE."""
    if vma.file is not None:
        from memdesc.mm.huge.collapse_file import collapse_file_range

        of_file = None if limits is None else (limits.none, limits.swap)
        return collapse_file_range(kernel, mm, vma, low, of_file)
    pmd = mm.tables.pmd_of(low)
    result = Scan.PMD_NONE
    if pmd is not None and pmd.huge:
        result = Scan.PMD_MAPPED
    elif pmd is not None and pmd.table is not None:
        result = _scan_and_collapse(kernel, mm, vma, low, limits)
    kernel.say(f"hpage_collapse_scan_pmd: {result.value}")
    return result


def _scan_and_collapse(kernel: Kernel, mm: Mm, vma: Vma, low: int, limits: _Limits | None) -> Scan:
    """Entries of a table: what a scan allows. Only khugepaged makes folios that are smaller."""
    orders = collapse_orders(kernel, mm, vma) if limits is not None else frozenset()
    if limits is None or not orders:
        result = _scan(kernel, mm, vma, low, limits)
        return _collapse_huge_page(kernel, mm, vma, low) if result is Scan.SUCCEED else result
    from memdesc.mm.huge.mthp_collapse import mthp_collapse

    result = _scan(kernel, mm, vma, low, replace(limits, none=TABLE_ENTRIES - 1))
    if result is not Scan.SUCCEED:
        return result
    if collapse_allowed(kernel, mm, vma, sysfs=True):
        orders |= {PMD_ORDER}
    return mthp_collapse(
        kernel, mm, vma, low, orders, limits.none,
        lambda: _collapse_huge_page(kernel, mm, vma, low),
    )  # fmt: skip


def _scan(kernel: Kernel, mm: Mm, vma: Vma, low: int, limits: _Limits | None) -> Scan:
    """hpage_collapse_scan_pmd(): whether all entries of a table may go into a huge page."""
    none = swapped = shared = referenced = 0
    writable = False
    for vpn in range(low, low + TABLE_ENTRIES):
        entry = mm.tables.entry(vpn)
        if entry != e.NONE_ENTRY and not e.is_present(entry):
            swapped += 1
            if limits is not None and swapped > limits.swap:
                return Scan.EXCEED_SWAP_PTE
            if entry & e.UFFD_WP_SWAP or e.swap_type(entry) is e.SwapType.MARKER:
                return Scan.PTE_UFFD_WP
            continue
        if entry == e.NONE_ENTRY or e.pfn_of(entry) == kernel.zero_pfn:
            none += 1
            armed = vma.flags & VM_UFFD
            if armed or (limits is not None and none > limits.none):
                return Scan.EXCEED_NONE_PTE
            continue
        if entry & e.UFFD_WP:
            return Scan.PTE_UFFD_WP
        writable |= bool(entry & e.RW)
        result = can_be_taken(kernel, entry)
        if result is not Scan.SUCCEED:
            return result
        pfn = e.pfn_of(entry)
        shared += likely_mapped_shared(kernel, pfn)
        if limits is not None and shared > limits.shared:
            return Scan.EXCEED_SHARED_PTE
        referenced += bool(entry & e.ACCESSED or kernel.flags(pfn) & KPF.REFERENCED)
    if kernel.rules.collapse_wants_writable and not writable:
        return Scan.PAGE_RO
    if limits is not None and (not referenced or (swapped and referenced < TABLE_ENTRIES // 2)):
        return Scan.LACK_REFERENCED_PAGE
    return Scan.SUCCEED


def can_be_taken(kernel: Kernel, entry: int) -> Scan:
    """One page that is present: whether it could be taken out."""
    if entry & e.SPECIAL:
        return Scan.PAGE_NULL
    head = kernel.head(e.pfn_of(entry))
    flags = kernel.flags(head)
    if not flags & KPF.ANON:
        return Scan.PAGE_ANON
    if not flags & KPF.LRU:
        return Scan.PAGE_LRU
    cached = 1 << kernel.order_of(head) if flags & KPF.SWAPCACHE else 0
    if kernel.refs(head) != kernel.mapcount(head) + cached:
        return Scan.PAGE_COUNT
    return Scan.SUCCEED


def _collapse_huge_page(kernel: Kernel, mm: Mm, vma: Vma, low: int) -> Scan:
    """collapse_huge_page(): a new folio with the contents of all; the table is deposited."""
    anon_vma_prepare(kernel, mm, vma)
    pfn = new_huge_folio(kernel, vma, low)
    if pfn is None:
        return Scan.ALLOC_HUGE_PAGE_FAIL
    kernel.events["thp_collapse_alloc"] += 1
    try:
        result = _swap_in(kernel, mm, vma, low)
    except OutOfMemory:
        result = Scan.FAIL
    if result is Scan.SUCCEED:
        result = _isolate(kernel, mm, low)
    if result is not Scan.SUCCEED:
        kernel.put(pfn)
        return result
    take_contents(kernel, mm, low, pfn, TABLE_ENTRIES)
    map_huge_pmd(kernel, mm, vma, low, pfn)
    return Scan.SUCCEED


def take_contents(kernel: Kernel, mm: Mm, low: int, pfn: int, pages: int) -> None:
    """__collapse_huge_page_copy(): the new folio gets what all pages hold, which are given up."""
    content = array(kernel.f.content)
    old: list[int] = []
    for page in range(pages):
        entry = mm.tables.entry(low + page)
        if entry != e.NONE_ENTRY and not entry & e.SPECIAL:
            content[pfn + page] = content[e.pfn_of(entry)]
            old.append(e.pfn_of(entry))
        mm.tables.set(low + page, e.NONE_ENTRY)
    for page in old:
        if kernel.flags(page) & KPF.SWAPCACHE:
            free_swap_cache(kernel, page)
        drop_mapping(kernel, page)


def _isolate(kernel: Kernel, mm: Mm, low: int) -> Scan:
    """__collapse_huge_page_isolate(): each folio is locked; a small one cannot be locked twice."""
    locked: set[int] = set()
    for vpn in range(low, low + TABLE_ENTRIES):
        entry = mm.tables.entry(vpn)
        if not e.is_present(entry) or entry & e.SPECIAL:
            continue
        head = kernel.head(e.pfn_of(entry))
        if head in locked and not kernel.order_of(head):
            return Scan.PAGE_LOCK
        locked.add(head)
    return Scan.SUCCEED


def _swap_in(kernel: Kernel, mm: Mm, vma: Vma, low: int) -> Scan:
    """__collapse_huge_page_swapin(), and a second look at what came."""
    for vpn in range(low, low + TABLE_ENTRIES):
        entry = mm.tables.entry(vpn)
        if entry == e.NONE_ENTRY or e.is_present(entry):
            continue
        if e.swap_type(entry) is not e.SwapType.SWAP:
            return Scan.PTE_NON_PRESENT
        do_swap_page(kernel, mm, vma, vpn, entry, write=False)
        kernel.drain()
        result = can_be_taken(kernel, mm.tables.entry(vpn))
        if result is not Scan.SUCCEED:
            return result
    return Scan.SUCCEED

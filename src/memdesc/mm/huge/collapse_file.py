"""Collapsing pages of a file into a huge page of the page cache.

`mm/khugepaged.c:hpage_collapse_scan_file, collapse_file, retract_page_tables,
collapse_pte_mapped_thp @6.1, @6.12; collapse_scan_file, try_collapse_pte_mapped_thp @7.2`.  Other
than with anonymous memory it does not matter who maps the pages: all mappings go, the contents are
copied to a huge page that takes the place of the small ones, and faults map it.  Tables that are
empty then are freed, so that a PMD can map it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock_batch import munlock_vma_folio
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.faults.zap import drop_mapping
from memdesc.mm.files.inode import AddressSpace, OpenFile
from memdesc.mm.files.page_cache import detach_private, read_page
from memdesc.mm.files.shmem import shmem_get_page
from memdesc.mm.files.writeback import filemap_fdatawait, filemap_fdatawrite
from memdesc.mm.frames import BATCH_ADD, TABLE_ENTRIES
from memdesc.mm.huge.file_pmd import set_file_pmd, unmap_file_folio
from memdesc.mm.huge.khugepaged import Scan
from memdesc.mm.huge.shmem_huge import collapse_allowed
from memdesc.mm.huge.thp_orders import PMD_ORDER
from memdesc.mm.page_tables import PMD_SHIFT
from memdesc.mm.process import Errno, OutOfMemory
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.process import Mm

__all__ = ["collapse_file_range"]


def collapse_file_range(
    kernel: Kernel, mm: Mm, vma: Vma, low: int, limits: tuple[int, int] | None
) -> Scan:
    """One aligned 2 MiB of an area that maps a file.

    `limits`: khugepaged's for empty and for swapped pages; None for MADV_COLLAPSE.
    """
    assert vma.file is not None
    file: OpenFile = vma.file
    start = vma.index_of(low)
    result = _scan_file(kernel, mm, file, start, low, limits)
    if result is Scan.PAGE_DIRTY_OR_WRITEBACK and limits is None:
        filemap_fdatawrite(kernel, file.mapping, start, start + TABLE_ENTRIES)
        filemap_fdatawait(kernel, file.mapping, start, start + TABLE_ENTRIES)
        kernel.say("collapse_single_pmd: dirty pages are written back, then once more")
        result = _scan_file(kernel, mm, file, start, low, limits)
    if result is Scan.PTE_MAPPED_HUGEPAGE:
        result = _collapse_pte_mapped(kernel, mm, low, install=limits is None)
    kernel.say(f"hpage_collapse_scan_file: {result.value}")
    return result


# --- helpers -----------------------------------------------------------------------------


def _scan_file(
    kernel: Kernel, mm: Mm, file: OpenFile, start: int, low: int, limits: tuple[int, int] | None
) -> Scan:
    """hpage_collapse_scan_file(): whether the cached pages may go into a huge page."""
    mapping = file.mapping
    present = swapped = 0
    index = start
    while index < start + TABLE_ENTRIES:
        pfn = mapping.pages.get(index)
        if pfn is None:
            swapped += index in mapping.swapped
            if limits is not None and swapped > limits[1]:
                return Scan.EXCEED_SWAP_PTE
            index += 1
            continue
        head = kernel.head(pfn)
        order = kernel.order_of(head)
        if order == PMD_ORDER:
            return Scan.PTE_MAPPED_HUGEPAGE
        if order and not kernel.rules.collapses_large_folios_of_files:
            return Scan.PAGE_COMPOUND
        flags = kernel.flags(head)
        if not flags & KPF.LRU:
            return Scan.PAGE_LRU
        expected = kernel.mapcount(head) + (1 << order) + bool(flags & KPF.PRIVATE)
        if kernel.refs(head) != expected:
            return Scan.PAGE_COUNT
        present += 1 << order
        index += 1 << order
    if limits is not None and present < TABLE_ENTRIES - limits[0]:
        return Scan.EXCEED_NONE_PTE
    return _collapse_file(kernel, mm, file, start, low, asked=limits is None)


def _collapse_file(
    kernel: Kernel, mm: Mm, file: OpenFile, start: int, low: int, *, asked: bool
) -> Scan:
    """collapse_file(): a huge page with the contents of all takes their place.

    Pages that were unmapped before it failed stay so. `asked`: by MADV_COLLAPSE.
    """
    mapping = file.mapping
    try:
        pfn = kernel.alloc_folio(mapping.fs.kind, PMD_ORDER, index=start)
    except OutOfMemory:
        return Scan.ALLOC_HUGE_PAGE_FAIL
    kernel.events["thp_collapse_alloc"] += 1
    result, old = _take_pages(kernel, file, start)
    holes = TABLE_ENTRIES - sum(1 << kernel.order_of(head) for head in old)
    if result is Scan.SUCCEED and holes and _missing_is_watched(mapping, start):
        result = Scan.EXCEED_NONE_PTE
    if result is not Scan.SUCCEED:
        kernel.put(pfn)
        return result
    content = array(kernel.f.content)
    content[pfn : pfn + TABLE_ENTRIES] = 0
    for head in old:
        at = pfn + int(kernel.f.pgoff[head]) - start
        pages = 1 << kernel.order_of(head)
        content[at : at + pages] = content[head : head + pages]
        _leave_cache(kernel, mapping, head)
    for page in range(TABLE_ENTRIES):
        mapping.pages[start + page] = pfn + page
    flags = KPF.UPTODATE | (KPF.SWAPBACKED | KPF.DIRTY if mapping.is_shmem else 0)
    kernel.set_flags(pfn, int(flags))
    kernel.f.mapping[pfn] = mapping.number
    kernel.get(pfn, TABLE_ENTRIES - 1)
    kernel.batch(pfn, BATCH_ADD)
    kernel.say("collapse_file: a huge page in the place of all")
    return _retract_page_tables(kernel, mm, mapping, start, low, asked=asked)


def _take_pages(kernel: Kernel, file: OpenFile, start: int) -> tuple[Scan, list[int]]:
    """The folios of a range, unmapped; why it went no further."""
    mapping = file.mapping
    old: list[int] = []
    end = start + TABLE_ENTRIES
    index = start
    while index < end:
        pfn = mapping.pages.get(index)
        if mapping.is_shmem and pfn is None and index not in mapping.swapped:
            if index == start and not _has_any(mapping, start, end):
                return Scan.TRUNCATED, old
            index += 1
            continue
        result = _bring(kernel, file, index)
        if result is not Scan.SUCCEED:
            return result, old
        head = kernel.head(mapping.pages[index])
        order = kernel.order_of(head)
        if order == PMD_ORDER:
            return Scan.PTE_MAPPED_HUGEPAGE, old
        if order and not kernel.rules.collapses_large_folios_of_files:
            return Scan.PAGE_COMPOUND, old
        if not kernel.flags(head) & KPF.LRU:
            return Scan.DEL_PAGE_LRU, old
        detach_private(kernel, head)
        unmap_file_folio(kernel, head)
        if kernel.mlock.waiting:
            kernel.drain()
        if kernel.refs(head) != 1 << order:
            return Scan.PAGE_COUNT, old
        if not mapping.is_shmem and kernel.flags(head) & KPF.DIRTY:
            return Scan.PAGE_DIRTY_OR_WRITEBACK, old
        old.append(head)
        index += 1 << order
    return Scan.SUCCEED, old


def _bring(kernel: Kernel, file: OpenFile, index: int) -> Scan:
    """The page at an index with its content in the cache: read, swapped in or zeroed."""
    mapping = file.mapping
    pfn = mapping.pages.get(index)
    if not mapping.is_shmem:
        if pfn is None:
            try:
                read_page(kernel, mapping, index)
            except Errno:
                return Scan.FAIL
            kernel.drain()
            return Scan.SUCCEED
        dirty = kernel.flags(pfn) & (KPF.DIRTY | KPF.WRITEBACK)
        return Scan.PAGE_DIRTY_OR_WRITEBACK if dirty else Scan.SUCCEED
    if pfn is not None and kernel.flags(pfn) & KPF.UPTODATE:
        return Scan.SUCCEED
    if index >= mapping.pages_in_size:
        return Scan.FAIL
    shmem_get_page(kernel, mapping, index)
    if kernel.rules.collapse_drains_swapins:
        kernel.drain()
    return Scan.SUCCEED


def _has_any(mapping: AddressSpace, first: int, end: int) -> bool:
    return any(at in mapping.pages or at in mapping.swapped for at in range(first, end))


def _missing_is_watched(mapping: AddressSpace, start: int) -> bool:
    """Whether a userfaultfd waits for the pages that a collapse would fill."""
    return any(
        vma.flags & VM.UFFD_MISSING
        and vma.pgoff < start + TABLE_ENTRIES
        and start < vma.pgoff + vma.pages
        for _, vma in mapping.vmas
    )


def _leave_cache(kernel: Kernel, mapping: AddressSpace, head: int) -> None:
    """An old folio, of which the contents were copied."""
    index, pages = int(kernel.f.pgoff[head]), 1 << kernel.order_of(head)
    for at in range(index, index + pages):
        del mapping.pages[at]
    kernel.f.mapping[head] = 0
    kernel.put(head, pages)


def _retract_page_tables(
    kernel: Kernel, mm: Mm, mapping: AddressSpace, start: int, low: int, *, asked: bool
) -> Scan:
    """retract_page_tables(): free empty tables of everybody who maps the range aligned.

    Until 6.6 MADV_COLLAPSE takes only the caller's, and maps the huge page there at once.
    """
    everybody = kernel.rules.collapse_retracts_all or not asked
    own = Scan.FAIL
    for other, vma in tuple(mapping.vmas):
        vpn = vma.vpn_of(start)
        if vpn is None:
            continue
        is_target = other is mm and vpn == low
        result = _retract(kernel, other, vma, vpn, everybody=everybody or is_target)
        if result is Scan.SUCCEED and is_target and not everybody:
            result = Scan.SUCCEED if _install(kernel, mm, vma, low) else Scan.FAIL
        own = result if is_target else own
    if not kernel.rules.collapse_retracts_all:
        return own if asked else Scan.SUCCEED
    return Scan.PTE_MAPPED_HUGEPAGE if asked else Scan.SUCCEED


def _retract(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, everybody: bool) -> Scan:
    """The table of one mapping, which is empty because its pages were unmapped."""
    if vma.anon_vma is not None:
        kernel.say("retract_page_tables: private pages were written there, the table stays")
        return Scan.PAGE_ANON
    if vpn % TABLE_ENTRIES or vma.vpn_end < vpn + TABLE_ENTRIES:
        return Scan.VMA_CHECK
    found = _find_pmd(mm, vpn)
    if found is not Scan.SUCCEED:
        return found
    if not everybody:
        return Scan.PTE_MAPPED_HUGEPAGE
    if vma.flags & VM.UFFD_WP:
        return Scan.PTE_UFFD_WP
    if vma.flags & VM.MAYBE_GUARD:
        return Scan.FAIL
    _free_table(mm, vpn)
    kernel.say("retract_page_tables: the table is freed")
    return Scan.SUCCEED


def _find_pmd(mm: Mm, vpn: int) -> Scan:
    """find_pmd_or_thp_or_none()."""
    if vpn >> (2 * PMD_SHIFT) not in mm.tables.pmd_tables:
        return Scan.PMD_NULL
    pmd = mm.tables.pmd_of(vpn)
    if pmd is None:
        return Scan.PMD_NONE
    return Scan.PMD_MAPPED if pmd.huge else Scan.SUCCEED


def _free_table(mm: Mm, vpn: int) -> None:
    table = mm.tables.pmds.pop(vpn >> PMD_SHIFT).table
    assert table is not None
    mm.tables.free_pte_table(table)


def _install(kernel: Kernel, mm: Mm, vma: Vma, low: int) -> bool:
    """set_huge_pmd()."""
    assert vma.file is not None
    return set_file_pmd(kernel, mm, vma, low, vma.file.mapping.pages[vma.index_of(low)])


def _collapse_pte_mapped(kernel: Kernel, mm: Mm, low: int, *, install: bool) -> Scan:
    """collapse_pte_mapped_thp(): the cache has a huge page; give up the table that is in its way.

    `install`: and map it by a PMD.
    """
    vma = mm.vmas.find(low)
    found = _find_pmd(mm, low)
    if found is Scan.PMD_MAPPED:
        return found
    if vma is None or vma.file is None or vma.vpn_end < low + TABLE_ENTRIES:
        return Scan.VMA_CHECK
    if not collapse_allowed(kernel, mm, vma, sysfs=False):
        return Scan.VMA_CHECK
    if vma.flags & VM.UFFD_WP:
        return Scan.PTE_UFFD_WP
    pfn = vma.file.mapping.pages.get(vma.index_of(low))
    if pfn is None:
        return Scan.PAGE_NULL
    if kernel.order_of(pfn) != PMD_ORDER:
        return Scan.PAGE_COMPOUND
    if found is Scan.PMD_NULL and not kernel.rules.collapse_allocates_pmd_table:
        return found
    if found is Scan.SUCCEED:
        result = _empty_table(kernel, mm, vma, low, pfn)
        if result is not Scan.SUCCEED:
            return result
    if install and not _install(kernel, mm, vma, low):
        return Scan.FAIL
    return Scan.SUCCEED


def _empty_table(kernel: Kernel, mm: Mm, vma: Vma, low: int, pfn: int) -> Scan:
    """Take the entries of a table away that all map pages of one huge page, and the table."""
    entries = [mm.tables.entry(low + page) for page in range(TABLE_ENTRIES)]
    for page, entry in enumerate(entries):
        if entry == e.NONE_ENTRY:
            continue
        if not e.is_present(entry):
            return Scan.PTE_NON_PRESENT
        if e.pfn_of(entry) != pfn + page:
            kernel.say("collapse_pte_mapped_thp: another page is mapped there")
            return Scan.FAIL
    for page, entry in enumerate(entries):
        if entry == e.NONE_ENTRY:
            continue
        mm.tables.set(low + page, e.NONE_ENTRY)
        munlock_vma_folio(kernel, vma, pfn + page)
        drop_mapping(kernel, pfn + page)
    _free_table(mm, low)
    kernel.say("collapse_pte_mapped_thp: the table is freed")
    return Scan.SUCCEED

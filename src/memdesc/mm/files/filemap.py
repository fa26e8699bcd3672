"""Faults on pages of files, and entries of files that go.

`mm/memory.c:do_read_fault, do_cow_fault, do_shared_fault, finish_fault, wp_page_shared,
zap_present_folio_ptes; mm/filemap.c:filemap_fault, filemap_map_pages @6.12`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock_batch import mlock_vma_folio
from memdesc.mm.areas.vma import VM, VM_UFFD, Vma
from memdesc.mm.faults.new_folio import map_new_anon_page, new_anon_folio
from memdesc.mm.files.aops import page_mkwrite
from memdesc.mm.files.inode import AddressSpace, OpenFile
from memdesc.mm.files.page_cache import is_cached, read_page
from memdesc.mm.files.readahead import force_readahead, mmap_readahead
from memdesc.mm.files.shmem import shmem_get_page
from memdesc.mm.files.writeback import dirty_folio
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.mm.huge.file_pmd import set_file_pmd
from memdesc.mm.huge.shmem_huge import FaultAt, is_anon_shmem
from memdesc.mm.process import Errno, Mm, Signal
from memdesc.mm.reclaim.mark_accessed import has_recency, mark_accessed
from memdesc.mm.rmap import anon_vma_prepare
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "OpenFile",
    "do_file_fault",
    "file_entry_gone",
    "is_cached",
    "madvise_willneed",
    "wp_page_shared",
]


def do_file_fault(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, write: bool) -> None:
    """mm/memory.c:do_fault. Raises Signal, OutOfMemory."""
    if not write:
        do_read_fault(kernel, mm, vma, vpn)
    elif not vma.flags & VM.SHARED:
        do_cow_fault(kernel, mm, vma, vpn)
    else:
        do_shared_fault(kernel, mm, vma, vpn)


def do_read_fault(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> None:
    """A load: the cache's page is mapped, writable where nobody wants to know of writes."""
    if do_fault_around(kernel, mm, vma, vpn):
        return
    pfn = _fault(kernel, mm, vma, vpn)
    assert vma.file is not None
    if vma.file.ra.get("retry") and do_fault_around(kernel, mm, vma, vpn):
        kernel.say("filemap_fault: the disk was asked, so the whole fault was done again")
        return
    finish_fault(kernel, mm, vma, vpn, pfn, write=False)
    kernel.say("do_read_fault: the page of the cache")


def do_fault_around(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> bool:
    """Map what the cache has around a load: whether that resolved the fault.

    The window is an aligned block of addresses of fault_around_bytes, cut at the start of the
    area; its end at that of the area, of the file and of the page table.
    """
    assert vma.file is not None
    mapping: AddressSpace = vma.file.mapping
    window = int(kernel.knobs["fault_around"]) // PAGE_SIZE_BYTES
    if window <= 1 or not mapping.fs.maps_around or vma.flags & (VM.UFFD_WP | VM.UFFD_MINOR):
        return False
    first = max(vpn & ~(window - 1), vma.vpn_start, vpn & ~(TABLE_ENTRIES - 1))
    end = min(first + window, vma.vpn_end, (vpn & ~(TABLE_ENTRIES - 1)) + TABLE_ENTRIES)
    end = min(end, first + mapping.pages_in_size - vma.index_of(first))
    found = [at for at in range(first, end) if is_mappable(kernel, mapping, vma.index_of(at))]
    if not found:
        return False
    head = mapping.pages[vma.index_of(found[0])]
    whole = _may_map_all(kernel, mapping, head, around=True)
    if whole and set_file_pmd(kernel, mm, vma, vpn, head):
        return True
    mm.tables.alloc_pte(vpn)
    if kernel.rules.faults_map_whole_folios:
        found = sorted({page for at in found for page in _whole_folio(kernel, vma, mapping, at)})
    for at in found:
        if mm.tables.entry(at) == e.NONE_ENTRY:
            map_page(kernel, mm, vma, at, mapping.pages[vma.index_of(at)])
    kernel.say("filemap_map_pages: all that is cached around the fault")
    if vma.file.ra:
        vma.file.ra["misses"] = max(0, vma.file.ra["misses"] - len(found))
    return vpn in found


def is_mappable(kernel: Kernel, mapping: AddressSpace, index: int) -> bool:
    """next_uptodate_folio(): cached, with its content, not marked by readahead, not lost."""
    pfn = mapping.pages.get(index)
    if pfn is None or kernel.f.flags[pfn] & KPF.HWPOISON:
        return False
    return kernel.flags(pfn) & (KPF.UPTODATE | KPF.RECLAIM) == KPF.UPTODATE


def do_cow_fault(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> None:
    """A store to a private mapping: a copy, and the cache's page stays unmapped."""
    anon_vma_prepare(kernel, mm, vma)
    source = _fault(kernel, mm, vma, vpn)
    mm.tables.alloc_pte(vpn)
    pfn = new_anon_folio(kernel, vma, vpn)
    kernel.f.content[pfn] = kernel.f.content[source]
    bits = e.ACCESSED | e.SOFT_DIRTY
    if vma.flags & VM.WRITE:
        bits |= e.RW | e.DIRTY
    map_new_anon_page(kernel, mm, vma, vpn, pfn, bits)
    kernel.say("do_cow_fault: a private copy of the cache's page")


def do_shared_fault(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> None:
    """A store to a shared mapping: the file system is asked, the folio is dirty at once."""
    pfn = _fault(kernel, mm, vma, vpn)
    _page_mkwrite(kernel, vma, pfn)
    finish_fault(kernel, mm, vma, vpn, pfn, write=True)
    dirty_folio(kernel, pfn)
    kernel.say("do_shared_fault: mapped for writing, the folio is dirty")


def finish_fault(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pfn: int, *, write: bool) -> None:
    """Map a page of the cache, or all pages of its folio, by a PMD where that is possible."""
    assert vma.file is not None
    if _may_map_all(kernel, vma.file.mapping, pfn) and set_file_pmd(
        kernel, mm, vma, vpn, pfn, write=write
    ):
        return
    mm.tables.alloc_pte(vpn)
    pages = _pages_to_map(kernel, mm, vma, vpn, pfn)
    for at, page in pages:
        map_page(kernel, mm, vma, at, page, write=write)
    if len(pages) > 1 and vma.flags & VM.LOCKED and kernel.rules.whole_file_folio_is_locked:
        mlock_vma_folio(kernel, vma, pfn, whole=True)


def map_page(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pfn: int, *, write: bool = False) -> None:
    """set_pte_range() of one page; its entry is empty."""
    bits = e.ACCESSED
    if write:
        bits |= e.SOFT_DIRTY | e.DIRTY | (e.RW if vma.flags & VM.WRITE else 0)
    elif vma.flags & VM.WRITE and vma.flags & VM.SHARED and not wants_writenotify(vma):
        bits |= e.RW
    mm.tables.set(vpn, e.present(pfn, bits))
    kernel.f.maps[pfn] += 1
    kernel.get(pfn)
    if vma.flags & VM.LOCKED:
        mlock_vma_folio(kernel, vma, pfn)


def wp_page_shared(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int) -> None:
    """mm/memory.c:wp_page_shared: the entry becomes writable where it is."""
    pfn = e.pfn_of(entry)
    _page_mkwrite(kernel, vma, pfn)
    mm.tables.set(vpn, entry | e.RW | e.DIRTY | e.ACCESSED | e.SOFT_DIRTY)
    dirty_folio(kernel, pfn)
    kernel.say("wp_page_shared: writable in place, the folio is dirty")


def wants_writenotify(vma: Vma) -> bool:
    """mm/vma.c:vma_wants_writenotify: whether entries begin without RW to see the first write."""
    assert vma.file is not None
    if not vma.flags & VM.SOFTDIRTY or vma.flags & VM.UFFD_WP:
        return True
    return bool(vma.file.mapping.fs.tracks_writes)


def file_entry_gone(kernel: Kernel, vma: Vma, pfn: int, entry: int) -> None:
    """An entry that mapped a page of a file is about to go: its bits pass to the folio."""
    if entry & e.DIRTY:
        dirty_folio(kernel, pfn)
    if entry & e.ACCESSED and has_recency(kernel, vma):
        mark_accessed(kernel, pfn)


def madvise_willneed(kernel: Kernel, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """MADV_WILLNEED of a file: read it, without mapping it (`mm/madvise.c:madvise_willneed`)."""
    assert vma.file is not None
    if vma.file.mapping.fs.has_device:
        force_readahead(kernel, vma.file, vma.index_of(vpn_start), vpn_end - vpn_start)


# --- helpers -----------------------------------------------------------------------------


def _fault(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> int:
    """vm_ops->fault: the page, in the cache. Raises Signal beyond the end of the file."""
    assert vma.file is not None
    mapping: AddressSpace = vma.file.mapping
    index = vma.index_of(vpn)
    if index >= mapping.pages_in_size:
        kernel.say("filemap_fault: beyond the end of the file")
        raise Signal("SIGBUS", "ADRERR")
    if mapping.fs.has_device:
        mmap_readahead(kernel, vma, index)
    if vma.uffd is not None and mapping.is_shmem:
        from memdesc.mm.userfault.userfaultfd import shmem_fault

        shmem_fault(kernel, vma, mapping, index)
    pfn: int | None
    try:
        if mapping.is_shmem:
            pfn = shmem_get_page(kernel, mapping, index, fault=FaultAt(mm, vma, vpn))
        else:
            pfn = read_page(kernel, mapping, index)
    except Errno:
        kernel.say("filemap_fault: the page cannot be read")
        raise Signal("SIGBUS", "ADRERR") from None
    assert pfn is not None
    if kernel.f.flags[pfn] & KPF.HWPOISON:
        kernel.say("__do_fault: the page was lost to a memory error")
        raise Signal("SIGBUS", "MCEERR_AR")
    return pfn


def _whole_folio(kernel: Kernel, vma: Vma, mapping: AddressSpace, vpn: int) -> range:
    """filemap_map_pages() @7.2: all of a large folio that fits area, page table and file."""
    pfn = mapping.pages[vma.index_of(vpn)]
    head = kernel.head(pfn)
    pages = 1 << kernel.order_of(head)
    first = vpn - (pfn - head)
    last = first + pages - 1
    fits = vma.vpn_start <= first and last < vma.vpn_end and first >> 9 == last >> 9
    inside = mapping.is_shmem or int(kernel.f.pgoff[head]) + pages <= mapping.pages_in_size
    return range(first, last + 1) if fits and inside else range(vpn, vpn + 1)


def _page_mkwrite(kernel: Kernel, vma: Vma, pfn: int) -> None:
    assert vma.file is not None
    if vma.file.mapping.fs.tracks_writes:
        page_mkwrite(kernel, vma.file.mapping, pfn)


def _pages_to_map(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pfn: int) -> list[tuple[int, int]]:
    """finish_fault() @7.2: the whole folio where it fits and nothing is mapped there yet."""
    pages = 1 << kernel.order_of(pfn)
    rules = kernel.rules
    whole = rules.faults_map_whole_folios or (rules.faults_map_whole_shmem and is_anon_shmem(vma))
    if pages == 1 or not whole or vma.flags & VM_UFFD:
        return [(vpn, pfn)]
    head = kernel.head(pfn)
    first = vpn - (pfn - head)
    assert vma.file is not None
    if (
        first < vma.vpn_start
        or first + pages > vma.vpn_end
        or first >> 9 != (first + pages - 1) >> 9
        or not _may_map_all(kernel, vma.file.mapping, pfn)
        or any(mm.tables.entry(at) for at in range(first, first + pages))
    ):
        return [(vpn, pfn)]
    return [(first + at, head + at) for at in range(pages)]


def _may_map_all(kernel: Kernel, mapping: AddressSpace, pfn: int, *, around: bool = False) -> bool:
    """Whether a folio ends before its file does; shmem was always mapped beyond its end.

    `around`: filemap_map_pages() counts one page less.
    """
    head = kernel.head(pfn)
    end = int(kernel.f.pgoff[head]) + (1 << kernel.order_of(head))
    return mapping.is_shmem or mapping.pages_in_size - around >= end

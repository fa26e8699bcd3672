"""Dirty pages: what folio_mark_dirty() does, by the type of the page.

`mm/page-writeback.c:folio_mark_dirty, noop_dirty_folio, filemap_dirty_folio;
fs/buffer.c:block_dirty_folio @6.12`; which file system has which callback:
`memdesc.kernels.dirtying`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.dirtying import dirty_callback
from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.files import AddressSpace
from memdesc.mm.rmap import mappings_of
from memdesc.mm.vma import VM

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["dirty_folio", "folio_mkclean", "writeback_range"]


def dirty_folio(kernel: Kernel, pfn: int) -> bool:
    """folio_mark_dirty(): whether the folio was clean before.

    Anonymous folios (KSM's too) have no file to tell, nor has what a driver mapped; shmem,
    secretmem and hugetlbfs only note it; a file system with a device accounts it and puts the
    file on the list of those to be written back.
    """
    flags = kernel.flags(pfn)
    number = int(kernel.f.mapping[kernel.head(pfn)])
    mapping = None if flags & KPF.ANON else kernel.mappings.get(number)
    newly = not flags & KPF.DIRTY
    if mapping is None:
        kernel.say("folio_mark_dirty: no file, only the flag")
    else:
        assert isinstance(mapping, AddressSpace)
        callback = "noop_dirty_folio"
        if mapping.fs.has_device:
            callback = dirty_callback(mapping.fs.name, kernel.release) or callback
        kernel.say(f"folio_mark_dirty: {callback}")
    kernel.set_flags(pfn, KPF.DIRTY)
    return newly


def writeback_range(
    kernel: Kernel, mapping: AddressSpace, first: int = 0, end: int | None = None
) -> int:
    """filemap_write_and_wait_range(): write dirty folios to their blocks; how many folios were."""
    if not mapping.fs.has_device:
        return 0
    written = 0
    for index in sorted(mapping.pages):
        pfn = mapping.pages[index]
        head = kernel.head(pfn)
        if index < first or (end is not None and index >= end):
            continue
        if not kernel.flags(head) & KPF.DIRTY:
            continue
        folio_mkclean(kernel, head)
        kernel.clear_flags(head, int(KPF.DIRTY))
        for page in kernel.pages_of(head):
            at = int(kernel.f.index[head]) + page - head
            if at < mapping.pages_in_size:
                mapping.blocks[at] = int(kernel.f.content[page])
        written += 1
    kernel.say(f"write_cache_pages: {written} folios written, read-only in every shared mapping")
    return written


def folio_mkclean(kernel: Kernel, pfn: int) -> None:
    """mm/rmap.c:folio_mkclean: entries of shared mappings become read-only and clean."""
    for page in kernel.pages_of(kernel.head(pfn)):
        for mm, vma, vpn in mappings_of(kernel, page):
            entry = mm.tables.entry(vpn)
            if vma.flags & VM.SHARED and entry & (e.RW | e.DIRTY):
                mm.tables.set(vpn, entry & ~(e.RW | e.DIRTY))

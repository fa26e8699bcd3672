"""An ext4-like file system: blocks of a page, delayed allocation, buffer heads.

`fs/ext4/readpage.c:ext4_mpage_readpages, fs/ext4/inode.c:ext4_page_mkwrite, ext4_da_write_begin
@6.12`: reading attaches no buffers and marks pages that lie on disk as a whole (MAPPEDTODISK, shown
as OWNER_2); writing attaches them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.files import PAGE_BYTES
from memdesc.mm.page_cache import add_folio, attach_private
from memdesc.mm.process import Errno

if TYPE_CHECKING:
    from memdesc.mm.files import AddressSpace
    from memdesc.mm.kernel import Kernel

MAX_ORDER: Final = 9
"""mapping_max_folio_order() of regular files."""

__all__ = ["ext4_page_mkwrite", "ext4_read_folio", "ext4_write_begin", "fill_folio"]


def ext4_read_folio(kernel: Kernel, mapping: AddressSpace, index: int, order: int = 0) -> int:
    """Read the folio at an index that is not cached; its page of that index, see `fill_folio`."""
    first = index >> order << order
    pfn = add_folio(kernel, mapping, first, order)
    fill_folio(kernel, mapping, pfn)
    return pfn + index - first


def fill_folio(kernel: Kernel, mapping: AddressSpace, pfn: int) -> None:
    """Read a folio that is cached. One that the disk does not give is not UPTODATE."""
    first = int(kernel.f.pgoff[pfn])
    pages = range(first, first + (1 << kernel.order_of(pfn)))
    if kernel.disk.fails and any(at in mapping.blocks for at in pages):
        kernel.clear_flags(pfn, KPF.UPTODATE)
        kernel.say("ext4_mpage_readpages: the disk does not give it, cached without its content")
        return
    kernel.set_flags(pfn, KPF.UPTODATE)
    for at in pages:
        kernel.f.content[pfn + at - first] = mapping.blocks.get(at, 0)
    if all(at in mapping.blocks for at in pages):
        kernel.set_flags(pfn, KPF.OWNER_2)
        kernel.say("ext4_mpage_readpages: read, mapped to disk")
    else:
        kernel.say("ext4_mpage_readpages: a hole, zeroes")


def ext4_write_begin(kernel: Kernel, mapping: AddressSpace, index: int, pages: int) -> int:
    """ext4_da_write_begin(): the page that write(2) fills next, with buffers. Raises OutOfMemory.

    `pages`: how many are still to come. A release with large folios makes one as large as they
    and the index allow (`mm/filemap.c:__filemap_get_folio, fgf_set_order @7.2`).
    """
    pfn = mapping.pages.get(index)
    if pfn is None:
        order = 0
        if kernel.rules.ext4_large_folios:
            order = min(pages.bit_length() - 1, MAX_ORDER)
            if index:
                order = min(order, (index & -index).bit_length() - 1)
            while order and any(index + at in mapping.pages for at in range(1 << order)):
                order -= 1
        pfn = add_folio(kernel, mapping, index, order)
        if order:
            kernel.say(f"__filemap_get_folio: a folio of order {order} for the write")
    attach_private(kernel, pfn)
    return pfn


def ext4_page_mkwrite(kernel: Kernel, mapping: AddressSpace, pfn: int) -> None:
    """A shared mapping writes for the first time: blocks are reserved, buffers attached."""
    attach_private(kernel, pfn)
    kernel.say("ext4_page_mkwrite: buffers attached, the file system knows of the write")


def ext4_fallocate(
    kernel: Kernel, mapping: AddressSpace, first: int, pages: int, mode: str
) -> None:
    """fs/ext4/extents.c:ext4_fallocate. Raises Errno."""
    from memdesc.mm.truncate import truncate_inode_pages, unmap_mapping_pages
    from memdesc.mm.writeback import writeback_range

    end = first + pages
    if mode in ("grow", "keep_size"):
        if mode == "grow":
            mapping.size = max(mapping.size, end * PAGE_BYTES)
        kernel.say("ext4_fallocate: blocks that read as zeroes, nothing is cached")
        return
    if mode in ("collapse", "insert"):
        size = mapping.pages_in_size
        if (mode == "collapse" and end >= size) or (mode == "insert" and first >= size):
            raise Errno("EINVAL")
        writeback_range(kernel, mapping, first)
        unmap_mapping_pages(kernel, mapping, first, None, even_cows=True)
        kept = {at: content for at, content in mapping.blocks.items() if at >= first}
        truncate_inode_pages(kernel, mapping, first)
        shift = -pages if mode == "collapse" else pages
        for at, content in kept.items():
            if mode == "insert" or at >= end:
                mapping.blocks[at + shift] = content
        mapping.size += shift * PAGE_BYTES
        kernel.say(f"ext4_{mode}_range: written back, out of the cache, blocks moved")
        return
    writeback_range(kernel, mapping, first, end)
    unmap_mapping_pages(kernel, mapping, first, end, even_cows=False)
    truncate_inode_pages(kernel, mapping, first, end)
    mapping.size = max(mapping.size, end * PAGE_BYTES)
    kernel.say("ext4_zero_range: out of the cache, blocks read as zeroes")

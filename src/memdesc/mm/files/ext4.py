"""An ext4-like file system: blocks of a page, delayed allocation, buffer heads.

`fs/ext4/readpage.c:ext4_mpage_readpages, fs/ext4/inode.c:ext4_page_mkwrite, ext4_da_write_begin
@6.12`: reading attaches no buffers and marks pages that lie on disk as a whole (MAPPEDTODISK, shown
as OWNER_2); writing attaches them (`mm.aops`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.errors import MemdescError
from memdesc.kernels.kpageflags import KPF
from memdesc.mm.files.file_systems import EXT4
from memdesc.mm.files.page_cache import attach_private
from memdesc.mm.files.super import claim_blocks
from memdesc.mm.files.truncate import truncate_inode_pages, unmap_mapping_pages
from memdesc.mm.files.writeback import filemap_fdatawrite, writeback_range
from memdesc.mm.process import Errno, Signal
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.files.inode import AddressSpace
    from memdesc.mm.kernel import Kernel

__all__ = [
    "ext4_alloc_da_blocks",
    "ext4_fallocate",
    "ext4_journal_data",
    "ext4_page_mkwrite",
]


def ext4_page_mkwrite(kernel: Kernel, mapping: AddressSpace, pfn: int) -> None:
    """A shared mapping writes for the first time: blocks are reserved, buffers attached.

    Raises Signal where no block is left.
    """
    attach_private(kernel, pfn)
    head = kernel.head(pfn)
    index = int(kernel.f.pgoff[head])
    try:
        end = min(index + (1 << kernel.order_of(head)), mapping.pages_in_size)
        claim_blocks(kernel, mapping, index, end)
    except Errno:
        raise Signal("SIGBUS", "ADRERR") from None
    kernel.say("ext4_page_mkwrite: buffers attached, the file system knows of the write")


def ext4_journal_data(mapping: AddressSpace) -> None:
    """FS_JOURNAL_DATA_FL: `fs/ext4/inode.c:ext4_change_inode_journal_flag`.

    Its pages are dirtied and written as others are, but never in large folios.
    """
    if mapping.fs is not EXT4 or mapping.pages:
        raise MemdescError(
            "the model knows data journalling of ext4's files only, before they have pages",
            hint="put journal_data right after `open f ext4:NAME create`",
        )
    mapping.journalled = True


def ext4_alloc_da_blocks(kernel: Kernel, mapping: AddressSpace) -> None:
    """Data that has no block yet is written, so that a crash does not leave an empty file where an
    old one was: a file is renamed over another, or closed after it was emptied."""
    if mapping.fs is EXT4 and any(
        index not in mapping.blocks and kernel.flags(pfn) & KPF.DIRTY
        for index, pfn in mapping.pages.items()
    ):
        kernel.say("ext4_alloc_da_blocks: what has no block yet is written now")
        filemap_fdatawrite(kernel, mapping)


def ext4_fallocate(
    kernel: Kernel, mapping: AddressSpace, first: int, pages: int, mode: str
) -> None:
    """fs/ext4/extents.c:ext4_fallocate. Raises Errno."""
    end = first + pages
    if mode in ("grow", "keep_size"):
        if mode == "grow":
            mapping.size = max(mapping.size, end * PAGE_SIZE_BYTES)
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
        mapping.size += shift * PAGE_SIZE_BYTES
        kernel.say(f"ext4_{mode}_range: written back, out of the cache, blocks moved")
        return
    writeback_range(kernel, mapping, first, end)
    unmap_mapping_pages(kernel, mapping, first, end, even_cows=False)
    truncate_inode_pages(kernel, mapping, first, end)
    mapping.size = max(mapping.size, end * PAGE_SIZE_BYTES)
    kernel.say("ext4_zero_range: out of the cache, blocks read as zeroes")

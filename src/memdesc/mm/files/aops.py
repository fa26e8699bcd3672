"""What file systems with a device do with pages of files, each in its way.

`struct address_space_operations`, and `page_mkwrite` of `struct vm_operations_struct @6.12`:
ext4 (`mm.ext4`), xfs (`mm.iomap`), and FAT, which takes what `fs/buffer.c` and `fs/mpage.c` have
for everybody.  Reading and the choice of folios are the same for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.files.file_systems import EXT4, RAMFS, VFAT, XFS
from memdesc.mm.files.folio_writeback import wait_for_disk, wait_stable
from memdesc.mm.files.iomap import ifs_alloc, iomap_page_mkwrite, iomap_read_done
from memdesc.mm.files.page_cache import add_folio, attach_private, remove_folio
from memdesc.mm.files.super import claim_blocks, has_block_left, want_write
from memdesc.mm.process import Errno

if TYPE_CHECKING:
    from memdesc.mm.files.inode import AddressSpace
    from memdesc.mm.kernel import Kernel

MAX_ORDER: Final = 9
"""mapping_max_folio_order() of regular files."""

__all__ = [
    "MAX_ORDER",
    "fill_folio",
    "large_folios",
    "page_mkwrite",
    "read_folio",
    "write_begin",
    "write_state",
]


def large_folios(kernel: Kernel, mapping: AddressSpace) -> bool:
    """mapping_large_folio_support()."""
    if mapping.fs is EXT4:
        # fs/ext4/inode.c:ext4_should_enable_large_folio
        return kernel.rules.ext4_large_folios and not mapping.journalled
    return mapping.fs is XFS


def read_folio(kernel: Kernel, mapping: AddressSpace, index: int, order: int = 0) -> int:
    """Read the folio at an index that is not cached; its page of that index, see `fill_folio`."""
    first = index >> order << order
    pfn = add_folio(kernel, mapping, first, order)
    fill_folio(kernel, mapping, pfn)
    return pfn + index - first


def fill_folio(kernel: Kernel, mapping: AddressSpace, pfn: int) -> None:
    """Read a folio that is cached. One that the disk does not give is not UPTODATE."""
    first = int(kernel.f.pgoff[pfn])
    pages = range(first, first + (1 << kernel.order_of(pfn)))
    if any(at in mapping.blocks for at in pages):
        wait_for_disk(kernel, "read_folio")
    if kernel.disk.fails and any(at in mapping.blocks for at in pages):
        kernel.clear_flags(pfn, KPF.UPTODATE)
        kernel.say("read_folio: the disk does not give it, cached without its content")
        return
    kernel.set_flags(pfn, KPF.UPTODATE)
    for at in pages:
        kernel.f.content[pfn + at - first] = mapping.blocks.get(at, 0)
    if not mapping.fs.buffers:
        iomap_read_done(kernel, pfn)
    elif all(at in mapping.blocks for at in pages):
        kernel.set_flags(pfn, KPF.OWNER_2)
        kernel.say("mpage_readahead: read, mapped to disk")
    else:
        kernel.say("mpage_readahead: a hole, zeroes")


def write_begin(kernel: Kernel, mapping: AddressSpace, index: int, pages: int) -> int:
    """The page that write(2) fills next. Raises Errno, OutOfMemory.

    `pages`: how many are still to come. A file system with large folios takes one as large as they
    and the index allow (`mm/filemap.c:__filemap_get_folio, fgf_set_order @7.2`).
    """
    pfn = mapping.pages.get(index)
    if pfn is None:
        order = 0
        if large_folios(kernel, mapping) and kernel.rules.writes_take_large_folios:
            order = min(pages.bit_length() - 1, MAX_ORDER)
            if index:
                order = min(order, (index & -index).bit_length() - 1)
            while order and any(index + at in mapping.pages for at in range(1 << order)):
                order -= 1
        pfn = add_folio(kernel, mapping, index, order, write=True)
        if order:
            kernel.say(f"__filemap_get_folio: a folio of order {order} for the write")
    wait_stable(kernel, pfn, "write_begin")
    if mapping.fs.buffers:
        attach_private(kernel, pfn)
    end = min(index + pages, index + (1 << kernel.order_of(pfn)) - (pfn - kernel.head(pfn)))
    try:
        claim_blocks(kernel, mapping, index, end)
    except Errno:
        _write_failed(kernel, mapping, index)
        raise
    return pfn


def page_mkwrite(kernel: Kernel, mapping: AddressSpace, pfn: int) -> None:
    """vm_ops->page_mkwrite: a shared mapping writes for the first time. Raises Signal."""
    want_write(kernel, mapping.fs.name)
    wait_stable(kernel, pfn, "page_mkwrite")
    if mapping.fs is EXT4:
        from memdesc.mm.files.ext4 import ext4_page_mkwrite

        ext4_page_mkwrite(kernel, mapping, pfn)
    elif mapping.fs is XFS:
        iomap_page_mkwrite(kernel, pfn)
    elif mapping.fs in (VFAT, RAMFS):
        kernel.say("filemap_page_mkwrite: the page becomes dirty, nobody is asked")


def write_state(kernel: Kernel, mapping: AddressSpace, head: int) -> bool:
    """What write-back needs to know of a dirty folio; False where ext4 does not know it."""
    if mapping.fs is XFS:
        ifs_alloc(kernel, head)
    elif mapping.fs is EXT4 and not kernel.flags(head) & KPF.PRIVATE:
        # fs/ext4/inode.c:mpage_prepare_extent_to_map: somebody dirtied it past page_mkwrite.
        kernel.say("ext4: a dirty page does not have buffers attached, what was written is lost")
        return False
    return True


# --- helpers -----------------------------------------------------------------------------


def _write_failed(kernel: Kernel, mapping: AddressSpace, index: int) -> None:
    """ext4_truncate_failed_write(): a page behind the end goes again; one before it stays, without
    a content that anybody may see."""
    pfn = mapping.pages[index]
    if index >= mapping.pages_in_size:
        kernel.drain()
        remove_folio(kernel, mapping, pfn)
        return
    kernel.clear_flags(pfn, KPF.UPTODATE)
    if kernel.order_of(pfn) and has_block_left(kernel, mapping.fs.name):
        # fs/buffer.c:folio_zero_new_buffers: those that got a block are zeroed and dirty. Here all
        # of the folio counts as if it had one.
        kernel.set_flags(pfn, KPF.DIRTY)

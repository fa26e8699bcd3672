"""Files of xfs in the page cache: large folios, and no state beside them until it is needed.

`fs/iomap/buffered-io.c:iomap_read_folio, iomap_write_begin, iomap_dirty_folio, iomap_page_mkwrite,
iomap_writepage_map, ifs_alloc @6.12` (`iomap_page_create @6.1`).  A folio of one block needs no
state of its own; a large one has one state per block, which is attached as private data when it is
read or written back, or dirtied by anything but write(2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.files.page_cache import attach_private
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.files.inode import AddressSpace
    from memdesc.mm.kernel import Kernel

__all__ = ["ifs_alloc", "iomap_page_mkwrite", "iomap_read_done", "xfs_setattr_size"]


def ifs_alloc(kernel: Kernel, pfn: int) -> None:
    """The state of a large folio's blocks, and its reference."""
    if kernel.order_of(pfn) and not kernel.flags(pfn) & KPF.PRIVATE:
        attach_private(kernel, pfn)
        kernel.say("ifs_alloc: a large folio, so the state of its blocks is attached")


def iomap_read_done(kernel: Kernel, pfn: int) -> None:
    """A folio was read."""
    ifs_alloc(kernel, pfn)
    kernel.say("iomap_read_folio: read, with nothing that says where it lies")


def xfs_setattr_size(kernel: Kernel, mapping: AddressSpace, size: int) -> None:
    """What xfs writes before the size changes, so that nothing but zeroes is behind the end.

    `fs/xfs/xfs_iops.c:xfs_setattr_size`: data beyond the end that the disk knows of is written
    before a larger size is logged; and what is dirty where the new space, or the new end, is.
    """
    old, on_disk = mapping.size, mapping.disk_size
    if size > old and kernel.rules.iomap_zeroing_flushes:
        _write_and_wait(kernel, mapping, old // PAGE_SIZE_BYTES, -(-size // PAGE_SIZE_BYTES))
    if size > on_disk != old:
        _write_and_wait(kernel, mapping, on_disk // PAGE_SIZE_BYTES, -(-size // PAGE_SIZE_BYTES))
    if size < old and kernel.rules.xfs_writes_new_end:
        _write_and_wait(kernel, mapping, size // PAGE_SIZE_BYTES, size // PAGE_SIZE_BYTES + 1)
    mapping.disk_size = size


def iomap_page_mkwrite(kernel: Kernel, pfn: int) -> None:
    """A shared mapping writes for the first time: blocks are reserved for the whole folio."""
    if kernel.rules.iomap_tracks_blocks:
        ifs_alloc(kernel, pfn)
    kernel.say("iomap_page_mkwrite: the file system knows of the write")


# --- helpers -----------------------------------------------------------------------------


def _write_and_wait(kernel: Kernel, mapping: AddressSpace, first: int, end: int) -> None:
    """filemap_write_and_wait_range(), of which nobody looks at the errors here."""
    from memdesc.mm.files.writeback import filemap_fdatawait, filemap_fdatawrite

    filemap_fdatawrite(kernel, mapping, first, end)
    filemap_fdatawait(kernel, mapping, first, end)

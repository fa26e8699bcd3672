"""O_DIRECT: between a device and the pages of user memory, past the page cache.

`fs/iomap/direct-io.c:__iomap_dio_rw, mm/filemap.c:kiocb_write_and_wait, kiocb_invalidate_pages,
block/bio.c:bio_iov_iter_get_pages, bio_release_pages @6.12`; `fs/ext4/file.c:ext4_dio_read_iter,
ext4_dio_write_iter`.  Dirty pages of the range are written first; a write throws cached pages out,
of mappings too.  Memory is taken by `pins.direct_io_pages`; what a device read into is dirtied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memdesc.mm.faults.uaccess import copy_from_user, copy_to_user
from memdesc.mm.files.folio_writeback import wait_for_disk
from memdesc.mm.files.inode import AddressSpace, OpenFile, can_odirect
from memdesc.mm.files.page_cache import generic_write_checks, pread, pwrite, remove_folio
from memdesc.mm.files.super import claim_blocks, want_write
from memdesc.mm.files.truncate import unmap_mapping_pages
from memdesc.mm.files.writeback import writeback_range
from memdesc.mm.process import Errno, Process
from memdesc.mm.references.gup import set_page_dirty
from memdesc.mm.references.pins import direct_io_done, direct_io_pages, pins_on, references_on
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["InFlight", "begin_dma", "begin_dma_from", "dio_read", "dio_write"]


@dataclass(slots=True, eq=False)
class InFlight:
    """An O_DIRECT transfer whose device takes its time: it holds pages, and touches them at the
    end."""

    pages: list[int]
    contents: Sequence[int] | None
    """What the device brings; None: it takes what it finds."""
    has_pins: bool
    accounted: int = 0

    def release(self, kernel: Kernel) -> None:
        """The device writes, whatever became of the pages, and what it wrote to is dirtied.

        Nobody asks the file system as a store would (page_mkwrite).
        """
        if self.contents is not None:
            for pfn, content in zip(self.pages, self.contents, strict=True):
                kernel.f.content[pfn] = content
            kernel.say("bio_check_pages_dirty: a device wrote, the pages become dirty, no fault")
        direct_io_done(kernel, self.pages, to_memory=self.contents is not None)
        self.pages, self.contents = [], None

    def taken(self, kernel: Kernel) -> tuple[int, ...]:
        """The device reads the pages now, whatever was written to them since it was told to."""
        found = tuple(int(kernel.f.content[pfn]) for pfn in self.pages)
        self.release(kernel)
        return found

    def references(self, kernel: Kernel) -> Iterator[tuple[int, int]]:
        """(frame, references) of what it holds."""
        return pins_on(kernel, self.pages) if self.has_pins else references_on(self.pages)

    def pinned(self) -> Sequence[int]:
        """Frames on which it has a pin each."""
        return self.pages if self.has_pins else ()


def begin_dma(kernel: Kernel, process: Process, vpn: int, contents: Sequence[int]) -> InFlight:
    """io_submit(2) of an O_DIRECT read that will bring `contents`. Raises Errno.

    The pages are dirtied already now (`block/fops.c:__blkdev_direct_IO_async`).
    """
    pages = direct_io_pages(kernel, process, vpn, len(contents), to_memory=True)
    for pfn in pages:
        set_page_dirty(kernel, pfn)
    return InFlight(pages, contents[: len(pages)], kernel.rules.direct_io_pins)


def begin_dma_from(kernel: Kernel, process: Process, vpn: int, count: int) -> InFlight:
    """io_submit(2) of an O_DIRECT write: a device will read the pages. Raises Errno."""
    pages = direct_io_pages(kernel, process, vpn, count, to_memory=False)
    return InFlight(pages, None, kernel.rules.direct_io_pins)


def dio_read(
    kernel: Kernel, process: Process, file: OpenFile, first: int, vpn: int, count: int
) -> int:
    """pread(2) with O_DIRECT of pages into memory: bytes. Raises Errno."""
    mapping = file.mapping
    if not _goes_to_device(kernel, mapping):
        return PAGE_SIZE_BYTES * copy_to_user(
            kernel, process, vpn, pread(kernel, file, first, count)
        )
    count = min(count, max(0, mapping.pages_in_size - first))
    if not count:
        return 0
    wait_for_disk(kernel, "O_DIRECT")
    writeback_range(kernel, mapping, first, first + count)
    pages = direct_io_pages(kernel, process, vpn, count, to_memory=True)
    failed = kernel.disk.fails and any(at in mapping.blocks for at in range(first, first + count))
    if not failed:
        for index, pfn in enumerate(pages, first):
            kernel.f.content[pfn] = mapping.blocks.get(index, 0)
    direct_io_done(kernel, pages, to_memory=True)
    if failed:
        raise Errno("EIO")
    return PAGE_SIZE_BYTES * len(pages)


def dio_write(
    kernel: Kernel, process: Process, file: OpenFile, first: int, vpn: int, count: int
) -> int:
    """pwrite(2) with O_DIRECT of pages from memory: bytes. Raises Errno."""
    mapping, limit = file.mapping, process.fsize_limit
    if not _goes_to_device(kernel, mapping):
        contents = copy_from_user(kernel, process, vpn, count)
        return pwrite(kernel, file, first, contents, limit=limit)
    if file.readonly:
        raise Errno("EBADF")
    count = generic_write_checks(kernel, first, count, limit)
    want_write(kernel, mapping.fs.name)
    wait_for_disk(kernel, "O_DIRECT")
    writeback_range(kernel, mapping, first, first + count)
    _invalidate(kernel, mapping, first, first + count)
    claim_blocks(kernel, mapping, first, first + count)
    pages = direct_io_pages(kernel, process, vpn, count, to_memory=False)
    if kernel.disk.fails:
        # Told to the caller and to nobody else: no page of the cache was lost.
        direct_io_done(kernel, pages, to_memory=False)
        raise Errno("EIO")
    for index, pfn in enumerate(pages, first):
        mapping.blocks[index] = int(kernel.f.content[pfn])
    direct_io_done(kernel, pages, to_memory=False)
    mapping.size = max(mapping.size, PAGE_SIZE_BYTES * (first + len(pages)))
    _invalidate(kernel, mapping, first, first + len(pages))
    return PAGE_SIZE_BYTES * len(pages)


# --- helpers -----------------------------------------------------------------------------


def _goes_to_device(kernel: Kernel, mapping: AddressSpace) -> bool:
    """Whether there is a device: tmpfs copies as ever. Raises Errno."""
    if not can_odirect(kernel, mapping):
        raise Errno("EINVAL")
    return mapping.fs.has_device


def _invalidate(kernel: Kernel, mapping: AddressSpace, first: int, end: int) -> None:
    """invalidate_inode_pages2_range(): out of all mappings and the cache, by whole folios."""
    kernel.drain()
    for index in range(first, end):
        pfn = mapping.pages.get(index)
        if pfn is None:
            continue
        head = kernel.head(pfn)
        low = int(kernel.f.pgoff[head])
        high = low + (1 << kernel.order_of(head))
        unmap_mapping_pages(kernel, mapping, low, high, even_cows=False)
        remove_folio(kernel, mapping, pfn)
        kernel.say("invalidate_inode_pages2_range: the cache would be out of date")

"""Dirty pages: who is told of the first write, and how they become clean.

`mm/page-writeback.c:folio_mark_dirty, noop_dirty_folio, filemap_dirty_folio, write_cache_pages,
folio_clear_dirty_for_io; fs/buffer.c:block_dirty_folio; fs/ext4/inode.c:ext4_do_writepages;
mm/rmap.c:folio_mkclean; mm/msync.c; fs/sync.c @6.12`; which file system has which callback:
`memdesc.kernels.dirtying`.

The marks of a file's index (DIRTY, WRITEBACK) follow the folios' flags here: `nr_dirty` and
cachestat count what has them. TOWRITE keeps a sync from writing what others dirty meanwhile, and
here nobody does. Writing back is done when the call returns, unless the disk holds what it is
given: then folios stay under write-back (`mm.files.folio_writeback`), and whoever would wait for
them is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.dirtying import dirty_callback
from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import INVARIANTS
from memdesc.mm.files.aops import write_state
from memdesc.mm.files.file_systems import EXT4, SECRETMEM, XFS
from memdesc.mm.files.folio_writeback import (
    Answers,
    end_writeback,
    start_writeback,
    wait_for_disk,
    wait_writeback,
)
from memdesc.mm.files.inode import AddressSpace, OpenFile
from memdesc.mm.files.page_cache import file_mappings
from memdesc.mm.files.wb_err import (
    file_check_and_advance_wb_err,
    filemap_check_errors,
    mapping_set_error,
    syncfs_check,
)
from memdesc.mm.process import Errno, Mm
from memdesc.mm.rmap import mappings_of
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "dirty_folio",
    "filemap_fdatawait",
    "filemap_fdatawrite",
    "folio_mkclean",
    "generic_write_sync",
    "msync",
    "nr_dirty",
    "set_disk",
    "sync",
    "sync_file_range",
    "syncfs",
    "vfs_fsync_range",
    "writeback_range",
]


def dirty_folio(kernel: Kernel, pfn: int) -> bool:
    """folio_mark_dirty(): whether the folio was clean before.

    Anonymous folios (KSM's too) have no file to tell, nor has what a driver mapped, nor a page that
    was truncated; shmem, secretmem and hugetlbfs only note it; a file system with a device
    accounts it and puts the file on the list of those to be written back.
    """
    flags = kernel.flags(pfn)
    newly = not flags & KPF.DIRTY
    if flags & KPF.ANON:
        if flags & KPF.SWAPCACHE:
            kernel.say("folio_mark_dirty: noop_dirty_folio of the swap cache")
        else:
            kernel.say("folio_mark_dirty: anonymous, no file to tell, only the flag")
        kernel.set_flags(pfn, KPF.DIRTY)
        return newly
    mapping = kernel.mappings.get(int(kernel.f.mapping[kernel.head(pfn)]))
    if mapping is None:
        kernel.say("folio_mark_dirty: no file, only the flag")
    else:
        assert isinstance(mapping, AddressSpace)
        # The bit also means PG_readahead, which a written page has no use for.
        kernel.clear_flags(pfn, KPF.RECLAIM)
        callback = dirty_callback(mapping.fs.name, kernel.release) or "noop_dirty_folio"
        if mapping.journalled:
            callback = "ext4_journalled_dirty_folio"
        kernel.say(f"folio_mark_dirty: {callback}")
    kernel.set_flags(pfn, KPF.DIRTY)
    return newly


def nr_dirty(kernel: Kernel) -> int:
    """NR_FILE_DIRTY: pages that wait for being written back; those without a device never count."""
    return sum(
        bool(kernel.flags(pfn) & KPF.DIRTY)
        for mapping in file_mappings(kernel)
        if mapping.fs.has_device
        for pfn in mapping.pages.values()
    )


def folio_mkclean(kernel: Kernel, pfn: int) -> bool:
    """mm/rmap.c:folio_mkclean: entries of shared mappings become read-only and clean.

    Whether there was any.
    """
    found = False
    for page in kernel.pages_of(kernel.head(pfn)):
        for mm, vma, vpn in mappings_of(kernel, page):
            entry = mm.tables.entry(vpn)
            if vma.flags & VM.SHARED and entry & (e.RW | e.DIRTY):
                pmd = mm.tables.pmd_of(vpn)
                if pmd is not None and pmd.huge:
                    pmd.huge &= ~(e.RW | e.DIRTY)
                else:
                    mm.tables.set(vpn, entry & ~(e.RW | e.DIRTY))
                found = True
    return found


def filemap_fdatawrite(
    kernel: Kernel, mapping: AddressSpace, first: int = 0, end: int | None = None
) -> int:
    """Write dirty folios that begin in pages [first, end); how many folios were.

    They are marked TOWRITE all at once and written in the order of their indexes. What is under
    write-back already is passed over. Errors are noted, nobody is told.
    """
    if not mapping.fs.has_device:
        return 0
    flags = {head: kernel.flags(head) for head in _folios(kernel, mapping, first, end)}
    dirty = [head for head in flags if flags[head] & KPF.DIRTY and not flags[head] & KPF.WRITEBACK]
    for head in dirty:
        _write_folio(kernel, mapping, head)
    if dirty:
        kernel.drain()  # mm/swap.c:__folio_batch_release, of the folios that were looked up
        kernel.say(f"write_cache_pages: {len(dirty)} folios, read-only in every shared mapping now")
    return len(dirty)


def filemap_fdatawait(
    kernel: Kernel, mapping: AddressSpace, first: int = 0, end: int | None = None
) -> None:
    """filemap_fdatawait_range(): until nothing there is under write-back."""
    for head in _folios(kernel, mapping, first, end):
        wait_writeback(kernel, head, "filemap_fdatawait_range")


def set_disk(kernel: Kernel, answers: Answers) -> None:
    """From now on the disk does so; what it kept is written, or fails, in the order of asking."""
    disk = kernel.disk
    disk.answers = answers
    if answers is Answers.HOLD:
        return
    waiting, disk.waiting = disk.waiting, []
    for mapping, head, pages in waiting:
        _end_io(kernel, mapping, head, pages)
        end_writeback(kernel, head)


def writeback_range(
    kernel: Kernel, mapping: AddressSpace, first: int = 0, end: int | None = None
) -> int:
    """filemap_write_and_wait_range(), of callers without a file. Raises Errno."""
    written = filemap_fdatawrite(kernel, mapping, first, end)
    filemap_fdatawait(kernel, mapping, first, end)
    filemap_check_errors(kernel, mapping)
    return written


def vfs_fsync_range(kernel: Kernel, file: OpenFile, first: int = 0, end: int | None = None) -> None:
    """fsync(2), fdatasync(2), and what O_SYNC and MS_SYNC ask for. Raises Errno."""
    if file.mapping.fs is SECRETMEM:
        raise Errno("EINVAL")
    if not file.mapping.fs.has_device:
        kernel.say("noop_fsync: nowhere to write to")
        return
    wait_for_disk(kernel, "fsync")
    filemap_fdatawrite(kernel, file.mapping, first, end)
    file_check_and_advance_wb_err(kernel, file)


def generic_write_sync(kernel: Kernel, file: OpenFile, first: int, pages: int) -> None:
    """After a write(2) to a file that is open with O_SYNC. Raises Errno."""
    if file.sync:
        vfs_fsync_range(kernel, file, first, first + pages)


def sync_file_range(
    kernel: Kernel, file: OpenFile, first: int, pages: int, *, waits: bool = True
) -> None:
    """sync_file_range(2) with all flags: pages only, and this file's error. Raises Errno.

    `waits` False: SYNC_FILE_RANGE_WRITE alone, which asks for no error either.
    """
    filemap_fdatawrite(kernel, file.mapping, first, first + pages)
    if not waits:
        return
    filemap_fdatawait(kernel, file.mapping, first, first + pages)
    file_check_and_advance_wb_err(kernel, file)


def sync(kernel: Kernel) -> None:
    """sync(2): everything; errors are noted for whoever asks later."""
    wait_for_disk(kernel, "sync")
    for mapping in file_mappings(kernel):
        filemap_fdatawrite(kernel, mapping)


def syncfs(kernel: Kernel, file: OpenFile) -> None:
    """syncfs(2): every file of the file system that a file lies on. Raises Errno."""
    if file.mapping.fs.has_device:
        wait_for_disk(kernel, "syncfs")
    for mapping in file_mappings(kernel):
        if mapping.fs is file.mapping.fs:
            filemap_fdatawrite(kernel, mapping)
    syncfs_check(kernel, file)


def msync(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, mode: str) -> None:
    """msync(2), `mode` "sync", "async" or "invalidate". Raises Errno.

    Only MS_SYNC of shared areas does anything. A hole is an error at the end, but of MS_ASYNC,
    which has nothing to lose, at once.
    """
    at, hole = vpn_start, False
    while at < vpn_end:
        vma = mm.vmas.find(at)
        if vma is None:
            vma, hole = mm.vmas.after(at), True
            if vma is None or vma.vpn_start >= vpn_end or mode == "async":
                break
            at = vma.vpn_start
        if mode == "invalidate" and vma.flags & VM.LOCKED:
            kernel.say("msync: MS_INVALIDATE of a locked area")
            raise Errno("EBUSY")
        end = min(vpn_end, vma.vpn_end)
        if mode == "sync" and vma.file is not None and vma.flags & VM.SHARED:
            first = vma.index_of(at)
            vfs_fsync_range(kernel, vma.file, first, first + end - at)
        at = vma.vpn_end
    if hole:
        raise Errno("ENOMEM")


# --- helpers -----------------------------------------------------------------------------


def _folios(kernel: Kernel, mapping: AddressSpace, first: int, end: int | None) -> list[int]:
    """Folios that have a page in [first, end), in the order of their indexes."""
    return list(
        dict.fromkeys(
            kernel.head(mapping.pages[index])
            for index in sorted(mapping.pages)
            if index >= first and (end is None or index < end)
        )
    )


def _check_notified(kernel: Kernel) -> None:
    """What a mapping may write to without a fault is dirty, where a file system wants to know."""
    for mapping in file_mappings(kernel):
        if not mapping.fs.tracks_writes:
            continue
        for mm, vma in mapping.vmas:
            if not vma.flags & VM.SHARED:
                continue
            for vpn in range(vma.vpn_start, vma.vpn_end):
                entry = mm.tables.entry(vpn)
                if e.is_present(entry) and entry & e.RW:
                    assert kernel.flags(e.pfn_of(entry)) & KPF.DIRTY, f"{vpn:#x}: nobody was told"


INVARIANTS.append(_check_notified)


def _write_folio(kernel: Kernel, mapping: AddressSpace, head: int) -> None:
    """One folio: clean and protected first, then on its way to the disk."""
    if folio_mkclean(kernel, head):
        # So that its buffers are dirty (folio_clear_dirty_for_io).
        kernel.set_flags(head, KPF.DIRTY)
    kernel.clear_flags(head, KPF.DIRTY | KPF.ERROR)
    index = int(kernel.f.pgoff[head])
    pages = [page for page in kernel.pages_of(head) if index + page - head < mapping.pages_in_size]
    if not write_state(kernel, mapping, head):
        return
    if kernel.disk.answers is Answers.HOLD:
        if mapping.journalled:
            wait_for_disk(kernel, "the commit of a file whose data is journalled")
        start_writeback(kernel, head)
        kernel.disk.waiting.append((mapping, head, pages))
        return
    _end_io(kernel, mapping, head, pages)


def _end_io(kernel: Kernel, mapping: AddressSpace, head: int, pages: list[int]) -> None:
    """The disk has written a folio, or could not."""
    index = int(kernel.f.pgoff[head])
    if kernel.disk.fails:
        new = any(index + page - head not in mapping.blocks for page in pages)
        if kernel.rules.failed_writes_fill_blocks and mapping.fs is EXT4:
            # Blocks that were there keep what they had; new ones have zeroes, on a new disk.
            for page in pages:
                mapping.blocks.setdefault(index + page - head, 0)
        # xfs tells of a new block's end of I/O later, when fsync waits for the page already, and
        # waiting takes the mark away (mm/filemap.c:__filemap_fdatawait_range @6.1).
        if kernel.rules.failed_writes_mark_pages and not (mapping.fs is XFS and new):
            kernel.set_flags(head, KPF.ERROR)
        mapping_set_error(kernel, mapping, "EIO")
        return
    for page in pages:
        mapping.blocks[index + page - head] = int(kernel.f.content[page])
    end = (index + (1 << kernel.order_of(head))) * PAGE_SIZE_BYTES
    mapping.disk_size = max(mapping.disk_size, min(mapping.size, end))

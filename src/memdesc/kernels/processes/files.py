"""How kernel releases differ in readahead, writing, and what file systems do."""

from __future__ import annotations

from memdesc.kernels.processes.rule import ReleaseRules, rule

__all__ = ["FileRules"]


class FileRules(ReleaseRules):
    """Readahead, writing, and what file systems do."""

    @rule
    def full_readahead_marks_half(self) -> bool:
        """A read that is as long as its window marks the middle of it; before, the next window was
        joined to it: `mm/readahead.c:page_cache_sync_ra`, since 6.11 or so."""
        return self.version >= (6, 12)

    @rule
    def readahead_ends_aligned(self) -> bool:
        """A file's readahead has folios that grow, and its windows end at their multiples:
        `mm/readahead.c:page_cache_async_ra`, since 6.16."""
        return self.version >= (6, 16)

    @rule
    def executable_reads_on(self) -> bool:
        """A fault in an executable area reads from its page on, to the end of the area at most:
        `mm/filemap.c:do_sync_mmap_readahead`, since 6.16."""
        return self.version >= (6, 16)

    @rule
    def failed_writes_fill_blocks(self) -> bool:
        """A block that was allocated for a write that failed counts as written, and shows what the
        disk has there: `fs/ext4/page-io.c:ext4_end_io_end`, until 6.15; since then it stays a
        hole."""
        return self.version < (6, 15)

    @rule
    def failed_writes_mark_pages(self) -> bool:
        """A page that could not be written has PG_error: `fs/ext4/page-io.c:ext4_finish_bio @6.1`,
        until 6.10."""
        return self.version < (6, 10)

    @rule
    def iomap_tracks_blocks(self) -> bool:
        """iomap knows which blocks of a folio are dirty: `iomap_dirty_folio`, since 6.6."""
        return self.version >= (6, 6)

    @rule
    def iomap_zeroing_flushes(self) -> bool:
        """What is dirty where a file of xfs grows is written first: `fs/iomap/buffered-io.c:
        iomap_zero_iter_flush_and_stale @6.12`; @7.2 such folios are found and zeroed."""
        return (6, 12) <= self.version < (6, 19)

    @rule
    def xfs_writes_new_end(self) -> bool:
        """What is dirty at the new end is written before a file of xfs becomes smaller:
        `fs/xfs/xfs_iops.c:xfs_setattr_size`, until 6.11 or so."""
        return self.version < (6, 12)

    @rule
    def tmpfs_takes_direct(self) -> bool:
        """Files of tmpfs may be opened with O_DIRECT: `mm/shmem.c:shmem_file_open`, since 6.6."""
        return self.version >= (6, 6)

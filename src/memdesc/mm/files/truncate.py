"""Pages of files that go: truncation, holes, eviction of what is clean.

`mm/truncate.c:truncate_pagecache, truncate_inode_pages_range, invalidate_mapping_pages;
mm/memory.c:unmap_mapping_pages; mm/shmem.c:shmem_fallocate; fs/ext4/extents.c:ext4_fallocate
@6.12`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.errors import MemdescError
from memdesc.kernels.kpageflags import KPF
from memdesc.mm.faults.zap import zap_range
from memdesc.mm.files.file_systems import EXT4, HUGETLBFS, SECRETMEM, VFAT, XFS
from memdesc.mm.files.folio_writeback import wait_writeback
from memdesc.mm.files.inode import PARTLY, AddressSpace, OpenFile
from memdesc.mm.files.iomap import xfs_setattr_size
from memdesc.mm.files.memfd import check_fallocate, check_punch, check_resize
from memdesc.mm.files.page_cache import file_mappings, read_page, remove_folio
from memdesc.mm.files.shmem import shmem_fallocate
from memdesc.mm.files.super import want_write
from memdesc.mm.files.wb_err import forget_errors
from memdesc.mm.files.writeback import dirty_folio, filemap_fdatawrite
from memdesc.mm.huge.file_split import cut_folio
from memdesc.mm.huge.huge_memory import shrink_huge_zero
from memdesc.mm.huge.large_folio import deferred_split_scan
from memdesc.mm.huge.shmem_truncate import shmem_undo_range
from memdesc.mm.hugetlb.hugetlbfs import fallocate as fallocate_hugetlb
from memdesc.mm.hugetlb.hugetlbfs import punch_hole as punch_hugetlb
from memdesc.mm.hugetlb.hugetlbfs import remove_pages, resize
from memdesc.mm.process import Errno
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "drop_caches",
    "fadvise_dontneed",
    "fallocate",
    "ftruncate",
    "invalidate_mapping_pages",
    "punch_hole",
    "set_size",
    "truncate_inode_pages",
    "unmap_mapping_pages",
]


def ftruncate(kernel: Kernel, file: OpenFile, size: int) -> None:
    """ftruncate(2), in bytes. Raises Errno."""
    if file.readonly:
        raise Errno("EINVAL")
    mapping = file.mapping
    if mapping.fs is SECRETMEM and mapping.size:
        raise Errno("EINVAL")
    want_write(kernel, mapping.fs.name)
    check_resize(mapping, size)
    set_size(kernel, mapping, size)


def set_size(kernel: Kernel, mapping: AddressSpace, size: int) -> None:
    """truncate_setsize(): pages behind the new end go, also private copies of them."""
    if mapping.fs is HUGETLBFS:
        resize(kernel, mapping, size)
        return
    if mapping.fs is XFS:
        xfs_setattr_size(kernel, mapping, size)
    shrinks = size < mapping.size
    if mapping.fs is VFAT and not shrinks:
        raise MemdescError(
            "the model does not let files of vfat grow by truncate, which fills them with zeroes",
            hint="write to the file instead",
        )
    mapping.emptied |= mapping.fs is EXT4 and not size
    mapping.size = size
    if not shrinks:
        return
    first = mapping.pages_in_size
    if size % PAGE_SIZE_BYTES:
        _zero_rest(kernel, mapping, first - 1)
    unmap_mapping_pages(kernel, mapping, first, None, even_cows=True)
    truncate_inode_pages(kernel, mapping, first, at=size // PAGE_SIZE_BYTES)
    kernel.say("truncate_pagecache: unmapped with all private copies, out of the cache")


def punch_hole(kernel: Kernel, file: OpenFile, first: int, end: int) -> None:
    """fallocate(2) with FALLOC_FL_PUNCH_HOLE of pages [first, end): private copies stay.

    Raises Errno.
    """
    mapping = file.mapping
    if file.readonly:
        raise Errno("EBADF")
    if end <= first:
        raise Errno("EINVAL")
    if mapping.fs is SECRETMEM:
        raise Errno("EOPNOTSUPP")
    want_write(kernel, mapping.fs.name)
    check_punch(mapping)
    if mapping.fs is HUGETLBFS:
        punch_hugetlb(kernel, mapping, first, end)
        return
    unmap_mapping_pages(kernel, mapping, first, end, even_cows=False)
    truncate_inode_pages(kernel, mapping, first, end)
    kernel.say("truncate_pagecache_range: unmapped except private copies, out of the cache")


def unmap_mapping_pages(
    kernel: Kernel, mapping: AddressSpace, first: int, end: int | None, *, even_cows: bool
) -> None:
    """Empty the entries of every area that maps pages [first, end) of a file."""
    for mm, vma in tuple(mapping.vmas):
        low = max(first, vma.pgoff)
        high = vma.pgoff + vma.pages if end is None else min(end, vma.pgoff + vma.pages)
        if low < high:
            base = vma.vpn_start - vma.pgoff
            zap_range(
                kernel, mm, vma, base + low, base + high,
                even_cows=even_cows, drop_markers=False,
            )  # fmt: skip


def truncate_inode_pages(
    kernel: Kernel, mapping: AddressSpace, first: int, end: int | None = None,
    *, at: int | None = None,
) -> None:  # fmt: skip
    """truncate_inode_pages_range(): out of the cache, dirty or not; blocks go as well.

    `at`: the page in which the range begins, if that is the one before `first`.
    """
    if mapping.fs is HUGETLBFS:
        remove_pages(kernel, mapping, first, end)
        return
    if mapping.is_shmem:
        shmem_undo_range(kernel, mapping, first, end, at=at)
        return
    for edge in (first, end):
        if edge is not None:
            cut_folio(kernel, mapping, edge)
    found = False
    for index in sorted(mapping.pages):
        pfn = mapping.pages.get(index)
        if pfn is None or index < first or (end is not None and index >= end):
            continue
        head_index = index - (pfn - kernel.head(pfn))
        after = head_index + (1 << kernel.order_of(pfn))
        if head_index < first or (end is not None and after > end):
            kernel.f.content[pfn] = 0  # of a folio that could not be split
            continue
        kernel.clear_flags(pfn, KPF.DIRTY)
        remove_folio(kernel, mapping, pfn)
        found = True
    if found:
        kernel.drain()  # mm/swap.c:__folio_batch_release, of the folios that were looked up
    _clear_shadows(mapping, first, end)
    for index in [at for at in mapping.blocks if first <= at and (end is None or at < end)]:
        del mapping.blocks[index]


def invalidate_mapping_pages(
    kernel: Kernel, mapping: AddressSpace, first: int, end: int | None
) -> int:
    """Drop what is clean, unmapped and not in use; how many pages went."""
    dropped = 0
    found = False
    for index in sorted(mapping.pages):
        pfn = mapping.pages.get(index)
        if pfn is None or index < first or (end is not None and index >= end):
            continue
        found = True
        pages = 1 << kernel.order_of(pfn)
        flags = kernel.flags(pfn)
        private = bool(flags & KPF.PRIVATE)
        if flags & (KPF.DIRTY | KPF.WRITEBACK) or kernel.mapcount(pfn):
            continue
        if kernel.refs(pfn) > pages + private:
            continue
        remove_folio(kernel, mapping, pfn)
        dropped += pages
    _clear_shadows(mapping, first, end)
    if found:
        kernel.drain()  # mm/swap.c:__folio_batch_release, of the folios that were looked up
    return dropped


def fadvise_dontneed(kernel: Kernel, file: OpenFile, first: int, pages: int) -> None:
    """POSIX_FADV_DONTNEED: nothing for files without a device (`mm/fadvise.c:generic_fadvise`)."""
    mapping = file.mapping
    if not mapping.fs.has_device:
        kernel.say("generic_fadvise: nothing to do without a device")
        return
    filemap_fdatawrite(kernel, mapping, first, first + pages)
    kernel.drain()
    dropped = invalidate_mapping_pages(kernel, mapping, first, first + pages)
    kernel.say(f"invalidate_mapping_pages: {dropped} pages dropped")


def drop_caches(kernel: Kernel, value: int) -> None:
    """/proc/sys/vm/drop_caches: clean unmapped pages of every file, and with 2 all that shrinkers
    can give (`fs/drop_caches.c`)."""
    if not 1 <= value <= 4:
        raise Errno("EINVAL")
    if value & 1:
        kernel.drain()
        for mapping in file_mappings(kernel):
            invalidate_mapping_pages(kernel, mapping, 0, None)
    if value & 2:
        prune_inodes(kernel)
        deferred_split_scan(kernel)
        shrink_huge_zero(kernel)


def prune_inodes(kernel: Kernel) -> None:
    """fs/inode.c:prune_icache_sb: inodes that nobody has open, and of which nothing is dirty, go.

    With them go their clean pages, and errors that nobody asked for.
    """
    for mapping in file_mappings(kernel):
        if mapping.opens or not mapping.fs.has_device:
            continue
        if any(kernel.flags(pfn) & KPF.DIRTY for pfn in mapping.pages.values()):
            continue
        invalidate_mapping_pages(kernel, mapping, 0, None)
        if not mapping.pages:
            forget_errors(kernel, mapping)


def fallocate(kernel: Kernel, file: OpenFile, first: int, pages: int, mode: str) -> None:
    """fallocate(2) without FALLOC_FL_PUNCH_HOLE. Raises Errno."""
    mapping = file.mapping
    if file.readonly:
        raise Errno("EBADF")
    if pages <= 0:
        raise Errno("EINVAL")
    if mapping.fs is SECRETMEM:
        raise Errno("EOPNOTSUPP")
    want_write(kernel, mapping.fs.name)
    if mapping.is_shmem:
        check_fallocate(mapping, (first + pages) * PAGE_SIZE_BYTES)
        shmem_fallocate(kernel, mapping, first, pages, mode)
    elif mapping.fs is HUGETLBFS:
        check_fallocate(mapping, (first + pages) * PAGE_SIZE_BYTES)
        fallocate_hugetlb(kernel, mapping, first, pages, mode)
    else:
        from memdesc.mm.files.ext4 import ext4_fallocate

        if mapping.fs is not EXT4:
            raise MemdescError(
                f"the model knows no fallocate of {mapping.fs.name}",
                hint="use a file on ext4 or tmpfs",
            )
        ext4_fallocate(kernel, mapping, first, pages, mode)


# --- helpers -----------------------------------------------------------------------------


def _clear_shadows(mapping: AddressSpace, first: int, end: int | None) -> None:
    """clear_shadow_entries(): what was reclaimed there is forgotten."""
    for index in [at for at in mapping.shadows if first <= at and (end is None or at < end)]:
        del mapping.shadows[index]


def _zero_rest(kernel: Kernel, mapping: AddressSpace, index: int) -> None:
    """truncate_inode_partial_folio(), ext4_block_truncate_page(): zeroes behind the end."""
    pfn = read_page(kernel, mapping, index, create=False)
    if pfn is None or not kernel.f.content[pfn]:
        return
    wait_writeback(kernel, pfn, "truncate_inode_partial_folio")
    kernel.f.content[pfn] |= PARTLY
    dirty_folio(kernel, pfn)

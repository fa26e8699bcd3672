"""The page cache: folios of a file by index, reading and writing files through it.

`mm/filemap.c:__filemap_add_folio, __filemap_remove_folio, filemap_read, generic_perform_write,
do_mincore's mincore_page, cachestat @6.12`.  A folio in the cache holds one reference per page,
and one more for private data (buffer heads).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.check import HOLDERS
from memdesc.mm.files.folio_writeback import wait_writeback
from memdesc.mm.files.inode import HUGETLBFS, SECRETMEM, AddressSpace, OpenFile
from memdesc.mm.files.memfd import check_write
from memdesc.mm.frames import BATCH_ADD
from memdesc.mm.hugetlb.hugetlbfs import read
from memdesc.mm.process import Errno
from memdesc.mm.reclaim.mark_accessed import mark_accessed
from memdesc.mm.reclaim.swap_state import device_of
from memdesc.mm.reclaim.workingset import Shadow, cache_refault, is_recent
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "add_folio",
    "attach_private",
    "cachestat",
    "detach_private",
    "file_mappings",
    "generic_write_checks",
    "is_cached",
    "pread",
    "pwrite",
    "read_page",
    "remove_folio",
]

_PRIVATE = int(KPF.PRIVATE)


def add_folio(
    kernel: Kernel, mapping: AddressSpace, index: int, order: int = 0,
    *, flags: int | None = None, write: bool = False,
) -> int:  # fmt: skip
    """filemap_add_folio(): a new zeroed folio at an index; its first frame.

    `write`: write(2) is about to fill it (__GFP_WRITE). Raises OutOfMemory.
    """
    flags = mapping.fs.new_flags if flags is None else flags
    if mapping.unevictable:
        flags |= int(KPF.UNEVICTABLE)
    pfn = kernel.alloc_folio(
        mapping.fs.kind,
        order,
        flags=flags,
        mapping=mapping.number,
        index=index,
    )
    for page in range(1 << order):
        assert index + page not in mapping.pages
        mapping.pages[index + page] = pfn + page
    kernel.get(pfn, (1 << order) - 1)
    cache_refault(kernel, mapping, index, pfn, write=write)
    kernel.batch(pfn, BATCH_ADD)
    return pfn


def remove_folio(kernel: Kernel, mapping: AddressSpace, pfn: int) -> None:
    """filemap_remove_folio(): out of the cache; who still holds it keeps it without a file."""
    wait_writeback(kernel, pfn, "whoever takes a page out of the page cache")
    head = kernel.head(pfn)
    index, pages = int(kernel.f.pgoff[head]), 1 << int(kernel.f.order[head])
    detach_private(kernel, head)
    for page in range(pages):
        del mapping.pages[index + page]
    kernel.f.mapping[head] = 0
    kernel.put(head, pages)


def attach_private(kernel: Kernel, pfn: int) -> None:
    """folio_attach_private(): buffer heads, and the reference that they hold."""
    if not kernel.flags(pfn) & _PRIVATE:
        kernel.set_flags(pfn, _PRIVATE)
        kernel.get(pfn)


def detach_private(kernel: Kernel, pfn: int) -> None:
    """folio_detach_private()."""
    if kernel.flags(pfn) & _PRIVATE:
        kernel.clear_flags(pfn, _PRIVATE)
        kernel.put(pfn)


def read_page(
    kernel: Kernel, mapping: AddressSpace, index: int, *, create: bool = True
) -> int | None:
    """The page at an index, brought into the cache with its content; None: a hole that stays one.

    `create`: a hole of shmem gets a page. Raises OutOfMemory, Errno where a disk fails.
    """
    found = mapping.pages.get(index)
    if mapping.is_shmem and (create or index in mapping.swapped or index in mapping.lost):
        from memdesc.mm.files.shmem import shmem_get_page

        return shmem_get_page(kernel, mapping, index)
    if mapping.fs.has_device:
        from memdesc.mm.files.aops import fill_folio, read_folio

        if found is None:
            found = read_folio(kernel, mapping, index)
        elif not kernel.flags(found) & KPF.UPTODATE:
            fill_folio(kernel, mapping, kernel.head(found))
        if not kernel.flags(found) & KPF.UPTODATE:
            raise Errno("EIO")
        return found
    if found is not None or mapping.is_shmem:
        return found
    return add_folio(kernel, mapping, index)


def pread(kernel: Kernel, file: OpenFile, first: int, pages: int | None) -> tuple[int, ...]:
    """pread(2) of whole pages: their contents, as far as the file goes. Raises Errno."""
    mapping = file.mapping
    if mapping.fs is SECRETMEM:
        raise Errno("ESPIPE")
    if mapping.fs is HUGETLBFS:
        return tuple(
            read(kernel, mapping, first, mapping.pages_in_size if pages is None else pages)
        )
    end = mapping.pages_in_size if pages is None else min(first + pages, mapping.pages_in_size)
    last = file.ra.get("prev", 0) - 1
    if not mapping.is_shmem:
        from memdesc.mm.files.readahead import filemap_get_pages

        filemap_get_pages(kernel, file, first, end)
    found: list[int] = []
    for index in range(first, end):
        pfn = read_page(kernel, mapping, index, create=False)
        if pfn is not None:
            if mapping.is_shmem and kernel.f.flags[pfn] & KPF.HWPOISON:
                kernel.say("shmem_file_read_iter: the page was lost to a memory error")
                if not found:
                    raise Errno("EIO")
                break
            # filemap_read() counts only once what is read again and again (pos_same_folio).
            order = kernel.order_of(pfn)
            if mapping.is_shmem or last < 0 or index >> order != last >> order:
                mark_accessed(kernel, pfn)
        last = index
        found.append(int(kernel.f.content[pfn]) if pfn is not None else 0)
    return tuple(found)


def pwrite(
    kernel: Kernel, file: OpenFile, first: int, contents: Sequence[int], *, limit: int | None = None
) -> int:
    """pwrite(2) of whole pages through the cache: bytes written. Raises Errno.

    `limit`: RLIMIT_FSIZE in pages. What came before an error counts, and the error is not told.
    """
    mapping = file.mapping
    if file.readonly:
        raise Errno("EBADF")
    if mapping.fs is SECRETMEM:
        raise Errno("ESPIPE")
    if mapping.fs is HUGETLBFS:
        raise Errno("EINVAL")
    if file.append:
        # Linux's pwrite() appends as well, whatever the offset (open(2), BUGS).
        first = mapping.size // PAGE_SIZE_BYTES
    if mapping.is_shmem:
        from memdesc.mm.files.shmem import shmem_write_begin as write_begin
    else:
        from memdesc.mm.files.aops import write_begin
    from memdesc.mm.files.super import want_write
    from memdesc.mm.files.writeback import dirty_folio, generic_write_sync

    contents = contents[: generic_write_checks(kernel, first, len(contents), limit)]
    want_write(kernel, mapping.fs.name)
    for at, content in enumerate(contents):
        index = first + at
        try:
            check_write(mapping, (index + 1) * PAGE_SIZE_BYTES)
            pfn = write_begin(kernel, mapping, index, len(contents) - at)
        except Errno:
            if not at:
                raise
            contents = contents[:at]
            break
        kernel.f.content[pfn] = content
        mapping.size = max(mapping.size, (index + 1) * PAGE_SIZE_BYTES)
        dirty_folio(kernel, pfn)
        if mapping.is_shmem:
            mark_accessed(kernel, pfn)  # shmem_get_folio_gfp(), SGP_WRITE
    kernel.say("generic_perform_write: through the page cache, which is dirty now")
    generic_write_sync(kernel, file, first, len(contents))
    return len(contents) * PAGE_SIZE_BYTES


def generic_write_checks(kernel: Kernel, first: int, pages: int, limit: int | None) -> int:
    """How many pages may be written from `first` on under RLIMIT_FSIZE. Raises Errno."""
    if limit is None:
        return pages
    if first >= limit:
        kernel.say("generic_write_checks: RLIMIT_FSIZE")
        raise Errno("EFBIG")
    return min(pages, limit - first)


def is_cached(kernel: Kernel, file: OpenFile, index: int) -> bool:
    """mm/mincore.c:mincore_page: whether a page of a file is in the cache, with its content."""
    pfn = file.mapping.pages.get(index)
    return pfn is not None and bool(kernel.flags(pfn) & KPF.UPTODATE)


def cachestat(
    kernel: Kernel, mapping: AddressSpace, first: int, pages: int | None
) -> tuple[int, int, int, int, int]:
    """cachestat(2): cached, dirty, under writeback, evicted, recently evicted. Raises Errno."""
    if not kernel.rules.cachestat:
        raise Errno("ENOSYS")
    end = mapping.pages_in_size if pages is None else first + pages
    cached = [pfn for index, pfn in mapping.pages.items() if first <= index < end]
    # Dirty pages are counted by their tags, which file systems without a device never set.
    tagged = [kernel.flags(pfn) for pfn in cached] if mapping.fs.has_device else []
    dirty = sum(bool(flags & KPF.DIRTY) for flags in tagged)
    writing = sum(bool(flags & KPF.WRITEBACK) for flags in tagged)
    away: list[Shadow | None] = [mapping.shadows[at] for at in mapping.shadows if first <= at < end]
    away += [
        device_of(kernel).shadows.get(slot)
        for at, slot in mapping.swapped.items()
        if first <= at < end
    ]
    # What swap could not give back is an entry, too, of which nothing is remembered.
    away += [None for at in mapping.lost if first <= at < end]
    recently = sum(shadow is not None and is_recent(kernel, shadow, file=True) for shadow in away)
    return len(cached), dirty, writing, len(away), recently


def file_mappings(kernel: Kernel) -> list[AddressSpace]:
    """Every file that lives."""
    return [found for found in kernel.mappings.values() if isinstance(found, AddressSpace)]


# --- helpers -----------------------------------------------------------------------------


def _held(kernel: Kernel) -> Iterator[tuple[int, int]]:
    """References of the page cache; what it says of its folios must be what they say."""
    for mapping in file_mappings(kernel):
        for index, pfn in mapping.pages.items():
            head = kernel.head(pfn)
            assert int(kernel.f.mapping[head]) == mapping.number, f"frame {pfn:#x}: another file"
            assert int(kernel.f.pgoff[head]) + pfn - head == index, f"frame {pfn:#x}: index"
            yield head, 1 + (pfn == head and bool(kernel.f.flags[head] & _PRIVATE))


HOLDERS.append(_held)

"""Files of huge pages: memfd with MFD_HUGETLB, and what is behind MAP_HUGETLB.

`fs/hugetlbfs/inode.c:hugetlbfs_file_mmap, hugetlbfs_punch_hole, hugetlbfs_fallocate,
hugetlbfs_read_iter, remove_inode_hugepages`, `mm/hugetlb.c:hugetlb_unreserve_pages @6.12`.  They
can be mapped, read, cut and filled with fallocate, but not written with write(2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.files.inode import HUGETLBFS, AddressSpace, OpenFile, new_inode
from memdesc.mm.hugetlb.hugetlb_pool import HUGE, cache_refs, give_back, take_reserved
from memdesc.mm.process import Errno, OutOfMemory
from memdesc.model.compiled import array
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "add_to_cache", "drop_from_cache", "fallocate", "hugetlb_file", "punch_hole", "read",
    "remove_pages", "resize",
]  # fmt: skip

_BYTES: Final = HUGE * PAGE_SIZE_BYTES


def hugetlb_file(kernel: Kernel, pages: int) -> OpenFile:
    """The file behind MAP_HUGETLB | MAP_ANONYMOUS. The caller maps it and closes it."""
    inode = new_inode(kernel, HUGETLBFS, "/anon_hugepage (deleted)")
    inode.size = -(-pages // HUGE) * _BYTES
    inode.opens = 1
    return OpenFile(inode)


def add_to_cache(kernel: Kernel, inode: AddressSpace, index: int, head: int) -> None:
    """hugetlb_add_to_page_cache(): the caller's reference becomes the cache's."""
    kernel.hugetlb.cache[inode.number, index] = head
    kernel.f.mapping[head] = inode.number
    kernel.f.pgoff[head] = index * HUGE
    kernel.set_flags(head, KPF.DIRTY)
    kernel.get(head, cache_refs(kernel) - 1)


def drop_from_cache(kernel: Kernel, number: int, index: int) -> None:
    """hugetlb_delete_from_page_cache()."""
    head = kernel.hugetlb.cache.pop((number, index))
    kernel.f.mapping[head] = 0
    kernel.clear_flags(head, int(KPF.DIRTY | KPF.UPTODATE))
    kernel.put(head, cache_refs(kernel))


def resize(kernel: Kernel, inode: AddressSpace, size: int) -> None:
    """hugetlbfs_setattr(): a file of whole huge pages; what is cut off goes. Raises Errno."""
    if size % _BYTES:
        raise Errno("EINVAL")
    from memdesc.mm.files.truncate import unmap_mapping_pages

    inode.size = size
    first = size // PAGE_SIZE_BYTES
    unmap_mapping_pages(kernel, inode, first, None, even_cows=True)
    remove_pages(kernel, inode, first)


def remove_pages(kernel: Kernel, inode: AddressSpace, first: int, end: int | None = None) -> None:
    """remove_inode_hugepages(): whole pages of a file and their reservations go.

    In pages of 4 KiB; `end` None: to the end. Nobody maps them any more.
    """
    pool = kernel.hugetlb
    low, high = -(-first // HUGE), None if end is None else end // HUGE
    inside = range(low, 1 << 40 if high is None else high)
    for number, index in [k for k in pool.cache if k[0] == inode.number and k[1] in inside]:
        drop_from_cache(kernel, number, index)
    resv = pool.of_file.get(inode.number)
    if resv is None:
        return
    give_back(kernel, resv, {index for index in resv.unused if index in inside})
    if end is None and not first:
        pool.resvs.remove(pool.of_file.pop(inode.number))


def punch_hole(kernel: Kernel, inode: AddressSpace, first: int, end: int) -> None:
    """hugetlbfs_punch_hole(): whole huge pages go, private copies too; parts are zeroed."""
    from memdesc.mm.files.truncate import unmap_mapping_pages

    low, high = -(-first // HUGE) * HUGE, end // HUGE * HUGE
    edges = [(first, end)] if high < low else [(first, low), (high, end)]
    for start, stop in edges:
        head = kernel.hugetlb.cache.get((inode.number, start // HUGE))
        if head is not None and start < stop:
            content = array(kernel.f.content)
            content[head + start % HUGE : head + start % HUGE + stop - start] = 0
            kernel.say("hugetlbfs_zero_partial_page: a part of a huge page is zeroed")
    if low < high:
        unmap_mapping_pages(kernel, inode, low, high, even_cows=True)
        remove_pages(kernel, inode, low, high)
        kernel.say("hugetlbfs_punch_hole: unmapped everywhere, and out of the file")


def fallocate(kernel: Kernel, inode: AddressSpace, first: int, pages: int, mode: str) -> None:
    """hugetlbfs_fallocate(): pages are taken from the pool now, and zeroed. Raises Errno."""
    if mode not in ("grow", "keep_size"):
        raise Errno("EOPNOTSUPP")
    for index in range(first // HUGE, -(-(first + pages) // HUGE)):
        if (inode.number, index) not in kernel.hugetlb.cache:
            add_to_cache(kernel, inode, index, _take_for_file(kernel, inode, index))
    if mode == "grow":
        inode.size = max(inode.size, (first + pages) * PAGE_SIZE_BYTES)


def read(kernel: Kernel, inode: AddressSpace, first: int, pages: int) -> list[int]:
    """hugetlbfs_read_iter(): contents up to the end of the file; holes are zeroes. Raises Errno."""
    pool = kernel.hugetlb
    found: list[int] = []
    for index in range(first, min(first + pages, inode.pages_in_size)):
        head = pool.cache.get((inode.number, index // HUGE))
        lost = pool.raw_errors.get(head, set()) if head is not None else set()
        if lost and (not kernel.rules.hugetlb_reads_around_lost or _at(head, index) in lost):
            if not found:
                raise Errno("EIO")
            break
        found.append(0 if head is None else int(kernel.f.content[_at(head, index)]))
    return found


# --- helpers -----------------------------------------------------------------------------


def _at(head: int | None, index: int) -> int:
    assert head is not None
    return head + index % HUGE


def _take_for_file(kernel: Kernel, inode: AddressSpace, index: int) -> int:
    """alloc_hugetlb_folio() for an area that does not exist, of the whole file. Raises Errno."""
    try:
        head = take_reserved(kernel, kernel.hugetlb.of_file.get(inode.number), index)
    except OutOfMemory:
        raise Errno("ENOSPC") from None
    kernel.set_flags(head, KPF.UPTODATE)
    return head

"""shmem: files that live in the page cache only, of tmpfs, memfd and shared anonymous memory.

`mm/shmem.c:shmem_get_folio_gfp, shmem_alloc_and_add_folio, shmem_write_begin, shmem_fallocate
@6.12`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.files.page_cache import add_folio
from memdesc.mm.files.writeback import dirty_folio
from memdesc.mm.huge.shmem_huge import FaultAt, new_folio_orders
from memdesc.mm.huge.thp_orders import PMD_ORDER
from memdesc.mm.huge.thp_stats import count_thp
from memdesc.mm.process import Errno, OutOfMemory
from memdesc.mm.reclaim.swapfile import shmem_swapin
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.files.inode import AddressSpace
    from memdesc.mm.kernel import Kernel

__all__ = ["shmem_fallocate", "shmem_get_page", "shmem_write_begin"]


def shmem_get_page(
    kernel: Kernel, mapping: AddressSpace, index: int, *, fault: FaultAt | None = None
) -> int:
    """shmem_get_folio(): the page at an index; a hole gets a zeroed one, a swapped one comes back.

    `fault`: where it is wanted, if it is wanted in memory. Raises OutOfMemory, Errno where swap
    does not give it back.
    """
    found = mapping.pages.get(index)
    if found is not None:
        if not kernel.flags(found) & KPF.UPTODATE:
            kernel.set_flags(found, int(KPF.UPTODATE))
            kernel.say("shmem_get_folio: reserved by fallocate, zeroed now")
        return found
    if index in mapping.lost:
        kernel.say("shmem_swapin_folio: swap did not give it back, EIO for ever")
        raise Errno("EIO")
    if index in mapping.swapped:
        return shmem_swapin(kernel, mapping, index, fault=fault)
    return _new_folio(kernel, mapping, index, fault=fault)


def shmem_write_begin(kernel: Kernel, mapping: AddressSpace, index: int, pages: int) -> int:
    """The page that write(2) fills next; `pages` are still to come. Raises OutOfMemory, Errno."""
    if index in mapping.pages or index in mapping.swapped or index in mapping.lost:
        found = shmem_get_page(kernel, mapping, index)
        if kernel.f.flags[found] & KPF.HWPOISON:
            kernel.say("shmem_write_begin: the page was lost to a memory error")
            raise Errno("EIO")
        return found
    # A file system with large folios is asked for as much as the largest could take.
    write_end = min(index + pages, ((index >> PMD_ORDER) + 1) << PMD_ORDER)
    return _new_folio(kernel, mapping, index, write_end=write_end)


def shmem_fallocate(
    kernel: Kernel, mapping: AddressSpace, first: int, pages: int, mode: str
) -> None:
    """fallocate(2) of tmpfs: pages are allocated, and dirty so that they last. Raises Errno.

    They are zeroed, and uptodate, only when somebody uses them.
    """
    if mode not in ("grow", "keep_size"):
        raise Errno("EOPNOTSUPP")
    end = first + pages
    mapping.fallocend = max(mapping.fallocend, end)
    index = first
    while index < end:
        pfn = mapping.pages.get(index)
        if pfn is None and (index in mapping.swapped or index in mapping.lost):
            pfn = shmem_get_page(kernel, mapping, index)
        if pfn is None:
            pfn = _new_folio(
                kernel, mapping, index, write_end=end, flags=int(KPF.SWAPBACKED)
            )  # fmt: skip
        elif not kernel.flags(pfn) & KPF.UPTODATE:
            kernel.set_flags(pfn, int(KPF.UPTODATE))
        dirty_folio(kernel, pfn)
        head = kernel.head(pfn)
        index = int(kernel.f.pgoff[head]) + (1 << kernel.order_of(head))
    if mode == "grow":
        mapping.size = max(mapping.size, end * PAGE_SIZE_BYTES)


# --- helpers -----------------------------------------------------------------------------


def _new_folio(
    kernel: Kernel, mapping: AddressSpace, index: int,
    *, fault: FaultAt | None = None, write_end: int = 0, flags: int | None = None,
) -> int:  # fmt: skip
    """shmem_alloc_and_add_folio(): the largest that is allowed and free; its page at the index."""
    for order in new_folio_orders(kernel, mapping, index, fault, write_end):
        first = index >> order << order
        try:
            pfn = add_folio(kernel, mapping, first, order, flags=flags)
        except OutOfMemory:
            count_thp(kernel, order, "thp_file_fallback")
            continue
        count_thp(kernel, order, "thp_file_alloc")
        kernel.say(f"shmem_get_folio: a hole, a new zeroed folio of {1 << order} pages")
        return pfn + index - first
    kernel.say("shmem_get_folio: a hole, a new zeroed page in the cache")
    return add_folio(kernel, mapping, index, flags=flags)

"""shmem: files that live in the page cache only, of tmpfs, memfd and shared anonymous memory.

`mm/shmem.c:shmem_get_folio_gfp, shmem_write_begin, shmem_fallocate @6.12`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.files import PAGE_BYTES
from memdesc.mm.page_cache import add_folio
from memdesc.mm.process import Errno

if TYPE_CHECKING:
    from memdesc.mm.files import AddressSpace
    from memdesc.mm.kernel import Kernel

__all__ = ["shmem_get_page", "shmem_write_begin"]


def shmem_get_page(kernel: Kernel, mapping: AddressSpace, index: int) -> int:
    """shmem_get_folio(): the page at an index; a hole gets a zeroed one, a swapped one comes back.

    Raises OutOfMemory.
    """
    found = mapping.pages.get(index)
    if found is not None:
        if not kernel.flags(found) & KPF.UPTODATE:
            kernel.set_flags(found, int(KPF.UPTODATE))
            kernel.say("shmem_get_folio: reserved by fallocate, zeroed now")
        return found
    if index in mapping.swapped:
        from memdesc.mm.swapfile import shmem_swapin

        return shmem_swapin(kernel, mapping, index)
    kernel.say("shmem_get_folio: a hole, a new zeroed page in the cache")
    return add_folio(kernel, mapping, index)


def shmem_write_begin(kernel: Kernel, mapping: AddressSpace, index: int, pages: int) -> int:
    """The page that write(2) fills next. Raises OutOfMemory."""
    return shmem_get_page(kernel, mapping, index)


def shmem_fallocate(
    kernel: Kernel, mapping: AddressSpace, first: int, pages: int, mode: str
) -> None:
    """fallocate(2) of tmpfs: pages are allocated, and dirty so that they last. Raises Errno.

    They are zeroed, and uptodate, only when somebody uses them.
    """
    if mode not in ("grow", "keep_size"):
        raise Errno("EOPNOTSUPP")
    from memdesc.mm.writeback import dirty_folio

    for index in range(first, first + pages):
        if index not in mapping.pages and index not in mapping.swapped:
            pfn = add_folio(kernel, mapping, index, flags=int(KPF.SWAPBACKED))
            dirty_folio(kernel, pfn)
    if mode == "grow":
        mapping.size = max(mapping.size, (first + pages) * PAGE_BYTES)

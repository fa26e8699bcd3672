"""Truncation and holes of files in memory.

`mm/shmem.c:shmem_undo_range, shmem_get_partial_folio, shmem_free_swap @6.12`.  What lies wholly in
the range goes; a large folio at its edge is zeroed there, split, and the pieces go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.mm.files.writeback import dirty_folio
from memdesc.mm.huge.file_split import truncate_partial_folio
from memdesc.mm.process import Errno
from memdesc.mm.reclaim.swapfile import free_shmem_slot, shmem_swapin

if TYPE_CHECKING:
    from memdesc.mm.files.inode import AddressSpace
    from memdesc.mm.kernel import Kernel

__all__ = ["shmem_undo_range"]


def shmem_undo_range(
    kernel: Kernel, mapping: AddressSpace, first: int, end: int | None, *, at: int | None = None
) -> None:
    """Throw pages [first, end) of a file away; `end` None: all that follow.

    `at`: the page in which the range begins in truth, if that is not the first of it.
    """
    if mapping.fallocend > first and (end is None or mapping.fallocend <= end):
        mapping.fallocend = first
    start = first
    _whole_ones(kernel, mapping, start, end)
    begins = first if at is None else at
    edge = _partial_folio(kernel, mapping, begins)
    same = end is not None and begins == end - 1
    if edge is not None:
        head = kernel.head(edge)
        index, after = _extent(kernel, head)
        same = end is not None and end <= after
        dirty_folio(kernel, head)
        if not truncate_partial_folio(kernel, mapping, head, first, end, at=begins):
            start = after
            end = index if same else end
    if not same and end is not None:
        edge = _partial_folio(kernel, mapping, end - 1)
        if edge is not None:
            head = kernel.head(edge)
            index = int(kernel.f.pgoff[head])
            dirty_folio(kernel, head)
            if not truncate_partial_folio(kernel, mapping, head, first, end):
                end = index
    _whole_ones(kernel, mapping, start, end)


# --- helpers -----------------------------------------------------------------------------


def _whole_ones(kernel: Kernel, mapping: AddressSpace, first: int, end: int | None) -> None:
    """Folios and entries of swap that lie wholly in a range."""
    found = False
    for index in sorted(mapping.pages):
        pfn = mapping.pages.get(index)
        if pfn is None or not _lies_in(first, end, *_extent(kernel, kernel.head(pfn))):
            continue
        truncate_partial_folio(kernel, mapping, pfn, first, end)
        found = True
    if found:
        kernel.drain()  # mm/swap.c:__folio_batch_release, of the folios that were looked up
    thrown = {at for at in mapping.lost if _lies_in(first, end, at, at + 1)}
    mapping.lost -= thrown
    mapping.lost_twice += len(thrown)
    for index in sorted(mapping.swapped):
        size = 1 << mapping.swap_orders.get(index, 0)
        low = index // size * size
        if index not in mapping.swapped or not _lies_in(first, end, low, low + size):
            continue
        mapping.swap_orders.pop(index, None)
        free_shmem_slot(kernel, mapping.swapped.pop(index))


def _lies_in(first: int, end: int | None, low: int, high: int) -> bool:
    return first <= low and (end is None or high <= end)


def _extent(kernel: Kernel, head: int) -> tuple[int, int]:
    """Index of a folio, and of what follows it."""
    index = int(kernel.f.pgoff[head])
    return index, index + (1 << kernel.order_of(head))


def _partial_folio(kernel: Kernel, mapping: AddressSpace, index: int) -> int | None:
    """shmem_get_partial_folio(): the page at an index; one in swap is read, if the file has it."""
    pfn = mapping.pages.get(index)
    if pfn is None and index in mapping.swapped and index < mapping.pages_in_size:
        try:
            pfn = shmem_swapin(kernel, mapping, index)
        except Errno:
            return None
    return pfn

"""Reclaim of shared memory: large folios go to swap as they are, or in pieces.

`mm/shmem.c:shmem_writepage @6.12, shmem_writeout @7.2; mm/vmscan.c:shrink_folio_list @6.1`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.huge.large_folio import split_folio
from memdesc.mm.reclaim.swapfile import shmem_writepage

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["is_shmem", "pageout_shmem", "split_shmem"]


def is_shmem(flags: int) -> bool:
    """Whether flags are those of a page in the page cache of a file in memory."""
    return flags & (KPF.SWAPBACKED | KPF.ANON | KPF.SWAPCACHE) == KPF.SWAPBACKED


def pageout_shmem(kernel: Kernel, head: int, pieces: list[int]) -> bool:
    """Write a folio that nobody maps to swap; False where it stays.

    A large one is split where the file ends in it, or where swap has no room for all of it at once:
    see split_shmem().
    """
    mapping = kernel.mappings[int(kernel.f.mapping[head])]
    index = int(kernel.f.pgoff[head])
    last = max(mapping.pages_in_size, mapping.fallocend)
    cut = index < last < index + (1 << kernel.order_of(head))
    if kernel.order_of(head) and cut and not split_shmem(kernel, head, pieces):
        return False
    if shmem_writepage(kernel, mapping, head):
        return True
    if kernel.swap is None or not kernel.order_of(head):
        return False
    return split_shmem(kernel, head, pieces) and shmem_writepage(kernel, mapping, head)


def split_shmem(kernel: Kernel, head: int, pieces: list[int]) -> bool:
    """Split a large folio, of which the caller holds a reference.

    Reclaim goes on with the other `pieces` that the file still has: a reference each is added.
    """
    mapping = kernel.mappings[int(kernel.f.mapping[head])]
    others = [pfn for pfn in kernel.pages_of(head) if pfn != head]
    if split_folio(kernel, head, held=1):
        return False
    for piece in others:
        if mapping.pages.get(int(kernel.f.pgoff[piece])) == piece:
            kernel.get(piece)
            pieces.append(piece)
    return True

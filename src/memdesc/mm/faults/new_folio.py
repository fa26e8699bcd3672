"""New anonymous folios: where they come from, and what the area they are mapped into gives them.

`mm/rmap.c:folio_add_new_anon_rmap`, `mm/swap.c:folio_add_lru_vma, folio_add_lru @6.12`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock_batch import mlock_new_folio
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.frames import ANON_NEW, BATCH_ADD, C_LRU_GEN
from memdesc.mm.process import Mm
from memdesc.mm.reclaim.mark_accessed import mark_new_folio
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["is_plain", "map_new_anon_page", "marked_by_area", "new_anon_folio"]


def new_anon_folio(kernel: Kernel, vma: Vma, vpn: int, order: int = 0) -> int:
    """An exclusive folio for the aligned range that begins at a page, not mapped yet.

    Raises OutOfMemory.
    """
    assert vma.anon_vma is not None
    return kernel.alloc_folio(
        MemoryType.ANON,
        order,
        flags=ANON_NEW & ~int(KPF.SWAPBACKED) if vma.flags & VM.DROPPABLE else ANON_NEW,
        mapping=vma.anon_vma.number,
        index=vma.index_of(vpn),
    )


def map_new_anon_page(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pfn: int, bits: int) -> None:
    """The entry of a page from new_anon_folio(), its rmap, and its place in the batch."""
    mm.tables.set(vpn, e.present(pfn, bits))
    kernel.f.maps[pfn] = 1
    kernel.batch(pfn, BATCH_ADD)
    marked_by_area(kernel, vma, pfn)


def is_plain(kernel: Kernel, vma: Vma) -> bool:
    """Whether new folios of an area get nothing special."""
    return not (vma.flags & (VM.LOCKED | VM.DROPPABLE) or kernel.f.cell[C_LRU_GEN])


def marked_by_area(kernel: Kernel, vma: Vma, pfn: int) -> None:
    """Mark a new folio that waits in the batch of new pages."""
    if is_plain(kernel, vma):
        return
    if vma.flags & VM.DROPPABLE:
        kernel.relist(pfn, clear_flags=int(KPF.SWAPBACKED))
        kernel.say("folio_add_new_anon_rmap: droppable, so nobody needs to save it")
    if vma.flags & VM.LOCKED:
        if kernel.in_lru_fault:
            # It never goes through folio_add_lru(), where it would be marked as used.
            kernel.relist(pfn, clear_flags=int(KPF.ACTIVE | KPF.REFERENCED))
        mlock_new_folio(kernel, vma, pfn)
    elif kernel.in_lru_fault:
        mark_new_folio(kernel, kernel.head(pfn))

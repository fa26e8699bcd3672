"""folio_mark_accessed(): the system saw that somebody used a page.

`mm/swap.c:folio_mark_accessed, folio_activate @6.12`, of the classic LRU: first REFERENCED, then
ACTIVE.  The multi-generational LRU counts in bits that nobody sees, and only sets REFERENCED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.frames import BATCH_ACTIVATE, BATCH_DEACTIVATE, C_LRU_GEN, LRU_GEN_REFERENCED

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["folio_deactivate", "has_recency", "mark_accessed", "mark_new_folio"]


def has_recency(kernel: Kernel, vma: Vma) -> bool:
    """vma_has_recency(): whether accessed bits of an area's entries say that pages are wanted."""
    if vma.flags & VM.SEQ_READ:
        return False
    if not kernel.rules.only_sequential_has_no_recency and vma.flags & VM.RAND_READ:
        return False
    return vma.file is None or not vma.file.noreuse


def mark_accessed(kernel: Kernel, pfn: int) -> None:
    """Note one use of the folio of a frame."""
    flags = kernel.flags(pfn)
    if not flags & KPF.REFERENCED or kernel.knobs["lru_gen"] != "0":
        kernel.set_flags(pfn, int(KPF.REFERENCED))
    elif flags & KPF.UNEVICTABLE:
        return
    elif not flags & KPF.ACTIVE:
        if flags & KPF.LRU:
            kernel.batch(pfn, BATCH_ACTIVATE)
        else:
            # Still in the batch of new pages: it goes to the active list from there
            # (__lru_cache_activate_folio).
            kernel.relist(pfn, set_flags=int(KPF.ACTIVE))
        kernel.clear_flags(pfn, int(KPF.REFERENCED))
        kernel.workingset.nonresident_age += 1 << kernel.order_of(pfn)
        kernel.say("folio_mark_accessed: used twice, to the active list")


def mark_new_folio(kernel: Kernel, head: int) -> None:
    """folio_add_lru() in a fault, of the multi-generational LRU: the folio is used at once.

    ACTIVE is folded into the folio's age when its batch is emptied; REFERENCED, in later releases,
    stays.
    """
    if kernel.flags(head) & KPF.UNEVICTABLE:
        return
    if kernel.f.cell[C_LRU_GEN] == LRU_GEN_REFERENCED:
        kernel.set_flags(head, int(KPF.REFERENCED))
    elif not kernel.flags(head) & KPF.LRU:
        kernel.set_flags(head, int(KPF.ACTIVE))
        kernel.say("folio_add_lru: in a fault, active until the batch is emptied")


def folio_deactivate(kernel: Kernel, head: int) -> None:
    """MADV_COLD: to the inactive list, with the CPU's next batch (`mm/swap.c:folio_deactivate`)."""
    may = kernel.flags(head) & KPF.ACTIVE or kernel.knobs["lru_gen"] != "0"
    if may and not kernel.flags(head) & KPF.UNEVICTABLE:
        kernel.batch(head, BATCH_DEACTIVATE)
        kernel.say("folio_deactivate: to the end of the inactive list")

"""folio_mark_accessed(): the system saw that somebody used a page.

`mm/swap.c:folio_mark_accessed, folio_activate @6.12`, of the classic LRU: first REFERENCED, then
ACTIVE.  The multi-generational LRU counts in bits that nobody sees, and only sets REFERENCED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.frames import BATCH_ACTIVATE

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["mark_accessed"]


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
        kernel.say("folio_mark_accessed: used twice, to the active list")

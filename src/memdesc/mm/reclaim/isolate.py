"""folio_isolate_lru(): take a folio off its LRU list (`mm/vmscan.c @6.12`). Compiled."""

from __future__ import annotations

from typing import Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.frames import Frames
from memdesc.mm.lru import lru_unlink
from memdesc.model.compiled import compiled, pointers

__all__ = ["isolate"]

_LRU: Final = int(KPF.LRU)


@compiled
def isolate(frames: Frames, pfn: int) -> bool:
    """Off its list, if the folio that begins at a frame is on one; its references stay."""
    f = pointers(frames)
    if f.flags[pfn] & _LRU == 0:
        return False
    lru_unlink(f, pfn)
    return True

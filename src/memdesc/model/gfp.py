"""Request flags by the kernel's names and numbers, and the flags of an attempt.

`include/linux/gfp_types.h @6.12`; the numbers are the same in 6.1 and 7.2 for all that decide
anything here (6.1 has ATOMIC at bit 9, which later kernels left empty).

>>> f"{GFP.KERNEL:#x} {GFP.HIGHUSER_MOVABLE:#x} {GFP.ATOMIC:#x}"
'0xcc0 0x100cca 0x820'
"""

from __future__ import annotations

import enum

__all__ = ["GFP"]


class GFP(enum.IntFlag):
    """__GFP_... bits, then the combinations that callers use."""

    ZONE_DMA = 0x01
    ZONE_HIGHMEM = 0x02
    ZONE_DMA32 = 0x04
    MOVABLE = 0x08
    RECLAIMABLE = 0x10
    HIGH = 0x20
    IO = 0x40
    FS = 0x80
    ZERO = 0x100
    DIRECT_RECLAIM = 0x400
    KSWAPD_RECLAIM = 0x800
    WRITE = 0x1000
    NOWARN = 0x2000
    RETRY_MAYFAIL = 0x4000
    NOFAIL = 0x8000
    NORETRY = 0x10000
    MEMALLOC = 0x20000
    COMP = 0x40000
    NOMEMALLOC = 0x80000
    HARDWALL = 0x100000
    THISNODE = 0x200000
    ACCOUNT = 0x400000

    RECLAIM = DIRECT_RECLAIM | KSWAPD_RECLAIM
    ATOMIC = HIGH | KSWAPD_RECLAIM
    KERNEL = RECLAIM | IO | FS
    NOWAIT = KSWAPD_RECLAIM | NOWARN
    USER = RECLAIM | IO | FS | HARDWALL
    DMA = ZONE_DMA
    DMA32 = ZONE_DMA32
    HIGHUSER = USER | ZONE_HIGHMEM
    HIGHUSER_MOVABLE = HIGHUSER | MOVABLE
    TRANSHUGE_LIGHT = HIGHUSER_MOVABLE & ~RECLAIM | COMP | NOMEMALLOC | NOWARN
    TRANSHUGE = TRANSHUGE_LIGHT | DIRECT_RECLAIM


# The same as plain integers, which compiled code can take as constants.
GFP_MOVABLE = int(GFP.MOVABLE)
GFP_HIGH = int(GFP.HIGH)
GFP_DIRECT_RECLAIM = int(GFP.DIRECT_RECLAIM)
GFP_KSWAPD_RECLAIM = int(GFP.KSWAPD_RECLAIM)
GFP_MEMALLOC = int(GFP.MEMALLOC)
GFP_NOMEMALLOC = int(GFP.NOMEMALLOC)
GFP_THISNODE = int(GFP.THISNODE)
GFP_NORETRY = int(GFP.NORETRY)

# --- flags of one attempt (mm/internal.h ALLOC_...) ----------------------------------------

WMARK_MIN, WMARK_LOW = 0, 1
NO_WATERMARKS = 4
NON_BLOCK = 8
MIN_RESERVE = 16
OOM = 32
RESERVE_HIGHATOMIC = 64
"""ALLOC_HIGHATOMIC."""
RESERVES = NON_BLOCK | MIN_RESERVE | OOM | RESERVE_HIGHATOMIC
"""ALLOC_RESERVES: may go below the min mark."""
NOFRAGMENT = 128
KSWAPD = GFP_KSWAPD_RECLAIM
"""ALLOC_KSWAPD has the value of the request's bit."""

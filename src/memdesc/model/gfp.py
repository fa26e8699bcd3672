"""Request flags as plain integers, which compiled code takes as constants, and the flags of an
attempt (`mm/internal.h` ALLOC_... @6.12)."""

from __future__ import annotations

from memdesc.kernels.gfp import GFP

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

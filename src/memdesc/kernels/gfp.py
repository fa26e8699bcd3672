"""The flags of a page request (`gfp_t`), by name, as bits of one numbering: that of 6.12.

The kernel renumbers these bits when it adds one, and prints their names into every tracepoint's
`format` file; traces are translated to the numbering here, so that nothing above has to know.

Source: `include/linux/gfp_types.h` @6.12 (enum ___GFP_*_BIT, GFP_* combinations), the same in 6.1
and 7.2 for all that decides an allocation; the names that traces show are in
`include/trace/events/mmflags.h:gfpflag_string`.

>>> f"{GFP.KERNEL:#x} {GFP.HIGHUSER_MOVABLE:#x} {GFP.ATOMIC:#x}"
'0xcc0 0x100cca 0x820'
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

__all__ = ["GFP", "GFP_NAMES", "SINGLE_FLAGS"]


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
    OLD_ATOMIC = 0x200
    """__GFP_ATOMIC @6.1, empty since."""
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
    ZEROTAGS = 0x800000
    NO_OBJ_EXT = 0x1000000
    SKIP_ZERO = 0x2000000
    SKIP_KASAN = 0x4000000
    NOLOCKDEP = 0x8000000

    RECLAIM = DIRECT_RECLAIM | KSWAPD_RECLAIM
    ATOMIC = HIGH | KSWAPD_RECLAIM
    NOIO = RECLAIM
    NOFS = RECLAIM | IO
    KERNEL = RECLAIM | IO | FS
    KERNEL_ACCOUNT = KERNEL | ACCOUNT
    NOWAIT = KSWAPD_RECLAIM | NOWARN
    USER = RECLAIM | IO | FS | HARDWALL
    DMA = ZONE_DMA
    DMA32 = ZONE_DMA32
    HIGHUSER = USER | ZONE_HIGHMEM
    HIGHUSER_MOVABLE = HIGHUSER | MOVABLE
    TRANSHUGE_LIGHT = HIGHUSER_MOVABLE & ~RECLAIM | COMP | NOMEMALLOC | NOWARN
    TRANSHUGE = TRANSHUGE_LIGHT | DIRECT_RECLAIM


_OTHER_NAMES = {"ZONE_DMA": "DMA", "ZONE_HIGHMEM": "HIGHMEM", "ZONE_DMA32": "DMA32"}
_OTHER_NAMES["OLD_ATOMIC"] = "ATOMIC"

SINGLE_FLAGS: Mapping[str, GFP] = {
    f"__GFP_{_OTHER_NAMES.get(str(flag.name), str(flag.name))}": flag for flag in GFP
}
"""Each single flag by its name ("__GFP_MOVABLE")."""

GFP_NAMES: Mapping[str, GFP] = {
    **SINGLE_FLAGS,
    "none": GFP(0),
    "__GFP_RECLAIM": GFP.RECLAIM,
    **{
        f"GFP_{name}": GFP[name]
        for name in (
            "DMA", "DMA32", "NOWAIT", "ATOMIC", "NOIO", "NOFS", "KERNEL", "KERNEL_ACCOUNT",
            "USER", "HIGHUSER", "HIGHUSER_MOVABLE", "TRANSHUGE_LIGHT", "TRANSHUGE",
        )
    },
}  # fmt: skip
"""What a trace's text may call a flag, single or combined."""

"""The flags of a page request (`gfp_t`), by name, as bits of one numbering.

The kernel renumbers these bits when it adds one, and prints their names into every tracepoint's
`format` file; traces are translated to the numbering here, so that nothing above has to know.

Source: `include/linux/gfp_types.h` @6.12 (enum ___GFP_*_BIT, GFP_* combinations); the names that
traces show are in `include/trace/events/mmflags.h:gfpflag_string`.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["GFP", "GFP_NAMES"]

_SINGLE = {
    "__GFP_DMA": 0,
    "__GFP_HIGHMEM": 1,
    "__GFP_DMA32": 2,
    "__GFP_MOVABLE": 3,
    "__GFP_RECLAIMABLE": 4,
    "__GFP_HIGH": 5,
    "__GFP_IO": 6,
    "__GFP_FS": 7,
    "__GFP_ZERO": 8,
    "__GFP_ATOMIC": 9,  # @6.1 only
    "__GFP_DIRECT_RECLAIM": 10,
    "__GFP_KSWAPD_RECLAIM": 11,
    "__GFP_WRITE": 12,
    "__GFP_NOWARN": 13,
    "__GFP_RETRY_MAYFAIL": 14,
    "__GFP_NOFAIL": 15,
    "__GFP_NORETRY": 16,
    "__GFP_MEMALLOC": 17,
    "__GFP_COMP": 18,
    "__GFP_NOMEMALLOC": 19,
    "__GFP_HARDWALL": 20,
    "__GFP_THISNODE": 21,
    "__GFP_ACCOUNT": 22,
    "__GFP_ZEROTAGS": 23,
    "__GFP_NO_OBJ_EXT": 24,
    "__GFP_SKIP_ZERO": 25,
    "__GFP_SKIP_KASAN": 26,
    "__GFP_NOLOCKDEP": 27,
}

GFP: Mapping[str, int] = {name: 1 << bit for name, bit in _SINGLE.items()}
"""Each single flag as a mask, by its name ("__GFP_MOVABLE")."""


def _of(*names: str) -> int:
    return sum(GFP[f"__GFP_{name}"] for name in names)


_RECLAIM = _of("DIRECT_RECLAIM", "KSWAPD_RECLAIM")
_KERNEL = _RECLAIM | _of("IO", "FS")
_USER = _KERNEL | _of("HARDWALL")
_THP_LIGHT = (_USER | _of("HIGHMEM", "MOVABLE", "COMP", "NOMEMALLOC", "NOWARN")) & ~_RECLAIM

GFP_NAMES: Mapping[str, int] = {
    **GFP,
    "none": 0,
    "__GFP_RECLAIM": _RECLAIM,
    "GFP_DMA": GFP["__GFP_DMA"],
    "GFP_DMA32": GFP["__GFP_DMA32"],
    "GFP_NOWAIT": _of("KSWAPD_RECLAIM", "NOWARN"),
    "GFP_ATOMIC": _of("HIGH", "KSWAPD_RECLAIM"),
    "GFP_NOIO": _RECLAIM,
    "GFP_NOFS": _RECLAIM | _of("IO"),
    "GFP_KERNEL": _KERNEL,
    "GFP_KERNEL_ACCOUNT": _KERNEL | _of("ACCOUNT"),
    "GFP_USER": _USER,
    "GFP_HIGHUSER": _USER | _of("HIGHMEM"),
    "GFP_HIGHUSER_MOVABLE": _USER | _of("HIGHMEM", "MOVABLE"),
    "GFP_TRANSHUGE_LIGHT": _THP_LIGHT,
    "GFP_TRANSHUGE": _THP_LIGHT | _of("DIRECT_RECLAIM"),
}
"""What a trace's text may call a flag, single or combined, as a mask."""

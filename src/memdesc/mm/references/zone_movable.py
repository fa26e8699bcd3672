"""ZONE_MOVABLE: memory of which nothing may stay where it is.

`mm/memory_hotplug.c:online_pages, zone_for_pfn_range @6.12`: a block of memory that is taken out
(offline) can come back as a part of this zone (`online_movable` in its `state`).  It is the last in
the order of zones, so user pages are taken from it first, and page tables never.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from memdesc.mm.frames import Kind
from memdesc.mm.process import Errno
from memdesc.model.compiled import array
from memdesc.model.zones import Layout, ZoneLayout

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["online_movable"]

_BLOCK: Final = 1 << 15
"""Frames of a memory block of x86-64 (128 MiB)."""


def online_movable(kernel: Kernel, mebibytes: int) -> None:
    """Give the end of memory to ZONE_MOVABLE, in whole blocks. Raises Errno.

    Only on a machine that nobody uses yet: pages that would have to leave are not moved.
    """
    frames = mebibytes << 8
    layout = kernel.layout
    last = layout.zones[-1]
    start, end = last.ranges[-1]
    used = np.isin(array(kernel.f.kind), (Kind.FOLIO, Kind.TABLE)).any()
    if used or last.name == "Movable" or any(high > end - frames for _, high in last.reserved):
        raise Errno("EBUSY")
    if not frames or frames % _BLOCK or frames >= end - start:
        raise Errno("EINVAL")
    kernel.boot(_split(layout, last, frames))
    kernel.say(f"online_pages: {frames} frames are in ZONE_MOVABLE now")


# --- helpers -----------------------------------------------------------------------------


def _split(layout: Layout, last: ZoneLayout, frames: int) -> Layout:
    border = last.pfn_end - frames
    present = (*last.ranges[:-1], (last.ranges[-1][0], border))
    rest = replace(last, spanned=last.spanned - frames, present=present)
    movable = ZoneLayout("Movable", last.node, border, frames)
    return replace(layout, zones=(*layout.zones[:-1], rest, movable))

"""What the slab allocator of a machine says of its caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.gfp import GFP
from memdesc.kernels.slub import (
    CacheTraits,
    ObjectLayout,
    SlabOrder,
    cpu_partial_slabs,
    min_partial,
    order_of_one,
    sheaf_objects,
)
from memdesc.model.compiled import Column
from memdesc.model.slab_state import (
    C_ALIVE,
    C_CPU_PARTIAL,
    C_DESCRIPTOR_BYTES,
    C_GFP,
    C_LEAST_OBJECTS,
    C_LEAST_ORDER,
    C_MIN_PARTIAL,
    C_OBJECTS,
    C_ORDER,
    C_SHEAF,
    C_SIZE,
    C_TYPESAFE,
)
from memdesc.types import PAGE_SIZE_BYTES

__all__ = [
    "DIRECT_MAP",
    "MOST_CACHES",
    "RECORD_HEADROOM",
    "Cache",
    "CacheStatistics",
    "SlabInfo",
    "column",
    "fill_row",
    "kmalloc_align",
    "short_size",
]

DIRECT_MAP: Final = 0xFFFF_8880_0000_0000
"""Kernel address of physical address 0 (`__PAGE_OFFSET_BASE_L4`, without KASLR)."""
MOST_CACHES: Final = 256
RECORD_HEADROOM: Final = 32
"""Slabs that one operation may make: a sheaf of objects, each alone in a small slab."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache as its creator sees it; merged ones share `number`."""

    name: str
    number: int
    object_bytes: int
    layout: ObjectLayout
    slab: SlabOrder
    traits: CacheTraits
    merged_into: str = ""
    """Name of the older cache that serves this one; "" if it has slabs of its own."""


@dataclass(frozen=True, slots=True)
class SlabInfo:
    """A line of /proc/slabinfo; one for all that were merged.

    Objects that a CPU holds in reserve count as active, as there (`slabinfo_show`).
    """

    name: str
    active_objs: int
    num_objs: int
    objsize: int
    objperslab: int
    pagesperslab: int
    num_slabs: int


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What a cache did so far, exactly."""

    objects_in_use: int
    slabs: int
    frames: int
    allocs: int
    frees: int
    slabs_made: int
    slabs_freed: int


def fill_row(row: NDArray[np.int64], cache: Cache, *, typesafe: bool, descriptor: bool) -> None:
    """Write a new cache's row (`memdesc.model.slab_state`, C_...)."""
    size = cache.layout.size_bytes
    least = order_of_one(size)
    row[:] = 0
    row[C_SIZE] = size
    row[C_ORDER], row[C_OBJECTS] = cache.slab
    row[C_LEAST_ORDER] = least
    row[C_LEAST_OBJECTS] = (PAGE_SIZE_BYTES << least) // size
    row[C_MIN_PARTIAL] = min_partial(size)
    row[C_CPU_PARTIAL] = cpu_partial_slabs(size, cache.slab.objects)
    row[C_SHEAF] = sheaf_objects(size)
    row[C_GFP] = GFP.KERNEL | (GFP.RECLAIMABLE if cache.traits.reclaim_account else 0)
    row[C_TYPESAFE] = int(typesafe)
    row[C_DESCRIPTOR_BYTES] = cache.object_bytes if descriptor else 0
    row[C_ALIVE] = 1


def column(values: NDArray[Any]) -> Column:
    """An array as a column of a state."""
    return cast("Column", values)


def short_size(size: int) -> str:
    """As in the names of kmalloc caches: 96, 1k."""
    return f"{size // 1024}k" if size >= 1024 else str(size)


def kmalloc_align(size: int) -> int:
    """Powers of two are aligned to their size; 96 and 192 to 32 and 64 (kmalloc's promise)."""
    return size & -size

"""The machine as a `MemoryMap`, so that every answer of memdesc can be asked of it."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.allocator import AllocatorRules
from memdesc.kernels.kpageflags import KPF
from memdesc.map.extents import MemoryMap
from memdesc.map.facts import FactTable
from memdesc.map.machine import Counters, IomemRange, Zone
from memdesc.map.machine import Machine as MapMachine
from memdesc.map.regions import regions_of
from memdesc.model.compiled import Column, array, compiled, pointers
from memdesc.model.state import (
    FREE,
    G_CPUS,
    HOLE,
    ORDER_MASK,
    P_COUNT,
    PCP,
    PERCPU_SHIFT,
    RESERVED,
    TAKEN,
    USED,
    USED_MOVABLE,
    Z_FREE,
    Z_LOW,
    Z_MANAGED,
    Z_MIN,
    Z_NR_FREE,
    Z_RESERVE,
    ZONE_SHIFT,
    ZONE_TYPES,
    State,
)
from memdesc.model.zones import Layout
from memdesc.types import KERNEL_COMPOUND, KERNEL_UNKNOWN, PAGE_SHIFT, MemoryType, TypeSet

__all__ = ["map_of"]

_T = MemoryType
_USER = KPF.UPTODATE | KPF.LRU | KPF.ANON | KPF.SWAPBACKED
_KERNEL = TypeSet(KERNEL_UNKNOWN.mask & ~TypeSet.of(_T.FREE_PCP).mask)
_LARGE = TypeSet(_KERNEL.mask | KERNEL_COMPOUND.mask)

_ROWS: tuple[tuple[int, TypeSet, str], ...] = (
    (KPF.BUDDY, TypeSet.of(_T.FREE), "struct-free"),
    (0, TypeSet.of(_T.FREE_PCP), "struct-walk"),
    (0, _KERNEL, "struct-kernel"),
    (KPF.COMPOUND_HEAD, _LARGE, "struct-compound"),
    (KPF.COMPOUND_TAIL, _LARGE, "struct-compound"),
    (_USER, TypeSet.of(_T.ANON), "struct-anon"),
    (_USER | KPF.COMPOUND_HEAD | KPF.THP, TypeSet.of(_T.ANON), "struct-anon"),
    (_USER | KPF.COMPOUND_TAIL | KPF.THP, TypeSet.of(_T.ANON), "struct-anon"),
    (KPF.RESERVED, TypeSet.of(_T.RESERVED), "struct-reserved"),
    (KPF.NOPAGE, TypeSet.of(_T.HOLE), "struct-hole"),
    (KPF.HWPOISON, TypeSet.of(_T.POISONED), "hwpoison"),
)
"""(kpageflags word, types, rule) of each code that `_runs` writes."""
C_FREE, C_PCP, C_USED, C_HEAD, C_TAIL, C_USER, C_USER_HEAD, C_USER_TAIL = range(8)
C_RESERVED, C_HOLE, C_TAKEN = range(8, 11)


def map_of(layout: Layout, rules: AllocatorRules, state: State) -> MemoryMap:
    """The map of a machine's frames [0, end of its last zone)."""
    end = layout.pfn_end
    starts, codes = np.zeros(0, np.int64), np.zeros(0, np.int64)
    while (count := _runs(state, end, _column(starts), _column(codes), starts.size)) > starts.size:
        starts, codes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    machine = _machine(layout, rules, state)
    borders = [pfn for pfn in regions_of(machine).starts if 0 < pfn < end]
    at = np.searchsorted(starts, borders, side="right") - 1
    new = starts[at] != borders
    starts = np.concatenate([starts, np.array(borders, np.int64)[new]])
    codes = np.concatenate([codes, codes[at[new]]])
    order = np.argsort(starts, kind="stable")
    return MemoryMap(
        machine=machine,
        table=FactTable(
            flags=np.array([int(row[0]) for row in _ROWS], np.uint64),
            types=np.array([row[1].mask for row in _ROWS], np.uint64),
            rules=tuple(row[2] for row in _ROWS),
        ),
        pfn_starts=starts[order].astype(np.uint32),
        facts=codes[order].astype(np.uint16),
        pfn_end=end,
        unseen={"kpagecount": "the model has no page tables", "kpagecgroup": "nor cgroups"},
        read_from="structs",
    )


# --- helpers -----------------------------------------------------------------------------


@compiled
def _runs(state: State, end: int, starts: Column, codes: Column, room: int) -> int:
    """Runs of frames with the same code: how many, and the first `room` of them.

    `starts`, `codes`: int64[room].
    """
    m = pointers(state)
    count = 0
    last = -1
    pfn = 0
    while pfn < end:
        byte = m.frame[pfn]
        order = byte & ORDER_MASK
        kind = byte & ~ORDER_MASK
        size = 1 << order
        head = C_USED
        tail = C_TAIL
        if kind == FREE:
            head = tail = C_FREE
        elif byte >= PCP:
            head = tail = C_PCP
        elif kind == USED and order > 0:
            head = C_HEAD
        elif kind == USED_MOVABLE:
            head = C_USER if order == 0 else C_USER_HEAD
            tail = C_USER_TAIL
        elif kind == RESERVED:
            head = tail = C_RESERVED
        elif kind == HOLE:
            head = tail = C_HOLE
        elif kind == TAKEN:
            head = tail = C_TAKEN
        # A head is a run of its own: two in a row are two compound pages.
        if head != last or head in (C_HEAD, C_USER_HEAD):
            if count < room:
                starts[count] = pfn
                codes[count] = head
            count += 1
        if size > 1 and tail != head:
            if count < room:
                starts[count] = pfn + 1
                codes[count] = tail
            count += 1
        last = tail if size > 1 else head
        pfn += size
    return count


def _column(values: NDArray[np.int64]) -> Column:
    return cast("Column", values)


def _machine(layout: Layout, rules: AllocatorRules, state: State) -> MapMachine:
    """What the text files of such a machine would say beside the map."""
    zones = array(state.zones).reshape(-1, 1 << ZONE_SHIFT)
    percpu = array(state.percpu).reshape(-1, len(layout.zones), 1 << PERCPU_SHIFT)
    found = [
        Zone(
            node=zone.node,
            name=zone.name,
            pfn_start=zone.pfn_start,
            spanned=zone.spanned,
            present=zone.frames_present,
            managed=int(zones[index, Z_MANAGED]),
            free=int(zones[index, Z_FREE]),
            pcp=int(percpu[:, index, P_COUNT].sum()),
            wmark_min=int(zones[index, Z_MIN]),
            wmark_low=int(zones[index, Z_LOW]),
            reserve=int(zones[index, Z_RESERVE : Z_RESERVE + ZONE_TYPES].max()),
        )
        for index, zone in enumerate(layout.zones)
    ]
    ranges = sorted(pair for zone in layout.zones for pair in zone.ranges)
    joined: list[list[int]] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    free = int(zones[:, Z_FREE].sum())
    counters = Counters(
        {"MemTotal": layout.managed << PAGE_SHIFT, "MemFree": free << PAGE_SHIFT},
        {"nr_free_pages": free},
    )
    blocks = zones[:, Z_NR_FREE : Z_NR_FREE + rules.max_order + 1].tolist()
    return MapMachine(
        release=rules.release,
        hostname="model",
        zones=tuple(found),
        iomem=tuple(
            IomemRange(start << PAGE_SHIFT, end << PAGE_SHIFT, "System RAM")
            for start, end in joined
        ),
        before=counters,
        after=counters,
        buddyinfo=tuple(
            (zone.node, zone.name, tuple(counts))
            for zone, counts in zip(layout.zones, blocks, strict=True)
        ),
        nr_cpus=int(state.params[G_CPUS]),
    )

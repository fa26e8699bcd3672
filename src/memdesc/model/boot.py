"""From a layout to a running machine: columns, geometry, rules, free memory on its lists.

At boot every pageblock is MOVABLE and all memory that nobody reserved goes to the lists in the
order of its addresses, in blocks as large as alignment allows
(`mm/memblock.c:memblock_free_all`, `mm/page_alloc.c:__free_pages_core @6.12`).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.kernels.allocator import AllocatorRules
from memdesc.model import state as s
from memdesc.model.buddy import free_one_block
from memdesc.model.compiled import array, compiled, pointers
from memdesc.model.counters import LOG_ROOM, LOG_ROWS
from memdesc.model.state import State
from memdesc.model.zones import (
    Layout,
    PerCpuSizes,
    ZoneMarks,
    grouping_off,
    marks_of,
    sizes_of,
    zonelist,
)

__all__ = ["empty_state", "free_range", "set_marks"]

_STATS = 64
_LARGE_BYTES = 1 << 28


def empty_state(
    layout: Layout,
    rules: AllocatorRules,
    cpu_nodes: Sequence[int],
    *,
    log_rows: int = 0,
    migratetype: int = s.MOVABLE,
) -> State:
    """The columns of a machine on which no frame is free yet.

    Frames that exist and are not reserved belong to no block until `free_range` frees them.
    Raises QuestionError where the layout does not fit the rules or the columns.
    """
    zones, cpus = layout.zones, len(cpu_nodes)
    block_order, top = rules.pageblock_order, rules.max_order
    unit = 1 << max(block_order, top)
    frames = -(-layout.pfn_end // unit) * unit
    lists = len(zones) << s.LIST_ZONE_SHIFT
    elements = frames + lists + (len(zones) * cpus << s.PCP_LISTS_SHIFT)
    if elements >= 1 << 32:
        raise QuestionError(f"{frames} frames do not fit into 32 bits: 16 TiB is the most")
    if len(zones) > 31 or layout.nodes > 16 or not 0 < cpus <= 1024:
        raise QuestionError("at most 31 zones, 16 nodes and 1024 CPUs can be modelled")
    if top > 14 or block_order > top:
        raise QuestionError("a pageblock is at most the largest block, and that of order 14")
    blocks = frames >> block_order
    state = State(
        next=_column(_zeros(elements, np.uint32)),
        prev=_column(_zeros(elements, np.uint32)),
        frame=_column(_zeros(frames, np.uint8)),
        block=_column(np.full(blocks, migratetype, np.uint8)),
        block_zone=_column(np.full(blocks, s.NO_ZONE, np.uint8)),
        zones=_column(np.zeros(len(zones) << s.ZONE_SHIFT, np.int64)),
        percpu=_column(np.zeros(len(zones) * cpus << s.PERCPU_SHIFT, np.int64)),
        zonelists=_column(np.full(layout.nodes * 2 * 8 * 32, -1, np.int64)),
        params=_column(np.zeros(s.G_CPU_NODE + cpus, np.int64)),
        stats=_column(np.zeros(_STATS, np.int64)),
        log=_column(np.zeros(LOG_ROWS + 8 * log_rows, np.int64)),
    )
    state.log[LOG_ROOM] = log_rows
    heads = np.arange(frames, elements, dtype=np.uint32)
    array(state.next)[frames:] = heads
    array(state.prev)[frames:] = heads
    _lay_out(state, layout, block_order)
    _set_params(state, layout, rules, cpu_nodes, frames, lists)
    return state


def set_marks(state: State, layout: Layout, rules: AllocatorRules, managed: Sequence[int]) -> None:
    """Compute watermarks and per-CPU limits for `managed` frames per zone, and start over there.

    As the kernel does at boot and when vm.min_free_kbytes is written; boosts are forgotten.
    """
    marks = marks_of(layout, rules, managed)
    cpus = int(state.params[s.G_CPUS])
    nodes = [int(state.params[s.G_CPU_NODE + cpu]) for cpu in range(cpus)]
    sizes = sizes_of(
        layout, rules, managed, marks, [nodes.count(node) for node in range(layout.nodes)]
    )
    for index, (mark, size, frames) in enumerate(zip(marks, sizes, managed, strict=True)):
        _set_zone(state, index, mark, frames)
        for cpu in range(cpus):
            _set_sizes(state, cpu * len(marks) + index, size)
    off = grouping_off(layout, rules, managed)
    state.params[s.G_GROUPING_OFF] = int(off)
    state.params[s.G_PLAIN] = int(not off and not state.params[s.G_PCP_OFF])


@compiled
def free_range(state: State, zone: int, pfn_start: int, pfn_end: int) -> None:
    """Free the frames [pfn_start, pfn_end) of one zone, at the tails of the lists.

    In blocks as large as alignment allows, which merge with what is free beside them.
    """
    m = pointers(state)
    top = m.params[s.G_MAX_ORDER]
    block_order = m.params[s.G_BLOCK_ORDER]
    pfn = pfn_start
    while pfn < pfn_end:
        order = top
        while pfn & ((1 << order) - 1) != 0 or pfn + (1 << order) > pfn_end:
            order -= 1
        m.frame[pfn] = 0
        free_one_block(m, zone, pfn, order, m.block[pfn >> block_order], 1)
        pfn += 1 << order


# --- helpers -----------------------------------------------------------------------------


def _column(values: Any) -> Any:
    return cast("Any", values)


def _zeros(size: int, dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """Zeroes that cost nothing until they are written.

    numpy asks for huge pages. For columns of gigabytes, of which boot writes an element here
    and there, ordinary ones were ready five times as fast where a host must first find them.
    """
    if size * dtype().itemsize < _LARGE_BYTES:
        return np.zeros(size, dtype)
    return np.frombuffer(mmap.mmap(-1, size * dtype().itemsize), dtype)


def _lay_out(state: State, layout: Layout, block_order: int) -> None:
    """Say of every frame whether it exists, and of every pageblock in which zone it is."""
    frame, block_zone = array(state.frame), array(state.block_zone)
    end = 0
    for zone in sorted(layout.zones, key=lambda zone: zone.pfn_start):
        frame[end : zone.pfn_start] = s.HOLE
        end = zone.pfn_start
        for start, stop in zone.ranges:
            frame[end:start] = s.HOLE
            end = stop
        frame[end : zone.pfn_end] = s.HOLE
        end = zone.pfn_end
        first, last = zone.pfn_start >> block_order, (zone.pfn_end - 1) >> block_order
        if (block_zone[first : last + 1] != s.NO_ZONE).any():
            raise QuestionError(
                f"zone {zone.name} shares a pageblock with another",
                hint="zones begin at multiples of a pageblock",
            )
        block_zone[first : last + 1] = layout.zones.index(zone)
        row = layout.zones.index(zone) << s.ZONE_SHIFT
        for column, value in (
            (s.Z_START, zone.pfn_start),
            (s.Z_END, zone.pfn_end),
            (s.Z_NODE, zone.node),
            (s.Z_TYPE, zone.type),
            (s.Z_PRESENT, zone.frames_present),
        ):
            state.zones[row + column] = value
        for start, stop in zone.reserved:
            frame[start:stop] = s.RESERVED
    frame[end:] = s.HOLE


def _set_params(
    state: State,
    layout: Layout,
    rules: AllocatorRules,
    cpu_nodes: Sequence[int],
    frames: int,
    lists: int,
) -> None:
    for name, value in (
        (s.G_FRAMES, frames),
        (s.G_MAX_ORDER, rules.max_order),
        (s.G_BLOCK_ORDER, rules.pageblock_order),
        (s.G_LISTS, frames),
        (s.G_PCP_LISTS, frames + lists),
        (s.G_ZONES, len(layout.zones)),
        (s.G_CPUS, len(cpu_nodes)),
        (s.G_NODES, layout.nodes),
        (s.G_BOOST_FACTOR, layout.watermark_boost_factor),
        (s.R_CLAIM_THEN_STEAL, rules.claims_before_steals),
        (s.R_BELOW_HIGH, rules.high_mark_first),
        (s.R_PCP_TUNED, rules.pcp_tuned),
        (s.R_PCP_REMEMBERS_TYPE, rules.pcp_remembers_type),
        (s.R_FREE_HIGH_HALF_MIN, rules.pcp_flush_counts_half_min),
        (s.R_FREE_IN_BATCHES, rules.pcp_flush_in_batches),
        (s.R_MERGE_RETYPES, rules.merged_pageblocks_retyped),
        (s.R_FREE_BY_PAGEBLOCK, rules.freed_by_pageblock),
        (s.R_HIGHATOMIC_ROUNDED, rules.highatomic_rounded),
        (s.R_HIGHATOMIC_COUNTS_FREE, rules.highatomic_counts_free),
        (s.R_HIGHATOMIC_NO_REFILL, rules.highatomic_no_refill),
        (s.R_PGFREE_COUNTS_FRAMES, rules.pgfree_counts_frames),
    ):
        state.params[name] = int(value)
    for cpu, node in enumerate(cpu_nodes):
        state.params[s.G_CPU_NODE + cpu] = node
    for bits in range(16):
        state.params[s.G_GFP_ZONE + bits] = _highest_zone(bits)
    for node in range(layout.nodes):
        for only in (0, 1):
            for highest in range(s.ZONE_TYPES):
                row = ((node << 1 | only) << 3 | highest) << 5
                for at, zone in enumerate(zonelist(layout, node, highest, bool(only))):
                    state.zonelists[row + at] = zone


def _highest_zone(bits: int) -> int:
    """GFP_ZONE_TABLE (`include/linux/gfp.h @6.12`), without CONFIG_HIGHMEM."""
    dma, highmem, dma32, movable = (bool(bits & bit) for bit in (1, 2, 4, 8))
    if dma:
        return s.ZONE_DMA
    if dma32:
        return s.ZONE_DMA32
    return s.ZONE_MOVABLE if highmem and movable else s.ZONE_NORMAL


def _set_zone(state: State, zone: int, mark: ZoneMarks, managed: int) -> None:
    row = zone << s.ZONE_SHIFT
    for column, value in (
        (s.Z_MIN, mark.min),
        (s.Z_LOW, mark.low),
        (s.Z_HIGH, mark.high),
        (s.Z_PROMO, mark.promo),
        (s.Z_BOOST, 0),
        (s.Z_MANAGED, managed),
    ):
        state.zones[row + column] = value
    for kind, frames in enumerate(mark.lowmem_reserve):
        state.zones[row + s.Z_RESERVE + kind] = frames


def _set_sizes(state: State, row: int, size: PerCpuSizes) -> None:
    p = row << s.PERCPU_SHIFT
    state.percpu[p + s.P_BATCH] = size.batch
    state.percpu[p + s.P_HIGH_MIN] = size.high_min
    state.percpu[p + s.P_HIGH_MAX] = size.high_max
    state.percpu[p + s.P_HIGH] = size.high_min
    # Caches are taken to be large enough for it (`zone_pcp_update_cacheinfo`).
    state.percpu[p + s.P_FLAGS] = s.FREE_HIGH_BATCH

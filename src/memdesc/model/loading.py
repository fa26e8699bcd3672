"""From a map of a real machine to the model: each frame free or in use, as it is there.

What a map does not tell is inferred and said: which per-CPU list a frame is on, in which order
free lists are, and (without a dump) the migratetype of pageblocks.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.kernels.allocator import AllocatorRules
from memdesc.kernels.kpageflags import KPF
from memdesc.map.compound import compounds_of
from memdesc.map.extents import MemoryMap
from memdesc.map.machine import Zone
from memdesc.model import state as s
from memdesc.model.boot import empty_state, free_range, set_marks
from memdesc.model.compiled import Column, array, compiled, pointers
from memdesc.model.counters import PGFREE
from memdesc.model.pcp import pcp_append, percpu_row
from memdesc.model.state import (
    G_BLOCK_ORDER,
    HIGHATOMIC,
    State,
)
from memdesc.model.zones import ZONE_NAMES, Layout, Ranges, ZoneLayout, ZoneMarks, marks_of
from memdesc.rules.classify import Backing
from memdesc.types import NOT_BACKED, MemoryType, TypeSet

__all__ = ["layout_of", "load_map"]

_T = MemoryType


def layout_of(found: MemoryMap, rules: AllocatorRules) -> Layout:
    """Zones, and watermarks where the machine's are known, of the machine of a map.

    Raises QuestionError where the map does not tell zones.
    """
    zones = [zone for zone in found.machine.zones if zone.name in ZONE_NAMES]
    if not zones:
        raise QuestionError(
            "the map does not tell the zones of its machine",
            hint="take it from a live machine, a capture or a dump, not from a raw file",
        )
    layout = Layout(
        tuple(
            ZoneLayout(
                zone.name,
                zone.node,
                zone.pfn_start,
                zone.spanned,
                _present(found, zone),
                managed_frames=zone.managed,
            )
            for zone in zones
        )
    )
    if not all(zone.wmark_low for zone in zones):
        return layout
    computed = marks_of(layout, rules, [zone.managed for zone in zones])
    marks = []
    for zone, mark in zip(zones, computed, strict=True):
        gap = zone.wmark_low - zone.wmark_min
        low = zone.wmark_low
        marks.append(ZoneMarks(zone.wmark_min, low, low + gap, low + 2 * gap, mark.lowmem_reserve))
    return replace(layout, marks=tuple(marks))


def load_map(
    found: MemoryMap,
    rules: AllocatorRules,
    migratetypes: NDArray[np.uint8] | None,
    log_rows: int,
) -> tuple[Layout, State, tuple[str, ...]]:
    """Layout, state and notes of the machine that `found` shows."""
    layout = layout_of(found, rules)
    cpus = found.machine.nr_cpus
    state = empty_state(
        layout, rules, [cpu % layout.nodes for cpu in range(cpus)], log_rows=log_rows
    )
    notes = [_set_migratetypes(state, migratetypes)]
    set_marks(state, layout, rules, [zone.managed for zone in layout.zones])
    kinds = _kinds(found)
    per_extent = kinds[found.facts]
    _set_frames(found, state, per_extent)
    starts = np.append(found.pfn_starts.astype(np.int64), found.pfn_end)
    runs = _runs_of(starts, per_extent == s.FREE)
    for index, zone in enumerate(layout.zones):
        for start, end in runs:
            low, high = max(start, zone.pfn_start), min(end, zone.pfn_end)
            if low < high:
                free_range(state, index, low, high)
    notes += _put_on_percpu_lists(state, _runs_of(starts, per_extent == s.PCP))
    state.stats[PGFREE] = 0
    notes += _compare(found, layout, rules, state)
    return layout, state, tuple(notes)


# --- helpers -----------------------------------------------------------------------------


def _kinds(found: MemoryMap) -> NDArray[np.uint8]:
    """uint8[facts]: the kind of a frame with each fact."""
    table = found.table
    kinds = np.full(len(table), s.USED, np.uint8)
    on_lru = table.with_flags(KPF.LRU)
    movable = table.within(TypeSet.of(_T.ZSMALLOC, _T.MOVABLE_OPS))
    kinds[on_lru | movable] = s.USED_MOVABLE
    kinds[table.within(TypeSet.of(_T.RESERVED, _T.DEFERRED))] = s.RESERVED
    kinds[table.within(NOT_BACKED)] = s.HOLE
    kinds[table.within(TypeSet.of(_T.POISONED))] = s.TAKEN
    kinds[table.within(TypeSet.of(_T.FREE_PCP))] = s.PCP
    kinds[table.within(TypeSet.of(_T.FREE))] = s.FREE
    return kinds


def _set_frames(found: MemoryMap, state: State, per_extent: NDArray[np.uint8]) -> None:
    """Write kinds frame by frame, then heads of compound pages with their orders."""
    frame = array(state.frame)
    end = min(found.pfn_end, frame.size)
    lengths = np.diff(np.append(np.minimum(found.pfn_starts.astype(np.int64), end), end))
    listed = np.isin(per_extent, (s.FREE, s.PCP))
    frame[found.pfn_start : end] = np.repeat(np.where(listed, 0, per_extent), lengths)
    compounds = compounds_of(found)
    kept = np.isin(frame[compounds.pfn_heads], (s.USED, s.USED_MOVABLE))
    heads = np.ascontiguousarray(compounds.pfn_heads[kept])
    orders = np.ascontiguousarray(compounds.orders[kept], np.int64)
    _set_heads(state, heads, orders, heads.size, state.params[s.G_MAX_ORDER])


@compiled
def _set_heads(state: State, heads: Column, orders: Column, count: int, top: int) -> None:
    """Make compound pages blocks; gigantic ones become several of the largest order."""
    m = pointers(state)
    for i in range(count):
        pfn = heads[i]
        kind = m.frame[pfn]
        order = min(orders[i], top)
        end = pfn + (1 << orders[i])
        while pfn < end:
            for tail in range(pfn + 1, pfn + (1 << order)):
                m.frame[tail] = 0
            m.frame[pfn] = kind | order
            pfn += 1 << order


@compiled
def _push_percpu(state: State, pfn_start: int, pfn_end: int) -> None:
    """Put frames on the lists of CPU 0, one by one."""
    m = pointers(state)
    for pfn in range(pfn_start, pfn_end):
        zone = m.block_zone[pfn >> m.params[G_BLOCK_ORDER]]
        migratetype = m.block[pfn >> m.params[G_BLOCK_ORDER]]
        pcp_append(m, percpu_row(m, 0, zone), pfn, 0, min(migratetype, HIGHATOMIC))


def _put_on_percpu_lists(state: State, runs: list[tuple[int, int]]) -> list[str]:
    for start, end in runs:
        _push_percpu(state, start, end)
    frames = sum(end - start for start, end in runs)
    if not frames:
        return ["frames on per-CPU lists are not visible in the map: they count as used"]
    return [f"{frames} frames on per-CPU lists are put on those of CPU 0, as order 0"]


def _set_migratetypes(state: State, migratetypes: NDArray[np.uint8] | None) -> str:
    block = array(state.block)
    if migratetypes is None:
        return "migratetypes of pageblocks are not visible: all are taken to be MOVABLE"
    if migratetypes.size > block.size or (migratetypes.size and migratetypes.max() > s.ISOLATE):
        raise QuestionError(
            f"{migratetypes.size} migratetypes do not fit {block.size} pageblocks",
            hint="one uint8 of 0 to 4 per pageblock, from frame 0 on",
        )
    block[: migratetypes.size] = migratetypes
    per_zone = array(state.block_zone)
    size = 1 << state.params[s.G_BLOCK_ORDER]
    for zone in range(state.params[s.G_ZONES]):
        mine = block[per_zone == zone]
        row = zone << s.ZONE_SHIFT
        state.zones[row + s.Z_ISOLATED_BLOCKS] = int((mine == s.ISOLATE).sum())
        state.zones[row + s.Z_RESERVED_HIGHATOMIC] = int((mine == s.HIGHATOMIC).sum()) * size
    return "migratetypes of pageblocks are as given"


def _compare(found: MemoryMap, layout: Layout, rules: AllocatorRules, state: State) -> list[str]:
    """Whether the blocks put together from free frames are those that the kernel counted."""
    told = {(node, name): counts for node, name, counts in found.machine.buddyinfo}
    notes: list[str] = []
    for index, zone in enumerate(layout.zones):
        row = index << s.ZONE_SHIFT
        mine = [state.zones[row + s.Z_NR_FREE + o] for o in range(rules.max_order + 1)]
        counts = told.get((zone.node, zone.name))
        if counts is not None and list(counts) != mine:
            pairs = enumerate(zip(mine, counts, strict=False))
            frames = sum(abs(a - b) << order for order, (a, b) in pairs)
            notes.append(
                f"node {zone.node}, zone {zone.name}: free blocks differ from buddyinfo by "
                f"{frames} frames in all orders"
            )
    return notes


def _runs_of(starts: NDArray[np.int64], wanted: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Frames [start, end) of neighbouring extents that are `wanted`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], wanted.astype(np.int8), [0]])))
    return [(int(starts[a]), int(starts[b])) for a, b in pairwise(edges.tolist())][::2]


def _present(found: MemoryMap, zone: Zone) -> Ranges:
    """Ranges of a zone that exist: by /proc/iomem, else by the map's own holes."""
    pairs: list[tuple[int, int]] = []
    regions = found.regions
    if found.machine.iomem:
        for region in regions.all:
            low = max(region.pfn_start, zone.pfn_start)
            high = min(region.pfn_end, zone.pfn_end)
            if low < high and region.backing is Backing.RAM:
                pairs.append((low, high))
    else:
        starts = np.append(found.pfn_starts.astype(np.int64), found.pfn_end)
        there = ~found.table.within(NOT_BACKED)[found.facts]
        for start, end in _runs_of(starts, there):
            low, high = max(start, zone.pfn_start), min(end, zone.pfn_end)
            if low < high:
                pairs.append((low, high))
    joined: list[tuple[int, int]] = []
    for low, high in pairs:
        if joined and joined[-1][1] == low:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return tuple(joined) or ((zone.pfn_start, zone.pfn_end),)

"""A machine as a kernel's page allocator was at one moment, and its lists read back.

Lists get the kernel's order, the zones its watermarks, the CPUs' lists their sizes and what they
had tuned themselves to.  What is in use has no known block heads: a frame in use is one block of
order 0 until the trace frees it as part of a larger one.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.kernels.allocator import (
    COSTLY_ORDER,
    MIGRATETYPES,
    PAGEBLOCK_ORDER,
    AllocatorRules,
    allocator_rules,
)
from memdesc.kernels.release import UNKNOWN_RELEASE, KernelRelease
from memdesc.model import state as s
from memdesc.model.boot import empty_state, set_marks
from memdesc.model.buddy import add_block, list_of
from memdesc.model.compiled import Column, array, compiled, pointers
from memdesc.model.machine import Machine
from memdesc.model.pcp import pcp_append, pcp_list, percpu_row
from memdesc.model.state import State
from memdesc.model.zones import Layout, ZoneLayout
from memdesc.traces.state import NO_MIGRATETYPE, AllocatorState, Blocks

__all__ = ["blocks_in", "machine_of", "model_types", "rules_of"]

_FLAGS = {"BELOW_HIGH": s.BELOW_HIGH, "BOOSTED_WATERMARK": s.BOOSTED,
          "RECLAIM_ACTIVE": s.RECLAIM_ACTIVE}  # fmt: skip


class _Listed(NamedTuple):
    """Blocks as columns for compiled code."""

    pfn: Column
    order: Column
    migratetype: Column
    zone: Column
    cpu: Column


def rules_of(moment: AllocatorState) -> AllocatorRules:
    """How the kernel of that moment allocates; 6.12's way where its release is not known."""
    release = KernelRelease.parse(moment.release) if moment.release else UNKNOWN_RELEASE
    return allocator_rules(release)


def model_types(moment: AllocatorState) -> NDArray[np.uint8]:
    """uint8[256]: the kernel's number of a migratetype -> ours; 255 for one that is not modelled.

    A kernel that is built with CMA has one more, in between.
    """
    table = np.full(256, NO_MIGRATETYPE, np.uint8)
    for number, name in enumerate(moment.migratetypes or MIGRATETYPES):
        if name in MIGRATETYPES:
            table[number] = MIGRATETYPES.index(name)
    return table


def machine_of(moment: AllocatorState, *, movable: NDArray[np.bool_] | None = None) -> Machine:
    """The machine at that moment. `movable`: bool[frames], frames in use that can be moved.

    Raises QuestionError for zones, migratetypes or lists that cannot be modelled.
    """
    if not moment.zones:
        raise QuestionError("a replay needs the zones of the machine", hint="/proc/zoneinfo")
    types = model_types(moment)
    _check(moment, types)
    rules = rules_of(moment)
    layout = Layout(
        tuple(
            ZoneLayout(
                zone.name, zone.node, zone.pfn_start, zone.spanned, managed_frames=zone.managed
            )
            for zone in moment.zones
        )
    )
    nodes = sorted({zone.node for zone in moment.zones})
    cpus = 1 + max((item.cpu for zone in moment.zones for item in zone.cpus), default=0)
    # Which node a CPU is on is not recorded: they are taken to be dealt out in turn.
    state = empty_state(layout, rules, [nodes[cpu % len(nodes)] for cpu in range(cpus)])
    # What was not read is as at boot.
    set_marks(state, layout, rules, [zone.managed for zone in moment.zones])
    frame = array(state.frame)
    for zone in moment.zones:
        part = slice(zone.pfn_start, zone.pfn_end)
        frame[part] = s.USED
        if movable is not None:
            known = movable[part]
            frame[part][: known.size][known] = s.USED_MOVABLE
    block = array(state.block)
    known = moment.pageblocks[: block.size] != NO_MIGRATETYPE
    block[: known.size][known] = types[moment.pageblocks[: block.size][known]]
    for index in range(len(moment.zones)):
        _set_zone(state, index, moment)
    _place_free(state, _listed(moment.free, block, types))
    _place_on_cpus(state, _listed(moment.pcp, block, types))
    machine = Machine.__new__(Machine)
    machine.layout, machine.rules, machine.state = layout, rules, state
    machine.notes = ()
    return machine


def blocks_in(state: State) -> tuple[Blocks, Blocks]:
    """(free blocks, blocks on CPUs' lists) of a machine, list after list from its head on."""
    frame = array(state.frame)
    kinds = frame & np.uint8(0xFF ^ s.ORDER_MASK)
    found = []
    for count, walk in (
        (int((kinds == s.FREE).sum()), _walk_free),
        (int((kinds >= s.PCP).sum()), _walk_cpus),
    ):
        listed = _Listed(*(cast("Any", np.zeros(count, np.int64)) for _ in _Listed._fields))
        walked = walk(state, listed)
        if walked != count:
            raise AssertionError(f"{walked} blocks on lists, {count} marked as such")
        found.append(
            Blocks(
                array(listed.pfn),
                array(listed.order).astype(np.uint8),
                array(listed.migratetype).astype(np.uint8),
                array(listed.zone).astype(np.uint8),
                array(listed.cpu).astype(np.uint16),
            )
        )
    return found[0], found[1]


# --- compiled ----------------------------------------------------------------------------


@compiled
def _place_free(state: State, blocks: _Listed) -> None:
    """Put blocks at the tails of their lists, one after the other."""
    m = pointers(state)
    b = pointers(blocks)
    for i in range(len(blocks.pfn)):  # type: ignore[arg-type]
        pfn, order, zone = b.pfn[i], b.order[i], b.zone[i]
        for each in range(pfn, pfn + (1 << order)):
            m.frame[each] = 0
        add_block(m, zone, pfn, order, b.migratetype[i])


@compiled
def _place_on_cpus(state: State, blocks: _Listed) -> None:
    m = pointers(state)
    b = pointers(blocks)
    for i in range(len(blocks.pfn)):  # type: ignore[arg-type]
        pfn, order, kind = b.pfn[i], b.order[i], b.migratetype[i]
        for each in range(pfn, pfn + (1 << order)):
            m.frame[each] = 0
        pcp_append(m, percpu_row(m, b.cpu[i], b.zone[i]), pfn, order, kind)


@compiled
def _walk_free(state: State, blocks: _Listed) -> int:
    m = pointers(state)
    b = pointers(blocks)
    count = 0
    room = len(blocks.pfn)  # type: ignore[arg-type]
    for zone in range(m.params[s.G_ZONES]):
        for order in range(m.params[s.G_MAX_ORDER] + 1):
            for migratetype in range(len(MIGRATETYPES)):
                item = list_of(m, zone, order, migratetype)
                pfn = m.next[item]
                while pfn != item and count < room:
                    b.pfn[count] = pfn
                    b.order[count] = order
                    b.migratetype[count] = migratetype
                    b.zone[count] = zone
                    count += 1
                    pfn = m.next[pfn]
    return count


@compiled
def _walk_cpus(state: State, blocks: _Listed) -> int:
    m = pointers(state)
    b = pointers(blocks)
    count = 0
    room = len(blocks.pfn)  # type: ignore[arg-type]
    for cpu in range(m.params[s.G_CPUS]):
        for zone in range(m.params[s.G_ZONES]):
            row = percpu_row(m, cpu, zone)
            for index in range(s.PCP_LISTS):
                item = pcp_list(m, row, index)
                pfn = m.next[item]
                while pfn != item and count < room:
                    b.pfn[count] = pfn
                    b.order[count] = m.frame[pfn] & s.ORDER_MASK
                    b.migratetype[count] = index % s.PCP_TYPES if index < s.PCP_LISTS - 2 else 1
                    b.zone[count] = zone
                    b.cpu[count] = cpu
                    count += 1
                    pfn = m.next[pfn]
    return count


# --- helpers -----------------------------------------------------------------------------


def _check(moment: AllocatorState, types: NDArray[np.uint8]) -> None:
    """Compiled code does not look where it writes: refuse what would lead it astray."""
    used = np.concatenate((moment.free.migratetype, moment.pcp.migratetype, moment.pageblocks))
    if (types[used[used != NO_MIGRATETYPE]] == NO_MIGRATETYPE).any():
        raise QuestionError("the machine has pages of a migratetype that is not modelled (CMA)")
    starts = np.array([zone.pfn_start for zone in moment.zones])
    ends = np.array([zone.pfn_end for zone in moment.zones])
    cpus = 1 + max((item.cpu for zone in moment.zones for item in zone.cpus), default=0)
    taken = np.concatenate((moment.free.frames(), moment.pcp.frames()))
    orders = moment.pcp.order
    sound = np.unique(taken).size == taken.size and bool(
        (moment.pcp.cpu < cpus).all()
        and ((orders <= COSTLY_ORDER) | (orders == PAGEBLOCK_ORDER)).all()
        and (types[moment.pcp.migratetype] < s.PCP_TYPES).all()
    )
    for blocks in (moment.free, moment.pcp):
        last = blocks.pfn + (1 << blocks.order.astype(np.int64))
        sound = sound and bool(
            ((blocks.pfn >= starts[blocks.zone]) & (last <= ends[blocks.zone])).all()
        )
    if not sound:
        raise QuestionError(
            "the lists of the machine before contradict its zones", hint="the state is damaged"
        )


def _listed(blocks: Blocks, pageblock: NDArray[np.uint8], types: NDArray[np.uint8]) -> _Listed:
    """As columns of int64; a type that is not known is that of the pageblock."""
    unknown = blocks.migratetype == NO_MIGRATETYPE
    kind = np.where(unknown, pageblock[blocks.pfn >> PAGEBLOCK_ORDER], types[blocks.migratetype])
    columns = (blocks.pfn, blocks.order, kind, blocks.zone, blocks.cpu)
    return _Listed(*(cast("Any", np.ascontiguousarray(c, np.int64)) for c in columns))


def _set_zone(state: State, index: int, moment: AllocatorState) -> None:
    """Watermarks, flags and the CPUs' numbers, those that were read."""
    zone = moment.zones[index]
    row = index << s.ZONE_SHIFT
    values = {
        s.Z_MANAGED: zone.managed,
        s.Z_BOOST: zone.watermark_boost,
        s.Z_RESERVED_HIGHATOMIC: zone.reserved_highatomic,
        s.Z_FLAGS: sum(_FLAGS.get(name, 0) for name in zone.flags),
    }
    values.update(zip((s.Z_MIN, s.Z_LOW, s.Z_HIGH, s.Z_PROMO), zone.watermarks, strict=False))
    for kind, frames in enumerate(zone.lowmem_reserve[: s.ZONE_TYPES]):
        values[s.Z_RESERVE + kind] = frames
    for column, value in values.items():
        state.zones[row + column] = value
    for item in zone.cpus:
        p = (item.cpu * len(moment.zones) + index) << s.PERCPU_SHIFT
        numbers = {
            s.P_HIGH: item.high,
            s.P_HIGH_MIN: item.high if item.high_min < 0 else item.high_min,
            s.P_HIGH_MAX: item.high if item.high_max < 0 else item.high_max,
            s.P_BATCH: item.batch,
            s.P_ALLOC_FACTOR: item.alloc_factor,
            s.P_FREE_COUNT: item.free_count,
            s.P_FLAGS: item.flags,
        }
        for column, value in numbers.items():
            if value >= 0:
                state.percpu[p + column] = value

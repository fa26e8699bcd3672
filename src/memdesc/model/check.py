"""Every invariant of the page allocator, proved on the whole machine.

Slow and complete: it walks every list and every frame in plain Python and numpy, and shares no
code with what it checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memdesc.model import state as s
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from memdesc.model.machine import Machine

__all__ = ["check"]


def check(machine: Machine) -> None:
    """Assert every invariant. Raises AssertionError, which names the frame or the count.

    - each frame is in exactly one block, or reserved, or a hole;
    - lists are linked both ways, hold what their heads say, and every listed block is on one;
    - counts of blocks, of free frames, and of frames on per-CPU lists agree with the lists;
    - two free buddies of the same order that may merge have merged;
    - a free block is on the list of its pageblock's type (6.1: where it may differ, it may).
    """
    heads, sizes, kinds = _blocks(machine)
    chosen = kinds == s.FREE
    free = dict(zip(heads[chosen].tolist(), sizes[chosen].tolist(), strict=True))
    on_lists = _check_free_lists(machine, free)
    _check_merged(machine, free)
    waiting = {
        int(pfn): int(size)
        for pfn, size, kind in zip(heads, sizes, kinds, strict=True)
        if kind >= s.PCP
    }
    _check_percpu(machine, waiting)
    _check_zones(machine, on_lists)


# --- helpers -----------------------------------------------------------------------------


def _blocks(machine: Machine) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Heads, frames and kinds of all blocks, which tile the frames without gap or overlap."""
    frame = array(machine.state.frame).astype(np.int64)
    heads = np.flatnonzero(frame)
    sizes = 1 << (frame[heads] & s.ORDER_MASK)
    kinds = frame[heads] & ~s.ORDER_MASK
    assert heads.size, "no block at all"
    assert heads[0] == 0, f"frame 0 is in no block, the first is at {heads[0]:#x}"
    ends = heads + sizes
    wrong = np.flatnonzero(ends[:-1] != heads[1:])
    assert not wrong.size, f"the block at {heads[wrong[0]]:#x} does not end where the next begins"
    assert ends[-1] == frame.size, f"the last block ends at {ends[-1]:#x}"
    assert not (heads & (sizes - 1)).any(), "a block is not aligned to its size"
    assert (sizes <= 1 << machine.rules.max_order).all(), "a block is larger than the largest"
    return heads, sizes, kinds


def _walk(machine: Machine, item: int, limit: int) -> list[int]:
    """Blocks of one list from its head on; both links agree everywhere."""
    links, back = machine.state.next, machine.state.prev
    found: list[int] = []
    last, pfn = item, int(links[item])
    while pfn != item:
        assert pfn < limit, f"list {item} leads to another list's head {pfn}"
        assert back[pfn] == last, f"{pfn:#x} on list {item} points back to {int(back[pfn]):#x}"
        found.append(pfn)
        assert len(found) <= limit, f"list {item} does not end"
        last, pfn = pfn, int(links[pfn])
    assert back[item] == last, f"the head of list {item} points back to {int(back[item]):#x}"
    return found


def _check_free_lists(machine: Machine, free: dict[int, int]) -> dict[tuple[int, int, int], int]:
    """Blocks per (zone, order, type), after every list was walked."""
    state, rules = machine.state, machine.rules
    frames = int(state.params[s.G_FRAMES])
    seen: set[int] = set()
    counts: dict[tuple[int, int, int], int] = {}
    for zone in range(len(machine.layout.zones)):
        for order in range(16):
            for migratetype in range(8):
                slot = (zone << 4 | order) << s.LIST_ORDER_SHIFT | migratetype
                for pfn in _walk(machine, int(state.params[s.G_LISTS]) + slot, frames):
                    where = f"free block {pfn:#x}"
                    assert pfn not in seen, f"{where} is on two lists"
                    seen.add(pfn)
                    assert state.frame[pfn] == s.FREE | order, f"{where}: not of order {order}"
                    first, last = (
                        pfn >> rules.pageblock_order,
                        (pfn + (1 << order) - 1) >> rules.pageblock_order,
                    )
                    zones = array(state.block_zone)[first : last + 1]
                    assert (zones == zone).all(), f"{where} is not in zone {zone}"
                    types = array(state.block)[first : last + 1]
                    if not rules.pcp_remembers_type:
                        assert (types == migratetype).all(), (
                            f"{where} is on the list of type {migratetype}, its pageblocks are "
                            f"{types.tolist()}"
                        )
                    counts[zone, order, migratetype] = counts.get((zone, order, migratetype), 0) + 1
    missing = free.keys() - seen
    assert not missing, f"free block {min(missing):#x} is on no list"
    return counts


def _check_merged(machine: Machine, free: dict[int, int]) -> None:
    state, rules = machine.state, machine.rules
    for pfn, size in free.items():
        order = size.bit_length() - 1
        buddy = pfn ^ size
        if order >= rules.max_order or free.get(buddy) != size or buddy < pfn:
            continue
        one, other = pfn >> rules.pageblock_order, buddy >> rules.pageblock_order
        if state.block_zone[one] != state.block_zone[other]:
            continue
        # Neighbours of an isolated or reserved pageblock stay apart, after it was given back from
        # the reserve as well: the kernel merges only what is freed.
        apart = max(int(state.block[one]), int(state.block[other])) >= s.HIGHATOMIC
        apart |= machine.counters()["model_highatomic_unreserved"] > 0
        unmerged = f"free buddies {pfn:#x} and {buddy:#x} of order {order} have not merged"
        assert order >= rules.pageblock_order, unmerged
        assert apart, unmerged


def _check_percpu(machine: Machine, waiting: dict[int, int]) -> None:
    state = machine.state
    frames = int(state.params[s.G_FRAMES])
    zones = len(machine.layout.zones)
    seen: set[int] = set()
    for row in range(int(state.params[s.G_CPUS]) * zones):
        total = 0
        for index in range(1 << s.PCP_LISTS_SHIFT):
            item = int(state.params[s.G_PCP_LISTS]) + (row << s.PCP_LISTS_SHIFT) + index
            for pfn in _walk(machine, item, frames):
                assert pfn in waiting, f"{pfn:#x} is on a per-CPU list and not marked so"
                assert pfn not in seen, f"{pfn:#x} is on two per-CPU lists"
                seen.add(pfn)
                order = waiting[pfn].bit_length() - 1
                block = pfn >> machine.rules.pageblock_order
                assert state.block_zone[block] == row % zones, f"{pfn:#x}: wrong zone's list"
                if index < s.PCP_LISTS - 2:
                    assert index // s.PCP_TYPES == order, f"{pfn:#x}: wrong order's list"
                else:
                    assert order == machine.rules.pageblock_order, f"{pfn:#x}: wrong order's list"
                total += waiting[pfn]
        counted = int(state.percpu[(row << s.PERCPU_SHIFT) + s.P_COUNT])
        assert total == counted, f"per-CPU lists {row} hold {total} frames and count {counted}"
    missing = waiting.keys() - seen
    assert not missing, f"{min(missing):#x} is marked as on a per-CPU list and on none"


def _check_zones(machine: Machine, on_lists: dict[tuple[int, int, int], int]) -> None:
    rules = machine.rules
    block, block_zone = array(machine.state.block), array(machine.state.block_zone)
    for zone in range(len(machine.layout.zones)):
        free = held = 0
        for order in range(rules.max_order + 1):
            blocks = [on_lists.get((zone, order, mt), 0) for mt in range(8)]
            counted = machine.zone_value(zone, s.Z_NR_FREE + order)
            assert sum(blocks) == counted, f"zone {zone} order {order}: {sum(blocks)}, {counted}"
            free += (sum(blocks) - blocks[s.ISOLATE]) << order
            held += blocks[s.HIGHATOMIC] << order
        counted = machine.zone_value(zone, s.Z_FREE)
        assert free == counted, f"zone {zone}: {free} free frames on lists, {counted} counted"
        if rules.highatomic_counts_free:
            counted = machine.zone_value(zone, s.Z_FREE_HIGHATOMIC)
            assert held == counted, f"zone {zone}: {held} free in the reserve, {counted} counted"
        mine = block[block_zone == zone]
        isolated = int((mine == s.ISOLATE).sum())
        assert machine.zone_value(zone, s.Z_ISOLATED_BLOCKS) == isolated, f"zone {zone}: isolated"
        reserved = int((mine == s.HIGHATOMIC).sum()) << rules.pageblock_order
        counted = machine.zone_value(zone, s.Z_RESERVED_HIGHATOMIC)
        assert counted == reserved, f"zone {zone}: {reserved} frames reserved, {counted} counted"

"""Many operations in one call: columns of operations in, a column of results out.

A call from Python into compiled code costs more than the work of an allocation, so whatever is
timed or long goes through here; the single calls of `Machine` are batches of one.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike

from memdesc.model.compiled import Column, compiled, helper, keep_apart, pointers
from memdesc.model.counters import LOG_STEP
from memdesc.model.fallback import unreserve_highatomic
from memdesc.model.page_alloc import alloc_pages_here, free_pages_here, split_pages
from memdesc.model.pcp import decay, drain, drain_all, percpu_row
from memdesc.model.ranges import isolate_block, take_frames, unisolate_block
from memdesc.model.state import (
    G_ZONES,
    ORDER_MASK,
    RECLAIM_ACTIVE,
    USED,
    USED_MOVABLE,
    Z_BOOST,
    Z_FLAGS,
    ZONE_SHIFT,
    State,
)

__all__ = ["Op", "Operations", "operations", "run_batch"]


class Op(enum.IntEnum):
    """What to do. `argument` is a frame unless said otherwise."""

    ALLOC = 0
    """Allocate; `argument`: slot to keep the frame in, -1 for none. Result: frame, or -1."""
    FREE_SLOT = 1
    """Free what a slot keeps, on `cpu`; `argument`: slot. Does nothing where it is empty.
    Result: 0, or -1 where the block was not allocated."""
    FREE = 2
    """Free the block of `order` at a frame. Result: 0 or -1."""
    TAKE = 3
    """Take exactly these frames; `flags`: kind of the block, USED or USED_MOVABLE. 0 or -1."""
    SPLIT = 4
    """Split an allocated block of `order` into blocks of order `flags`. 0 or -1."""
    MARK = 5
    """Say whether an allocated block can be moved (is on the LRU); `flags`: 0 or 1. 0 or -1."""
    DRAIN = 6
    """Empty the per-CPU lists of `cpu`."""
    DRAIN_ALL = 7
    DECAY = 8
    """The second's work of the vmstat worker of `cpu`."""
    ISOLATE = 9
    """`argument`: pageblock. Result: frames moved, or -1."""
    UNISOLATE = 10
    """`argument`: pageblock; `flags`: its new migratetype. Result: frames moved, or -1."""
    UNRESERVE = 11
    """Give back one pageblock of a zone's HIGHATOMIC reserve; `argument`: zone; `flags`: new
    migratetype. Result: 1 where there was one."""
    BALANCED = 12
    """kswapd has done its work in a zone (`argument`): boosts end, reclaim is not active."""
    RECLAIMING = 13
    """kswapd or direct reclaim is at work in a zone (`argument`)."""


class Operations(NamedTuple):
    """Columns of the same length."""

    code: Column
    """uint8: `Op`."""
    order: Column
    """uint8."""
    flags: Column
    """uint32: request flags (`memdesc.model.gfp.GFP`), or as `Op` says."""
    cpu: Column
    """uint16."""
    argument: Column
    """int64."""
    slots: Column
    """int64[slots], of any length: frames kept by ALLOC; -1 where there is none."""
    result: Column
    """int64: written."""


def operations(
    code: ArrayLike,
    *,
    order: ArrayLike = 0,
    flags: ArrayLike = 0,
    cpu: ArrayLike = 0,
    argument: ArrayLike = -1,
    slots: int = 0,
) -> Operations:
    """Columns of operations; a single value stands for every row, the longest gives the length.

    `slots` empty slots are made. Raises ValueError where lengths do not fit.
    """
    shape = np.broadcast_shapes(*(np.shape(c) for c in (code, order, flags, cpu, argument)), (1,))

    def column(values: ArrayLike, dtype: type[np.integer[Any]]) -> Any:
        return cast("Any", np.array(np.broadcast_to(values, shape), dtype, order="C"))

    return Operations(
        code=column(code, np.uint8),
        order=column(order, np.uint8),
        flags=column(flags, np.uint32),
        cpu=column(cpu, np.uint16),
        argument=column(argument, np.int64),
        slots=cast("Any", np.full(slots, -1, np.int64)),
        result=cast("Any", np.zeros(shape, np.int64)),
    )


ALLOC, FREE_SLOT, FREE, TAKE, SPLIT, MARK, DRAIN, DRAIN_ALL, DECAY = (
    int(op) for op in list(Op)[:9]
)
ISOLATE, UNISOLATE, UNRESERVE, BALANCED, RECLAIMING = (int(op) for op in list(Op)[9:])


@compiled
def run_batch(state: State, operations: Operations, first: int, last: int) -> None:
    """Do operations [first, last) and write their results."""
    m = pointers(state)
    ops = pointers(operations)
    for i in range(first, last):
        code = ops.code[i]
        cpu = ops.cpu[i]
        m.log[LOG_STEP] = i
        if code == ALLOC:
            pfn = alloc_pages_here(m, ops.order[i], ops.flags[i], cpu)
            if ops.argument[i] >= 0:
                ops.slots[ops.argument[i]] = pfn
            ops.result[i] = pfn
        elif code in (FREE_SLOT, FREE):
            pfn, order = ops.argument[i], ops.order[i]
            if code == FREE_SLOT:
                slot = pfn
                pfn = ops.slots[slot]
                ops.slots[slot] = -1
                order = m.frame[max(pfn, 0)] & ORDER_MASK
            ops.result[i] = free_pages_here(m, pfn, order, cpu) if pfn >= 0 else 0
        else:
            ops.result[i] = _rare(m, ops, i, code, cpu)


@helper
def _rare(m: State, ops: Operations, i: int, code: int, cpu: int) -> int:
    keep_apart()
    argument, order, flags = ops.argument[i], ops.order[i], ops.flags[i]
    if code == TAKE:
        return take_frames(m, argument, order, flags)
    if code == SPLIT:
        return split_pages(m, argument, order, flags)
    if code == MARK:
        kind = m.frame[argument] & ~ORDER_MASK
        if kind != USED and kind != USED_MOVABLE:
            return -1
        wanted = USED_MOVABLE if flags != 0 else USED
        m.frame[argument] = wanted | m.frame[argument] & ORDER_MASK
    elif code == DRAIN:
        for zone in range(m.params[G_ZONES]):
            drain(m, zone, percpu_row(m, cpu, zone))
    elif code == DRAIN_ALL:
        drain_all(m)
    elif code == DECAY:
        decay(m, cpu)
    elif code == ISOLATE:
        return isolate_block(m, argument)
    elif code == UNISOLATE:
        return unisolate_block(m, argument, flags)
    elif code == UNRESERVE:
        return 1 if unreserve_highatomic(m, argument, flags, True) else 0
    elif code == BALANCED:
        m.zones[(argument << ZONE_SHIFT) + Z_BOOST] = 0
        m.zones[(argument << ZONE_SHIFT) + Z_FLAGS] &= ~RECLAIM_ACTIVE
    elif code == RECLAIMING:
        m.zones[(argument << ZONE_SHIFT) + Z_FLAGS] |= RECLAIM_ACTIVE
    return 0

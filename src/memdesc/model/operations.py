"""Batches of operations on a machine with descriptors, compiled: columns in, results out.

An operation names what it works on by a *handle*, a number of its own: an allocation stores
its address there, a free takes it from there. So one batch runs on every design, whatever
addresses that design gives.  A batch stops before an operation for which Python must make
room, and is resumed there.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from memdesc.model.cache_types import column
from memdesc.model.compiled import Column, compiled, helper, hot, keep_apart, pointers
from memdesc.model.descriptors import (
    NOT_ALLOCATED,
    alloc_described,
    drop_reference,
    free_described,
    get_descriptor,
)
from memdesc.model.frame_words import address_of, read_word
from memdesc.model.slab import (
    alloc_object,
    free_object,
    has_address,
)
from memdesc.model.slab_lists import (
    slot_of,
    touch,
)
from memdesc.model.slab_state import (
    G_DIRECT_MAP,
    G_FRAME_BYTES,
    G_FRAMES,
    G_MEMMAP,
    G_RECORD_HEADROOM,
    G_RECORD_ROOM,
    G_RECORDS,
    G_SHEAF_ROOM,
    G_SHEAVES,
    G_SLOT_HEADROOM,
    G_SLOT_ROOM,
    G_SLOTS,
    G_TOUCH_ROOM,
    G_TOUCHED,
    G_TRACING,
    S_REFS,
    T_DESCRIPTOR,
    T_OPERATION,
    T_WORD,
    SlabState,
)
from memdesc.model.state import G_BLOCK_ORDER, KIND_SHIFT, ORDER_MASK, USED_MOVABLE, State
from memdesc.plan import PlanKind

__all__ = [
    "CODES",
    "SHEAF_HEADROOM",
    "SKIPPED",
    "TOUCH_HEADROOM",
    "Operations",
    "has_room",
    "one_operation",
    "run",
]

ALLOC, FREE, KMEM_ALLOC, KMEM_FREE, GET, PUT, LOOKUP, SCAN = range(8)

CODES: Final = (
    "allocate",
    "free",
    "allocate object",
    "free object",
    "get",
    "put",
    "look up",
    "scan pageblock",
)
"""What each code is called."""

_FIRST_FOLIO: Final = int(PlanKind.FILE)
_LAST_FOLIO: Final = int(PlanKind.KSM)

SKIPPED: Final = -4
"""Result where the handle holds nothing: its allocation failed."""
SHEAF_HEADROOM: Final = 16
"""Sheaves that one operation may begin."""
TOUCH_HEADROOM: Final = 4096
"""Accesses that one operation may make."""


class Operations(NamedTuple):
    """Columns, one row per operation, and the handles."""

    code: Column
    """uint8: ALLOC ... SCAN."""
    kind: Column
    """int16: code of the memory type (ALLOC), number of the cache (KMEM_...)."""
    order: Column
    """uint8."""
    cpu: Column
    """uint16."""
    handle: Column
    """int32: where the address is stored or taken from."""
    arg: Column
    """int32: the owner (ALLOC), frames from the first one (GET, LOOKUP), the block (SCAN)."""
    into: Column
    """int32: the handle that a reference is stored in (GET)."""
    result: Column
    """int64: address, first frame, or a negative code."""
    handles: Column
    """int64."""


def one_operation() -> Operations:
    """A batch of one, with two handles: what it works on, and where GET stores."""
    sizes: dict[str, tuple[int, type[np.generic]]] = {
        **dict.fromkeys(("code", "order"), (1, np.uint8)),
        **dict.fromkeys(("handle", "arg", "into"), (1, np.int32)),
        **{"kind": (1, np.int16), "cpu": (1, np.uint16)},
        **{"result": (1, np.int64), "handles": (2, np.int64)},
    }
    return Operations(
        **{name: column(np.zeros(count, kind)) for name, (count, kind) in sizes.items()}
    )


@compiled
def run(state: State, slabs: SlabState, operations: Operations, first: int, end: int) -> int:
    """Run operations [first, end); the number of the one to go on with."""
    m = pointers(state)
    s = pointers(slabs)
    o = pointers(operations)
    for i in range(first, end):
        if not has_room(s):
            return i
        if s.cell[G_TRACING] != 0:
            touch(s, i, 0, T_OPERATION)
        o.result[i] = _step(m, s, o, i)
    return end


@hot
def _step(m: State, s: SlabState, o: Operations, i: int) -> int:
    code = o.code[i]
    cpu = o.cpu[i]
    if code == ALLOC:
        pfn = alloc_described(m, s, o.kind[i], o.order[i], cpu, o.arg[i])
        o.handles[o.handle[i]] = pfn
        return pfn
    if code == KMEM_ALLOC:
        address = alloc_object(m, s, o.kind[i], cpu)
        o.handles[o.handle[i]] = address
        if address >= 0:
            _mark_in_use(m, s, address)
        return address
    if code == SCAN:
        return _scan(m, s, o.arg[i])
    value = o.handles[o.handle[i]]
    if value < 0:
        return SKIPPED
    if code == FREE:
        result = free_described(m, s, value, cpu)
        if result >= 0:
            o.handles[o.handle[i]] = -1
        return result
    if code == KMEM_FREE:
        if not has_address(m, s, value):
            return NOT_ALLOCATED
        free_object(m, s, value, cpu)
        o.handles[o.handle[i]] = -1
        return 0
    if code == PUT:
        o.handles[o.handle[i]] = -1
        return drop_reference(m, s, value, cpu)
    address = get_descriptor(m, s, value + o.arg[i], -1, cpu)
    if code == GET:
        o.handles[o.into[i]] = address
    elif address >= 0:
        drop_reference(m, s, address, cpu)
    return address


@helper
def _mark_in_use(m: State, s: SlabState, address: int) -> None:
    """An object of any other cache: in use, without a count."""
    s.slot[slot_of(m, s, address) + S_REFS] = -1


@helper
def _scan(m: State, s: SlabState, block: int) -> int:
    """Walk a pageblock by frame as compaction does: how many folios could be moved.

    Blocks are stepped over by their order.  In the small pages a folio's order and counts lie
    in its descriptor, in the 64-byte ones in its struct page.
    """
    keep_apart()
    shift = m.params[G_BLOCK_ORDER]
    pfn = block << shift
    end = min(pfn + (1 << shift), s.cell[G_FRAMES])
    size = s.cell[G_FRAME_BYTES]
    movable = 0
    while pfn < end:
        touch(s, s.cell[G_MEMMAP] + pfn * size, 8, T_WORD)
        word = read_word(s, pfn)
        kind = word & 15
        if kind >= _FIRST_FOLIO and kind <= _LAST_FOLIO:
            touch(s, s.cell[G_DIRECT_MAP] + address_of(s, word), 64, T_DESCRIPTOR)
        if m.frame[pfn] >> KIND_SHIFT == USED_MOVABLE >> KIND_SHIFT:
            movable += 1
        pfn += 1 << (m.frame[pfn] & ORDER_MASK)
    return movable


@hot
def has_room(s: SlabState) -> bool:
    """Whether the next operation cannot run out of rows, whatever it does."""
    return (
        s.cell[G_RECORDS] + s.cell[G_RECORD_HEADROOM] <= s.cell[G_RECORD_ROOM]
        and s.cell[G_SLOTS] + s.cell[G_SLOT_HEADROOM] <= s.cell[G_SLOT_ROOM]
        and s.cell[G_SHEAVES] + SHEAF_HEADROOM <= s.cell[G_SHEAF_ROOM]
        and (s.cell[G_TRACING] == 0 or s.cell[G_TOUCHED] + TOUCH_HEADROOM <= s.cell[G_TOUCH_ROOM])
    )

"""Records of slabs, their objects, and the lists they stand on (compiled).

Nothing here allocates or frees frames.
"""

from __future__ import annotations

from memdesc.model.compiled import helper, hot, keep_apart
from memdesc.model.slab_state import (
    C_DESCRIPTOR_BYTES,
    C_SIZE,
    CACHE_FIELDS,
    CPU_FIELDS,
    G_CPUS,
    G_DIRECT_MAP,
    G_NODES,
    G_RECORDS,
    G_SLOTS,
    G_TOUCH_ROOM,
    G_TOUCHED,
    G_TRACING,
    N_HEAD,
    N_PARTIALS,
    N_TAIL,
    NODE_FIELDS,
    NONE,
    ON_NO_LIST,
    ON_NODE,
    R_BASE,
    R_CACHE,
    R_CPU,
    R_DESCRIPTOR,
    R_FREE,
    R_IN_USE,
    R_NEXT,
    R_NODE,
    R_OBJECTS,
    R_ORDER,
    R_PFN,
    R_PLACE,
    R_PREV,
    R_SELF,
    RECORD_FIELDS,
    S_VALUE,
    SLOT_FIELDS,
    T_LINK,
    TOUCH_FIELDS,
    UNUSED,
    SlabState,
)
from memdesc.model.state import G_BLOCK_ORDER, Z_NODE, ZONE_SHIFT, State

__all__ = [
    "add_head",
    "add_tail",
    "begin_record",
    "cpu_row",
    "end_record",
    "is_empty",
    "node_of",
    "node_row",
    "number_of_object",
    "object_address",
    "pop_object",
    "push_object",
    "record_of",
    "remove",
    "slot_of",
    "touch",
    "touch_link",
]


# Rows


@hot
def cpu_row(s: SlabState, cache: int, cpu: int) -> int:
    """Index of the row of one cache on one CPU."""
    return (cache * s.cell[G_CPUS] + cpu) * CPU_FIELDS


@hot
def node_row(s: SlabState, cache: int, node: int) -> int:
    """Index of the row of one cache on one node."""
    return (cache * s.cell[G_NODES] + node) * NODE_FIELDS


@hot
def touch(s: SlabState, address: int, size_bytes: int, access: int) -> None:
    """Note an access to metadata, while somebody traces them."""
    if s.cell[G_TRACING] != 0:
        _note(s, address, size_bytes, access)


@helper
def _note(s: SlabState, address: int, size_bytes: int, access: int) -> None:
    """Without room it counts on: whoever reads the trace sees that it is too short."""
    keep_apart()
    at = s.cell[G_TOUCHED]
    s.cell[G_TOUCHED] = at + 1
    if at < s.cell[G_TOUCH_ROOM]:
        s.touch[at * TOUCH_FIELDS] = address
        s.touch[at * TOUCH_FIELDS + 1] = size_bytes
        s.touch[at * TOUCH_FIELDS + 2] = access


@hot
def node_of(m: State, pfn: int) -> int:
    """The node that a frame belongs to."""
    return m.zones[(m.block_zone[pfn >> m.params[G_BLOCK_ORDER]] << ZONE_SHIFT) + Z_NODE]


# Objects


@hot
def record_of(m: State, address: int) -> int:
    """The record of the slab that the object at a physical address lies in."""
    return m.next[address >> 12]


@hot
def number_of_object(s: SlabState, record: int, address: int) -> int:
    """Which object of its slab lies at a physical address."""
    row = record * RECORD_FIELDS
    offset = address - (s.record[row + R_PFN] << 12)
    return offset // s.cache[s.record[row + R_CACHE] * CACHE_FIELDS + C_SIZE]


@hot
def object_address(s: SlabState, record: int, number: int) -> int:
    """Physical address of an object."""
    row = record * RECORD_FIELDS
    size = s.cache[s.record[row + R_CACHE] * CACHE_FIELDS + C_SIZE]
    return (s.record[row + R_PFN] << 12) + number * size


@hot
def slot_of(m: State, s: SlabState, address: int) -> int:
    """Index of the slot's row for the object at a physical address."""
    record = record_of(m, address)
    number = number_of_object(s, record, address)
    return (s.record[record * RECORD_FIELDS + R_BASE] + number) * SLOT_FIELDS


@hot
def pop_object(s: SlabState, record: int) -> int:
    """Take the first object off the slab's own free list; the caller knows there is one."""
    row = record * RECORD_FIELDS
    number = s.record[row + R_FREE]
    s.record[row + R_FREE] = s.slot[(s.record[row + R_BASE] + number) * SLOT_FIELDS + S_VALUE]
    s.record[row + R_IN_USE] += 1
    return number


@hot
def push_object(s: SlabState, record: int, number: int) -> None:
    """Put an object back onto the slab's own free list."""
    row = record * RECORD_FIELDS
    s.slot[(s.record[row + R_BASE] + number) * SLOT_FIELDS + S_VALUE] = s.record[row + R_FREE]
    s.record[row + R_FREE] = number
    s.record[row + R_IN_USE] -= 1


@hot
def touch_link(s: SlabState, cache: int, address: int) -> None:
    """The free pointer in an object of a slab of descriptors is read or written."""
    if s.cell[G_TRACING] != 0 and s.cache[cache * CACHE_FIELDS + C_DESCRIPTOR_BYTES] != 0:
        touch(s, s.cell[G_DIRECT_MAP] + address, 8, T_LINK)


@hot
def is_empty(s: SlabState, record: int) -> bool:
    """No object in use, or only the one that describes the slab."""
    row = record * RECORD_FIELDS
    return s.record[row + R_IN_USE] == s.record[row + R_SELF]


# Records


@helper
def begin_record(s: SlabState, cache: int, pfn: int, order: int, objects: int, node: int) -> int:
    """A record for a new slab, all of whose objects are free, on no list.

    The room for it was made before the batch (`G_RECORD_HEADROOM`, `G_SLOT_HEADROOM`).
    """
    keep_apart()
    record = s.spare[objects]
    if record >= 0:
        s.spare[objects] = s.record[record * RECORD_FIELDS + R_NEXT]
        base = s.record[record * RECORD_FIELDS + R_BASE]
    else:
        record = s.cell[G_RECORDS]
        s.cell[G_RECORDS] = record + 1
        base = s.cell[G_SLOTS]
        s.cell[G_SLOTS] = base + objects
    row = record * RECORD_FIELDS
    s.record[row + R_PFN] = pfn
    s.record[row + R_ORDER] = order
    s.record[row + R_CACHE] = cache
    s.record[row + R_OBJECTS] = objects
    s.record[row + R_IN_USE] = 0
    s.record[row + R_FREE] = 0
    s.record[row + R_PLACE] = ON_NO_LIST
    s.record[row + R_NEXT] = NONE
    s.record[row + R_PREV] = NONE
    s.record[row + R_BASE] = base
    s.record[row + R_DESCRIPTOR] = NONE
    s.record[row + R_SELF] = 0
    s.record[row + R_NODE] = node
    s.record[row + R_CPU] = NONE
    for number in range(objects):
        s.slot[(base + number) * SLOT_FIELDS + S_VALUE] = number + 1
    s.slot[(base + objects - 1) * SLOT_FIELDS + S_VALUE] = NONE
    return record


@helper
def end_record(s: SlabState, record: int) -> None:
    """The slab is gone; its record and slots wait for one with as many objects."""
    keep_apart()
    row = record * RECORD_FIELDS
    objects = s.record[row + R_OBJECTS]
    s.record[row + R_PLACE] = UNUSED
    s.record[row + R_NEXT] = s.spare[objects]
    s.spare[objects] = record


# The node's list of partial slabs


@helper
def add_head(s: SlabState, record: int) -> None:
    """Put a slab at the head of its node's partial list."""
    keep_apart()
    row = record * RECORD_FIELDS
    node = node_row(s, s.record[row + R_CACHE], s.record[row + R_NODE])
    first = s.node[node + N_HEAD]
    s.record[row + R_PREV] = NONE
    s.record[row + R_NEXT] = first
    s.record[row + R_PLACE] = ON_NODE
    if first >= 0:
        s.record[first * RECORD_FIELDS + R_PREV] = record
    else:
        s.node[node + N_TAIL] = record
    s.node[node + N_HEAD] = record
    s.node[node + N_PARTIALS] += 1


@helper
def add_tail(s: SlabState, record: int) -> None:
    """Put a slab at the tail of its node's partial list."""
    keep_apart()
    row = record * RECORD_FIELDS
    node = node_row(s, s.record[row + R_CACHE], s.record[row + R_NODE])
    last = s.node[node + N_TAIL]
    s.record[row + R_NEXT] = NONE
    s.record[row + R_PREV] = last
    s.record[row + R_PLACE] = ON_NODE
    if last >= 0:
        s.record[last * RECORD_FIELDS + R_NEXT] = record
    else:
        s.node[node + N_HEAD] = record
    s.node[node + N_TAIL] = record
    s.node[node + N_PARTIALS] += 1


@helper
def remove(s: SlabState, record: int) -> None:
    """Take a slab off its node's partial list."""
    keep_apart()
    row = record * RECORD_FIELDS
    node = node_row(s, s.record[row + R_CACHE], s.record[row + R_NODE])
    before = s.record[row + R_PREV]
    after = s.record[row + R_NEXT]
    if before >= 0:
        s.record[before * RECORD_FIELDS + R_NEXT] = after
    else:
        s.node[node + N_HEAD] = after
    if after >= 0:
        s.record[after * RECORD_FIELDS + R_PREV] = before
    else:
        s.node[node + N_TAIL] = before
    s.record[row + R_NEXT] = NONE
    s.record[row + R_PREV] = NONE
    s.record[row + R_PLACE] = ON_NO_LIST
    s.node[node + N_PARTIALS] -= 1

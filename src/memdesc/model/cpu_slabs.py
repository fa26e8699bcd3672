"""One slab per CPU and a list of partial ones (6.1, 6.12), compiled.

Source: `mm/slub.c` (___slab_alloc, get_freelist, get_partial_node, put_cpu_partial,
__put_partials, __slab_free) @6.12; 6.1 has the same lists and freezes the slabs on them.
"""

from __future__ import annotations

from memdesc.model.compiled import helper, hot, keep_apart
from memdesc.model.slab_lists import (
    add_head,
    add_tail,
    cpu_row,
    is_empty,
    node_row,
    object_address,
    push_object,
    remove,
    touch_link,
)
from memdesc.model.slab_state import (
    C_CPU_PARTIAL,
    C_MIN_PARTIAL,
    CACHE_FIELDS,
    G_NODES,
    N_HEAD,
    N_PARTIALS,
    NONE,
    ON_CPU,
    ON_CPU_PARTIAL,
    ON_NO_LIST,
    ON_NODE,
    P_FREE,
    P_PARTIAL,
    P_PARTIALS,
    P_SLAB,
    R_BASE,
    R_CACHE,
    R_CPU,
    R_FREE,
    R_IN_USE,
    R_NEXT,
    R_NODE,
    R_OBJECTS,
    R_PLACE,
    R_SELF,
    RECORD_FIELDS,
    S_VALUE,
    SLOT_FIELDS,
    SlabState,
)

__all__ = ["adopt", "flush_cpu", "free_to_slab", "pop_from_cpu", "push_to_slab", "take_from_cpu"]


@hot
def pop_from_cpu(s: SlabState, cache: int, cpu: int) -> int:
    """The first object of the CPU's own free list: address, or NONE."""
    at = cpu_row(s, cache, cpu)
    number = s.cpu[at + P_FREE]
    if number < 0:
        return NONE
    record = s.cpu[at + P_SLAB]
    base = s.record[record * RECORD_FIELDS + R_BASE]
    s.cpu[at + P_FREE] = s.slot[(base + number) * SLOT_FIELDS + S_VALUE]
    address = object_address(s, record, number)
    touch_link(s, cache, address)
    return address


@helper
def take_from_cpu(s: SlabState, cache: int, cpu: int, node: int) -> int:
    """An object without a new slab: address, or NONE.

    The CPU's free list; what others freed into its slab; its partial list; the node's.
    """
    if s.cpu[cpu_row(s, cache, cpu) + P_FREE] < 0 and not _find_slab(s, cache, cpu, node):
        return NONE
    return pop_from_cpu(s, cache, cpu)


@hot
def push_to_slab(s: SlabState, record: int, number: int, cpu: int) -> bool:
    """Put an object back where that changes no list: whether it was so.

    On to the CPU's own free list, or into a slab that has free objects and keeps others in use.
    """
    row = record * RECORD_FIELDS
    place = s.record[row + R_PLACE]
    if place == ON_CPU:
        if s.record[row + R_CPU] == cpu:
            at = cpu_row(s, s.record[row + R_CACHE], cpu)
            base = s.record[row + R_BASE]
            s.slot[(base + number) * SLOT_FIELDS + S_VALUE] = s.cpu[at + P_FREE]
            s.cpu[at + P_FREE] = number
            return True
    elif place == ON_NODE:
        if s.record[row + R_IN_USE] - 1 == s.record[row + R_SELF]:
            return False
    elif place != ON_CPU_PARTIAL:
        return False
    push_object(s, record, number)
    return True


@helper
def adopt(s: SlabState, record: int, cpu: int) -> None:
    """Make a slab with free objects, on no list, the CPU's: its free list moves to the CPU."""
    keep_apart()
    row = record * RECORD_FIELDS
    at = cpu_row(s, s.record[row + R_CACHE], cpu)
    s.cpu[at + P_SLAB] = record
    s.cpu[at + P_FREE] = s.record[row + R_FREE]
    s.record[row + R_FREE] = NONE
    s.record[row + R_IN_USE] = s.record[row + R_OBJECTS]
    s.record[row + R_PLACE] = ON_CPU
    s.record[row + R_CPU] = cpu


@helper
def free_to_slab(s: SlabState, record: int, number: int, cpu: int, with_cpu_lists: bool) -> int:
    """Put an object back into a slab that no CPU holds.

    Returns the first record of a chain of slabs to discard.
    `with_cpu_lists` is False for sheaves, where a slab that was full goes to the node's list.
    """
    keep_apart()
    row = record * RECORD_FIELDS
    place = s.record[row + R_PLACE]
    was_full = s.record[row + R_FREE] < 0
    push_object(s, record, number)
    cache = s.record[row + R_CACHE]
    at = cache * CACHE_FIELDS
    if was_full and with_cpu_lists and s.cache[at + C_CPU_PARTIAL] != 0:
        return _put_cpu_partial(s, record, cpu, True)
    node = node_row(s, cache, s.record[row + R_NODE])
    if is_empty(s, record) and s.node[node + N_PARTIALS] >= s.cache[at + C_MIN_PARTIAL]:
        if place == ON_NODE:
            remove(s, record)
        s.record[row + R_NEXT] = NONE
        return record
    if was_full:
        add_tail(s, record)
    return NONE


@helper
def flush_cpu(s: SlabState, cache: int, cpu: int) -> int:
    """Give the CPU's slab and its partial list to the nodes (flush_slab, __put_partials).

    Returns the first record of a chain of slabs to discard.
    """
    keep_apart()
    at = cpu_row(s, cache, cpu)
    chain = NONE
    record = s.cpu[at + P_SLAB]
    if record >= 0:
        chain = _deactivate(s, record, cpu)
    partial = s.cpu[at + P_PARTIAL]
    s.cpu[at + P_PARTIAL] = NONE
    s.cpu[at + P_PARTIALS] = 0
    return _put_partials(s, partial, chain)


# Helpers


@helper
def _find_slab(s: SlabState, cache: int, cpu: int, node: int) -> bool:
    keep_apart()
    at = cpu_row(s, cache, cpu)
    record = s.cpu[at + P_SLAB]
    if record >= 0:
        row = record * RECORD_FIELDS
        if s.record[row + R_FREE] >= 0:
            adopt(s, record, cpu)  # what other CPUs freed meanwhile
            return True
        s.record[row + R_PLACE] = ON_NO_LIST
        s.record[row + R_CPU] = NONE
        s.cpu[at + P_SLAB] = NONE
    record = s.cpu[at + P_PARTIAL]
    if record >= 0:
        s.cpu[at + P_PARTIAL] = s.record[record * RECORD_FIELDS + R_NEXT]
        s.cpu[at + P_PARTIALS] -= 1
        s.record[record * RECORD_FIELDS + R_NEXT] = NONE
        adopt(s, record, cpu)
        return True
    nodes = s.cell[G_NODES]
    for step in range(nodes):
        record = _take_partials(s, cache, cpu, (node + step) % nodes)
        if record >= 0:
            adopt(s, record, cpu)
            return True
    return False


@helper
def _take_partials(s: SlabState, cache: int, cpu: int, node: int) -> int:
    """One slab to use, and further ones for the CPU's partial list; NONE if there is none."""
    keep_apart()
    at = node_row(s, cache, node)
    limit = s.cache[cache * CACHE_FIELDS + C_CPU_PARTIAL]
    first = s.node[at + N_HEAD]
    if first < 0:
        return NONE
    remove(s, first)
    if limit == 0:
        return first
    taken = 0
    record = s.node[at + N_HEAD]
    while record >= 0:
        remove(s, record)
        _put_cpu_partial(s, record, cpu, False)
        taken += 1
        if taken > limit // 2:
            break
        record = s.node[at + N_HEAD]
    return first


@helper
def _put_cpu_partial(s: SlabState, record: int, cpu: int, drain: bool) -> int:
    keep_apart()
    row = record * RECORD_FIELDS
    cache = s.record[row + R_CACHE]
    at = cpu_row(s, cache, cpu)
    old = s.cpu[at + P_PARTIAL]
    put = NONE
    if (
        drain
        and old >= 0
        and s.cpu[at + P_PARTIALS] >= s.cache[cache * CACHE_FIELDS + C_CPU_PARTIAL]
    ):
        put = old
        old = NONE
        s.cpu[at + P_PARTIALS] = 0
    s.record[row + R_NEXT] = old
    s.record[row + R_PLACE] = ON_CPU_PARTIAL
    s.record[row + R_CPU] = cpu
    s.cpu[at + P_PARTIAL] = record
    s.cpu[at + P_PARTIALS] += 1
    return _put_partials(s, put, NONE)


@helper
def _put_partials(s: SlabState, record: int, chain: int) -> int:
    """A CPU's partial list goes to the nodes; empty slabs over the limit join `chain`."""
    keep_apart()
    while record >= 0:
        row = record * RECORD_FIELDS
        following = s.record[row + R_NEXT]
        s.record[row + R_CPU] = NONE
        cache = s.record[row + R_CACHE]
        node = node_row(s, cache, s.record[row + R_NODE])
        least = s.cache[cache * CACHE_FIELDS + C_MIN_PARTIAL]
        if is_empty(s, record) and s.node[node + N_PARTIALS] >= least:
            s.record[row + R_PLACE] = ON_NO_LIST
            s.record[row + R_NEXT] = chain
            chain = record
        else:
            add_tail(s, record)
        record = following
    return chain


@helper
def _deactivate(s: SlabState, record: int, cpu: int) -> int:
    """Take the slab from its CPU (deactivate_slab): NONE, or the record if it is to go."""
    keep_apart()
    row = record * RECORD_FIELDS
    cache = s.record[row + R_CACHE]
    at = cpu_row(s, cache, cpu)
    freed_by_others = s.record[row + R_FREE] >= 0
    number = s.cpu[at + P_FREE]
    base = s.record[row + R_BASE]
    while number >= 0:
        following = s.slot[(base + number) * SLOT_FIELDS + S_VALUE]
        push_object(s, record, number)
        number = following
    s.cpu[at + P_SLAB] = NONE
    s.cpu[at + P_FREE] = NONE
    s.record[row + R_PLACE] = ON_NO_LIST
    s.record[row + R_CPU] = NONE
    node = node_row(s, cache, s.record[row + R_NODE])
    if (
        is_empty(s, record)
        and s.node[node + N_PARTIALS] >= s.cache[cache * CACHE_FIELDS + C_MIN_PARTIAL]
    ):
        s.record[row + R_NEXT] = NONE
        return record
    if s.record[row + R_FREE] >= 0:
        if freed_by_others:
            add_tail(s, record)
        else:
            add_head(s, record)
    return NONE

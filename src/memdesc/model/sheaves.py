"""Arrays of objects per CPU, and a barn of them per node (7.2), compiled.

A CPU has a main and perhaps a spare sheaf; a node's barn keeps up to ten full and ten empty
ones.  Allocating pops from main, freeing pushes to it.  The memory of the sheaves themselves
is not modelled: a sheaf is made when one is wanted and none is empty.

Source: `mm/slub.c` (alloc_from_pcs, __pcs_replace_empty_main, free_to_pcs,
__pcs_replace_full_main, refill_objects, barn_put_full_sheaf, barn_get_empty_sheaf) @7.2.
"""

from __future__ import annotations

from memdesc.model.compiled import helper, hot, keep_apart
from memdesc.model.slab_lists import (
    add_head,
    cpu_row,
    node_row,
    object_address,
    pop_object,
    remove,
    touch_link,
)
from memdesc.model.slab_state import (
    C_SHEAF,
    CACHE_FIELDS,
    G_NODES,
    G_SHEAVES,
    G_SPARE_SHEAF,
    H_FIRST,
    H_NEXT,
    H_SIZE,
    N_EMPTIES,
    N_EMPTY,
    N_FULL,
    N_FULLS,
    N_HEAD,
    NONE,
    P_MAIN,
    P_SPARE,
    R_CACHE,
    R_FREE,
    RECORD_FIELDS,
    SHEAF_FIELDS,
    SlabState,
)

__all__ = [
    "end_sheaf",
    "fill_from_slab",
    "main_is_full",
    "pop_from_main",
    "push_to_main",
    "refill",
    "room_in_main",
    "sheaf_to_flush",
    "take_from_barn",
    "take_from_sheaf",
]

_MOST_SHEAVES = 10
"""MAX_FULL_SHEAVES and MAX_EMPTY_SHEAVES of a barn."""


# Allocating


@hot
def pop_from_main(s: SlabState, cache: int, cpu: int) -> int:
    """The last object of the CPU's main sheaf: address, or NONE."""
    sheaf = s.cpu[cpu_row(s, cache, cpu) + P_MAIN]
    if sheaf < 0:
        return NONE
    main = sheaf * SHEAF_FIELDS
    size = s.sheaf[main + H_SIZE] - 1
    if size < 0:
        return NONE
    s.sheaf[main + H_SIZE] = size
    address = s.sheaf[main + H_FIRST + size]
    touch_link(s, cache, address)
    return address


@helper
def take_from_sheaf(s: SlabState, cache: int, cpu: int, node: int) -> int:
    """An object from the CPU's sheaves, else from a full sheaf of the barn: address, or NONE."""
    keep_apart()
    at = cpu_row(s, cache, cpu)
    if s.cpu[at + P_MAIN] < 0:
        s.cpu[at + P_MAIN] = _begin_sheaf(s)
    if s.sheaf[s.cpu[at + P_MAIN] * SHEAF_FIELDS + H_SIZE] == 0:
        spare = s.cpu[at + P_SPARE]
        if spare >= 0 and s.sheaf[spare * SHEAF_FIELDS + H_SIZE] > 0:
            s.cpu[at + P_SPARE] = s.cpu[at + P_MAIN]
            s.cpu[at + P_MAIN] = spare
        elif not take_from_barn(s, cache, cpu, node):
            return NONE
    return pop_from_main(s, cache, cpu)


@hot
def push_to_main(s: SlabState, cache: int, cpu: int, address: int) -> bool:
    """Put an object into the CPU's main sheaf, if there is room: whether there was."""
    sheaf = s.cpu[cpu_row(s, cache, cpu) + P_MAIN]
    if sheaf < 0:
        return False
    main = sheaf * SHEAF_FIELDS
    size = s.sheaf[main + H_SIZE]
    if size >= s.cache[cache * CACHE_FIELDS + C_SHEAF]:
        return False
    s.sheaf[main + H_FIRST + size] = address
    s.sheaf[main + H_SIZE] = size + 1
    return True


@helper
def take_from_barn(s: SlabState, cache: int, cpu: int, node: int) -> bool:
    """Exchange the CPU's empty main sheaf for a full one of the barn, if it has one."""
    keep_apart()
    row = node_row(s, cache, node)
    full = s.node[row + N_FULL]
    if full < 0:
        return False
    at = cpu_row(s, cache, cpu)
    s.node[row + N_FULL] = s.sheaf[full * SHEAF_FIELDS + H_NEXT]
    s.node[row + N_FULLS] -= 1
    _put_empty(s, row, s.cpu[at + P_MAIN])
    s.cpu[at + P_MAIN] = full
    return True


@helper
def refill(s: SlabState, cache: int, cpu: int, node: int) -> None:
    """Fill the main sheaf from the partial slabs, those of the own node first."""
    keep_apart()
    nodes = s.cell[G_NODES]
    for step in range(nodes):
        row = node_row(s, cache, (node + step) % nodes)
        record = s.node[row + N_HEAD]
        while record >= 0 and room_in_main(s, cache, cpu) > 0:
            remove(s, record)
            fill_from_slab(s, record, cpu)
            record = s.node[row + N_HEAD]


@helper
def fill_from_slab(s: SlabState, record: int, cpu: int) -> None:
    """Move objects of a slab, on no list, to the main sheaf; what is left makes it partial."""
    keep_apart()
    row = record * RECORD_FIELDS
    cache = s.record[row + R_CACHE]
    main = s.cpu[cpu_row(s, cache, cpu) + P_MAIN] * SHEAF_FIELDS
    capacity = s.cache[cache * CACHE_FIELDS + C_SHEAF]
    while s.record[row + R_FREE] >= 0 and s.sheaf[main + H_SIZE] < capacity:
        number = pop_object(s, record)
        s.sheaf[main + H_FIRST + s.sheaf[main + H_SIZE]] = object_address(s, record, number)
        s.sheaf[main + H_SIZE] += 1
    if s.record[row + R_FREE] >= 0:
        add_head(s, record)


@helper
def room_in_main(s: SlabState, cache: int, cpu: int) -> int:
    """How many objects the main sheaf still takes."""
    at = cpu_row(s, cache, cpu)
    size = s.sheaf[s.cpu[at + P_MAIN] * SHEAF_FIELDS + H_SIZE]
    return s.cache[cache * CACHE_FIELDS + C_SHEAF] - size


# Freeing


@helper
def main_is_full(s: SlabState, cache: int, cpu: int) -> bool:
    """Whether a free must first make room (`sheaf_to_flush`); makes the first sheaf."""
    at = cpu_row(s, cache, cpu)
    if s.cpu[at + P_MAIN] < 0:
        s.cpu[at + P_MAIN] = _begin_sheaf(s)
    return room_in_main(s, cache, cpu) == 0


@helper
def sheaf_to_flush(s: SlabState, cache: int, cpu: int, node: int) -> int:
    """Put a sheaf with room in place of the full main one.

    Returns a full sheaf whose objects must go back to their slabs, NONE if there is none.
    """
    keep_apart()
    at = cpu_row(s, cache, cpu)
    row = node_row(s, cache, node)
    main = s.cpu[at + P_MAIN]
    spare = s.cpu[at + P_SPARE]
    if spare < 0:
        s.cpu[at + P_SPARE] = main
        s.cpu[at + P_MAIN] = _get_empty(s, row)
        return NONE
    if s.sheaf[spare * SHEAF_FIELDS + H_SIZE] < s.cache[cache * CACHE_FIELDS + C_SHEAF]:
        s.cpu[at + P_SPARE] = main
        s.cpu[at + P_MAIN] = spare
        return NONE
    if s.node[row + N_FULLS] < _MOST_SHEAVES:
        s.sheaf[main * SHEAF_FIELDS + H_NEXT] = s.node[row + N_FULL]
        s.node[row + N_FULL] = main
        s.node[row + N_FULLS] += 1
        s.cpu[at + P_MAIN] = _get_empty(s, row)
        return NONE
    # Spare is full as well: its objects go to the slabs, and it becomes the empty one.
    s.cpu[at + P_SPARE] = main
    s.cpu[at + P_MAIN] = spare
    return spare


@helper
def end_sheaf(s: SlabState, sheaf: int) -> None:
    """The sheaf is not wanted any more."""
    keep_apart()
    s.sheaf[sheaf * SHEAF_FIELDS + H_SIZE] = 0
    s.sheaf[sheaf * SHEAF_FIELDS + H_NEXT] = s.cell[G_SPARE_SHEAF]
    s.cell[G_SPARE_SHEAF] = sheaf


# Helpers


@helper
def _begin_sheaf(s: SlabState) -> int:
    """An empty sheaf; the room for it was made before the batch."""
    keep_apart()
    sheaf = s.cell[G_SPARE_SHEAF]
    if sheaf >= 0:
        s.cell[G_SPARE_SHEAF] = s.sheaf[sheaf * SHEAF_FIELDS + H_NEXT]
    else:
        sheaf = s.cell[G_SHEAVES]
        s.cell[G_SHEAVES] = sheaf + 1
    s.sheaf[sheaf * SHEAF_FIELDS + H_SIZE] = 0
    s.sheaf[sheaf * SHEAF_FIELDS + H_NEXT] = NONE
    return sheaf


@helper
def _get_empty(s: SlabState, row: int) -> int:
    keep_apart()
    empty = s.node[row + N_EMPTY]
    if empty < 0:
        return _begin_sheaf(s)
    s.node[row + N_EMPTY] = s.sheaf[empty * SHEAF_FIELDS + H_NEXT]
    s.node[row + N_EMPTIES] -= 1
    return empty


@helper
def _put_empty(s: SlabState, row: int, sheaf: int) -> None:
    keep_apart()
    if s.node[row + N_EMPTIES] >= _MOST_SHEAVES:
        end_sheaf(s, sheaf)
        return
    s.sheaf[sheaf * SHEAF_FIELDS + H_NEXT] = s.node[row + N_EMPTY]
    s.node[row + N_EMPTY] = sheaf
    s.node[row + N_EMPTIES] += 1

"""SLUB, compiled: objects out of slabs, slabs out of the page allocator, and back.

Two ways, as the release has it: a CPU holds a slab and a list of partial slabs (6.1, 6.12;
`memdesc.model.cpu_slabs`), or sheaves of objects (7.2; `memdesc.model.sheaves`). Both stand
on the nodes' partial lists.

In a design that allocates descriptors, a new slab needs one: an object of the cache of slab
descriptors.  The slab of that cache describes itself by its first object, which ends the
recursion after one round; it counts as empty when only that object is in use.  Freeing a
slab frees its descriptor, which may free one slab more.  No free allocates.

Sources: `mm/slub.c` (___slab_alloc, allocate_slab, __slab_free, discard_slab) of 6.1.192,
6.12.117 and 7.2.13; mail of Aug 2022 and the FolioAlloc wiki for the descriptors. Objects of a
new slab are handed out in ascending order (kernels with SLAB_FREELIST_RANDOM shuffle them).
"""

from __future__ import annotations

from memdesc.model.compiled import helper, hot, keep_apart
from memdesc.model.cpu_slabs import (
    adopt,
    free_to_slab,
    pop_from_cpu,
    push_to_slab,
    take_from_cpu,
)
from memdesc.model.sheaves import (
    fill_from_slab,
    main_is_full,
    pop_from_main,
    push_to_main,
    refill,
    room_in_main,
    sheaf_to_flush,
    take_from_sheaf,
)
from memdesc.model.slab_frames import (
    count_alloc,
    count_free,
    describe_slab,
    free_frames,
    new_slab,
    undo_slab,
    write_plain_words,
)
from memdesc.model.slab_lists import (
    end_record,
    number_of_object,
    pop_object,
    record_of,
    slot_of,
    touch_link,
)
from memdesc.model.slab_state import (
    C_SIZE,
    C_TYPESAFE,
    CACHE_FIELDS,
    G_FRAMES,
    G_READERS,
    G_RECORDS,
    G_SHEAF_MODE,
    G_SLAB_CACHE,
    G_TO_FREE,
    G_WAITING,
    H_FIRST,
    H_SIZE,
    NONE,
    R_BASE,
    R_CACHE,
    R_DESCRIPTOR,
    R_NEXT,
    R_NODE,
    R_OBJECTS,
    R_ORDER,
    R_PFN,
    R_PLACE,
    R_SELF,
    RECORD_FIELDS,
    S_REFS,
    SHEAF_FIELDS,
    SLOT_FIELDS,
    UNUSED,
    WAITING,
    SlabState,
)
from memdesc.model.state import G_CPU_NODE, State

__all__ = [
    "alloc_object",
    "discard",
    "flush_sheaf",
    "free_descriptors",
    "free_object",
    "has_address",
    "put_object",
    "release",
]

# What callers want


@hot
def alloc_object(m: State, s: SlabState, cache: int, cpu: int) -> int:
    """kmem_cache_alloc: physical address of an object in use, or NONE without memory."""
    if s.cell[G_SHEAF_MODE] == 0:
        address = pop_from_cpu(s, cache, cpu)
    else:
        address = pop_from_main(s, cache, cpu)
    if address < 0:
        address = _alloc_slowly(m, s, cache, cpu)
        if address < 0:
            return NONE
    count_alloc(s, cache)
    return address


@hot
def free_object(m: State, s: SlabState, address: int, cpu: int) -> None:
    """kmem_cache_free of an object in use; its slab, and one of slab descriptors, may go."""
    record = record_of(m, address)
    put_object(m, s, address, record, number_of_object(s, record, address), cpu)


@hot
def put_object(m: State, s: SlabState, address: int, record: int, number: int, cpu: int) -> None:
    """The same for the object with that number in the slab of that record."""
    row = record * RECORD_FIELDS
    cache = s.record[row + R_CACHE]
    s.slot[(s.record[row + R_BASE] + number) * SLOT_FIELDS + S_REFS] = 0
    touch_link(s, cache, address)
    count_free(s, cache)
    if s.cell[G_SHEAF_MODE] == 0:
        done = push_to_slab(s, record, number, cpu)
    else:
        done = s.record[row + R_NODE] == m.params[G_CPU_NODE + cpu] and push_to_main(
            s, cache, cpu, address
        )
    if not done:
        _free_slowly(m, s, address, record, number, cpu)
        free_descriptors(m, s, cpu)


@helper
def has_address(m: State, s: SlabState, address: int) -> bool:
    """Whether an object in use begins at this address (the check before a free)."""
    keep_apart()
    frame = address >> 12
    if address < 0 or frame >= s.cell[G_FRAMES]:
        return False
    record = record_of(m, address)
    if record >= s.cell[G_RECORDS]:
        return False
    row = record * RECORD_FIELDS
    pfn = s.record[row + R_PFN]
    end = pfn + (1 << s.record[row + R_ORDER])
    if s.record[row + R_PLACE] == UNUSED or frame < pfn or frame >= end:
        return False
    number = number_of_object(s, record, address)
    size = s.cache[s.record[row + R_CACHE] * CACHE_FIELDS + C_SIZE]
    if number >= s.record[row + R_OBJECTS] or (pfn << 12) + number * size != address:
        return False
    return s.slot[slot_of(m, s, address) + S_REFS] != 0


# Growing


@helper
def _alloc_slowly(m: State, s: SlabState, cache: int, cpu: int) -> int:
    """Where the CPU's own list, or its main sheaf, is empty."""
    keep_apart()
    node = m.params[G_CPU_NODE + cpu]
    address = _take(s, cache, cpu, node)
    if address >= 0:
        return address
    if s.cell[G_SHEAF_MODE] == 0:
        record = _grow(m, s, cache, cpu, node)
        if record < 0:
            return NONE
        adopt(s, record, cpu)
    else:
        refill(s, cache, cpu, node)
        while room_in_main(s, cache, cpu) > 0:
            record = _grow(m, s, cache, cpu, node)
            if record < 0:
                break
            fill_from_slab(s, record, cpu)
    return _take(s, cache, cpu, node)


@helper
def _take(s: SlabState, cache: int, cpu: int, node: int) -> int:
    if s.cell[G_SHEAF_MODE] == 0:
        return take_from_cpu(s, cache, cpu, node)
    return take_from_sheaf(s, cache, cpu, node)


@helper
def _grow(m: State, s: SlabState, cache: int, cpu: int, node: int) -> int:
    """A new slab, described, on no list; NONE without memory."""
    keep_apart()
    slab_cache = s.cell[G_SLAB_CACHE]
    if cache == slab_cache:
        return _grow_itself(m, s, cpu)
    record = new_slab(m, s, cache, cpu)
    if record < 0:
        return NONE
    row = record * RECORD_FIELDS
    if slab_cache < 0:
        write_plain_words(s, record)
        return record
    descriptor = _slab_descriptor(m, s, cpu, node)
    if descriptor < 0:
        undo_slab(m, s, record, cpu)
        return NONE
    s.record[row + R_DESCRIPTOR] = descriptor
    describe_slab(m, s, record)
    return record


@helper
def _slab_descriptor(m: State, s: SlabState, cpu: int, node: int) -> int:
    """An object of the cache of slab descriptors: as alloc_object, one round deep."""
    keep_apart()
    cache = s.cell[G_SLAB_CACHE]
    address = _take(s, cache, cpu, node)
    if address < 0:
        if s.cell[G_SHEAF_MODE] == 0:
            record = _grow_itself(m, s, cpu)
            if record < 0:
                return NONE
            adopt(s, record, cpu)
        else:
            refill(s, cache, cpu, node)
            while room_in_main(s, cache, cpu) > 0:
                record = _grow_itself(m, s, cpu)
                if record < 0:
                    break
                fill_from_slab(s, record, cpu)
        address = _take(s, cache, cpu, node)
        if address < 0:
            return NONE
    count_alloc(s, cache)
    return address


@helper
def _grow_itself(m: State, s: SlabState, cpu: int) -> int:
    """A slab of slab descriptors, whose first object describes it."""
    keep_apart()
    cache = s.cell[G_SLAB_CACHE]
    record = new_slab(m, s, cache, cpu)
    if record < 0:
        return NONE
    row = record * RECORD_FIELDS
    pop_object(s, record)
    s.record[row + R_SELF] = 1
    s.record[row + R_DESCRIPTOR] = s.record[row + R_PFN] << 12
    count_alloc(s, cache)
    describe_slab(m, s, record)
    return record


# Giving back


@helper
def _free_slowly(m: State, s: SlabState, address: int, record: int, number: int, cpu: int) -> None:
    """Where the CPU's own list, or its main sheaf, does not take the object."""
    keep_apart()
    if s.cell[G_SHEAF_MODE] == 0:
        discard(m, s, free_to_slab(s, record, number, cpu, True), cpu)
        return
    node = m.params[G_CPU_NODE + cpu]
    if s.record[record * RECORD_FIELDS + R_NODE] != node:
        discard(m, s, free_to_slab(s, record, number, cpu, False), cpu)
        return
    cache = s.record[record * RECORD_FIELDS + R_CACHE]
    if main_is_full(s, cache, cpu):
        full = sheaf_to_flush(s, cache, cpu, node)
        if full >= 0:
            flush_sheaf(m, s, full, cpu)
    push_to_main(s, cache, cpu, address)


@helper
def flush_sheaf(m: State, s: SlabState, sheaf: int, cpu: int) -> None:
    """Objects of a sheaf go back to their slabs."""
    keep_apart()
    at = sheaf * SHEAF_FIELDS
    for place in range(s.sheaf[at + H_SIZE]):
        address = s.sheaf[at + H_FIRST + place]
        record = record_of(m, address)
        number = number_of_object(s, record, address)
        if not push_to_slab(s, record, number, cpu):
            discard(m, s, free_to_slab(s, record, number, cpu, False), cpu)
    s.sheaf[at + H_SIZE] = 0


@helper
def discard(m: State, s: SlabState, record: int, cpu: int) -> None:
    """Empty slabs of a chain go back, those of type-safe caches after the readers."""
    keep_apart()
    while record >= 0:
        row = record * RECORD_FIELDS
        following = s.record[row + R_NEXT]
        typesafe = s.cache[s.record[row + R_CACHE] * CACHE_FIELDS + C_TYPESAFE]
        if typesafe != 0 and s.cell[G_READERS] > 0:
            s.record[row + R_PLACE] = WAITING
            s.record[row + R_NEXT] = s.cell[G_WAITING]
            s.cell[G_WAITING] = record
        else:
            release(m, s, record, cpu)
        record = following


@helper
def release(m: State, s: SlabState, record: int, cpu: int) -> None:
    """Free the frames; the descriptor of the slab joins those that are still to be freed."""
    keep_apart()
    free_frames(m, s, record, cpu)
    row = record * RECORD_FIELDS
    if s.record[row + R_DESCRIPTOR] >= 0 and s.record[row + R_SELF] == 0:
        s.record[row + R_NEXT] = s.cell[G_TO_FREE]
        s.cell[G_TO_FREE] = record
    else:
        end_record(s, record)


@helper
def free_descriptors(m: State, s: SlabState, cpu: int) -> None:
    """Descriptors of slabs that are gone; their own slabs describe themselves, so it ends."""
    keep_apart()
    while s.cell[G_TO_FREE] >= 0:
        row = s.cell[G_TO_FREE] * RECORD_FIELDS
        address = s.record[row + R_DESCRIPTOR]
        gone = s.cell[G_TO_FREE]
        s.cell[G_TO_FREE] = s.record[row + R_NEXT]
        end_record(s, gone)
        record = record_of(m, address)
        number = number_of_object(s, record, address)
        row = record * RECORD_FIELDS
        s.slot[(s.record[row + R_BASE] + number) * SLOT_FIELDS + S_REFS] = 0
        touch_link(s, s.record[row + R_CACHE], address)
        count_free(s, s.record[row + R_CACHE])
        if s.cell[G_SHEAF_MODE] != 0 or not push_to_slab(s, record, number, cpu):
            _free_slowly(m, s, address, record, number, cpu)

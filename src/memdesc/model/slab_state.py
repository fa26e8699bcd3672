"""The slab allocator's memory: which number lies where?

Everything is an int64 (slots: int32) in a few flat arrays, so that the compiled code gets
a handful of pointers and Python can read the same numbers.  A *record* stands for one slab,
a *slot* for one object of a slab.  An object is named by its physical address in bytes; the
frames of a slab find their record in the machine's link array, which nothing else uses while
a frame is allocated.

Rows and their fields:

    cell    one row of totals and settings                                 `G_...`
    cache   one row of `CACHE_FIELDS` per cache                            `C_...`
    cpu     one row of `CPU_FIELDS` per cache and CPU                      `P_...`
    node    one row of `NODE_FIELDS` per cache and node                    `N_...`
    record  one row of `RECORD_FIELDS` per slab (a struct slab)            `R_...`
    slot    one row of `SLOT_FIELDS` per object                            `S_...`
    sheaf   one row of `SHEAF_FIELDS` per sheaf: header, then objects      `H_...`
    kind    one row of `KIND_FIELDS` per memory type: how it is described  `K_...`
    spare   per number of objects: the first record that can be used again
    word    one per frame: the memdesc word, with the lowest bit inverted
    touch   accesses to metadata: address, bytes, kind of access (only while tracing)
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memdesc.model.compiled import Column, array

__all__ = [
    "FREE_WORD",
    "NONE",
    "SlabState",
    "empty_state",
    "grown",
]

NONE: Final = -1
"""No record, no object, no sheaf."""
FREE_WORD: Final = 1
"""The memdesc word of a free frame: type Buddy without payload.

`word` holds each word XOR this, so that memory which was never written reads as free.
"""

# cell
G_CACHES: Final = 0
G_RECORDS: Final = 1
"""Records that were ever used; those that wait for another use are in `spare`."""
G_RECORD_ROOM: Final = 2
G_SLOTS: Final = 3
G_SLOT_ROOM: Final = 4
G_SHEAVES: Final = 5
G_SHEAF_ROOM: Final = 6
G_SPARE_SHEAF: Final = 7
G_CPUS: Final = 8
G_NODES: Final = 9
G_READERS: Final = 10
"""Readers in an RCU section: slabs whose objects must stay of their type wait for them."""
G_WAITING: Final = 11
"""First record that waits for the readers."""
G_TO_FREE: Final = 12
"""First record whose descriptor is still to be freed."""
G_SLAB_CACHE: Final = 13
"""Cache of the descriptors of slabs; NONE where the memory map is the descriptor."""
G_DIRECT_MAP: Final = 14
"""Kernel address of physical address 0, as a signed number."""
G_RECORD_HEADROOM: Final = 15
G_SLOT_HEADROOM: Final = 16
G_DESCRIPTORS: Final = 17
"""Descriptors in use, in all caches of descriptors."""
G_DESCRIPTOR_BYTES: Final = 18
G_DESCRIPTOR_FRAMES: Final = 19
"""Frames that the slabs of descriptors take."""
G_DESCRIPTORS_PEAK: Final = 20
G_DESCRIPTOR_BYTES_PEAK: Final = 21
G_DESCRIPTOR_FRAMES_PEAK: Final = 22
G_DESCRIPTOR_ALLOCS: Final = 23
G_DESCRIPTOR_FREES: Final = 24
G_FAILED_PAGES: Final = 25
"""Allocations that failed for want of the frames themselves."""
G_FAILED_DESCRIPTORS: Final = 26
"""Allocations that failed for want of a descriptor."""
G_TRACING: Final = 27
G_TOUCHED: Final = 28
G_TOUCH_ROOM: Final = 29
G_MEMMAP: Final = 30
"""Kernel address of the memory map, as a signed number."""
G_FRAME_BYTES: Final = 31
"""Bytes of the memory map per frame."""
G_SHEAF_MODE: Final = 32
G_FRAMES: Final = 33
"""Frames that have a word."""
G_SEPARATE: Final = 34
"""1 where descriptors are objects of their own."""
CELL_FIELDS: Final = 48

# cache
C_SIZE: Final = 0
C_ORDER: Final = 1
C_OBJECTS: Final = 2
C_LEAST_ORDER: Final = 3
C_LEAST_OBJECTS: Final = 4
C_MIN_PARTIAL: Final = 5
C_CPU_PARTIAL: Final = 6
C_SHEAF: Final = 7
"""Objects of a sheaf; 0 where the cache has none."""
C_GFP: Final = 8
C_TYPESAFE: Final = 9
C_DESCRIPTOR_BYTES: Final = 10
"""Size of a descriptor; 0 for a cache of anything else."""
C_ALIVE: Final = 11
C_SLABS: Final = 12
C_IN_USE: Final = 13
"""Objects in the hands of users."""
C_FRAMES: Final = 14
C_ALLOCS: Final = 15
C_FREES: Final = 16
C_SLABS_MADE: Final = 17
C_SLABS_FREED: Final = 18
CACHE_FIELDS: Final = 24

# cpu
P_SLAB: Final = 0
P_FREE: Final = 1
"""First free object of the CPU's slab, by its number in the slab."""
P_PARTIAL: Final = 2
P_PARTIALS: Final = 3
P_MAIN: Final = 4
P_SPARE: Final = 5
CPU_FIELDS: Final = 8

# node
N_HEAD: Final = 0
N_TAIL: Final = 1
N_PARTIALS: Final = 2
N_FULL: Final = 3
"""First full sheaf of the barn."""
N_FULLS: Final = 4
N_EMPTY: Final = 5
N_EMPTIES: Final = 6
N_SLABS: Final = 7
NODE_FIELDS: Final = 8

# record
R_PFN: Final = 0
R_ORDER: Final = 1
R_CACHE: Final = 2
R_OBJECTS: Final = 3
R_IN_USE: Final = 4
"""As struct slab counts: all objects while a CPU holds the free list."""
R_FREE: Final = 5
R_PLACE: Final = 6
R_NEXT: Final = 7
R_PREV: Final = 8
R_BASE: Final = 9
"""Slot of the first object."""
R_DESCRIPTOR: Final = 10
"""Address of the slab's descriptor; NONE where the memory map is the descriptor."""
R_SELF: Final = 11
"""1 where the first object describes the slab that it lies in."""
R_NODE: Final = 12
R_CPU: Final = 13
RECORD_FIELDS: Final = 16

# where a slab is (R_PLACE)
UNUSED: Final = 0
ON_NO_LIST: Final = 1
"""Full, or with free objects that only sheaves or nobody knows of."""
ON_CPU: Final = 2
ON_CPU_PARTIAL: Final = 3
ON_NODE: Final = 4
WAITING: Final = 5

# slot
S_VALUE: Final = 0
"""Of a free object: the next free one in the slab. Of a descriptor: the first frame."""
S_REFS: Final = 1
"""0 free or not set up yet, -1 in use without a count, else the reference count."""
S_OWNER: Final = 2
S_KIND: Final = 3
"""Of a descriptor: code of the memory type and, from bit 8, the order."""
SLOT_FIELDS: Final = 4

# sheaf
H_SIZE: Final = 0
H_NEXT: Final = 1
H_FIRST: Final = 2
SHEAF_FIELDS: Final = 64

# kind
K_SMALL: Final = 0
"""Cache of the descriptor of a single frame; NONE: the word says it all."""
K_LARGE: Final = 1
K_TAG: Final = 2
"""Type number in the word of revision R6."""
K_SUBTYPE: Final = 3
K_MAPPABLE: Final = 4
K_GFP: Final = 5
K_COUNTED: Final = 6
"""1 where the descriptor has a reference count."""
KIND_FIELDS: Final = 8

# kinds of access (column 2 of `touch`)
T_WORD: Final = 0
"""The memory map's entries of an allocation."""
T_DESCRIPTOR: Final = 1
"""A descriptor, whole or its first line."""
T_LINK: Final = 2
"""The free pointer inside an object of a slab of descriptors."""
T_SLAB: Final = 3
"""A slab of descriptors that is made or freed: its memory map entries and its descriptor."""
T_OPERATION: Final = 4
"""No access: an operation starts."""
TOUCH_FIELDS: Final = 3

MOST_OBJECTS: Final = 4096
"""No slab has more: 8 bytes an object in a block of order 3."""


class SlabState(NamedTuple):
    """The arrays above; in compiled code, pointers to them (`memdesc.model.compiled`)."""

    cell: Column
    cache: Column
    cpu: Column
    node: Column
    record: Column
    slot: Column
    sheaf: Column
    kind: Column
    spare: Column
    word: Column
    touch: Column


def empty_state(*, frames: int, cpus: int, nodes: int, caches: int, kinds: int) -> SlabState:
    """Arrays for a machine without caches; `caches` is how many it can have."""

    def rows(count: int, fields: int) -> NDArray[np.int64]:
        return np.zeros(count * fields, dtype=np.int64)

    state = SlabState(
        cell=rows(1, CELL_FIELDS),
        cache=rows(caches, CACHE_FIELDS),
        cpu=np.full(caches * cpus * CPU_FIELDS, NONE, dtype=np.int64),
        node=np.full(caches * nodes * NODE_FIELDS, NONE, dtype=np.int64),
        record=rows(0, RECORD_FIELDS),
        slot=np.zeros(0, dtype=np.int32),
        sheaf=rows(0, SHEAF_FIELDS),
        kind=rows(kinds, KIND_FIELDS),
        spare=np.full(MOST_OBJECTS + 1, NONE, dtype=np.int64),
        word=np.zeros(frames, dtype=np.int64),
        touch=rows(0, TOUCH_FIELDS),
    )
    for row in range(caches * cpus):
        state.cpu[row * CPU_FIELDS + P_PARTIALS] = 0
    for row in range(caches * nodes):
        for field in (N_PARTIALS, N_FULLS, N_EMPTIES, N_SLABS):
            state.node[row * NODE_FIELDS + field] = 0
    for field in (G_WAITING, G_TO_FREE, G_SPARE_SHEAF, G_SLAB_CACHE):
        state.cell[field] = NONE
    state.cell[G_CPUS] = cpus
    state.cell[G_NODES] = nodes
    state.cell[G_FRAMES] = frames
    return state


def grown(state: SlabState, *, records: int = 0, slots: int = 0, sheaves: int = 0) -> SlabState:
    """The same state with room for at least so many rows; what exists keeps its number."""

    def longer(column: Column, length: int) -> NDArray[Any]:
        old = array(column)
        if length <= old.size:
            return old
        wider = np.zeros(max(length, old.size * 2), dtype=old.dtype)
        wider[: old.size] = old
        return wider

    state = state._replace(
        record=longer(state.record, records * RECORD_FIELDS),
        slot=longer(state.slot, slots * SLOT_FIELDS),
        sheaf=longer(state.sheaf, sheaves * SHEAF_FIELDS),
    )
    state.cell[G_RECORD_ROOM] = array(state.record).size // RECORD_FIELDS
    state.cell[G_SLOT_ROOM] = array(state.slot).size // SLOT_FIELDS
    state.cell[G_SHEAF_ROOM] = array(state.sheaf).size // SHEAF_FIELDS
    return state

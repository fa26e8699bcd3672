"""Slabs as frames: taken from the page allocator, described, and given back (compiled).

Sources: `mm/slub.c` (allocate_slab, __free_slab) @6.12; memory descriptors: the FolioAlloc wiki.
"""

from __future__ import annotations

from typing import Final

from memdesc.model.compiled import compiled, helper, hot, keep_apart
from memdesc.model.page_alloc import alloc_pages, free_pages
from memdesc.model.slab_lists import (
    begin_record,
    end_record,
    node_of,
    node_row,
    slot_of,
    touch,
)
from memdesc.model.slab_state import (
    C_ALLOCS,
    C_DESCRIPTOR_BYTES,
    C_FRAMES,
    C_FREES,
    C_GFP,
    C_IN_USE,
    C_LEAST_OBJECTS,
    C_LEAST_ORDER,
    C_OBJECTS,
    C_ORDER,
    C_SLABS,
    C_SLABS_FREED,
    C_SLABS_MADE,
    CACHE_FIELDS,
    FREE_WORD,
    G_DESCRIPTOR_ALLOCS,
    G_DESCRIPTOR_BYTES,
    G_DESCRIPTOR_BYTES_PEAK,
    G_DESCRIPTOR_FRAMES,
    G_DESCRIPTOR_FRAMES_PEAK,
    G_DESCRIPTOR_FREES,
    G_DESCRIPTORS,
    G_DESCRIPTORS_PEAK,
    G_DIRECT_MAP,
    G_FRAME_BYTES,
    G_MEMMAP,
    G_SLAB_CACHE,
    G_TRACING,
    N_SLABS,
    NONE,
    R_CACHE,
    R_DESCRIPTOR,
    R_NODE,
    R_ORDER,
    R_PFN,
    R_SELF,
    RECORD_FIELDS,
    S_OWNER,
    S_REFS,
    S_VALUE,
    T_SLAB,
    SlabState,
)
from memdesc.model.state import State
from memdesc.plan import PlanKind
from memdesc.types import MemoryType

__all__ = [
    "count_alloc",
    "count_free",
    "describe_slab",
    "free_frames",
    "new_slab",
    "plain_word",
    "undo_slab",
    "write_plain_words",
]

_SLAB_TAG: Final = int(PlanKind.SLAB)
_SLAB_KIND: Final = list(MemoryType).index(MemoryType.SLAB)

PLAIN: Final = 15
"""Type of the words that stand for struct pages in the 64-byte designs; no revision uses it."""
PLAIN_TAIL: Final = 16
PLAIN_ORDER_SHIFT: Final = 8
PLAIN_KIND_SHIFT: Final = 16
PLAIN_REFS_SHIFT: Final = 32


@helper
def new_slab(m: State, s: SlabState, cache: int, cpu: int) -> int:
    """Frames and a record (allocate_slab): at the order wanted, else at the least."""
    keep_apart()
    at = cache * CACHE_FIELDS
    order = s.cache[at + C_ORDER]
    objects = s.cache[at + C_OBJECTS]
    pfn = alloc_pages(m, order, s.cache[at + C_GFP], cpu)
    if pfn < 0 and s.cache[at + C_LEAST_ORDER] < order:
        order = s.cache[at + C_LEAST_ORDER]
        objects = s.cache[at + C_LEAST_OBJECTS]
        pfn = alloc_pages(m, order, s.cache[at + C_GFP], cpu)
    if pfn < 0:
        return NONE
    node = node_of(m, pfn)
    record = begin_record(s, cache, pfn, order, objects, node)
    for frame in range(pfn, pfn + (1 << order)):
        m.next[frame] = record
    s.node[node_row(s, cache, node) + N_SLABS] += 1
    s.cache[at + C_SLABS] += 1
    s.cache[at + C_SLABS_MADE] += 1
    s.cache[at + C_FRAMES] += 1 << order
    if s.cache[at + C_DESCRIPTOR_BYTES] != 0:
        frames = s.cell[G_DESCRIPTOR_FRAMES] + (1 << order)
        s.cell[G_DESCRIPTOR_FRAMES] = frames
        if frames > s.cell[G_DESCRIPTOR_FRAMES_PEAK]:
            s.cell[G_DESCRIPTOR_FRAMES_PEAK] = frames
    return record


@helper
def describe_slab(m: State, s: SlabState, record: int) -> None:
    """Set up the slab's descriptor, then write the word that points to it into each frame."""
    keep_apart()
    row = record * RECORD_FIELDS
    address = s.record[row + R_DESCRIPTOR]
    slot = slot_of(m, s, address)
    pfn = s.record[row + R_PFN]
    s.slot[slot + S_VALUE] = pfn
    s.slot[slot + S_OWNER] = record
    s.slot[slot + S_REFS] = -1
    word = ((s.cell[G_DIRECT_MAP] + address) | _SLAB_TAG) ^ FREE_WORD
    for frame in range(pfn, pfn + (1 << s.record[row + R_ORDER])):
        s.word[frame] = word
    _touch_slab(s, record)


@helper
def write_plain_words(s: SlabState, record: int) -> None:
    """The struct pages of a slab, where they are its descriptor."""
    keep_apart()
    row = record * RECORD_FIELDS
    pfn = s.record[row + R_PFN]
    order = s.record[row + R_ORDER]
    word = plain_word(_SLAB_KIND, order) ^ FREE_WORD
    s.word[pfn] = word
    for frame in range(pfn + 1, pfn + (1 << order)):
        s.word[frame] = word | PLAIN_TAIL
    _touch_slab(s, record)


@compiled
def plain_word(kind: int, order: int) -> int:
    """What stands in `word` for a struct page of the 64-byte designs, without a count."""
    return PLAIN | order << PLAIN_ORDER_SHIFT | kind << PLAIN_KIND_SHIFT


@helper
def undo_slab(m: State, s: SlabState, record: int, cpu: int) -> None:
    """No descriptor could be had: give the frames back."""
    keep_apart()
    row = record * RECORD_FIELDS
    _uncount_slab(s, record)
    free_pages(m, s.record[row + R_PFN], s.record[row + R_ORDER], cpu)
    end_record(s, record)


@helper
def free_frames(m: State, s: SlabState, record: int, cpu: int) -> None:
    """The frames of an empty slab go back to the page allocator, their words first."""
    keep_apart()
    row = record * RECORD_FIELDS
    _uncount_slab(s, record)
    _touch_slab(s, record)
    if s.record[row + R_SELF] != 0:
        s.slot[slot_of(m, s, s.record[row + R_DESCRIPTOR]) + S_REFS] = 0
        count_free(s, s.record[row + R_CACHE])
    pfn = s.record[row + R_PFN]
    order = s.record[row + R_ORDER]
    for frame in range(pfn, pfn + (1 << order)):
        s.word[frame] = 0
    free_pages(m, pfn, order, cpu)


@hot
def count_alloc(s: SlabState, cache: int) -> None:
    """An object goes to a user."""
    at = cache * CACHE_FIELDS
    s.cache[at + C_IN_USE] += 1
    s.cache[at + C_ALLOCS] += 1
    size = s.cache[at + C_DESCRIPTOR_BYTES]
    if size != 0:
        count = s.cell[G_DESCRIPTORS] + 1
        s.cell[G_DESCRIPTORS] = count
        if count > s.cell[G_DESCRIPTORS_PEAK]:
            s.cell[G_DESCRIPTORS_PEAK] = count
        total = s.cell[G_DESCRIPTOR_BYTES] + size
        s.cell[G_DESCRIPTOR_BYTES] = total
        if total > s.cell[G_DESCRIPTOR_BYTES_PEAK]:
            s.cell[G_DESCRIPTOR_BYTES_PEAK] = total
        s.cell[G_DESCRIPTOR_ALLOCS] += 1


@hot
def count_free(s: SlabState, cache: int) -> None:
    """An object comes back from its user."""
    at = cache * CACHE_FIELDS
    s.cache[at + C_IN_USE] -= 1
    s.cache[at + C_FREES] += 1
    size = s.cache[at + C_DESCRIPTOR_BYTES]
    if size != 0:
        s.cell[G_DESCRIPTORS] -= 1
        s.cell[G_DESCRIPTOR_BYTES] -= size
        s.cell[G_DESCRIPTOR_FREES] += 1


# Helpers


@helper
def _uncount_slab(s: SlabState, record: int) -> None:
    keep_apart()
    row = record * RECORD_FIELDS
    at = s.record[row + R_CACHE] * CACHE_FIELDS
    frames = 1 << s.record[row + R_ORDER]
    s.node[node_row(s, s.record[row + R_CACHE], s.record[row + R_NODE]) + N_SLABS] -= 1
    s.cache[at + C_SLABS] -= 1
    s.cache[at + C_SLABS_FREED] += 1
    s.cache[at + C_FRAMES] -= frames
    if s.cache[at + C_DESCRIPTOR_BYTES] != 0:
        s.cell[G_DESCRIPTOR_FRAMES] -= frames


@helper
def _touch_slab(s: SlabState, record: int) -> None:
    """The words of a slab's frames, and its descriptor, are written."""
    keep_apart()
    if s.cell[G_TRACING] != 0:
        row = record * RECORD_FIELDS
        size = s.cell[G_FRAME_BYTES]
        first = s.cell[G_MEMMAP] + s.record[row + R_PFN] * size
        touch(s, first, size << s.record[row + R_ORDER], T_SLAB)
        descriptor = s.record[row + R_DESCRIPTOR]
        if descriptor >= 0:
            size_bytes = s.cache[s.cell[G_SLAB_CACHE] * CACHE_FIELDS + C_DESCRIPTOR_BYTES]
            touch(s, s.cell[G_DIRECT_MAP] + descriptor, size_bytes, T_SLAB)

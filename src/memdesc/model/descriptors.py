"""Frames with their descriptors, compiled: allocate, free, look up, count references.

In the designs that allocate descriptors, an allocation takes its descriptor first (an object
of a type-safe slab cache), then its frames, writes the same word into each of them, and sets
the reference count last; without frames the descriptor goes back.  A frame's word leads to
the descriptor; the memory behind a pointer that was read a moment ago is still *a* descriptor
of that type while a reader is in its section, perhaps of other frames.  So a lookup reads the
word, checks the type, takes a reference unless the count is zero, and reads the word again.

In the 64-byte designs the word array stands for the struct pages: type 15 (which no revision
assigns), a mark for tails, order, kind, and the reference count in the upper half.

Sources: the kernelnewbies pages Memdescs and FolioAlloc; `mm/memory-failure.c:
__get_hwpoison_page` and `mm/gup.c:try_grab_folio_fast` @7.2 for the lookup.
"""

from __future__ import annotations

from typing import Final

from memdesc.model.compiled import helper, hot, keep_apart
from memdesc.model.frame_words import address_of, misc_word, pointer_word, read_word
from memdesc.model.page_alloc import alloc_pages, free_pages
from memdesc.model.slab import (
    alloc_object,
    free_object,
    put_object,
)
from memdesc.model.slab_frames import (
    PLAIN,
    PLAIN_REFS_SHIFT,
    PLAIN_TAIL,
    plain_word,
)
from memdesc.model.slab_lists import (
    number_of_object,
    record_of,
    slot_of,
    touch,
)
from memdesc.model.slab_state import (
    C_DESCRIPTOR_BYTES,
    CACHE_FIELDS,
    FREE_WORD,
    G_DIRECT_MAP,
    G_FAILED_DESCRIPTORS,
    G_FAILED_PAGES,
    G_FRAME_BYTES,
    G_FRAMES,
    G_MEMMAP,
    G_RECORDS,
    G_SEPARATE,
    K_COUNTED,
    K_GFP,
    K_LARGE,
    K_MAPPABLE,
    K_SMALL,
    K_SUBTYPE,
    K_TAG,
    KIND_FIELDS,
    NONE,
    R_BASE,
    R_CACHE,
    R_PLACE,
    RECORD_FIELDS,
    S_KIND,
    S_OWNER,
    S_REFS,
    S_VALUE,
    SLOT_FIELDS,
    T_DESCRIPTOR,
    T_WORD,
    UNUSED,
    SlabState,
)
from memdesc.model.state import (
    G_BLOCK_ORDER,
    KIND_SHIFT,
    ORDER_MASK,
    USED,
    USED_MOVABLE,
    Z_NODE,
    Z_TYPE,
    ZONE_SHIFT,
    State,
)
from memdesc.plan import PlanKind

__all__ = [
    "BUSY",
    "NOT_ALLOCATED",
    "alloc_described",
    "drop_reference",
    "free_described",
    "get_descriptor",
    "head_of",
    "lookup_step",
    "references",
    "try_get",
]

NOT_ALLOCATED: Final = -2
"""No allocation that a caller may free begins at that frame."""
BUSY: Final = -3
"""More than the caller's reference is held."""

READ_WORD, TRY_GET, READ_AGAIN, HELD, NOTHING = range(5)
"""Stages of a lookup; the last two end it."""

_TYPE_MASK: Final = 15
_MISC: Final = int(PlanKind.MISC)
_BUDDY: Final = int(PlanKind.BUDDY)
_SLAB: Final = int(PlanKind.SLAB)
_FIRST: Final = int(PlanKind.FILE)
_LAST: Final = int(PlanKind.MANAGED)
"""Types from FILE to MANAGED point to a descriptor."""
_REFCOUNT_OFFSET_BYTES: Final = 48
"""Of `_refcount` in the planned struct folio (Memdescs/Path wiki)."""
_ONE_PLAIN_REFERENCE: Final = 1 << PLAIN_REFS_SHIFT


# Allocations


@hot
def alloc_described(m: State, s: SlabState, kind: int, order: int, cpu: int, owner: int) -> int:
    """2^order frames of a kind, described: the first frame, or NONE without memory.

    `owner` is what the descriptor says of whose it is (a file, a process); words of type 0
    have no place for it.
    """
    row = kind * KIND_FIELDS
    gfp = s.kind[row + K_GFP]
    if s.cell[G_SEPARATE] == 0:
        pfn = alloc_pages(m, order, gfp, cpu)
        if pfn < 0:
            s.cell[G_FAILED_PAGES] += 1
            return NONE
        word = plain_word(kind, order) ^ FREE_WORD
        m.next[pfn] = owner
        s.word[pfn] = word | _ONE_PLAIN_REFERENCE
        for frame in range(pfn + 1, pfn + (1 << order)):
            s.word[frame] = word | PLAIN_TAIL
            m.next[frame] = pfn
        _touch_words(s, pfn, order)
        return pfn
    cache = s.kind[row + (K_LARGE if order > 0 else K_SMALL)]
    tag = s.kind[row + K_TAG]
    if cache < 0:
        pfn = alloc_pages(m, order, gfp, cpu)
        if pfn < 0:
            s.cell[G_FAILED_PAGES] += 1
            return NONE
        word = tag
        if tag == _MISC:
            zone = m.block_zone[pfn >> m.params[G_BLOCK_ORDER]] << ZONE_SHIFT
            word = misc_word(
                s.kind[row + K_SUBTYPE],
                order,
                s.kind[row + K_MAPPABLE],
                m.zones[zone + Z_NODE],
                m.zones[zone + Z_TYPE],
            )
        _write_words(s, pfn, order, word)
        return pfn
    address = alloc_object(m, s, cache, cpu)
    if address < 0:
        s.cell[G_FAILED_DESCRIPTORS] += 1
        return NONE
    pfn = alloc_pages(m, order, gfp, cpu)
    if pfn < 0:
        free_object(m, s, address, cpu)
        s.cell[G_FAILED_PAGES] += 1
        return NONE
    _write_words(s, pfn, order, pointer_word(s, tag, address))
    slot = slot_of(m, s, address)
    s.slot[slot + S_VALUE] = pfn
    s.slot[slot + S_OWNER] = owner
    s.slot[slot + S_KIND] = kind | order << 8
    s.slot[slot + S_REFS] = 1 if s.kind[row + K_COUNTED] != 0 else -1
    _touch_descriptor(s, cache, address)
    return pfn


@hot
def free_described(m: State, s: SlabState, pfn: int, cpu: int) -> int:
    """Free the allocation that begins at `pfn`: its order, NOT_ALLOCATED, or BUSY.

    The words go first, then the frames, then the descriptor; nothing is allocated.
    """
    if pfn < 0 or pfn >= s.cell[G_FRAMES]:
        return NOT_ALLOCATED
    byte = m.frame[pfn]
    state = byte >> KIND_SHIFT << KIND_SHIFT
    if state not in (USED, USED_MOVABLE):
        return NOT_ALLOCATED
    order = byte & ORDER_MASK
    word = read_word(s, pfn)
    tag = word & _TYPE_MASK
    if tag in (_BUDDY, _SLAB):
        return NOT_ALLOCATED
    if tag == PLAIN:
        if word >> PLAIN_REFS_SHIFT != 1:
            return BUSY if word >> PLAIN_REFS_SHIFT > 1 else NOT_ALLOCATED
        _touch_words(s, pfn, order)
        _clear(m, s, pfn, order, cpu)
        return order
    if tag == _MISC or word == tag:
        _touch_words(s, pfn, order)
        _clear(m, s, pfn, order, cpu)
        return order
    address = address_of(s, word)
    record = record_of(m, address)
    number = number_of_object(s, record, address)
    row = record * RECORD_FIELDS
    if s.slot[(s.record[row + R_BASE] + number) * SLOT_FIELDS + S_REFS] > 1:
        return BUSY
    _touch_descriptor(s, s.record[row + R_CACHE], address)
    _touch_words(s, pfn, order)
    _clear(m, s, pfn, order, cpu)
    put_object(m, s, address, record, number, cpu)
    return order


# Lookups


@helper
def try_get(m: State, s: SlabState, address: int) -> bool:
    """Take a reference to the descriptor at an address unless its count is zero.

    The caller is in a reader's section: the memory is a descriptor, if perhaps another one.
    False also where no slab lies at that address any more.
    """
    keep_apart()
    frame = address >> 12
    if address < 0 or frame >= s.cell[G_FRAMES] or (read_word(s, frame) & _TYPE_MASK) != _SLAB:
        return False
    record = m.next[frame]
    if record >= s.cell[G_RECORDS] or s.record[record * RECORD_FIELDS + R_PLACE] == UNUSED:
        return False
    slot = slot_of(m, s, address)
    touch(s, s.cell[G_DIRECT_MAP] + address + _REFCOUNT_OFFSET_BYTES, 4, T_DESCRIPTOR)
    if s.slot[slot + S_REFS] <= 0:
        return False
    s.slot[slot + S_REFS] += 1
    return True


@helper
def get_descriptor(m: State, s: SlabState, pfn: int, tag: int, cpu: int) -> int:
    """A reference to what describes a frame, if it is of type `tag` (-1: of any).

    Returns the descriptor's physical address (64-byte designs: the head's frame number), or
    NONE where the frame is free, of another type, or has no count.
    """
    keep_apart()
    if s.cell[G_SEPARATE] == 0:
        return _get_plain(m, s, pfn)
    stage, word = READ_WORD, 0
    while stage not in (HELD, NOTHING):
        stage, word = lookup_step(m, s, pfn, tag, cpu, stage, word)
    return address_of(s, word) if stage == HELD else NONE


@helper
def lookup_step(
    m: State, s: SlabState, pfn: int, tag: int, cpu: int, stage: int, word: int
) -> tuple[int, int]:
    """One step of a lookup: the next stage, and the word that was read.

    Between any two steps others may free the frame's allocation and allocate anew.
    """
    keep_apart()
    if stage == READ_WORD:
        word = read_word(s, pfn)
        _touch_word(s, pfn)
        kind = word & _TYPE_MASK
        if (tag >= 0 and kind != tag) or kind < _FIRST or kind > _LAST or word == kind:
            return NOTHING, word
        return TRY_GET, word
    if stage == TRY_GET:
        return (READ_AGAIN if try_get(m, s, address_of(s, word)) else NOTHING), word
    if read_word(s, pfn) == word:
        return HELD, word
    drop_reference(m, s, address_of(s, word), cpu)
    return READ_WORD, word


@helper
def drop_reference(m: State, s: SlabState, address: int, cpu: int) -> int:
    """Give a reference back; the last one frees frames and descriptor. Returns what is left."""
    keep_apart()
    if s.cell[G_SEPARATE] == 0:
        refs = read_word(s, address) >> PLAIN_REFS_SHIFT
        if refs > 1:
            s.word[address] = s.word[address] - _ONE_PLAIN_REFERENCE
        else:
            free_described(m, s, address, cpu)
        _touch_word(s, address)
        return refs - 1
    slot = slot_of(m, s, address)
    refs = s.slot[slot + S_REFS]
    if refs > 1:
        s.slot[slot + S_REFS] = refs - 1
        touch(s, s.cell[G_DIRECT_MAP] + address + _REFCOUNT_OFFSET_BYTES, 4, T_DESCRIPTOR)
    else:
        free_described(m, s, s.slot[slot + S_VALUE], cpu)
    return refs - 1


@helper
def references(m: State, s: SlabState, pfn: int) -> int:
    """The reference count of a frame's allocation; NONE where it has none."""
    keep_apart()
    word = read_word(s, pfn)
    kind = word & _TYPE_MASK
    if kind == PLAIN:
        head = head_of(m, s, pfn)
        return read_word(s, head) >> PLAIN_REFS_SHIFT
    if kind < _FIRST or kind > _LAST or word == kind:
        return NONE
    return s.slot[slot_of(m, s, address_of(s, word)) + S_REFS]


@hot
def head_of(m: State, s: SlabState, pfn: int) -> int:
    """compound_head() of the 64-byte designs: a tail's word leads to its head."""
    if read_word(s, pfn) & PLAIN_TAIL:
        return m.next[pfn]
    return pfn


# Helpers


@helper
def _get_plain(m: State, s: SlabState, pfn: int) -> int:
    _touch_word(s, pfn)
    if (read_word(s, pfn) & _TYPE_MASK) != PLAIN:
        return NONE
    head = head_of(m, s, pfn)
    if head != pfn:
        _touch_word(s, head)
    if read_word(s, head) >> PLAIN_REFS_SHIFT <= 0:
        return NONE
    s.word[head] = s.word[head] + _ONE_PLAIN_REFERENCE
    return head


@hot
def _write_words(s: SlabState, pfn: int, order: int, word: int) -> None:
    stored = word ^ FREE_WORD
    for frame in range(pfn, pfn + (1 << order)):
        s.word[frame] = stored
    _touch_words(s, pfn, order)


@hot
def _clear(m: State, s: SlabState, pfn: int, order: int, cpu: int) -> None:
    for frame in range(pfn, pfn + (1 << order)):
        s.word[frame] = 0
    free_pages(m, pfn, order, cpu)


@hot
def _touch_descriptor(s: SlabState, cache: int, address: int) -> None:
    size = s.cache[cache * CACHE_FIELDS + C_DESCRIPTOR_BYTES]
    touch(s, s.cell[G_DIRECT_MAP] + address, size, T_DESCRIPTOR)


@hot
def _touch_words(s: SlabState, pfn: int, order: int) -> None:
    size = s.cell[G_FRAME_BYTES]
    touch(s, s.cell[G_MEMMAP] + pfn * size, size << order, T_WORD)


@hot
def _touch_word(s: SlabState, pfn: int) -> None:
    size = s.cell[G_FRAME_BYTES]
    touch(s, s.cell[G_MEMMAP] + pfn * size, 8, T_WORD)

"""One described allocation becomes several smaller ones, each with a descriptor of its own.

What `split_huge_page` means under each design: with 64 bytes per frame the struct pages are
rewritten; where descriptors are allocated, every piece but the first needs a new one, and the
first too if a single frame is described by another cache than several.  All of them are taken
before anything changes, so a split that finds no memory leaves the allocation as it was.

Sources: `mm/huge_memory.c:__split_huge_page @6.12`; the FolioAlloc and Memdescs wikis for what
a folio of either size is described by.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from memdesc.errors import QuestionError
from memdesc.model.cache_types import column
from memdesc.model.compiled import Column, array, compiled, pointers
from memdesc.model.described import DescribedMachine
from memdesc.model.descriptors import references
from memdesc.model.frame_words import address_of, pointer_word, read_word
from memdesc.model.operations import has_room
from memdesc.model.page_alloc import split_pages
from memdesc.model.slab import alloc_object, free_object
from memdesc.model.slab_frames import (
    PLAIN,
    PLAIN_KIND_SHIFT,
    PLAIN_REFS_SHIFT,
    PLAIN_TAIL,
    plain_word,
)
from memdesc.model.slab_lists import slot_of, touch
from memdesc.model.slab_state import (
    C_DESCRIPTOR_BYTES,
    CACHE_FIELDS,
    FREE_WORD,
    G_DIRECT_MAP,
    G_FRAME_BYTES,
    G_MEMMAP,
    K_COUNTED,
    K_LARGE,
    K_SMALL,
    K_TAG,
    KIND_FIELDS,
    S_KIND,
    S_OWNER,
    S_REFS,
    S_VALUE,
    T_DESCRIPTOR,
    T_WORD,
    SlabState,
)
from memdesc.model.state import (
    KIND_SHIFT,
    ORDER_MASK,
    USED,
    USED_MOVABLE,
    State,
)
from memdesc.plan import PlanKind
from memdesc.types import MemoryType

__all__ = ["split"]

_MISC: Final = int(PlanKind.MISC)
_SLAB: Final = int(PlanKind.SLAB)
_TYPE_MASK: Final = 15
_MISC_ORDER_SHIFT: Final = 12
_NO_MEMORY: Final = -1


def split(machine: DescribedMachine, pfn: int, new_order: int = 0, *, cpu: int = 0) -> bool:
    """Make the allocation at `pfn` several of 2^new_order frames; False without memory for it.

    Each piece has one reference. Raises QuestionError where no larger allocation begins there,
    and while references beside its own are held.
    """
    slabs = machine.slabs
    state = machine.pages.state
    order = _order_at(machine, pfn)
    if order is None or new_order > order:
        raise QuestionError(f"no allocation larger than order {new_order} begins at {pfn:#x}")
    if _references(state, slabs.state, pfn) > 1:
        raise QuestionError(f"references to {pfn:#x} are held", hint="put them first")
    if new_order == order:
        return True
    pieces = 1 << (order - new_order)
    found = column(np.zeros(pieces, np.int64))
    cache = int(_cache_of_pieces(state, slabs.state, pfn, new_order))
    if cache >= 0:
        first = int(_cache_of_pieces(state, slabs.state, pfn, order) == cache)
        done = first
        while done < pieces:
            slabs.make_room()
            done, full = _take(state, slabs.state, cache, cpu, found, done, pieces)
            if full:
                slabs.make_room()
                _give_back(state, slabs.state, cpu, found, first, done)
                return False
    slabs.make_room()
    _split(state, slabs.state, pfn, order, new_order, found, cpu)
    return True


# --- helpers -----------------------------------------------------------------------------


def _order_at(machine: DescribedMachine, pfn: int) -> int | None:
    """Order of the allocation that begins at a frame and is no slab."""
    frame = array(machine.pages.state.frame)
    if not 0 <= pfn < frame.size:
        return None
    byte = int(frame[pfn])
    if byte >> KIND_SHIFT << KIND_SHIFT not in (USED, USED_MOVABLE):
        return None
    word = int(array(machine.slabs.state.word)[pfn]) ^ FREE_WORD
    slab_kind = list(MemoryType).index(MemoryType.SLAB)
    if word & _TYPE_MASK == _SLAB:
        return None
    if word & _TYPE_MASK == PLAIN and word >> PLAIN_KIND_SHIFT & 0xFFFF == slab_kind:
        return None
    return byte & ORDER_MASK


@compiled
def _references(state: State, slabs: SlabState, pfn: int) -> int:
    return references(pointers(state), pointers(slabs), pfn)


@compiled
def _cache_of_pieces(state: State, slabs: SlabState, pfn: int, order: int) -> int:
    """The cache whose objects describe allocations of this kind and that order, or -1."""
    m, s = pointers(state), pointers(slabs)
    word = read_word(s, pfn)
    tag = word & _TYPE_MASK
    if tag in (PLAIN, _MISC) or word == tag:
        return -1
    kind = s.slot[slot_of(m, s, address_of(s, word)) + S_KIND] & 255
    row = kind * KIND_FIELDS
    return s.kind[row + (K_LARGE if order > 0 else K_SMALL)]


@compiled
def _take(
    state: State, slabs: SlabState, cache: int, cpu: int, found: Column, first: int, end: int
) -> tuple[int, bool]:
    """Descriptors for pieces [first, end): how far it came, and whether memory was out."""
    m, s = pointers(state), pointers(slabs)
    for i in range(first, end):
        if not has_room(s):
            return i, False
        address = alloc_object(m, s, cache, cpu)
        if address < 0:
            return i, True
        # In use from now on; its count is set when the piece's frames lead to it.
        s.slot[slot_of(m, s, address) + S_REFS] = -1
        found[i] = address
    return end, False


@compiled
def _give_back(
    state: State, slabs: SlabState, cpu: int, found: Column, first: int, end: int
) -> None:
    m, s = pointers(state), pointers(slabs)
    for i in range(first, end):
        free_object(m, s, found[i], cpu)


@compiled
def _split(
    state: State, slabs: SlabState, pfn: int, order: int, new_order: int, found: Column, cpu: int
) -> None:
    """Words, descriptors, and the allocator's orders; `found` has a descriptor per piece."""
    m, s = pointers(state), pointers(slabs)
    word = read_word(s, pfn)
    tag = word & _TYPE_MASK
    size = 1 << new_order
    split_pages(m, pfn, order, new_order)
    touch(s, s.cell[G_MEMMAP] + pfn * s.cell[G_FRAME_BYTES], s.cell[G_FRAME_BYTES] << order, T_WORD)
    if tag == PLAIN:
        owner = m.next[pfn]
        kind = (word >> PLAIN_KIND_SHIFT) & 0xFFFF
        plain = plain_word(kind, new_order) ^ FREE_WORD
        for head in range(pfn, pfn + (1 << order), size):
            s.word[head] = plain | (1 << PLAIN_REFS_SHIFT)
            m.next[head] = owner
            for frame in range(head + 1, head + size):
                s.word[frame] = plain | PLAIN_TAIL
                m.next[frame] = head
        return
    if tag == _MISC:
        new = (word & ~(63 << _MISC_ORDER_SHIFT)) | new_order << _MISC_ORDER_SHIFT
        for frame in range(pfn, pfn + (1 << order)):
            s.word[frame] = new ^ FREE_WORD
        return
    if word == tag:
        return
    old = address_of(s, word)
    slot = slot_of(m, s, old)
    kind, owner = s.slot[slot + S_KIND] & 255, s.slot[slot + S_OWNER]
    row = kind * KIND_FIELDS
    cache = s.kind[row + (K_LARGE if new_order > 0 else K_SMALL)]
    keeps = found[0] == 0
    counted = s.kind[row + K_COUNTED] != 0
    for i in range(1 << (order - new_order)):
        head = pfn + i * size
        address = old if i == 0 and keeps else found[i]
        at = slot_of(m, s, address)
        s.slot[at + S_VALUE] = head
        s.slot[at + S_OWNER] = owner
        s.slot[at + S_KIND] = kind | new_order << 8
        s.slot[at + S_REFS] = 1 if counted else -1
        new = pointer_word(s, s.kind[row + K_TAG], address) ^ FREE_WORD
        for frame in range(head, head + size):
            s.word[frame] = new
        touch(
            s, s.cell[G_DIRECT_MAP] + address, s.cache[cache * CACHE_FIELDS + C_DESCRIPTOR_BYTES],
            T_DESCRIPTOR,
        )  # fmt: skip
    if not keeps:
        free_object(m, s, old, cpu)

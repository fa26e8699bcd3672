"""`struct page` of 2021, as 64 bytes that mean what the reader believes they mean.

Every field can be read of every page: that is the design. What lies at an offset depends on what
the page is, and nothing asks. `StructPage.mapping` of a file's first page is its address space;
of a slab it is the cache; of the first tail page the number of frames, of the second a list
pointer, of the others a poison value. A C compiler accepts all of them; that is the bug which
typed descriptors (`memdesc.model.pages`) leave no room for.

Layout: `include/linux/mm_types.h` of 5.15; `mm/page_alloc.c:prep_compound_page,
prep_compound_tail` and `include/linux/poison.h` for tails; flag numbers of 5.15.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from memdesc.errors import QuestionError
from memdesc.model import slab_state as t
from memdesc.model.compiled import array
from memdesc.model.described import VMEMMAP, DescribedMachine
from memdesc.model.designs import STRUCT_PAGE
from memdesc.model.pages import mapping_address
from memdesc.model.slab_frames import PLAIN, PLAIN_KIND_SHIFT, PLAIN_REFS_SHIFT, PLAIN_TAIL
from memdesc.model.state import G_BLOCK_ORDER, ORDER_MASK, Z_NODE, Z_TYPE, ZONE_SHIFT
from memdesc.types import MemoryType

__all__ = ["TAIL_MAPPING", "StructPage", "struct_page"]

TAIL_MAPPING: Final = 0xDEAD_0000_0000_0400
"""What `mapping` of a tail is set to (`include/linux/poison.h`, x86-64)."""

_BYTES: Final = 64
_PG_LRU, _PG_SLAB, _PG_HEAD, _PG_SWAPBACKED = 4, 9, 16, 19
_NODE_SHIFT, _ZONE_SHIFT = 54, 51
_CACHES: Final = 0xFFFF_8881_8000_0000
"""Where the model's kmem_caches would lie, 256 bytes apart."""
_COMPOUND_PAGE_DTOR, _TRANSHUGE_PAGE_DTOR = 1, 3


@dataclass(frozen=True, slots=True)
class StructPage:
    """64 bytes. Each property reads its offset, whatever the page is."""

    address: int
    raw: bytes

    @property
    def flags(self) -> int:
        return self._u64(0)

    @property
    def compound_head(self) -> int:
        """Of a tail: address of its head, plus one. Of others: `lru.next`."""
        return self._u64(8)

    @property
    def mapping(self) -> int:
        """Of a file's head page: its address space. Of others: something."""
        return self._u64(24)

    @property
    def slab_cache(self) -> int:
        return self._u64(24)

    @property
    def compound_nr(self) -> int:
        """Of the first tail page: frames of the compound page."""
        return int(struct.unpack_from("<I", self.raw, 24)[0])

    @property
    def compound_order(self) -> int:
        return self.raw[17]

    @property
    def counters(self) -> int:
        """Of a slab: objects in use, objects << 16."""
        return self._u64(40)

    @property
    def mapcount(self) -> int:
        """`_mapcount` plus one."""
        return int(struct.unpack_from("<i", self.raw, 48)[0]) + 1

    @property
    def refcount(self) -> int:
        return int(struct.unpack_from("<i", self.raw, 52)[0])

    def _u64(self, offset: int) -> int:
        return int(struct.unpack_from("<Q", self.raw, offset)[0])


def struct_page(machine: DescribedMachine, pfn: int) -> StructPage:
    """The struct page of a frame in use.

    Raises QuestionError for a machine of another design, and for a frame that is not allocated.
    """
    if machine.design is not STRUCT_PAGE:
        raise QuestionError(
            f"{machine.design.title} has no struct page of 2021",
            hint="ask memdesc.model.pages for the descriptor",
        )
    words = array(machine.slabs.state.word)
    word = int(words[pfn]) ^ t.FREE_WORD if 0 <= pfn < words.size else 0
    if word & 15 != PLAIN:
        raise QuestionError(f"frame {pfn:#x} is not allocated")
    is_tail = bool(word & PLAIN_TAIL)
    raw = _tail(machine, pfn) if is_tail else _head(machine, pfn, word)
    return StructPage(_address(pfn), raw)


# --- helpers -----------------------------------------------------------------------------


def _address(pfn: int) -> int:
    return VMEMMAP + pfn * _BYTES


def _flags(machine: DescribedMachine, pfn: int) -> int:
    state = machine.pages.state
    zone = int(state.block_zone[pfn >> state.params[G_BLOCK_ORDER]]) << ZONE_SHIFT
    node, kind = (int(state.zones[zone + field]) for field in (Z_NODE, Z_TYPE))
    return node << _NODE_SHIFT | kind << _ZONE_SHIFT


def _head(machine: DescribedMachine, pfn: int, word: int) -> bytes:
    kind = tuple(MemoryType)[word >> PLAIN_KIND_SHIFT & 255]
    order = int(machine.pages.state.frame[pfn]) & ORDER_MASK
    flags = _flags(machine, pfn) | (1 << _PG_HEAD if order else 0)
    link = int(array(machine.pages.state.next)[pfn])
    lru, at_24, at_32, at_40, refs = _address(pfn) + 8, 0, 0, 0, word >> PLAIN_REFS_SHIFT
    if kind is MemoryType.SLAB:
        flags |= 1 << _PG_SLAB
        row = machine.slabs.records()[link].tolist()
        at_24 = _CACHES + row[t.R_CACHE] * 256
        at_40 = row[t.R_IN_USE] | row[t.R_OBJECTS] << 16
        refs = 1
    elif kind is MemoryType.ANON:
        flags |= 1 << _PG_LRU | 1 << _PG_SWAPBACKED
        at_24 = mapping_address(link) | 1
    elif kind in (MemoryType.FILE, MemoryType.SHMEM):
        flags |= 1 << _PG_LRU
        at_24 = mapping_address(link)
    return struct.pack("<QQQQQQiiQ", flags, lru, lru, at_24, at_32, at_40, -1, refs, 0)


def _tail(machine: DescribedMachine, pfn: int) -> bytes:
    head = int(machine.pages.state.next[pfn])
    kind = _word(machine, pfn) >> PLAIN_KIND_SHIFT & 255
    if tuple(MemoryType)[kind] is MemoryType.SLAB:
        head = machine.slabs.records()[head].tolist()[t.R_PFN]
    order = int(machine.pages.state.frame[head]) & ORDER_MASK
    at_16, at_24, at_32 = 0, TAIL_MAPPING, 0
    if pfn - head == 1:
        destructor = _COMPOUND_PAGE_DTOR if order < 2 else _TRANSHUGE_PAGE_DTOR
        at_16 = destructor | order << 8 | 0xFFFF_FFFF << 32  # compound_mapcount is -1
        at_24 = 1 << order
    elif pfn - head == 2:
        at_24 = at_32 = _address(pfn) + 24  # deferred_list, empty
    flags = _flags(machine, pfn)
    linked = _address(head) | 1
    return struct.pack("<QQQQQQiiQ", flags, linked, at_16, at_24, at_32, 0, -1, 0, 0)


def _word(machine: DescribedMachine, pfn: int) -> int:
    return int(array(machine.slabs.state.word)[pfn]) ^ t.FREE_WORD

"""From a page of the modelled machine to its descriptor, and to nothing else.

`TypedPages` is a lookup like those of real kernels (`memdesc.descriptors`): a page has a frame
number and a way to its descriptor, and each descriptor only the fields that exist for it. In the
small-page designs the way is the memdesc word: what the word and the descriptor do not say is not
known here either.

    pages = TypedPages(machine)
    match pages.page(pfn).descriptor():
        case FileFolio() as folio: folio.mapping

How the same question went with `struct page` of 2021: `memdesc.model.struct_page`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from memdesc.descriptors import (
    AddressSpace,
    AnonFolio,
    Buddy,
    Descriptor,
    FileFolio,
    Hole,
    HugetlbFolio,
    KsmFolio,
    Page,
    PcpFree,
    ShmemFolio,
    Slab,
    bare_descriptor,
)
from memdesc.errors import QuestionError
from memdesc.kernels.allocator import MIGRATETYPES
from memdesc.model import slab_state as t
from memdesc.model.compiled import array
from memdesc.model.described import DescribedMachine
from memdesc.model.slab_frames import PLAIN_KIND_SHIFT, PLAIN_REFS_SHIFT, PLAIN_TAIL
from memdesc.model.state import (
    FREE,
    HOLE,
    KIND_SHIFT,
    ORDER_MASK,
    PCP,
    TAIL,
)
from memdesc.plan import MISC_SUBTYPES, PLAN_TYPE, InPlan, PlanCode, PlanKind
from memdesc.types import MemoryType, Pfn, PfnRange, TypeSet

__all__ = ["TypedPages", "mapping_address"]

_MAPPINGS: Final = 0xFFFF_8881_0000_0000
"""Where the model's address spaces would lie: owner number n at n * 64 from here."""


def mapping_address(owner: int) -> int:
    """The kernel address that stands for the address space (or anon_vma) of an owner."""
    return _MAPPINGS + owner * 64


class TypedPages:
    """Descriptors of the machine's pages. Follows `memdesc.descriptors.DescriptorLookup`."""

    def __init__(self, machine: DescribedMachine) -> None:
        self.machine = machine

    def page(self, pfn: Pfn) -> Page:
        """The page `pfn`; ask it for its descriptor."""
        return Page(pfn, self)

    def descriptor_of(self, pfn: Pfn) -> Descriptor:
        """What describes the frame; for any frame of a folio, the folio.

        Raises QuestionError for a frame number outside the machine.
        """
        words = array(self.machine.slabs.state.word)
        if not 0 <= pfn < words.size:
            raise QuestionError(f"there is no frame {pfn:#x}")
        word = int(words[pfn]) ^ t.FREE_WORD
        if self._byte(pfn) == HOLE:
            return Hole(PfnRange(pfn, Pfn(pfn + 1)))
        if word == t.FREE_WORD:
            return self._free(pfn)
        if not self.machine.design.allocates:
            return self._plain(pfn, word)
        tag = word & 15
        if tag == PlanKind.MISC:
            return _misc(pfn, word & ((1 << 64) - 1))
        if word == tag:
            return self._without_descriptor(pfn, PlanKind(tag))
        return self._pointed(word)

    # --- the ways there ------------------------------------------------------------------

    def _free(self, pfn: int) -> Descriptor:
        head = self._head(pfn)
        byte = self._byte(head)
        frames = _block(head, byte & ORDER_MASK)
        if byte >> KIND_SHIFT >= PCP >> KIND_SHIFT:
            return PcpFree(frames)
        if byte >> KIND_SHIFT != FREE >> KIND_SHIFT:
            raise QuestionError(
                f"frame {pfn:#x} was allocated behind the descriptors' back",
                hint="allocate with DescribedMachine.alloc, not with its page allocator",
            )
        block = head >> self.machine.pages.rules.pageblock_order
        migratetype = MIGRATETYPES[self.machine.pages.state.block[block]]
        return Buddy(frames, order=byte & ORDER_MASK, migratetype=migratetype.lower())

    def _pointed(self, word: int) -> Descriptor:
        state = self.machine.slabs.state
        address = (word & ~15) - state.cell[t.G_DIRECT_MAP]
        record = self._record(address >> 12)
        size = state.cache[record[t.R_CACHE] * t.CACHE_FIELDS + t.C_SIZE]
        number = (address - (record[t.R_PFN] << 12)) // size
        at = (record[t.R_BASE] + number) * t.SLOT_FIELDS
        value, refs, owner, what = array(state.slot)[at : at + t.SLOT_FIELDS].tolist()
        if word & 15 == PlanKind.SLAB:
            return self._slab(self.machine.slabs.records()[owner].tolist())
        return _typed(_KINDS[what & 255], _block(value, what >> 8), refs, owner)

    def _without_descriptor(self, pfn: int, kind: PlanKind) -> Descriptor:
        head = self._head(pfn)
        types = _types_of(PlanCode(kind))
        frames = _block(head, self._byte(head) & ORDER_MASK)
        return bare_descriptor(types, frames, "the word gives the type of the plan only")

    def _plain(self, pfn: int, word: int) -> Descriptor:
        """Today's overlays: struct page leads to its head, and the head says what it is."""
        links = array(self.machine.pages.state.next)
        kind = _KINDS[word >> PLAIN_KIND_SHIFT & 255]
        if kind is MemoryType.SLAB:
            return self._slab(self._record(pfn))
        head = int(links[pfn]) if word & PLAIN_TAIL else pfn
        order = self._byte(head) & ORDER_MASK
        refs = (int(array(self.machine.slabs.state.word)[head]) ^ t.FREE_WORD) >> PLAIN_REFS_SHIFT
        return _typed(kind, _block(head, order), refs, int(links[head]))

    def _slab(self, record: list[int]) -> Descriptor:
        slabs = self.machine.slabs
        cache = next(each for each in slabs.caches if each.number == record[t.R_CACHE])
        return Slab(
            _block(record[t.R_PFN], record[t.R_ORDER]),
            cache=cache.name,
            objects=record[t.R_OBJECTS],
            objects_in_use=record[t.R_IN_USE],
            object_size_bytes=cache.object_bytes,
        )

    # --- helpers -------------------------------------------------------------------------

    def _byte(self, pfn: int) -> int:
        return int(array(self.machine.pages.state.frame)[pfn])

    def _head(self, pfn: int) -> int:
        """The first frame of the block that a frame is in."""
        order = 0
        head = pfn
        while self._byte(head) == TAIL:
            order += 1
            head = pfn >> order << order
        return head

    def _record(self, pfn: int) -> list[int]:
        record = int(array(self.machine.pages.state.next)[pfn])
        row: list[int] = self.machine.slabs.records()[record].tolist()
        return row


_KINDS: Final = tuple(MemoryType)


def _block(head: int, order: int) -> PfnRange:
    return PfnRange(Pfn(head), Pfn(head + (1 << order)))


def _misc(pfn: int, word: int) -> Descriptor:
    """All frames of the allocation hold the same word, which has its order."""
    order = word >> 12 & 63
    head = pfn >> order << order
    subtype = word >> 4 & 127
    types = _types_of(PlanCode(PlanKind.MISC, subtype))
    if subtype == _DRIVER:
        mappable = TypeSet.of(MemoryType.DRIVER_MAPPED)
        types = mappable if word >> 11 & 1 else TypeSet(types.mask & ~mappable.mask)
    reason = f"the word says {MISC_SUBTYPES[subtype].name}, and no more"
    if subtype == 0:
        types = TypeSet.of(MemoryType.RESERVED)
    return bare_descriptor(types, _block(head, order), reason)


_DRIVER: Final = 2


def _types_of(code: PlanCode) -> TypeSet:
    """Every memory type that the plan gives this word."""
    return TypeSet.of(
        *(
            kind
            for kind, place in PLAN_TYPE.items()
            if isinstance(place, InPlan) and code in place.codes
        )
    )


def _typed(kind: MemoryType, frames: PfnRange, refs: int, owner: int) -> Descriptor:
    """The descriptor with what the model keeps: reference count and owner."""
    build = _WITH_COUNT.get(kind)
    return build(frames, refs, owner) if build else bare_descriptor(TypeSet.of(kind), frames, "")


_WITH_COUNT: Final[Mapping[MemoryType, Callable[[PfnRange, int, int], Descriptor]]] = (
    MappingProxyType(
        {
            MemoryType.ANON: lambda frames, refs, owner: AnonFolio(
                frames, refcount=refs, anon_vma=mapping_address(owner)
            ),
            MemoryType.FILE: lambda frames, refs, owner: FileFolio(
                frames, refcount=refs, mapping=AddressSpace(address=mapping_address(owner))
            ),
            MemoryType.SHMEM: lambda frames, refs, owner: ShmemFolio(
                frames, refcount=refs, mapping=AddressSpace(address=mapping_address(owner))
            ),
            MemoryType.HUGETLB: lambda frames, refs, owner: HugetlbFolio(
                frames, refcount=refs, mapping=AddressSpace(address=mapping_address(owner))
            ),
            MemoryType.KSM: lambda frames, refs, owner: KsmFolio(
                frames, refcount=refs, stable_node=mapping_address(owner)
            ),
        }
    )
)

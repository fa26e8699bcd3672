"""What must pass: the types that both checkers infer for correct code."""

from typing import assert_never, assert_type

from memdesc.descriptors import (
    AddressSpace,
    Buddy,
    Deferred,
    Described,
    Descriptor,
    FileFolio,
    Folio,
    Guard,
    Hole,
    NotVisible,
    Page,
    PcpFree,
    Slab,
    Unaccepted,
    Undescribed,
    descriptor_kind,
)
from memdesc.types import MemoryType, Pfn, PhysAddr, TypeSet, phys_of
from memdesc.word import MiscWord, PointerWord, decode


def page_leads_to_descriptor(page: Page) -> None:
    assert_type(page.pfn, Pfn)
    assert_type(page.descriptor(), Descriptor)
    assert_type(phys_of(page.pfn), PhysAddr)


def kind_is_a_type_or_a_union(page: Page) -> None:
    assert_type(descriptor_kind(page.descriptor()), MemoryType | TypeSet)


def mapping_after_the_kind_is_known(page: Page) -> str:
    descriptor = page.descriptor()
    if isinstance(descriptor, FileFolio):
        assert_type(descriptor.mapping, AddressSpace | NotVisible)
        if isinstance(descriptor.mapping, AddressSpace):
            return str(descriptor.mapping.filesystem)
    return "no file"


def fact_after_the_gap_is_handled(slab: Slab) -> int:
    assert_type(slab.objects, int | NotVisible)
    match slab.objects:
        case NotVisible(reason):
            assert_type(reason, str)
            return 0
        case count:
            assert_type(count, int)
            return count


def folios_share_their_counts(descriptor: Descriptor) -> bool:
    """One case covers every folio; the rest is named to the last one."""
    match descriptor:
        case Folio():
            return isinstance(descriptor.pins, int) and descriptor.pins > 0
        case Buddy() | PcpFree() | Deferred() | Guard() | Unaccepted() | Hole():
            return False
        case Undescribed():
            assert_type(descriptor.kinds, TypeSet)
            return False
        case _:
            return False


def members_of_a_small_union(descriptor: Buddy | Slab) -> str:
    match descriptor:
        case Buddy():
            return "free"
        case Slab():
            return "slab"
        case _:
            assert_never(descriptor)


def every_descriptor_is_described(descriptor: Descriptor) -> Described:
    return descriptor


def word_is_told_apart_by_class(word: int) -> int:
    decoded = decode(word)
    if isinstance(decoded, MiscWord):
        assert_type(decoded.order, int)
        return decoded.order
    return decoded.pointer if isinstance(decoded, PointerWord) else 0

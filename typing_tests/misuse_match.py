"""A match over the descriptors must name every one of them, or say so with `case _`."""

from typing import assert_never

from memdesc.descriptors import (
    Descriptor,
    DevicePage,
    Folio,
    Hole,
    PageTable,
    Slab,
    descriptor_kind,
)
from memdesc.types import MemoryType, TypeSet
from memdesc.word import BuddyListWord, BuddyWord, MiscWord, PointerWord, Word


def forgotten_descriptors(descriptor: Descriptor) -> str:
    match descriptor:
        case Folio():
            return "memory of processes"
        case Slab() | PageTable():
            return "kernel"
        case DevicePage() | Hole():
            return "not main memory"
        case _:
            assert_never(descriptor)  # E: argument


def forgotten_word(word: Word) -> str:
    match word:
        case MiscWord():
            return "inline"
        case PointerWord():
            return "pointer"
        case BuddyWord() | BuddyListWord():
            return "free"
        case _:
            assert_never(word)  # E: argument


def union_taken_for_one_type(descriptor: Descriptor) -> MemoryType:
    """The kind can be an honest union; code that ignores this does not pass."""
    return descriptor_kind(descriptor)  # E: return


def one_type_taken_for_union(kind: MemoryType) -> TypeSet:
    return kind  # E: return

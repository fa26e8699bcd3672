"""The page_type word: how does a kernel mark buddy, slab, page table and the like?

`struct page` has 4 bytes at offset 48 that hold either `_mapcount` (stored minus one)
or, for memory that is never mapped to users, a type.  Up to 6.1 a type *clears* one
bit of 0xffffffff; from 6.12 the top byte is the type and the low 24 bits are free for
the owner.  Only the first frame of an allocation carries the type.

Sources: `include/linux/page-flags.h` of 5.10.223, 6.1.192, 6.12.117, 7.2.13, 7.3.4 and
type information of a built 6.18.44.  5.15 to 6.0 and the releases between two that
agree are inferred.  6.2 to 6.11 moved hugetlb, slab and zsmalloc step by step and were
not read: there the values must come from the crash dump's own debug information.

>>> table = page_types(KernelRelease.parse("7.2.13"))
>>> table.decode(0xF5000000)
TypedWord(page_type=<PageType.SLAB: 'slab'>, payload=0)
>>> table.decode(3)
MapcountWord(mapcount=4)
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from memdesc.errors import FormatError, QuestionError
from memdesc.kernels.release import KernelRelease
from memdesc.types import Certainty, MemoryType, TypeSet

__all__ = [
    "MEMORY_TYPES_OF",
    "NO_TYPE",
    "ActiveLowTypes",
    "MapcountWord",
    "NoTypeWord",
    "PageType",
    "PageTypes",
    "ReservedWord",
    "TopByteTypes",
    "TypeWord",
    "TypedWord",
    "page_types",
]

NO_TYPE: Final = 0xFFFFFFFF
"""The word of a frame without type and without user mapping, in every release."""

_ACTIVE_LOW_BASE: Final = 0xF0000000
_PAYLOAD_MASK: Final = 0x00FFFFFF
_FIRST_OVERFLOW_BYTE: Final = 0x80
_FIRST_TYPE_BYTE: Final = 0xF0


class PageType(enum.Enum):
    """A type that some release stores in the page_type word."""

    BUDDY = "buddy"
    OFFLINE = "offline"
    KMEMCG = "kmemcg"
    """Charged kernel page; removed in 5.11."""
    TABLE = "table"
    GUARD = "guard"
    HUGETLB = "hugetlb"
    SLAB = "slab"
    ZSMALLOC = "zsmalloc"
    UNACCEPTED = "unaccepted"
    LARGE_KMALLOC = "large_kmalloc"


@dataclass(frozen=True, slots=True)
class TypedWord:
    """The word holds a type; `payload` is its low 24 bits (0 where a type is one bit)."""

    page_type: PageType
    payload: int = 0


@dataclass(frozen=True, slots=True)
class MapcountWord:
    """The word holds a map count: `mapcount` user page-table entries."""

    mapcount: int


@dataclass(frozen=True, slots=True)
class NoTypeWord:
    """0xffffffff: no type, and a map count of 0."""


@dataclass(frozen=True, slots=True)
class ReservedWord:
    """A value this release gives no meaning to, or keeps for a map count gone wrong."""

    raw: int


TypeWord: TypeAlias = TypedWord | MapcountWord | NoTypeWord | ReservedWord


@dataclass(frozen=True, slots=True)
class ActiveLowTypes:
    """Up to 6.1: a type is one bit that is *clear* in 0xffffffff. `flags` are those bits."""

    flags: Mapping[PageType, int]
    certainty: Certainty
    source: str

    def decode(self, word: int) -> TypeWord:
        """Say what the 32-bit `word` means."""
        _check(word)
        if word == NO_TYPE:
            return NoTypeWord()
        for page_type, flag in self.flags.items():
            # As the kernel tests it: the base bits are set and the type's own is clear.
            if word & (_ACTIVE_LOW_BASE | flag) == _ACTIVE_LOW_BASE:
                return TypedWord(page_type)
        return ReservedWord(word) if word >> 31 else MapcountWord(word + 1)

    def encode(self, page_type: PageType) -> int:
        """Return the word of `page_type`. Raises QuestionError for one it does not have."""
        return NO_TYPE & ~_lookup(self.flags, page_type)


@dataclass(frozen=True, slots=True)
class TopByteTypes:
    """From 6.12: the top byte is the type. `codes` are those bytes."""

    codes: Mapping[PageType, int]
    certainty: Certainty
    source: str

    def decode(self, word: int) -> TypeWord:
        """Say what the 32-bit `word` means.

        0x00-0x7f in the top byte are map counts, 0x80-0xef are kept for one that
        overflowed, 0xff is no type.
        """
        _check(word)
        top = word >> 24
        if top == NO_TYPE >> 24:
            return NoTypeWord()
        if top < _FIRST_OVERFLOW_BYTE:
            return MapcountWord(word + 1)
        if top >= _FIRST_TYPE_BYTE:
            for page_type, code in self.codes.items():
                if code == top:
                    return TypedWord(page_type, word & _PAYLOAD_MASK)
        return ReservedWord(word)

    def encode(self, page_type: PageType, payload: int = 0) -> int:
        """Return the word of `page_type`. Raises QuestionError for one it does not have."""
        if not 0 <= payload <= _PAYLOAD_MASK:
            raise FormatError(f"payload {payload:#x} does not fit into 24 bits")
        return _lookup(self.codes, page_type) << 24 | payload


PageTypes: TypeAlias = ActiveLowTypes | TopByteTypes


def page_types(release: KernelRelease) -> PageTypes:
    """Return how `release` stores page types.

    `certainty` is EXACT for releases that were read, INFERRED for those between two
    that agree.  Raises QuestionError for every other release.
    """
    version = (release.major, release.minor)
    if version == (5, 10):
        return _V5_10
    if (5, 15) <= version <= (6, 1):
        return _active_low(_FLAGS_6_1, exact=version == (6, 1))
    if (6, 12) <= version <= (6, 14):
        return _top_byte(_CODES_6_12, exact=version == (6, 12))
    if (6, 15) <= version <= (7, 3):
        # Large kmalloc got its code between 6.12 and 6.18; 6.15 is believed.
        return _top_byte(_CODES_6_18, exact=version in ((6, 18), (7, 2), (7, 3)))
    raise QuestionError(
        f"page types of kernel {release} are not known",
        hint="known: 5.10, 5.15 to 6.1, 6.12 to 7.3; take them from the kernel's debug information",
    )


_FLAGS_6_1: Mapping[PageType, int] = MappingProxyType(
    {
        PageType.BUDDY: 0x080,
        PageType.OFFLINE: 0x100,
        PageType.TABLE: 0x200,
        PageType.GUARD: 0x400,
    }
)
_CODES_6_12: Mapping[PageType, int] = MappingProxyType(
    {
        PageType.BUDDY: 0xF0,
        PageType.OFFLINE: 0xF1,
        PageType.TABLE: 0xF2,
        PageType.GUARD: 0xF3,
        PageType.HUGETLB: 0xF4,
        PageType.SLAB: 0xF5,
        PageType.ZSMALLOC: 0xF6,
        PageType.UNACCEPTED: 0xF7,
    }
)
_CODES_6_18: Mapping[PageType, int] = MappingProxyType(
    {**_CODES_6_12, PageType.LARGE_KMALLOC: 0xF8}
)
_V5_10 = ActiveLowTypes(
    MappingProxyType(
        {
            PageType.BUDDY: 0x080,
            PageType.OFFLINE: 0x100,
            PageType.KMEMCG: 0x200,
            PageType.TABLE: 0x400,
            PageType.GUARD: 0x800,
        }
    ),
    Certainty.EXACT,
    "include/linux/page-flags.h @5.10",
)

MEMORY_TYPES_OF: Mapping[PageType, TypeSet] = MappingProxyType(
    {
        PageType.BUDDY: TypeSet.of(MemoryType.FREE),
        PageType.OFFLINE: TypeSet.of(MemoryType.BALLOON, MemoryType.OFFLINE),
        PageType.KMEMCG: TypeSet.of(MemoryType.ACCOUNTED),
        PageType.TABLE: TypeSet.of(MemoryType.PAGE_TABLE),
        PageType.GUARD: TypeSet.of(MemoryType.GUARD),
        PageType.HUGETLB: TypeSet.of(MemoryType.HUGETLB),
        PageType.SLAB: TypeSet.of(MemoryType.SLAB),
        PageType.ZSMALLOC: TypeSet.of(MemoryType.ZSMALLOC),
        PageType.UNACCEPTED: TypeSet.of(MemoryType.UNACCEPTED),
        PageType.LARGE_KMALLOC: TypeSet.of(MemoryType.LARGE_KMALLOC),
    }
)
"""The memory types a page type can stand for. Balloon pages share the offline type."""


def _active_low(flags: Mapping[PageType, int], *, exact: bool) -> ActiveLowTypes:
    return ActiveLowTypes(flags, _certainty(exact), "include/linux/page-flags.h @5.10, @6.1")


def _top_byte(codes: Mapping[PageType, int], *, exact: bool) -> TopByteTypes:
    return TopByteTypes(codes, _certainty(exact), "include/linux/page-flags.h @6.12, @7.2")


def _certainty(exact: bool) -> Certainty:
    return Certainty.EXACT if exact else Certainty.INFERRED


def _lookup(values: Mapping[PageType, int], page_type: PageType) -> int:
    if page_type not in values:
        raise QuestionError(f"this kernel keeps no page type for {page_type.value}")
    return values[page_type]


def _check(word: int) -> None:
    if not 0 <= word <= NO_TYPE:
        raise FormatError(f"{word:#x} is not a 32-bit word")

"""What one struct page says, packed into 64 bits: the *signature* of a frame.

Millions of frames share a few hundred signatures, so the type and the emulated kpageflags
word are worked out once per signature.  `memdesc.structs.columns` packs them in bulk;
`PageState.unpack` takes one apart.

>>> PageState.unpack(SIG_KNOWN | SIG_REFCOUNT_0 | 1 << SIG_TYPE_SHIFT).page_type
<TypeCode.BUDDY: 1>
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from memdesc.kernels.layout import MappingKind
from memdesc.kernels.page_types import PageType

__all__ = [
    "SIG_ACCOUNTED",
    "SIG_DAMAGED",
    "SIG_DEVICE",
    "SIG_FLAGS_MASK",
    "SIG_HAS_MAPPING",
    "SIG_HOLE",
    "SIG_HUGE_ZERO",
    "SIG_IDENTITY_SHIFT",
    "SIG_IN_FREE_BLOCK",
    "SIG_KIND_SHIFT",
    "SIG_KNOWN",
    "SIG_MAPPED",
    "SIG_MAPPING_SHIFT",
    "SIG_NET_POOL",
    "SIG_REFCOUNT_0",
    "SIG_RMAPPABLE",
    "SIG_TAIL",
    "SIG_TORN",
    "SIG_TYPE_SHIFT",
    "SIG_UNREADABLE",
    "SIG_ZERO_PAGE",
    "Identity",
    "PageState",
    "TypeCode",
    "code_of_type",
]

SIG_FLAGS_MASK: Final = (1 << 32) - 1
"""The PG_* bits by this kernel's own numbers. Of a tail: its head's, but its own hwpoison."""
SIG_TYPE_SHIFT: Final = 32
"""4 bits: `TypeCode`."""
SIG_MAPPING_SHIFT: Final = 36
"""2 bits: `MappingKind`."""
SIG_HAS_MAPPING: Final = 1 << 38
"""`mapping` holds more than its low bits."""
SIG_MAPPED: Final = 1 << 39
SIG_REFCOUNT_0: Final = 1 << 40
SIG_NET_POOL: Final = 1 << 41
SIG_ACCOUNTED: Final = 1 << 42
"""Bit 1 of memcg_data: a kernel page charged to a cgroup."""
SIG_TAIL: Final = 1 << 43
SIG_TORN: Final = 1 << 44
"""A tail whose head cannot be: it leads out of the memory map, or to another tail."""
SIG_RMAPPABLE: Final = 1 << 45
"""A large folio that user space maps (large_rmappable; 6.1: the THP destructor)."""
SIG_IN_FREE_BLOCK: Final = 1 << 46
SIG_ZERO_PAGE: Final = 1 << 47
SIG_HUGE_ZERO: Final = 1 << 48
SIG_IDENTITY_SHIFT: Final = 49
"""4 bits: `Identity`."""
SIG_KIND_SHIFT: Final = 53
"""6 bits: what a walk says, `memdesc.structs.owned.kind_code`; 0 for nothing."""
SIG_DEVICE: Final = 1 << 59
"""In a section that is not online, in ZONE_DEVICE."""
SIG_HOLE: Final = 1 << 60
"""No struct page, or one of an offline section."""
SIG_UNREADABLE: Final = 1 << 61
"""The struct page could not be read."""
SIG_DAMAGED: Final = 1 << 62
"""One of more distinct states than any kernel has: its bytes are not a struct page's."""
SIG_KNOWN: Final = 1 << 63
"""Set in every signature but that of a struct page of zeroes, which is 0."""


class TypeCode(enum.IntEnum):
    """The page type, in 4 bits."""

    NONE = 0
    """No type; the word holds a map count."""
    BUDDY = 1
    OFFLINE = 2
    TABLE = 3
    GUARD = 4
    HUGETLB = 5
    SLAB = 6
    ZSMALLOC = 7
    UNACCEPTED = 8
    LARGE_KMALLOC = 9
    UNKNOWN = 14
    """A type value that this kernel's type information does not name."""
    OVERFLOW = 15
    """A value that is kept for a map count gone wrong."""


def code_of_type(page_type: PageType) -> TypeCode:
    """The code of a page type. Raises KeyError for one that no kernel from 5.11 on has."""
    return TypeCode[page_type.name]


class Identity(enum.IntEnum):
    """Whose operations the mapping names: the symbol of `a_ops` or `movable_operations`."""

    NOT_RESOLVED = 0
    FILE = 1
    """Resolved, and none of the below."""
    SECRETMEM = 2
    GUEST_MEMFD = 3
    ZSMALLOC = 4
    BALLOON = 5
    OTHER_MOVABLE = 6
    DRIVER = 7
    """No file at all: the driver of a character device or of an anonymous inode (perf) put its
    own mapping there."""


class PageState(NamedTuple):
    """One signature taken apart."""

    flags: int
    page_type: TypeCode
    mapping: MappingKind
    has_mapping: bool
    is_mapped: bool
    refcount_is_0: bool
    is_net_pool: bool
    is_accounted: bool
    is_tail: bool
    is_torn: bool
    is_rmappable: bool
    in_free_block: bool
    is_zero_page: bool
    is_huge_zero: bool
    identity: Identity
    kind: int
    """0, or the walk's kind code."""
    is_device: bool
    is_hole: bool
    is_unreadable: bool
    is_damaged: bool
    is_known: bool
    """False: the struct page is all zero, so nobody has initialised it yet."""

    @classmethod
    def unpack(cls, signature: int) -> PageState:
        """Every 64-bit value has an answer: codes without meaning read as UNKNOWN."""
        code = signature >> SIG_TYPE_SHIFT & 15
        identity = signature >> SIG_IDENTITY_SHIFT & 15
        return cls(
            flags=signature & SIG_FLAGS_MASK,
            page_type=TypeCode(code) if code in _TYPE_CODES else TypeCode.UNKNOWN,
            mapping=MappingKind(signature >> SIG_MAPPING_SHIFT & 3),
            has_mapping=bool(signature & SIG_HAS_MAPPING),
            is_mapped=bool(signature & SIG_MAPPED),
            refcount_is_0=bool(signature & SIG_REFCOUNT_0),
            is_net_pool=bool(signature & SIG_NET_POOL),
            is_accounted=bool(signature & SIG_ACCOUNTED),
            is_tail=bool(signature & SIG_TAIL),
            is_torn=bool(signature & SIG_TORN),
            is_rmappable=bool(signature & SIG_RMAPPABLE),
            in_free_block=bool(signature & SIG_IN_FREE_BLOCK),
            is_zero_page=bool(signature & SIG_ZERO_PAGE),
            is_huge_zero=bool(signature & SIG_HUGE_ZERO),
            identity=Identity(identity) if identity in _IDENTITIES else Identity.NOT_RESOLVED,
            kind=signature >> SIG_KIND_SHIFT & 63,
            is_device=bool(signature & SIG_DEVICE),
            is_hole=bool(signature & SIG_HOLE),
            is_unreadable=bool(signature & SIG_UNREADABLE),
            is_damaged=bool(signature & SIG_DAMAGED),
            is_known=bool(signature & SIG_KNOWN),
        )


_TYPE_CODES = frozenset(map(int, TypeCode))
_IDENTITIES = frozenset(map(int, Identity))

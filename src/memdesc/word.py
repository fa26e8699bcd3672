"""The memdesc word: what would 8 bytes per frame say, and what do given 8 bytes mean?

The plan replaces `struct page` (64 bytes) by one 64-bit word per frame: four bits of
type, and either inline fields (type 0, "Misc") or a pointer to a descriptor that is
allocated on its own.  No released kernel has this word yet; the tables below follow
the published revisions of the plan, R1 (2021) to R6 (the newest known), and say where
a revision could not be recovered.  The type tables are data in `memdesc.plan`.

Source: the Memdescs page of the kernelnewbies wiki, newest revision.

>>> word = encode_misc(2, order=3, user_mappable=True, node=1, zone=2)
>>> hex(word)
'0x50000000003820'
>>> decode(word).order
3
>>> decode(encode_pointer(PlanKind.SLAB, 0xFFFF888012345680)).plan_type.name
'Slab'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from memdesc.errors import FormatError
from memdesc.plan import (
    MISC_SUBTYPES,
    NEWEST,
    PLAN_TYPE,
    REVISIONS,
    Holds,
    PlanKind,
    PlanType,
    Revision,
)

__all__ = [
    "DEBIAN_AMD64",
    "MISC_SUBTYPES",
    "NEWEST",
    "PLAN_TYPE",
    "REVISIONS",
    "BuddyListWord",
    "BuddyWord",
    "FieldWidths",
    "MiscWord",
    "PlanKind",
    "PlanType",
    "PointerWord",
    "Revision",
    "UndecodedWord",
    "Word",
    "decode",
    "encode",
    "encode_buddy",
    "encode_misc",
    "encode_pointer",
]

_WORD_MAX: Final = (1 << 64) - 1
_TYPE_MASK: Final = 0xF
_SUBTYPE_SHIFT: Final = 4
_SUBTYPE_MAX: Final = 127
_USER_BIT: Final = 1 << 11
_ORDER_SHIFT: Final = 12
_ORDER_MAX: Final = 63
_SPARE_SHIFT: Final = 18


@dataclass(frozen=True, slots=True)
class FieldWidths:
    """Widths in bits of the fields at the top of a Misc word; they follow page->flags.

    section lies topmost, then node, then zone.  A kernel's configuration decides
    (`include/linux/page-flags-layout.h`).
    """

    section: int
    node: int
    zone: int

    def __post_init__(self) -> None:
        if min(self.section, self.node, self.zone) < 0 or self.total > 64 - _SPARE_SHIFT:
            raise FormatError(
                f"fields of {self.section}+{self.node}+{self.zone} bits do not fit above bit 18",
                hint="a memdesc word has 46 bits for section, node and zone",
            )

    @property
    def total(self) -> int:
        """Bits taken by the three fields."""
        return self.section + self.node + self.zone

    @property
    def lowest_bit(self) -> int:
        """The first bit of the zone field; bits from 18 to here are not assigned."""
        return 64 - self.total


DEBIAN_AMD64: Final = FieldWidths(section=0, node=10, zone=3)
"""node in bits 54-63, zone in 51-53, no section field (vmemmap)."""


@dataclass(frozen=True, slots=True)
class MiscWord:
    """Type 0: everything is in the word. No refcount, no mapcount, no owner pointer."""

    subtype: int
    order: int = 0
    """log2 of the frames in the allocation; all of them hold the same word."""
    user_mappable: bool = False
    node: int = 0
    zone: int = 0
    section: int = 0
    spare: int = 0
    """Bits 18 up to the zone field, which the plan does not assign."""

    @property
    def subtype_name(self) -> str:
        """The plan's name of the subtype, or "unassigned"."""
        known = MISC_SUBTYPES.get(self.subtype)
        return known.name if known else "unassigned"


@dataclass(frozen=True, slots=True)
class PointerWord:
    """A descriptor's address with the type in its low four bits."""

    plan_type: PlanType
    pointer: int


@dataclass(frozen=True, slots=True)
class BuddyWord:
    """A free frame with the allocator's data embedded; `payload` is bits 4-63.

    What the payload holds is still open in the plan: one or two words per frame.
    """

    payload: int


@dataclass(frozen=True, slots=True)
class BuddyListWord:
    """R5 only: the word is the first pointer of the buddy list, low bits included."""

    pointer: int


@dataclass(frozen=True, slots=True)
class UndecodedWord:
    """A word whose type is known but not its fields, or not even its type; `reason` says why."""

    raw: int
    plan_type: PlanType
    reason: str


Word: TypeAlias = MiscWord | PointerWord | BuddyWord | BuddyListWord | UndecodedWord


# What people came for: encode and decode


def encode_misc(
    subtype: int,
    *,
    order: int = 0,
    user_mappable: bool = False,
    node: int = 0,
    zone: int = 0,
    section: int = 0,
    spare: int = 0,
    widths: FieldWidths = DEBIAN_AMD64,
) -> int:
    """Build a word of type 0. Raises FormatError where a field does not fit."""
    _fit("subtype", subtype, _SUBTYPE_MAX)
    _fit("order", order, _ORDER_MAX)
    _fit("zone", zone, (1 << widths.zone) - 1)
    _fit("node", node, (1 << widths.node) - 1)
    _fit("section", section, (1 << widths.section) - 1)
    _fit("spare", spare, (1 << (widths.lowest_bit - _SPARE_SHIFT)) - 1)
    zone_shift = widths.lowest_bit
    node_shift = zone_shift + widths.zone
    section_shift = node_shift + widths.node
    return (
        subtype << _SUBTYPE_SHIFT
        | (_USER_BIT if user_mappable else 0)
        | order << _ORDER_SHIFT
        | spare << _SPARE_SHIFT
        | zone << zone_shift
        | node << node_shift
        | section << section_shift
    )


def encode_pointer(kind: PlanKind | int, pointer: int) -> int:
    """Build a word that points to a descriptor. The address is a multiple of 16.

    Raises FormatError for types 0 and 1, which hold no pointer, for the unassigned
    14 and 15, and for an address that is not aligned or has more than 64 bits.
    """
    try:
        plan_kind = PlanKind(kind)
    except ValueError:
        raise FormatError(
            f"type {kind} is not assigned in {NEWEST.id}",
            hint="types 2 to 13 point to a descriptor",
        ) from None
    if plan_kind is PlanKind.MISC or plan_kind is PlanKind.BUDDY:
        raise FormatError(
            f"type {plan_kind.value} ({plan_kind.name}) holds no pointer",
            hint="use encode_misc or encode_buddy",
        )
    _fit("pointer", pointer, _WORD_MAX)
    if pointer & _TYPE_MASK:
        raise FormatError(
            f"pointer {pointer:#x} is not a multiple of 16",
            hint="descriptors are 16-byte aligned; the low four bits hold the type",
        )
    return pointer | plan_kind.value


def encode_buddy(payload: int) -> int:
    """Build the word of a free frame from its 60 bits of allocator data."""
    _fit("payload", payload, _WORD_MAX >> 4)
    return payload << 4 | PlanKind.BUDDY.value


def encode(word: Word, widths: FieldWidths = DEBIAN_AMD64) -> int:
    """Inverse of `decode`: the 64-bit value of a decoded word."""
    match word:
        case MiscWord():
            return encode_misc(
                word.subtype,
                order=word.order,
                user_mappable=word.user_mappable,
                node=word.node,
                zone=word.zone,
                section=word.section,
                spare=word.spare,
                widths=widths,
            )
        case PointerWord():
            return word.pointer | word.plan_type.value
        case BuddyWord():
            return encode_buddy(word.payload)
        case BuddyListWord():
            return word.pointer
        case UndecodedWord():
            return word.raw


def decode(word: int, revision: Revision | None = None, widths: FieldWidths = DEBIAN_AMD64) -> Word:
    """Say what a 64-bit word means in `revision` (default: the newest known).

    Exact for R6.  Older revisions give the type, and fields only where the revision
    states them; the rest is an `UndecodedWord` with the reason.  Raises FormatError
    for a number that has no 64-bit form and for a revision without numbers.
    """
    table = NEWEST if revision is None else revision
    _fit("word", word, _WORD_MAX)
    if not table.is_numbered:
        raise FormatError(
            f"revision {table.id} names types but gives them no numbers",
            hint="decode with R3, R4, R5 or R6",
        )
    plan_type = table.types[word & _TYPE_MASK]
    match plan_type.holds:
        case Holds.POINTER:
            return PointerWord(plan_type, word & ~_TYPE_MASK)
        case Holds.EMBEDDED:
            return BuddyWord(word >> 4)
        case Holds.LIST_POINTER:
            return BuddyListWord(word)
        case Holds.INLINE:
            if table.misc_layout_known:
                return _decode_misc(word, widths)
            return UndecodedWord(word, plan_type, f"{table.id} does not give these fields")
        case Holds.NOT_KNOWN:
            return UndecodedWord(
                word, plan_type, f"type {plan_type.value} is {plan_type.status.value} in {table.id}"
            )


def _decode_misc(word: int, widths: FieldWidths) -> MiscWord:
    zone_shift = widths.lowest_bit
    node_shift = zone_shift + widths.zone
    section_shift = node_shift + widths.node
    return MiscWord(
        subtype=word >> _SUBTYPE_SHIFT & _SUBTYPE_MAX,
        order=word >> _ORDER_SHIFT & _ORDER_MAX,
        user_mappable=bool(word & _USER_BIT),
        zone=word >> zone_shift & ((1 << widths.zone) - 1),
        node=word >> node_shift & ((1 << widths.node) - 1),
        section=word >> section_shift & ((1 << widths.section) - 1),
        spare=word >> _SPARE_SHIFT & ((1 << (widths.lowest_bit - _SPARE_SHIFT)) - 1),
    )


def _fit(name: str, value: int, maximum: int) -> None:
    if not 0 <= value <= maximum:
        raise FormatError(f"{name} {value} does not fit: it must be from 0 to {maximum}")

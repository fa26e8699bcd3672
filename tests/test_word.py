"""The memdesc word: what it holds, what the encoder refuses, what older revisions said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.errors import FormatError
from memdesc.plan import (
    NEWEST,
    PLAN_TYPE,
    REVISIONS,
    Holds,
    InPlan,
    NotInPlan,
    PlanCode,
    PlanKind,
    TypeStatus,
    WhyNotInPlan,
)
from memdesc.types import MemoryType
from memdesc.word import (
    DEBIAN_AMD64,
    BuddyListWord,
    BuddyWord,
    FieldWidths,
    MiscWord,
    PointerWord,
    UndecodedWord,
    decode,
    encode,
    encode_buddy,
    encode_misc,
    encode_pointer,
)

WORDS = st.integers(min_value=0, max_value=(1 << 64) - 1)
WIDTHS = st.builds(
    FieldWidths,
    section=st.integers(0, 20),
    node=st.integers(0, 12),
    zone=st.integers(0, 4),
)

# The published examples: Debian amd64 widths, node 1, zone 2 (Normal).
MISC_VECTORS = [
    ("order-0 driver page", 0x0050000000000020, MiscWord(2, node=1, zone=2)),
    (
        "order-3 driver buffer that users may map",
        0x0050000000003820,
        MiscWord(2, order=3, user_mappable=True, node=1, zone=2),
    ),
    ("vmalloc", 0x0050000000000030, MiscWord(3, node=1, zone=2)),
    ("large kmalloc of order 2", 0x0050000000002060, MiscWord(6, order=2, node=1, zone=2)),
    ("all zero", 0, MiscWord(0)),
]
POINTER_VECTORS = [
    ("slab", 0xFFFF888012345685, PlanKind.SLAB, 0xFFFF888012345680, "struct slab"),
    ("page table", 0xFFFF8880000000C8, PlanKind.PAGE_TABLE, 0xFFFF8880000000C0, "struct ptdesc"),
]


@pytest.mark.parametrize(("what", "word", "fields"), MISC_VECTORS)
def test_misc_words_hold_everything_inline(what: str, word: int, fields: MiscWord) -> None:
    assert decode(word) == fields, what
    assert encode(fields) == word, what


@pytest.mark.parametrize(("what", "word", "kind", "pointer", "descriptor"), POINTER_VECTORS)
def test_pointer_words_lead_to_a_descriptor(
    what: str, word: int, kind: PlanKind, pointer: int, descriptor: str
) -> None:
    assert encode_pointer(kind, pointer) == word, what
    decoded = decode(word)
    assert isinstance(decoded, PointerWord)
    assert decoded.pointer == pointer
    assert decoded.plan_type.value == kind
    assert decoded.plan_type.descriptor == descriptor


def test_a_zeroed_memory_map_reads_as_reserved() -> None:
    """So the state before initialisation is safe: nobody takes it for free memory."""
    decoded = decode(0)
    assert isinstance(decoded, MiscWord)
    assert decoded.subtype_name == "reserved"
    assert decoded.order == 0


def test_node_and_zone_lie_where_page_flags_has_them() -> None:
    assert encode_misc(0, node=1) == 1 << 54
    assert encode_misc(0, zone=1) == 1 << 51
    with_sections = FieldWidths(section=19, node=6, zone=2)
    assert encode_misc(0, section=1, widths=with_sections) == 1 << 45
    assert encode_misc(0, node=1, widths=with_sections) == 1 << 39
    assert encode_misc(0, zone=1, widths=with_sections) == 1 << 37


# The encoder refuses what the word cannot hold.


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "subtype above 7 bits": (lambda: encode_misc(128), "subtype 128"),
    "negative subtype": (lambda: encode_misc(-1), "subtype -1"),
    "order above 6 bits": (lambda: encode_misc(0, order=64), "order 64"),
    "node too large": (lambda: encode_misc(0, node=1024), "node 1024"),
    "zone too large": (lambda: encode_misc(0, zone=8), "zone 8"),
    "section without a field": (lambda: encode_misc(0, section=1), "section 1"),
    "misaligned pointer": (lambda: encode_pointer(PlanKind.SLAB, 0x1008), "multiple of 16"),
    "pointer above 64 bits": (lambda: encode_pointer(PlanKind.SLAB, 1 << 64), "does not fit"),
    "type 14": (lambda: encode_pointer(14, 0x1000), "type 14 is not assigned"),
    "type 15": (lambda: encode_pointer(15, 0x1000), "type 15 is not assigned"),
    "type 16": (lambda: encode_pointer(16, 0x1000), "type 16 is not assigned"),
    "pointer in a Misc word": (lambda: encode_pointer(0, 0x1000), "holds no pointer"),
    "pointer in a Buddy word": (lambda: encode_pointer(1, 0x1000), "holds no pointer"),
    "buddy data above 60 bits": (lambda: encode_buddy(1 << 60), "does not fit"),
    "negative word": (lambda: decode(-1), "does not fit"),
    "word above 64 bits": (lambda: decode(1 << 64), "does not fit"),
    "fields above 46 bits": (lambda: FieldWidths(section=30, node=10, zone=7), "do not fit"),
    "negative width": (lambda: FieldWidths(section=-1, node=10, zone=3), "do not fit"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_does_not_fit_is_refused_with_its_value(case: str) -> None:
    attempt, says = REFUSED[case]
    with pytest.raises(FormatError, match=says):
        attempt()


@given(
    subtype=st.integers(0, 127),
    order=st.integers(0, 63),
    user_mappable=st.booleans(),
    node=st.integers(0, 1023),
    zone=st.integers(0, 7),
)
def test_misc_fields_survive_the_round_trip(
    subtype: int, order: int, user_mappable: bool, node: int, zone: int
) -> None:
    word = encode_misc(subtype, order=order, user_mappable=user_mappable, node=node, zone=zone)
    assert word & 0xF == 0
    assert decode(word) == MiscWord(subtype, order, user_mappable, node, zone)


@given(kind=st.integers(2, 13), address=st.integers(0, (1 << 60) - 1))
def test_pointers_survive_the_round_trip(kind: int, address: int) -> None:
    decoded = decode(encode_pointer(kind, address << 4))
    assert isinstance(decoded, PointerWord)
    assert (decoded.plan_type.value, decoded.pointer) == (kind, address << 4)


@given(word=WORDS, widths=WIDTHS)
def test_decoding_loses_no_bit(word: int, widths: FieldWidths) -> None:
    """Every 64-bit number decodes, and encodes to itself: unassigned bits are kept too."""
    assert encode(decode(word, widths=widths), widths) == word


@given(word=WORDS, revision=st.sampled_from(["R3", "R4", "R5", "R6"]))
def test_older_revisions_lose_no_bit_either(word: int, revision: str) -> None:
    assert encode(decode(word, REVISIONS[revision])) == word


# The revisions


def test_newest_is_the_default() -> None:
    assert NEWEST is REVISIONS["R6"]
    assert decode(0xFFFF888012345685) == decode(0xFFFF888012345685, NEWEST)


@pytest.mark.parametrize("name", ["R3", "R4", "R5", "R6"])
def test_numbered_revisions_say_something_about_all_sixteen_values(name: str) -> None:
    revision = REVISIONS[name]
    assert [each.value for each in revision.types] == list(range(16))
    for each in revision.types:
        unknown = each.status in (TypeStatus.UNASSIGNED, TypeStatus.NOT_RECOVERED)
        assert not (unknown and each.descriptor), f"{each} guesses a descriptor"
        assert not unknown or each.holds is Holds.NOT_KNOWN


@pytest.mark.parametrize("name", ["R1", "R2"])
def test_early_revisions_have_names_and_no_numbers(name: str) -> None:
    revision = REVISIONS[name]
    assert revision.names
    assert not revision.is_numbered
    with pytest.raises(FormatError, match="no numbers"):
        decode(0, revision)


def test_every_revision_has_a_date_as_far_as_known_and_a_source() -> None:
    assert list(REVISIONS) == ["R1", "R2", "R3", "R4", "R5", "R6"]
    assert all(each.date and each.source and each.title for each in REVISIONS.values())


def test_the_same_number_meant_other_things_before() -> None:
    """Slab moved from 4 to 5, page tables from 9 over 7 to 8."""
    assert REVISIONS["R3"].types[4].name == "Slab"
    assert REVISIONS["R4"].types[5].name == "Slab"
    assert REVISIONS["R3"].types[9].descriptor == "struct ptdesc"
    assert REVISIONS["R4"].types[7].descriptor == "struct ptdesc"
    assert REVISIONS["R6"].types[8].descriptor == "struct ptdesc"


def test_lost_labels_are_named_as_lost() -> None:
    lost = [each.value for each in NEWEST.types if each.status is TypeStatus.LABEL_LOST]
    assert lost == [8, 11]
    assert isinstance(decode(0x1008, REVISIONS["R3"]), UndecodedWord)


def test_unassigned_and_unrecovered_values_decode_to_a_reason() -> None:
    newest = decode(0x100E)
    assert isinstance(newest, UndecodedWord)
    assert newest.reason == "type 14 is unassigned in R6"
    path = decode(0x1009, REVISIONS["R5"])
    assert isinstance(path, UndecodedWord)
    assert path.reason == "type 9 is not recovered in R5"


@pytest.mark.parametrize("low_bits", [0x0, 0x4, 0x8, 0xC])
def test_r5_reads_any_list_pointer_as_buddy(low_bits: int) -> None:
    """In R5 the word lies over a list pointer that is only 4-byte aligned."""
    pointer = 0xFFFFEA0000001230 | low_bits
    assert decode(pointer, REVISIONS["R5"]) == BuddyListWord(pointer)


def test_r6_embeds_the_buddy_data() -> None:
    assert decode(encode_buddy(0x123)) == BuddyWord(0x123)


def test_misc_fields_of_older_revisions_are_not_guessed() -> None:
    decoded = decode(0x0050000000000020, REVISIONS["R4"])
    assert isinstance(decoded, UndecodedWord)
    assert "R4" in decoded.reason


# The plan's place for each memory type


def test_every_memory_type_has_a_place_or_a_reason() -> None:
    assert set(PLAN_TYPE) == set(MemoryType)
    for kind, place in PLAN_TYPE.items():
        if isinstance(place, NotInPlan):
            assert place.reason, kind
        else:
            assert place.codes, kind
            for code in place.codes:
                assert NEWEST.types[code.kind].holds is not Holds.NOT_KNOWN
                assert (code.subtype is not None) == (code.kind is PlanKind.MISC)
            assert len(place.codes) == 1 or place.condition, f"{kind}: when which?"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (MemoryType.SLAB, "5"),
        (MemoryType.ANON, "3"),
        (MemoryType.FILE, "2"),
        (MemoryType.VMALLOC, "0:3 or 11"),
        (MemoryType.LARGE_KMALLOC, "0:6 or 11"),
        (MemoryType.NET_POOL, "6"),
        (MemoryType.ZSMALLOC, "12"),
        (MemoryType.DRIVER, "0:2"),
        (MemoryType.FREE_PCP, "not decided"),
        (MemoryType.FS_DAX, "not placed"),
        (MemoryType.UNACCEPTED, "none given"),
    ],
)
def test_places_in_the_newest_revision(kind: MemoryType, text: str) -> None:
    assert str(PLAN_TYPE[kind]) == text


def test_no_revision_places_device_memory() -> None:
    for kind in (MemoryType.DEVICE_PRIVATE, MemoryType.DEVICE_DAX, MemoryType.PCI_P2PDMA):
        place = PLAN_TYPE[kind]
        assert isinstance(place, NotInPlan)
        assert place.why is WhyNotInPlan.NOT_PLACED


def test_what_we_concluded_is_marked() -> None:
    hugetlb = PLAN_TYPE[MemoryType.HUGETLB]
    assert isinstance(hugetlb, InPlan)
    assert hugetlb.derived
    assert hugetlb.codes == (PlanCode(PlanKind.FILE), PlanCode(PlanKind.ANON))


def test_debian_widths() -> None:
    assert (DEBIAN_AMD64.total, DEBIAN_AMD64.lowest_bit) == (13, 51)

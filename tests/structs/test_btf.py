"""BTF, the type information that a kernel carries: one small section, and a real kernel's."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_btf import BtfWriter, small_kernel

from memdesc.errors import FormatError, NotReadableError
from memdesc.kernels.type_info import Kind, place_of
from memdesc.structs.btf import LIVE_BTF, BtfTypes
from memdesc.structs.btf_records import BtfKind, RawVariable

SMALL = small_kernel().data()


@pytest.fixture
def types() -> BtfTypes:
    return BtfTypes(SMALL, "a small kernel")


@pytest.fixture(scope="module")
def live() -> BtfTypes:
    if not LIVE_BTF.exists():
        pytest.skip(f"{LIVE_BTF} is missing: this kernel was built without CONFIG_DEBUG_INFO_BTF")
    return BtfTypes.open()


def test_members_of_anonymous_structs_and_unions_count_as_the_outer_ones(types: BtfTypes) -> None:
    page = types.find_struct("page")
    assert page is not None
    assert page.size_bytes == 64
    assert {name: member.offset for name, member in page.members.items()} == {
        "flags": 0,
        "lru": 8,
        "buddy_list": 8,
        "mapping": 24,
        "index": 32,
        "compound_head": 8,
        "_mapcount": 40,
        "_refcount": 52,
    }


def test_typedefs_qualifiers_and_tags_are_resolved(types: BtfTypes) -> None:
    page = types.find_struct("page")
    assert page is not None
    flags, mapping, refcount = (page.members[n].type for n in ("flags", "mapping", "_refcount"))
    assert (flags.kind, flags.name, flags.size_bytes) == (Kind.INT, "long unsigned int", 8)
    assert (mapping.kind, mapping.name) == (Kind.POINTER, "address_space")
    # A struct without a tag goes by its typedef, and is found by it.
    assert (refcount.kind, refcount.name) == (Kind.STRUCT, "atomic_t")
    assert types.find_struct("atomic_t") == types.struct_of(refcount)
    counter = place_of(types, "page", "_refcount.counter")
    assert counter is not None
    assert (counter.offset, counter.type.is_signed) == (52, True)


def test_arrays_of_arrays_have_places(types: BtfTypes) -> None:
    member = place_of(types, "zone", "free[1][2].prev")
    assert member is not None
    assert member.offset == (1 * 3 + 2) * 16 + 8
    assert place_of(types, "zone", "free[2][0]") is None
    zone = types.find_struct("zone")
    assert zone is not None
    free = zone.members["free"].type
    assert (free.nr_elements, free.size_bytes, types.struct_of(free).name) == (2, 96, "list_head")


def test_bit_fields_in_both_encodings(types: BtfTypes) -> None:
    places = {
        path: (member.offset_bits, member.size_bits)
        for struct_name, path in [
            ("slab", "inuse"),
            ("slab", "objects"),
            ("slab", "frozen"),
            ("old_bits", "low"),
            ("old_bits", "high"),
        ]
        if (member := place_of(types, struct_name, path))
    }
    assert places == {
        "inuse": (0, 16),
        "objects": (16, 15),
        "frozen": (31, 1),
        "low": (0, 3),
        "high": (3, 3),
    }
    slab = types.find_struct("slab")
    assert slab is not None
    with pytest.raises(FormatError, match="frozen is a bit field"):
        _ = slab.members["frozen"].offset


def test_a_declaration_leads_to_the_complete_struct(types: BtfTypes) -> None:
    complete = types.find_struct("address_space")
    assert complete is not None
    assert complete.size_bytes == 16
    assert types.find_struct("node") is None, "declared, and nowhere complete"


def test_of_two_structs_of_one_tag_the_first_counts_and_both_are_there(types: BtfTypes) -> None:
    both = types.find_structs("twice")
    assert [found.size_bytes for found in both] == [8, 16]
    assert types.find_struct("twice") == both[0]


def test_enumerators(types: BtfTypes) -> None:
    names = ("PG_lru", "ZONE_NORMAL", "E_AGAIN", "W_TOP", "PG_missing")
    assert [types.find_enumerator(name) for name in names] == [5, 2, -11, 1 << 63, None]
    assert types.find_enum("zone_type") == {"ZONE_DMA": 0, "ZONE_NORMAL": 2}
    assert types.find_enum("page") is None


def test_functions_and_variables_do_not_get_in_the_way(types: BtfTypes) -> None:
    runqueues = types.find_variable("runqueues")
    assert runqueues is not None
    assert runqueues.name == "list_head"
    assert types.find_variable("free_page") is None, "a function"
    assert types.find_struct("free_page") is None
    records = types.records
    (section,) = records.all_of(BtfKind.DATASEC)
    (variable,) = records.variables(section)
    assert variable == RawVariable("runqueues", variable.type_id, 0, 16)
    assert types.origin == "a small kernel"


def test_a_module_continues_the_numbers_and_names_of_its_kernel(types: BtfTypes) -> None:
    kernel = small_kernel()
    module = BtfWriter(
        first=types.records.nr_types + 1, names=bytearray(), names_before=len(kernel.names)
    )
    list_head = types.records.types_named("list_head")[0]
    module.struct("ext4_group", 24, ("list", list_head, 0), ("count", 1, 128))
    split = BtfTypes(module.data(), "ext4", base=types)
    member = place_of(split, "ext4_group", "list.prev")
    assert member is not None
    assert member.offset == 8
    assert split.find_struct("page") == types.find_struct("page")
    assert types.find_struct("ext4_group") is None


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: b"", "not a little-endian"),
        (lambda d: b"\xeb\x9f" + d[2:], "not a little-endian"),
        (lambda d: d[:2] + b"\x02" + d[3:], "version 2"),
        (lambda d: d[:-1], "outside the data"),
        (lambda d: d[:4] + b"\x08" + d[5:], "outside the data"),
        (lambda d: d[: 24 + 4] + struct.pack("<I", 31 << 24) + d[32:], "unknown kind"),
        (lambda d: d[:24] + b"\xff\xff\xff\x7f" + d[28:], "name lies outside"),
    ],
    ids=["empty", "big endian", "version", "cut", "header", "kind", "name"],
)
def test_what_is_no_btf_is_refused_in_one_sentence(damage, says) -> None:
    with pytest.raises(FormatError, match=says):
        BtfTypes(damage(SMALL))


def _typedef_of_itself(btf: BtfWriter) -> int:
    return btf.typedef("loop", 1)


def _array_of_itself(btf: BtfWriter) -> int:
    return btf.array(1, 2)


def _struct_in_itself(btf: BtfWriter) -> int:
    return btf.struct("", 8, ("", 1, 0))


def _struct_in_itself_twice(btf: BtfWriter) -> int:
    # Two ways at each of 32 levels: it must not take 2**32 steps to say so.
    return btf.struct("", 8, ("", 1, 0), ("", 1, 0))


def _huge_array(btf: BtfWriter) -> int:
    return btf.array(btf.array(btf.integer("char", 1), 1 << 31), 1 << 31)


def _no_such_type(btf: BtfWriter) -> int:
    return btf.typedef("nowhere", 999)


def _function(btf: BtfWriter) -> int:
    return btf.function("callee", 1)


@pytest.mark.parametrize(
    "kind_of",
    [
        _typedef_of_itself,
        _array_of_itself,
        _struct_in_itself,
        _struct_in_itself_twice,
        _huge_array,
        _no_such_type,
        _function,
    ],
)
def test_cycles_and_wild_numbers_end_in_an_error(kind_of: Callable[[BtfWriter], int]) -> None:
    btf = BtfWriter()
    kind = kind_of(btf)
    name = "" if "struct" in kind_of.__name__ else "member"
    btf.struct("bad", 8, (name, kind, 0))
    types = BtfTypes(btf.data())
    with pytest.raises(FormatError, match="damaged"):
        types.find_struct("bad")


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_damaged_section_is_an_error_or_an_answer_never_more(data: st.DataObject) -> None:
    raw = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(len(raw) - 40, len(raw)))]
    try:
        types = BtfTypes(bytes(raw))
    except FormatError:
        return
    for name in ("page", "zone", "slab", "old_bits", "tree", "atomic_t", "address_space"):
        try:
            found = types.find_struct(name)
            for member in found.members.values() if found else ():
                if member.type.kind in (Kind.STRUCT, Kind.UNION, Kind.ARRAY):
                    types.struct_of(member.type)
        except FormatError:
            pass
    for ask in (types.find_enumerator, types.find_enum, types.find_variable):
        try:
            ask("zone_type")
        except FormatError:
            pass


def test_a_missing_file_says_what_kernel_has_one(tmp_path: Path) -> None:
    with pytest.raises(NotReadableError) as caught:
        BtfTypes.open(tmp_path / "vmlinux")
    assert "CONFIG_DEBUG_INFO_BTF" in caught.value.hint


def test_this_machines_kernel_describes_its_struct_page(live: BtfTypes) -> None:
    offsets = {
        path: member.offset
        for path in ("lru", "mapping", "private", "_mapcount", "_refcount")
        if (member := place_of(live, "page", path))
    }
    # The same in every kernel that was read, 5.15 to 7.3 (include/linux/mm_types.h).
    assert offsets == {"lru": 8, "mapping": 24, "private": 40, "_mapcount": 48, "_refcount": 52}
    assert live.find_enumerator("PG_locked") == 0
    assert live.find_enumerator("MIGRATE_MOVABLE") == 1
    zones = live.find_enum("zone_type")
    assert zones is not None
    assert list(zones)[-1] == "__MAX_NR_ZONES"
    runqueues = live.find_variable("runqueues")
    assert runqueues is not None
    assert runqueues.name == "rq"


def test_every_struct_of_this_machines_kernel_can_be_decoded(live: BtfTypes) -> None:
    records = live.records
    for name in {records.name(i) for i in records.all_of(BtfKind.STRUCT, BtfKind.UNION)} - {""}:
        for found in live.find_structs(name):
            for member in found.members.values():
                # A flexible array may begin at the end; nothing lies beyond it.
                assert member.offset_bits + member.size_bits <= found.size_bytes * 8, (name, member)

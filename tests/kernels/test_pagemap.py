"""Entries of /proc/PID/pagemap and the PAGEMAP_SCAN ioctl."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.errors import FormatError
from memdesc.fact import NotVisible
from memdesc.kernels.pagemap import (
    PAGEMAP_SCAN,
    PM,
    DeviceEntry,
    Empty,
    EntryKind,
    Hidden,
    Hwpoison,
    Marker,
    Migration,
    PageCategory,
    PagemapEntry,
    PageRegion,
    Present,
    ScanArg,
    SpecialEntry,
    SwapConfig,
    SwapSlot,
    decode_entry,
    matches,
    swap_meanings,
)
from memdesc.kernels.release import UNKNOWN_RELEASE, KernelRelease
from memdesc.types import Pfn

EVERYTHING = SwapConfig()
DEBIAN_OLD = SwapConfig(device_private=False)
"""Debian 6.1 and 6.12 are built without device-private memory."""

RELEASES = st.sampled_from(["5.15", "6.1", "6.6", "6.12", "6.18", "7.2", "7.3", "7.9"])
CONFIGS = st.none() | st.builds(SwapConfig, st.booleans(), st.booleans(), st.booleans())


def entry(raw: int, release: str = "7.2", config: SwapConfig | None = EVERYTHING) -> PagemapEntry:
    return decode_entry(raw, KernelRelease.parse(release), config)


def swap(swap_type: int, offset: int) -> int:
    return PM.SWAP.value | offset << 5 | swap_type


# Present pages


def test_nothing_there() -> None:
    assert decode_entry(0).target == Empty()
    assert decode_entry(PM.SOFT_DIRTY.value).target == Empty()
    assert decode_entry(PM.SOFT_DIRTY.value).soft_dirty


def test_a_private_anonymous_page() -> None:
    found = decode_entry((PM.PRESENT | PM.EXCLUSIVE).value | 0x1234)
    assert found.target == Present(Pfn(0x1234), exclusive=True, file=False)
    assert found.kind is EntryKind.PRESENT


def test_a_shared_file_page() -> None:
    found = decode_entry((PM.PRESENT | PM.FILE | PM.SOFT_DIRTY).value | 0x99)
    assert found.target == Present(Pfn(0x99), exclusive=False, file=True)
    assert found.soft_dirty


def test_without_privilege_the_frame_is_not_visible_and_not_zero() -> None:
    found = decode_entry((PM.PRESENT | PM.EXCLUSIVE).value)
    assert isinstance(found.target, Present)
    assert isinstance(found.target.pfn, NotVisible)
    assert "CAP_SYS_ADMIN" in found.target.pfn.reason
    assert found.target.exclusive


def test_without_privilege_the_kind_of_a_swap_entry_is_not_visible() -> None:
    assert isinstance(decode_entry(PM.SWAP.value).target, Hidden)


# Entries that are not present


def test_the_guard_entry_seen_on_a_guest() -> None:
    """Bits 62 and 58, type 31, offset 4: seen on 6.18, and readable without the release."""
    for release in ("6.18.44", "7.2.13"):
        assert entry(0x440000000000009F, release).target == Marker(False, False, guard=True)
    assert decode_entry(0x440000000000009F).kind is EntryKind.MARKER


def test_a_guard_is_visible_without_privilege() -> None:
    assert decode_entry((PM.SWAP | PM.GUARD).value).target == Marker(False, False, guard=True)


@pytest.mark.parametrize(
    ("release", "config", "swap_type"),
    [("6.1.192", DEBIAN_OLD, 26), ("6.12.117", DEBIAN_OLD, 27), ("7.2.13", EVERYTHING, 24)],
)
def test_hwpoison_numbers_seen_on_debian(release: str, config: SwapConfig, swap_type: int) -> None:
    """Three kernels, three numbers, one meaning: the frame that was lost."""
    assert entry(swap(swap_type, 0x8765), release, config).target == Hwpoison(Pfn(0x8765))


@pytest.mark.parametrize(
    ("release", "areas", "hwpoison", "migration", "private", "exclusive", "marker"),
    [
        ("6.1", 22, 22, (23, 24, 25), (26, 27), (28, 29), 30),
        ("6.12", 23, 23, (24, 25, 26), (27, 28), (29, 30), 31),
        ("7.2", 24, 24, (25, 26, 27), (28, 29), (30,), 31),
    ],
)
def test_numbers_with_every_option_on(
    release: str,
    areas: int,
    hwpoison: int,
    migration: tuple[int, ...],
    private: tuple[int, ...],
    exclusive: tuple[int, ...],
    marker: int,
) -> None:
    def kinds(numbers: tuple[int, ...]) -> set[EntryKind]:
        return {entry(swap(number, 64), release).kind for number in numbers}

    assert kinds(tuple(range(areas))) == {EntryKind.SWAP}
    assert kinds((hwpoison,)) == {EntryKind.HWPOISON}
    assert kinds(migration) == {EntryKind.MIGRATION}
    assert kinds(private) == {EntryKind.DEVICE_PRIVATE}
    assert kinds(exclusive) == {EntryKind.DEVICE_EXCLUSIVE}
    assert kinds((marker,)) == {EntryKind.MARKER}


def test_access_is_told_for_migration_and_device_entries() -> None:
    accesses = [entry(swap(number, 9)).target for number in (25, 26, 27)]
    assert accesses == [
        Migration(Pfn(9), "read"),
        Migration(Pfn(9), "read-exclusive"),
        Migration(Pfn(9), "write"),
    ]
    assert entry(swap(26, 9), "6.1").target == DeviceEntry(Pfn(9), exclusive=False, access="write")
    assert entry(swap(28, 9), "6.1").target == DeviceEntry(Pfn(9), exclusive=True, access="write")
    assert entry(swap(30, 9), "7.2").target == DeviceEntry(Pfn(9), exclusive=True, access="")


def test_the_swapin_error_of_6_1_is_named() -> None:
    assert entry(swap(31, 1), "6.1").kind is EntryKind.SWAPIN_ERROR


@pytest.mark.parametrize(
    ("offset", "marker"),
    [(1, Marker(True, False, False)), (2, Marker(False, True, False))],
)
def test_markers(offset: int, marker: Marker) -> None:
    assert entry(swap(31, offset)).target == marker


def test_options_that_are_off_leave_their_numbers_to_swap() -> None:
    nothing = SwapConfig(memory_failure=False, migration=False, device_private=False)
    assert entry(swap(30, 7), "7.2", nothing).target == SwapSlot(30, 7)
    assert entry(swap(31, 4), "7.2", nothing).kind is EntryKind.MARKER


def test_a_real_swap_slot_needs_no_knowledge_of_the_kernel() -> None:
    assert decode_entry(swap(0, 1)).target == SwapSlot(0, 1)
    assert decode_entry(swap(3, 12345), UNKNOWN_RELEASE, None).target == SwapSlot(3, 12345)


def test_an_ambiguous_number_keeps_every_candidate() -> None:
    """Between 6.12 and 7.2 the numbers moved: 24 was migration and became hwpoison."""
    found = entry(swap(24, 5), "6.18.44", EVERYTHING)
    assert isinstance(found.target, SpecialEntry)
    kinds = {meaning.kind for meaning in found.target.candidates}
    assert kinds == {EntryKind.MIGRATION, EntryKind.HWPOISON}
    assert found.kind is EntryKind.SPECIAL


def test_unknown_options_widen_the_candidates() -> None:
    known = swap_meanings(27, KernelRelease.parse("6.12.117"), DEBIAN_OLD)
    assert [meaning.kind for meaning in known] == [EntryKind.HWPOISON]
    unknown = swap_meanings(27, KernelRelease.parse("6.12.117"), None)
    assert {EntryKind.HWPOISON, EntryKind.SWAP, EntryKind.DEVICE_PRIVATE} <= {
        meaning.kind for meaning in unknown
    }


@given(st.integers(0, 31), RELEASES, CONFIGS)
def test_knowing_more_never_adds_a_candidate(
    swap_type: int, release: str, config: SwapConfig | None
) -> None:
    parsed = KernelRelease.parse(release)
    widest = set(swap_meanings(swap_type))
    assert set(swap_meanings(swap_type, parsed, config)) <= widest
    assert set(swap_meanings(swap_type, parsed, config)) <= set(swap_meanings(swap_type, parsed))


@given(st.integers(0, (1 << 64) - 1), RELEASES, CONFIGS)
def test_every_entry_decodes(raw: int, release: str, config: SwapConfig | None) -> None:
    found = decode_entry(raw, KernelRelease.parse(release), config)
    assert found.raw == raw
    assert isinstance(found.kind, EntryKind)
    assert (found.kind is EntryKind.PRESENT) == bool(raw >> 63)
    if isinstance(found.target, SwapSlot):
        assert type(found.target.area) is int
        assert type(found.target.offset) is int


@pytest.mark.parametrize("raw", [-1, 1 << 64])
def test_only_64_bit_entries(raw: int) -> None:
    with pytest.raises(FormatError):
        decode_entry(raw)


def test_only_five_bits_of_swap_type() -> None:
    with pytest.raises(FormatError):
        swap_meanings(32)


# PAGEMAP_SCAN


def test_the_request_number_follows_from_its_parts() -> None:
    """_IOWR: direction 3, size of the argument, letter 'f', number 16."""
    assert ScanArg.SIZE_BYTES == 96
    assert 3 << 30 | ScanArg.SIZE_BYTES << 16 | ord("f") << 8 | 16 == PAGEMAP_SCAN


def test_scan_argument_round_trip() -> None:
    argument = ScanArg(
        start=0x1000,
        end=0x9000,
        vec=0x7F00,
        vec_len=4,
        category_mask=PageCategory.PRESENT.value,
        return_mask=(PageCategory.PRESENT | PageCategory.FILE).value,
    )
    packed = argument.pack()
    assert int.from_bytes(packed[:8], "little") == 96
    assert ScanArg.unpack(packed) == argument


def test_scan_argument_of_a_wrong_size() -> None:
    with pytest.raises(FormatError):
        ScanArg.unpack(b"\0" * 95)
    with pytest.raises(FormatError):
        ScanArg.unpack(b"\0" * 96)


def test_regions_are_read_in_order_and_only_as_many_as_there_are() -> None:
    data = b"".join(
        number.to_bytes(8, "little") for number in (0x1000, 0x3000, 8, 0x5000, 0x6000, 0x100)
    )
    buffer = data + b"\0" * 24
    assert PageRegion.SIZE_BYTES == 24
    assert PageRegion.unpack_all(buffer, 2) == [
        PageRegion(0x1000, 0x3000, PageCategory.PRESENT),
        PageRegion(0x5000, 0x6000, PageCategory.GUARD),
    ]
    with pytest.raises(FormatError):
        PageRegion.unpack_all(data, 3)


def test_what_a_scan_selects() -> None:
    present, file, swapped = PageCategory.PRESENT, PageCategory.FILE, PageCategory.SWAPPED
    assert matches(present, mask=present)
    assert not matches(swapped, mask=present)
    assert matches(present, inverted=file, mask=present | file), "present and not file"
    assert not matches(present | file, inverted=file, mask=present | file)
    assert matches(swapped, anyof=present | swapped)
    assert not matches(0, anyof=present | swapped)

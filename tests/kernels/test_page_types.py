"""Page types: the word at offset 48 of struct page, kernel by kernel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.errors import FormatError, QuestionError
from memdesc.kernels.page_types import (
    MEMORY_TYPES_OF,
    NO_TYPE,
    ActiveLowTypes,
    MapcountWord,
    NoTypeWord,
    PageType,
    ReservedWord,
    TopByteTypes,
    TypedWord,
    page_types,
)
from memdesc.kernels.release import UNKNOWN_RELEASE, KernelRelease
from memdesc.types import Certainty, MemoryType

KNOWN = ["5.10.223", "5.15", "6.1.192", "6.12.117", "6.18.44", "7.2.13", "7.3.4"]


def known(release: str) -> ActiveLowTypes | TopByteTypes:
    return page_types(KernelRelease.parse(release))


@pytest.mark.parametrize(
    ("release", "page_type", "word"),
    [
        ("5.10.223", PageType.BUDDY, 0xFFFFFF7F),
        ("6.1.192", PageType.BUDDY, 0xFFFFFF7F),
        ("6.1.192", PageType.OFFLINE, 0xFFFFFEFF),
        ("6.1.192", PageType.TABLE, 0xFFFFFDFF),
        ("6.1.192", PageType.GUARD, 0xFFFFFBFF),
        ("5.10.223", PageType.TABLE, 0xFFFFFBFF),
        ("6.12.117", PageType.BUDDY, 0xF0000000),
        ("6.12.117", PageType.SLAB, 0xF5000000),
        ("7.2.13", PageType.HUGETLB, 0xF4000000),
        ("7.2.13", PageType.LARGE_KMALLOC, 0xF8000000),
    ],
)
def test_words_of_types(release: str, page_type: PageType, word: int) -> None:
    table = known(release)
    assert table.encode(page_type) == word
    assert table.decode(word) == TypedWord(page_type)


@pytest.mark.parametrize("release", KNOWN)
def test_no_type_and_map_counts_are_the_same_everywhere(release: str) -> None:
    """The field holds the map count minus one, so that "no mapping" is all ones."""
    table = known(release)
    assert table.decode(NO_TYPE) == NoTypeWord()
    assert table.decode(0) == MapcountWord(1)
    assert table.decode(6) == MapcountWord(7)


@pytest.mark.parametrize("release", KNOWN)
def test_every_type_of_a_release_survives_the_round_trip(release: str) -> None:
    table = known(release)
    words = table.flags if isinstance(table, ActiveLowTypes) else table.codes
    for page_type in words:
        assert table.decode(table.encode(page_type)) == TypedWord(page_type)


@given(st.integers(0, 0xFFFFFFFF), st.sampled_from(KNOWN))
def test_every_word_decodes_to_one_meaning(word: int, release: str) -> None:
    decoded = known(release).decode(word)
    if isinstance(decoded, MapcountWord):
        assert 1 <= decoded.mapcount <= 0x80000000
    elif isinstance(decoded, ReservedWord):
        assert decoded.raw == word


def test_zsmalloc_keeps_the_offset_of_its_first_object_below_the_type() -> None:
    table = known("7.2.13")
    assert table.decode(0xF6000ABC) == TypedWord(PageType.ZSMALLOC, 0xABC)
    assert isinstance(table, TopByteTypes)
    assert table.encode(PageType.ZSMALLOC, 0xABC) == 0xF6000ABC


def test_overflowed_map_counts_are_not_taken_for_types() -> None:
    table = known("7.2.13")
    assert table.decode(0x80000000) == ReservedWord(0x80000000)
    assert table.decode(0xEFFFFFFF) == ReservedWord(0xEFFFFFFF)
    assert table.decode(0xF9000000) == ReservedWord(0xF9000000)


def test_types_that_a_kernel_does_not_have_yet() -> None:
    with pytest.raises(QuestionError, match="slab"):
        known("6.1").encode(PageType.SLAB)
    with pytest.raises(QuestionError, match="large_kmalloc"):
        known("6.12").encode(PageType.LARGE_KMALLOC)
    assert known("6.12").decode(0xF8000000) == ReservedWord(0xF8000000)


@pytest.mark.parametrize("release", ["5.4", "5.12", "6.2", "6.6", "6.11", "7.4", "9.0"])
def test_releases_that_were_not_read_are_refused(release: str) -> None:
    with pytest.raises(QuestionError, match=release) as refused:
        known(release)
    assert "debug information" in refused.value.hint


def test_no_release_is_refused_too() -> None:
    with pytest.raises(QuestionError, match="unknown"):
        page_types(UNKNOWN_RELEASE)


def test_certainty_says_which_releases_were_read() -> None:
    assert known("6.12").certainty is Certainty.EXACT
    assert known("6.13").certainty is Certainty.INFERRED
    assert known("5.15").certainty is Certainty.INFERRED


def test_every_page_type_stands_for_memory_types() -> None:
    assert set(MEMORY_TYPES_OF) == set(PageType)
    assert MEMORY_TYPES_OF[PageType.TABLE].only is MemoryType.PAGE_TABLE
    assert not MEMORY_TYPES_OF[PageType.OFFLINE].is_certain


@pytest.mark.parametrize("word", [-1, 1 << 32])
def test_only_32_bit_words(word: int) -> None:
    with pytest.raises(FormatError):
        known("7.2").decode(word)

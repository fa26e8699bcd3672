"""The words that a kernel would show, with its quirks, from the state of a struct page."""

from __future__ import annotations

import pytest
from struct_worlds import RELEASES, DictTypes

from memdesc.kernels.kpageflags import word_of
from memdesc.kernels.layout import MappingKind, PageLayout
from memdesc.kernels.page_state import (
    SIG_DEVICE,
    SIG_HAS_MAPPING,
    SIG_HOLE,
    SIG_HUGE_ZERO,
    SIG_IN_FREE_BLOCK,
    SIG_KNOWN,
    SIG_MAPPED,
    SIG_MAPPING_SHIFT,
    SIG_REFCOUNT_0,
    SIG_RMAPPABLE,
    SIG_TAIL,
    SIG_TYPE_SHIFT,
    SIG_UNREADABLE,
    PageState,
    TypeCode,
)
from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.kernels.stable_flags import StableFlags

SERIES = list(RELEASES)
ANON = SIG_HAS_MAPPING | MappingKind.ANON << SIG_MAPPING_SHIFT
KSM = SIG_HAS_MAPPING | MappingKind.KSM << SIG_MAPPING_SHIFT


def shown(series: str, bits: int, *flags: str, own: tuple[str, ...] | None = None) -> set[str]:
    """Names in the word of a frame with these flags and signature bits."""
    layout = PageLayout.probe(DictTypes.of(series))
    stable = StableFlags(layout, behaviour_of(KernelRelease.parse(RELEASES[series])))
    signature = SIG_KNOWN | bits | sum(layout.flag(flag) for flag in flags)
    own_word = None if own is None else sum(layout.flag(flag) for flag in own)
    word = stable.word(PageState.unpack(signature), own_word)
    names = "LOCKED ERROR REFERENCED UPTODATE DIRTY LRU ACTIVE SLAB WRITEBACK RECLAIM BUDDY MMAP"
    names += " ANON SWAPCACHE SWAPBACKED COMPOUND_HEAD COMPOUND_TAIL HUGE UNEVICTABLE HWPOISON"
    names += " NOPAGE KSM THP OFFLINE ZERO_PAGE IDLE PGTABLE RESERVED MLOCKED OWNER_2 PRIVATE"
    return {name for name in names.split() if word & word_of([name])}


def typed(code: TypeCode) -> int:
    return code << SIG_TYPE_SHIFT


@pytest.mark.parametrize("series", SERIES)
def test_flags_are_copied_by_name_whatever_their_number(series: str) -> None:
    assert shown(series, SIG_MAPPED, "uptodate", "dirty", "lru", "private") == {
        "UPTODATE", "DIRTY", "LRU", "PRIVATE", "MMAP",
    }  # fmt: skip


@pytest.mark.parametrize("series", SERIES)
def test_ksm_shows_on_every_anonymous_page_where_the_kernel_has_that_bug(series: str) -> None:
    anon = shown(series, ANON | SIG_MAPPED, "swapbacked")
    assert anon == {"ANON", "MMAP", "SWAPBACKED"} | ({"KSM"} if series == "6.12" else set())
    assert "KSM" in shown(series, KSM, "swapbacked")


@pytest.mark.parametrize("series", SERIES)
def test_swapcache_needs_both_bits_for_owner_priv_has_other_meanings(series: str) -> None:
    assert "SWAPCACHE" in shown(series, ANON, "swapbacked", "owner_priv_1")
    assert "SWAPCACHE" not in shown(series, 0, "owner_priv_1")


@pytest.mark.parametrize("series", SERIES)
def test_every_frame_of_a_free_block_is_buddy_but_not_one_in_use(series: str) -> None:
    assert shown(series, typed(TypeCode.BUDDY) | SIG_REFCOUNT_0) == {"BUDDY"}
    assert shown(series, SIG_IN_FREE_BLOCK | SIG_REFCOUNT_0) == {"BUDDY"}
    assert shown(series, SIG_IN_FREE_BLOCK) == set()


def test_a_tail_of_6_1_shows_its_own_flags_and_what_its_head_is() -> None:
    tail = shown("6.1", ANON | SIG_MAPPED | SIG_TAIL, "lru", "head", "uptodate", own=("dirty",))
    assert tail == {"DIRTY", "MMAP", "ANON", "COMPOUND_TAIL", "THP"}
    slab = shown("6.1", SIG_TAIL, "slab", "head", own=())
    assert slab == {"SLAB", "COMPOUND_TAIL"}


def test_a_tail_from_6_12_on_repeats_its_head() -> None:
    tail = shown("6.12", ANON | SIG_TAIL | SIG_RMAPPABLE, "lru", "head", "uptodate")
    assert tail == {"UPTODATE", "LRU", "ANON", "KSM", "COMPOUND_TAIL", "THP"}


def test_page_tables_and_balloons_mark_their_tails_only_in_new_kernels() -> None:
    for code, name in ((TypeCode.TABLE, "PGTABLE"), (TypeCode.OFFLINE, "OFFLINE")):
        assert name not in shown("6.12", typed(code) | SIG_TAIL, "head")
        assert name in shown("7.2", typed(code) | SIG_TAIL, "head")
        assert name in shown("6.12", typed(code))


def test_slab_of_6_12_shows_anon_where_its_counter_is_odd() -> None:
    # The counter of partial slabs lies where `mapping` is, and is no address.
    odd = MappingKind.ANON << SIG_MAPPING_SHIFT
    assert shown("6.12", typed(TypeCode.SLAB) | odd) == {"SLAB", "ANON", "KSM"}


def test_slab_of_6_1_is_a_flag_and_never_mapped() -> None:
    assert shown("6.1", SIG_MAPPED, "slab") == {"SLAB"}


@pytest.mark.parametrize("series", SERIES)
def test_huge_zero_is_no_thp_by_its_mark_and_shows_as_one(series: str) -> None:
    assert {"ZERO_PAGE", "THP"} <= shown(series, SIG_HUGE_ZERO, "head")


@pytest.mark.parametrize(("series", "word"), [("6.12", {"NOPAGE"}), ("7.2", set())])
def test_holes_and_device_memory_lost_their_mark(series: str, word: set[str]) -> None:
    assert shown(series, SIG_HOLE) == word
    assert shown(series, SIG_DEVICE) == word
    assert shown(series, SIG_UNREADABLE) == set()

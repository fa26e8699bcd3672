"""Every version trap of the page flags, one named test each, and the order of the rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.kernels.kpageflags import KPF, word_of
from memdesc.kernels.release import UNKNOWN_RELEASE, KernelRelease, behaviour_of
from memdesc.rules.classify import Backing, Context, Verdict, classify, former_type
from memdesc.types import DEVICE, KERNEL_UNKNOWN, NOT_BACKED, Certainty, MemoryType, TypeSet

T = MemoryType
RELEASES = ["6.1.192", "6.12.117", "6.18.44", "7.2.13"]


def context(release: str, *, absent: int = 0, ksm: bool | None = None) -> Context:
    known = KernelRelease.parse(release) if release else UNKNOWN_RELEASE
    return Context(behaviour_of(known), absent, ksm)


def named(
    release: str,
    *flags: str,
    backing: Backing = Backing.RAM,
    head: tuple[str, ...] | None = None,
    ksm: bool | None = None,
) -> Verdict:
    return classify(
        word_of(flags),
        context(release, ksm=ksm),
        backing=backing,
        head_flags=None if head is None else word_of(head),
    )


# --- what real kernels showed (x86-64; the words of the type reference) -------------------

SEEN = {
    0x400: T.FREE,
    0x408: T.FREE,
    0x80: T.SLAB,
    0x8080: T.SLAB,
    0x10080: T.SLAB,
    0x4000000: T.PAGE_TABLE,
    0x4000004: T.PAGE_TABLE,
    0x100000000: T.RESERVED,
    0x101000000: T.ZERO,
    0x100000804: T.RESERVED,
    0x400005828: T.ANON,
    0x40040D828: T.ANON,
    0x400415828: T.ANON,
    0x600045828: T.ANON,
    0x4818: T.SHMEM,
    0x800408838: T.FILE,
    0x400000028: T.FILE,
    0x1408000: T.HUGE_ZERO,
    0x1410000: T.HUGE_ZERO,
}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("word", SEEN, ids=hex)
def test_words_seen_on_real_machines(release: str, word: int) -> None:
    verdict = classify(word, context(release), backing=Backing.RAM)
    assert verdict.types.only is SEEN[word]


# --- the traps ---------------------------------------------------------------------------


def test_ksm_bit_on_every_anonymous_page_of_6_12() -> None:
    shared = ("UPTODATE", "DIRTY", "LRU", "MMAP", "ANON", "SWAPBACKED", "KSM")
    assert named("6.12.117", *shared).types == TypeSet.of(T.ANON, T.KSM)
    # Merging marks a page dirty; a page that is being freed lazily may have lost the mark.
    clean = [name for name in shared if name != "DIRTY"]
    assert named("6.12.117", *clean).types.only is T.ANON
    for lost in ("LRU", "SWAPBACKED"):
        on_its_way = [name for name in clean if name != lost]
        assert named("6.12.117", *on_its_way).types == TypeSet.of(T.ANON, T.KSM)
    assert named("6.12.117", *shared, "OWNER_2").types.only is T.ANON
    assert named("6.12.117", *shared, "THP", "COMPOUND_TAIL").types.only is T.ANON
    assert named("6.12.117", *shared, ksm=False).types.only is T.ANON
    for release in ("6.1.192", "6.18.44", "7.2.13"):
        assert named(release, *shared).types.only is T.KSM
    # The fix came in June 2026, so every kernel between has the bug until its stable update.
    for release in ("6.10", "6.14.3", "6.17", "6.18.2", "7.1"):
        assert named(release, *shared).types == TypeSet.of(T.ANON, T.KSM)


@pytest.mark.parametrize("release", RELEASES)
def test_slab_frames_that_show_anon_and_ksm_are_slab(release: str) -> None:
    assert named(release, "SLAB", "ANON").types.only is T.SLAB
    assert named(release, "SLAB", "ANON", "KSM", "ACTIVE", "LOCKED").types.only is T.SLAB


def test_holes_read_nopage_until_6_12_and_0_later() -> None:
    assert named("6.12.117", "NOPAGE", backing=Backing.HOLE).types.only is T.HOLE
    assert named("6.18.44", backing=Backing.HOLE).types.only is T.HOLE
    # On 6.12 a word of 0 means that there is a struct page.
    assert named("6.12.117", backing=Backing.HOLE).types.only is None
    assert T.HOLE not in named("6.12.117", backing=Backing.UNKNOWN).types
    assert T.HOLE in named("6.18.44", backing=Backing.UNKNOWN).types


def test_device_memory_reads_0_or_nopage() -> None:
    # Raw persistent memory has no struct pages at all, so a hole stays possible.
    assert named("7.2.13", backing=Backing.DEVICE).types == DEVICE | TypeSet.of(T.HOLE)
    assert named("6.1.192", "NOPAGE", backing=Backing.DEVICE).types == DEVICE | TypeSet.of(T.HOLE)
    assert named("6.1.192", "NOPAGE", backing=Backing.UNKNOWN).types == DEVICE | TypeSet.of(T.HOLE)


HEAD = ("UPTODATE", "LRU", "MMAP", "ANON", "SWAPBACKED", "COMPOUND_HEAD", "THP")


def test_tails_show_their_own_flags_until_6_9() -> None:
    tmpfs = ("UPTODATE", "DIRTY", "LRU", "MMAP", "SWAPBACKED", "COMPOUND_HEAD", "THP")
    tail = ("MMAP", "COMPOUND_TAIL", "THP")
    assert named("6.1.192", *tail, head=tmpfs).types.only is T.SHMEM
    assert named("6.1.192", *tail, "ANON", head=HEAD).types.only is T.ANON
    # From 6.10 a tail repeats its head, and the head is not asked.
    assert named("7.2.13", *tmpfs[:-2], "COMPOUND_TAIL", "THP", head=None).types.only is T.SHMEM


@pytest.mark.parametrize("release", ["6.1.192", "6.12.117"])
def test_page_types_on_heads_only_until_6_16(release: str) -> None:
    assert (
        named(release, "COMPOUND_TAIL", head=("PGTABLE", "COMPOUND_HEAD")).types.only
        is T.PAGE_TABLE
    )
    offline = named(release, "COMPOUND_TAIL", head=("OFFLINE", "COMPOUND_HEAD")).types
    assert offline == TypeSet.of(T.BALLOON, T.OFFLINE)


@pytest.mark.parametrize("release", RELEASES)
def test_a_torn_tail_is_judged_alone(release: str) -> None:
    alone = named(release, "COMPOUND_TAIL", head=("UPTODATE", "LRU"))
    assert alone == named(release, "COMPOUND_TAIL")


@pytest.mark.parametrize("release", RELEASES)
def test_pgtable_with_referenced_is_a_page_table(release: str) -> None:
    assert named(release, "PGTABLE", "REFERENCED").types.only is T.PAGE_TABLE


@pytest.mark.parametrize("release", RELEASES)
def test_unmarked_page_tables_stay_in_the_union(release: str) -> None:
    """P4Ds and PGDs until 6.15; on every kernel the tables of a split direct map."""
    assert T.PAGE_TABLE in named(release).types


@pytest.mark.parametrize("release", RELEASES)
def test_buddy_with_uptodate_is_free_and_reported(release: str) -> None:
    assert named(release, "BUDDY", "UPTODATE").types.only is T.FREE


def test_offline_with_uptodate_is_a_movable_balloon_from_6_17() -> None:
    assert named("7.2.13", "OFFLINE", "UPTODATE").types.only is T.BALLOON
    assert named("6.12.117", "OFFLINE", "UPTODATE").types == TypeSet.of(T.BALLOON, T.OFFLINE)
    assert named("7.2.13", "OFFLINE").types == TypeSet.of(T.BALLOON, T.OFFLINE)


@pytest.mark.parametrize("release", RELEASES)
def test_zero_page_and_huge_zero_page(release: str) -> None:
    assert named(release, "ZERO_PAGE", "RESERVED").types.only is T.ZERO
    for mark in ("COMPOUND_HEAD", "COMPOUND_TAIL"):
        assert named(release, "ZERO_PAGE", "THP", mark).types.only is T.HUGE_ZERO


def test_frames_with_no_flag_at_all() -> None:
    plain = named("7.2.13")
    assert plain.types == KERNEL_UNKNOWN
    assert plain.certainty is Certainty.NOT_VISIBLE
    assert plain.types.label == "kernel or per-CPU free, kind not visible"


def test_lazily_initialised_memmap_is_not_kernel_memory() -> None:
    deferred = named("6.18.44", backing=Backing.ZERO_SECTION_RAM)
    assert deferred.types.only is T.DEFERRED
    assert deferred.certainty is Certainty.INFERRED
    # A bare file cannot tell it from a hole.
    assert named("6.18.44", backing=Backing.ZERO_SECTION).types == NOT_BACKED
    # A frame that has been initialised meanwhile is judged by its flags.
    assert named("6.18.44", "BUDDY", backing=Backing.ZERO_SECTION_RAM).types.only is T.FREE


def test_zsmalloc_shows_a_false_mmap_on_6_1() -> None:
    # perf's AUX buffers show the same word.
    assert named("6.1.192", "MMAP", "PRIVATE").types == TypeSet.of(T.ZSMALLOC, T.DRIVER_MAPPED)
    assert T.ZSMALLOC in named("6.1.192", "MMAP").types
    assert T.ZSMALLOC not in named("7.2.13", "MMAP").types
    assert T.ZSMALLOC in named("6.10.1", "MMAP").types
    assert T.ZSMALLOC in named("7.2.13", "UPTODATE", "PRIVATE").types


def test_secretmem_is_named_as_a_possibility() -> None:
    batch = classify(0x200000818, context("7.2.13"))
    on_lru = classify(0x40838, context("7.2.13"))
    assert T.SECRETMEM in batch.types
    assert T.SECRETMEM in on_lru.types
    locked = ("UPTODATE", "LRU", "MMAP", "UNEVICTABLE", "MLOCKED")
    # Seen on 6.18: a secretmem page whose batch was drained shows MLOCKED as well.
    assert named("6.18.44", *locked, "DIRTY").types == TypeSet.of(T.FILE, T.SECRETMEM)
    assert named("7.2.13", *locked, "PRIVATE").types.only is T.FILE


def test_driver_pages_in_user_space() -> None:
    for word in (0x800, 0x804):
        assert T.DRIVER_MAPPED in classify(word, context("7.2.13")).types


RINGS_AFTER_USE = {
    0x14: "io_uring ring, unmapped",
    0x814: "io_uring ring, mapped again; BPF array",
    0x8014: "packet ring, unmapped",
    0x8814: "packet ring, mapped again, head",
    0x10814: "packet ring, mapped again, tail",
}


@pytest.mark.parametrize("word", RINGS_AFTER_USE, ids=hex)
def test_a_ring_that_was_unmapped_once_is_not_taken_for_a_file(word: int) -> None:
    """Seen on 6.18: unmapping leaves DIRTY and REFERENCED on any page that is not anonymous."""
    types = classify(word, context("6.18.44"), backing=Backing.RAM).types
    assert types.only is None
    assert T.DRIVER in types or T.DRIVER_MAPPED in types


@pytest.mark.parametrize("release", RELEASES)
def test_swapbacked_memory_being_filled_may_still_become_anonymous(release: str) -> None:
    assert T.ANON in named(release, "LOCKED", "SWAPBACKED").types
    assert named(release, "UPTODATE", "SWAPBACKED", "LOCKED").types.only is T.SHMEM


def test_a_good_tail_of_a_folio_with_a_poisoned_head_stays_good() -> None:
    head = ("HWPOISON", "COMPOUND_HEAD", "THP", "LRU", "ANON", "SWAPBACKED", "UPTODATE", "MMAP")
    tail = named("6.1.192", "COMPOUND_TAIL", "ANON", "MMAP", "THP", head=head)
    assert tail.types.only is T.ANON


@pytest.mark.parametrize("release", RELEASES)
def test_which_frame_of_a_poisoned_huge_page_is_bad_is_not_visible(release: str) -> None:
    assert named(release, "HUGE", "HWPOISON").types == TypeSet.of(T.HUGETLB, T.POISONED)


def test_poison_wins_and_the_former_type_is_kept() -> None:
    word = word_of(["HWPOISON", "UPTODATE", "ANON", "SWAPBACKED"])
    assert classify(word, context("7.2.13")).types.only is T.POISONED
    assert former_type(word, context("7.2.13")).only is T.ANON


def test_counters_that_prove_a_kind_absent_narrow_the_union() -> None:
    absent = T.ZSMALLOC.bit | T.GUARD.bit
    narrowed = classify(0, context("6.12.117", absent=absent), backing=Backing.RAM).types
    assert T.ZSMALLOC not in narrowed
    assert T.GUARD not in narrowed
    alone = classify(word_of(["UPTODATE"]), context("6.1.192", absent=T.ZSMALLOC.bit))
    assert alone.types.only is T.FILE


# --- for every word ----------------------------------------------------------------------


@given(
    word=st.integers(0, (1 << 64) - 1),
    head=st.none() | st.integers(0, (1 << 64) - 1),
    release=st.sampled_from(["", *RELEASES, "5.15.0", "6.9.1", "9.9.9"]),
    backing=st.sampled_from(Backing),
)
def test_every_word_has_an_answer(
    word: int, head: int | None, release: str, backing: Backing
) -> None:
    verdict = classify(word, context(release), backing=backing, head_flags=head)
    assert len(verdict.types) >= 1
    assert verdict.rule.text
    assert verdict.rule.source


@given(word=st.integers(0, (1 << 43) - 1), backing=st.sampled_from(Backing))
def test_an_unknown_kernel_never_excludes_what_a_known_one_would_say(
    word: int, backing: Backing
) -> None:
    unknown = classify(word, context(""), backing=backing).types
    for release in RELEASES:
        known = classify(word, context(release), backing=backing).types
        assert not known.mask & ~unknown.mask, (hex(word), release, known, unknown)


@given(word=st.integers(0, (1 << 43) - 1))
def test_noise_bits_change_nothing(word: int) -> None:
    noise = (KPF.IDLE | KPF.ARCH | KPF.ARCH_2 | KPF.ARCH_3 | KPF.SOFTDIRTY).value
    for release in RELEASES:
        assert classify(word | noise, context(release)) == classify(word & ~noise, context(release))

"""The kernel's words to letters, on each kernel's own terms."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.pagemap import PM
from memdesc.kernels.release import KernelRelease
from memdesc.scenarios.observation import (
    LETTERS,
    PageState,
    RawPage,
    RawVma,
    Seen,
    letter_of,
    observe,
)
from memdesc.scenarios.places import PAGE, Placement

R61, R612, R72 = (KernelRelease.parse(text) for text in ("6.1.192", "6.12.117", "7.2.13"))
AREA = RawVma(0x1000, 0x9000, "rw-p", 0, "", ("rd", "wr"), {})
PRESENT = PM.PRESENT.value | 0x1234
ANON = KPF.UPTODATE | KPF.LRU | KPF.MMAP | KPF.ANON | KPF.SWAPBACKED
FILE = KPF.UPTODATE | KPF.LRU | KPF.MMAP
HEAD, TAIL = KPF.COMPOUND_HEAD | KPF.THP, KPF.COMPOUND_TAIL | KPF.THP


def letter(flags: int, release: KernelRelease = R72, *, entry: int = PRESENT, **more: bool) -> str:
    return letter_of(RawPage(entry, int(flags), huge=more.get("huge", False)), release, area=AREA)


def test_every_letter_is_one_character_and_has_a_meaning() -> None:
    assert all(len(found) == 1 and meaning for found, meaning in LETTERS.items())


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (ANON | KPF.OWNER_2, "A"),
        (ANON, "a"),
        (ANON | HEAD | KPF.OWNER_2, "L"),
        (ANON | TAIL, "l"),
        (ANON | KPF.SWAPCACHE | KPF.OWNER_PRIVATE, "w"),
        (KPF.ZERO_PAGE, "z"),
        (KPF.ZERO_PAGE | TAIL, "Z"),
        (FILE | KPF.SWAPBACKED, "S"),
        (FILE | KPF.SWAPBACKED | KPF.DIRTY, "T"),
        (KPF.HUGE | KPF.UPTODATE | KPF.ANON | KPF.OWNER_2 | KPF.COMPOUND_HEAD, "U"),
        (KPF.HUGE | KPF.UPTODATE | KPF.ANON | KPF.COMPOUND_HEAD, "u"),
        (KPF.HUGE | KPF.UPTODATE | KPF.COMPOUND_HEAD, "u"),
        (KPF.RESERVED, "k"),
        (0, "k"),
    ],
)
def test_present_pages(flags: int, wanted: str) -> None:
    assert letter(flags) == wanted


def test_files_are_told_by_the_entry() -> None:
    entry = PRESENT | PM.FILE
    assert letter(FILE, entry=entry) == "F"
    assert letter(FILE | KPF.DIRTY, entry=entry) == "D"
    assert letter(FILE) == "k"


def test_a_pmd_makes_the_large_letters() -> None:
    assert letter(ANON | HEAD | KPF.OWNER_2, huge=True) == "H"
    assert letter(ANON | HEAD, huge=True) == "h"


def test_tails_of_6_1_are_judged_by_their_head() -> None:
    head = RawPage(PRESENT, int(ANON | HEAD | KPF.OWNER_2), huge=True)
    tail = RawPage(PRESENT + 1, int(KPF.MMAP | KPF.ANON | TAIL), huge=True)
    assert letter_of(tail, R61, area=AREA, head=head) == "H"
    assert letter_of(tail, R612, area=AREA, head=head) == "h"
    # Mapped by PTEs each page has a mark of its own.
    by_pte = RawPage(PRESENT + 1, tail.flags, huge=False)
    assert letter_of(by_pte, R61, area=AREA, head=head) == "l"
    shmem = RawPage(PRESENT, int(FILE | KPF.SWAPBACKED | KPF.DIRTY | HEAD))
    assert letter_of(RawPage(PRESENT, int(KPF.MMAP | TAIL)), R61, area=AREA, head=shmem) == "T"


def test_absent_pages() -> None:
    assert letter_of(RawPage(0), R72, area=None) == "-"
    assert letter_of(RawPage(PM.SOFT_DIRTY.value), R72, area=AREA) == "."
    pfnmap = RawVma(0, 0x9000, "rw-s", 0, "", ("pf",), {})
    assert letter_of(RawPage(0), R72, area=pfnmap) == "d"
    swapped = PM.SWAP.value | 7 << 5
    assert letter_of(RawPage(swapped), R612, area=AREA) == "s"
    # Numbers that were seen on these builds.
    for release, number in ((R61, 26), (R612, 27), (R72, 24)):
        poisoned = RawPage(PM.SWAP.value | 0x1234 << 5 | number)
        assert letter_of(poisoned, release, area=AREA) == "!", number
    assert letter_of(RawPage(PM.SWAP.value | PM.GUARD.value | 4 << 5), R72, area=AREA) == "g"
    assert letter_of(RawPage(PM.SWAP.value | 31 | 1 << 5), R72, area=AREA) == "m"


def seen(pages: list[RawPage], *, ksm: int = 0, sizes: dict[str, int] | None = None) -> Seen:
    area = RawVma(
        0x1000,
        0x1000 + len(pages) * PAGE,
        "rw-p",
        0,
        "/run/x/file (deleted)",
        ("rd", "sd"),
        {"KSM": ksm, "Rss": 8, "Referenced": 8, **(sizes or {})},
    )
    return Seen({"p": {"buf": pages}}, {"p": [area]}, {})


def look(found: Seen, release: KernelRelease, **more: bool) -> tuple[PageState, ...]:
    placed = {"p": {"buf": Placement(0x1000, len(found.pages["p"]["buf"]))}}
    result = observe(found, placed, release, tags={0: "0", 5: "A"}, **more)
    return result.pages["p"]["buf"]


def test_ksm_on_6_12_is_told_by_smaps_where_it_leaves_no_doubt() -> None:
    every = [RawPage(PRESENT, int(ANON | KPF.KSM))] * 2
    one = RawPage(PRESENT, int(ANON | KPF.KSM | KPF.OWNER_2))
    assert [page.letter for page in look(seen([*every, one], ksm=8), R612)] == ["K", "K", "A"]
    assert [page.letter for page in look(seen([*every, one], ksm=4), R612)] == ["a", "a", "A"]
    assert [page.letter for page in look(seen([*every, one]), R612)] == ["a", "a", "A"]
    assert "KSM" not in look(seen(every), R612)[0].flags
    assert [page.letter for page in look(seen(every), R72)] == ["K", "K"]
    assert "KSM" in look(seen(every), R61)[0].flags


def test_frames_are_numbered_and_contents_named() -> None:
    pages = [
        RawPage(PRESENT | 9, int(ANON | KPF.REFERENCED), 1, 2, 5),
        RawPage(PM.PRESENT.value | 7, int(ANON), 1, 2, 6),
        RawPage(PRESENT | 9, int(ANON), 1, 2, 5, aliased=True),
        RawPage(PM.SWAP.value | 1 << 5),
        RawPage(0),
    ]
    found = look(seen(pages), R72)
    assert [page.frame for page in found] == [0, 1, 0, 2, None]
    poisoned = [RawPage(PM.SWAP.value | 0x1234 << 5 | 24), RawPage(PRESENT, int(ANON))]
    assert [page.frame for page in look(seen(poisoned), R72)] == [0, 0]
    assert [page.content for page in found] == ["A", "?", "?", None, None]
    assert found[0].volatile == ("REFERENCED",)
    assert "REFERENCED" not in found[0].flags


def test_soft_dirty_only_where_it_is_asked_for() -> None:
    pages = [RawPage(PRESENT | PM.SOFT_DIRTY, int(ANON)), RawPage(PRESENT, int(ANON))]
    assert [page.soft_dirty for page in look(seen(pages), R72)] == [None, None]
    assert [page.soft_dirty for page in look(seen(pages), R72, soft_dirty=True)] == [True, False]


def test_areas_are_named_by_where_they_lie() -> None:
    placed = {"p": {"buf": Placement(0x1000, 1), "at": Placement(0x2000, 1)}}
    found = observe(seen([RawPage(0)] * 2), placed, R72, tags={})
    (area,) = found.areas["p"]
    assert (area.name, area.first, area.pages, area.file) == ("buf", 0, 2, "file")
    assert area.flags == ("rd",)
    assert area.sizes == {"KSM": 0, "Rss": 8}
    beside = observe(seen([RawPage(0)]), {"p": {"buf": Placement(0x9000, 1)}}, R72, tags={})
    assert (beside.areas["p"][0].name, beside.areas["p"][0].first) == ("", 1)


def test_a_process_that_ended_is_not_there() -> None:
    placed = {"p": {"buf": Placement(0x1000, 1)}, "q": {"buf": Placement(0x1000, 1)}}
    assert list(observe(seen([RawPage(0)]), placed, R72, tags={}).pages) == ["p"]


def test_accessed_bits_only_where_they_are_asked_for() -> None:
    placed = {"p": {"buf": Placement(0x1000, 1)}}
    found = seen([RawPage(0)])
    (area,) = observe(found, placed, R72, tags={}).areas["p"]
    assert "Referenced" not in area.sizes
    (area,) = observe(found, placed, R72, tags={}, referenced=True).areas["p"]
    assert area.sizes["Referenced"] == 8

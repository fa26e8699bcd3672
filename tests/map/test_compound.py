"""Compound pages, against a walk over single frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import raw_map

from memdesc.kernels.kpageflags import word_of
from memdesc.map.compound import compounds_of

HEAD, TAIL, BUDDY = word_of(["HEAD"]), word_of(["TAIL"]), word_of(["BUDDY"])
SLAB = word_of(["SLAB"])


@dataclass
class Walk:
    """What a walk over frames finds."""

    heads: list[tuple[int, int]] = field(default_factory=list)
    """(first frame, order) of each whole compound page."""
    torn_heads: int = 0
    orphan_tails: int = 0
    orders: list[int] = field(default_factory=list)
    """Per frame: the order of its compound page, 0 in none, -1 in a torn one."""


def walked(words: list[int]) -> Walk:
    """Group frames by the head that they follow."""
    result = Walk(orders=[0] * len(words))
    pfn = 0
    while pfn < len(words):
        word = words[pfn]
        if word & BUDDY or not word & (HEAD | TAIL):
            pfn += 1
        elif word & HEAD:
            end = pfn + 1
            while end < len(words) and words[end] & (HEAD | TAIL | BUDDY) == TAIL:
                end += 1
            size = end - pfn
            if size > 1 and size & (size - 1) == 0 and pfn % size == 0:
                result.heads.append((pfn, size.bit_length() - 1))
                result.orders[pfn:end] = [size.bit_length() - 1] * size
            else:
                result.torn_heads += 1
                result.orders[pfn:end] = [-1] * size
            pfn = end
        else:
            result.orders[pfn] = -1
            result.orphan_tails += 1
            pfn += 1
    return result


@st.composite
def maps(draw: st.DrawFn) -> list[int]:
    """Whole compound pages mostly, and what a scan of a changing machine leaves of some."""
    words: list[int] = []
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["whole", "whole", "free", "plain", "torn"]))
        if kind == "whole":
            order = draw(st.integers(1, 4))
            words += [0] * (-len(words) % (1 << order))
            mark = draw(st.sampled_from([0, SLAB]))
            words += [mark | HEAD, *[mark | TAIL] * ((1 << order) - 1)]
        elif kind == "free":
            words += [BUDDY | draw(st.sampled_from([0, HEAD, TAIL]))] * draw(st.integers(1, 3))
        elif kind == "plain":
            words += [draw(st.sampled_from([0, SLAB]))] * draw(st.integers(1, 5))
        else:
            words += draw(
                st.lists(st.sampled_from([HEAD, TAIL, SLAB | TAIL, SLAB | HEAD]), max_size=5)
            )
    return words or [0]


@given(maps())
@settings(max_examples=150, deadline=None)
def test_compounds_are_what_a_walk_finds(words: list[int]) -> None:
    with TemporaryDirectory() as folder:
        result = raw_map(Path(folder), words)
    compounds = compounds_of(result)
    expected = walked(words)
    found = list(zip(compounds.pfn_heads.tolist(), compounds.orders.tolist(), strict=True))
    assert found == expected.heads
    assert [int(result.table.flags[code]) for code in compounds.facts] == [
        words[pfn] for pfn, _ in expected.heads
    ]
    assert compounds.torn_heads == expected.torn_heads
    assert compounds.orphan_tails == expected.orphan_tails
    orders = compounds.order_of_extent
    per_frame = [
        int(orders[index])
        for index, pages in enumerate(result.nr_pages.tolist())
        for _ in range(pages)
    ]
    # In a run of heads the last one may be whole, but one extent has one order.
    several = [
        index
        for index, (word, after) in enumerate(zip(words, [*words[1:], 0], strict=True))
        if word & HEAD and not word & BUDDY and word == after
    ]
    if not several:
        assert per_frame == expected.orders


@given(maps(), st.integers(0, 80))
@settings(max_examples=100, deadline=None)
def test_at_gives_the_whole_page(words: list[int], pfn: int) -> None:
    with TemporaryDirectory() as folder:
        compounds = compounds_of(raw_map(Path(folder), words))
    page = compounds.at(pfn)
    around = [(low, order) for low, order in walked(words).heads if low <= pfn < low + (1 << order)]
    assert (page is not None) == bool(around)
    if page is not None:
        low, order = around[0]
        assert (page.pfn_start, page.nr_pages) == (low, 1 << order)


def test_a_gigantic_page(tmp_path: Path) -> None:
    huge = word_of(["HUGE"])
    words = [0, 0, *[0] * 510, huge | HEAD, *[huge | TAIL] * 511]
    compounds = compounds_of(raw_map(tmp_path, words))
    assert compounds.pfn_heads.tolist() == [512]
    assert compounds.orders.tolist() == [9]
    page = compounds.at(700)
    assert page is not None
    assert str(page) == "0x200-0x400"
    assert compounds.at(511) is None
    assert compounds.at(5000) is None

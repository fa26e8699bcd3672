"""How people name a page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.answers.places import FramePlace, PhysPlace, Place, VirtPlace, parse_place
from memdesc.errors import QuestionError
from memdesc.types import Pfn, PhysAddr, Pid, VirtAddr, pfn_of, phys_of


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("0x1234", FramePlace(Pfn(0x1234), "0x1234")),
        ("4660", FramePlace(Pfn(4660), "4660")),
        ("phys:0x1234000", PhysPlace(PhysAddr(0x1234000), "phys:0x1234000")),
        ("12:0x7f00a000", VirtPlace(Pid(12), VirtAddr(0x7F00A000), "12:0x7f00a000")),
    ],
)
def test_the_three_forms(text: str, place: Place) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize(
    "text", ["", "zz", "0x", "phys:", "phys:zz", ":0x1", "1:", "-1", "0x1 0x2"]
)
def test_anything_else_gets_a_hint(text: str) -> None:
    with pytest.raises(QuestionError) as raised:
        parse_place(text)
    assert "phys:0x" in raised.value.hint


@pytest.mark.parametrize(
    ("text", "better"),
    [("phys:1234000", "phys:0x1234000"), ("12:7f05aa000", "12:0x7f05aa000"), ("1:10", "1:0x10")],
)
def test_an_address_without_0x_is_refused_with_what_to_write(text: str, better: str) -> None:
    with pytest.raises(QuestionError) as raised:
        parse_place(text)
    assert raised.value.hint.endswith(better)


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    try:
        parse_place(text)
    except QuestionError:
        pass


@given(st.integers(0, (1 << 52) - 1))
def test_frames_and_addresses_are_inverse(pfn: int) -> None:
    assert pfn_of(phys_of(Pfn(pfn))) == pfn

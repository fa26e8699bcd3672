"""The judge itself: what counts as exact, as an honest union, as wrong, as changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from memdesc.checks.kept import load_map, pack_map, save_map, unpack_map
from memdesc.checks.refine import named, narrowed
from memdesc.checks.score import Outcome, score
from memdesc.errors import FormatError, QuestionError
from memdesc.map.extents import MemoryMap
from memdesc.map.facts import FactTable
from memdesc.map.machine import Machine
from memdesc.types import KERNEL_COMPOUND, MemoryType, TypeSet

T = MemoryType
Part = tuple[int, int, TypeSet, str]
"""Frames, flag word, types, rule."""


def a_map(*parts: Part) -> MemoryMap:
    sizes = np.array([part[0] for part in parts], np.int64)
    ends = np.cumsum(sizes)
    return MemoryMap(
        machine=Machine(),
        table=FactTable(
            np.array([part[1] for part in parts], np.uint64),
            np.array([part[2].mask for part in parts], np.uint64),
            tuple(part[3] for part in parts),
        ),
        pfn_starts=(ends - sizes).astype(np.uint32),
        facts=np.arange(len(parts)).astype(np.uint16),
        pfn_end=int(ends[-1]),
    )


def only(*kinds: MemoryType) -> TypeSet:
    return TypeSet.of(*kinds)


TRUTH = a_map(
    (4, 1, only(T.ANON), "struct-anon"),
    (8, 2, only(T.VMALLOC), "struct-walk"),
    (8, 2, only(T.DRIVER, T.EXACT_ALLOC), "struct-kernel"),
    (2, 3, only(T.SLAB), "struct-slab"),
)


def test_each_outcome() -> None:
    judged = a_map(
        (4, 1, only(T.ANON), "anon"),
        (4, 2, only(T.VMALLOC, T.DRIVER), "zero"),
        (4, 2, only(T.VMALLOC, T.FILE), "leftover"),
        (8, 2, only(T.VMALLOC, T.DRIVER), "zero"),
        (2, 3, only(T.FREE), "buddy"),
    )
    result = score(judged, TRUTH)
    assert {row.truth.label: dict(row.frames) for row in result.rows} == {
        "anon": {Outcome.EXACT: 4},
        "vmalloc": {Outcome.NOT_VISIBLE: 4, Outcome.UNION: 4},
        "driver or exact alloc": {Outcome.OPEN: 8},
        "slab": {Outcome.WRONG: 2},
    }
    assert [(run.pfn_start, run.nr_pages, run.rule) for run in result.wrong] == [(20, 2, "buddy")]
    assert result.moved == 0


def test_the_open_truth_can_be_missed_too() -> None:
    judged = a_map((22, 2, only(T.FREE_PCP), "zero"))
    assert score(judged, TRUTH).frames(Outcome.WRONG) == 16


def test_a_frame_whose_word_changed_is_not_judged() -> None:
    judged = a_map((22, 2, only(T.FREE), "buddy"))
    result = score(judged, TRUTH)
    assert (result.moved, result.total) == (6, 16)


def test_a_frame_whose_truth_changed_meanwhile_is_not_judged() -> None:
    before = a_map(
        (4, 1, only(T.ANON), "struct-anon"),
        (8, 2, only(T.KERNEL_STACK), "struct-walk"),
        (8, 2, only(T.DRIVER, T.EXACT_ALLOC), "struct-kernel"),
        (2, 3, only(T.SLAB), "struct-slab"),
    )
    assert score(TRUTH, TRUTH, before=before).moved == 8


def test_maps_of_other_frames_are_refused() -> None:
    with pytest.raises(QuestionError, match="same frames"):
        score(a_map((4, 1, only(T.ANON), "anon")), TRUTH)


# --- refining ----------------------------------------------------------------------------


def types_by_frame(result: MemoryMap) -> list[str]:
    masks = np.repeat(result.table.types[result.facts], result.nr_pages)
    return [TypeSet(int(mask)).label for mask in masks]


def test_narrowing_never_empties_a_union() -> None:
    result = narrowed(TRUTH, only(T.DRIVER, T.ANON))
    assert types_by_frame(result)[0] == "anon"
    assert types_by_frame(result)[12] == "exact alloc"
    within = narrowed(TRUTH, only(T.DRIVER), within=KERNEL_COMPOUND)
    assert types_by_frame(within) == types_by_frame(TRUTH), "exact_alloc is no compound page"


def test_naming_single_frames_cuts_extents() -> None:
    result = named(TRUTH, np.array([3, 13, 15, 500]), only(T.DRIVER))
    assert types_by_frame(result)[12:16] == ["driver or exact alloc", "driver"] * 2
    assert types_by_frame(result)[3] == "anon", "only what a union holds can be named"
    result.check()
    assert score(TRUTH, result).frames(Outcome.NOT_VISIBLE) == 2


# --- keeping -----------------------------------------------------------------------------


def test_a_kept_map_says_the_same(tmp_path: Path) -> None:
    save_map(TRUTH, tmp_path / "truth.npz")
    back = load_map(tmp_path / "truth.npz", TRUTH.machine)
    back.check()
    assert types_by_frame(back) == types_by_frame(TRUTH)
    assert np.array_equal(back.words(0, 22), TRUTH.words(0, 22))
    assert pack_map(back) == pack_map(TRUTH)
    assert score(back, TRUTH).frames(Outcome.EXACT) == 14


@pytest.mark.parametrize("data", [b"", b"PK\5\6" + b"\0" * 18, b"not a map"])
def test_what_is_no_map_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_map(data, Machine())


def test_a_rule_that_is_gone_is_named() -> None:
    table = dataclasses.replace(TRUTH.table, rules=("forgotten", *TRUTH.table.rules[1:]))
    with pytest.raises(FormatError, match="forgotten"):
        unpack_map(pack_map(dataclasses.replace(TRUTH, table=table)), Machine())

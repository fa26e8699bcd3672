"""What can move: every type against the type table, and each obstacle by its name."""

from __future__ import annotations

from itertools import product

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.kernels.type_table import TYPE_TABLE
from memdesc.rules.move import MovedBy, MoveOutcome, Obstacle, by_compaction, by_offlining
from memdesc.rules.subject import Knowledge, Ruling, Subject
from memdesc.types import Certainty, MemoryType

T = MemoryType
RELEASES = {"6.1": "6.1.192", "6.12": "6.12.117", "7.2": "7.2.13"}
USED = KPF.UPTODATE | KPF.LRU
ANON = USED | KPF.ANON | KPF.SWAPBACKED | KPF.MMAP
_FLAGS = (KPF.LRU, KPF.DIRTY, KPF.WRITEBACK, KPF.UNEVICTABLE, KPF.UPTODATE)


def kernel(series: str, **sysctls: int) -> Knowledge:
    return Knowledge(
        behaviour_of(KernelRelease.parse(RELEASES[series])),
        {f"vm.{name}": value for name, value in sysctls.items()},
    )


@pytest.mark.parametrize("series", RELEASES)
@pytest.mark.parametrize("kind", list(T), ids=lambda kind: kind.value)
def test_the_rule_moves_what_the_type_table_says_moves(kind: MemoryType, series: str) -> None:
    """Whatever the flags: only what the table names a mechanism for ever moves, and by that."""
    by = TYPE_TABLE[kind].movable.value
    moved = set()
    for marks, extra, rule in product(
        product((False, True), repeat=len(_FLAGS)),
        (None, False, True),
        (by_compaction, by_offlining),
    ):
        word = KPF(0)
        for flag, is_set in zip(_FLAGS, marks, strict=True):
            word |= flag if is_set else KPF(0)
        outcomes = rule(Subject(kind, word, 0, extra), kernel(series)).outcomes
        moved |= {outcome.by for outcome in outcomes if outcome.moves}
    if by in (MovedBy.NEVER, MovedBy.MIGRATE_VMA):
        # Offlining steps over what failed, and a driver may take back what it keeps.
        allowed = {MovedBy.NOTHING} if kind in (T.POISONED, T.OFFLINE) else set()
        assert moved <= allowed
    else:
        assert moved == {by}


def only(ruling: Ruling[MoveOutcome]) -> MoveOutcome:
    assert ruling.only is not None, ruling
    return ruling.only


@pytest.mark.parametrize("series", RELEASES)
def test_references_hold(series: str) -> None:
    held = only(by_compaction(Subject(T.ANON, ANON, 0, True), kernel(series)))
    assert (held.moves, held.obstacle) == (False, Obstacle.REFERENCES)
    assert only(by_offlining(Subject(T.ANON, ANON, 0, False), kernel(series))).moves
    # Without reference counts both stay possible, and the usual one comes first.
    unknown = by_offlining(Subject(T.ANON, ANON, 0), kernel(series))
    assert [outcome.moves for outcome in unknown.outcomes] == [True, False]
    assert unknown.certainty is Certainty.NOT_VISIBLE


@pytest.mark.parametrize("series", RELEASES)
def test_what_passes_by_itself(series: str) -> None:
    writing = only(by_offlining(Subject(T.FILE, USED | KPF.WRITEBACK, 0, False), kernel(series)))
    assert (writing.obstacle, writing.passing) == (Obstacle.WRITEBACK, True)
    batch = only(by_compaction(Subject(T.ANON, ANON & ~KPF.LRU, 0, False), kernel(series)))
    assert (batch.obstacle, batch.passing) == (Obstacle.NOT_ON_LRU, True)


@pytest.mark.parametrize("series", RELEASES)
def test_mlocked_memory_is_a_setting(series: str) -> None:
    locked = Subject(T.ANON, ANON | KPF.MLOCKED | KPF.UNEVICTABLE, 0, False)
    assert only(by_compaction(locked, kernel(series))).moves
    left = only(by_compaction(locked, kernel(series, compact_unevictable_allowed=0)))
    assert left.obstacle is Obstacle.MLOCKED
    # The setting is compaction's own: offlining takes it.
    assert only(by_offlining(locked, kernel(series, compact_unevictable_allowed=0))).moves


def test_large_folios_and_compaction() -> None:
    small = Subject(T.FILE, USED | KPF.COMPOUND_HEAD, 2, False)
    assert only(by_compaction(small, kernel("6.1"))).obstacle is Obstacle.TOO_LARGE
    assert only(by_compaction(small, kernel("7.2"))).moves
    huge = Subject(T.ANON, ANON | KPF.THP | KPF.COMPOUND_HEAD, 9, False)
    for series in RELEASES:
        assert only(by_compaction(huge, kernel(series))).obstacle is Obstacle.TOO_LARGE
        assert only(by_offlining(huge, kernel(series))).moves


@pytest.mark.parametrize("series", RELEASES)
def test_hugetlb_moves_for_offlining_alone(series: str) -> None:
    page = Subject(T.HUGETLB, KPF.HUGE | KPF.COMPOUND_HEAD | KPF.MMAP, 9, False)
    assert only(by_compaction(page, kernel(series))).obstacle is Obstacle.HUGETLB
    assert only(by_offlining(page, kernel(series))).by is MovedBy.HUGETLB


@pytest.mark.parametrize("series", RELEASES)
def test_a_dirty_file_in_memory_alone_stays(series: str) -> None:
    """An initramfs's pages: ramfs has neither migrate_folio nor a way to write them out."""
    page = Subject(T.FILE, USED | KPF.DIRTY | KPF.UNEVICTABLE, 0, False)
    for rule in (by_compaction, by_offlining):
        assert only(rule(page, kernel(series))).obstacle is Obstacle.NO_OPERATION
    mlocked = Subject(T.FILE, page.flags | KPF.MLOCKED, 0, False)
    assert only(by_offlining(mlocked, kernel(series))).moves


@pytest.mark.parametrize("series", RELEASES)
def test_secret_memory_forbids_it(series: str) -> None:
    page = Subject(T.SECRETMEM, USED | KPF.UNEVICTABLE | KPF.DIRTY, 0, False)
    assert only(by_offlining(page, kernel(series))).obstacle is Obstacle.INACCESSIBLE

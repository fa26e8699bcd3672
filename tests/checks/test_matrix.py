"""What memdesc says was checked is what the code does today with what was recorded.

The bundled captures, `data/truth-*.npz` (the true type of every frame, from the dump of the
same moment) and the run files were made from one recording of each kernel.  Here the recorded
flag words are classified anew, by today's rules, and judged again: a change of a rule that
makes an answer wrong, wider or narrower fails until `memdesc matrix --run` has been run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from memdesc.checks.kept import load_map
from memdesc.checks.page import cell_text, kept_groups, matrix_of, render_markdown
from memdesc.checks.planted import PLANTED
from memdesc.checks.run import LIVE_PROC, LIVE_STRUCT, VMCORE, check, record_kernel
from memdesc.checks.runs import FOLDER, Cell, Row, Run, read_run, recorded_runs, write_run
from memdesc.checks.score import Outcome, Score, score
from memdesc.errors import FormatError
from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.kernels.type_table import UNIONS
from memdesc.map.extents import MemoryMap
from memdesc.sources.bundled import open_bundled
from memdesc.sources.kpage import PageFile
from memdesc.sources.pages import PageScan
from memdesc.types import MemoryType, TypeSet
from memdesc.vm.kernels import FURTHER, SERIES

T = MemoryType
ROOT = Path(__file__).parent.parent.parent
RUNS = {run.series: run for run in recorded_runs()}
RECORDED = pytest.mark.parametrize("series", sorted(RUNS))
BUNDLED = [
    series for series in sorted(RUNS) if (ROOT / f"tests/data/truth-debian-{series}.npz").exists()
]


# --- the page ----------------------------------------------------------------------------


def test_the_committed_page_is_made_from_the_run_files() -> None:
    page = (ROOT / "docs/reference/matrix.md").read_text()
    runs = list(RUNS.values())
    assert page == render_markdown(runs, kept_groups(runs)), "memdesc matrix --markdown"


def test_every_kernel_of_the_rig_was_checked() -> None:
    assert set(SERIES) <= set(RUNS) <= set(SERIES) | set(FURTHER)
    assert set(BUNDLED) == set(SERIES)


@RECORDED
def test_a_run_file_says_what_it_says_twice(series: str, tmp_path: Path) -> None:
    run = RUNS[series]
    path = write_run(run, tmp_path)
    assert path.read_bytes() == (FOLDER / path.name).read_bytes()
    assert read_run(path) == run
    assert path.stat().st_size < 60_000


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "memdesc-checked/1"}', '{"schema": "x"}'])
def test_what_is_no_run_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "6.1.json").write_text(text)
    with pytest.raises(FormatError):
        read_run(tmp_path / "6.1.json")


# --- what was found ----------------------------------------------------------------------


@RECORDED
def test_nothing_was_named_wrongly(series: str) -> None:
    run = RUNS[series]
    assert run.frames_wrong == 0
    assert run.sources == (LIVE_PROC, LIVE_STRUCT, VMCORE)
    assert run.frames_open <= 0.003 * run.frames
    assert sum(row.cell.frames for row in run.rows if row.source == VMCORE) == run.frames
    for source, moved in run.moved.items():
        assert moved < 0.01 * run.frames, source


@RECORDED
def test_every_planted_kind_was_judged_by_every_source(series: str) -> None:
    run = RUNS[series]
    by_source = {
        source: {row.kind for row in run.planted if row.source == source} for source in run.sources
    }
    lacks = {"6.1": {"anon_mthp"}, "7.2": {"perf_ring"}}.get(series.partition("-")[0], set())
    assert by_source[LIVE_PROC] == by_source[VMCORE] == set(PLANTED) - lacks
    for row in run.planted:
        if row.source == VMCORE and PLANTED[row.kind] is not T.DRIVER_MAPPED:
            assert row.cell.exact == row.cell.frames, row


@RECORDED
def test_walks_find_what_the_kernel_counts(series: str) -> None:
    differing = [walk for walk in RUNS[series].walks if not walk.agrees]
    assert not differing
    assert len(RUNS[series].walks) > 20


@RECORDED
def test_drgn_reads_the_same(series: str) -> None:
    peers = {peer.what: peer for peer in RUNS[series].peers}
    assert peers["flags"].compared == peers["head of the compound page"].compared == 10_000
    assert [peer for peer in peers.values() if peer.agreed != peer.compared] == []


# --- today's rules -----------------------------------------------------------------------


@cache
def truth(series: str) -> MemoryMap:
    machine = open_bundled(f"debian-{series}").machine
    return load_map(ROOT / f"tests/data/truth-debian-{series}.npz", machine)


def classified_now(series: str, folder: Path) -> MemoryMap:
    """The bundled capture's flag words, through the rules as they are."""
    capture = open_bundled(f"debian-{series}")
    result = capture.map()
    words = folder / "kpageflags"
    result.words(0, result.pfn_end).tofile(words)
    return PageScan(capture.machine, PageFile(words)).map()


@pytest.mark.parametrize("series", BUNDLED)
def test_todays_rules_give_the_rows_of_the_page(series: str, tmp_path: Path) -> None:
    judged = score(classified_now(series, tmp_path), truth(series))
    assert judged.wrong == ()
    assert {row.truth: Cell.of(row) for row in judged.rows} == {
        row.types: row.cell for row in RUNS[series].rows if row.source == LIVE_PROC
    }
    assert judged.moved == RUNS[series].moved[LIVE_PROC]


def test_a_rule_that_says_something_else_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if somebody had dropped a member of a union, and as if one had been added."""
    from memdesc.map import facts

    classify = facts.classify

    def judged_with(change: Callable[[TypeSet], TypeSet]) -> Score:
        def changed(*args: object, **options: object) -> object:
            verdict = classify(*args, **options)  # type: ignore[arg-type]
            return type(verdict)(change(verdict.types), verdict.rule)

        monkeypatch.setattr(facts, "classify", changed)
        return score(classified_now("6.12", tmp_path), truth("6.12"))

    def without_stacks(types: TypeSet) -> TypeSet:
        return TypeSet(types.mask & ~T.KERNEL_STACK.bit or types.mask)

    assert judged_with(without_stacks).frames(Outcome.WRONG) > 300
    wider = judged_with(lambda types: types | TypeSet.of(T.FILE))
    assert wider.frames(Outcome.WRONG) == 0
    assert wider.frames(Outcome.EXACT) < 0.1 * wider.total


# --- what the reference claims -----------------------------------------------------------


def live_rows(run: Run) -> Iterator[Row]:
    return (row for row in run.rows if row.source == LIVE_PROC and row.types.is_certain)


EXACT_EVERYWHERE = {
    *(T.FREE, T.RESERVED, T.ZERO, T.HUGE_ZERO, T.ANON, T.FILE, T.SHMEM, T.SWAP_CACHE),
    *(T.HUGETLB, T.SLAB, T.POISONED),
}
"""Types with a flag of their own: `shown` in the type table names it without a condition."""


@RECORDED
def test_types_with_a_flag_of_their_own_are_exact(series: str) -> None:
    met = {row.types.only: row.cell for row in live_rows(RUNS[series])}
    assert set(met) >= EXACT_EVERYWHERE
    for kind in EXACT_EVERYWHERE:
        assert met[kind].exact == met[kind].frames, (kind, met[kind])


@RECORDED
def test_types_that_show_nothing_are_never_exact(series: str) -> None:
    """The type table says "nothing", or "alone": then no source of flags may name it."""
    from memdesc.kernels.type_table import TYPE_TABLE

    for row in live_rows(RUNS[series]):
        kind = row.types.only
        assert kind is not None
        shown = TYPE_TABLE[kind].shown
        if shown.value == "nothing" or shown.text.startswith("alone: like every other"):
            assert row.cell.exact == 0, (kind, row.cell)


@RECORDED
def test_page_tables_are_marked_as_the_reference_says(series: str) -> None:
    """Of all levels from 6.18 on, but for two; before, upper levels and the kernel's are not."""
    cell = next(row.cell for row in live_rows(RUNS[series]) if row.types.only is T.PAGE_TABLE)
    behaviour = behaviour_of(KernelRelease.parse(RUNS[series].release))
    unmarked = cell.frames - cell.exact
    assert unmarked <= 2 if behaviour.kernel_page_tables_typed else unmarked > 20


@RECORDED
def test_every_union_is_one_that_the_reference_explains(series: str) -> None:
    """The families of "Types that cannot be told apart", widened as older kernels widen them, or
    a small union whose rule has a sentence of its own."""
    widening = TypeSet.of(
        T.PAGE_TABLE, T.ZSMALLOC, T.MOVABLE_OPS, T.FILE, T.ANON, T.SHMEM, T.SWAP_CACHE
    )
    small = [
        TypeSet.of(T.BALLOON, T.OFFLINE),
        TypeSet.of(T.FILE, T.SECRETMEM, T.GUEST_MEMFD),
        TypeSet.of(T.FILE, T.ZSMALLOC, T.GUEST_MEMFD),
        TypeSet.of(T.ANON, T.KSM),
        TypeSet.of(T.ZSMALLOC, T.DRIVER_MAPPED),
    ]
    families = [union.kinds | widening for union in UNIONS] + small
    for row in live_rows(RUNS[series]):
        for named, frames in row.cell.named:
            if not named.is_certain:
                within = [family for family in families if not named.mask & ~family.mask]
                assert within, (row.types.names, named.names, frames)


# --- cells -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "named", "text"),
    [
        ((5, 0, 0, 0, 0), [([T.ANON], 5)], "exact 5"),
        ((0, 5, 0, 0, 0), [([T.ANON, T.KSM], 5)], "union of 2 5"),
        ((0, 0, 5, 0, 0), [([T.ANON, T.KSM], 5)], "not visible 5"),
        ((4, 1, 0, 0, 0), [([T.ANON], 4), ([T.ANON, T.KSM], 1)], "80 % exact 5"),
        ((999, 1, 0, 0, 0), [([T.ANON], 999), ([T.ANON, T.KSM], 1)], "99 % exact 1,000"),
        ((999, 0, 0, 1, 0), [([T.ANON], 999), ([T.FREE], 1)], "WRONG 1,000"),
        ((0, 0, 0, 0, 3), [([T.DRIVER], 3)], "open 3"),
    ],
)
def test_a_cell_in_words(
    counts: tuple[int, ...], named: list[tuple[list[MemoryType], int]], text: str
) -> None:
    cell = Cell(*counts, tuple((TypeSet.of(*kinds), frames) for kinds, frames in named))
    assert cell_text(cell) == text
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell


def test_a_type_that_a_kernel_did_not_have_is_a_dash() -> None:
    matrix = matrix_of(list(RUNS.values()), source=LIVE_PROC)
    assert len(matrix.columns) == len(RUNS)
    assert cell_text(None) == "-"


# --- real kernels ------------------------------------------------------------------------


@pytest.mark.vm
@pytest.mark.parametrize("series", ["6.1", "6.12", "7.2"])
def test_a_real_kernel_is_never_named_wrongly(series: str, tmp_path: Path) -> None:
    """All of it: boot, plant, record, dump, judge."""
    from guests import kernel_or_skip

    kernel_or_skip(series)
    run = check(record_kernel(series, tmp_path / series, tell=lambda _: None), series=series)
    wrong = [row for row in (*run.rows, *run.planted) if row.cell.wrong]
    assert not wrong
    assert run.frames_open <= 0.003 * run.frames
    assert [walk for walk in run.walks if not walk.agrees] == []
    assert [peer for peer in run.peers if peer.agreed != peer.compared] == []
    kept = {(row.source, row.types): row.cell for row in RUNS[series].rows}
    for row in run.rows:
        before = kept.get((row.source, row.types))
        if before is not None and before.frames > 100 and row.cell.frames > 100:
            # Another recording has other frames, and is named in the same way.
            assert abs(row.cell.mean_width - before.mean_width) < 1, (row, before)
    assert np.isclose(run.frames, RUNS[series].frames)

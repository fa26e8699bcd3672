"""What fragmented guests moved, judged again by today's rules: no virtual machine is needed.

The records are in `src/memdesc/checks/data/moves-*.json`; docs/moves-checked.md explains them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from guests import kernel_or_skip

from memdesc.checks.fragment import read_trace
from memdesc.checks.fragment_blocks import compare, recorded_blocks
from memdesc.checks.moves import Claim, answer_for_block, claim_of, judge, main, run_kernel
from memdesc.checks.moves_group import moves_group
from memdesc.checks.moves_page import PROGRAM, tables
from memdesc.checks.moves_record import MovesRun, Program, read_moves, recorded_moves, write_moves
from memdesc.errors import FormatError
from memdesc.types import MemoryType
from memdesc.vm.workload.fragment import PROGRAMS
from memdesc.written import with_generated

RUNS = recorded_moves()
PAGE = Path(__file__).parents[2] / "docs/moves-checked.md"

each_kernel = pytest.mark.parametrize("run", RUNS, ids=lambda run: run.series)


def test_three_kernels_ran_all_programs() -> None:
    assert [run.series for run in RUNS] == ["6.1", "6.12", "7.2"]
    for run in RUNS:
        assert [program.name for program in run.programs] == list(PROGRAMS)
        assert all(len(program.trials) == 3 for program in run.programs)


@each_kernel
@pytest.mark.parametrize("source", ["vmcore", "live:proc"])
def test_what_is_called_not_movable_never_moved(run: MovesRun, source: str) -> None:
    stays = [row for row in judge(run, [source]) if row.claim is Claim.STAYS]
    assert sum(row.frames for row in stays) > 50_000
    assert [row.misses for row in stays if row.moved] == []


@each_kernel
def test_what_is_called_movable_moved_when_the_kernel_tried(run: MovesRun) -> None:
    tried, moved = Counter[str](), Counter[str]()
    for row in judge(run, ["vmcore"]):
        if row.claim is Claim.MOVES:
            what = row.trial.partition(":")[0]
            tried[what] += row.tried
            moved[what] += row.moved
    assert tried["compaction"] > 60_000
    assert tried["offline"] > 60_000
    for what in tried:
        assert moved[what] >= 0.99 * tried[what], what


@each_kernel
def test_struct_pages_show_every_page_that_somebody_holds(run: MovesRun) -> None:
    held = {held.how: held for program in run.programs for held in program.held}
    assert set(held) == {"vmsplice", "io_uring", "O_DIRECT"}
    for row in held.values():
        assert row.frames > 200
        assert row.recognised == row.frames, row.how


@each_kernel
def test_no_frame_that_the_kernel_names_as_stuck_is_called_movable(run: MovesRun) -> None:
    named = 0
    for program in run.programs:
        for kind in program.kinds:
            if kind.source != "vmcore":
                continue
            for trial, frames in kind.named.items():
                named += frames
                assert claim_of(kind, trial, run.knowledge) is not Claim.MOVES, kind
    assert named > 0


@each_kernel
def test_a_memory_block_goes_offline_where_we_say_so(run: MovesRun) -> None:
    guests = {
        guest.program: guest
        for got in recorded_blocks()
        if got.series == run.series
        for guest in got.guests
    }
    verdicts = Counter[bool | None]()
    for program in run.programs:
        for trial in program.trials:
            what, _, block = trial.name.partition(":")
            if what == "offline":
                answer = answer_for_block(guests[program.name].map, int(block))
                verdicts[answer.can_be_emptied] += 1
                if answer.can_be_emptied is not None:
                    went = trial.state == "offline"
                    assert went == answer.can_be_emptied, (program.name, trial)
                if trial.no_room:
                    assert answer.lacks_room, (program.name, trial)
    assert verdicts[True] > 0
    assert verdicts[False] > 0


@each_kernel
def test_pages_kept_their_content(run: MovesRun) -> None:
    for program in run.programs:
        for trial in program.trials:
            assert trial.pages_checked > 3000
            assert trial.pages_wrong == 0


def test_the_documentation_shows_these_records() -> None:
    page = PAGE.read_text()
    assert with_generated(page, tables(RUNS, recorded_blocks()), PROGRAM) == page


# --- the judge itself --------------------------------------------------------------------


def changed(run: MovesRun, change: Callable[[Program], Program]) -> MovesRun:
    return dataclasses.replace(run, programs=tuple(change(program) for program in run.programs))


def with_moved_slabs(program: Program) -> Program:
    kinds = tuple(
        dataclasses.replace(kind, trials={"compaction": (1, 1, 1)})
        if MemoryType.SLAB in kind.types
        else kind
        for kind in program.kinds
    )
    return dataclasses.replace(program, kinds=kinds)


def test_a_slab_frame_that_moved_would_be_a_miss() -> None:
    run = changed(RUNS[0], with_moved_slabs)
    wrong = [row for row in judge(run, ["vmcore"]) if row.claim is Claim.STAYS and row.wrong]
    assert {row.trial for row in wrong} == {"compaction"}
    assert len(wrong) == len(PROGRAMS)


def test_pins_that_nobody_sees_would_be_misses() -> None:
    """Without reference counts a held page is claimed to move, and it does not."""

    def forget_pins(program: Program) -> Program:
        kinds = tuple(
            dataclasses.replace(kind, extra_references=False) if kind.extra_references else kind
            for kind in program.kinds
        )
        return dataclasses.replace(program, kinds=kinds)

    pinned = dataclasses.replace(
        RUNS[1], programs=tuple(one for one in RUNS[1].programs if one.name == "pinned")
    )
    before = sum(row.wrong for row in judge(pinned, ["vmcore"]))
    after = sum(row.wrong for row in judge(changed(pinned, forget_pins), ["vmcore"]))
    assert after >= before + 50


def test_the_matrix_counts_what_is_judged(tmp_path: Path) -> None:
    """One kernel as it was, and one whose slabs are said to have moved."""
    write_moves(RUNS[0], tmp_path / "moves-1.json")
    other = dataclasses.replace(changed(RUNS[1], with_moved_slabs), series="other")
    write_moves(other, tmp_path / "moves-2.json")
    group = moves_group(tmp_path)
    assert group is not None
    rows = {(row.what, row.source): row.cells for row in group.rows}
    stays = rows[Claim.STAYS.value, "vmcore"]
    assert stays[RUNS[0].series].figures["moved"] == 0
    assert stays["other"].figures["moved"] > len(PROGRAMS)
    moves = rows["moves, compacting", "vmcore"][RUNS[0].series]
    assert 0.99 < moves.figures["moved_share"] < 1
    assert "100 %" not in moves.text, "a share is never rounded up"
    held = rows["held", "vmcore"][RUNS[0].series].figures
    assert held["recognised"] == held["frames"] > 600


def test_a_record_survives_writing(tmp_path: Path) -> None:
    write_moves(RUNS[0], tmp_path / "moves.json")
    assert read_moves(tmp_path / "moves.json") == RUNS[0]


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "moves.json").write_text('{"schema": "memdesc-moves/1"}')
    with pytest.raises(FormatError, match="no record of moves"):
        read_moves(tmp_path / "moves.json")


def test_a_trace_tells_what_was_tried_and_where_it_went() -> None:
    text = """
      p-1 [000] ..... 1.0: unmap: (try_to_migrate+0x0/0x70) old=0xffffea0000000040
      p-1 [000] ..... 1.0: moved: (folio_migrate_flags+0x0/0x2b0) new=0xffffea0000002000 \
old=0xffffea0000000040
      p-1 [000] ..... 1.1: plain: (migrate_folio+0x0/0x20) old=0xffffea0000000080
"""
    assert read_trace(text) == ({1, 2}, {1: 0x80})


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "--output" in capsys.readouterr().out


# --- a real kernel -----------------------------------------------------------------------


@pytest.mark.vm
def test_a_guest_moves_what_we_say(tmp_path: Path) -> None:
    kernel_or_skip("6.12")
    ways = ("free blocks", "hugetlb, compacted first")
    run, got = run_kernel("6.12", tmp_path, programs=("pinned",), ways=ways)
    rows = judge(run, ["vmcore"])
    stays = [row for row in rows if row.claim is Claim.STAYS]
    assert [row.misses for row in stays if row.moved] == []
    movable = [row for row in rows if row.claim is Claim.MOVES]
    assert sum(row.tried for row in movable) > 20_000
    assert sum(row.wrong for row in movable) <= 0.01 * sum(row.tried for row in movable)
    held = {held.how: held for held in run.programs[0].held}
    assert set(held) == {"vmsplice", "io_uring", "O_DIRECT"}
    assert all(row.recognised == row.frames > 200 for row in held.values())
    assert [row for row in compare(got.guests[0]) if not row.is_inside] == []

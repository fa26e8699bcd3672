"""Frames that are remembered by name: what rows say of them when nobody maps them any more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memdesc.scenarios.compare import first_difference
from memdesc.scenarios.model_run import ModelRunner
from memdesc.scenarios.reader import read_text
from memdesc.scenarios.run import Run, run_scenario
from memdesc.scenarios.scenario import Scenario, ScenarioError

PATH = Path("topic/file.md")
PIPE = (
    "process p\np: map buf 2\np: write buf A B\np: splice s buf[1]\n"
    "p: remember old buf\np: unmap buf"
)


def scenario(steps: str) -> Scenario:
    (found,) = read_text(f"# Title\n```scenario\n{steps}\n```", PATH)
    return found


def run(steps: str) -> Run:
    return run_scenario(ModelRunner("6.12"), scenario(steps), "model")


def test_a_frame_without_a_mapping_is_what_its_references_make_of_it() -> None:
    found = run(
        f"{PIPE}\nexpect\n  old refs 0 1\n  old mapcount 0 0\n  old[0] flags none\n"
        "  old[1] flags UPTODATE LRU ANON SWAPBACKED OWNER_2\n  old[1] content B\n"
        "  old frame a b\np: pipe_read s -> B\nexpect\n  old refs 0 0"
    )
    assert found.holds
    assert [record.observation.frames.keys() for record in found.records[-2:]] == [{"old"}] * 2
    assert found.records[-3].observation.frames == {}  # no row asks there


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("old refs 1 1", "old[0:2] refs\npage        0 1\nexpected    1 1\nfound       0 1\n"),
        ("old[1] flags -LRU", "old[1] has LRU besides"),
        ("old[1] content A", "old[1] content"),
    ],
)
def test_a_wrong_row_is_drawn(row: str, message: str) -> None:
    (problem,) = run(f"{PIPE}\nexpect\n  {row}").problems
    assert problem.message.startswith(message)


def test_two_runs_are_compared_where_rows_ask() -> None:
    one = run(f"{PIPE}\nexpect\n  old refs 0 1")
    last = one.records[-1]
    frames = {"old": (last.observation.frames["old"][0],) * 2}
    changed = replace(last, observation=replace(last.observation, frames=frames))
    other = replace(one, records=(*one.records[:-1], changed))
    assert first_difference(one, one) is None
    found = first_difference(one, other)
    assert found is not None
    assert found.what == "old[1]"


def test_what_is_not_there_cannot_be_remembered() -> None:
    assert run("process p\np: map buf 1\np: remember old buf -> EFAULT").holds


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("p: remember p buf", "p is a process"),
        ("p: remember old buf\np: remember old buf", "frames are remembered as old already"),
        ("p: remember old buf\nprocess old", "frames are remembered as old already"),
        ("p: remember old buf\nexpect\n  old page A", "not something that frames have"),
        ("p: remember old buf\nexpect\n  old refs 1 1", "old has 1 pages, the row has 2"),
        ("p: remember old buf\nexpect\n  old[1] refs 1", "old has 1 pages, the row is about"),
    ],
)
def test_errors_of_names_and_rows(steps: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        scenario(f"process p\np: map buf 1\np: write buf A\n{steps}")


def test_a_pin_is_handed_over_and_belongs_to_the_other() -> None:
    found = run(
        "process p\nprocess q\np: map buf 1\np: write buf A\np: pin d buf\np: remember old buf\n"
        "p: hand d q\np: exit\nexpect\n  old refs 1024\nq: pin_read d -> A\nq: release d\n"
        "expect\n  old refs 0"
    )
    assert found.holds
    with pytest.raises(ScenarioError, match="p holds no references"):
        scenario("process p\nprocess q\np: map buf 1\np: pin d buf\np: hand d q\np: release d")

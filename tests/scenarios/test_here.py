"""Scenarios that fail here because of this machine's settings, and those that fail in earnest."""

from __future__ import annotations

from pathlib import Path

from memdesc.scenarios.here import explaining_knob, fault_around
from memdesc.scenarios.model_run import ModelRunner
from memdesc.scenarios.reader import read_text
from memdesc.scenarios.run import Run, run_scenario
from memdesc.scenarios.scenario import Scenario

LOUD = {"fault_around": "65536", "read_ahead": "0"}


def scenario(page: str, content: str = "A B") -> Scenario:
    lines = (
        "process p",
        "p: memfd f 2",
        "p: pwrite f[0:2] A B",
        "p: map buf 2 shared file f",
        "p: read buf[0] -> A",
        "expect",
        f"    p buf page {page}",
        f"p: read buf -> {content}",
    )
    return read_text("\n".join(("```scenario", *lines, "```")), Path("made.md"))[0]


def run_with(settings: dict[str, str], subject: Scenario) -> Run:
    """In place of a run on a machine that has these settings."""
    runner = ModelRunner("6.18.44")
    runner.settings = settings
    return run_scenario(runner, subject, "here")


def test_a_setting_explains_what_it_changes() -> None:
    run = run_with(LOUD, scenario("T ."))
    assert not run.holds
    assert explaining_knob(run, LOUD) == "knob fault_around 4096"
    # The same run on a machine with the settings of guests has no excuse.
    assert explaining_knob(run, {"fault_around": "4096", "read_ahead": "0"}) == ""


def test_a_setting_is_no_excuse_for_anything_else() -> None:
    both = run_with(LOUD, scenario("T .", content="A A"))
    assert len(both.problems) == 2
    assert explaining_knob(both, LOUD) == ""
    wrong = run_with(LOUD, scenario("A ."))
    assert explaining_knob(wrong, LOUD) == ""
    holds = run_with({}, scenario("T ."))
    assert holds.holds
    assert explaining_knob(holds, LOUD) == ""


def test_the_window_of_faults_is_a_power_of_two() -> None:
    window = fault_around()
    assert window >= 4096
    assert window & (window - 1) == 0

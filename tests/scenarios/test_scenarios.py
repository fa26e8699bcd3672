"""Every scenario of the repository, on the model of each kernel and on real ones.

A real kernel plays a part of them each day, other ones the next; what all of them gave is
recorded in scenarios/results.json.
"""

from __future__ import annotations

import datetime
import warnings
import zlib
from collections import Counter
from pathlib import Path

import pytest

from memdesc.kernels.release import KernelRelease
from memdesc.scenarios.compare import first_difference
from memdesc.scenarios.index import PROGRAM, contents
from memdesc.scenarios.kernel_run import VmRunner
from memdesc.scenarios.model_run import ModelRunner
from memdesc.scenarios.reader import SERIES, plan_for, read_file
from memdesc.scenarios.results import Results
from memdesc.scenarios.run import run_scenario
from memdesc.scenarios.verbs import VERBS
from memdesc.written import with_generated

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scenarios"
SCENARIOS = [s for path in sorted(FOLDER.glob("*/*.md")) for s in read_file(path)]
TOPICS = sorted({scenario.path.parent.name for scenario in SCENARIOS})
DAYS = 30
"""After so many days a kernel has played all of them."""


def file_of(scenario) -> str:
    return f"{scenario.path.parent.name}/{scenario.path.name}"


def of(topic: str) -> list:
    return [scenario for scenario in SCENARIOS if scenario.path.parent.name == topic]


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("topic", TOPICS)
def test_scenarios_hold_in_the_model(topic, series):
    wrong = []
    for scenario in of(topic):
        run = run_scenario(ModelRunner(series), scenario)
        wrong += [f"{scenario.path.name}:{p.line}: {p.message}" for p in run.problems]
        if not run.is_complete and not run.problems:
            wrong.append(f"{scenario.path.name}: ended early")
    assert not wrong, "\n".join(wrong[:10])


def test_there_are_scenarios_for_every_mechanism():
    assert len(SCENARIOS) >= 150
    assert min(Counter(s.path.parent.name for s in SCENARIOS).values()) >= 10
    titles = Counter((s.path.parent.name, s.title) for s in SCENARIOS)
    assert titles.most_common(1)[0][1] == 1
    assert all(scenario.prose for scenario in SCENARIOS)


def test_all_of_them_were_compared_with_every_kernel():
    """What is recorded is of these very lines, and holds: there is no exception."""
    recorded = Results.read(FOLDER / "results.json")
    holds = {
        (e.file, e.title, e.series, e.digest)
        for e in recorded.entries
        if e.verdict == ("holds" if e.steps else "empty")
    }
    missing = [
        f"{file_of(scenario)} on {series}"
        for scenario in SCENARIOS
        for series in SERIES
        if (file_of(scenario), scenario.title, series, scenario.digest) not in holds
    ]
    how = "memdesc scenario compare FILE --save scenarios/results.json"
    assert not missing, f"{how}: {missing[:20]}"
    assert len(recorded.entries) == len(SCENARIOS) * len(SERIES)


def test_the_table_of_contents_is_of_these_scenarios():
    page = (FOLDER / "README.md").read_text()
    assert page == with_generated(page, contents(FOLDER), PROGRAM), f"python -m {PROGRAM}"


def test_every_verb_is_used_by_some_scenario():
    used = {
        step.verb
        for scenario in SCENARIOS
        for series in SERIES
        for step in plan_for(scenario, KernelRelease.parse(series)).steps
    }
    assert {name for name, verb in VERBS.items() if verb.alias is None} - used == set()


@pytest.mark.vm
@pytest.mark.parametrize("series", SERIES)
def test_todays_part_holds_on_the_real_kernel(series):
    day = datetime.datetime.now(datetime.UTC).date().toordinal()
    today = [
        scenario
        for scenario in SCENARIOS
        if zlib.crc32(f"{scenario.name} {series}".encode()) % DAYS == day % DAYS
    ]
    assert today
    wrong = []
    with VmRunner(series) as kernel:
        for scenario in today:
            if not (said := what_differs(kernel, scenario, series)):
                continue
            # A loaded machine can let a guest's own threads run in the middle of a step. That is
            # not silent: it is in the summary, and twice is no accident.
            if what_differs(kernel, scenario, series):
                wrong.append(said)
            else:
                warnings.warn(f"differed once, and held when repeated: {said}", stacklevel=1)
    assert not wrong, "\n".join(wrong)


def what_differs(kernel: VmRunner, scenario, series: str) -> str:
    real = run_scenario(kernel, scenario, f"vm:{series}")
    mine = run_scenario(ModelRunner(series), scenario, f"model:{series}")
    difference = first_difference(mine, real)
    if difference is not None:
        picture = "\n  ".join((difference.what, *difference.picture, *difference.rules))
        return f"{scenario.name} line {difference.line}: {picture}"
    return "" if real.holds else f"{scenario.name}: {real.problems[:1]}"

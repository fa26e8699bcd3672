"""Random steps: every account of the model agrees after each, compiled or not, on every kernel."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memdesc.errors import MemdescError
from memdesc.model.compiled import COMPILED, array
from memdesc.scenarios.compare import first_difference
from memdesc.scenarios.kernel_run import VmRunner
from memdesc.scenarios.model_run import ModelRunner
from memdesc.scenarios.random_steps import random_scenario, shrink
from memdesc.scenarios.reader import SERIES, read_text
from memdesc.scenarios.run import run_scenario

STEPS = 300
SEEDS = (1, 2)


def steps_of(text: str) -> int:
    """Run the steps on the model of each kernel, checked after each; how many were done."""
    scenario = read_text(text, Path("random.md"))[0]
    done = 0
    for series in SERIES:
        run = run_scenario(ModelRunner(series), scenario)
        assert not run.problems, run.problems[0]
        done += len(run.records)
    return done


def fails(text: str) -> bool:
    """Whether the model breaks; a text that cannot be read does not count."""
    try:
        steps_of(text)
    except MemdescError:
        return False
    except (AssertionError, ArithmeticError, LookupError, TypeError, NotImplementedError):
        return True
    return False


@pytest.mark.parametrize("seed", SEEDS)
def test_every_account_agrees_after_each_random_step(seed):
    text = random_scenario(seed, STEPS)
    try:
        assert steps_of(text) == STEPS * len(SERIES)
    except (AssertionError, ArithmeticError, LookupError, TypeError, NotImplementedError) as error:
        small = shrink(text, fails, tries=60)
        pytest.fail(f"{error!r}\n\nThe same happens in this scenario file:\n\n{small}")


@pytest.mark.vm
def test_random_steps_are_the_same_on_a_real_kernel():
    """Fixed seeds, on another kernel each day."""
    series = SERIES[datetime.datetime.now(datetime.UTC).date().toordinal() % len(SERIES)]
    with VmRunner(series) as kernel:
        for seed in (31, 32):
            text = random_scenario(seed, 80)
            scenario = read_text(text, Path("random.md"))[0]
            real = run_scenario(kernel, scenario, f"vm:{series}")
            mine = run_scenario(ModelRunner(series), scenario, f"model:{series}")
            difference = first_difference(mine, real)
            assert difference is None, f"{difference}\n\n{text}"
            assert len(real.records) == 80


def test_the_same_seed_gives_the_same_steps():
    assert random_scenario(7, 50) == random_scenario(7, 50) != random_scenario(8, 50)


def test_what_fails_is_made_small():
    text = random_scenario(3, 80, weights={"map": 4, "write": 10, "read": 4})
    culprit = text.split("\n")[40]

    small = shrink(text, lambda other: culprit in other.split("\n"))

    assert small.split("```scenario\n")[1] == f"{culprit}\n```\n"
    assert len(small) < len(text) / 5


def digest(seed: int) -> str:
    """A hash of everything that the model holds after a random scenario, on each kernel."""
    whole = hashlib.sha256()
    scenario = read_text(random_scenario(seed, 120), Path("random.md"))[0]
    for series in SERIES:
        runner = ModelRunner(series, check=False)
        run = run_scenario(runner, scenario)
        for columns in runner.kernel.columns:
            for name, column in zip(columns._fields, columns, strict=True):
                whole.update(name.encode() + array(column).tobytes())
        whole.update(json.dumps([record.outcome.as_json() for record in run.records]).encode())
    return whole.hexdigest()


def test_plain_python_gives_the_same_columns():
    """The loops are compiled from their own source: switched off, nothing differs."""
    other = subprocess.run(
        [sys.executable, "-c", "from scenarios.test_random import digest; print(digest(5))"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "MEMDESC_MODEL_COMPILED": str(int(not COMPILED))},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert other.returncode == 0, other.stderr[-2000:]
    assert other.stdout.strip() == digest(5)

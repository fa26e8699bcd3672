"""Run a scenario: each step, what it gave, what is seen afterwards, and whether that is expected.

A `Runner` is a place to do steps: the model, a guest, this machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from memdesc.errors import MemdescError, VmError
from memdesc.kernels.release import KernelRelease
from memdesc.scenarios.expect import Problem, check_outcome, check_rows
from memdesc.scenarios.observation import Observation, Seen, observe
from memdesc.scenarios.outcome import ANYTHING, CODES, Outcome, is_errno
from memdesc.scenarios.reader import plan_for
from memdesc.scenarios.scenario import Plan, Scenario, ScenarioError
from memdesc.scenarios.skipped import SkippedError
from memdesc.scenarios.step import Step

__all__ = ["Outcome", "Run", "Runner", "StepRecord", "run_scenario"]


@runtime_checkable
class Runner(Protocol):
    """Does steps somewhere. One scenario at a time: `start`, then `do` and `see`, then `end`."""

    @property
    def release(self) -> KernelRelease:
        """Whose rules hold there."""
        ...

    def start(self, plan: Plan, release: KernelRelease, /) -> None:
        """Begin from nothing: no processes, the settings that every scenario begins with.

        `plan` has the steps that will come, in this order, and no others.
        """
        ...

    def do(self, step: Step, /) -> Outcome:
        """Do one step. What the kernel refuses is an outcome; exceptions mean that it broke."""
        ...

    def see(self, step: Step, /) -> Seen:
        """Look at what `step`, which was just done, watches. Counters of events (vmstat) count
        from `start`."""
        ...

    def rules(self) -> list[str]:
        """Rules that the last step applied; empty where nobody knows."""
        ...

    def end(self) -> None:
        """Give everything back."""
        ...


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step that was done."""

    step: Step
    outcome: Outcome
    observation: Observation
    rules: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    counted: tuple[str, ...] = ()
    """Counters that there are: all of them on the model, else those that were asked for."""


@dataclass(frozen=True, slots=True)
class Run:
    """A scenario's way through one place."""

    scenario: Scenario
    where: str
    """As --on names it: "model:6.12"."""
    release: KernelRelease
    plan: Plan
    records: tuple[StepRecord, ...] = field(default=())

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every expectation that does not hold."""
        return tuple(problem for record in self.records for problem in record.problems)

    @property
    def is_complete(self) -> bool:
        """Whether all steps were done: a step that should have failed or not ends a run."""
        return len(self.records) == len(self.plan.steps)

    @property
    def holds(self) -> bool:
        return self.is_complete and not self.problems


def run_scenario(
    runner: Runner,
    scenario: Scenario,
    where: str = "",
    *,
    tell: Callable[[StepRecord], None] | None = None,
) -> Run:
    """Run `scenario`; `tell` is called after each step.

    The run ends behind a step that succeeded where the scenario says it fails, or failed where
    it says nothing: what follows would be about things that are not there. Raises
    ScenarioError with the line of a step that cannot be done.
    """
    release = runner.release
    plan = plan_for(scenario, release)
    records: list[StepRecord] = []
    runner.start(plan, release)
    try:
        for step in plan.steps:
            outcome = _done(runner, step, scenario)
            seen = runner.see(step)
            counters = {key: seen.counters[key] for key in plan.counters if key in seen.counters}
            observation = observe(
                replace(seen, counters=counters),
                step.watch,
                release,
                tags=plan.tags,
                soft_dirty=plan.soft_dirty,
                referenced=plan.referenced,
            )
            problem = check_outcome(step, outcome, plan.tags)
            problems = [problem] if problem else []
            went_on = step.expected == (ANYTHING,) or outcome.succeeded == _should_succeed(step)
            if went_on:
                problems += check_rows(step.checks, observation, release, step.watch)
            record = StepRecord(
                step,
                outcome,
                observation,
                tuple(runner.rules()),
                tuple(problems),
                tuple(seen.counters) if plan.counters else (),
            )
            records.append(record)
            if tell is not None:
                tell(record)
            if not went_on:
                break
    finally:
        runner.end()
    return Run(scenario, where or str(release), release, plan, tuple(records))


# --- helpers -----------------------------------------------------------------------------


def _done(runner: Runner, step: Step, scenario: Scenario) -> Outcome:
    """Do it. What is wrong with a step that can be read gets the place of its line."""
    try:
        return runner.do(step)
    except (SkippedError, VmError, ScenarioError):
        raise
    except MemdescError as error:
        raise ScenarioError(
            str(error), path=str(scenario.path), line=step.line, hint=error.hint
        ) from error


def _should_succeed(step: Step) -> bool:
    expected = step.expected
    return expected is None or not (is_errno(expected[0]) or expected[0] in CODES)

"""`memdesc scenario compare`."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memdesc.cli.common import envelope, print_json, steps
from memdesc.cli.scenario_common import add_files, print_problems, scenarios_of
from memdesc.errors import QuestionError, VmError

if TYPE_CHECKING:
    from memdesc.scenarios.compare import Difference
    from memdesc.scenarios.results import ScenarioResult
    from memdesc.scenarios.run import Run, Runner
    from memdesc.scenarios.scenario import Scenario

HELP = "the same steps on the model and on the real kernel: the first difference"
DESCRIPTION = (
    "Run every scenario on the model and on the kernel that it models, and compare everything\n"
    "that was seen after every step: each page's state, its frame, map count, references, flags\n"
    "and content, and each process's areas. The first difference is drawn page by page, with the\n"
    "rules that the model applied."
)
EXAMPLES = """
  memdesc scenario compare FILE.md                   6.1, 6.12 and 7.2, in guests
  memdesc scenario compare scenarios --on 6.12       all scenarios, one kernel
  memdesc scenario compare FILE.md --on here         with this machine's kernel, as root
  memdesc scenario compare scenarios --save scenarios/results.json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser)
    parser.add_argument(
        "--on",
        action="append",
        metavar="KERNEL",
        help="6.1, 6.12, 7.2 or here; may be given more than once (default: the first three)",
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="RESULTS",
        help="add to a file that `table` shows, after each kernel and when interrupted",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")


def run(options: argparse.Namespace) -> int:
    from memdesc.scenarios.reader import SERIES
    from memdesc.scenarios.results import Results
    from memdesc.scenarios.where import open_runner

    pairs = [_pair(text) for text in dict.fromkeys(options.on or SERIES)]
    if options.save:
        Results.check_writable(options.save)
    old = Results.read(options.save) if options.save and options.save.exists() else Results()
    scenarios = list(scenarios_of(options.files))
    found: list[ScenarioResult] = []
    shown: list[dict[str, Any]] = []

    def save() -> None:
        if options.save and found:
            old.merged(found, time.strftime("%Y-%m-%d")).write(options.save)

    for model, real in pairs:
        with ExitStack() as stack:
            # Also when it is interrupted, or the guest breaks: what was compared is kept.
            stack.callback(save)
            with steps() as tell:
                tell(f"preparing {model} and {real}")
                mine = stack.enter_context(open_runner(model))
                theirs = stack.enter_context(open_runner(real))
            for scenario in scenarios:
                with steps() as tell:
                    tell(f"{scenario.title} on {real}")
                    result, difference, runs = _compare(
                        scenario, (mine, theirs), (str(model), str(real)), model.series
                    )
                found.append(result)
                shown.append(_as_json(result, difference))
                if not options.json:
                    _print(result, difference, runs, str(real))
    if options.json:
        value = {"schema": "memdesc-scenario-compare/1", "rows": shown}
        print_json(envelope(value, source=", ".join(str(real) for _, real in pairs)))
    else:
        _print_sum(found)
    verdicts = {result.verdict for result in found}
    if verdicts & {"differs", "fails"}:
        return 1
    return 2 if verdicts & {"skipped", "broken"} else 0


# --- helpers -----------------------------------------------------------------------------


def _pair(text: str) -> tuple[Any, Any]:
    """The model and the real kernel that are compared."""
    from memdesc.scenarios.reader import SERIES
    from memdesc.scenarios.where import model_of_here, parse_where

    if text == "here":
        return model_of_here(), parse_where("here")
    if ":" in text:
        raise QuestionError(
            f"compare takes a kernel, not a place: {text[:40]!r}", hint="give 6.12, or here"
        )
    if text not in SERIES:
        raise QuestionError(
            f"not a kernel that scenarios run on: {text[:40]!r}",
            hint=f"give {', '.join(SERIES)} or here",
        )
    return parse_where(f"model:{text}"), parse_where(f"vm:{text}")


def _compare(
    scenario: Scenario,
    runners: tuple[Runner, Runner],
    names: tuple[str, str],
    series: str,
) -> tuple[ScenarioResult, Difference | None, tuple[Run, ...]]:
    from memdesc.scenarios.compare import first_difference
    from memdesc.scenarios.results import ScenarioResult
    from memdesc.scenarios.run import run_scenario
    from memdesc.scenarios.scenario import ScenarioError
    from memdesc.scenarios.skipped import SkippedError

    def result(verdict: str, why: str, runs: tuple[Run, ...] = ()) -> ScenarioResult:
        return ScenarioResult(
            topic=scenario.path.parent.name,
            file="/".join(scenario.path.parts[-2:]),
            line=scenario.line,
            title=scenario.title,
            series=series,
            release=str(runners[1].release),
            verdict=verdict,
            steps=len(runs[0].records) if runs else 0,
            checks=len(runs[0].plan.checks) if runs else 0,
            why=why,
            digest=scenario.digest,
        )

    try:
        real = run_scenario(runners[1], scenario, names[1])
        mine = run_scenario(runners[0], scenario, names[0])
    except SkippedError as error:
        return result("skipped", str(error)), None, ()
    except (VmError, ScenarioError) as error:
        # The other scenarios still get their answer.
        return result("broken", str(error)), None, ()
    runs = (mine, real)
    difference = first_difference(mine, real)
    if difference is not None:
        why = f"line {difference.line}: {difference.what}"
        return result("differs", why, runs), difference, runs
    if not real.holds:
        lines = ", ".join(str(problem.line) for problem in real.problems)
        return result("fails", f"lines {lines}", runs), None, runs
    if not mine.plan.steps:
        return result("empty", f"it has no steps on {series}", runs), None, runs
    return result("holds", "", runs), None, runs


def _print(
    result: ScenarioResult,
    difference: Difference | None,
    runs: tuple[Run, ...],
    where: str,
) -> None:
    quiet = ("holds", "skipped", "empty")
    word = result.verdict if result.verdict in quiet else result.verdict.upper()
    print(f"{word:<8} {result.file}:{result.line} {result.title} on {where}")
    if difference is not None:
        print(f"  {runs[0].scenario.path}:{difference.line}: after `{difference.step}`")
        print(f"    {difference.what}")
        for line in difference.picture:
            print(f"      {line}")
        for rule in difference.rules:
            print(f"    the model: {rule}")
    elif result.verdict == "fails":
        print_problems(runs[1])
    elif result.why:
        print(f"  {result.why}")


def _print_sum(found: list[ScenarioResult]) -> None:
    from memdesc.scenarios.results import VERDICTS

    counts = {word: sum(one.verdict == word for one in found) for word in VERDICTS}
    parts = [f"{count} {word}" for word, count in counts.items() if count]
    print(", ".join(parts))


def _as_json(result: ScenarioResult, difference: Difference | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(result),
        "why": result.why or None,
        "difference": None if difference is None else asdict(difference),
    }

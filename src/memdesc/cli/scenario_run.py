"""`memdesc scenario run`."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from memdesc.cli.common import envelope, print_json, steps
from memdesc.cli.scenario_common import (
    add_files,
    files_of,
    letters_of,
    picture,
    print_legend,
    print_problems,
    record_json,
    scenarios_of,
)
from memdesc.errors import QuestionError

if TYPE_CHECKING:
    from memdesc.scenarios.run import Run, Runner
    from memdesc.scenarios.scenario import Scenario

HELP = "do the steps on the model, in a guest, or on this machine"
DESCRIPTION = (
    "Run every scenario of the files and check what they expect. With --step, print every page\n"
    "of every mapping after each step, and the rules that the model applied."
)
EXAMPLES = """
  memdesc scenario run scenarios                        all of them, on the model of 6.12
  memdesc scenario run FILE.md --on model:7.2 --step    watch each step
  memdesc scenario run FILE.md --on vm:6.1              a real kernel in a guest
  memdesc scenario run FILE.md --on here                this machine's kernel, as root
  memdesc scenario run FILE.md --record --on vm:6.1 --on vm:6.12 --on vm:7.2
                                                        write expectations from real kernels
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser)
    parser.add_argument(
        "--on",
        action="append",
        metavar="PLACE",
        help="model:6.12, vm:6.12 or here; may be given more than once (default: model:6.12)",
    )
    parser.add_argument("--step", action="store_true", help="print what is seen after each step")
    parser.add_argument(
        "--record",
        action="store_true",
        help="write what the runs show into the files, as their expectations",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")


def run(options: argparse.Namespace) -> int:
    from memdesc.scenarios.where import parse_where

    places = [parse_where(text) for text in dict.fromkeys(options.on or ["model:6.12"])]
    if options.record:
        return _record(options, [str(place) for place in places])
    scenarios = list(scenarios_of(options.files))
    results: list[dict[str, Any]] = []
    counts = {"hold": 0, "fail": 0, "skipped": 0}
    letters: set[str] = set()
    from memdesc.scenarios.where import open_runner

    for place in places:
        with ExitStack() as stack:
            with steps() as tell:
                tell(f"preparing {place}")
                runner = stack.enter_context(open_runner(place))
            for scenario in scenarios:
                _one(options, runner, scenario, str(place), counts, results, letters)
    if options.json:
        value = {"schema": "memdesc-scenario-run/1", "rows": results}
        print_json(envelope(value, source=", ".join(map(str, places))))
    else:
        if options.step:
            print_legend(letters)
        said = f"{counts['hold']} hold, {counts['fail']} fail"
        if counts["skipped"]:
            said += f", {counts['skipped']} skipped"
        print(said)
    if counts["fail"]:
        return 1
    return 2 if counts["skipped"] else 0


# --- helpers -----------------------------------------------------------------------------


def _one(
    options: argparse.Namespace,
    runner: Runner,
    scenario: Scenario,
    place: str,
    counts: dict[str, int],
    results: list[dict[str, Any]],
    letters: set[str],
) -> None:
    from memdesc.scenarios.run import run_scenario
    from memdesc.scenarios.skipped import SkippedError

    head = f"{scenario.path}:{scenario.line} {scenario.title}"
    entry: dict[str, Any] = {
        "file": str(scenario.path),
        "line": scenario.line,
        "title": scenario.title,
        "on": place,
    }
    try:
        with steps() as tell:
            tell(f"{scenario.title} on {place}")
            found = run_scenario(runner, scenario, place)
    except SkippedError as error:
        counts["skipped"] += 1
        results.append({**entry, "holds": None, "skipped": str(error), "steps": []})
        if not options.json:
            print(f"skipped  {head} on {place}: {error}")
            if error.hint:
                print(f"         {error.hint}")
        return
    counts["hold" if found.holds else "fail"] += 1
    results.append(
        {
            **entry,
            "holds": found.holds,
            "complete": found.is_complete,
            "steps": [record_json(record, found) for record in found.records],
        }
    )
    if options.json:
        return
    print(f"{'holds' if found.holds else 'FAILS':<8} {head} on {place}")
    if options.step:
        letters |= _print_steps(found)
    print_problems(found)


def _print_steps(found: Run) -> set[str]:
    from memdesc.scenarios.expect import outcome_words

    letters: set[str] = set()
    for record in found.records:
        words = outcome_words(record.step, record.outcome, found.plan.tags)
        ended = "" if words == ("ok",) or record.step.expected else f" -> {' '.join(words)}"
        print(f"\n  {record.step.line}: {record.step.text}{ended}")
        for rule in record.rules:
            print(f"        by {rule}")
        for line in picture(record.observation):
            print(f"      {line}")
        letters |= letters_of(record.observation)
    print()
    return letters


def _record(options: argparse.Namespace, places: list[str]) -> int:
    """Rewrite the files; code 0 also where they changed."""
    from memdesc.scenarios.record import record_text, write_beside
    from memdesc.scenarios.run import run_scenario
    from memdesc.scenarios.where import open_runner, parse_where

    if options.json or options.step:
        raise QuestionError("--record writes files", hint="leave out --json and --step")
    files = files_of(options.files)
    with ExitStack() as stack:
        runners: dict[str, tuple[str, Runner]] = {}
        for place in places:
            with steps() as tell:
                tell(f"preparing {place}")
                runner = stack.enter_context(open_runner(parse_where(place)))
            series = f"{runner.release.major}.{runner.release.minor}"
            if series in runners:
                raise QuestionError(f"{place} and {runners[series][0]} are the same kernel")
            runners[series] = (place, runner)
        for path in files:
            with path.open(encoding="utf-8", newline="") as file:
                text = file.read()
            with steps() as tell:

                def run_on(scenario: Scenario, series: str) -> Run:
                    place, runner = runners[series]
                    tell(f"{scenario.title} on {place}")
                    return run_scenario(runner, scenario, place)

                written = record_text(text, path, tuple(runners), run_on)
            if written != text:
                write_beside(path, written)
            print(f"{'recorded' if written != text else 'as it was'}  {path}")
    return 0

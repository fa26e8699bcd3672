"""`memdesc scenario run`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from memdesc.cli.common import envelope, print_json, steps
from memdesc.cli.scenario_common import (
    STANDARD_INPUT,
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
from memdesc.scenarios.scenario import ScenarioError
from memdesc.scenarios.skipped import SkippedError

if TYPE_CHECKING:
    from memdesc.scenarios.run import Run, Runner
    from memdesc.scenarios.scenario import Scenario
    from memdesc.scenarios.where import Where

    Played = Run | SkippedError | ScenarioError

HELP = "do the steps on the model, in a guest, or on this machine"
DESCRIPTION = (
    "Run every scenario of the files and check what they expect. With --step, print every page\n"
    "of every mapping after each step, and the rules that the model applied."
)
EXAMPLES = """
  memdesc scenario run scenarios                        all of them, on the model: 1 to 2 minutes
  memdesc scenario run FILE.md --on model:7.2 --step    watch each step
  memdesc scenario run FILE.md --on vm:6.1              a real kernel in a guest
  memdesc scenario run FILE.md --on here                this machine's kernel, as root
  memdesc scenario random 7 | memdesc scenario run -    what another command writes
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
    entries: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    letters: set[str] = set()
    unable = False
    for scenario, place, found in _played(scenarios, places):
        counts[_verdict(found)] += 1
        unable |= isinstance(found, SkippedError) and not isinstance(found, _NotMeantError)
        if options.json:
            entries.append(_entry(scenario, place, found))
        else:
            letters |= _print(scenario, place, found, step=options.step)
    if options.json:
        value = {"schema": "memdesc-scenario-run/1", "rows": entries}
        print_json(envelope(value, source=", ".join(map(str, places))))
    else:
        print_legend(letters)
        said = f"{counts['holds']} hold, {counts['FAILS']} fail"
        if counts["skipped"]:
            said += f", {counts['skipped']} skipped"
        print(said)
    if counts["FAILS"]:
        return 1
    return 0 if counts["holds"] and not unable else 2


# --- helpers -----------------------------------------------------------------------------


class _NotMeantError(SkippedError):
    """All lines of a scenario are for other kernels: nothing failed, and nothing was shown."""


def _played(
    scenarios: Sequence[Scenario], places: Iterable[Where]
) -> Iterator[tuple[Scenario, str, Played]]:
    """Each scenario at each place, as it is done, or why it could not be."""
    from memdesc.scenarios.run import run_scenario
    from memdesc.scenarios.where import open_runner

    for place in places:
        with ExitStack() as stack:
            with steps() as tell:
                tell(f"preparing {place}")
                runner = stack.enter_context(open_runner(place))
            for scenario in scenarios:
                try:
                    with steps() as tell:
                        tell(f"{scenario.title} on {place}")
                        done = run_scenario(runner, scenario, str(place))
                        found: Played = _unless_settings(done) if place.kind == "here" else done
                    if not done.plan.steps:
                        found = _NotMeantError(f"it has no steps on {done.release}", line=None)
                except (SkippedError, ScenarioError) as error:
                    found = error
                yield scenario, str(place), found


def _unless_settings(found: Run) -> Run | SkippedError:
    """A run here; skipped where this machine's settings alone make it fail."""
    from memdesc.scenarios.here import explaining_knob

    needed = explaining_knob(found)
    if not needed:
        return found
    return SkippedError(f"needs {needed}, which is only set in guests", line=None)


def _verdict(found: Played) -> str:
    if isinstance(found, SkippedError):
        return "skipped"
    if isinstance(found, ScenarioError):
        return "FAILS"
    return "holds" if found.holds else "FAILS"


def _entry(scenario: Scenario, place: str, found: Played) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "file": str(scenario.path),
        "line": scenario.line,
        "title": scenario.title,
        "on": place,
    }
    if isinstance(found, SkippedError):
        return {**entry, "holds": None, "skipped": str(found), "steps": []}
    if isinstance(found, ScenarioError):
        return {**entry, "holds": False, "complete": False, "error": str(found), "steps": []}
    return {
        **entry,
        "holds": found.holds,
        "complete": found.is_complete,
        "steps": [record_json(record, found) for record in found.records],
    }


def _print(scenario: Scenario, place: str, found: Played, *, step: bool) -> set[str]:
    """Say how it went; the letters that were drawn."""
    head = f"{scenario.path}:{scenario.line} {scenario.title}"
    if isinstance(found, SkippedError):
        print(f"skipped  {head} on {place}: {found}")
        if found.hint:
            print(f"         {found.hint}")
        return set()
    print(f"{_verdict(found):<8} {head} on {place}")
    if isinstance(found, ScenarioError):
        print(f"  {found}")
        if found.hint:
            print(f"      {found.hint}")
        return set()
    letters = _print_steps(found) if step else set()
    print_problems(found)
    return letters


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
    from memdesc.scenarios.record import record_text
    from memdesc.scenarios.run import run_scenario
    from memdesc.scenarios.source import file_to_write, read_source, write_source
    from memdesc.scenarios.where import open_runner, parse_where

    if options.json or options.step:
        raise QuestionError("--record writes files", hint="leave out --json and --step")
    files = files_of(options.files)
    if STANDARD_INPUT in files:
        raise QuestionError("--record writes into files, not into standard input")
    for path in files:
        file_to_write(path)  # Before anything runs.
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
            text = read_source(path)
            with steps() as tell:

                def run_on(scenario: Scenario, series: str) -> Run:
                    place, runner = runners[series]
                    tell(f"{scenario.title} on {place}")
                    return run_scenario(runner, scenario, place)

                written = record_text(text, path, tuple(runners), run_on)
            if written != text:
                write_source(path, written)
            print(f"{'recorded' if written != text else 'as it was'}  {path}")
    return 0

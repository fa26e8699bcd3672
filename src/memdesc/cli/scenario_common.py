"""What the scenario commands share: finding files, drawing an observation, problems."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from memdesc.errors import NotReadableError, QuestionError

if TYPE_CHECKING:
    from memdesc.scenarios.observation import Observation
    from memdesc.scenarios.run import Run, StepRecord
    from memdesc.scenarios.scenario import Scenario

STANDARD_INPUT: Final = Path("-")

__all__ = [
    "STANDARD_INPUT",
    "add_files",
    "files_of",
    "letters_of",
    "picture",
    "print_legend",
    "print_problems",
    "record_json",
    "scenarios_of",
]


def add_files(parser: argparse.ArgumentParser, *, default: Path | None = None) -> None:
    """Add FILE..., which may be folders; with a `default`, none need be named."""
    text = "a Markdown file with ```scenario blocks, a folder of them, or - for standard input"
    parser.add_argument(
        "files",
        nargs="*" if default else "+",
        type=Path,
        default=[default] if default else None,
        metavar="FILE",
        help=f"{text} (default: {default})" if default else text,
    )


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Files, and the scenario files below folders, in the order of their names."""
    found: list[Path] = []
    for path in paths:
        if path == STANDARD_INPUT:
            found.append(path)
        elif path.is_dir():
            below = [file for file in sorted(path.rglob("*.md")) if "```scenario" in _text(file)]
            if not below:
                raise QuestionError(
                    f"no scenario files below {path}",
                    hint="a scenario is a block ```scenario in a Markdown file",
                )
            found += below
        elif not path.exists():
            raise NotReadableError(
                f"there is no file {path}",
                hint="memdesc's own scenarios are in the folder scenarios of its repository: "
                "run it in the checkout, or give the folder",
                path=path,
            )
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def scenarios_of(paths: Sequence[Path]) -> Iterator[Scenario]:
    """Every scenario of the files, read before the first runs. Raises ScenarioError."""
    yield from [scenario for path in files_of(paths) for scenario in _read(path)]


def picture(observation: Observation) -> list[str]:
    """The letters of all mappings: one line each."""
    from memdesc.scenarios.draw import runs

    rows = [
        (process, name, runs([page.letter for page in pages]))
        for process, names in observation.pages.items()
        for name, pages in names.items()
    ]
    width = max((len(process) + len(name) for process, name, _ in rows), default=0) + 1
    return [f"{f'{process} {name}':<{width}}   {cells}" for process, name, cells in rows]


def letters_of(observation: Observation) -> set[str]:
    """Letters that its picture uses."""
    return {
        page.letter
        for names in observation.pages.values()
        for pages in names.values()
        for page in pages
    }


def print_legend(letters: Iterable[str]) -> None:
    """What the letters mean."""
    from memdesc.scenarios.draw import legend

    lines = legend(list(letters))
    if lines:
        print("\nletters:")
        print("\n".join(f"  {line}" for line in lines))


def print_problems(run: Run) -> None:
    """Each problem with its place, and its picture indented."""
    for problem in run.problems:
        first, *rest = problem.message.split("\n")
        print(f"  {run.scenario.path}:{problem.line}: {first}")
        for line in rest:
            print(f"      {line}")
    if not run.is_complete:
        done, steps = len(run.records), len(run.plan.steps)
        print(f"  the run ended after {done} of {steps} steps")


def record_json(record: StepRecord, run: Run) -> dict[str, Any]:
    """One step of a run."""
    from dataclasses import asdict

    from memdesc.scenarios.expect import outcome_words

    return {
        "line": record.step.line,
        "step": record.step.text,
        "outcome": " ".join(outcome_words(record.step, record.outcome, run.plan.tags)),
        "rules": list(record.rules),
        "pages": {
            process: {name: [asdict(page) for page in pages] for name, pages in names.items()}
            for process, names in record.observation.pages.items()
        },
        "areas": {
            process: [asdict(area) for area in areas]
            for process, areas in record.observation.areas.items()
        },
        "counters": dict(record.observation.counters),
        "problems": [
            {"line": problem.line, "message": problem.message} for problem in record.problems
        ],
    }


# --- helpers -----------------------------------------------------------------------------


def _read(path: Path) -> tuple[Scenario, ...]:
    from memdesc.scenarios.reader import read_file, read_text
    from memdesc.scenarios.source import MOST_BYTES, text_of

    if path != STANDARD_INPUT:
        return read_file(path)
    name = Path("<standard input>")
    return read_text(text_of(sys.stdin.buffer.read(MOST_BYTES + 1), name), name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise NotReadableError(f"cannot read {path}: {error.strerror}", path=path) from error

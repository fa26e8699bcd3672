"""Write what a run showed into the file, as its expectations.

Only what a run can know changes: what stands behind `->`, and the cells of rows below `expect`.
Prose, comments, the order of lines and `# version` stay. Where kernels differ in a line that holds
for all of them, it becomes one line for each, below `# version` lines of its own.

A row whose cells are `...` and a step that ends in `-> ...` wait to be recorded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from memdesc.kernels.release import KernelRelease
from memdesc.scenarios.draw import runs, span_text
from memdesc.scenarios.expect import cells_of, names_of_frames, outcome_words, states_of
from memdesc.scenarios.expectation import GONE, Check, Subject
from memdesc.scenarios.language import Result
from memdesc.scenarios.observation import Area, PageState
from memdesc.scenarios.outcome import ANYTHING
from memdesc.scenarios.places import PAGE, Placement
from memdesc.scenarios.reader import VERSION_LINE, read_text
from memdesc.scenarios.run import Run, StepRecord
from memdesc.scenarios.scenario import Scenario, ScenarioError
from memdesc.scenarios.verbs import VERBS
from memdesc.scenarios.words import nearest

__all__ = ["RunOn", "record_text"]

RunOn = Callable[[Scenario, str], Run]
"""Runs a scenario on a series ("6.12")."""

_Edits = dict[int, dict[str, str]]
"""line -> series -> what it has to say there."""

_COMMENT = re.compile(r"\s#.*$")
_SHORT: Final = 3


def record_text(text: str, path: Path, series: Sequence[str], run_on: RunOn) -> str:
    """`text` with the expectations that runs on all of `series` show.

    A step that ends otherwise than written ends a run, so the file is run again with what was
    learned, until every run comes to its end. Raises ScenarioError where that never happens.
    """
    for _ in range(2 + text.count("\n")):
        edits: _Edits = {}
        complete = True
        lines = [line.rstrip("\r") for line in text.split("\n")]
        for scenario in read_text(text, path):
            for name in series:
                if not _has_steps(scenario, KernelRelease.parse(name)):
                    continue
                run = run_on(scenario, name)
                complete &= run.is_complete
                for record in run.records:
                    _edit(record, run, name, lines, edits)
        written = _apply(text, edits)
        if complete and written == text:
            return text
        if written == text:
            break
        text = written
    raise ScenarioError(
        "what a run shows does not make the next run come further",
        path=str(path),
        line=1,
        hint="run it with --step to see where it ends",
    )


# --- what a line has to say ----------------------------------------------------------------


def _edit(record: StepRecord, run: Run, series: str, lines: Sequence[str], edits: _Edits) -> None:
    """Note what the step's line and its rows have to say on this series."""
    line = lines[record.step.line - 1]
    edits.setdefault(record.step.line, {})[series] = _step_line(line, record, run)
    names: dict[int, dict[int, str]] = {}
    if record is run.records[-1] and not run.is_complete:
        return  # The rows are about a state that was not reached.
    for check in record.step.checks:
        row = lines[check.line - 1]
        edits.setdefault(check.line, {})[series] = _row_line(
            row, check, record, names.setdefault(check.group, {}), run
        )


def _step_line(line: str, record: StepRecord, run: Run) -> str:
    if record.step.expected == (ANYTHING,):
        return line
    bare, comment = _split(line)
    left, arrow, _ = bare.partition("->")
    words = outcome_words(record.step, record.outcome, run.plan.tags)
    result = VERBS[record.step.verb].result
    wanted = not record.outcome.succeeded or result in (Result.CONTENTS, Result.NUMBERS)
    if words == ("ok",) or not (arrow or wanted):
        return left.rstrip() + comment
    shown = runs(words) if record.outcome.succeeded else " ".join(words)
    return f"{left.rstrip()} -> {shown}{comment}"


def _row_line(line: str, check: Check, record: StepRecord, names: dict[int, str], run: Run) -> str:
    bare, comment = _split(line)
    head = _head(bare, check)
    body = _body(check, record, names, run)
    return f"{head}{body}{comment}".rstrip()


def _split(line: str) -> tuple[str, str]:
    """The line without its comment, and the comment with the space before it."""
    found = _COMMENT.search(line)
    bare = line if found is None else line[: found.start()].rstrip()
    return (line, "") if found is None else (bare, line[len(bare) :])


def _head(line: str, check: Check) -> str:
    """What stands before the cells, with the spaces that align them."""
    words = 2 if check.subject in (Subject.COUNT, Subject.VMAS) or check.is_of_frames else 3
    words += line.split()[2:3] == ["all"]
    found = re.match(rf"\s*(?:\S+\s+){{{words - 1}}}\S+(\s*)", line)
    if found is None:  # pragma: no cover - the reader has read this line
        raise AssertionError(line)
    return found[0] if found[1] else found[0] + " "


def _body(
    check: Check,
    record: StepRecord,
    names: dict[int, str],
    run: Run,
) -> str:
    seen, watch = record.observation, record.step.watch
    if check.subject is Subject.COUNT:
        return " ".join(str(_counter(check, name, record, run)) for name in check.fields)
    if check.subject is Subject.VMAS:
        return _areas(check, seen.areas[check.process], watch[check.process])
    if check.subject is Subject.SMAPS:
        return _sizes(check, seen.areas[check.process], watch[check.process])
    states = states_of(check, seen)
    if check.subject is Subject.FLAGS:
        return _flags(check, states, run)
    if check.subject is Subject.FRAME:
        return runs(_frames(states, names))
    cells = cells_of(states, check.subject)
    return runs(cells)


def _counter(check: Check, name: str, record: StepRecord, run: Run) -> int:
    found = record.observation.counters.get(name)
    if found is not None:
        return found
    raise ScenarioError(
        f"there is no counter {name[:60]} on {run.where}",
        path=str(run.scenario.path),
        line=check.line,
        hint=nearest(name, record.counted)
        or "where only some kernels have it, a line `# version` goes before it",
    )


def _has_steps(scenario: Scenario, release: KernelRelease) -> bool:
    return any(line.condition.holds(release) for line in scenario.lines)


def _frames(states: Sequence[PageState], names: dict[int, str]) -> list[str]:
    """Letters in the order of first appearance in this `expect`."""
    found = []
    for state in states:
        if state.frame is None:
            found.append(".")
            continue
        if state.frame not in names:
            names[state.frame] = names_of_frames(len(names) + 1)[-1]
        found.append(names[state.frame])
    return found


def _flags(check: Check, states: Sequence[PageState], run: Run) -> str:
    if check.cells[0][:1] in ("+", "-"):
        kept = []
        for cell in check.cells:
            has = [cell[1:] in (*state.flags, *state.volatile) for state in states]
            if all(has) or not any(has):
                kept.append(("+" if has[0] else "-") + cell[1:])
        return " ".join(kept)
    if len({state.flags for state in states}) > 1:
        raise ScenarioError(
            f"the pages of {span_text(check.name, check.first, check.pages)} have different flags",
            path=str(run.scenario.path),
            line=check.line,
            hint="write one row for each kind, or +NAME for what all have",
        )
    asked = set(check.cells)
    flags = [*states[0].flags, *(name for name in states[0].volatile if name in asked)]
    return " ".join(flags) or "none"


def _areas(check: Check, areas: Sequence[Area], names: Mapping[str, Placement]) -> str:
    asked = [names[area.name] for area in check.areas]
    flags = {flag[1:]: None for area in check.areas for flag in area.flags}
    with_kind = any(area.perms[-1:] in ("p", "s") for area in check.areas)
    found = []
    for area in areas:
        start = (names[area.name].address if area.name else 0) + area.first * PAGE
        end = start + area.pages * PAGE
        if not any(start < place.end and place.address < end for place in asked):
            continue
        perms = area.perms[:3].replace("-", "") or "none"
        if with_kind:
            perms = area.perms
        words = [span_text(area.name, area.first, area.pages), perms]
        words += [f"{'+' if flag in area.flags else '-'}{flag}" for flag in flags]
        found.append(" ".join(words))
    return ", ".join(found or [f"{area.name} {GONE}" for area in check.areas])


def _sizes(check: Check, areas: Sequence[Area], names: Mapping[str, Placement]) -> str:
    place = names[check.name]
    low = place.address + check.first * PAGE
    high = low + check.pages * PAGE
    totals = dict.fromkeys(check.fields, 0)
    for area in areas:
        start = (names[area.name].address if area.name else 0) + area.first * PAGE
        if start < high and low < start + area.pages * PAGE:
            for name in totals:
                totals[name] += area.sizes.get(name, 0)
    return " ".join(f"{name}={size}" for name, size in totals.items())


# --- writing it ------------------------------------------------------------------------------


def _apply(text: str, edits: _Edits) -> str:
    """Put the new lines into the text; lines that differ between kernels below `# version`."""
    found: list[str] = []
    condition, end = "all", ""
    waiting: list[dict[tuple[str, ...], str]] = []

    def flush() -> None:
        if not waiting:
            return
        for group in waiting[0]:
            found.append(f"# version {' '.join(group)}{end}")
            found.extend(lines[group] + end for lines in waiting)
        found.append(f"# version {condition}{end}")
        waiting.clear()

    for number, line in enumerate(text.split("\n"), 1):
        version = VERSION_LINE.fullmatch(line.strip())
        groups = _grouped(edits.get(number, {}))
        if len(groups) > 1:
            if waiting and list(waiting[0]) != list(groups):
                flush()
            waiting.append(groups)
            end = "\r" if line.endswith("\r") else ""
            continue
        flush()
        end = "\r" if line.endswith("\r") else ""
        if version:
            condition = version["condition"].strip()
        elif line.lstrip().startswith("```"):
            condition = "all"
        found.append(next(iter(groups.values())) + end if groups else line)
    return "\n".join(found)


def _grouped(texts: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Series that say the same, together."""
    found: dict[str, list[str]] = {}
    for series, text in texts.items():
        found.setdefault(text, []).append(series)
    return {tuple(series): text for text, series in found.items()}

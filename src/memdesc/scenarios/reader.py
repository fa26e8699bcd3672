"""Markdown to scenarios.

A file is prose with fenced blocks whose word is `scenario`; each block is a scenario of its own,
named by the heading above it. Every text has an answer: scenarios, or a `ScenarioError` that says
where and what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from memdesc.errors import FormatError
from memdesc.kernels.conditions import EVERYWHERE, Condition
from memdesc.kernels.release import KernelRelease
from memdesc.scenarios.expectation import Check, Subject
from memdesc.scenarios.observation import ASKED_SMAPS_FIELDS
from memdesc.scenarios.places import Placement
from memdesc.scenarios.resolve import Resolver
from memdesc.scenarios.rows import parse_row
from memdesc.scenarios.scenario import Line, Plan, Scenario, ScenarioError
from memdesc.scenarios.source import read_source
from memdesc.scenarios.step import Step
from memdesc.scenarios.verbs import VERBS

__all__ = ["SERIES", "VERSION_LINE", "plan_for", "read_file", "read_text"]

SERIES: Final = ("6.1", "6.12", "7.2")
"""Kernels that every scenario is read for, and compared with."""

# Possessive and without alternatives for one character: linear in any line.
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}+|~{3,}+)(?P<info>[^`]*)")
_HEADING = re.compile(r" {0,3}#{1,6}(?P<title>\s.*)")
VERSION_LINE = re.compile(r"#\s*version\b(?P<condition>.*)", re.IGNORECASE)
_COMMENT = re.compile(r"(?:^|\s)#.*$")


def read_file(path: Path) -> tuple[Scenario, ...]:
    """Read a file. Raises ScenarioError, NotReadableError."""
    return read_text(read_source(path), path)


def read_text(text: str, path: Path) -> tuple[Scenario, ...]:
    """Read a file's text; `path` is its name in errors. Raises ScenarioError."""
    found = []
    title, opened, closing = "", 0, ""
    prose: list[str] = []
    block: list[tuple[int, str]] | None = None
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = line.rstrip("\r")
        fence = _FENCE.fullmatch(line)
        word = fence["info"].split()[:1] if fence else []
        if opened:
            if fence and not word and fence["fence"].startswith(closing):
                if block is not None:
                    scenario = Scenario(
                        title or path.stem, path, opened, _lines(block, path), _prose(prose)
                    )
                    found.append(_planned(scenario))
                    prose = []
                opened = 0
            elif block is not None:
                block.append((number, line))
            continue
        heading = _HEADING.fullmatch(line)
        if fence:
            opened, closing = number, fence["fence"]
            block = [] if word == ["scenario"] else None
        elif heading:
            title, prose = _title(heading["title"]), []
        else:
            prose.append(line)
    if opened and block is not None:
        raise ScenarioError(
            "the block that begins here has no end",
            path=str(path),
            line=opened,
            hint=f"end it with a line {closing}",
        )
    if not found:
        raise ScenarioError(
            "no scenario in this file",
            path=str(path),
            line=1,
            hint="a scenario is a block that begins with ```scenario and ends with ```",
        )
    return tuple(found)


def plan_for(scenario: Scenario, release: KernelRelease) -> Plan:
    """The steps that hold on `release`, which may be another one than those of `SERIES`."""
    resolver = Resolver()
    steps: list[Step] = []
    checks: list[Check] = []
    in_expect, group = False, 0
    for line in scenario.lines:
        if not line.condition.holds(release):
            continue
        try:
            if in_expect and line.is_indented:
                watch = _watch_before(steps)
                remembered = steps[-1].remembered
                check = parse_row(line.text, line.number, group, watch, remembered)
                _name_contents(check, resolver)
                checks.append(check)
                continue
            was_expect, in_expect = in_expect, line.text == "expect"
            if in_expect:
                group += 1
                continue
            _check_alone(line.text)
            if was_expect:
                _check_no_row(line.text)
            if checks:
                steps[-1] = replace(steps[-1], checks=(*steps[-1].checks, *checks))
                checks = []
            steps.append(resolver.step(line.text, line.number))
        except FormatError as error:
            raise ScenarioError(
                str(error), path=str(scenario.path), line=line.number, hint=error.hint
            ) from error
    if checks:
        steps[-1] = replace(steps[-1], checks=(*steps[-1].checks, *checks))
    unfinished = resolver.unfinished()
    if unfinished is not None:
        number, wrong = unfinished
        raise ScenarioError(str(wrong), path=str(scenario.path), line=number, hint=wrong.hint)
    every = [check for step in steps for check in step.checks]
    return Plan(
        steps=tuple(steps),
        tags=dict(resolver.tags),
        counters=tuple(
            sorted({name for c in every if c.subject is Subject.COUNT for name in c.fields})
        ),
        soft_dirty=any(_asks_soft_dirty(check) for check in every),
        referenced=any(_asks_referenced(check) for check in every),
        changes_system=any(VERBS[step.verb].changes_system for step in steps),
    )


# --- helpers -----------------------------------------------------------------------------


def _watch_before(steps: Sequence[Step]) -> Mapping[str, Mapping[str, Placement]]:
    if not steps:
        raise FormatError(
            "expect needs a step before it", hint="its rows say what is seen after that step"
        )
    return steps[-1].watch


def _check_alone(text: str) -> None:
    word = text.split()[0]
    if word.lower().rstrip(":") == "expect":
        raise FormatError(
            "expect stands alone in its line, in small letters",
            hint="write `expect`; its rows follow, indented",
        )


def _check_no_row(text: str) -> None:
    """What follows rows and is not indented is a step."""
    words = text.split()
    subjects = {subject.value for subject in Subject}
    if words[0] not in VERBS and (words[0] == "count" or not subjects.isdisjoint(words[1:4])):
        is_step = words[0].endswith(":")
        if not is_step:
            raise FormatError(
                f"a row of expect that is not indented: {text[:40]!r}",
                hint="write spaces before it",
            )


def _planned(scenario: Scenario) -> Scenario:
    if not scenario.lines:
        raise ScenarioError(
            "this block has no steps",
            path=str(scenario.path),
            line=scenario.line,
            hint="the first is `process p`, mostly",
        )
    # What a plan says follows from the lines that hold: most scenarios have one for all kernels.
    made: dict[tuple[int, ...], Plan] = {}
    plans = {}
    for series in SERIES:
        release = KernelRelease.parse(series)
        lines = tuple(line.number for line in scenario.lines if line.condition.holds(release))
        if lines not in made:
            made[lines] = plan_for(scenario, release)
        plans[series] = made[lines]
    # Lines for other releases are read as well: what is wrong there is wrong today.
    known = [KernelRelease.parse(series) for series in SERIES]
    for condition in sorted({line.condition for line in scenario.lines}, key=str):
        if not any(map(condition.holds, known)):
            plan_for(scenario, condition.example())
    return replace(scenario, plans=plans)


def _lines(block: Sequence[tuple[int, str]], path: Path) -> tuple[Line, ...]:
    found = []
    condition = EVERYWHERE
    for number, text in block:
        version = VERSION_LINE.fullmatch(text.strip())
        if version:
            try:
                condition = Condition.parse(version["condition"])
                condition.example()
            except FormatError as error:
                raise ScenarioError(
                    str(error), path=str(path), line=number, hint=error.hint
                ) from error
            continue
        bare = _COMMENT.sub("", text).rstrip()
        if bare.strip():
            found.append(Line(number, bare.strip(), bare[:1].isspace(), condition))
    return tuple(found)


def _title(text: str) -> str:
    """A heading without its spaces, and without # behind it."""
    text = text.strip()
    bare = text.rstrip("#")
    return bare.rstrip() if bare == "" or bare[-1].isspace() else text


def _prose(lines: Sequence[str]) -> str:
    return "\n".join(lines).strip()


def _asks_soft_dirty(check: Check) -> bool:
    if check.subject is Subject.SOFT_DIRTY:
        return True
    return any(flag[1:] == "sd" for area in check.areas for flag in area.flags)


def _asks_referenced(check: Check) -> bool:
    return check.subject is Subject.SMAPS and not set(ASKED_SMAPS_FIELDS).isdisjoint(check.fields)


def _name_contents(check: Check, resolver: Resolver) -> None:
    """A row may name a content that no step wrote: then it is no ? but that."""
    if check.subject is Subject.CONTENT:
        resolver.name_contents(check.cells)

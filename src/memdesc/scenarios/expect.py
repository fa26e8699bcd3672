"""Is what a step gave, and what is seen after it, what the scenario expects?

Each answer that is "no" is a `Problem`: the line, and a picture of what was expected and found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.scenarios.draw import marked, runs, span_text
from memdesc.scenarios.expectation import GONE, WAITS, AreaCheck, Check, Subject
from memdesc.scenarios.language import Result
from memdesc.scenarios.observation import Area, Observation, PageState
from memdesc.scenarios.outcome import ANYTHING, CODES, Outcome
from memdesc.scenarios.places import PAGE, Placement
from memdesc.scenarios.step import Step
from memdesc.scenarios.verbs import VERBS

__all__ = [
    "Problem", "cells_of", "check_outcome", "check_rows", "names_of_frames", "outcome_words",
    "states_of",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Problem:
    """One expectation that does not hold."""

    line: int
    message: str
    """First line: what; the others, if any, a picture."""


def outcome_words(step: Step, outcome: Outcome, tags: Mapping[int, str]) -> tuple[str, ...]:
    """What a scenario writes behind -> for `outcome`; ("ok",) where there is nothing to write."""
    if outcome.errno:
        return (outcome.errno,)
    if outcome.signal:
        return (outcome.signal, outcome.code) if outcome.code else (outcome.signal,)
    value = outcome.value
    result = VERBS[step.verb].result
    if value is None or result is Result.NOTHING:
        return ("ok",)
    items = value if isinstance(value, tuple) else (value,)
    if result is Result.CONTENTS:
        return tuple(tags.get(item, "?") if isinstance(item, int) else "?" for item in items)
    return tuple("?" if item is None else str(item) for item in items)


def check_outcome(step: Step, outcome: Outcome, tags: Mapping[int, str]) -> Problem | None:
    """Whether the step ended as its line says."""
    found = outcome_words(step, outcome, tags)
    expected = step.expected
    if expected == WAITS:
        return Problem(step.line, f"`{step.text}` is not recorded yet")
    if expected == (ANYTHING,):
        return None
    if expected is None or expected == ("ok",):
        if outcome.succeeded:
            return None
        return Problem(step.line, f"`{step.text}` must succeed, found {' '.join(found)}")
    if expected == found or (expected[0] in CODES and expected == found[: len(expected)]):
        return None
    if outcome.succeeded and len(expected) == len(found) > 1:
        picture = "\n".join(marked(expected, found))
        return Problem(step.line, f"`{step.text}`\n{picture}")
    return Problem(
        step.line, f"`{step.text}`: expected {runs(expected)}, found {runs(found) or 'nothing'}"
    )


def check_rows(
    checks: Sequence[Check],
    observation: Observation,
    release: KernelRelease,
    watch: Mapping[str, Mapping[str, Placement]],
) -> list[Problem]:
    """Every row that does not hold, in the order of the file."""
    frames = _Frames(observation, checks)
    found = []
    for check in checks:
        message = _message(check, observation, release, watch, frames)
        if message:
            found.append(Problem(check.line, message))
    return found


def states_of(check: Check, observation: Observation) -> tuple[PageState, ...]:
    """The pages that a row is about, or the frames; fewer where they were not seen."""
    if check.is_of_frames:
        states = observation.frames.get(check.name, ())
    else:
        states = observation.pages.get(check.process, {}).get(check.name, ())
    return states[check.first : check.first + check.pages]


def cells_of(states: Iterable[PageState], subject: Subject) -> tuple[str, ...]:
    """What a row of `subject` would have to say of these pages. Not for FRAME."""
    match subject:
        case Subject.PAGE:
            return tuple(state.letter for state in states)
        case Subject.CONTENT:
            return tuple("." if state.content is None else state.content for state in states)
        case Subject.MAPCOUNT:
            # A free frame has no flags; one that `remember` named has a map count all the same.
            return tuple(
                str(state.mapcount) if state.flags or not state.letter else "." for state in states
            )
        case Subject.REFS:
            return tuple("." if state.refs is None else str(state.refs) for state in states)
        case Subject.SOFT_DIRTY:
            return tuple(str(int(bool(state.soft_dirty))) for state in states)
        case _:
            raise AssertionError(subject)


def names_of_frames(count: int) -> list[str]:
    """Letters for so many frames: a to z, then a1, b1, ..."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [
        letters[number % 26] + (str(number // 26) if number >= 26 else "")
        for number in range(count)
    ]


# --- helpers -----------------------------------------------------------------------------


def _message(
    check: Check,
    observation: Observation,
    release: KernelRelease,
    watch: Mapping[str, Mapping[str, Placement]],
    frames: _Frames,
) -> str:
    """What is wrong; "" where the row holds."""
    if check.waits:
        return f"`{check.text}` is not recorded yet"
    if check.subject is Subject.COUNT:
        return _count(check, observation)
    if not check.is_of_frames and check.process not in observation.pages:
        return f"process {check.process} does not live"
    if check.subject is Subject.VMAS:
        return _vmas(check, observation.areas[check.process], watch[check.process])
    if check.subject is Subject.SMAPS:
        return _smaps(check, observation.areas[check.process], watch[check.process])
    states = states_of(check, observation)
    if check.subject is Subject.FLAGS:
        return _flags(check, states, release)
    found = frames.row(check) if check.subject is Subject.FRAME else cells_of(states, check.subject)
    if _equal(check, found):
        return ""
    if check.subject is Subject.REFS and all(state.refs is None for state in states):
        return ""  # Reference counts cannot be seen there, which is no difference.
    return "\n".join([_title(check), *marked(check.cells, found, check.first)])


def _equal(check: Check, found: Sequence[str]) -> bool:
    return tuple(check.cells) == tuple(found)


def _title(check: Check) -> str:
    where = span_text(check.name, check.first, check.pages)
    return f"{check.process} {where} {check.subject.value}".lstrip()


class _Frames:
    """Which letters stand for which frames, in each `expect`.

    A letter means the frame at its first place; frames that no row names get letters that no row
    uses. So a wrong row shows where it goes wrong, and not every row behind it.
    """

    def __init__(self, observation: Observation, checks: Sequence[Check]) -> None:
        self._observation = observation
        self._names: dict[int, dict[int, str]] = {}
        for check in checks:
            if check.subject is not Subject.FRAME:
                continue
            names = self._names.setdefault(check.group, {})
            for cell, frame in zip(check.cells, self._frames(check), strict=False):
                taken = cell in names.values()
                if frame is not None and frame not in names and cell != "." and not taken:
                    names[frame] = cell

    def row(self, check: Check) -> tuple[str, ...]:
        names = self._names[check.group]
        spare = (
            name
            for name in names_of_frames(26 + 2 * len(names) + check.pages)
            if name not in set(names.values())
        )
        found = []
        for frame in self._frames(check):
            if frame is not None and frame not in names:
                names[frame] = next(spare)
            found.append("." if frame is None else names[frame])
        return tuple(found)

    def _frames(self, check: Check) -> list[int | None]:
        return [state.frame for state in states_of(check, self._observation)]


def _flags(check: Check, states: Sequence[PageState], release: KernelRelease) -> str:
    # These kernels show KSM on all anonymous memory, so it is no flag of an observation.
    ignored = {"KSM"} if behaviour_of(release).ksm_bit_on_all_anon else set()
    signed = [cell for cell in check.cells if cell[:1] in "+-"]
    for index, state in enumerate(states):
        has = set(state.flags) | set(state.volatile)
        if signed:
            wanted = {cell[1:] for cell in signed if cell[0] == "+"} - ignored
            unwanted = {cell[1:] for cell in signed if cell[0] == "-"} - ignored
            lacking, excess = wanted - has, unwanted & has
        else:
            wanted = set(check.cells) - {"none"} - ignored
            lacking, excess = wanted - has, set(state.flags) - wanted - ignored
        if lacking or excess:
            parts = []
            if lacking:
                parts.append("lacks " + " ".join(sorted(lacking)))
            if excess:
                parts.append("has " + " ".join(sorted(excess)) + " besides")
            where = span_text(check.name, check.first + index, 1)
            shown = " ".join((*state.flags, *(f"({name})" for name in state.volatile))) or "none"
            return f"{check.process} {where} {' and '.join(parts)}\nfound       {shown}".lstrip()
    return ""


def _vmas(check: Check, areas: Sequence[Area], names: Mapping[str, Placement]) -> str:
    wanted = [(*_addresses(area, names), area) for area in check.areas if area.perms != GONE]
    touched = [_placement(area, names) for area in check.areas]
    found = [
        (*_bounds(area, names), area)
        for area in areas
        if any(_overlaps(_bounds(area, names), place) for place in touched)
    ]
    good = len(wanted) == len(found) and all(
        one[:2] == other[:2] and _perms_fit(one[2], other[2])
        for one, other in zip(sorted(wanted, key=lambda item: item[0]), found, strict=True)
    )
    if good:
        return ""
    expected = ", ".join(
        f"{span_text(area.name, area.first, area.pages)} {' '.join((area.perms, *area.flags))}"
        for area in check.areas
    )
    seen = ", ".join(_area_text(area) for _, _, area in found) or "none"
    return f"{check.process} vmas\nexpected    {expected}\nfound       {seen}"


def _area_text(area: Area) -> str:
    name = area.name or "(beside)"
    flags = " ".join(area.flags)
    return f"{span_text(name, area.first, area.pages)} {area.perms} ({flags})"


def _placement(area: AreaCheck, names: Mapping[str, Placement]) -> Placement:
    """Where areas are looked for: in the whole mapping, or only where one must be gone."""
    if area.perms != GONE:
        return names[area.name]
    return Placement(names[area.name].address + area.first * PAGE, area.pages)


def _addresses(area: AreaCheck, names: Mapping[str, Placement]) -> tuple[int, int]:
    start = names[area.name].address + area.first * PAGE
    return start, start + area.pages * PAGE


def _bounds(area: Area, names: Mapping[str, Placement]) -> tuple[int, int]:
    base = names[area.name].address if area.name else 0
    start = base + area.first * PAGE
    return start, start + area.pages * PAGE


def _overlaps(bounds: tuple[int, int], place: Placement) -> bool:
    return bounds[0] < place.end and place.address < bounds[1]


def _perms_fit(wanted: AreaCheck, found: Area) -> bool:
    allowed = {letter for letter in found.perms[:3] if letter != "-"}
    asked = wanted.perms.rstrip("ps")
    kind = wanted.perms[len(asked) :]
    if {letter for letter in asked if letter != "-"} != allowed:
        return False
    if kind and found.perms[3:] != kind:
        return False
    return all((flag[1:] in found.flags) == (flag[0] == "+") for flag in wanted.flags)


def _smaps(check: Check, areas: Sequence[Area], names: Mapping[str, Placement]) -> str:
    place = names[check.name]
    asked = Placement(place.address + check.first * PAGE, check.pages)
    mine = [area for area in areas if _overlaps(_bounds(area, names), asked)]
    wrong = []
    for name, wanted in check.fields.items():
        if mine and any(name not in area.sizes for area in mine):
            wrong.append(f"this kernel's smaps has no {name}")
            continue
        found = sum(area.sizes[name] for area in mine)
        if found != wanted:
            wrong.append(f"{name}: expected {wanted} kB, found {found} kB")
    if not wrong:
        return ""
    return "\n".join([f"{check.process} smaps {check.name}", *wrong])


def _count(check: Check, observation: Observation) -> str:
    for name, wanted in check.fields.items():
        if name not in observation.counters:
            return f"there is no counter {name} here"
        found = observation.counters[name]
        if found != wanted:
            return f"count {name}: expected {wanted}, found {found}"
    return ""

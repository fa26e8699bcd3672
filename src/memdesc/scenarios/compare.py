"""Two runs of one scenario: where do they first differ?

Everything that was observed is compared after every step, not only what the scenario expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

from memdesc.scenarios.draw import legend, marked, span_text
from memdesc.scenarios.expect import outcome_words
from memdesc.scenarios.observation import Area, Observation, PageState
from memdesc.scenarios.run import Run, StepRecord

__all__ = ["Difference", "differences_of_pages", "first_difference"]

_MOST_LINES: Final = 12


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two runs part."""

    line: int
    step: str
    """The step after which they differ, as it is written."""
    what: str
    """"p buf[2]: letter, mapcount", or what else differs."""
    picture: tuple[str, ...]
    rules: tuple[str, ...] = ()
    """What the model did in that step, by its rules."""


def first_difference(one: Run, other: Run) -> Difference | None:
    """The first difference of two runs of the same scenario; None where there is none."""
    names = (one.where, other.where)
    for mine, theirs in zip(one.records, other.records, strict=False):
        found = _of_step(one, mine, theirs, names)
        if found is not None:
            what, picture = found
            return Difference(
                mine.step.line,
                mine.step.text,
                what,
                tuple(picture),
                mine.rules or theirs.rules,
            )
    if len(one.records) != len(other.records):
        longer = max(one, other, key=lambda run: len(run.records))
        step = longer.records[min(len(one.records), len(other.records))].step
        return Difference(step.line, step.text, f"only {longer.where} came to this step", ())
    return None


def differences_of_pages(one: PageState, other: PageState) -> list[tuple[str, str, str]]:
    """(what, in `one`, in `other`) for everything in which two pages differ.

    References and contents are compared where both sides can see them.
    """
    found = []
    for field in fields(PageState):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if not field.compare or mine == theirs:
            continue
        if field.name in ("refs", "content") and None in (mine, theirs):
            continue
        if field.name == "flags":
            only = " ".join(sorted(set(mine) - set(theirs))) or "-"
            theirs_only = " ".join(sorted(set(theirs) - set(mine))) or "-"
            found.append(("flags, only there", only, theirs_only))
            continue
        found.append((field.name.replace("_", " "), _shown(mine), _shown(theirs)))
    return found


# --- helpers -----------------------------------------------------------------------------


def _of_step(
    run: Run, mine: StepRecord, theirs: StepRecord, names: tuple[str, str]
) -> tuple[str, list[str]] | None:
    tags = run.plan.tags
    words = outcome_words(mine.step, mine.outcome, tags)
    other_words = outcome_words(theirs.step, theirs.outcome, tags)
    if words != other_words:
        if len(words) == len(other_words) > 1 and mine.outcome.succeeded:
            return "what the step returned", marked(words, other_words, 0, names)
        return "how the step ended", [
            f"{name}: {' '.join(found)}"
            for name, found in zip(names, (words, other_words), strict=True)
        ]
    return (
        _of_pages(mine.observation, theirs.observation, names)
        or _of_frames(mine.observation, theirs.observation, names)
        or _of_areas(mine.observation, theirs.observation, names)
        or _of_counters(mine.observation, theirs.observation, names)
    )


def _of_pages(
    one: Observation, other: Observation, names: tuple[str, str]
) -> tuple[str, list[str]] | None:
    if list(one.pages) != list(other.pages):
        return "the processes that live", [
            f"{name}: {' '.join(found.pages)}"
            for name, found in zip(names, (one, other), strict=True)
        ]
    for process, mappings in one.pages.items():
        for name, pages in mappings.items():
            theirs = other.pages[process][name]
            if pages == theirs:
                continue
            if len(pages) != len(theirs):
                return f"{process} {name}: how many pages were seen", [
                    f"{where}: {len(found)}"
                    for where, found in zip(names, (pages, theirs), strict=True)
                ]
            found = _of_mapping(pages, theirs, names)
            if found is not None:
                index, picture = found
                return f"{process} {span_text(name, index, 1)}", picture
    return None


def _of_frames(
    one: Observation, other: Observation, names: tuple[str, str]
) -> tuple[str, list[str]] | None:
    for name, frames in one.frames.items():
        found = _of_mapping(frames, other.frames[name], names)
        if found is not None:
            return span_text(name, found[0], 1), found[1]
    return None


def _of_mapping(
    pages: Sequence[PageState], theirs: Sequence[PageState], names: tuple[str, str]
) -> tuple[int, list[str]] | None:
    for index, (mine, other) in enumerate(zip(pages, theirs, strict=True)):
        different = differences_of_pages(mine, other)
        if not different:
            continue
        letters = [page.letter for page in pages]
        other_letters = [page.letter for page in theirs]
        picture = marked(letters, other_letters, 0, names) if letters != other_letters else []
        width = max(len(what) for what, _, _ in different)
        column = max(len(names[0]), *(len(value) for _, value, _ in different))
        picture.append(f"page {index}")
        picture.append(f"  {'':<{width}}  {names[0]:<{column}}  {names[1]}")
        picture += [
            f"  {what:<{width}}  {value:<{column}}  {theirs_value}"
            for what, value, theirs_value in different
        ]
        picture += legend([mine.letter, other.letter]) if mine.letter != other.letter else []
        return index, picture
    return None


def _of_areas(
    one: Observation, other: Observation, names: tuple[str, str]
) -> tuple[str, list[str]] | None:
    for process, areas in one.areas.items():
        theirs = other.areas.get(process, ())
        if areas == theirs:
            continue
        shapes = [_shape(area) for area in areas]
        other_shapes = [_shape(area) for area in theirs]
        if shapes != other_shapes:
            picture = []
            for name, found, others in (
                (names[0], shapes, set(other_shapes)),
                (names[1], other_shapes, set(shapes)),
            ):
                picture += [f"only {name}: {shape}" for shape in found if shape not in others]
            return f"{process}: areas", picture[:_MOST_LINES]
        for mine, area in zip(areas, theirs, strict=True):
            keys = list({**mine.sizes, **area.sizes})
            rows = [
                f"{key}: {names[0]} {_shown(mine.sizes.get(key))} kB, "
                f"{names[1]} {_shown(area.sizes.get(key))} kB"
                for key in keys
                if mine.sizes.get(key) != area.sizes.get(key)
            ]
            if rows:
                where = span_text(mine.name or "(beside)", mine.first, mine.pages)
                return f"{process} smaps of {where}", rows[:_MOST_LINES]
    return None


def _shape(area: Area) -> str:
    where = span_text(area.name or "(beside)", area.first, area.pages)
    file = f" {area.file} at page {area.page}" if area.file or area.page else ""
    return f"{where} {area.perms}{file} ({' '.join(area.flags)})"


def _of_counters(
    one: Observation, other: Observation, names: tuple[str, str]
) -> tuple[str, list[str]] | None:
    rows = [
        f"{key}: {names[0]} {_shown(one.counters.get(key))}, "
        f"{names[1]} {_shown(other.counters.get(key))}"
        for key in {**one.counters, **other.counters}
        if one.counters.get(key) != other.counters.get(key)
    ]
    return ("counters", rows[:_MOST_LINES]) if rows else None


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)

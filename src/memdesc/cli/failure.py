"""`memdesc failure`."""

from __future__ import annotations

import argparse
import textwrap

from memdesc.answers.failure import FAILURE_BY, Failure, FailureRow, failure
from memdesc.answers.places import parse_place
from memdesc.answers.story import Story, tell
from memdesc.answers.titles import title_of
from memdesc.answers.what import NoAnswer, NoPage
from memdesc.cli.common import (
    add_source_arguments,
    console,
    envelope,
    open_from,
    percent,
    print_json,
    progress,
    screen_width,
    size,
    table,
    visible,
)
from memdesc.errors import NotReadableError, QuestionError
from memdesc.map.extents import MemoryMap, Totals
from memdesc.rules.failure import Consequence
from memdesc.types import PAGE_SIZE_BYTES

DESCRIPTION = (
    "What would a memory error do? Without places: for every frame of the machine, what the\n"
    "kernel would answer, and the odds when one random frame goes bad. With places: the whole\n"
    "story of each page. Nothing is poisoned: the answers come from rules that were checked\n"
    "against running kernels (`memdesc matrix`)."
)
EXAMPLES = """
  memdesc failure                            what survives, and what does not
  memdesc failure --by zone
  memdesc failure 0x1234 phys:0x7f000        two pages
  memdesc failure --source bundled:debian-6.1 --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("places", nargs="*", metavar="PLACE", help="0xPFN, phys:0xADDR, PID:0xADDR")
    parser.add_argument(
        "--by", choices=FAILURE_BY, default="type", help="split the rows (default: type)"
    )
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    return _places(options) if options.places else _machine(options)


def _machine(options: argparse.Namespace) -> int:
    source = open_from(options)
    result: MemoryMap | Totals
    with progress("reading page flags") as step:
        result = source.map(step) if options.by == "cgroup" else source.summary(step)
    answer = failure(result, options.by)
    if options.json:
        value = envelope(answer.to_json(), source=options.source, kernel=result.machine.release)
        print_json(value)
    else:
        _show(answer)
    return 0


def _show(answer: Failure) -> None:
    out = console()
    out.print("if one random frame goes bad", style="bold")
    injected = {odds.consequence: odds for odds in answer.odds_injected}
    rows = []
    for consequence in Consequence:
        real = next((odds for odds in answer.odds if odds.consequence is consequence), None)
        soft = injected.get(consequence)
        if real is None and soft is None:
            continue
        low, high = (real.frames_min, real.frames_max) if real else (0, 0)
        test = (soft.frames_min, soft.frames_max) if soft else (0, 0)
        rows.append(
            [
                consequence.value,
                _share(low, high, answer.frames),
                _sizes(low, high),
                _share(*test, answer.frames),
            ]
        )
    head = ["what happens", "chance", "memory", "when only injected"]
    out.print(table(head, rows, right=(1, 2, 3), elastic=(0,)))
    out.print()
    parts = ["type"] if answer.by == "type" else [answer.by, "type"]
    lines = [
        [
            *([visible(row.part)] if answer.by != "type" else []),
            title_of(row.types),
            size(row.size_bytes),
            percent(row.frames, answer.frames),
            _verdicts(row),
            " or ".join(dict.fromkeys(outcome.errno for outcome in row.soft.outcomes)),
            _meaning(row),
        ]
        for row in _joined(answer.rows)
    ]
    head = [*parts, "size", "share", "hard offline", "soft offline", "on broken memory"]
    shown = lines[:24]
    first = len(parts)
    out.print(table(head, shown, right=(first, first + 1), elastic=(*range(first), first + 4)))
    if len(lines) > len(shown):
        out.print(f"... and {len(lines) - len(shown)} smaller rows (--json)", style="dim")
    out.print(
        "\nhard offline: the kernel's verdict (memory_failure); soft offline: moved away first, "
        "or the error",
        style="dim",
    )
    for note in answer.notes:
        out.print(f"note: {note}", markup=False)


def _joined(rows: tuple[FailureRow, ...]) -> list[FailureRow]:
    """Rows that read the same on the screen, added up."""
    sums: dict[tuple[object, ...], FailureRow] = {}
    for row in rows:
        key = row.part, row.types, _verdicts(row), _meaning(row), row.soft.outcomes
        old = sums.get(key)
        frames = row.frames + (old.frames if old else 0)
        sums[key] = FailureRow(row.part, row.types, frames, row.hard, row.soft)
    return sorted(sums.values(), key=lambda row: -row.frames)


def _places(options: argparse.Namespace) -> int:
    places = [parse_place(text) for text in options.places]
    source = open_from(options)
    answers: list[Story | NoPage | NoAnswer] = []
    for place in places:
        try:
            answers.append(tell(source, place))
        except (QuestionError, NotReadableError) as error:
            if len(places) == 1:
                raise
            answers.append(NoAnswer(place.text, str(error), error.hint))
    if options.json:
        value = {"schema": "memdesc-failure/1", "rows": [answer.to_json() for answer in answers]}
        print_json(envelope(value, source=options.source, kernel=source.machine.release))
    else:
        print("\n\n".join(_story(answer) for answer in answers))
    return 2 if any(isinstance(answer, NoAnswer) for answer in answers) else 0


def _story(answer: Story | NoPage | NoAnswer) -> str:
    if isinstance(answer, NoAnswer):
        return f"{answer.asked}  error: {answer.error}"
    if isinstance(answer, NoPage):
        return f"{answer.asked}  {answer.reason}"
    page = answer.page
    lines = [f"{page.asked}  {title_of(page.types)}"]
    if page.pages.nr_pages > 1:
        lines.append(
            _line("part of", f"{size(page.pages.nr_pages * PAGE_SIZE_BYTES)} at {page.pages}")
        )
    for outcome in answer.hard.outcomes:
        log = (
            f' ("{outcome.message}: {outcome.verdict.value.capitalize()}")'
            if outcome.message
            else ""
        )
        lines.append(
            _line("hard", f"{outcome.verdict.value}{log}, {outcome.errno}: {outcome.reason}")
        )
        lines.append(_line("  injected", outcome.injected.value))
        if outcome.on_hardware is not outcome.injected:
            lines.append(_line("  for real", outcome.on_hardware.value))
    for soft in answer.soft.outcomes:
        lines.append(_line("soft", f"{soft.errno}: {soft.reason}"))
    for name, ruling in (("compaction", answer.compaction), ("offlining", answer.offlining)):
        texts = [
            f"moves ({one.by.value})" if one.moves else f"stays: {one.obstacle.value}"
            for one in ruling.outcomes
        ]
        lines.append(_line(name, ", or ".join(dict.fromkeys(texts))))
    for told in answer.dirtied.outcomes:
        call = f" through {told.callback}" if told.callback else ""
        lines.append(_line("dirtied", f"{told.tells.value}{call}: {told.reason}"))
    certainty = answer.hard.certainty.value
    lines.append(_line("how sure", f"type {page.rule.certainty.value}, failure {certainty}"))
    return "\n".join(lines)


# --- helpers -----------------------------------------------------------------------------


def _line(name: str, text: str) -> str:
    first, rest = f"  {name:<12}", " " * 14
    width = screen_width()
    if width is None or len(first) + len(text) <= width:
        return first + text
    return textwrap.fill(
        text, max(width, 40), initial_indent=first, subsequent_indent=rest, break_long_words=False
    )


def _verdicts(row: FailureRow) -> str:
    return " or ".join(dict.fromkeys(outcome.verdict.value for outcome in row.hard.outcomes))


def _meaning(row: FailureRow) -> str:
    return ", or ".join(dict.fromkeys(outcome.on_hardware.value for outcome in row.hard.outcomes))


def _share(low: int, high: int, whole: int) -> str:
    first, last = percent(low, whole), percent(high, whole)
    return first if first == last else f"{first} to {last}"


def _sizes(low: int, high: int) -> str:
    first, last = size(low * PAGE_SIZE_BYTES), size(high * PAGE_SIZE_BYTES)
    return first if first == last else f"{first} to {last}"

"""`memdesc failure`."""

from __future__ import annotations

import argparse
import sys
import textwrap

from memdesc.answers.brief import (
    failure_basis,
    failure_ends,
    failure_errnos,
    failure_rows,
    failure_verdicts,
)
from memdesc.answers.exposure import (
    Exposure,
    FileExposure,
    ProcessExposure,
    RangeExposure,
    failure_by_file,
    failure_by_process,
    failure_by_range,
)
from memdesc.answers.failure import Failure, failure
from memdesc.answers.ledger import COUNTED_BY
from memdesc.answers.places import parse_place
from memdesc.answers.story import Story, tell
from memdesc.answers.titles import title_of
from memdesc.answers.usage import Usage
from memdesc.answers.what import NoAnswer, NoPage, each_place
from memdesc.checks.observed import observed_on
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
from memdesc.errors import QuestionError
from memdesc.map.attribution import Attribution
from memdesc.map.extents import MemoryMap, Totals
from memdesc.map.parts import InParts
from memdesc.rules.failure import Consequence
from memdesc.sources.source import Source
from memdesc.types import PAGE_SIZE_BYTES

DESCRIPTION = (
    "What would a memory error do? Without places: for every frame of the machine, what the\n"
    "kernel would answer, and the odds when one random frame goes bad. With places: the whole\n"
    "story of each page. Nothing is poisoned: the answers come from rules that were checked\n"
    "against running kernels (`memdesc matrix`)."
)
EXAMPLES = """
  memdesc failure                            what survives, and what does not
  memdesc failure --by process               who would die, and of how much
  memdesc failure --by range --gib 4         where the memory lies that must not fail
  memdesc failure 0x1234 phys:0x7f000        two pages
  memdesc failure --source bundled:debian-6.1 --json
"""
_MAPPED = ("process", "file")
_BY = (*COUNTED_BY, *_MAPPED, "range")
_MOST_GIB = 1 << 20


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("places", nargs="*", metavar="PLACE", help="0xPFN, phys:0xADDR, PID:0xADDR")
    parser.add_argument("--by", choices=_BY, default="type", help="split the rows (default: type)")
    parser.add_argument(
        "--gib",
        type=int,
        default=1,
        metavar="N",
        help="with --by range: GiB of a range, a power of two (default: 1)",
    )
    parser.add_argument(
        "--all", action="store_true", help="every row; a terminal shows the largest, a pipe all"
    )
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    if not 1 <= options.gib <= _MOST_GIB:
        raise QuestionError(f"--gib {options.gib}: not between 1 and {_MOST_GIB}")
    if options.places:
        return _places(options)
    if options.by in _MAPPED or options.by == "range":
        return _exposure(options)
    return _machine(options)


# --- the machine -------------------------------------------------------------------------


def _machine(options: argparse.Namespace) -> int:
    source = open_from(options)
    result: MemoryMap | Totals
    with progress("reading page flags") as step:
        if options.by == "cgroup":
            result = source.map(step, references=True)
        else:
            result = source.totals(step, references=True)
    answer = failure(result, options.by, observed=observed_on)
    if options.json:
        value = envelope(answer.to_json(), source=options.source, kernel=result.machine.release)
        print_json(value)
    else:
        _show(answer, everything=options.all)
    return 0


def _show(answer: Failure, *, everything: bool) -> None:
    out = console()
    out.print("if one random frame goes bad", style="bold")
    injected = {odds.consequence: odds for odds in answer.odds_injected}
    rows = []
    for consequence in Consequence:
        real = next((odds for odds in answer.odds if odds.consequence is consequence), None)
        test = injected.get(consequence)
        if real is None and test is None:
            continue
        low, high = (real.frames_min, real.frames_max) if real else (0, 0)
        trial = (test.frames_min, test.frames_max) if test else (0, 0)
        rows.append(
            [
                consequence.value,
                _share(low, high, answer.frames),
                _sizes(low, high),
                _share(*trial, answer.frames),
            ]
        )
    head = ["what happens", "chance", "memory", "when only injected"]
    out.print(table(head, rows, right=(1, 2, 3), elastic=(0,), drop=(3,)))
    out.print()
    first = 0 if answer.by == "type" else 1
    joined = failure_rows(answer.rows)
    most = (
        len(joined)
        if everything or not sys.stdout.isatty()
        else _room(len(rows) + 9 + len(answer.notes))
    )
    lines = [
        [
            *([visible(row.part)] if first else []),
            title_of(row.types),
            size(row.size_bytes),
            failure_verdicts(row),
            failure_errnos(row),
            failure_basis(row),
            failure_ends(row),
        ]
        for row in joined[:most]
    ]
    head = [answer.by] * first + ["type", "size", "hard", "soft", "known", "on broken memory"]
    elastic = (*range(first + 1), first + 2, first + 3, first + 5)
    out.print(table(head, lines, right=(first + 1,), elastic=elastic, drop=(first + 4,)))
    if len(joined) > most:
        frames = sum(row.frames for row in joined[most:])
        out.print(
            f"... and {len(joined) - most} smaller rows, {size(frames * PAGE_SIZE_BYTES)} (--all)",
            style="dim",
        )
    out.print(
        "hard: the kernel's verdict (memory_failure); soft: moved away first, or the error",
        style="dim",
    )
    for note in answer.notes:
        out.print(f"note: {note}", markup=False)


# --- who and where -----------------------------------------------------------------------


def _exposure(options: argparse.Namespace) -> int:
    source = open_from(options)
    answer = _by_range(options, source) if options.by == "range" else _by_mapper(options, source)
    if options.json:
        value = envelope(answer.to_json(), source=options.source, kernel=source.machine.release)
        print_json(value)
        return 0
    out = console()
    most = len(answer.rows) if options.all or not sys.stdout.isatty() else _room(6)
    head, right, elastic = _HEADS[answer.by]
    lines = [_line_of(row) for row in answer.rows[:most]]
    out.print(table(head, lines, right=right, elastic=elastic))
    if len(answer.rows) > most:
        out.print(f"... and {len(answer.rows) - most} more rows (--all)", style="dim")
    for note in answer.notes:
        out.print(f"note: {note}", markup=False)
    return 0


def _by_range(options: argparse.Namespace, source: Source) -> Exposure:
    size_bytes = options.gib << 30
    with progress("reading page flags") as step:
        if isinstance(source, InParts):
            return failure_by_range(source.parts(step), size_bytes)
        return failure_by_range(source.map(step, references=True), size_bytes)


def _by_mapper(options: argparse.Namespace, source: Source) -> Exposure:
    with progress("reading processes") as step:
        attribution = source.attribution(step)
    with progress("reading page flags") as step:
        usage = Usage.of(source.map(step, references=True), attribution)
    return failure_by_process(usage) if options.by == "process" else failure_by_file(usage)


_HEADS: dict[str, tuple[list[str], tuple[int, ...], tuple[int, ...]]] = {
    "process": (
        ["process", "maps", "its loss kills it", "shared", "nothing lost"],
        (1, 2, 3, 4),
        (0,),
    ),
    "file": (["file", "in memory", "would be lost", "processes"], (1, 2, 3), (0,)),
    "range": (
        ["first frame", "memory", "nothing lost", "content lost", "kills", "machine"],
        (0, 1, 2, 3, 4, 5),
        (),
    ),
}


def _line_of(row: ProcessExposure | FileExposure | RangeExposure) -> list[str]:
    if isinstance(row, ProcessExposure):
        return [
            f"{visible(row.comm)} ({row.pid})",
            size(row.mapped_bytes),
            _span(row.kills_min_bytes, row.kills_max_bytes),
            size(row.shared_bytes),
            size(row.harmless_bytes),
        ]
    if isinstance(row, FileExposure):
        return [
            visible(row.name),
            size(row.cached_bytes),
            _span(row.lost_min_bytes, row.lost_max_bytes),
            f"{row.processes:,}",
        ]
    by_end = {odds.consequence: odds for odds in row.odds}
    groups = (
        (Consequence.NOTHING_LOST,),
        (Consequence.CONTENT_LOST,),
        (Consequence.KILLED_ON_TOUCH, Consequence.KILLED_NOW),
        (Consequence.MACHINE_LOST,),
    )
    shares = []
    for group in groups:
        found = [by_end[end] for end in group if end in by_end]
        low, high = sum(o.frames_min for o in found), sum(o.frames_max for o in found)
        shares.append(_brief(low, high, row.frames))
    return [f"{row.pfn_start:#x}", size(row.frames * PAGE_SIZE_BYTES), *shares]


# --- places ------------------------------------------------------------------------------


def _places(options: argparse.Namespace) -> int:
    if len(options.places) == 1:
        parse_place(options.places[0])  # whose error needs no source
    source = open_from(options)
    attribution: Attribution | None = None
    notes: list[str] = []
    try:
        with progress("reading processes") as step:
            attribution = source.attribution(step)
    except QuestionError as error:
        notes.append(f"who would die is not known: {error}")
    answers = each_place(
        options.places,
        lambda place: tell(source, place, attribution=attribution, observed=observed_on),
    )
    if options.json:
        rows = [answer.to_json() for answer in answers]
        value = {"schema": "memdesc-failure/1", "rows": rows, "notes": notes}
        print_json(envelope(value, source=options.source, kernel=source.machine.release))
    else:
        print("\n\n".join(_story(answer) for answer in answers))
        for note in notes:
            print(f"note: {note}")
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
    if answer.file:
        lines.append(_line("file", visible(answer.file)))
    for index, outcome in enumerate(answer.hard.outcomes):
        log = f' ("{outcome.message}: {outcome.verdict.value.capitalize()}")'
        text = outcome.verdict.value + (log if outcome.message else "")
        lines.append(_line("hard", f"{text}, {outcome.errno}: {outcome.reason}"))
        lines.append(_line("  injected", outcome.injected.value))
        if outcome.on_hardware is not outcome.injected:
            lines.append(_line("  for real", outcome.on_hardware.value))
        if index < len(answer.observed_on) and answer.observed_on[index]:
            lines.append(_line("  observed", "on " + ", ".join(answer.observed_on[index])))
    if answer.would_die:
        victims = dict.fromkeys(
            f"{visible(row.process.comm)} ({row.process.pid})" for row in answer.would_die
        )
        shown = list(victims)[:8]
        rest = f" and {len(victims) - len(shown)} more" if len(victims) > len(shown) else ""
        lines.append(_line("would die", ", ".join(shown) + rest))
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


def _room(others: int) -> int:
    """Lines of a table that the terminal has room for beside `others`."""
    import shutil

    return max(4, shutil.get_terminal_size().lines - others - 1)


def _line(name: str, text: str) -> str:
    first, rest = f"  {name:<12}", " " * 14
    width = screen_width()
    if width is None or len(first) + len(text) <= width:
        return first + text
    return textwrap.fill(
        text, max(width, 40), initial_indent=first, subsequent_indent=rest, break_long_words=False
    )


def _share(low: int, high: int, whole: int) -> str:
    first, last = percent(low, whole), percent(high, whole)
    return first if first == last else f"{first} to {last}"


def _brief(low: int, high: int, whole: int) -> str:
    """A share in few cells: "65 to 71 %"."""
    first, last = (f"{100 * part / whole:.0f}" for part in (low, high))
    return f"{first} %" if first == last else f"{first} to {last} %"


def _sizes(low: int, high: int) -> str:
    return _span(low * PAGE_SIZE_BYTES, high * PAGE_SIZE_BYTES)


def _span(low: int, high: int) -> str:
    first, last = size(low), size(high)
    return first if first == last else f"{first} to {last}"

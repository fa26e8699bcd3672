"""`memdesc move`."""

from __future__ import annotations

import argparse
import shutil
import sys
from typing import Any

from memdesc.answers.brief import movement_rows, movement_text
from memdesc.answers.move import Movement, move, parse_area
from memdesc.answers.places import parse_place
from memdesc.answers.titles import title_of
from memdesc.answers.what import NoAnswer, NoPage, pfn_at
from memdesc.cli.common import (
    add_source_arguments,
    console,
    envelope,
    open_from,
    print_json,
    progress,
    size,
    table,
    visible,
)
from memdesc.errors import NotReadableError, QuestionError
from memdesc.map.describe import MapDescriber
from memdesc.map.extents import MemoryMap
from memdesc.map.parts import InParts
from memdesc.sources.source import Source
from memdesc.types import PAGE_SIZE_BYTES, PfnRange

DESCRIPTION = (
    "Can this memory be moved away? A page (as in `memdesc what`), a range of frames, a memory\n"
    "block before it is offlined, or a zone: what lies there, and what would stop it.\n"
    "Exits 1 when something certainly stops it, 2 when a place could not be answered. Nothing is\n"
    "moved."
)
EXAMPLES = """
  memdesc move 0x1234                    a page, with the whole folio it belongs to
  memdesc move block:37                  before: echo offline > .../memory37/state
  memdesc move 0x100000-0x140000         1 GiB of frames
  memdesc move zone:Normal --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "places",
        nargs="+",
        metavar="PLACE",
        help="0xPFN, phys:0xADDR, PID:0xADDR, 0xSTART-0xEND, block:N, zone:NAME",
    )
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    source = open_from(options)
    maps = _Maps(source)
    answers: list[Movement | NoPage | NoAnswer] = []
    for text in options.places:
        try:
            answers.append(maps.area(text) if _is_area(text) else _page(source, text))
        except (QuestionError, NotReadableError) as error:
            if len(options.places) == 1:
                raise
            answers.append(NoAnswer(text, str(error), error.hint))
    if options.json:
        rows: list[dict[str, Any]] = [answer.to_json() for answer in answers]
        value = {"schema": "memdesc-move/1", "rows": rows}
        print_json(envelope(value, source=options.source, kernel=source.machine.release))
    else:
        for index, answer in enumerate(answers):
            if index:
                print()
            _show(answer)
    if any(isinstance(answer, NoAnswer) for answer in answers):
        return 2
    stopped = any(isinstance(a, Movement) and a.can_be_emptied is False for a in answers)
    return 1 if stopped else 0


class _Maps:
    """The whole map of a source, read once at most, and not held where it comes in parts."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._whole: MemoryMap | None = None

    def area(self, text: str) -> Movement:
        """What lies in the area that `text` names, and whether it moves."""
        source = self.source
        if isinstance(source, InParts):
            pages = parse_area(text, source.machine, source.pfn_end)
            with progress("reading page flags") as tell:
                return move(source.parts(tell), pages, text)
        if self._whole is None:
            with progress("reading page flags") as tell:
                self._whole = source.map(tell, owners=True, references=True)
        whole = self._whole
        return move(whole, parse_area(text, whole.machine, whole.pfn_end), text)


def _page(source: Source, text: str) -> Movement | NoPage:
    pfn = pfn_at(source, parse_place(text))
    if isinstance(pfn, NoPage):
        return pfn
    near = source.window(pfn)
    pages: PfnRange = MapDescriber(near).pages_of(pfn)
    return move(near, pages, text)


def _is_area(text: str) -> bool:
    if text.startswith(("block:", "zone:")):
        return True
    head, dash, tail = text.partition("-")
    return bool(dash and head and tail)


def _show(answer: Movement | NoPage | NoAnswer) -> None:
    out = console()
    if isinstance(answer, NoAnswer):
        out.print(f"{answer.asked}  error: {answer.error}", markup=False, highlight=False)
        return
    if isinstance(answer, NoPage):
        out.print(f"{answer.asked}  {answer.reason}", markup=False, highlight=False)
        return
    present = sum(row.frames for row in answer.rows)
    verdict = {
        True: "everything in it can be moved away",
        False: "it cannot be emptied",
        None: "it depends on what this source cannot see",
    }[answer.can_be_emptied]
    if answer.can_be_emptied is None and answer.lacks_room:
        verdict = (
            f"{size(answer.frames_to_move * PAGE_SIZE_BYTES)} would have to go where "
            f"{size((answer.room or 0) * PAGE_SIZE_BYTES)} are free: reclaim must make room"
        )
    out.print(
        f"{answer.name}  {size(present * PAGE_SIZE_BYTES)} in frames {answer.pages}: {verdict}",
        style="bold",
        highlight=False,
        markup=False,
    )
    joined = movement_rows(answer.rows)
    most = len(joined)
    if sys.stdout.isatty():
        most = max(4, shutil.get_terminal_size().lines - 6)
    rows = [
        [
            title_of(row.types) + (f": {visible(row.owner)}" if row.owner else ""),
            size(row.frames * PAGE_SIZE_BYTES),
            f"{row.frames:,}",
            movement_text(row),
            f"{row.first:#x}",
        ]
        for row in joined[:most]
    ]
    head = ["what", "size", "frames", "when it is offlined", "for example"]
    out.print(table(head, rows, right=(1, 2), elastic=(0, 3), drop=(2,)))
    if len(joined) > len(rows):
        out.print(f"... and {len(joined) - len(rows)} more rows (in a pipe)", style="dim")
    if answer.not_present:
        out.print(f"not present: {answer.not_present:,} frames")
    for note in answer.notes:
        out.print(f"note: {note}", markup=False)

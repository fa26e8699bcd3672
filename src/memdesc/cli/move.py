"""`memdesc move`."""

from __future__ import annotations

import argparse
import shutil
import sys
from typing import Any

from memdesc.answers.move import Movement, MovementRow, move, parse_area
from memdesc.answers.places import parse_place
from memdesc.answers.titles import title_of
from memdesc.answers.what import NoPage, pfn_at
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
from memdesc.map.describe import MapDescriber
from memdesc.map.extents import MemoryMap
from memdesc.map.parts import InParts
from memdesc.rules.move import Obstacle
from memdesc.sources.source import Source
from memdesc.types import PAGE_SIZE_BYTES, PfnRange

DESCRIPTION = (
    "Can this memory be moved away? A page (as in `memdesc what`), a range of frames, a memory\n"
    "block before it is offlined, or a zone: what lies there, and what would stop it.\n"
    "Exits 1 when something certainly stops it. Nothing is moved."
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
    whole: MemoryMap | None = None
    answers: list[Movement | NoPage] = []
    for text in options.places:
        if _is_area(text):
            if isinstance(source, InParts):
                pages = parse_area(text, source.machine, source.pfn_end)
                with progress("reading page flags") as tell:
                    answers.append(move(source.parts(tell), pages, text))
                continue
            if whole is None:
                with progress("reading page flags") as tell:
                    whole = source.map(tell, owners=True, references=True)
            answers.append(move(whole, parse_area(text, whole.machine, whole.pfn_end), text))
        else:
            answers.append(_page(source, text))
    if options.json:
        rows: list[dict[str, Any]] = [answer.to_json() for answer in answers]
        value = {"schema": "memdesc-move/1", "rows": rows}
        print_json(envelope(value, source=options.source, kernel=source.machine.release))
    else:
        for index, answer in enumerate(answers):
            if index:
                print()
            _show(answer)
    stopped = any(isinstance(a, Movement) and a.can_be_emptied is False for a in answers)
    return 1 if stopped else 0


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


def _show(answer: Movement | NoPage) -> None:
    out = console()
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
    joined = _joined(answer.rows)
    most = len(joined)
    if sys.stdout.isatty():
        most = max(4, shutil.get_terminal_size().lines - 6)
    rows = [
        [
            title_of(row.types) + (f": {visible(row.owner)}" if row.owner else ""),
            size(frames * PAGE_SIZE_BYTES),
            f"{frames:,}",
            _how(row),
            f"{row.first:#x}",
        ]
        for row, frames in joined[:most]
    ]
    head = ["what", "size", "frames", "when it is offlined", "for example"]
    out.print(table(head, rows, right=(1, 2), elastic=(0, 3), drop=(2,)))
    if len(joined) > len(rows):
        out.print(f"... and {len(joined) - len(rows)} more rows (in a pipe)", style="dim")
    if answer.not_present:
        out.print(f"not present: {answer.not_present:,} frames")
    for note in answer.notes:
        out.print(f"note: {note}", markup=False)


def _how(row: MovementRow) -> str:
    outcomes = row.offlining.outcomes
    moves = [f"moves: {one.by.value}" for one in outcomes if one.moves]
    stays = [_SHORT[one.obstacle] for one in outcomes if not one.moves]
    if moves and stays:
        return f"{moves[0]}, unless {' or '.join(dict.fromkeys(stays))}"
    return moves[0] if moves else f"stays: {' or '.join(dict.fromkeys(stays))}"


_SHORT = {
    Obstacle.KIND: "it never moves",
    Obstacle.REFERENCES: "held",
    Obstacle.WRITEBACK: "being written back",
    Obstacle.NO_OPERATION: "its file lies in memory alone",
    Obstacle.MLOCKED: "mlocked",
    Obstacle.INACCESSIBLE: "its mapping forbids it",
    Obstacle.TOO_LARGE: "too large a folio",
    Obstacle.HUGETLB: "a huge page",
    Obstacle.NO_MOVABLE_OPS: "its owner cannot move it",
    Obstacle.DEVICE: "its driver alone moves it",
    Obstacle.NOT_ON_LRU: "off the LRU just now",
}
"""Obstacles in a few words; the whole sentence is in --json."""


def _joined(rows: tuple[MovementRow, ...]) -> list[tuple[MovementRow, int]]:
    """(row, frames): rows that read the same on the screen, added up, in their order."""
    sums: dict[tuple[object, ...], tuple[MovementRow, int]] = {}
    for row in rows:
        key = row.types, row.owner, _how(row)
        first, frames = sums.get(key, (row, 0))
        sums[key] = first, frames + row.frames
    return list(sums.values())

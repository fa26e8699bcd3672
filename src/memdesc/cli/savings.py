"""`memdesc savings`."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence

from memdesc.answers.ledger import COUNTED_BY
from memdesc.answers.savings import DesignCost, Savings, SavingsRow, savings
from memdesc.answers.titles import title_of
from memdesc.cli.common import (
    add_source_arguments,
    console,
    envelope,
    open_from,
    print_json,
    progress,
    screen_width,
    size,
    table,
    visible,
)
from memdesc.map.extents import MemoryMap
from memdesc.map.parts import InParts
from memdesc.model.cost import Bounds
from memdesc.model.designs import DESIGNS
from memdesc.sources.source import Source
from memdesc.types import PAGE_SIZE_BYTES

DESCRIPTION = (
    "What does describing this memory cost: with struct page today, and with the smaller pages\n"
    "and separate descriptors of the memdesc plan? By type: what is saved and what is lost."
)
EXAMPLES = """
  memdesc savings                              this machine, against the 8-byte memdesc
  memdesc savings --design 32                  the first step of the plan, type by type
  memdesc savings --by cgroup                  whose memory would be cheaper to describe
  memdesc savings --source bundled:debian-6.12 --json
"""
_WORDS = 2
"""Remarks that a terminal always shows."""
_BESIDE = 6
"""Lines of a screen for heads, sums, blanks and the prompt."""
_LEAST = 6
"""Rows on the smallest screen."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--design",
        choices=tuple(DESIGNS),
        default="8",
        help="the design that the rows are about: bytes per frame, or struct page of 2021 or "
        "today (default: 8)",
    )
    parser.add_argument(
        "--by", choices=COUNTED_BY, default="type", help="split the rows (default: type)"
    )
    parser.add_argument(
        "--all", action="store_true", help="every row; a terminal shows the largest, a pipe all"
    )
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    source = open_from(options)
    answer = _answer(source, options)
    if options.json:
        kernel = source.machine.release
        print_json(envelope(answer.to_json(), source=options.source, kernel=kernel))
    else:
        _show(answer, everything=options.all or not sys.stdout.isatty())
    return 0


def _answer(source: Source, options: argparse.Namespace) -> Savings:
    with progress("reading page flags") as tell:
        if isinstance(source, InParts) and options.by != "cgroup":
            result = source.summary(tell)
            if not isinstance(result, MemoryMap):
                return savings(source.parts(tell), options.design, options.by, totals=result)
        else:
            result = source.map(tell)
    return savings(result, options.design, options.by)


def _show(answer: Savings, *, everything: bool) -> None:
    out = console()
    out.print(
        table(
            ["design", "a frame", "memory map", "descriptors", "together", "saved"],
            [_design_line(one) for one in answer.designs],
            right=range(1, 6),
            elastic=(0,),
            drop=(1,),
        )
    )
    out.print(
        f"{answer.frames:,} frames present, {size(answer.frames * PAGE_SIZE_BYTES)}\n",
        style="dim",
        markup=False,
    )
    words = list(_words(answer))
    if not everything:
        # What the plan says and what it leaves to assume; the rest on demand.
        words, more = words[:_WORDS], words[_WORDS:]
        if more:
            words[-1] += f"; {len(more)} more remarks (--all)"
    width = screen_width() or 0
    taken = sum(len(textwrap.wrap(text, width)) or 1 for text in words) if width else 0
    room = shutil.get_terminal_size().lines - len(answer.designs) - taken - _BESIDE
    _show_rows(answer, most=None if everything else max(_LEAST, room))
    out.print()
    for text in words:
        out.print(text, markup=False)


def _design_line(one: DesignCost) -> list[str]:
    cost = one.cost
    return [
        one.design.title,
        f"{one.design.bytes_per_frame} bytes",
        _range(cost.memmap_bytes),
        _range(cost.descriptor_bytes) if one.design.allocates else "-",
        _range(cost.total_bytes),
        _range(one.saved),
    ]


def _show_rows(answer: Savings, *, most: int | None) -> None:
    """What saves most first, what loses most last; of more than `most`, the middle left out."""
    rows = answer.rows if answer.by == "type" else _by_part(answer)
    if most is None or len(rows) <= most:
        lines = [_row_line(answer, row) for row in rows]
    else:
        worst = min(sum(sum(row.saved) < 0 for row in rows), most // 2)
        best = most - 1 - worst
        between = rows[best : len(rows) - worst]
        lines = [_row_line(answer, row) for row in rows[:best]]
        lines.append([f"... {len(between)} more (--all)", *_amounts(between)])
        lines += [_row_line(answer, row) for row in rows[len(rows) - worst :]]
    head = [answer.by, "memory", "today", answer.design.title, "saved"]
    console().print(table(head, lines, right=range(1, 5), elastic=(0,), drop=(1,)))


def _row_line(answer: Savings, row: SavingsRow) -> list[str]:
    name = title_of(row.types) if answer.by == "type" else visible(row.part)
    return [name, *_amounts([row])]


def _amounts(rows: Sequence[SavingsRow]) -> list[str]:
    """Size, cost today and then, and what is saved, of some rows together."""
    return [
        size(sum(row.size_bytes for row in rows)),
        *(
            _range((sum(low for low, _ in column), sum(high for _, high in column)))
            for column in (
                [row.today for row in rows],
                [row.then for row in rows],
                [row.saved for row in rows],
            )
        ),
    ]


def _by_part(answer: Savings) -> tuple[SavingsRow, ...]:
    """The types of each zone, node or cgroup added up."""
    groups: dict[str, list[SavingsRow]] = {}
    for row in answer.rows:
        groups.setdefault(row.part, []).append(row)

    def added(column: Callable[[SavingsRow], Bounds], rows: list[SavingsRow]) -> Bounds:
        return sum(column(row)[0] for row in rows), sum(column(row)[1] for row in rows)

    sums = [
        SavingsRow(
            part,
            rows[0].types,
            sum(row.frames for row in rows),
            added(lambda row: row.today, rows),
            added(lambda row: row.then, rows),
            added(lambda row: row.saved, rows),
            added(lambda row: row.descriptors, rows),
        )
        for part, rows in groups.items()
    ]
    return tuple(sorted(sums, key=lambda row: (-sum(row.saved), row.part)))


def _words(answer: Savings) -> Iterator[str]:
    """What stands below the tables, what matters most first."""
    if answer.break_even:
        parts = [
            f"{one.descriptor} from {one.frames} frame{'s' * (one.frames > 1)} ({one.single_bytes})"
            for one in answer.break_even
        ]
        yield (
            "cheaper than today (one frame alone, in bytes; 64 today): "
            + ", ".join(dict.fromkeys(parts))
        )
    plan = answer.design
    revision = f"plan revision {plan.revision}" if plan.revision else plan.title
    first, *rest = answer.assumptions or ("",)
    yield f"{revision}, {plan.date}" + (f"; assumed: {first}" if first else "")
    held = answer.chosen.slab_bytes
    if held[1]:
        yield f"descriptors are net; slabs full of them take {_range(held)}"
    yield f"source: {plan.source}"
    if rest:
        yield "assumed: " + "; ".join(rest)
    for note in answer.notes:
        yield f"note: {note}"


def _range(bounds: Bounds) -> str:
    """Both ends in words, as one where they read the same: "4.1 to 4.6 MiB"."""
    low, high = (size(end) for end in bounds)
    if low == high:
        return low
    (number, unit), (_, other) = low.split(" "), high.split(" ")
    return f"{number} to {high}" if unit == other else f"{low} to {high}"

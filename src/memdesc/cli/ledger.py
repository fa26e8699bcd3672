"""`memdesc ledger`."""

from __future__ import annotations

import argparse
import sys

from memdesc.answers.ledger import BY, Ledger, LedgerRow, ledger, needs_extents
from memdesc.answers.reconcile import Reconciliation, reconcile
from memdesc.answers.titles import title_of
from memdesc.cli.common import (
    add_source_arguments,
    console,
    envelope,
    open_from,
    percent,
    print_json,
    progress,
    size,
    table,
)
from memdesc.map.extents import MemoryMap, Totals
from memdesc.types import PAGE_SIZE_BYTES

DESCRIPTION = (
    "Every present frame exactly once, by type or split further, and how the sum adds up\n"
    "with the kernel's own counters, line by line. Exits 1 when a line is not explained."
)
EXAMPLES = """
  memdesc ledger                                 by type, then against /proc/meminfo
  memdesc ledger --by cgroup                     who is charged for what
  memdesc ledger --by owner                      slab caches, vmalloc callers, file systems
  memdesc ledger --by flags --source flags.bin   the raw words, as page-types counts them
  memdesc ledger --json | jq '.frames_present'
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--by", choices=BY, default="type", help="split the rows (default: type)")
    parser.add_argument(
        "--all", action="store_true", help="every row; a terminal shows the 40 largest, a pipe all"
    )
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    source = open_from(options)
    result: MemoryMap | Totals
    with progress("reading page flags") as tell:
        if needs_extents(options.by):
            result = source.map(tell, owners=options.by == "owner")
        elif options.by == "type":
            result = source.summary(tell)
        else:
            result = source.totals(tell)
    book = ledger(result, options.by)
    checks = reconcile(result) if options.by == "type" else None
    if options.json:
        value = book.to_json()
        value["frames_present_zoneinfo"] = result.machine.frames_present
        if checks is not None:
            value["checks"] = checks.to_json()
        print_json(envelope(value, source=options.source, kernel=result.machine.release))
    else:
        most = 40 if sys.stdout.isatty() and not options.all else 0
        _show(book, checks, most=most)
    return 1 if checks is not None and checks.differing else 0


def _show(book: Ledger, checks: Reconciliation | None, *, most: int) -> None:
    out = console()
    grouped = book.by in ("zone", "node", "order", "cgroup", "owner")
    rows = _grouped(book) if grouped else _flat(book)
    texts = (
        ["type"] if book.by == "type" else [f"{book.by}, type"] if grouped else ["flags", "type"]
    )
    head = [*texts, "size", "share", "frames"]
    shown = rows[:most] if most else rows
    right = range(len(texts), len(head))
    out.print(table(head, shown, right=right, elastic=range(len(texts))))
    if len(shown) < len(rows):
        out.print(f"... and {len(rows) - len(shown)} more rows (--all)", style="dim")
    out.print(
        f"\n{book.frames_present:,} frames present, {size(book.frames_present * PAGE_SIZE_BYTES)}",
        style="bold",
        highlight=False,
    )
    for row in book.not_present:
        where = f" ({row.part.strip('()')})" if row.part else ""
        out.print(f"not present: {row.frames:,} frames, {title_of(row.types)}{where}", markup=False)
    if book.free_blocks:
        out.print("\nfree blocks by order, from /proc/buddyinfo", style="bold")
        orders = range(max(len(blocks) for _node, _zone, blocks in book.free_blocks))
        out.print(
            table(
                ["node", "zone", *map(str, orders)],
                [[str(node), zone, *map(str, blocks)] for node, zone, blocks in book.free_blocks],
                right=[0, *range(2, len(orders) + 2)],
            )
        )
    for note in book.notes:
        out.print(f"note: {note}", markup=False)
    if checks is not None and checks.lines:
        _show_checks(checks)


def _flat(book: Ledger) -> list[list[str]]:
    split = book.by != "type"
    return [
        [*([row.part] if split else []), title_of(row.types), *_amounts(book, row.frames)]
        for row in book.rows
    ]


def _grouped(book: Ledger) -> list[list[str]]:
    """A line per part with its sum, the largest first, and below it the part's types."""
    groups: dict[str, list[LedgerRow]] = {}
    for row in book.rows:
        groups.setdefault(row.part, []).append(row)

    def place(part: str) -> tuple[bool, int, str]:
        key = groups[part][0].part_key
        rank = key if book.by == "order" and isinstance(key, int) else -_frames(groups[part])
        return key is None, rank, part

    lines = []
    for part in sorted(groups, key=place):
        rows = sorted(groups[part], key=lambda row: (-row.frames, row.types.mask))
        lines.append([part, *_amounts(book, _frames(rows))])
        lines += [[f"  {title_of(row.types)}", *_amounts(book, row.frames)] for row in rows]
    return lines


def _frames(rows: list[LedgerRow]) -> int:
    return sum(row.frames for row in rows)


def _amounts(book: Ledger, frames: int) -> list[str]:
    size_bytes = frames * PAGE_SIZE_BYTES
    return [size(size_bytes), percent(frames, book.frames_present), f"{frames:,}"]


def _show_checks(checks: Reconciliation) -> None:
    out = console()
    out.print("\nagainst /proc/meminfo", style="bold")
    rows = []
    for line in checks.lines:
        ledger_text = "-" if line.ledger_bytes is None else size(line.ledger_bytes)
        if line.ledger_bytes_max not in (None, line.ledger_bytes):
            ledger_text += f" to {size(line.ledger_bytes_max or 0)}"
        difference = line.difference_bytes
        rows.append(
            [
                line.counter,
                size(line.counter_bytes or 0),
                ledger_text,
                "-" if difference is None else size(difference),
                line.status,
            ]
        )
    out.print(table(["counter", "kernel", "ledger", "difference", ""], rows, right=(1, 2, 3)))
    for line in checks.lines:
        if line.status != "agrees":
            out.print(f"\n{line.counter}: {line.explanation}", markup=False)

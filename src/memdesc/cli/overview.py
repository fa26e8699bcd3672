"""`memdesc`: the overview."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from memdesc.answers.overview import Overview, overview
from memdesc.answers.titles import title_of
from memdesc.cli.common import (
    add_source_arguments,
    bar,
    console,
    elide,
    open_from,
    percent,
    print_json,
    progress,
    size,
    table,
    visible,
)
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = "What the memory of a machine is, on one screen: bytes and names, largest first."
EXAMPLES = """
  memdesc                                this machine (needs root)
  memdesc --source bundled:debian-7.2    a recorded machine
  memdesc --json | jq '.rows[0]'         the largest type
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    source = open_from(options)
    with progress("reading page flags") as tell:
        answer = overview(source.summary(tell))
    if options.json:
        print_json(answer.to_json())
    else:
        show(answer, source.name)
    return 1 if answer.reconciliation.differing else 0


def show(answer: Overview, name: str) -> None:
    """Print the overview."""
    out = console()
    present = answer.ledger.frames_present * PAGE_SIZE_BYTES
    machine = answer.machine
    kernel = f"Linux {machine.release}" if machine.release.is_known else "kernel not known"
    host = visible(machine.hostname or name)
    out.print(f"{host}  {kernel}  {size(present)} present", style="bold", markup=False)
    out.print()
    width = max(8, min(30, out.width - 70))
    largest = max((row.frames for row in answer.ledger.rows), default=1)
    rows = []
    for row in answer.ledger.rows:
        rows.append(
            [
                title_of(row.types),
                size(row.size_bytes),
                percent(row.size_bytes, present),
                bar(row.frames / largest, width),
            ]
        )
    out.print(table(["type", "size", "share", ""], rows, right=(1, 2)))
    _unknown(answer, out)
    _owners(answer, out)
    _checks(answer, out)
    _unseen(answer, out)
    out.print(_MORE, style="dim", markup=False)


def _unknown(answer: Overview, out: Console) -> None:
    if not answer.unknown:
        return
    out.print("\nnot visible from here", style="bold")
    rows = [[size(item.size_bytes), item.reason] for item in answer.unknown]
    out.print(table(["", ""], rows, right=(0,)))


def _owners(answer: Overview, out: Console) -> None:
    if not answer.owners:
        return
    out.print("\nlargest owners", style="bold")
    rows = [[o.kind, elide(o.name), size(o.size_bytes), o.detail] for o in answer.owners]
    out.print(table(["", "", "", ""], rows, right=(2,)))


def _checks(answer: Overview, out: Console) -> None:
    out.print()
    lines = answer.reconciliation.lines
    good = sum(line.status in ("agrees", "explained") for line in lines)
    if lines:
        text = f"adds up: {good} counters of /proc/meminfo agree or differ for a known reason"
        bad = ", ".join(line.counter for line in answer.reconciliation.differing)
        out.print(text + (f"; not explained: {bad}" if bad else ""), markup=False)
    stats = answer.stats
    words = [f"read in {stats.seconds:.2f} s by {stats.threads} threads"] if stats.threads else []
    if answer.torn is not None:
        words.append(f"{answer.torn} compound pages torn by changes meanwhile")
    if stats.frames_reread:
        share = percent(stats.frames_changed, stats.frames_reread)
        words.append(f"{share} of a re-read sample had changed")
    if words:
        out.print("; ".join(words), markup=False)


_MORE = "more: memdesc ledger | what PLACE | who | report | doctor   (--help shows examples)"


def _unseen(answer: Overview, out: Console) -> None:
    missing = answer.machine.unseen
    if missing:
        out.print(f"not readable: {', '.join(missing)}  (memdesc doctor says why)", markup=False)

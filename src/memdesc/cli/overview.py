"""`memdesc`: the overview."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from memdesc.answers.overview import Overview, overview
from memdesc.answers.titles import title_of
from memdesc.answers.words import UNION_WORDS
from memdesc.cli.common import (
    add_source_arguments,
    bar,
    console,
    envelope,
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

    from memdesc.answers.ledger import LedgerRow

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
        value = answer.to_json()
        print_json(envelope(value, source=options.source, kernel=answer.machine.release))
    else:
        show(answer, source.name, height=_terminal_height())
    return 1 if answer.reconciliation.differing else 0


def show(answer: Overview, name: str, *, height: int | None = None) -> None:
    """Print the overview, in at most `height` lines with the prompt that follows."""
    head = _printed(lambda out: _head(answer, name, out))
    rest = _printed(lambda out: _rest(answer, name, out, height))
    room = None
    if height is not None:
        # The table's head and the prompt take a line each.
        room = max(_LEAST_TYPES, height - 2 - len(head) - len(rest))
    types = _printed(lambda out: _types(answer, out, room))
    print("\n".join([*head, *types, *rest]))


# --- helpers -----------------------------------------------------------------------------

_LEAST_TYPES = 3
_SHORT = 30
"""A screen with fewer lines shows fewer owners."""


def _terminal_height() -> int | None:
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().lines


def _printed(work: Callable[[Console], None]) -> list[str]:
    """The lines that `work` prints."""
    text = io.StringIO()
    work(console(text))
    return text.getvalue().removesuffix("\n").split("\n")


def _head(answer: Overview, name: str, out: Console) -> None:
    machine = answer.machine
    present = answer.ledger.frames_present * PAGE_SIZE_BYTES
    kernel = f"Linux {machine.release}" if machine.release.is_known else "kernel not known"
    host = visible(machine.hostname or name)
    out.print(f"{host}  {kernel}  {size(present)} present", style="bold", markup=False)
    out.print()


def _types(answer: Overview, out: Console, room: int | None) -> None:
    """The types, largest first; those for which `room` leaves no line are summed up."""
    rows = answer.ledger.rows
    folded: tuple[LedgerRow, ...] = ()
    if room is not None and len(rows) > room:
        rows, folded = rows[: room - 1], rows[room - 1 :]
    width = max(8, min(30, out.width - 70))
    largest = max((row.frames for row in rows), default=1)
    present = answer.ledger.frames_present
    cells = [
        [
            title_of(row.types),
            size(row.size_bytes),
            percent(row.frames, present),
            bar(row.frames / largest, width),
        ]
        for row in rows
    ]
    if folded:
        frames = sum(row.frames for row in folded)
        cells.append(
            [
                f"{len(folded)} smaller types (memdesc ledger)",
                size(frames * PAGE_SIZE_BYTES),
                percent(frames, present),
                "",
            ]
        )
    out.print(table(["type", "size", "share", ""], cells, right=(1, 2), elastic=(0,)))


def _rest(answer: Overview, name: str, out: Console, height: int | None) -> None:
    """Everything below the types."""
    _unknown(answer, out, None if height is None else 3)
    _owners(answer, out, None if height is None else 3 if height < _SHORT else 5)
    _checks(answer, out)
    _unseen(answer, out, is_live=name == "live")
    out.print(_MORE, style="dim", markup=False)


def _unknown(answer: Overview, out: Console, most: int | None) -> None:
    if not answer.unknown:
        return
    out.print("\nnot visible from here: nothing that was read says which of these", style="bold")
    shown, more = answer.unknown[:most], () if most is None else answer.unknown[most:]
    rows = [
        [size(item.size_bytes), UNION_WORDS.get(item.types.family or "", item.reason)]
        for item in shown
    ]
    if more:
        kinds = "kind" if len(more) == 1 else "kinds"
        total = size(sum(item.size_bytes for item in more))
        rows.append([total, f"{len(more)} more {kinds} (memdesc ledger)"])
    out.print(table(["", ""], rows, right=(0,), elastic=() if most is None else (1,)))


def _owners(answer: Overview, out: Console, most: int | None) -> None:
    if not answer.owners:
        return
    out.print("\nlargest owners", style="bold")
    owners = sorted(answer.owners, key=lambda owner: -owner.size_bytes)[:most]
    rows = [
        [
            owner.kind,
            owner.name,
            size(owner.size_bytes),
            "" if owner.objects_active is None else f"{owner.objects_active:,} objects",
        ]
        for owner in owners
    ]
    out.print(table(["", "", "", ""], rows, right=(2,), elastic=(1,)))


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


_MORE = "more: memdesc ledger | what PLACE | who | report; types: docs/reference/types.md"


def _unseen(answer: Overview, out: Console, *, is_live: bool) -> None:
    """What could not be read and, where `memdesc doctor` is about another machine, why."""
    missing = answer.machine.unseen
    if not is_live:
        for name, reason in missing.items():
            out.print(f"not readable: {name}: {reason}", markup=False)
    elif missing:
        out.print(f"not readable: {', '.join(missing)}  (memdesc doctor says why)", markup=False)

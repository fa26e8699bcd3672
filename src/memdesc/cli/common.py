"""What the commands share: the source options, sizes in words, tables, progress."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from memdesc.answers.words import percent, size, visible

if TYPE_CHECKING:
    from rich.console import Console

    from memdesc.sources.pages import Progress
    from memdesc.sources.source import Source

__all__ = [
    "add_source_arguments",
    "bar",
    "console",
    "elide",
    "notice",
    "open_from",
    "percent",
    "print_json",
    "progress",
    "size",
    "table",
    "visible",
]


_FILE_WIDTH = 1000


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --source and what goes with it, and --json."""
    from memdesc.sources.spec import SOURCE_HELP

    group = parser.add_argument_group("source")
    group.add_argument(
        "--source",
        default="live",
        metavar="SOURCE",
        help="what to look at: " + "; ".join(" ".join(s.split()) for s in SOURCE_HELP.splitlines()),
    )
    group.add_argument("--kpagecount", metavar="FILE", help="with a raw file: its /proc/kpagecount")
    group.add_argument(
        "--kernel", metavar="RELEASE", help="with a raw file: the kernel it came from (6.12.117)"
    )
    group.add_argument(
        "--threads", type=int, default=0, metavar="N", help="reading threads (default: processors)"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")


def open_from(options: argparse.Namespace) -> Source:
    """Open the source that the options name."""
    from memdesc.sources.open import open_source

    return open_source(
        options.source,
        kpagecount=options.kpagecount,
        kernel=options.kernel,
        threads=options.threads,
    )


def print_json(value: Any) -> None:
    """Write one JSON document to stdout."""
    import json

    json.dump(value, sys.stdout, indent=2, sort_keys=False)
    sys.stdout.write("\n")


def notice(text: str) -> None:
    """Write a line for people to stderr."""
    print(text, file=sys.stderr)


_EIGHTHS = ("", "\u258f", "\u258e", "\u258d", "\u258c", "\u258b", "\u258a", "\u2589")


def bar(share: float, width: int) -> str:
    """`share` (0 to 1) of `width` cells, drawn in eighths; the least that is there is seen."""
    eighths = max(1, round(share * width * 8))
    return "\u2588" * (eighths // 8) + _EIGHTHS[eighths % 8]


def console() -> Console:
    """A console on stdout. A terminal's own width; elsewhere a row is a line, however long."""
    from rich.console import Console

    width = _FILE_WIDTH
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        import shutil

        width = shutil.get_terminal_size().columns

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            # rich would end with code 1; a reader that has seen enough is no error.
            raise BrokenPipeError

    return Screen(width=width, highlight=False, soft_wrap=False)


def elide(text: str, most: int = 40) -> str:
    """`text` with its middle left out where a terminal has no room for it."""
    if not sys.stdout.isatty() or len(text) <= most:
        return text
    tail = (most - 1) * 2 // 3
    return f"{text[: most - 1 - tail]}\u2026{text[-tail:]}"


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> Any:
    """A plain table without lines; `right` names the columns that align right."""
    from rich.table import Table
    from rich.text import Text

    result = Table(
        show_header=any(columns),
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    for index, column in enumerate(columns):
        is_right = index in right
        result.add_column(
            column,
            justify="right" if is_right else "left",
            no_wrap=is_right,
            overflow="fold",
        )
    for row in rows:
        result.add_row(*(Text(visible(cell)) for cell in row))
    return result


@contextmanager
def progress(what: str) -> Iterator[Progress | None]:
    """A progress bar on stderr when it is a terminal and the work takes over half a second."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(what, total=None)
    started = time.monotonic()
    shown = False

    def tell(done: int, total: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - started > 0.5:
            bar.start()
            shown = True
        bar.update(task, completed=done, total=total)

    try:
        yield tell
    finally:
        if shown:
            bar.stop()

"""What the commands share: the source options, sizes in words, tables, progress."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from memdesc.answers.words import percent, size, visible
from memdesc.errors import FormatError, QuestionError

if TYPE_CHECKING:
    from rich.console import Console

    from memdesc.kernels.release import KernelRelease
    from memdesc.sources.pages import Progress
    from memdesc.sources.source import Source

__all__ = [
    "add_source_arguments",
    "add_thread_argument",
    "bar",
    "check_options",
    "console",
    "elide",
    "envelope",
    "notice",
    "open_from",
    "percent",
    "print_json",
    "progress",
    "screen_width",
    "size",
    "steps",
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
        "--vmlinux", metavar="FILE", help="with a crash dump: its kernel image, with DWARF or BTF"
    )
    add_thread_argument(group)
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")


def add_thread_argument(group: argparse._ActionsContainer) -> None:
    """Add --threads."""
    group.add_argument(
        "--threads", type=int, default=0, metavar="N", help="reading threads (0: as many as CPUs)"
    )


def check_options(options: argparse.Namespace, *sources: str) -> None:
    """Refuse options that mean nothing; say what a kernel that was never read is judged as."""
    if not all(source.strip() for source in sources):
        from memdesc.sources.spec import SOURCE_HELP

        raise QuestionError("the source has no name", hint=f"--source takes:\n{SOURCE_HELP}")
    most = 4 * (os.cpu_count() or 1)
    if not 0 <= options.threads <= most:
        raise FormatError(
            f"--threads {options.threads}: not between 1 and {most}",
            hint=f"this machine has {os.cpu_count() or 1} CPUs; 0 takes one thread for each",
        )
    if options.kernel is None:
        return
    from memdesc.kernels.release import KernelRelease

    beyond = KernelRelease.parse(options.kernel).beyond_what_was_read
    if beyond:
        notice(f"note: {beyond}")


def open_from(options: argparse.Namespace) -> Source:
    """Open the source that the options name."""
    from memdesc.sources.open import open_source

    check_options(options, options.source)
    return open_source(
        options.source,
        kpagecount=options.kpagecount,
        kernel=options.kernel,
        vmlinux=options.vmlinux,
        threads=options.threads,
    )


def envelope(
    value: dict[str, Any], *, source: str, kernel: KernelRelease | None = None
) -> dict[str, Any]:
    """`value` with what every JSON answer begins and ends with."""
    head = {
        "schema": value["schema"],
        "kernel": str(kernel) if kernel is not None and kernel.is_known else None,
        "source": source,
    }
    rest = {key: item for key, item in value.items() if key not in (*head, "notes")}
    return {**head, **rest, "notes": list(value.get("notes", ()))}


def print_json(value: Any) -> None:
    """Write one JSON document to stdout."""
    import json

    json.dump(value, sys.stdout, indent=2, sort_keys=False)
    sys.stdout.write("\n")


def notice(text: str) -> None:
    """Write a line for people to stderr."""
    print(text, file=sys.stderr)


def _can_write(text: str) -> bool:
    """Whether stdout's encoding has every character of `text`."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


_EIGHTHS = ("", "\u258f", "\u258e", "\u258d", "\u258c", "\u258b", "\u258a", "\u2589")


def bar(share: float, width: int) -> str:
    """`share` (0 to 1) of `width` cells, drawn in eighths; the least that is there is seen."""
    if not _can_write("\u2588\u258f"):
        return "#" * max(1, round(share * width))
    eighths = max(1, round(share * width * 8))
    return "\u2588" * (eighths // 8) + _EIGHTHS[eighths % 8]


def screen_width() -> int | None:
    """Columns of the terminal, or those that COLUMNS asks for; None in a pipe or file."""
    if not (sys.stdout.isatty() or "COLUMNS" in os.environ):
        return None
    import shutil

    return shutil.get_terminal_size().columns


def console(file: IO[str] | None = None) -> Console:
    """A console on stdout, or on `file` as stdout would show it.

    A terminal has its own width; elsewhere a row is a line, however long.
    """
    from rich.console import Console

    class Screen(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            if self.is_terminal:
                super().print(*objects, **options)
                return
            with self.capture() as printed:
                super().print(*objects, **options)
            # No spaces at the end of a line: they are noise in a file.
            lines = printed.get().split("\n")
            self.file.write("\n".join(line.rstrip() for line in lines))

        def on_broken_pipe(self) -> None:
            # rich would end with code 1; a reader that has seen enough is no error.
            raise BrokenPipeError

    return Screen(
        file=file,
        force_terminal=True if file is not None and sys.stdout.isatty() else None,
        width=screen_width() or _FILE_WIDTH,
        highlight=False,
        soft_wrap=False,
    )


def elide(text: str, most: int) -> str:
    """`text` in at most `most` cells, its middle left out where it is longer."""
    from rich.cells import cell_len

    if cell_len(text) <= most:
        return text
    mark = "\u2026" if _can_write("\u2026") else "..."
    room = max(2, most - len(mark))
    tail = room * 2 // 3
    head = room - tail
    while head + tail > 2 and cell_len(f"{text[:head]}{mark}{text[-tail:]}") > most:
        head, tail = (head - 1, tail) if head > tail else (head, tail - 1)
    return f"{text[:head]}{mark}{text[-tail:]}"


_GAP = 2
_NARROW = 90
_LEAST = 12
"""Cells that a column keeps when it has to give way."""


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    elastic: Sequence[int] = (),
    drop: Sequence[int] = (),
) -> Any:
    """A plain table without lines, for `console`.

    `right` names the columns that align right, `elastic` those that lose the middle of
    their texts where the screen is too narrow, `drop` those that a narrow one leaves out.
    """
    from rich.table import Table
    from rich.text import Text

    width = screen_width()
    cells = [[visible(cell) for cell in row] for row in rows]
    if width is not None:
        cells = _fitted(columns, cells, width, elastic, drop if width < _NARROW else ())
    kept = [
        i
        for i in range(len(columns))
        if not drop or width is None or width >= _NARROW or i not in drop
    ]
    result = Table(
        show_header=any(columns),
        box=None,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
        header_style="bold",
    )
    for index in kept:
        is_right = index in right
        result.add_column(
            columns[index],
            justify="right" if is_right else "left",
            no_wrap=is_right,
            overflow="fold",
        )
    for row in cells:
        result.add_row(*(Text(row[index]) for index in kept))
    return result


def _fitted(
    columns: Sequence[str],
    rows: list[list[str]],
    width: int,
    elastic: Sequence[int],
    dropped: Sequence[int],
) -> list[list[str]]:
    """`rows` with the elastic columns cut to what `width` leaves them, the widest first."""
    from rich.cells import cell_len

    shown = [index for index in range(len(columns)) if index not in dropped]
    widths = {
        index: max([cell_len(columns[index]), *(cell_len(row[index]) for row in rows)])
        for index in shown
    }
    giving = [index for index in elastic if index in widths]
    # rich pads every column but the last.
    over = sum(widths.values()) + _GAP * len(shown) - width
    while over > 0 and giving:
        widest = max(giving, key=lambda index: widths[index])
        if widths[widest] <= _LEAST:
            break
        widths[widest] -= 1
        over -= 1
    return [
        [elide(cell, widths[i]) if i in giving else cell for i, cell in enumerate(row)]
        for row in rows
    ]


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Yields what to call with what is being done: it is shown on a terminal, with the seconds,
    and the line is wiped at the end."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    started = time.monotonic()

    def tell(what: str) -> None:
        seconds = time.monotonic() - started
        sys.stderr.write(f"\r\x1b[K{what} ... ({seconds:.0f} s)")
        sys.stderr.flush()

    try:
        yield tell
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


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

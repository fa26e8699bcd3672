"""`memdesc matrix`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from memdesc.cli.common import console, envelope, notice, print_json, screen_width, steps, table
from memdesc.errors import QuestionError

if TYPE_CHECKING:
    from memdesc.checks.groups import RowGroup
    from memdesc.checks.page import Matrix
    from memdesc.checks.runs import Run
    from memdesc.vm.record import Tell

DESCRIPTION = (
    "What has been checked: on which kernels every type of memory was named exactly, as a union\n"
    "that holds the truth, or not at all, and by which source. --run does all of it again: it\n"
    "boots the kernels in QEMU, records and dumps them, and judges every frame."
)
EXAMPLES = """
  memdesc matrix                                     kernel x type x source, on one screen
  memdesc matrix --kernel 6.12                       one kernel, with numbers of frames
  memdesc matrix --source live:proc --json
  memdesc matrix --run                               boot the kernels and check everything
  memdesc matrix --run --kernel 6.12 --keep DIR      one kernel; keep what was recorded
  memdesc matrix --run --from DIR                    judge recordings again, without booting
"""

_NONE = dict.fromkeys(("exact", "union", "not_visible", "wrong", "open"), 0)

_SHORT = {"exact": "yes", "not visible": "no"}

_Table = tuple[list[str], list[list[str]]]
"""Titles of columns, and rows."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernel", metavar="K", action="append", default=[], help="only this series (repeat it)"
    )
    parser.add_argument("--source", metavar="S", help="only live:proc, live:struct or vmcore")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="machine-readable output on stdout")
    shown.add_argument("--markdown", action="store_true", help="the page of the documentation")
    group = parser.add_argument_group("checking again")
    group.add_argument("--run", action="store_true", help="record the kernels and judge them")
    group.add_argument(
        "--from", dest="recordings", metavar="DIR", type=Path, help="judge DIR/KERNEL instead"
    )
    group.add_argument("--keep", metavar="DIR", type=Path, help="keep the recordings in DIR/KERNEL")
    group.add_argument(
        "--output", metavar="DIR", type=Path, help="where results go (default: this checkout)"
    )
    group.add_argument(
        "--dwarf", metavar="DIR", type=Path, help="vmlinux files with DWARF, for drgn's helpers"
    )


def run(options: argparse.Namespace) -> int:
    from memdesc.checks.runs import recorded_runs

    if options.run:
        return _run(options)
    for name in ("recordings", "keep", "output", "dwarf"):
        if getattr(options, name) is not None:
            word = "from" if name == "recordings" else name
            raise QuestionError(f"--{word} goes with --run", hint="memdesc matrix --run --help")
    runs = _chosen(recorded_runs(), options.kernel)
    _check_source(runs, options.source)
    from memdesc.checks.page import kept_groups, render_markdown

    if options.json:
        print_json(_json(runs, kept_groups(runs, source=options.source), options.source))
    elif options.markdown:
        sys.stdout.write(render_markdown(runs, kept_groups(runs)))
    else:
        _show(runs, options.source)
    return 0


# --- showing -----------------------------------------------------------------------------


def _chosen(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    for name in names:
        if not any(run.series == name for run in runs):
            raise QuestionError(
                f"kernel {name} was not checked",
                hint="checked were " + ", ".join(run.series for run in runs),
            )
    return [run for run in runs if not names or run.series in names]


def _check_source(runs: Sequence[Run], source: str | None) -> None:
    known = dict.fromkeys(name for run in runs for name in run.sources)
    if source is not None and source not in known:
        raise QuestionError(
            f"no kernel was checked with the source {source!r}",
            hint="checked were " + ", ".join(known),
        )


def _json(runs: Sequence[Run], groups: Sequence[RowGroup], source: str | None) -> dict[str, object]:
    def shown(run: Run, name: str) -> list[dict[str, Any]]:
        return [
            {
                "kernel": run.series,
                **_NONE,
                **row,
                "named": [{"type": kinds, "frames": frames} for kinds, frames in row["named"]],
            }
            for row in run.to_json()[name]
            if source is None or row["source"] == source
        ]

    rows = [row for run in runs for row in shown(run, "rows")]
    planted = [row for run in runs for row in shown(run, "planted")]
    kernels = []
    for run in runs:
        value = run.to_json()
        kernels.append(
            {key: value[key] for key in value if key not in ("schema", "rows", "planted")}
        )
    return envelope(
        {
            "schema": "memdesc-matrix/1",
            "rows": rows,
            "planted": planted,
            "groups": [group.to_json() for group in groups],
            "kernels": kernels,
        },
        source="checks",
    )


def _show(runs: Sequence[Run], source: str | None) -> None:
    from memdesc.checks.page import WORDS, kept_groups, matrix_of

    # Another flavour of a series is a column for those who ask.
    flavours = [run for run in runs if "-" in run.series] if len(runs) > 1 else []
    runs = [run for run in runs if run not in flavours]
    matrix = matrix_of(runs, source=source)
    out = console()
    width = screen_width()
    for show in (_full, _words, _marks):
        head, cells = show(matrix)
        if width is None or _width(head, cells) <= width:
            break
    out.print(table(head, cells))
    for word, meaning in WORDS:
        short = f" ({_short(word)})" if show is _marks and _short(word) != word else ""
        out.print(f"{word}{short}: {meaning}", markup=False)
    for group in kept_groups(runs, source=source):
        out.print(table(*_group(group, group.columns(run.series for run in runs))))
    for run in runs:
        out.print(_summary(run), markup=False)
    for run in flavours:
        out.print(f"{_summary(run)} (--kernel {run.series})", markup=False)


def _group(group: RowGroup, columns: Sequence[str]) -> _Table:
    """A group of rows, in short."""
    return [group.what.lower(), *columns], [
        [
            f"{row.what}, {row.source}",
            *(row.cells[name].short if name in row.cells else "-" for name in columns),
        ]
        for row in group.rows
    ]


def _full(matrix: Matrix) -> _Table:
    """Words and frames."""
    from memdesc.checks.page import cell_text

    return _titles(matrix), [
        [types.label, *(cell_text(cell) for cell in cells)] for types, cells in matrix.rows
    ]


def _words(matrix: Matrix) -> _Table:
    """Words alone."""
    from memdesc.checks.page import cell_text

    return _titles(matrix), [
        [types.label, *(cell_text(cell, frames=False) for cell in cells)]
        for types, cells in matrix.rows
    ]


def _marks(matrix: Matrix) -> _Table:
    """As narrow as can be."""
    head = [title.replace("live:", "") for title in _titles(matrix)]
    _, rows = _words(matrix)
    kinds = [types.is_certain for types, _ in matrix.rows]
    return head, [
        [row[0] if is_certain else "(open)", *(_short(word) for word in row[1:])]
        for row, is_certain in zip(rows, kinds, strict=True)
    ]


def _titles(matrix: Matrix) -> list[str]:
    return ["true type", *(f"{column.series}\n{column.source}" for column in matrix.columns)]


def _short(word: str) -> str:
    if word.startswith("union of "):
        return "1/" + word.removeprefix("union of ")
    return _SHORT.get(word, word.replace(" % exact", "%"))


def _width(head: list[str], rows: list[list[str]]) -> int:
    """Columns of the screen that the table takes."""
    texts = zip(head, *rows, strict=True)
    return sum(max(len(line) for text in each for line in text.split("\n")) + 2 for each in texts)


def _summary(run: Run) -> str:
    checks = [walk.agrees for walk in run.walks]
    compared = sum(peer.compared for peer in run.peers)
    agreed = sum(peer.agreed for peer in run.peers)
    return (
        f"{run.series}: {run.release}, {run.date}: {run.frames:,} frames, "
        f"{run.frames_wrong} named wrongly, {run.frames_open} of which the truth is open; "
        f"{sum(checks)} of {len(checks)} counters equal; "
        f"drgn agrees {agreed:,} times of {compared:,}"
    )


# --- running -----------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    """Check kernels, write a run file for each, and the page of all that are kept."""
    from memdesc.checks.page import kept_groups, render_markdown
    from memdesc.checks.runs import recorded_runs, write_run
    from memdesc.vm.host import cache_folder
    from memdesc.vm.kernels import FURTHER, SERIES, series_named

    data, page = _outputs(options.output)
    if options.recordings is not None and not options.kernel:
        names = [name for name in (*SERIES, *FURTHER) if (options.recordings / name).is_dir()]
    else:
        names = [series_named(name).name for name in options.kernel or SERIES]
    if not names:
        raise QuestionError(
            f"{options.recordings} holds no recording",
            hint="it has a folder for each kernel, such as `memdesc matrix --run --keep DIR` makes",
        )
    wrong = 0
    with TemporaryDirectory(prefix="memdesc-", dir=cache_folder()) as scratch:
        for name in names:
            with steps() as tell:
                made = _checked(name, options, Path(scratch), tell)
            write_run(made, data)
            wrong += made.frames_wrong
            print(_summary(made))
    # A folder of its own shows what is in it, a checkout everything that it keeps.
    kept = recorded_runs(data)
    page.write_text(render_markdown(kept, kept_groups(kept, data)))
    notice(f"written: {data}, {page}")
    return 1 if wrong else 0


def _checked(name: str, options: argparse.Namespace, scratch: Path, tell: Tell) -> Run:
    from memdesc.checks.run import check, record_kernel
    from memdesc.vm.record import Recording

    def told(what: str) -> None:
        tell(f"{name}: {what}")

    if options.recordings is not None:
        recording = Recording(options.recordings / name)
        if not recording.vmcore.exists():
            raise QuestionError(f"{recording.folder} holds no recording with a dump")
        return check(recording, series=name, dwarf=options.dwarf, tell=told)
    folder = scratch if options.keep is None else options.keep
    recording = record_kernel(name, folder / name, tell=told)
    made = check(recording, series=name, dwarf=options.dwarf, tell=told)
    if options.keep is None:
        shutil.rmtree(recording.folder)  # two gigabytes
    return made


def _outputs(output: Path | None) -> tuple[Path, Path]:
    """Where run files and the page go. Raises QuestionError where that is not said."""
    from memdesc.checks.runs import FOLDER

    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        return output, output / "matrix.md"
    page = FOLDER.parents[3] / "docs" / "reference" / "matrix.md"
    if not page.parent.is_dir():
        raise QuestionError(
            "this memdesc is installed, and not a checkout that keeps results",
            hint="--output DIR says where they go",
        )
    return FOLDER, page

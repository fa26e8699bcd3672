"""`memdesc diff`."""

from __future__ import annotations

import argparse
from pathlib import Path

from memdesc.answers.diff import Diff, diff
from memdesc.answers.titles import title_of
from memdesc.cli.common import (
    add_thread_argument,
    check_options,
    console,
    envelope,
    print_json,
    progress,
    size,
    table,
)
from memdesc.errors import FormatError
from memdesc.types import PAGE_SIZE_BYTES

DESCRIPTION = (
    "What changed between two sources: the types that grew and shrank and, where both cover\n"
    "the same frames, which frames became what."
)
EXAMPLES = """
  memdesc capture --output before.memdesc; ...; memdesc diff before.memdesc live
  memdesc diff bundled:debian-6.12 bundled:debian-7.2
  memdesc diff before.bin after.bin --kernel 6.12.117
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", metavar="BEFORE", help="a source, as --source takes them")
    parser.add_argument("after", metavar="AFTER", nargs="?", default="live", help="default: live")
    parser.add_argument(
        "--kernel", metavar="RELEASE", help="the kernel that the raw files among the two came from"
    )
    add_thread_argument(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")


def run(options: argparse.Namespace) -> int:
    from memdesc.sources.open import open_source

    names = (options.before, options.after)
    check_options(options, *names)
    if options.kernel is not None and not any(map(_is_raw, names)):
        raise FormatError(
            "--kernel goes with a raw kpageflags file only",
            hint="a live machine and a capture know theirs",
        )
    maps = []
    for spec in names:
        kernel = options.kernel if _is_raw(spec) else None
        with progress(f"reading {spec}") as tell:
            maps.append(open_source(spec, kernel=kernel, threads=options.threads).map(tell))
    answer = diff(*maps, names=names)
    if options.json:
        releases = [result.machine.release for result in maps]
        value = {
            **answer.to_json(),
            "source_before": options.before,
            "kernel_before": str(releases[0]) if releases[0].is_known else None,
        }
        print_json(envelope(value, source=options.after, kernel=releases[1]))
    else:
        _show(answer)
    return 0


def _is_raw(spec: str) -> bool:
    return ":" not in spec and spec != "live" and not Path(spec).is_dir()


def _show(answer: Diff) -> None:
    out = console()
    if answer.comparable and not answer.transitions:
        out.print("nothing changed")
        return
    rows = [
        [
            title_of(change.types),
            size(change.frames_before * PAGE_SIZE_BYTES),
            size(change.frames_after * PAGE_SIZE_BYTES),
            f"{'+' if change.frames_delta > 0 else ''}{size(change.frames_delta * PAGE_SIZE_BYTES)}"
            if change.frames_delta
            else "same",
        ]
        for change in answer.changes
    ]
    out.print(table(["type", "before", "after", "change"], rows, right=(1, 2, 3), elastic=(0,)))
    if answer.transitions is None:
        if not any(change.frames_delta for change in answer.changes):
            out.print("\nnothing changed in these sums")
        out.print(f"\nframes are not compared one by one: {answer.why}", markup=False)
        return
    out.print("\nframes that changed type", style="bold")
    rows = [
        [size(t.frames * PAGE_SIZE_BYTES), title_of(t.before), "->", title_of(t.after)]
        for t in answer.transitions[:15]
    ]
    out.print(table(["", "was", "", "is"], rows, right=(0,), elastic=(1, 3)))
    same = (answer.frames_same or 0) * PAGE_SIZE_BYTES
    out.print(f"same type: {size(same)}", highlight=False)

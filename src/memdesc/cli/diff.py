"""`memdesc diff`."""

from __future__ import annotations

import argparse

from memdesc.answers.diff import Diff, diff
from memdesc.answers.titles import title_of
from memdesc.cli.common import console, print_json, progress, size, table
from memdesc.types import PAGE_SIZE_BYTES

DESCRIPTION = (
    "What changed between two sources: the types that grew and shrank and, where both cover\n"
    "the same frames, which frames became what."
)
EXAMPLES = """
  memdesc capture --output before.memdesc; ...; memdesc diff before.memdesc live
  memdesc diff bundled:debian-6.12 bundled:debian-7.2
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", metavar="BEFORE", help="a source, as --source takes them")
    parser.add_argument("after", metavar="AFTER", nargs="?", default="live", help="default: live")
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")


def run(options: argparse.Namespace) -> int:
    from memdesc.sources.open import open_source

    maps = []
    for spec in (options.before, options.after):
        with progress(f"reading {spec}") as tell:
            maps.append(open_source(spec).map(tell))
    answer = diff(*maps)
    if options.json:
        print_json(answer.to_json())
    else:
        _show(answer)
    return 0


def _show(answer: Diff) -> None:
    out = console()
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
    out.print(table(["type", "before", "after", "change"], rows, right=(1, 2, 3)))
    if answer.transitions is None:
        out.print("\ntwo machines, or two kernels: frames are not compared one by one")
        return
    out.print("\nframes that changed type", style="bold")
    rows = [
        [size(t.frames * PAGE_SIZE_BYTES), title_of(t.before), "->", title_of(t.after)]
        for t in answer.transitions[:15]
    ]
    out.print(table(["", "was", "", "is"], rows, right=(0,)))
    out.print(f"same type: {size(answer.frames_same * PAGE_SIZE_BYTES)}", highlight=False)

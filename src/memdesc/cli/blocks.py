"""`memdesc blocks`."""

from __future__ import annotations

import argparse
import shutil
import sys

from memdesc.answers.blocks import BLOCK_SIZES, Blocks, blocks, gained_json
from memdesc.answers.without import gone_of, needs_whole_map
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
    visible,
)
from memdesc.errors import QuestionError
from memdesc.map.parts import InParts

DESCRIPTION = (
    "How many huge pages could there be? Blocks that are free, that would be free after moving\n"
    "pages away, and that something blocks: what, ranked and named. Needs no allocation and\n"
    "changes nothing."
)
EXAMPLES = """
  memdesc blocks                          what keeps this machine from huge pages
  memdesc blocks --size 1G
  memdesc blocks --without slab           how many come back if the slab pages were gone
  memdesc blocks --without ext4_inode_cache --source vmcore
  memdesc blocks --without process:1234 --without pins --source live:struct
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", choices=BLOCK_SIZES, default="2M", help="size of a block (default: 2M)"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="as if this were gone: a type, an owner (slab cache, caller, ...), process:PID, "
        "0xPFN, or pins; may be repeated",
    )
    parser.add_argument(
        "--cheapest", type=int, default=5, metavar="N", help="blocks to list (default: 5)"
    )
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    if options.cheapest < 0:
        raise QuestionError(f"--cheapest {options.cheapest}: not a number of blocks")
    source = open_from(options)
    size_bytes = BLOCK_SIZES[options.size]
    words, most = options.without, options.cheapest
    plain: Blocks | None = None
    if isinstance(source, InParts) and not needs_whole_map(words):
        gone = gone_of(words, source)
        with progress("reading page flags") as tell:
            answer = blocks(source.parts(tell), size_bytes, gone=gone, without=words, cheapest=most)
        if words:
            plain = blocks(source.parts(), size_bytes, cheapest=0)
    else:
        with progress("reading page flags") as tell:
            result = source.map(tell, owners=True, references=True)
        gone = gone_of(words, source, result)
        answer = blocks(result, size_bytes, gone=gone, without=words, cheapest=most)
        if words:
            plain = blocks(result, size_bytes, cheapest=0)
    if options.json:
        value = answer.to_json()
        if plain is not None:
            value |= gained_json(answer, plain)
        print_json(envelope(value, source=options.source, kernel=source.machine.release))
    else:
        _show(answer, options.size, plain)
    return 0


def _show(answer: Blocks, name: str, plain: Blocks | None) -> None:
    out = console()
    total = answer.blocks
    states = (
        ("free now", answer.is_free),
        ("in use as a huge page", answer.huge),
        ("free after moving pages away", answer.is_movable),
        ("perhaps: kinds that are not visible", answer.is_open),
        ("blocked", answer.is_blocked),
    )
    rows = [
        [
            text,
            f"{int(mask.sum()):,}",
            percent(int(mask.sum()), total),
            size(int(mask.sum()) * answer.size_bytes),
        ]
        for text, mask in states
        if mask.any() or text != "in use as a huge page"
    ]
    out.print(table([f"{name} blocks", "", "share", "size"], rows, right=(1, 2, 3)))
    supply = answer.supply
    frames = int(answer.counts[answer.is_movable, 1].sum())
    out.print(
        f"\n{supply.now:,} {name} pages can be had now, "
        f"{_range(supply.compacted_min, supply.compacted_max)} after compaction "
        f"({size(frames << 12)} would have to move), "
        f"{_range(supply.reclaimed_min, supply.reclaimed_max)} for those who go on asking, as "
        "clean page cache is dropped for them",
        highlight=False,
    )
    if plain is not None:
        gained = gained_json(answer, plain)
        out.print(
            f"without {', '.join(map(visible, answer.without))}: "
            f"{gained['blocks_free_gained']:+,} free blocks, "
            f"{gained['blocks_unblocked']:,} no longer blocked, "
            f"{gained['blocks_after_compaction_gained']:+,} after compaction",
            style="bold",
            highlight=False,
            markup=False,
        )
    if answer.blockers:
        _show_blockers(answer)
    for note in answer.notes:
        out.print(f"note: {note}", markup=False)


def _show_blockers(answer: Blocks) -> None:
    out = console()
    most = 2 if answer.without else 3
    small = sys.stdout.isatty() and shutil.get_terminal_size().lines < 30
    single = [row for row in answer.blockers if row.single and row.certain]
    blocked = sum(row.single for row in single)
    if blocked:
        parts = ", ".join(f"{row.single:,} {visible(row.name)}" for row in single[:3])
        out.print(
            f"\n{blocked:,} blocks are blocked by one page each: {parts}",
            style="bold",
            highlight=False,
            markup=False,
        )
    rows = [
        [
            visible(row.name) + ("" if row.certain else " (perhaps)"),
            f"{row.blocks:,}",
            f"{row.alone:,}",
            f"{row.single:,}",
            f"{row.frames:,}",
        ]
        for row in answer.blockers[: most if small else _BLOCKERS]
    ]
    head = ["in the way", "blocks", "alone", "by one page", "frames"]
    out.print()
    out.print(table(head, rows, right=range(1, 5), elastic=(0,)))
    if len(answer.blockers) > len(rows):
        out.print(f"... and {len(answer.blockers) - len(rows)} more (--json)", style="dim")
    if answer.cheapest:
        out.print("\ncheapest to free", style="bold")
        lines = [
            [
                f"{row.pfn_start:#x}",
                f"{row.in_the_way:,}",
                f"{row.movable:,}",
                ", ".join(visible(text) for text in row.names),
            ]
            for row in answer.cheapest[: 2 if small else None]
        ]
        head = ["first frame", "in the way", "to move", "what is in the way"]
        out.print(table(head, lines, right=(1, 2), elastic=(3,)))


_BLOCKERS = 6
"""What stands first keeps most; the rest is in --json."""


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"

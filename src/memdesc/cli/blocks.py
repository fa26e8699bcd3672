"""`memdesc blocks`."""

from __future__ import annotations

import argparse

from memdesc.answers.blocks import BLOCK_SIZES, Blocks, blocks
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
        help="as if a type, or an owner (slab cache, caller, ...), were gone; may be repeated",
    )
    parser.add_argument(
        "--cheapest", type=int, default=5, metavar="N", help="blocks to list (default: 5)"
    )
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    source = open_from(options)
    with progress("reading page flags") as tell:
        result = source.map(tell, owners=True)
    size_bytes = BLOCK_SIZES[options.size]
    answer = blocks(result, size_bytes, without=options.without, cheapest=options.cheapest)
    plain = blocks(result, size_bytes, cheapest=0) if options.without else None
    if options.json:
        value = answer.to_json()
        if plain is not None:
            value["blocks_gained"] = int(answer.is_free.sum() - plain.is_free.sum())
        print_json(envelope(value, source=options.source, kernel=result.machine.release))
    else:
        _show(answer, options.size, plain)
    return 0


def _show(answer: Blocks, name: str, plain: Blocks | None) -> None:
    out = console()
    total = int(answer.pfn_starts.size)
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
    ]
    out.print(table([f"{name} blocks", "", "share", "size"], rows, right=(1, 2, 3)))
    supply = answer.supply
    frames = int(answer.counts[answer.is_movable, 1].sum())
    out.print(
        f"\n{supply.now:,} {name} pages can be had now, "
        f"{_range(supply.compacted_min, supply.compacted_max)} after compaction "
        f"({size(frames << 12)} would have to move), "
        f"at most {supply.reclaimed_max:,} with clean page cache dropped",
        highlight=False,
    )
    if plain is not None:
        gained = int(answer.is_free.sum() - plain.is_free.sum())
        unblocked = int(plain.is_blocked.sum() - answer.is_blocked.sum())
        out.print(
            f"without {', '.join(map(visible, answer.without))}: {gained:+,} free blocks, "
            f"{unblocked:,} no longer blocked",
            style="bold",
            highlight=False,
        )
    if answer.blockers:
        _show_blockers(answer)
    for note in answer.notes:
        out.print(f"note: {note}", markup=False)


def _show_blockers(answer: Blocks) -> None:
    out = console()
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
        for row in answer.blockers[:12]
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
            for row in answer.cheapest
        ]
        head = ["first frame", "in the way", "to move", "what is in the way"]
        out.print(table(head, lines, right=(1, 2), elastic=(3,)))


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"

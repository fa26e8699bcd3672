"""`memdesc model compare`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from memdesc.cli.common import console, envelope, notice, print_json, size, steps, table
from memdesc.kernels.release import KernelRelease
from memdesc.model.designs import DESIGNS, design_of

if TYPE_CHECKING:
    from memdesc.model.compare import Comparison, DesignRun, LineCount
    from memdesc.model.described import Metadata

HELP = "run the same operations on every design of page and descriptors"
DESCRIPTION = (
    "Run the same allocations, frees and lookups on a machine of each design: struct page of\n"
    "2021 and of today, and the 32-, 16- and 8-byte pages of the memdesc plan, whose descriptors\n"
    "are objects of slab caches of that machine. What does each take, now and at its peak, how\n"
    "many cache lines of metadata does it touch, and what fails because of it?"
)
EXAMPLES = """
  memdesc model compare                               page cache on 1 GiB
  memdesc model compare anon --memory 256 --operations 1000000
  memdesc model compare thp --design 8 --design today --kernel 7.2
  memdesc model compare anon --fill 100 --memory 64   what fails when memory is short
  memdesc model compare slab --json
"""

WORKLOADS = {
    "files": "page cache: folios of 1 to 32 frames",
    "anon": "processes that touch single pages",
    "thp": "huge pages, single pages between them",
    "slab": "kernel objects of 8 to 4096 bytes",
    "tables": "page tables, stacks, few pages",
}
"""As in `memdesc.model.workloads`, whose import compiles the model; a test compares the two."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workload",
        nargs="?",
        choices=tuple(WORKLOADS),
        default="files",
        metavar="WORKLOAD",
        help="; ".join(f"{name}: {text}" for name, text in WORKLOADS.items()) + " (default: files)",
    )
    parser.add_argument(
        "--memory", type=_mebibytes, default=1024, metavar="MIB", help="default: 1024"
    )
    parser.add_argument(
        "--operations", type=_operations, default=200_000, metavar="N", help="default: 200000"
    )
    parser.add_argument(
        "--fill",
        type=_percent,
        default=80,
        metavar="PERCENT",
        help="of the memory in use before old allocations make way (default: 80; more than "
        "there is makes allocations fail)",
    )
    parser.add_argument(
        "--design",
        action="append",
        choices=tuple(DESIGNS),
        help="only this design; can be given more than once (default: all)",
    )
    parser.add_argument(
        "--kernel", default="6.12", metavar="RELEASE", help="whose rules hold (default: 6.12)"
    )
    parser.add_argument("--cpus", type=_cpus, default=2, metavar="N", help="default: 2")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")


def run(options: argparse.Namespace) -> int:
    release = KernelRelease.parse(options.kernel)
    with steps() as tell:
        tell("compiling the model (the first time only)")
        from memdesc.model.compare import compare
        from memdesc.model.workloads import workload
        from memdesc.model.zones import Layout

        memory_bytes = options.memory << 20
        layout = Layout.pc(memory_bytes)
        rows = workload(
            options.workload,
            memory_bytes=memory_bytes,
            operations=options.operations,
            cpus=options.cpus,
            seed=options.seed,
            fill=options.fill / 100,
        )
        found = compare(
            rows,
            layout,
            kernel=options.kernel,
            cpus=options.cpus,
            designs=[design_of(name) for name in dict.fromkeys(options.design or DESIGNS)],
        )
    if options.json:
        print_json(envelope(_value(found), source="model", kernel=release))
    else:
        _show(found)
    return 0


def _show(found: Comparison) -> None:
    out = console()
    out.print(
        f"{found.workload}: {found.operations:,} operations on {size(found.memory_bytes)}, "
        f"rules of {found.kernel}",
        style="bold",
        highlight=False,
    )
    head = ["design", "memory map", "descriptors", "in slabs", "total", "at peak", "failed"]
    rows = [
        [
            run.design.title,
            size(run.now.memmap_bytes),
            size(run.now.descriptor_bytes),
            size(run.now.slab_bytes),
            size(run.now.taken_bytes),
            size(run.peak.taken_bytes),
            f"{run.failed:,}",
        ]
        for run in found.runs
    ]
    out.print(table(head, rows, right=(1, 2, 3, 4, 5, 6)))
    out.print(
        "total: memory map and whole slabs, what nobody else can use", style="dim", highlight=False
    )
    out.print("\ncache lines of metadata per operation", style="bold")
    names = [each.operation for each in found.runs[0].lines] if found.runs else []
    lines = [
        [run.design.title, *(f"{each.lines:,.2f}" for each in run.lines)] for run in found.runs
    ]
    out.print(table(["design", *names], lines, right=tuple(range(1, len(names) + 1))))
    out.print("\ndescriptors", style="bold")
    counts = [
        [
            run.design.title,
            f"{run.descriptor_allocs:,}",
            f"{run.descriptor_frees:,}",
            size(run.now.unused_bytes),
            f"{run.failed_for_descriptors:,}",
            f"{run.failed_only_here:,}",
            f"{run.failed_only_today:,}",
        ]
        for run in found.runs
    ]
    columns = ["design", "allocated", "freed", "free in slabs", "lacked", "fails here", "spared"]
    out.print(table(columns, counts, right=(1, 2, 3, 4, 5, 6)))
    out.print(
        "lacked: no descriptor to be had; fails here: not with today's struct page; "
        "spared: only there",
        style="dim",
        highlight=False,
    )
    for text in _notes(found):
        notice(text)


def _notes(found: Comparison) -> list[str]:
    return [
        "the memory of sheaves, list heads and free blocks' links is in no number",
        *(
            f"{run.design.title}: {each.text}"
            for run in found.runs[-1:]
            for each in run.design.assumptions
        ),
    ]


def _value(found: Comparison) -> dict[str, Any]:
    return {
        "schema": "memdesc-model-compare/1",
        "workload": found.workload,
        "operations": found.operations,
        "memory_bytes": found.memory_bytes,
        "rows": [_row(run) for run in found.runs],
        "notes": _notes(found),
    }


def _row(run: DesignRun) -> dict[str, Any]:
    return {
        "design": run.design.id,
        "title": run.design.title,
        "revision": run.design.revision or None,
        "free_bytes_at_boot": run.free_bytes_at_boot,
        "now": _metadata(run.now),
        "peak": {
            "total_bytes": run.peak.total_bytes,
            "descriptors": run.peak.descriptors,
            "descriptor_bytes": run.peak.descriptor_bytes,
            "slab_bytes": run.peak.slab_bytes,
        },
        "descriptor_allocs": run.descriptor_allocs,
        "descriptor_frees": run.descriptor_frees,
        "failed": run.failed,
        "failed_for_descriptors": run.failed_for_descriptors,
        "failed_only_here": run.failed_only_here,
        "failed_only_today": run.failed_only_today,
        "lines": [_line(each) for each in run.lines],
    }


def _metadata(now: Metadata) -> dict[str, int]:
    return {
        "memmap_bytes": now.memmap_bytes,
        "descriptors": now.descriptors,
        "descriptor_bytes": now.descriptor_bytes,
        "slab_bytes": now.slab_bytes,
        "unused_bytes": now.unused_bytes,
        "waste_bytes": now.waste_bytes,
        "total_bytes": now.total_bytes,
        "taken_bytes": now.taken_bytes,
    }


def _line(each: LineCount) -> dict[str, Any]:
    return {
        "operation": each.operation,
        "count": each.count,
        "lines": round(each.lines, 4),
        "misses": round(each.misses, 4),
    }


# --- options -----------------------------------------------------------------------------

_MOST_MEBIBYTES = 1 << 24
"""16 TiB, as far as 32-bit frame numbers reach."""


def _mebibytes(text: str) -> int:
    return _between(text, 18, _MOST_MEBIBYTES - 1, "MiB")


def _operations(text: str) -> int:
    return _between(text, 100, 100_000_000, "operations")


def _percent(text: str) -> int:
    return _between(text, 1, 1000, "percent")


def _cpus(text: str) -> int:
    return _between(text, 1, 1024, "CPUs")


def _between(text: str, least: int, most: int, what: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"from {least} to {most} {what}, not {text!r}")
    return value

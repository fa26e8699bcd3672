"""`memdesc doctor`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from memdesc.answers.doctor import Doctor, doctor
from memdesc.cli.common import console, envelope, print_json, steps, table
from memdesc.kernels.release import KernelRelease

DESCRIPTION = (
    "What is readable here, what each missing privilege or kernel option costs in answers,\n"
    "and exactly how to get it. Exits 1 when the page flags cannot be read at all."
)
EXAMPLES = """
  memdesc doctor
  memdesc doctor --flags     the bits of /proc/kpageflags and what they mean
  memdesc doctor --compare   do struct pages and /proc/kpageflags agree, flag by flag?
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--flags", action="store_true", help="list the page flags instead")
    what.add_argument(
        "--compare",
        action="store_true",
        help="read every frame through both and compare (needs root; exits 1 below 99.9 %%)",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")


def run(options: argparse.Namespace) -> int:
    if options.flags:
        _flags(options.json)
        return 0
    if options.compare:
        return _compare(options.json)
    answer = doctor()
    if options.json:
        value = answer.to_json()
        for row in value["rows"]:
            row["remedy"] = row["remedy"] or None
        kernel = value["kernel"]
        known = KernelRelease.parse(kernel) if kernel != "unknown" else None
        print_json(envelope(value, source="live", kernel=known))
    else:
        _show(answer)
    return 0 if answer.is_well else 1


def _show(answer: Doctor) -> None:
    out = console()
    out.print(f"Linux {answer.release}", style="bold", highlight=False)
    rows = [[check.name, check.state, check.found] for check in answer.checks]
    out.print(table(["", "", ""], rows))
    for check in answer.checks:
        if check.state != "ok":
            out.print(f"\n{check.name}: {check.found}", style="bold", markup=False)
            out.print(f"  without it: {check.costs}", markup=False)
            out.print(f"  to get it:  {check.remedy}", markup=False)
    if answer.traps:
        out.print("\nwhat this kernel shows wrongly, and memdesc allows for", style="bold")
        for trap in answer.traps:
            out.print(f"  {trap}", markup=False)
    if not answer.is_well:
        out.print("\nwithout privilege, recorded machines still answer:", style="bold")
        out.print("  memdesc --source bundled:debian-6.12", markup=False)


_ENOUGH = 0.999
"""Share of unchanged frames that must agree: reading twice is no snapshot."""


def _compare(as_json: bool) -> int:
    """Struct pages against /proc/kpageflags, over the frames that did not change meanwhile."""
    from memdesc.sources.kpage import PageFile
    from memdesc.sources.structs import LiveStructSource
    from memdesc.structs.agreement import live_agreement

    source = LiveStructSource()
    flags = PageFile(Path("/proc/kpageflags"))
    with steps() as tell:
        tell("comparing section by section")
        report = live_agreement(source.scan(), flags.read_into, flags.frames())
    release = source.machine.release
    code = 0 if report.share >= _ENOUGH else 1
    if as_json:
        value = {
            "schema": "memdesc-agreement/1",
            "frames": report.frames,
            "frames_changed": report.changed,
            "frames_equal": report.equal,
            "share": report.share,
            "rows": [dataclasses.asdict(row) for row in report.flags],
            "notes": [item.describe(release) for item in report.differences],
        }
        print_json(envelope(value, source="live", kernel=release))
        return code
    out = console()
    out.print(
        f"{report.equal:,} of {report.compared:,} frames have the same word in both; "
        f"{report.changed:,} changed while they were read",
        style="bold",
        highlight=False,
    )
    rows = [
        [row.name, f"{row.both:,}", f"{row.only_struct:,}", f"{row.only_proc:,}"]
        for row in report.flags
    ]
    head = ["flag", "both", "only struct page", "only /proc"]
    out.print(table(head, rows, right=(1, 2, 3)))
    for item in report.differences:
        out.print(item.describe(release), markup=False)
    return code


def _flags(as_json: bool) -> None:
    from memdesc.kernels.kpageflags import BITS

    if as_json:
        rows = [
            {"bit": b.bit, "name": b.name, "meaning": b.meaning, "source": b.source}
            for b in BITS.values()
        ]
        print_json(envelope({"schema": "memdesc-flags/1", "rows": rows}, source="live"))
        return
    cells = [[str(b.bit), b.name, b.meaning] for b in BITS.values()]
    console().print(table(["bit", "name", "meaning"], cells, right=(0,)))

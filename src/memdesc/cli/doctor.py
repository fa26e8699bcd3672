"""`memdesc doctor`."""

from __future__ import annotations

import argparse

from memdesc.answers.doctor import Doctor, doctor
from memdesc.cli.common import console, envelope, print_json, table
from memdesc.kernels.release import KernelRelease

DESCRIPTION = (
    "What is readable here, what each missing privilege or kernel option costs in answers,\n"
    "and exactly how to get it. Exits 1 when the page flags cannot be read at all."
)
EXAMPLES = """
  memdesc doctor
  memdesc doctor --flags     the bits of /proc/kpageflags and what they mean
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--flags", action="store_true", help="list the page flags instead")
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")


def run(options: argparse.Namespace) -> int:
    if options.flags:
        _flags(options.json)
        return 0
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

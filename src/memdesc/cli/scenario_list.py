"""`memdesc scenario list`."""

from __future__ import annotations

import argparse
from pathlib import Path

from memdesc.cli.common import console, envelope, print_json, table
from memdesc.cli.scenario_common import add_files, scenarios_of

HELP = "what scenarios there are, and whether this machine could run them"
DESCRIPTION = (
    "List the scenarios of files and folders: steps, expectations, and the kernels on which they\n"
    "have steps of their own. Scenarios that change settings of the system only run in guests."
)
EXAMPLES = """
  memdesc scenario list
  memdesc scenario list scenarios/04-fork-and-cow --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser, default=Path("scenarios"))
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")


def run(options: argparse.Namespace) -> int:
    rows = []
    for scenario in scenarios_of(options.files):
        plan = scenario.plans["6.12"]
        rows.append(
            {
                "file": str(scenario.path),
                "line": scenario.line,
                "title": scenario.title,
                "steps": len(plan.steps),
                "checks": len(plan.checks),
                "differs_by_kernel": any(line.condition.series for line in scenario.lines),
                "guests_only": plan.changes_system,
            }
        )
    if options.json:
        value = {"schema": "memdesc-scenario-list/1", "rows": rows}
        print_json(envelope(value, source=", ".join(map(str, options.files))))
        return 0
    console().print(
        table(
            ["file", "scenario", "steps", "rows", "kernels", "runs"],
            [
                [
                    f"{row['file']}:{row['line']}",
                    str(row["title"]),
                    str(row["steps"]),
                    str(row["checks"]),
                    "differ" if row["differs_by_kernel"] else "alike",
                    "in guests" if row["guests_only"] else "anywhere",
                ]
                for row in rows
            ],
            right=(2, 3),
            elastic=(0, 1),
        )
    )
    return 0

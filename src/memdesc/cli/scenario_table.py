"""`memdesc scenario table`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Final

from memdesc.cli.common import console, envelope, print_json, table
from memdesc.errors import NotReadableError

HELP = "what was compared with real kernels, by mechanism and kernel"
DESCRIPTION = (
    "Show what `memdesc scenario compare --save` recorded: how many scenarios of each mechanism\n"
    "hold in the model and on each real kernel, and each one that does not."
)
EXAMPLES = """
  memdesc scenario table
  memdesc scenario table scenarios/results.json --markdown
  memdesc scenario compare scenarios --save scenarios/results.json     record it anew
"""

_DEFAULT: Final = Path("scenarios/results.json")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        default=_DEFAULT,
        metavar="RESULTS",
        help=f"default: {_DEFAULT}",
    )
    parser.add_argument("--markdown", action="store_true", help="as the documentation has it")
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")


def run(options: argparse.Namespace) -> int:
    from memdesc.scenarios.results import Results
    from memdesc.scenarios.table import markdown_table, missing, table_cells

    if options.results == _DEFAULT and not _DEFAULT.exists():
        raise NotReadableError(
            f"there is no file {_DEFAULT}",
            path=_DEFAULT,
            hint="run it in the checkout, or give the file that `memdesc scenario compare "
            "FILE... --save RESULTS` made",
        )
    results = Results.read(options.results)
    if options.json:
        entries = [{**asdict(entry), "why": entry.why or None} for entry in results.entries]
        value = {"schema": "memdesc-scenario-table/1", "date": results.date, "rows": entries}
        print_json(envelope(value, source=str(options.results)))
    elif options.markdown:
        print(markdown_table(results), end="")
    else:
        columns, rows = table_cells(results)
        console().print(table(columns, rows, right=range(1, len(columns)), elastic=(0,)))
        for entry in missing(results):
            print(f"{entry.verdict}: {entry.file}, {entry.title}, on {entry.series}: {entry.why}")
    return 1 if any(entry.verdict in ("differs", "fails") for entry in results.entries) else 0

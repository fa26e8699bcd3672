"""`memdesc scenario`: one subcommand per module, as in `cli/model.py`."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

DESCRIPTION = (
    "Scenario files: steps of processes on memory, with what must be seen after them. One file is\n"
    "a page of documentation, a test of the model, and a test of a real kernel."
)

_SUBCOMMANDS = {
    "run": "memdesc.cli.scenario_run",
    "compare": "memdesc.cli.scenario_compare",
    "list": "memdesc.cli.scenario_list",
    "table": "memdesc.cli.scenario_table",
    "random": "memdesc.cli.scenario_random",
}
"""Name -> module. They import the model, which compiles, only when they run."""

EXAMPLES = """
  memdesc scenario list scenarios                  what there is
  memdesc scenario run FILE.md                     on the model of 6.12
  memdesc scenario run FILE.md --on vm:7.2         on a real kernel, in a guest
  memdesc scenario run FILE.md --step              every page after every step
  memdesc scenario compare FILE.md                 model and kernel, three times: who differs?
  memdesc scenario table                           what was compared, by mechanism and kernel
  memdesc scenario random 7 > random.md            a seed's random steps, as such a file
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, module in _SUBCOMMANDS.items():
        found: Any = importlib.import_module(module)
        sub = commands.add_parser(
            name,
            help=found.HELP,
            description=found.DESCRIPTION,
            epilog="examples:\n" + found.EXAMPLES.strip("\n"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        found.arguments(sub)


def run(options: argparse.Namespace) -> int:
    module: Any = importlib.import_module(_SUBCOMMANDS[options.action])
    code: int = module.run(options)
    return code

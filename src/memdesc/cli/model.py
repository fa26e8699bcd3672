"""`memdesc model`: one subcommand per module, each with `HELP`, `EXAMPLES`, `arguments`, `run`."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

DESCRIPTION = (
    "An executable model of the kernel's page allocator, and of pages that carry memdescs."
)

_SUBCOMMANDS = {
    "replay": "memdesc.cli.model_replay",
    "compare": "memdesc.cli.model_compare",
}
"""Name -> module. They import the model, which compiles, only when they run."""

EXAMPLES = """
  memdesc vm trace 6.12 --output traced       record a trace and the lists around it
  memdesc model replay traced                 how near does the model come?
  memdesc model replay --help                 traces of your own
  memdesc model compare anon                  what each design of page and descriptors takes
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

"""`memdesc model`: one module per action."""

from __future__ import annotations

import argparse

from memdesc.cli.subcommands import add_subcommands, run_subcommand

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
    add_subcommands(parser, _SUBCOMMANDS)


def run(options: argparse.Namespace) -> int:
    return run_subcommand(options, _SUBCOMMANDS)

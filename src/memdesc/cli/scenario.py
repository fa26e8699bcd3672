"""`memdesc scenario`: one module per action."""

from __future__ import annotations

import argparse

from memdesc.cli.subcommands import add_subcommands, run_subcommand

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
  memdesc scenario list                            what there is
  memdesc scenario run FILE.md                     on the model of 6.12
  memdesc scenario run FILE.md --on vm:7.2         on a real kernel, in a guest
  memdesc scenario run FILE.md --step              every page after every step
  memdesc scenario compare FILE.md                 model and kernel, three times: who differs?
  memdesc scenario table                           what was compared, by mechanism and kernel
  memdesc scenario random 7 > random.md            a seed's random steps, as such a file
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_subcommands(parser, _SUBCOMMANDS)


def run(options: argparse.Namespace) -> int:
    return run_subcommand(options, _SUBCOMMANDS)

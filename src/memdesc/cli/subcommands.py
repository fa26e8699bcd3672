"""Commands of several actions: each action a module with HELP, DESCRIPTION, EXAMPLES, `arguments`
and `run`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from typing import Any

__all__ = ["add_subcommands", "run_subcommand"]


def add_subcommands(parser: argparse.ArgumentParser, modules: Mapping[str, str]) -> None:
    """Add an action for each name; its module is named behind it."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, module in modules.items():
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


def run_subcommand(options: argparse.Namespace, modules: Mapping[str, str]) -> int:
    """Run the action that was asked for; its exit code."""
    module: Any = importlib.import_module(modules[options.action])
    code: int = module.run(options)
    return code

"""Find the command, read its options, run it, and turn errors into two lines and a code."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from memdesc.cli import COMMANDS
from memdesc.errors import MemdescError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["run"]


class _Usage(MemdescError):
    """The command line itself is wrong."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, and a hint."""

    def error(self, message: str) -> NoReturn:
        raise _Usage(message, hint=f"`{self.prog} --help` shows the options and examples")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # argparse lets the parser above complain of what an action does not know.
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(word, self._option_string_actions, n=1)
            hint = f"`{self.prog} --help` shows the options and examples"
            raise _Usage(
                f"unrecognized arguments: {' '.join(unknown)}",
                hint=f"did you mean {near[0]}? {hint}" if near else hint,
            )
        return found, unknown

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        # argparse's own passes over a disk that is full.
        print(self.format_help(), end="", file=file)


def run(words: Sequence[str]) -> int:
    """Run `words` and return the exit code. Raises OSError, KeyboardInterrupt, SystemExit."""
    # numpy's linear algebra, which nothing here uses, starts a thread per processor when it
    # is imported: a fifth of the time until a command runs.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        name, rest = _command(words)
        module = importlib.import_module(f"memdesc.cli.{name}")
        parser = _Parser(
            prog=f"memdesc {name}",
            description=module.DESCRIPTION,
            epilog="examples:\n" + module.EXAMPLES.strip("\n"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.arguments(parser)
        options = parser.parse_args(rest)
        code: int = module.run(options)
    except MemdescError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _EXTRAS:
            raise
        print(f"error: this needs the Python package `{error.name}`", file=sys.stderr)
        print(f"hint: pip install 'memdesc[{_EXTRAS[error.name.split('.')[0]]}]'", file=sys.stderr)
        return 2
    return code


_EXTRAS = {
    "arro3": "capture",
    "jinja2": "report",
    "duckdb": "sql",
    "drgn": "vmcore",
    "numba": "model",
}


_PLANNED = (*("serve", "watch", "thread"),)


def _command(words: Sequence[str]) -> tuple[str, list[str]]:
    if not words or words[0].startswith("-"):
        return "overview", list(words)
    if words[0] in COMMANDS:
        _check_places(words[0], words[1:])
        return words[0], list(words[1:])
    if words[0] in _PLANNED:
        raise _Usage(
            f"`memdesc {words[0]}` is not part of this version",
            hint="this version has: " + ", ".join(COMMANDS),
        )
    near = difflib.get_close_matches(words[0], COMMANDS, n=1)
    raise _Usage(
        f"unknown command: {words[0]!r}",
        hint=f"did you mean `memdesc {near[0]}`?" if near else "`memdesc --help` lists them",
    )


def _check_places(name: str, words: Sequence[str]) -> None:
    """Say what is wrong with -0x1, which argparse takes for an option."""
    wrong = [word for word in words if re.match(r"-(0[xX]|phys:)", word)]
    if name in ("what", "who", "move", "failure") and wrong:
        raise _Usage(
            f"not a place: {wrong[0][:60]!r}: frames and addresses are not negative",
            hint="a frame is 0x1234, a physical address phys:0x1234000",
        )

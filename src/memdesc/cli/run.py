"""Find the command, read its options, run it, and turn errors into two lines and a code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from memdesc.cli import COMMANDS
from memdesc.errors import MemdescError

__all__ = ["run"]


class _Usage(MemdescError):
    """The command line itself is wrong."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, and a hint."""

    def error(self, message: str) -> NoReturn:
        raise _Usage(message, hint=f"`{self.prog} --help` shows the options and examples")


def run(words: Sequence[str]) -> int:
    """Run `words` and return the exit code. Never lets a traceback out for bad input."""
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
        sys.stdout.flush()
    except MemdescError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _EXTRAS:
            raise
        print(f"error: this needs the Python package `{error.name}`", file=sys.stderr)
        print(f"hint: pip install 'memdesc[{_EXTRAS[error.name.split('.')[0]]}]'", file=sys.stderr)
        return 2
    return code


_EXTRAS = {"arro3": "capture", "jinja2": "report", "duckdb": "sql"}


def _command(words: Sequence[str]) -> tuple[str, list[str]]:
    if not words or words[0].startswith("-"):
        return "overview", list(words)
    if words[0] in COMMANDS:
        return words[0], list(words[1:])
    import difflib

    near = difflib.get_close_matches(words[0], COMMANDS, n=1)
    raise _Usage(
        f"unknown command: {words[0]!r}",
        hint=f"did you mean `memdesc {near[0]}`?" if near else "`memdesc --help` lists them",
    )

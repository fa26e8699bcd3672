"""The `memdesc` command: a thin face over the answers.

Each command is one module with `DESCRIPTION`, `EXAMPLES`, `arguments(parser)` and
`run(options) -> exit code`; it is imported when it runs, so `--help` and `--version`
load nothing heavy.

Exit codes: 0 answered; 1 answered, and a check found something; 2 could not answer, or not
all that was asked; 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, str] = {
    "overview": "what the memory of this machine is, on one screen (the default)",
    "ledger": "every present frame exactly once, and how it adds up with /proc/meminfo",
    "what": "what a page is: by frame, physical address or PID:ADDRESS",
    "who": "who maps a page; sizes per process and file; charged against mapped",
    "move": "can it be moved away: a page, a range, a memory block, a zone",
    "blocks": "how many huge pages there could be, and what is in the way",
    "failure": "what a memory error would do, for every frame or for a page",
    "savings": "what describing this memory costs, today and under the memdesc plan",
    "diff": "what changed between two sources",
    "capture": "record this machine's map in a directory of plain tables",
    "report": "one self-contained HTML file: the ledger, the memory as a picture, the owners",
    "model": "the page allocator as a model: replay a real trace",
    "scenario": "steps of processes on memory, that the model and real kernels must agree on",
    "vm": "boot a real kernel in a virtual machine: run a program, dump it, record it",
    "matrix": "what has been checked, on which kernels, by which source",
    "doctor": "what is readable here, what is not, and how to get it",
}

_HELP = """\
memdesc gives every page of a Linux machine's memory a type.

usage: memdesc [COMMAND] [OPTIONS]

commands:
{commands}

every command:
  --source SOURCE   what to look at (default: live)
  --json            machine-readable output
  --help            options and examples of the command

examples:
  memdesc                                  this machine
  memdesc --source bundled:debian-6.12     a recorded machine, no privilege needed
  memdesc what 0x1234 phys:0x1234000       two places
  memdesc ledger --by cgroup --json

exit codes: 0 answered; 1 answered, and a check found something; 2 could not answer,
or not all that was asked; 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: sys.argv) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and words[:1] == ["scenario"]:
        # Its machines are small: compiling the model's loops takes longer than running them.
        os.environ.setdefault("MEMDESC_MODEL_COMPILED", "0")
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal or pipe of another encoding gets "?", not a traceback.
            sys.stdout.reconfigure(errors="replace")
        try:
            code = _answer(words)
        except SystemExit:  # argparse has printed its help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        _drop_output()
        return 0
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        _say(error)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return 2
    return code


def help_text() -> str:
    """What `memdesc --help` prints."""
    lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    return _HELP.format(commands="\n".join(lines))


# --- helpers -----------------------------------------------------------------------------


def _answer(words: list[str]) -> int:
    if words and words[0] in ("-h", "--help", "help"):
        if len(words) > 1 and words[1] in COMMANDS:
            # `help scenario run` is about the action.
            words = [words[1], *(word for word in words[2:3] if word.isalpha()), "--help"]
        else:
            print(help_text(), end="")
            return 0
    if words and words[0] in ("-V", "--version"):
        from memdesc import __version__

        print(f"memdesc {__version__}")
        return 0
    from memdesc.cli.run import run

    return run(words)


def _drop_output() -> None:
    """Send what is still buffered nowhere: Python would complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_HINTS = {
    errno.EACCES: "run as root; `memdesc doctor` says what is readable here",
    errno.EPERM: "run as root; `memdesc doctor` says what is readable here",
    errno.ENOENT: "the path does not exist",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENOMEM: "`memdesc ledger` needs the least memory",
}


def _say(error: OSError) -> None:
    what = error.strerror or str(error)
    if error.filename is not None:
        what = f"{what}: {error.filename}"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = f"cannot write the output: {what}"
    print(f"error: {what}", file=sys.stderr)
    hint = _HINTS.get(error.errno or 0)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)

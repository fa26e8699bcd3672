"""The `memdesc` command: a thin face over the answers.

Each command is one module with `DESCRIPTION`, `EXAMPLES`, `arguments(parser)` and
`run(options) -> exit code`; it is imported when it runs, so `--help` and `--version`
load nothing heavy.

Exit codes: 0 answered; 1 answered, and a check found something; 2 could not answer.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, str] = {
    "overview": "what the memory of this machine is, on one screen (the default)",
    "ledger": "every present frame exactly once, and how it adds up with /proc/meminfo",
    "what": "what a page is: by frame, physical address or PID:ADDRESS",
    "who": "who maps a page; sizes per process and file; charged against mapped",
    "diff": "what changed between two sources",
    "capture": "record this machine's map in a directory of plain tables",
    "report": "one self-contained HTML file: the ledger, the memory as a picture, the owners",
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

exit codes: 0 answered; 1 answered, and a check found something; 2 could not answer
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: sys.argv) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help", "help"):
        if len(words) > 1 and words[1] in COMMANDS:
            words = [words[1], "--help"]
        else:
            print(help_text(), end="")
            return 0
    if words and words[0] in ("-V", "--version"):
        from memdesc import __version__

        print(f"memdesc {__version__}")
        return 0
    from memdesc.cli.run import run

    return run(words)


def help_text() -> str:
    """What `memdesc --help` prints."""
    lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    return _HELP.format(commands="\n".join(lines))

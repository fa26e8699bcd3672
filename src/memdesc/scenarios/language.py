"""The parts that verbs are described with: kinds of parameters, options, results.

`steps` is the table of verbs in these terms; `reader` reads a line by its row, and the
documentation of the language is printed from the same rows.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "FILE_SYSTEMS",
    "MOST_FILE_PAGES",
    "MOST_PAGES",
    "REQUIRED",
    "Kind",
    "Option",
    "Parameter",
    "Result",
    "Verb",
    "choice",
    "flag",
    "value",
]


class Kind(enum.Enum):
    """What a parameter is. The value says it to people."""

    NEW_PROCESS = "name of a new process"
    PROCESS = "a process that lives"
    NEW = "name of a new mapping"
    RANGE = "pages of a mapping: buf, buf[1], buf[0:2]"
    PLACE = "an address: buf, buf+4 (pages)"
    COUNT = "a number"
    WORD = "one of the words"
    TEXT = "a word of any kind"
    TAGS = "contents: one for all pages, or one per page: A, A B, A*4"
    NEW_FILE = "name of a new open file"
    FILE = "an open file"
    FILE_RANGE = "pages of a file: f[0:2]; f for all that it has"
    PATH = "a path: tmpfs:NAME, or NAME on ramfs, ext4, xfs or vfat"
    NEW_PIN = "name of new references to pages"
    PIN = "references that are held"
    NEW_FRAMES = "name of remembered frames"
    NEW_SEGMENT = "name of a new segment of System V shared memory"
    SEGMENT = "a segment of System V shared memory"


class Result(enum.Enum):
    """What a verb returns when it succeeds: what may stand behind `->`."""

    NOTHING = "nothing"
    CONTENTS = "a content per page"
    NUMBER = "a number"
    NUMBERS = "numbers"
    WORD = "a word"


FILE_SYSTEMS: Final = ("tmpfs", "ramfs", "ext4", "xfs", "vfat")
"""What stands before the colon of a PATH."""

MOST_PAGES: Final = 1 << 18
"""1 GiB, twice what guests have."""

MOST_FILE_PAGES: Final = 1 << 16
"""Half of what guests have: a file's pages are all filled."""

REQUIRED: Final = object()
"""The default of a parameter that has none."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One value of a verb or option. It becomes `args[name]` of the step."""

    name: str
    kind: Kind
    help: str = ""
    choices: tuple[str, ...] = ()
    """Of a WORD."""
    default: Any = REQUIRED
    least: int = 0
    most: int = MOST_PAGES
    """Of a COUNT: more is a slip of the finger, or would take forever."""
    of: str = ""
    """Of a RANGE: the parameter that names whose pages these are; "" for who does the step.
    Of a PIN: the verbs that take such references, as words; "" for any."""

    @property
    def is_optional(self) -> bool:
        return self.default is not REQUIRED


@dataclass(frozen=True, slots=True)
class Option:
    """What may follow the parameters, in any order.

    A flag sets `args[name]` to True, a choice to the word itself; an option with values is a
    word and what follows it, which go into `args` by their own names.
    """

    name: str
    words: tuple[str, ...]
    help: str = ""
    values: tuple[Parameter, ...] = ()
    default: Any = False
    needs: str = ""
    """The name of an option with a value, without which this one means nothing."""

    @property
    def is_choice(self) -> bool:
        return not self.values and isinstance(self.default, str)


@dataclass(frozen=True, slots=True)
class Verb:
    """One row of the table."""

    name: str
    parameters: tuple[Parameter, ...]
    help: str
    call: str
    """The system call or file behind it."""
    options: tuple[Option, ...] = ()
    result: Result = Result.NOTHING
    by_process: bool = True
    """Written `p: verb`; the others are done by nobody in particular."""
    ends: bool = False
    """The process (its parameter `process`, or who does the step) is gone afterwards."""
    changes_system: bool = False
    """Changes a setting of the whole machine: never done outside a guest."""
    alias: tuple[str, Mapping[str, Any]] | None = None
    """Another verb and the arguments that make this one of it: steps only have the other."""


def flag(name: str, help: str, *, needs: str = "") -> Option:  # noqa: A002 - argparse's word, too
    """An option that is there or not; `needs`: only with another."""
    return Option(name, (name,), help, needs=needs)


def choice(name: str, words: str, help: str) -> Option:  # noqa: A002
    """One of `words`; the first where none is given."""
    found = tuple(words.split())
    return Option(name, found, help, default=found[0])


def value(name: str, help: str, *values: Parameter) -> Option:  # noqa: A002
    """The word `name` and the values behind it. Absent: all of them None."""
    return Option(name, (name,), help, values=values, default=None)

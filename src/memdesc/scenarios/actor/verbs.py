"""The tables of what can be done: steps of a process, and steps of the whole system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .access import PAGE, Fault

if TYPE_CHECKING:
    from .process import Process

__all__ = [
    "PARTS",
    "PROCESS_VERBS",
    "RefusedError",
    "SignalledError",
    "inside_guest",
    "part",
    "span",
    "verb",
    "words_of",
]

Args = dict[str, Any]
PROCESS_VERBS: dict[str, Callable[[Process, Args], Any]] = {}
"""What a process can be told to do: returns a JSON value, raises OSError or SignalledError."""

PARTS: dict[str, Callable[[Process, Args], Any]] = {}
"""What the controller tells processes as parts of one verb (`pins.handed`)."""

_GUEST_WORD = "memdesc.guest=1"


class SignalledError(Exception):
    """An access brought a signal."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class RefusedError(Exception):
    """Something that is only done inside a guest was asked of another machine."""


def verb(name: str) -> Callable[[Callable[[Process, Args], Any]], Callable[[Process, Args], Any]]:
    """Put a function into the table of steps of a process."""

    def put(function: Callable[[Process, Args], Any]) -> Callable[[Process, Args], Any]:
        PROCESS_VERBS[name] = function
        return function

    return put


def part(name: str) -> Callable[[Callable[[Process, Args], Any]], Callable[[Process, Args], Any]]:
    """Put a function into the table of parts of steps."""

    def put(function: Callable[[Process, Args], Any]) -> Callable[[Process, Args], Any]:
        PARTS[name] = function
        return function

    return put


def inside_guest() -> bool:
    """Whether this kernel was booted for us; nothing else may be changed or harmed."""
    return _GUEST_WORD in Path("/proc/cmdline").read_text().split()


def span(range_: Args) -> tuple[int, int]:
    """Address and length of a RANGE."""
    return range_["address"], range_["pages"] * PAGE


def words_of(content: Args, pages: int) -> list[int]:
    """One word per page: TAGS have one for all, or one for each."""
    words: list[int] = content["words"]
    return words * pages if len(words) == 1 else words

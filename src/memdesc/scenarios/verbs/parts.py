"""What the rows of the table of verbs are written with."""

from __future__ import annotations

from typing import Any, Final

from memdesc.scenarios.language import Kind, Option, Parameter, Verb

__all__ = ["FILE", "FILE_RANGE", "RANGE", "TAGS", "range_of", "row", "word"]

RANGE: Final = Parameter("range", Kind.RANGE)
TAGS: Final = Parameter("content", Kind.TAGS)
FILE: Final = Parameter("file", Kind.FILE)
FILE_RANGE: Final = Parameter("file", Kind.FILE_RANGE)


def range_of(text: str) -> Parameter:
    """A range, and what it is good for."""
    return Parameter("range", Kind.RANGE, text)


def word(name: str, words: str, text: str = "") -> Parameter:
    """One of some words."""
    return Parameter(name, Kind.WORD, text, choices=tuple(words.split()))


def row(
    name: str,
    parameters: tuple[Parameter, ...],
    text: str,
    call: str,
    *options: Option,
    **more: Any,
) -> Verb:
    """A verb: its parameters, what it does, by which call, and what may follow."""
    return Verb(name, parameters, text, call, options, **more)

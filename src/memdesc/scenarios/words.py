"""The small forms inside a line: names, ranges of pages, cells of a row; and near misses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from memdesc.errors import FormatError

__all__ = ["Span", "did_you_mean", "is_name", "nearest", "parse_count", "parse_span", "spread"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,40}")
_SPAN = re.compile(
    r"(?P<name>[A-Za-z_][A-Za-z0-9_]{0,40})"
    r"(?:\[(?P<first>[0-9]{0,9})(?P<colon>:)?(?P<end>[0-9]{0,9})\])?(?P<beyond>!)?"
)
_RUN = re.compile(r"(?P<cell>[^*]+)\*(?P<times>[0-9]{1,7})")
_MOST_CELLS: Final = 1 << 20
_RESERVED: Final = frozenset({"all", "expect"})


@dataclass(frozen=True, slots=True)
class Span:
    """buf[1:3]: `end` is None where nothing was written, which means the last page."""

    name: str
    first: int = 0
    end: int | None = None
    beyond: bool = False
    """buf[0:9]!: pages behind the mapping are meant."""


def is_name(text: str) -> bool:
    """Whether `text` can name a process, a mapping, a file or references."""
    return _NAME.fullmatch(text) is not None and text not in _RESERVED


def parse_span(text: str) -> Span:
    """Read buf, buf[3], buf[0:2], buf[2:] or buf[:2]. Raises FormatError."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise FormatError(
            f"not a range of pages: {text[:40]!r}",
            hint="a range is buf (all of it), buf[3], buf[0:2] (pages 0 and 1), buf[2:] or buf[:2]",
        )
    beyond = found["beyond"] is not None
    if found["first"] is None:
        return Span(found["name"], beyond=beyond)
    first = int(found["first"] or 0)
    if not found["colon"]:
        if not found["first"]:
            raise FormatError(f"{text[:40]!r} names no page", hint="write buf[0] or buf[0:2]")
        return Span(found["name"], first, first + 1, beyond)
    end = int(found["end"]) if found["end"] else None
    if end is not None and end <= first:
        raise FormatError(
            f"{text[:40]!r} has no pages", hint="ranges are half-open: buf[0:2] is pages 0 and 1"
        )
    return Span(found["name"], first, end, beyond)


def parse_count(text: str) -> int:
    """Read a number that is not negative. Raises FormatError."""
    if re.fullmatch(r"[0-9]{1,12}", text):
        return int(text)
    if re.fullmatch(r"0x[0-9a-fA-F]{1,12}", text):
        return int(text, 16)
    raise FormatError(f"not a number: {text[:40]!r}", hint="numbers are written as 4 or 0x10")


def spread(tokens: Iterable[str]) -> tuple[str, ...]:
    """Write runs out: A*3 becomes A A A. Raises FormatError for runs of absurd length."""
    cells: list[str] = []
    for token in tokens:
        run = _RUN.fullmatch(token)
        times = int(run["times"]) if run else 1
        if len(cells) + times > _MOST_CELLS:
            raise FormatError(
                f"more than {_MOST_CELLS} pages in one line: {token[:40]!r}",
                hint="a run is written as A*512",
            )
        cells += [run["cell"]] * times if run else [token]
    return tuple(cells)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint: the nearest of `known`, in whatever case it was written; "" where none is near."""
    words = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word[:40].lower(), words, n=1)
    return f"did you mean {words[near[0]]}?" if near else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint: the nearest of `known`, or all of them where they are few."""
    words = list(known)
    near = nearest(word, words)
    if near:
        return near
    if not words:
        return ""
    listed = ", ".join(words[:24]) + (", ..." if len(words) > 24 else "")
    return f"there is: {listed}"

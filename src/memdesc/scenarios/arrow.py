"""What stands behind `->` in a line: from words to what the step is expected to give."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from typing import Final

from memdesc.errors import FormatError
from memdesc.scenarios.expectation import WAITS
from memdesc.scenarios.language import Result, Verb
from memdesc.scenarios.outcome import ANYTHING, CODES, is_errno
from memdesc.scenarios.places import is_tag
from memdesc.scenarios.words import did_you_mean, nearest, parse_count, spread

__all__ = ["check_count", "read_expected", "succeeds"]

_ERRORS: Final = (*filter(is_errno, errno.errorcode.values()), *CODES)


def read_expected(verb: Verb, words: list[str], tags: Iterable[str]) -> tuple[str, ...]:
    """What stands behind the arrow, as cells. Raises FormatError where it cannot happen.

    `tags` are the contents that were written above: a content may be called as an error is, in
    small letters.
    """
    if not words:
        raise FormatError("nothing stands behind ->", hint="leave it out where a step must succeed")
    first = words[0]
    if tuple(words) == WAITS:
        return WAITS
    if first in CODES:
        if len(words) > 2 or (len(words) == 2 and words[1] not in CODES[first]):
            raise FormatError(
                f"not a code of {first}: {' '.join(words[1:])[:40]!r}",
                hint=did_you_mean(words[1], CODES[first]) or f"write `-> {first}` alone",
            )
        return tuple(words)
    if is_errno(first) or first in ("ok", ANYTHING):
        if len(words) > 1:
            raise FormatError(f"nothing can stand behind {first}", hint=f"write `-> {first}` alone")
        return (first,)
    is_lower = first.upper() in _ERRORS and first not in tags
    if is_lower or re.fullmatch(r"E[A-Z0-9]{2,}", first) or first.startswith("SIG"):
        raise FormatError(
            f"not an error or signal that a step can give: {first[:40]!r}",
            hint=nearest(first, _ERRORS)
            or "errors are written as EFAULT, signals as SIGSEGV ACCERR",
        )
    match verb.result:
        case Result.NOTHING:
            raise FormatError(
                f"{verb.name} returns nothing: {first[:40]!r}",
                hint="behind -> can stand an error (EFAULT) or a signal (SIGSEGV ACCERR)",
            )
        case Result.CONTENTS:
            cells = spread(words)
            wrong = next((cell for cell in cells if cell != "?" and not is_tag(cell)), None)
            if wrong is not None:
                raise FormatError(
                    f"not a content: {wrong[:40]!r}",
                    hint="contents are letters and words, 0 is zeroes, ? is anything else",
                )
            return cells
        case Result.NUMBER | Result.NUMBERS:
            cells = spread(words)
            numbers = tuple(str(parse_count(cell)) for cell in cells)
            if verb.result is Result.NUMBER and len(numbers) != 1:
                raise FormatError(f"{verb.name} returns one number, not {len(numbers)}")
            return numbers
        case Result.WORD:
            return spread(words)


def succeeds(expected: tuple[str, ...]) -> bool:
    """Whether no error and no signal is expected."""
    return not (is_errno(expected[0]) or expected[0] in CODES)


def check_count(verb: Verb, expected: tuple[str, ...], pages: int | None) -> None:
    """Raise FormatError where so many contents cannot come of so many pages."""
    per_page = verb.result is Result.CONTENTS or verb.name == "mincore"
    if not per_page or pages is None or expected in (WAITS, ("ok",), (ANYTHING,)):
        return
    # Others may come to their end early; a pipe may hold its pages several times.
    exact = verb.name in ("read", "mincore")
    too_many = len(expected) > pages and verb.name != "pipe_read"
    if too_many or (exact and len(expected) < pages):
        raise FormatError(
            f"{verb.name} is about {pages} pages, behind -> stand {len(expected)}",
            hint="give one for each page (A*4 is A A A A)",
        )

"""Numbers as the report writes them: as everywhere, but never broken over two lines."""

from __future__ import annotations

import time

from memdesc.answers import words
from memdesc.answers.words import visible

__all__ = ["count", "moment", "round_size", "share", "size", "visible"]


def size(size_bytes: int) -> str:
    """A size with its unit: 24.0 GiB."""
    return _typeset(words.size(size_bytes))


def round_size(size_bytes: int) -> str:
    """A size that is a power of two, without decimals: 256 KiB."""
    return size(size_bytes).replace(".0", "")


def share(part: int, whole: int) -> str:
    """A part of a whole: 12.3 %, and <0.1 % for what is there and small."""
    return _typeset(words.percent(part, whole)) if whole else "\N{EN DASH}"


def count(number: int) -> str:
    """A count in groups of three: 6,291,358."""
    return f"{number:,}"


def moment(time_unix_s: float) -> str:
    """A time in UTC, or that none was recorded."""
    if not 0 < time_unix_s < 1 << 37:
        return "not recorded"
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time_unix_s))


def _typeset(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")

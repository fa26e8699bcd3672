"""Pages as text: cells in rows, long runs shortened, what differs marked below.

>>> print("\\n".join(marked("A a . .".split(), "A A . .".split(), 4)))
page        4 5 6 7
expected    A a . .
found       A A . .
              ^
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from memdesc.scenarios.observation import LETTERS

__all__ = ["legend", "marked", "runs", "span_text"]

_MOST: Final = 24
"""Cells of a row that is drawn in full."""
_AROUND: Final = 4
"""Cells drawn before and behind the first that differs, of a longer row."""


def runs(cells: Sequence[str]) -> str:
    """Cells as a scenario writes them: A a . . or A*512."""
    parts = []
    for cell, group in itertools.groupby(cells):
        times = sum(1 for _ in group)
        parts += [f"{cell}*{times}"] if times > 3 else [cell] * times
    return " ".join(parts)


def span_text(name: str, first: int, pages: int) -> str:
    """buf[3] or buf[0:4]."""
    return f"{name}[{first}]" if pages == 1 else f"{name}[{first}:{first + pages}]"


def marked(
    expected: Sequence[str],
    found: Sequence[str],
    first: int = 0,
    names: tuple[str, str] = ("expected", "found"),
) -> list[str]:
    """Both rows below the numbers of their pages; ^ marks the cells that differ.

    Of long rows only the surroundings of the first difference are drawn.
    """
    differs = [a != b for a, b in zip(expected, found, strict=False)]
    length = min(len(expected), len(found))
    low, high = 0, length
    if length > _MOST and any(differs):
        at = differs.index(True)
        low, high = max(0, at - _AROUND), min(length, at + _AROUND + 1)
    numbers = [str(first + index) for index in range(low, high)]
    rows = [numbers, list(expected[low:high]), list(found[low:high])]
    rows.append(["^" if differs[index] else "" for index in range(low, high)])
    widths = [max(len(row[column]) for row in rows) for column in range(high - low)]
    label = max(len("page"), *(len(name) for name in names)) + 4
    return [
        (
            f"{head:<{label}}"
            + " ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        ).rstrip()
        for head, row in zip(("page", *names, ""), rows, strict=True)
    ]


def legend(letters: Sequence[str]) -> list[str]:
    """What the letters mean, in the order of the table."""
    used = set(letters)
    return [f"{letter}  {meaning}" for letter, meaning in LETTERS.items() if letter in used]

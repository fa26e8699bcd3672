"""What else was judged on real kernels, beside types: groups of rows of the support matrix.

A group is a table with a column for each kernel, made from what is kept in `data`.  To add
one, write a function that makes it from that folder, and name it in `memdesc.checks.page.GROUPS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["GroupCell", "GroupRow", "RowGroup", "narrowed"]


@dataclass(frozen=True, slots=True)
class GroupCell:
    """What was found on one kernel."""

    text: str
    """In words, as the page shows it."""
    short: str
    """The same for a terminal: some 20 characters."""
    figures: Mapping[str, int | float]
    """The same as numbers, by the name that JSON gives them; shares are 0.0 to 1.0."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One thing that was judged."""

    what: str
    source: str
    """What the facts were read from, in the words of `Run.sources`: "live:proc", "vmcore"."""
    cells: Mapping[str, GroupCell]
    """By series; a kernel on which it was not judged has none."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows that belong together."""

    title: str
    what: str
    """Title of the first column."""
    introduction: str
    """Markdown: what the cells say, and where there is more about it. Links are relative to
    docs/reference."""
    rows: tuple[GroupRow, ...]

    def columns(self, series: Iterable[str]) -> list[str]:
        """Those kernels of `series` that have a cell, in that order."""
        return [name for name in series if any(name in row.cells for row in self.rows)]

    def to_json(self) -> dict[str, Any]:
        """{"title", "rows": one for each cell, with its figures}."""
        return {
            "title": self.title,
            "rows": [
                {"kernel": series, "what": row.what, "source": row.source, **cell.figures}
                for row in self.rows
                for series, cell in row.cells.items()
            ],
        }


def narrowed(
    group: RowGroup, series: Collection[str], *, source: str | None = None
) -> RowGroup | None:
    """The part of a group that is about some kernels and one source; None where that is empty."""
    rows = tuple(
        dataclasses.replace(row, cells=cells)
        for row in group.rows
        if source is None or row.source == source
        if (cells := {name: cell for name, cell in row.cells.items() if name in series})
    )
    return dataclasses.replace(group, rows=rows) if rows else None

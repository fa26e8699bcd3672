"""The table of what was compared: mechanisms against kernels, as Markdown or as cells.

A cell says how many scenarios of the mechanism hold in the model and on that kernel, of how many:
12, or 11 of 12; what is missing is listed below the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from memdesc.scenarios.results import Results, ScenarioResult
from memdesc.written import table

__all__ = ["markdown_table", "missing", "table_cells"]


def table_cells(results: Results) -> tuple[list[str], list[list[str]]]:
    """(columns, rows); the last row adds everything up."""
    series = results.series
    columns = ["mechanism", "scenarios", *series]
    rows = []
    for topic, by_series in results.topics().items():
        scenarios = {(e.file, e.title) for entries in by_series.values() for e in entries}
        cells = [_cell(by_series.get(name, ())) for name in series]
        rows.append([topic_name(topic), str(len(scenarios)), *cells])
    every = {(entry.file, entry.title) for entry in results.entries}
    totals = [_cell([e for e in results.entries if e.series == name]) for name in series]
    rows.append(["all", str(len(every)), *totals])
    return columns, rows


def missing(results: Results) -> list[ScenarioResult]:
    """Everything that does not hold, in the order of the table."""
    return [
        entry
        for by_series in results.topics().values()
        for entries in by_series.values()
        for entry in entries
        if entry.verdict not in ("holds", "empty")
    ]


def markdown_table(results: Results) -> str:
    """The table and what is missing, as a page's text."""
    columns, rows = table_cells(results)
    lines = [table(columns, rows)]
    bad = missing(results)
    if bad:
        lines += ["", "What does not hold:", ""]
        lines += [
            f"- {entry.file}, {entry.title}, on {entry.series}: {entry.verdict}"
            + (f" ({entry.why})" if entry.why else "")
            for entry in bad
        ]
    return "\n".join(lines) + "\n"


def topic_name(folder: str) -> str:
    """Name of a topic in words: 03-fork-and-copy is "fork and copy"."""
    number, dash, rest = folder.partition("-")
    return (rest if dash and number.isdigit() else folder).replace("-", " ")


# --- helpers -----------------------------------------------------------------------------


def _cell(entries: Sequence[ScenarioResult]) -> str:
    counts = Counter(entry.verdict for entry in entries)
    total = sum(counts.values()) - counts["empty"]
    if not total:
        return "-"
    return str(total) if counts["holds"] == total else f"{counts['holds']} of {total}"

"""Traces as text: tracefs `trace` and `trace_pipe`, `perf script`, `trace-cmd report`.

Each line has a task, a CPU, a time, an event's name and its fields as key=value:

    python3-123     [000] .....    12.345678: mm_page_alloc: page=... pfn=0x1a order=0 ...
    python3  1234 [000]    12.345678:      kmem:mm_page_alloc: page=... pfn=0x1a order=0 ...
    python3-123   [000]    12.345678: mm_page_alloc:        page=... pfn=0x1a order=0 ...

Which fields there are is read from the line itself.  Comments and empty lines are passed over;
everything else that is no event is counted.

Sources: `kernel/trace/trace_output.c:trace_print_context`, `include/trace/events/kmem.h` @6.12;
trace-cmd's and perf's manuals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from memdesc.errors import FormatError
from memdesc.kernels.gfp import GFP_NAMES
from memdesc.traces.events import (
    COLUMNS,
    EVENT_NAMES,
    Event,
    Trace,
    TraceReport,
    empty_columns,
    in_time_order,
)
from memdesc.traces.records import Texts

__all__ = ["parse_lines", "read_text"]

_LONGEST_LINE = 4096
_LONGEST_SHOWN = 80
_LINE = re.compile(
    r"\s*(?P<task>\S.{0,63}?)(?:-|\s+)(?P<pid>\d{1,10})(?:/\d{1,10})?\s+(?:\([ \d-]{1,12}\)\s+)?"
    r"\[(?P<cpu>\d{1,5})\]\s+(?:[^\s\[:]{1,12}\s+)?(?P<sec>\d{1,10})\.(?P<part>\d{1,9}):\s+"
    r"(?:[A-Za-z_0-9]{1,64}:)?(?P<event>[A-Za-z_0-9]{1,64}):\s*(?P<rest>.*)"
)
_LOST = re.compile(
    r"\s*CPU\s*:?\s*\d+\s*:?\s*(?:\[LOST\s+(\d+)\s+EVENTS\]|\[?(\d+)\s+EVENTS\s+DROPPED\]?"
    r"|\[EVENTS\s+DROPPED\])",
    re.IGNORECASE,
)
_PERF_LOST = re.compile(r".*\bPERF_RECORD_LOST\b.*?\blost\s+(\d+)", re.IGNORECASE)
_NOISE = re.compile(r"\s*(?:#|$|cpus=\d+\s*$|version\s*=|[0-9a-f]{8,16} \S.*\(\S.*\)\s*$)")
"""Comments, empty lines, trace-cmd's first lines, and the frames of perf's call chains."""
_NO_PAGE = frozenset(["(nil)", "(null)", "0", "0x0", "0000000000000000", "00000000", "NULL"])
"""What page= shows for a request that failed, whose pfn= is then 0."""


def read_text(path: Path) -> Trace:
    """Read a text file. Raises FormatError where it holds no event of an allocation."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        # A line without an end is read in pieces, none of which is an event.
        trace = parse_lines(iter(lambda: file.readline(2 * _LONGEST_LINE), ""))
    if not len(trace):
        raise FormatError(
            f"{path} holds no event of the group kmem"
            + (f"; its first line: {trace.report.first_ignored!r}" if trace.report.first_ignored
               else ""),
            hint="a trace is a copy of tracefs, its text, or what perf script or trace-cmd report "
            "print",
        )  # fmt: skip
    return trace


def parse_lines(lines: Iterable[str]) -> Trace:
    """Read the lines of a text trace."""
    rows = _Rows()
    for line in lines:
        match = _LINE.match(line) if len(line) < _LONGEST_LINE else None
        if match is None:
            rows.no_event(line)
            continue
        name = match["event"]
        event = EVENT_NAMES.get(name)
        if event is None:
            others = rows.report.other_events
            others[name] = others.get(name, 0) + 1
            continue
        try:
            values = _FIELDS[event](match["rest"], rows)
        except (KeyError, ValueError, OverflowError):
            rows.no_event(line)
            continue
        time = int(match["sec"]) * 10**9 + int(match["part"].ljust(9, "0"))
        rows.add(
            {
                "time_ns": time,
                "cpu": int(match["cpu"]),
                "pid": int(match["pid"]),
                "event": int(event),
                **values,
            }
        )
    return rows.trace()


# --- fields of each event ----------------------------------------------------------------


class _Rows:
    """The columns as they grow."""

    def __init__(self) -> None:
        self.report = TraceReport(format="text")
        self.texts, self.sites = Texts(), Texts()
        self._rows = 0
        # A field is kept where a line has it, with the row's number: most have few.
        self._values: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in COLUMNS}

    def add(self, values: dict[str, int]) -> None:
        """Add an event with its fields."""
        for name, value in values.items():
            rows, column = self._values[name]
            rows.append(self._rows)
            column.append(value)
        self._rows += 1

    def no_event(self, line: str) -> None:
        """Count a line that is no event: lost events, noise, or something else."""
        lost = _LOST.match(line) or _PERF_LOST.match(line)
        if lost is not None:
            number = next((group for group in lost.groups() if group), None)
            self.report.lost_gaps += 1
            self.report.lost_events += int(number) if number and len(number) < 19 else 0
        elif not _NOISE.match(line):
            self.report.lines_ignored += 1
            self.report.first_ignored = self.report.first_ignored or line.strip()[:_LONGEST_SHOWN]

    def trace(self) -> Trace:
        columns = empty_columns(self._rows)
        for name, (rows, values) in self._values.items():
            limits = np.iinfo(COLUMNS[name])
            low, high = int(limits.min), int(limits.max)
            if values and not (low <= min(values) and max(values) <= high):
                # A number that no kernel prints must not end as another one.
                inside = [low <= value <= high for value in values]
                rows = [row for row, good in zip(rows, inside, strict=True) if good]
                values = [value for value, good in zip(values, inside, strict=True) if good]
            columns[name][rows] = np.array(values, columns[name].dtype)
        return Trace(
            in_time_order(columns, self.report), self.texts.names(), self.sites.names(), self.report
        )


def _pairs(rest: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in rest.split() if "=" in word)


def _page(rest: str, rows: _Rows) -> dict[str, int]:
    fields = _pairs(rest)
    failed = fields.get("page") in _NO_PAGE
    values = {"pfn": -1 if failed else _number(fields["pfn"])}
    for column, name in (
        ("order", "order"), ("migratetype", "migratetype"), ("flag", "percpu_refill"),
    ):  # fmt: skip
        if name in fields:
            values[column] = _number(fields[name])
    if "gfp_flags" in fields:
        values["gfp_flags"] = _gfp(fields["gfp_flags"])
    if not 0 <= values.get("order", 0) < 64 or values["pfn"] >= 1 << 52:
        raise ValueError
    return values


def _extfrag(rest: str, rows: _Rows) -> dict[str, int]:
    fields = _pairs(rest)
    return {
        "pfn": _number(fields["pfn"]),
        "order": _number(fields["alloc_order"]),
        "migratetype": _number(fields["alloc_migratetype"]),
        "fallback_order": _number(fields["fallback_order"]),
        "fallback_migratetype": _number(fields["fallback_migratetype"]),
        "flag": _number(fields.get("change_ownership", "0")),
    }


def _object(rest: str, rows: _Rows) -> dict[str, int]:
    fields = _pairs(rest)
    values = {"ptr": _pointer(fields["ptr"])}
    site = fields.get("call_site", "")
    values["call_site"] = rows.sites.number(site)
    for name in ("bytes_req", "bytes_alloc"):
        if name in fields:
            values[name] = _number(fields[name])
    if "gfp_flags" in fields:
        values["gfp_flags"] = _gfp(fields["gfp_flags"])
    if "name" in fields:
        values["text"] = rows.texts.number(fields["name"])
    return values


def _marker(rest: str, rows: _Rows) -> dict[str, int]:
    return {"text": rows.texts.number(rest.strip())}


_FIELDS: dict[Event, Callable[[str, _Rows], dict[str, int]]] = {
    **dict.fromkeys(
        (Event.PAGE_ALLOC, Event.PAGE_FREE, Event.PAGE_FREE_BATCHED, Event.ZONE_LOCKED,
         Event.PCPU_DRAIN), _page,
    ),
    Event.EXTFRAG: _extfrag,
    **dict.fromkeys(
        (Event.KMALLOC, Event.KFREE, Event.CACHE_ALLOC, Event.CACHE_FREE), _object
    ),
    Event.MARKER: _marker,
}  # fmt: skip


def _number(text: str) -> int:
    """A number in C's notation, of sane length. Raises ValueError."""
    if len(text) > 20:
        raise ValueError
    return int(text, 0) if text.startswith(("0x", "-0x")) else int(text)


def _pointer(text: str) -> int:
    """An address: bare hexadecimal, as %p prints it. Raises ValueError."""
    if text in ("(nil)", "(null)"):
        return 0
    if len(text) > 20:
        raise ValueError
    return int(text, 16)


def _gfp(text: str) -> int:
    """Flags by their names, joined by "|", or a number. Raises ValueError for a new name."""
    value = 0
    for name in text.split("|"):
        known = GFP_NAMES.get(name)
        value |= _number(name) if known is None else known
    return value

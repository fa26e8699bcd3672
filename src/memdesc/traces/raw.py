"""The ring buffer's own pages (`per_cpu/cpuN/trace_pipe_raw`), decoded into columns.

A folder as tracefs has it:

    events/header_page, events/kmem/mm_page_alloc/format, ...
    per_cpu/cpu0/trace_pipe_raw      whole pages, one after the other
    per_cpu/cpu0/stats               what was lost (optional)

Records within a page have different lengths, so they can only be found one after the other; pages
are independent.  All pages are therefore walked at once: step k finds the k-th record of every
page that has one.

Source: `include/linux/ring_buffer.h` (enum ring_buffer_type), `kernel/trace/ring_buffer.c`
(rb_event_length, rb_validate_buffer's reading of time stamps, RB_MISSED_EVENTS) @6.12.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FormatError
from memdesc.traces.events import (
    EVENT_NAMES,
    Trace,
    TraceReport,
    empty_columns,
    in_time_order,
)
from memdesc.traces.formats import EventFormat, PageFormat, parse_format, parse_header_page
from memdesc.traces.records import Records, Texts, fill

__all__ = ["decode_pages", "read_raw"]

_LENGTH_IN_WORD, _PADDING, _TIME_EXTEND, _TIME_STAMP = 0, 29, 30, 31
"""Values of type_len that are no length."""
_MISSED_EVENTS, _MISSED_STORED = 1 << 31, 1 << 30
_COMMIT_MASK = (1 << 27) - 1
_STAMP_BITS = 59
"""A time stamp in a record has 59 bits; the others are those of the time before."""
_BATCH_BYTES = 64 << 20
_MOST_FORMATS = 4096


def read_raw(folder: Path) -> Trace:
    """Read a copy of tracefs: all CPUs' buffers, in the order of their times.

    Raises FormatError where the folder has no buffers, or no formats to read them by.
    """
    header = folder / "events" / "header_page"
    if not header.is_file():
        raise FormatError(
            f"{folder} has no events/header_page",
            hint="copy events/header_page, the format files and per_cpu/*/trace_pipe_raw",
        )
    page = parse_header_page(_text(header))
    formats = [
        parse_format(_text(path))
        for path in sorted((folder / "events").glob("*/*/format"))[:_MOST_FORMATS]
    ]
    buffers = sorted((folder / "per_cpu").glob("cpu*/trace_pipe_raw"), key=_cpu_of)
    if not buffers or not any(item.name in EVENT_NAMES for item in formats):
        raise FormatError(
            f"{folder} has no per_cpu/cpuN/trace_pipe_raw, or no format of an event of kmem",
            hint="copy them from tracefs while tracing_on is 0",
        )
    report = TraceReport(format="tracefs raw")
    texts = Texts()
    parts: list[dict[str, NDArray[Any]]] = []
    for path in buffers:
        parts += decode_pages(
            np.fromfile(path, np.uint8), page, formats, _cpu_of(path), texts, report
        )
        report.lost_events += _lost(path.with_name("stats"))
    columns = {
        name: np.concatenate([part[name] for part in parts]) if parts else empty
        for name, empty in empty_columns(0).items()
    }
    return Trace(in_time_order(columns, report), texts.names(), report=report)


def decode_pages(
    data: NDArray[np.uint8],
    page: PageFormat,
    formats: Sequence[EventFormat],
    cpu: int,
    texts: Texts,
    report: TraceReport,
) -> list[dict[str, NDArray[Any]]]:
    """Decode whole pages of one CPU, in pieces; each is columns as `COLUMNS` lists them.

    A page whose records do not fit is read up to there and counted in `report`, as is what
    the kernel says was lost.
    """
    whole = data.size // page.size
    report.truncated_bytes += int(data.size - whole * page.size)
    step = max(1, _BATCH_BYTES // page.size)
    by_number = {item.number: item for item in formats}
    return [
        _batch(
            data[low * page.size : min(low + step, whole) * page.size],
            page, by_number, cpu, texts, report,
        )
        for low in range(0, whole, step)
    ]  # fmt: skip


# --- pages -------------------------------------------------------------------------------


def _batch(
    data: NDArray[np.uint8],
    page: PageFormat,
    formats: Mapping[int, EventFormat],
    cpu: int,
    texts: Texts,
    report: TraceReport,
) -> dict[str, NDArray[Any]]:
    words = np.ascontiguousarray(data).view("<u4")
    records = _walk(words, page, report)
    columns = empty_columns(len(records))
    columns["cpu"][:] = cpu
    columns["time_ns"][:] = records.time
    numbers = words[records.start] & np.uint32(0xFFFF)
    for number in np.unique(numbers).tolist():
        rows = np.flatnonzero(numbers == number)
        found = formats.get(number)
        if found is None or found.name not in EVENT_NAMES:
            name = found.name if found is not None else f"number {number}"
            report.other_events[name] = report.other_events.get(name, 0) + rows.size
            continue
        short = records.size[rows] * 4 < found.size
        if short.any():
            report.damaged_pages += int(np.unique(records.page[rows[short]]).size)
            rows = rows[~short]
        columns["event"][rows] = EVENT_NAMES[found.name]
        fill(columns, rows, words, records, found, texts)
    kept = columns["event"] != 0
    return columns if kept.all() else {name: column[kept] for name, column in columns.items()}


def _walk(words: NDArray[np.uint32], page: PageFormat, report: TraceReport) -> Records:
    """Find every record of every page."""
    per_page = page.size // 4
    count = words.size // per_page
    heads = np.arange(count, dtype=np.int64) * per_page
    commit = words[heads + page.commit.offset // 4].astype(np.int64)
    missed = (commit & _MISSED_EVENTS) != 0
    length = (commit & _COMMIT_MASK) // 4
    report.lost_gaps += int(missed.sum())
    room = per_page - page.data_offset // 4
    damaged = (length > room) | (commit & _COMMIT_MASK & 3 != 0)
    length = np.minimum(length, room)
    report.lost_events += _stored(words, heads + page.data_offset // 4, length, room, commit)
    clock = _pair(words, heads + page.time.offset // 4)

    begin = heads + page.data_offset // 4
    active = np.flatnonzero(length > 0)
    at = begin[active]
    end = at + length[active]
    now = clock[active]
    ordinal = np.zeros(active.size, np.int64)
    found: list[tuple[NDArray[np.int64], ...]] = []
    totals = np.zeros(count, np.int64)
    while active.size:
        word = words[at].astype(np.int64)
        kind, delta = word & 31, word >> 5
        # The second word matters for all but short records; the last page has none behind it.
        second = words[np.minimum(at + 1, words.size - 1)].astype(np.int64)
        short = (kind > 0) & (kind < _PADDING)
        in_word = kind == _LENGTH_IN_WORD
        padding = kind == _PADDING
        extend, stamp = kind == _TIME_EXTEND, kind == _TIME_STAMP
        nr_words = np.where(short, kind + 1, np.where(extend | stamp, 2, 1 + (second + 3) // 4))
        ends = padding & (delta == 0)  # nothing follows on this page
        bad = ~ends & ((at + nr_words > end) | ((in_word | padding) & (second < 4)))
        # A record that was discarded keeps its time, unless that was 0 and had to be marked.
        counts = short | in_word | (padding & (delta != 1))
        long = (second << 27) + delta
        now = now + np.where(counts, delta, np.where(extend, long, 0))
        top = now >> _STAMP_BITS << _STAMP_BITS
        now = np.where(stamp, long | top, now)
        is_record = (short | in_word) & ~bad
        skip = np.where(short, 1, 2)
        found.append(
            (
                active[is_record],
                ordinal[is_record],
                (at + skip)[is_record],
                (nr_words - skip)[is_record],
                now[is_record],
            )
        )
        totals[active[is_record]] += 1
        ordinal += is_record
        damaged[active[bad]] = True
        at = at + nr_words
        goes_on = ~bad & ~ends & (at < end)
        active, at, end = active[goes_on], at[goes_on], end[goes_on]
        now, ordinal = now[goes_on], ordinal[goes_on]
    report.damaged_pages += int(damaged.sum())
    return _in_order(found, totals)


def _in_order(found: Sequence[tuple[NDArray[np.int64], ...]], totals: NDArray[np.int64]) -> Records:
    """The records of each step, put page after page."""
    first = np.cumsum(totals) - totals
    total = int(totals.sum())
    out = [np.empty(total, np.int64) for _ in range(4)]
    for pages, ordinal, start, size, time in found:
        place = first[pages] + ordinal
        for column, values in zip(out, (pages, start, size, time), strict=True):
            column[place] = values
    return Records(*out)


def _stored(
    words: NDArray[np.uint32],
    begin: NDArray[np.int64],
    length: NDArray[np.int64],
    room: int,
    commit: NDArray[np.int64],
) -> int:
    """Sum of the numbers of lost events that the kernel put behind the records of a page."""
    has = ((commit & _MISSED_STORED) != 0) & (length + 2 <= room)
    # Where 8 bytes hold more than a buffer can lose, the page is damaged: count the gap only.
    numbers = _pair(words, (begin + length)[has])
    return int(numbers[(numbers > 0) & (numbers < 1 << 40)].sum())


def _pair(words: NDArray[np.uint32], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """64-bit numbers at word positions."""
    low = words[at].astype(np.uint64)
    high = words[np.minimum(at + 1, words.size - 1)].astype(np.uint64)
    return (low | high << np.uint64(32)).astype(np.int64)


# --- files -------------------------------------------------------------------------------


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(2 << 20).decode("utf-8", "replace")


def _cpu_of(path: Path) -> int:
    digits = path.parent.name.removeprefix("cpu")
    return int(digits) if digits.isdecimal() and len(digits) <= 4 else 0


def _lost(path: Path) -> int:
    """Events that a CPU's `stats` file says were overwritten or dropped."""
    if not path.is_file():
        return 0
    found = re.findall(r"(?m)^(?:overrun|commit overrun|dropped events): *(\d{1,18})$", _text(path))
    return sum(map(int, found))

"""A trace: the kernel's allocation events in columns, one row per event, in time order.

The columns hold every field of the ten events that matter (`Event`); a field that an event does
not have is -1 in the columns that are signed and 0 in the others.  What a reader met on the way
(lost events, events of other kinds, lines that are none) is counted in `TraceReport`, never
passed over in silence.

Source of the events: `include/trace/events/kmem.h` @6.12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError

__all__ = ["COLUMNS", "EVENT_NAMES", "Event", "Trace", "TraceReport"]


class Event(IntEnum):
    """The events that a trace keeps."""

    PAGE_ALLOC = 1
    """A page was handed out by the page allocator; pfn -1 where the request failed."""
    PAGE_FREE = 2
    """A page was given back, whichever way it went then."""
    PAGE_FREE_BATCHED = 3
    """Says once more that a page is freed: in a batch with others."""
    ZONE_LOCKED = 4
    """A block was taken off a free list, for a CPU's list or for a request."""
    PCPU_DRAIN = 5
    """A block went from a CPU's list back to the free lists."""
    EXTFRAG = 6
    """A request took memory of another migratetype."""
    KMALLOC = 7
    KFREE = 8
    CACHE_ALLOC = 9
    CACHE_FREE = 10
    MARKER = 11
    """Text that user space wrote to trace_marker."""


EVENT_NAMES: Mapping[str, Event] = {
    "mm_page_alloc": Event.PAGE_ALLOC,
    "mm_page_free": Event.PAGE_FREE,
    "mm_page_free_batched": Event.PAGE_FREE_BATCHED,
    "mm_page_alloc_zone_locked": Event.ZONE_LOCKED,
    "mm_page_pcpu_drain": Event.PCPU_DRAIN,
    "mm_page_alloc_extfrag": Event.EXTFRAG,
    "kmalloc": Event.KMALLOC,
    "kmalloc_node": Event.KMALLOC,
    "kfree": Event.KFREE,
    "kmem_cache_alloc": Event.CACHE_ALLOC,
    "kmem_cache_alloc_node": Event.CACHE_ALLOC,
    "kmem_cache_free": Event.CACHE_FREE,
    "print": Event.MARKER,
    "tracing_mark_write": Event.MARKER,
}
"""Name in a trace -> event. The _node events are those of kernels before 6.1."""

COLUMNS: Mapping[str, str] = {
    "time_ns": "int64",
    "cpu": "uint16",
    "pid": "int32",
    "event": "uint8",
    "pfn": "int64",
    "order": "uint8",
    "migratetype": "int8",
    "gfp_flags": "uint32",
    "flag": "uint8",
    "fallback_order": "int8",
    "fallback_migratetype": "int8",
    "call_site": "uint64",
    "ptr": "uint64",
    "bytes_req": "int64",
    "bytes_alloc": "int64",
    "text": "uint32",
}
"""Column -> dtype.

`time_ns` by the trace's clock; `pfn` of the block's first frame; `gfp_flags` in the numbering of
`memdesc.kernels.gfp`; `flag` is percpu_refill of ZONE_LOCKED and change_ownership of EXTFRAG
(whose `order` and `migratetype` are those of the request); `call_site` and `ptr` are addresses
(`call_site` of a text: index into `Trace.sites`); `text` is the cache's name or the marker's
text, an index into `Trace.texts`.
"""

SIGNED_NONE = frozenset(["pfn", "migratetype", "fallback_order", "fallback_migratetype"])
"""Columns that hold -1 where an event has no such field."""


@dataclass
class TraceReport:
    """What reading a trace met: counts, and one example where there is one."""

    format: str = ""
    """"tracefs raw", "text" or "stored"."""
    lost_events: int = 0
    """Events that the ring buffer overwrote or dropped, where the trace counts them."""
    lost_gaps: int = 0
    """Places where events are missing; their number may not be known."""
    other_events: dict[str, int] = field(default_factory=dict)
    """Events of other kinds, by name or number, left out."""
    lines_ignored: int = 0
    """Lines of a text that are no event (comments and empty lines not counted)."""
    first_ignored: str = ""
    damaged_pages: int = 0
    """Pages of a raw buffer that end in something that cannot be an event."""
    truncated_bytes: int = 0
    """Bytes behind the last whole page."""
    unsorted: int = 0
    """Events that came later than one with a later time: put in their place."""
    seconds: float = 0.0
    """That reading took."""

    @property
    def is_complete(self) -> bool:
        """Whether every event that happened is there."""
        return not (
            self.lost_events or self.lost_gaps or self.damaged_pages or self.truncated_bytes
        )

    def notes(self) -> list[str]:
        """What a reader of an answer must know, as sentences."""
        found = []
        if self.lost_events or self.lost_gaps:
            number = f"{self.lost_events:,}" if self.lost_events else "an unknown number of"
            found.append(
                f"the trace lost {number} events in {max(1, self.lost_gaps)} places: "
                "record with a larger buffer_size_kb"
            )
        if self.damaged_pages:
            found.append(f"{self.damaged_pages} pages of the trace are damaged: cut off there")
        if self.truncated_bytes:
            found.append(f"the trace ends within a page: {self.truncated_bytes} bytes left out")
        if self.unsorted:
            found.append(f"{self.unsorted:,} events were not in the order of their times")
        if self.lines_ignored:
            found.append(
                f"{self.lines_ignored:,} lines are no events, the first: {self.first_ignored!r}"
            )
        if self.other_events:
            count = sum(self.other_events.values())
            kinds = ", ".join(sorted(self.other_events)[:6])
            found.append(f"{count:,} events of other kinds were left out ({kinds})")
        return found


@dataclass
class Trace:
    """Events in columns; every column has one value per event."""

    columns: dict[str, NDArray[Any]]
    """Name -> values, as `COLUMNS` lists them."""
    texts: tuple[str, ...] = ("",)
    """Names of slab caches and texts of markers; number 0 is "none"."""
    sites: tuple[str, ...] = ("",)
    """Call sites of a text trace, as symbols."""
    report: TraceReport = field(default_factory=TraceReport)

    def __len__(self) -> int:
        return int(self.columns["event"].size)

    def __getattr__(self, name: str) -> NDArray[Any]:
        """A column as an attribute: `trace.pfn`."""
        try:
            return self.__dict__["columns"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(name) from None

    def of(self, *events: Event) -> NDArray[np.int64]:
        """int64[m]: the rows that are one of these events."""
        return np.flatnonzero(np.isin(self.columns["event"], np.array(events, np.uint8)))

    def counts(self) -> dict[str, int]:
        """How many events of each kind, by name, without the kinds that do not occur."""
        found = np.bincount(self.columns["event"], minlength=len(Event) + 1)
        return {event.name.lower(): int(found[event]) for event in Event if found[event]}

    def markers(self) -> list[tuple[int, str]]:
        """(row, text) of every marker."""
        rows = self.of(Event.MARKER)
        return [(int(row), self.texts[int(self.columns["text"][row])]) for row in rows]

    def marker(self, text: str) -> int:
        """The row of the first marker with that text. Raises QuestionError where there is none."""
        for row, found in self.markers():
            if found == text:
                return row
        raise QuestionError(
            f"the trace has no marker {text!r}", hint="`memdesc vm trace` writes its markers"
        )

    def between(self, first: int, end: int) -> Trace:
        """The rows [first, end) as a trace of their own."""
        part = {name: values[first:end] for name, values in self.columns.items()}
        return Trace(part, self.texts, self.sites, self.report)


def empty_columns(rows: int) -> dict[str, NDArray[Any]]:
    """Columns of `rows` events without any field."""
    return {
        name: np.full(rows, -1 if name in SIGNED_NONE else 0, np.dtype(kind))
        for name, kind in COLUMNS.items()
    }


def in_time_order(columns: dict[str, NDArray[Any]], report: TraceReport) -> dict[str, NDArray[Any]]:
    """The rows by time, equal times in the order they came; `report` counts what moved."""
    times = columns["time_ns"]
    late = int((times < np.maximum.accumulate(times)).sum()) if times.size else 0
    if not late:
        return columns
    report.unsorted += late
    order = np.argsort(times, kind="stable")
    return {name: values[order] for name, values in columns.items()}

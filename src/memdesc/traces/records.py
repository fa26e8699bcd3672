"""Fields of many records at once: from the words of a raw buffer into a trace's columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.traces.events import EVENT_NAMES, Event
from memdesc.traces.formats import EventFormat, Field

__all__ = ["Records", "Texts", "fill"]

_LONGEST_NAME = 64
"""Bytes of a slab cache's name that are read; the kernel's longest are half of that."""
_LONGEST_MARKER = 1024

_ALL: Mapping[str, str] = {
    "pid": "common_pid",
    "pfn": "pfn",
    "order": "order",
    "migratetype": "migratetype",
    "call_site": "call_site",
    "ptr": "ptr",
    "bytes_req": "bytes_req",
    "bytes_alloc": "bytes_alloc",
}
"""Column -> field of that meaning, in most events."""
_OWN: Mapping[Event, Mapping[str, str]] = {
    Event.ZONE_LOCKED: {"flag": "percpu_refill"},
    Event.EXTFRAG: {
        "order": "alloc_order",
        "migratetype": "alloc_migratetype",
        "fallback_order": "fallback_order",
        "fallback_migratetype": "fallback_migratetype",
        "flag": "change_ownership",
    },
}
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)


@dataclass(frozen=True, slots=True)
class Records:
    """Records in the order of pages and within them: one value per record."""

    page: NDArray[np.int64]
    start: NDArray[np.int64]
    """Of the record's data, in words of four bytes."""
    size: NDArray[np.int64]
    """Of the record's data, in words."""
    time: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.start.size)


class Texts:
    """Texts by number; 0 is "none"."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"": 0}

    def number(self, text: str) -> int:
        """The number of a text, a new one for a new text."""
        return self._numbers.setdefault(text, len(self._numbers))

    def names(self) -> tuple[str, ...]:
        """All texts, in the order of their numbers."""
        return tuple(self._numbers)


def fill(
    columns: dict[str, NDArray[Any]],
    rows: NDArray[np.int64],
    words: NDArray[np.uint32],
    records: Records,
    layout: EventFormat,
    texts: Texts,
) -> None:
    """Fill the columns of `rows`, which are all records of the event `layout`."""
    event = EVENT_NAMES[layout.name]
    start = records.start[rows]
    for column, name in {**_ALL, **_OWN.get(event, {})}.items():
        if name in layout.fields:
            columns[column][rows] = _numbers(words, start, layout.fields[name]).astype(
                columns[column].dtype
            )
    if "gfp_flags" in layout.fields:
        flags = _numbers(words, start, layout.fields["gfp_flags"])
        columns["gfp_flags"][rows] = _renumbered(flags, layout.gfp_bits)
    if event == Event.MARKER and "buf" in layout.fields:
        offset = layout.fields["buf"].offset
        for row, first, size in zip(rows, start, records.size[rows], strict=True):
            raw = words[first : first + min(size, _LONGEST_MARKER // 4)].tobytes()[offset:]
            text = raw.partition(b"\0")[0].decode("utf-8", "replace").strip()
            columns["text"][row] = texts.number(text)
    elif "name" in layout.fields and layout.fields["name"].is_text:
        columns["text"][rows] = _names(
            words, start, records.size[rows], layout.fields["name"], texts
        )


# --- helpers -----------------------------------------------------------------------------


def _numbers(
    words: NDArray[np.uint32], start: NDArray[np.int64], field: Field
) -> NDArray[np.int64] | NDArray[np.uint64]:
    """A number of each record; 8-byte numbers as uint64, others as int64, with their sign."""
    word, shift = divmod(field.offset, 4)
    low = words[start + word]
    if field.size == 8 and shift == 0:
        return low | words[start + word + 1].astype(np.uint64) << np.uint64(32)
    bits = 8 * field.size
    if field.size not in (1, 2, 4) or 8 * shift + bits > 32:
        return np.zeros(start.size, np.int64)
    value = (low >> np.uint32(8 * shift)).astype(np.int64) & ((1 << bits) - 1)
    if field.signed:
        value = np.where(value >> (bits - 1) != 0, value - (1 << bits), value)
    return value


def _renumbered(flags: NDArray[Any], bits: Mapping[int, int]) -> NDArray[np.uint32]:
    """Flags in our numbering; `bits` is empty where the kernel's is the same."""
    raw = flags.astype(np.uint64)
    if not bits:
        return (raw & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    result = np.zeros(raw.size, np.uint32)
    for bit, mask in bits.items():
        result[(raw >> np.uint64(bit) & np.uint64(1)) != 0] |= np.uint32(mask)
    return result


def _names(
    words: NDArray[np.uint32],
    start: NDArray[np.int64],
    size: NDArray[np.int64],
    field: Field,
    texts: Texts,
) -> NDArray[np.uint32]:
    """The number of each record's text, which lies where `field` says, within the record."""
    place = _numbers(words, start, field)
    offset = place & 0xFFFF
    length = np.minimum(place >> 16 & 0xFFFF, _LONGEST_NAME)
    inside = offset + length <= size * 4
    # Eight bytes at a time: a hash of the words finds the different names, which are few.
    bytes_of = words.view(np.uint8)
    at = start * 4 + np.where(inside, offset, 0)
    length = np.where(inside, length, 0)
    key = np.zeros(start.size, np.uint64)
    columns = int(length.max(initial=0))
    padded = np.zeros((start.size, -(-max(columns, 1) // 8) * 8), np.uint8)
    for index in range(columns):
        has = length > index
        padded[has, index] = bytes_of[at[has] + index]
    # What follows the NUL is not the text's.
    padded[np.logical_or.accumulate(padded == 0, axis=1)] = 0
    wide = padded.view(np.uint64)
    for index in range(wide.shape[1]):
        key = (key ^ wide[:, index]) * _MIX[0]
        key ^= key >> np.uint64(29)
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    if not np.array_equal(wide[first][which], wide):
        wide, first, which = _unhashed(wide)
    numbers = [
        texts.number(wide[row].tobytes().partition(b"\0")[0].decode("utf-8", "replace"))
        for row in first.tolist()
    ]
    return np.array(numbers, np.uint32)[which]


def _unhashed(
    wide: NDArray[np.uint64],
) -> tuple[NDArray[np.uint64], NDArray[np.intp], NDArray[np.intp]]:
    """As `np.unique` of whole rows: the slow way, for names made to collide."""
    _, first, which = np.unique(wide, axis=0, return_index=True, return_inverse=True)
    return wide, first, which.ravel()

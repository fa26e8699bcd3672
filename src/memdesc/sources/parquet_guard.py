"""Looking at a Parquet file before a decoder does: is it what it claims, and no bomb?

A capture comes from anywhere.  A few hundred bytes of Parquet can ask a decoder for
gigabytes (a page that says so, a dictionary entry repeated a billion times), and a
footer can point into other files.  `inspect` reads the footer and every page header,
which together are a thousandth of the file, and refuses what memdesc never writes.  What
passes can be decoded in memory that the caller knows.

The format: parquet.thrift of apache/parquet-format 2.11, in Thrift's compact protocol.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memdesc.errors import CaptureError
from memdesc.sources.capture_format import STRING

__all__ = ["MAX_PAGE_BYTES", "Shape", "inspect"]

MAX_PAGE_BYTES = 16 << 20
"""The largest page, decompressed, that a decoder may be handed. memdesc writes 1 MiB."""
_MAX_FOOTER_BYTES = 16 << 20
_MAX_ROW_GROUPS = 1 << 16
_MAX_DEPTH = 16
_HEADER_BYTES = 1 << 10
_MAGIC = b"PAR1"

# Numbers of parquet.thrift.
_REQUIRED = 0
_INT32, _INT64, _BYTE_ARRAY = 1, 2, 6
_UNCOMPRESSED, _ZSTD = 0, 6
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_PLAIN, _PLAIN_DICTIONARY, _DELTA_BINARY_PACKED, _RLE_DICTIONARY = 0, 2, 5, 8
_NUMBER_ENCODINGS = frozenset([_PLAIN, _PLAIN_DICTIONARY, _DELTA_BINARY_PACKED, _RLE_DICTIONARY])

Struct = dict[int, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """What decoding a file can cost."""

    rows: int
    text_bytes: int
    """Upper bound of the bytes of all its texts."""


def inspect(fd: int, columns: Mapping[str, str], *, max_text_bytes: int) -> Shape:
    """Check the Parquet file open at `fd`: exactly `columns` (name -> type), none nullable.

    Texts must be stored plainly and hold at most `max_text_bytes` bytes together.
    Raises CaptureError for anything that memdesc does not write.
    """
    try:
        return _inspect(fd, columns, max_text_bytes)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CaptureError("its Parquet structure is damaged") from error


def _inspect(fd: int, columns: Mapping[str, str], max_text_bytes: int) -> Shape:
    size = os.fstat(fd).st_size
    tail = os.pread(fd, 8, max(0, size - 8))
    _need(size >= 12 and tail[4:] == _MAGIC and os.pread(fd, 4, 0) == _MAGIC, "no Parquet file")
    footer_bytes = int.from_bytes(tail[:4], "little")
    footer_start = size - 8 - footer_bytes
    _need(footer_bytes <= _MAX_FOOTER_BYTES and footer_start >= 4, "its footer has no sane size")
    footer, _end = read_struct(os.pread(fd, footer_bytes, footer_start))
    _need(not {5, 8, 9} & footer.keys(), "it is encrypted, or has metadata of another program")
    _check_schema(footer[2], columns)
    groups = footer.get(4, [])
    _need(len(groups) <= _MAX_ROW_GROUPS, "it has too many row groups")
    _need(sum(group[3] for group in groups) == footer[3], "its row groups do not add up")
    text_bytes = 0
    end = len(_MAGIC)
    for group in groups:
        _need(len(group[1]) == len(columns) and group[3] > 0, "a row group lacks columns or rows")
        for chunk, (name, kind) in zip(group[1], columns.items(), strict=True):
            _need(not {1, 8, 9} & chunk.keys(), "a column lies in another file or is encrypted")
            meta = chunk[3]
            _need(meta[3] == [name.encode()] and meta[5] == group[3], f"column {name} is misplaced")
            start = min(meta[9], meta.get(11, meta[9]))
            # Chunks follow each other: none can be shared, so work is bounded by the file.
            _need(start == end and meta[7] > 0, f"column {name} is not where it belongs")
            end = start + meta[7]
            _need(end <= footer_start, f"column {name} runs past the end of the file")
            text_bytes += _check_pages(fd, meta, start, end, is_text=kind == STRING)
            _need(text_bytes <= max_text_bytes, f"its texts are larger than {max_text_bytes} bytes")
    return Shape(footer[3], text_bytes)


def _check_schema(schema: list[Struct], columns: Mapping[str, str]) -> None:
    """Flat, in order, none nullable, and the right physical types."""
    names = [element[4].decode("utf-8", "replace") for element in schema[1:]]
    _need(
        names == list(columns) and schema[0].get(5, 0) == len(columns),
        f"its columns are {names!r:.200}, expected {list(columns)}",
    )
    for element, (name, kind) in zip(schema[1:], columns.items(), strict=True):
        wide = _INT64 if kind in ("int64", "uint64") else _INT32
        expected = _BYTE_ARRAY if kind == STRING else wide
        _need(element.get(1) == expected, f"column {name} is not of type {kind}")
        _need(element.get(3) == _REQUIRED and not element.get(5), f"column {name} can be null")


def _check_pages(fd: int, meta: Struct, start: int, end: int, *, is_text: bool) -> int:
    """Walk the pages of one column chunk; return the bytes they decompress to."""
    _need(meta[4] in (_UNCOMPRESSED, _ZSTD), "a column is compressed in an unexpected way")
    allowed = frozenset([_PLAIN]) if is_text else _NUMBER_ENCODINGS
    has_dictionary = False
    offset, values, total = start, 0, 0
    while offset < end:
        page, used = read_struct(os.pread(fd, min(_HEADER_BYTES, end - offset), offset))
        kind, size, stored = page[1], page[2], page[3]
        _need(0 <= size <= MAX_PAGE_BYTES and stored >= 0, "a page claims an absurd size")
        if kind == _DATA_PAGE:
            header = page[5]
            values += header[1]
            _need(header[1] > 0 and header[2] in allowed, "a page is encoded unexpectedly")
            needs = header[2] in (_PLAIN_DICTIONARY, _RLE_DICTIONARY)
            _need(has_dictionary or not needs, "a page uses a dictionary that is not there")
        else:
            # A dictionary of texts can repeat a long one without limit; numbers cannot.
            is_first = kind == _DICTIONARY_PAGE and offset == start and not is_text
            _need(is_first and page[7][1] >= 0, "a page has an unexpected kind")
            has_dictionary = True
        offset += used + stored
        total += size
    _need(offset == end and values == meta[5], "the pages of a column do not add up")
    return total if is_text else 0


# --- Thrift compact protocol -------------------------------------------------------------


def read_struct(data: bytes, at: int = 0, depth: int = 0) -> tuple[Struct, int]:
    """Read one struct: field number -> value (int, bytes, bool, list or struct), and its end.

    Raises CaptureError or IndexError for what is none.
    """
    _need(depth < _MAX_DEPTH, "its structure is nested too deeply")
    fields: Struct = {}
    number = 0
    while True:
        head = data[at]
        at += 1
        if not head:
            return fields, at
        if head >> 4:
            number += head >> 4
        else:
            number, at = _signed(data, at)
        _need(number not in fields, "a field appears twice")
        kind = head & 15
        if kind <= 2:
            fields[number] = kind == 1
        else:
            fields[number], at = _READ[kind](data, at, depth + 1)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        _need(shift < 70, "a number has too many digits")


def _signed(data: bytes, at: int, _depth: int = 0) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _byte(data: bytes, at: int, _depth: int) -> tuple[int, int]:
    return data[at], at + 1


def _double(data: bytes, at: int, _depth: int) -> tuple[bytes, int]:
    return data[at : at + 8], at + 8


def _binary(data: bytes, at: int, _depth: int) -> tuple[bytes, int]:
    size, at = _varint(data, at)
    _need(at + size <= len(data), "a text runs past the end")
    return data[at : at + size], at + size


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    head = data[at]
    at += 1
    size, kind = head >> 4, head & 15
    if size == 15:
        size, at = _varint(data, at)
    _need(size <= len(data) - at, "a list runs past the end")
    read = _byte if kind <= 2 else _READ[kind]
    items: list[Any] = []
    for _ in range(size):
        item, at = read(data, at, depth)
        items.append(item)
    return items, at


_READ: dict[int, Callable[[bytes, int, int], tuple[Any, int]]] = {
    3: _byte,
    4: _signed,
    5: _signed,
    6: _signed,
    7: _double,
    8: _binary,
    9: _list,
    12: read_struct,
}
"""By Thrift type. Sets and maps do not occur in Parquet's own structures."""


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise CaptureError(what)

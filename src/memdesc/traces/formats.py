"""The `format` files of tracepoints: where each field of an event lies, and what flags mean.

Nothing is known in advance of any release: the layout, the width and the sign of a field, the
number of an event and the bits of the gfp flags all come from these texts.

Source: `Documentation/trace/events.rst`, "Event formats"; `kernel/trace/trace_events.c:
f_show` @6.12.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from memdesc.errors import FormatError
from memdesc.kernels.gfp import SINGLE_FLAGS

__all__ = ["EventFormat", "Field", "PageFormat", "parse_format", "parse_header_page"]

_MOST_BYTES = 1 << 20
_FIELD = re.compile(
    r"\s*field:(?P<what>[^;]{1,200});\s*offset:(?P<offset>\d{1,6});\s*size:(?P<size>\d{1,6});"
    r"(?:\s*signed:(?P<signed>[01]);)?"
)
_ENTRY = re.compile(r"\{\s*([^{}\"]{1,2000}),\s*\"([A-Za-z_0-9]{1,64})\"\s*\}")
_CAST = re.compile(r"\(\s*(?:gfp_t|unsigned long|unsigned int|int|u32|u64|__force|\s)+\)")
_NUMBER = re.compile(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]*\b")
_MOST_PAGE = 1 << 26


@dataclass(frozen=True, slots=True)
class Field:
    """One field: offset and size in bytes from the event's start; size 0 lasts to its end."""

    name: str
    kind: str
    offset: int
    size: int
    signed: bool

    @property
    def is_text(self) -> bool:
        """Whether the field says where a text lies (`__data_loc`)."""
        return self.kind.startswith("__data_loc")


@dataclass(frozen=True, slots=True)
class EventFormat:
    """One event."""

    name: str
    number: int
    """In `common_type` of each record."""
    fields: Mapping[str, Field]
    gfp_bits: Mapping[int, int]
    """Bit of this kernel's gfp flags -> mask in our numbering; empty where they are the same,
    and where the event has no such flags."""

    @property
    def size(self) -> int:
        """Bytes up to the end of the last field of fixed size."""
        return max((item.offset + item.size for item in self.fields.values()), default=0)


@dataclass(frozen=True, slots=True)
class PageFormat:
    """A page of the ring buffer: its head, and where its events begin."""

    time: Field
    commit: Field
    data_offset: int
    size: int
    """Of the whole page, in bytes."""


def parse_format(text: str) -> EventFormat:
    """Read one `format` file. Raises FormatError for anything else."""
    if len(text) > _MOST_BYTES:
        raise FormatError("a format file is too long to be one")
    name = re.search(r"^name: *([A-Za-z_0-9]{1,64})$", text, re.MULTILINE)
    number = re.search(r"^ID: *(\d{1,5})$", text, re.MULTILINE)
    fields = _fields(text)
    if name is None or number is None or "common_type" not in fields:
        raise FormatError(
            "this is no format file of a tracepoint",
            hint="copy events/SYSTEM/EVENT/format from tracefs",
        )
    bits = _gfp_bits(text) if "gfp_flags" in fields else {}
    return EventFormat(name[1], int(number[1]), fields, bits)


def parse_header_page(text: str) -> PageFormat:
    """Read `events/header_page`. Raises FormatError for anything else."""
    fields = _fields(text)
    try:
        time, commit, data = (fields[name] for name in ("timestamp", "commit", "data"))
    except KeyError as error:
        raise FormatError(
            f"header_page has no field {error}", hint="copy events/header_page from tracefs"
        ) from None
    size = data.offset + data.size
    aligned = data.offset % 4 == 0 and size % 8 == 0 and time.offset % 4 == 0
    whole = commit.size in (4, 8) and time.size == 8 and commit.offset % 4 == 0
    if not (aligned and whole and data.size >= 16 and size <= _MOST_PAGE):
        raise FormatError("header_page describes a page that no kernel has")
    return PageFormat(time, commit, data.offset, size)


# --- helpers -----------------------------------------------------------------------------


def _fields(text: str) -> dict[str, Field]:
    found = {}
    for line in text.splitlines():
        match = _FIELD.match(line)
        if match is None:
            continue
        kind, _, name = match["what"].rpartition(" ")
        name = name.partition("[")[0].lstrip("*")
        found[name] = Field(
            name, kind, int(match["offset"]), int(match["size"]), match["signed"] == "1"
        )
    return found


def _gfp_bits(text: str) -> dict[int, int]:
    """This kernel's bits that mean something else in our numbering, from the names in the print
    format. Combined names say nothing more than the single ones."""
    found: dict[int, int] = {}
    for expression, name in _ENTRY.findall(text.partition("print fmt:")[2]):
        single = "__" + name if name in ("GFP_DMA", "GFP_DMA32") else name
        value = _value(expression)
        if single in SINGLE_FLAGS and value is not None and value.bit_count() == 1:
            found[value.bit_length() - 1] = SINGLE_FLAGS[single]
    if all(1 << bit == mask for bit, mask in found.items()):
        return {}
    return found


def _value(expression: str) -> int | None:
    """The value of a constant C expression, None for one that is none."""
    plain = _NUMBER.sub(r"\1", _CAST.sub("", expression))
    try:
        return _evaluated(ast.parse(plain.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _evaluated(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)) if value < 1 << 64:
            return value
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _evaluated(left) | _evaluated(right)
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _evaluated(left) & _evaluated(right)
        case ast.BinOp(left=left, op=ast.LShift(), right=right):
            shift = _evaluated(right)
            if not 0 <= shift < 64:
                raise ValueError("a shift out of range")
            return _evaluated(left) << shift
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_evaluated(operand)
    raise ValueError("no constant expression")

"""Builds ring buffer pages record by record, and reads the samples of tests/data."""

from __future__ import annotations

import struct
import tarfile
from functools import cache
from pathlib import Path

import numpy as np

from memdesc.traces.events import Trace, TraceReport, in_time_order
from memdesc.traces.formats import EventFormat, PageFormat, parse_format, parse_header_page
from memdesc.traces.raw import decode_pages
from memdesc.traces.records import Texts

DATA = Path(__file__).parent.parent / "data"
SAMPLES = ("6.12", "7.2")
PAGE = 4096
HEAD = 16


@cache
def sample(name: str) -> dict[str, bytes]:
    """A recorded ring buffer: "raw", its text "trace.txt", and "events/..."."""
    with tarfile.open(DATA / f"tracefs-{name}.tar.gz") as archive:
        found = {}
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                found[member.name] = content.read()
        return found


def formats_of(name: str = "6.12") -> tuple[PageFormat, list[EventFormat]]:
    files = sample(name)
    return parse_header_page(files["events/header_page"].decode()), [
        parse_format(content.decode())
        for path, content in files.items()
        if path.endswith("/format")
    ]


def number_of(event: str, name: str = "6.12") -> int:
    return next(item.number for item in formats_of(name)[1] if item.name == event)


def unpack(name: str, folder: Path) -> Path:
    """The sample as a folder like tracefs."""
    for path, content in sample(name).items():
        place = folder / ("per_cpu/cpu0/trace_pipe_raw" if path == "raw" else path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return folder


# --- records -----------------------------------------------------------------------------


def record(data: bytes, delta: int = 0) -> bytes:
    """A record with its length in type_len."""
    data += bytes(-len(data) % 4)
    assert 4 <= len(data) <= 112
    return struct.pack("<I", delta << 5 | len(data) // 4) + data


def long_record(data: bytes, delta: int = 0) -> bytes:
    """A record with its length in a word of its own."""
    data += bytes(-len(data) % 4)
    return struct.pack("<II", delta << 5, len(data) + 4) + data


def time_extend(delta: int) -> bytes:
    return struct.pack("<II", (delta & (1 << 27) - 1) << 5 | 30, delta >> 27)


def time_stamp(time: int) -> bytes:
    return struct.pack("<II", (time & (1 << 27) - 1) << 5 | 31, time >> 27 & 0xFFFFFFFF)


def discarded(size: int, delta: int) -> bytes:
    """A record that was taken back: padding with a length."""
    return struct.pack("<II", delta << 5 | 29, size - 4) + b"\xee" * (size - 8)


def page_free(pfn: int, order: int = 0, *, pid: int = 7) -> bytes:
    """The data of an mm_page_free of the 6.12 sample."""
    return struct.pack("<HBBiQI", number_of("mm_page_free"), 0, 0, pid, pfn, order)


def page(*records: bytes, time: int = 0, flags: int = 0, lost: int | None = None) -> bytes:
    """A page of the ring buffer."""
    body = b"".join(records)
    head = struct.pack("<QQ", time, len(body) | flags)
    tail = b"" if lost is None else struct.pack("<Q", lost)
    return (head + body + tail).ljust(PAGE, b"\0")


def decode(data: bytes, name: str = "6.12") -> Trace:
    header, formats = formats_of(name)
    texts, report = Texts(), TraceReport()
    parts = decode_pages(np.frombuffer(data, np.uint8), header, formats, 0, texts, report)
    columns = {
        key: np.concatenate([part[key] for part in parts]) for key in (parts[0] if parts else {})
    }
    return Trace(in_time_order(columns, report) if parts else columns, texts.names(), report=report)

"""Ring buffer pages: every kind of record, what is lost, and what is no page at all."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces.pages import (
    PAGE,
    SAMPLES,
    decode,
    discarded,
    formats_of,
    long_record,
    number_of,
    page,
    page_free,
    record,
    sample,
    time_extend,
    time_stamp,
    unpack,
)

from memdesc.errors import FormatError
from memdesc.traces.events import COLUMNS, Event
from memdesc.traces.formats import parse_format, parse_header_page
from memdesc.traces.raw import read_raw
from memdesc.traces.read import read_trace
from memdesc.traces.text import parse_lines

MISSED, STORED = 1 << 31, 1 << 30


@pytest.mark.parametrize("name", SAMPLES)
def test_raw_pages_say_what_the_kernels_own_text_of_them_says(name: str, tmp_path: Path) -> None:
    raw = read_trace(unpack(name, tmp_path))
    text = parse_lines(sample(name)["trace.txt"].decode().splitlines(keepends=True))
    assert len(raw) == len(text) >= 80
    # A text has times rounded to microseconds (ns2usecs), and symbols for call sites.
    assert ((raw.time_ns + 500) // 1000 == text.time_ns // 1000).all()
    for column in set(COLUMNS) - {"time_ns", "call_site", "text"}:
        assert raw.columns[column].tolist() == text.columns[column].tolist(), column
    named = [[trace.texts[number] for number in trace.text] for trace in (raw, text)]
    has_name = np.isin(raw.event, (Event.CACHE_ALLOC, Event.CACHE_FREE, Event.MARKER))
    assert [n for n, has in zip(named[0], has_name, strict=True) if has] == [
        n for n, has in zip(named[1], has_name, strict=True) if has
    ]
    assert raw.markers()[0][1] == "hello from user space"
    assert raw.report.is_complete
    assert not text.report.lines_ignored


def test_each_kind_of_record_moves_time_as_the_kernel_says() -> None:
    trace = decode(
        page(
            record(page_free(1), 5),
            discarded(16, 7),  # was written and taken back: its time counts
            record(page_free(2), 1),
            discarded(12, 1),  # a delta of 1 only marks it
            record(page_free(3), 1),
            time_extend(1 << 30),
            record(page_free(4), 2),
            time_stamp(123 << 32),
            long_record(page_free(5), 3),
            time=1000,
        )
    )
    assert trace.pfn.tolist() == [1, 2, 3, 4, 5]
    stamp = 123 << 32
    assert trace.time_ns.tolist() == [
        1005, 1013, 1014, 1016 + (1 << 30), stamp + 3,
    ]  # fmt: skip
    assert trace.pid.tolist() == [7] * 5
    assert (trace.event == Event.PAGE_FREE).all()


def test_a_time_stamp_has_59_bits_and_keeps_those_above() -> None:
    high = 0b0101 << 59
    trace = decode(page(time_stamp(77), record(page_free(1), 1), time=high | 5))
    assert trace.time_ns.tolist() == [high | 78]


def test_pages_are_read_in_their_order_and_padding_ends_one() -> None:
    padding = struct.pack("<I", 29)
    trace = decode(
        page(record(page_free(1)), padding, b"\xff" * 64, time=10)
        + page(time=15)
        + page(record(page_free(2)), record(page_free(3), 1), time=20)
    )
    assert trace.pfn.tolist() == [1, 2, 3]
    assert trace.report.is_complete


def test_lost_events_are_counted() -> None:
    trace = decode(
        page(record(page_free(1)), time=1)
        + page(record(page_free(2)), time=2, flags=MISSED)
        + page(record(page_free(3)), time=3, flags=MISSED | STORED, lost=41)
    )
    assert trace.pfn.tolist() == [1, 2, 3]
    assert (trace.report.lost_gaps, trace.report.lost_events) == (2, 41)
    assert not trace.report.is_complete
    assert "lost 41 events" in trace.report.notes()[0]


def test_other_events_are_left_out_and_counted() -> None:
    strange = struct.pack("<HBBi", 9999, 0, 0, 1)
    trace = decode(page(record(strange), record(page_free(8)), record(strange)))
    assert trace.pfn.tolist() == [8]
    assert trace.report.other_events == {"number 9999": 2}


def test_a_page_that_ends_wrongly_is_read_up_to_there() -> None:
    too_long = struct.pack("<II", 0, 4000) + bytes(8)
    too_short = record(struct.pack("<HBBi", number_of("mm_page_free"), 0, 0, 1))
    trace = decode(
        page(record(page_free(1)), too_long)
        + page(record(page_free(2)), too_short, record(page_free(3)), time=9)
        + page(record(page_free(4)), time=99)[:300]
    )
    assert trace.pfn.tolist() == [1, 2, 3]
    assert trace.report.damaged_pages == 2
    assert trace.report.truncated_bytes == 300


def test_events_of_several_processors_come_by_time(tmp_path: Path) -> None:
    folder = unpack("6.12", tmp_path)
    for cpu, pages in enumerate((
        page(record(page_free(1)), record(page_free(3), 100), time=100),
        page(record(page_free(2)), record(page_free(4), 100), time=150),
    )):  # fmt: skip
        path = folder / f"per_cpu/cpu{cpu}/trace_pipe_raw"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pages)
    (folder / "per_cpu/cpu1/stats").write_text("entries: 2\noverrun: 5\ndropped events: 1\n")
    trace = read_raw(folder)
    assert trace.pfn.tolist() == [1, 2, 3, 4]
    assert trace.cpu.tolist() == [0, 1, 0, 1]
    assert trace.report.lost_events == 6


def test_a_kernel_that_numbers_its_flags_differently_is_translated() -> None:
    text = sample("6.12")["events/kmem/mm_page_alloc/format"].decode()
    assert parse_format(text).gfp_bits == {}
    moved = text.replace('<< (3))), "__GFP_MOVABLE"', '<< (30))), "__GFP_MOVABLE"')
    assert moved != text
    assert parse_format(moved).gfp_bits[30] == 8


@pytest.mark.parametrize("name", SAMPLES)
def test_formats_give_places_and_names_of_flags(name: str) -> None:
    layout = {item.name: item for item in formats_of(name)[1]}["mm_page_alloc"]
    assert layout.fields["pfn"].size == 8
    assert layout.fields["migratetype"].signed
    assert layout.size >= 36


@pytest.mark.parametrize(
    "text",
    ["", "name: x\nID: 7\n", "name: " + "x" * 100 + "\nID: 1\n\tfield:int common_type;\toffset:0;"],
)
def test_what_is_no_format_file_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_format(text)


@pytest.mark.parametrize(
    "change", [("size:4080", "size:99999999"), ("offset:16", "offset:3"), ("commit", "omit")]
)
def test_what_is_no_page_header_is_refused(change: tuple[str, str]) -> None:
    text = sample("6.12")["events/header_page"].decode()
    with pytest.raises(FormatError):
        parse_header_page(text.replace(*change))


def test_a_folder_without_buffers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="header_page"):
        read_raw(tmp_path)
    (unpack("6.12", tmp_path) / "per_cpu/cpu0/trace_pipe_raw").unlink()
    with pytest.raises(FormatError, match="trace_pipe_raw"):
        read_raw(tmp_path)


@given(st.data())
def test_no_bytes_break_the_decoder(data: st.DataObject) -> None:
    raw = bytearray(sample("7.2")["raw"])
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(raw) - 8))
        raw[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    trace = decode(bytes(raw[: data.draw(st.integers(0, 2)) * PAGE + len(raw) % PAGE]), "7.2")
    if trace.columns:
        assert set(np.unique(trace.event)) <= {int(event) for event in Event}
        assert (trace.text < len(trace.texts)).all()
        assert (np.diff(trace.time_ns) >= 0).all()

"""Text traces: what three programs print of the same events, what is lost, what is no event."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.errors import FormatError, QuestionError
from memdesc.kernels.gfp import GFP_NAMES
from memdesc.traces.events import COLUMNS, Event, Trace
from memdesc.traces.read import open_trace, read_trace
from memdesc.traces.text import parse_lines

FIELDS = {
    "mm_page_alloc": "page=0x3df0e9 pfn=0x3df0e9 order=2 migratetype=1 "
    "gfp_flags=GFP_HIGHUSER_MOVABLE|__GFP_COMP",
    "mm_page_free": "page=0x2e2ac6 pfn=0x2e2ac6 order=0",
    "kmalloc": "call_site=single_open+0x2a ptr=0xffff888102404c20 bytes_req=32 bytes_alloc=64 "
    "gfp_flags=GFP_KERNEL_ACCOUNT node=-1 accounted=true",
    "kmem_cache_free": "call_site=__fput+0x14e/0x2b0 ptr=00000000a3f98d00 name=filp",
    "mm_page_alloc_extfrag": "page=0x1 pfn=0x800 alloc_order=0 fallback_order=9 pageblock_order=9 "
    "alloc_migratetype=0 fallback_migratetype=1 fragmenting=0 change_ownership=1",
}
# Lines as tracefs (with and without flags), perf script and trace-cmd report print them.
STYLES = {
    "tracefs": "         perf-exec-18233   [001] .....  24953.779046: {}: {}",
    "trace_pipe, older": "          <idle>-0     [001]  24953.779046: {}: {}",
    "tracefs, with tgid": "   my task-18233   (  18200) [001] d..1.  24953.779046: {}: {}",
    "perf script": "       perf-exec 18233 [001] 24953.779046:  kmem:{}: {}",
    "perf script, with tid": "       perf-exec 18233/18234 [001] 24953.779046:  kmem:{}: {}",
    "trace-cmd report": "       perf-exec-18233 [001]  24953.779046: {}:        {}",
    "trace-cmd 3 report": "       perf-exec-18233 [001] ..... 24953.779046: {}:        {}",
}


def parsed(*lines: str) -> Trace:
    return parse_lines(line + "\n" for line in lines)


@pytest.mark.parametrize("style", STYLES)
def test_every_program_prints_the_same_events(style: str) -> None:
    trace = parsed("# tracer: nop", "", *(STYLES[style].format(*item) for item in FIELDS.items()))
    assert trace.report.lines_ignored == 0
    assert trace.counts() == dict.fromkeys(
        ("page_alloc", "page_free", "extfrag", "kmalloc", "cache_free"), 1
    )
    assert trace.time_ns.tolist() == [24953779046000] * 5
    assert set(trace.cpu.tolist()) == {1}
    assert set(trace.pid.tolist()) == ({0} if "idle" in STYLES[style] else {18233})
    alloc, freed, kmalloc, cache, extfrag = range(5)
    assert trace.pfn.tolist() == [0x3DF0E9, 0x2E2AC6, -1, -1, 0x800]
    assert trace.order.tolist() == [2, 0, 0, 0, 0]
    assert trace.migratetype.tolist() == [1, -1, -1, -1, 0]
    assert trace.gfp_flags[alloc] == GFP_NAMES["GFP_HIGHUSER_MOVABLE"] | GFP_NAMES["__GFP_COMP"]
    assert (trace.bytes_req[kmalloc], trace.bytes_alloc[kmalloc]) == (32, 64)
    assert trace.ptr[[kmalloc, cache]].tolist() == [0xFFFF888102404C20, 0xA3F98D00]
    assert trace.sites[trace.call_site[kmalloc]] == "single_open+0x2a"
    assert trace.texts[trace.text[cache]] == "filp"
    assert (trace.fallback_order[extfrag], trace.fallback_migratetype[extfrag]) == (9, 1)
    assert trace.flag[extfrag] == 1
    assert trace.order[freed] == 0


def test_a_request_that_failed_has_no_frame() -> None:
    failed = "page=0000000000000000 pfn=0x0 order=9 migratetype=1 gfp_flags=GFP_TRANSHUGE_LIGHT"
    trace = parsed(STYLES["tracefs"].format("mm_page_alloc", failed))
    assert trace.pfn.tolist() == [-1]


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("CPU:1 [LOST 1234 EVENTS]", 1234),
        ("CPU 0: 77 EVENTS DROPPED", 77),
        ("CPU:0 [EVENTS DROPPED]", 0),
        ("perf 1 [000] 2.0: PERF_RECORD_LOST lost 52", 52),
    ],
)
def test_lost_events_are_counted(line: str, lost: int) -> None:
    trace = parsed(STYLES["tracefs"].format(*next(iter(FIELDS.items()))), line)
    assert (trace.report.lost_gaps, trace.report.lost_events) == (1, lost)
    assert not trace.report.is_complete


def test_what_is_no_event_of_an_allocation_is_counted() -> None:
    trace = parsed(
        STYLES["tracefs"].format("sched_switch", "prev_comm=x"),
        "something else entirely",
        STYLES["tracefs"].format("mm_page_alloc", "page=1 pfn=zero order=0"),
        STYLES["tracefs"].format("mm_page_alloc", "page=1 order=0"),
        STYLES["tracefs"].format("mm_page_alloc", "page=1 pfn=1 order=0 gfp_flags=__GFP_UNHEARD"),
        STYLES["tracefs"].format("mm_page_alloc", "page=1 pfn=" + "9" * 5000),
        STYLES["tracefs"].format("mm_page_free", "page=1 pfn=1 order=0"),
    )
    assert trace.counts() == {"page_free": 1}
    assert trace.report.other_events == {"sched_switch": 1}
    assert trace.report.lines_ignored == 5
    assert trace.report.first_ignored == "something else entirely"
    assert any("5 lines are no events" in note for note in trace.report.notes())


def test_events_out_of_order_are_put_in_order_and_counted() -> None:
    line = "t-1 [000] ..... {}.000001: mm_page_free: page=1 pfn={} order=0"
    trace = parsed(*(line.format(time, time) for time in (3, 1, 2, 4)))
    assert trace.pfn.tolist() == [1, 2, 3, 4]
    assert trace.report.unsorted == 2


@given(st.lists(st.text(max_size=200), max_size=20))
def test_no_text_breaks_the_parser(lines: list[str]) -> None:
    trace = parse_lines(lines)
    assert set(trace.columns) == set(COLUMNS)


@given(st.sampled_from(sorted(FIELDS)), st.text("0123456789abcdefx=-| ", max_size=60))
def test_no_fields_break_the_parser(event: str, rest: str) -> None:
    trace = parsed(STYLES["tracefs"].format(event, f"page=1 pfn=2 order=3 ptr=4 {rest}"))
    assert len(trace) + trace.report.lines_ignored == 1
    if len(trace):
        assert int(trace.event[0]) in list(Event)


# --- files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "hint"),
    [
        (b"\x17\x08\x44tracing6", "trace-cmd report"),
        (b"PERFILE2........", "perf script"),
        (b"\x7fELF", "dump"),
        (b"\x1f\x8b\x08", "gunzip"),
        (b"PK\x03\x04 not really", "vm trace"),
        (b"nothing of the kind\n", "perf script"),
        (b"", "perf script"),
    ],
)
def test_other_files_are_refused_with_what_to_do(start: bytes, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(start)
    with pytest.raises(FormatError) as error:
        read_trace(path)
    assert hint in str(error.value.hint)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match="no such trace"):
        open_trace(tmp_path / "nothing")

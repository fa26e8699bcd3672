"""The inversion, against a dictionary filled page by page."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.errors import CaptureError
from memdesc.map.attribution import Attribution, Mappings, Processes, ReadReport, Vmas
from memdesc.map.inverse import Inverse

Run = tuple[int, int, int]
"""(process, first frame, pages)."""


def attribution_of(runs: list[Run], processes: int = 4) -> Attribution:
    """One VMA per run, one after the other."""
    runs = sorted(runs, key=lambda run: run[0])
    count = len(runs)
    page = np.array([1000 * (index + 1) for index in range(count)], np.uint64)
    zero = np.zeros(count, np.uint64)
    size = np.array([run[2] for run in runs], np.uint64)
    wide = any(run[1] > 0xFFFFFFFF for run in runs)
    return Attribution(
        Processes(
            np.arange(1, processes + 1, dtype=np.uint32),
            np.zeros(processes, np.uint32),
            np.zeros(processes, np.uint32),
            ["p"] * processes,
            [""] * processes,
        ),
        Vmas(
            process=np.array([run[0] for run in runs], np.uint32),
            start=page << np.uint64(12),
            end=(page + size) << np.uint64(12),
            perms=np.full(count, 3, np.uint8),
            offset=zero,
            device=np.zeros(count, np.uint32),
            inode=zero,
            name=np.zeros(count, np.uint32),
            names=[""],
            swapped=zero,
            guard=zero,
            hwpoison=zero,
            special=zero,
            zero=zero,
            no_pfn=zero,
        ),
        Mappings(
            np.array([run[1] for run in runs], np.uint64 if wide else np.uint32),
            size.astype(np.uint32),
            np.arange(count, dtype=np.uint32),
            page,
            np.zeros(count, np.uint8),
        ),
    )


def brute_force(attribution: Attribution) -> dict[int, list[tuple[int, int]]]:
    """Frame -> sorted (process, address)."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    mappings = attribution.mappings
    for index in range(len(mappings)):
        process = int(attribution.vmas.process[mappings.vma[index]])
        for offset in range(int(mappings.nr_pages[index])):
            address = (int(mappings.page[index]) + offset) << 12
            found[int(mappings.pfn_start[index]) + offset].append((process, address))
    return {pfn: sorted(places) for pfn, places in found.items()}


RUNS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 60), st.integers(1, 20)), min_size=0, max_size=25
)


@given(RUNS, st.sampled_from([0, 1 << 33]))
def test_equals_brute_force(runs: list[Run], base: int) -> None:
    attribution = attribution_of([(p, base + pfn, pages) for p, pfn, pages in runs])
    attribution.check()
    inverse = Inverse.of(attribution)
    inverse.check()
    expected = brute_force(attribution)
    for pfn in range(base, base + 90):
        found = [(mapper.process.index, mapper.address) for mapper in inverse.mappers_of(pfn)]
        assert sorted(found) == expected.get(pfn, []), pfn
        assert inverse.mapcount_of(pfn) == len(expected.get(pfn, []))


@given(RUNS)
def test_segments_are_as_few_as_possible(runs: list[Run]) -> None:
    """Never more than two borders per run, and never more rows than mapped pages."""
    inverse = Inverse.of(attribution_of(runs))
    assert len(inverse) <= max(0, 2 * len(runs) - 1)
    assert inverse.runs.size <= sum(run[2] for run in runs)


def test_runs_that_are_equal_or_touch_are_not_cut() -> None:
    shared = [(process, 100, 50) for process in range(4)]
    inverse = Inverse.of(attribution_of([*shared, (0, 150, 10), (1, 160, 10)]))
    assert inverse.pfn_start.tolist() == [100, 150, 160]
    assert inverse.mapcount.tolist() == [4, 1, 1]


def test_one_process_that_maps_a_frame_twice_counts_twice() -> None:
    inverse = Inverse.of(attribution_of([(2, 7, 1), (2, 7, 1)]))
    assert [mapper.process.index for mapper in inverse.mappers_of(7)] == [2, 2]
    assert len({mapper.address for mapper in inverse.mappers_of(7)}) == 2


def test_nothing_mapped() -> None:
    inverse = Inverse.of(attribution_of([]))
    inverse.check()
    assert inverse.mappers_of(0) == []
    assert inverse.segment_of(5) is None


def test_memory_is_four_bytes_per_mapping() -> None:
    inverse = Inverse.of(attribution_of([(0, pfn, 1) for pfn in range(1, 2000)], 1))
    assert inverse.runs.dtype == np.uint32
    assert inverse.runs.size == 1999


# --- tables ------------------------------------------------------------------------------


@given(RUNS)
def test_tables_read_back(runs: list[Run]) -> None:
    attribution = attribution_of(runs)
    again = Attribution.from_tables(attribution.to_tables())
    tables, more = attribution.to_tables(), again.to_tables()
    for name, columns in tables.items():
        assert list(columns) == list(more[name])
        for column, values in columns.items():
            assert np.array_equal(values, more[name][column]), (name, column)


SPOILT = {
    "no table": lambda t: t.pop("vmas"),
    "no column": lambda t: t["mappings"].pop("page"),
    "lengths differ": lambda t: t["vmas"].update(perms=np.zeros(1, np.uint8)),
    "floats": lambda t: t["mappings"].update(nr_pages=np.ones(2)),
    "no texts": lambda t: t["processes"].update(comm=[1, 2]),
    "two dimensions": lambda t: t["mappings"].update(page=np.zeros((2, 2), np.uint64)),
    "negative": lambda t: t["mappings"].update(page=np.array([-1, 5])),
    "pid twice": lambda t: t["processes"].update(pid=np.array([1, 1], np.uint32)),
    "no such process": lambda t: t["vmas"].update(process=np.array([0, 9], np.uint32)),
    "processes fall": lambda t: t["vmas"].update(process=np.array([1, 0], np.uint32)),
    "ends before it starts": lambda t: t["vmas"].update(end=np.zeros(2, np.uint64)),
    "not aligned": lambda t: t["vmas"]["start"].__iadd__(np.uint64(1)),
    "overlap": lambda t: t["vmas"].update(
        process=np.zeros(2, np.uint32),
        start=np.array([4096, 4096], np.uint64),
        end=np.array([8192, 8192], np.uint64),
    ),
    "permissions": lambda t: t["vmas"].update(perms=np.full(2, 200, np.uint8)),
    "more swap than pages": lambda t: t["vmas"].update(swapped=np.full(2, 999, np.uint64)),
    "run of nothing": lambda t: t["mappings"].update(nr_pages=np.zeros(2, np.uint32)),
    "no such VMA": lambda t: t["mappings"].update(vma=np.array([0, 5], np.uint32)),
    "frame too large": lambda t: t["mappings"].update(pfn_start=np.full(2, 1 << 60, np.uint64)),
    "outside its VMA": lambda t: t["mappings"].update(page=np.zeros(2, np.uint64)),
    "page too large": lambda t: t["mappings"].update(page=np.full(2, 1 << 60, np.uint64)),
    "order": lambda t: t["mappings"].update(vma=np.array([1, 0], np.uint32)),
    "flag": lambda t: t["mappings"].update(file=np.full(2, 3, np.uint8)),
}


@pytest.mark.parametrize("name", SPOILT)
def test_hostile_tables_are_refused(name: str) -> None:
    tables = {
        table: {column: getattr(v, "copy", lambda v=v: v)() for column, v in columns.items()}
        for table, columns in attribution_of([(0, 5, 2), (1, 9, 2)], 2).to_tables().items()
    }
    Attribution.from_tables(tables)
    SPOILT[name](tables)
    with pytest.raises(CaptureError):
        Attribution.from_tables(tables)


def test_report_reads_back() -> None:
    report = ReadReport(seen=5, read=3, refused=1, seconds=0.5, problems=((1, "maps: no"),))
    assert ReadReport.from_json(report.to_json()) == report
    for spoilt in ([], {"seen": -1}, {"seen": True}, {"problems": [1]}, {"read": "x"}):
        with pytest.raises(CaptureError):
            ReadReport.from_json(spoilt)

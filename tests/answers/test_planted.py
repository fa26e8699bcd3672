"""Ground truth from real kernels: memory planted in a guest, and what we say it is.

The bundled captures were recorded in virtual machines in which a workload had planted
memory of every kind it could (`memdesc vm record`). `data/planted-*.json` says what lies where.
Nothing may be named wrongly: a union must hold the truth, and most answers must be certain.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from memdesc.answers.ledger import ledger
from memdesc.answers.reconcile import reconcile
from memdesc.checks.planted import PLANTED
from memdesc.map.extents import MemoryMap
from memdesc.sources.bundled import open_bundled
from memdesc.sources.capture import Capture

NAMES = ["debian-6.1", "debian-6.12", "debian-7.2"]
DATA = Path(__file__).parent.parent / "data"


@cache
def opened(name: str) -> tuple[Capture, MemoryMap]:
    capture = open_bundled(name)
    return capture, capture.map()


@cache
def planted(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((DATA / f"planted-{name}.json").read_text())
    return [row for row in rows if "missing" not in row]


def frames_of(name: str, row: dict[str, Any]) -> list[int]:
    """The frames of a planted region, through the captured page tables."""
    if "pfn_start" in row:
        return list(range(row["pfn_start"], row["pfn_start"] + row["nr_pages"]))
    attribution = opened(name)[0].attribution()
    process = attribution.process_index(row["pid"])
    first = row["address"] >> 12
    last = first + row["nr_pages"]
    frames: list[int] = []
    mine = attribution.process_of_mapping == process
    mappings = attribution.mappings
    for start, count, page in zip(
        mappings.pfn_start[mine].tolist(),
        mappings.nr_pages[mine].tolist(),
        mappings.page[mine].tolist(),
        strict=True,
    ):
        low, high = max(first, page), min(last, page + count)
        frames += range(start + low - page, start + high - page)
    return frames


@pytest.mark.parametrize("name", NAMES)
def test_no_planted_page_is_named_wrongly(name: str) -> None:
    _capture, result = opened(name)
    wrong: list[str] = []
    certain: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for row in planted(name):
        truth = PLANTED.get(row["kind"])
        if truth is None:
            continue
        for pfn in frames_of(name, row):
            types = result.extent(result.index_of(pfn)).fact.types
            seen[row["kind"]] += 1
            certain[row["kind"]] += types.is_certain
            if truth not in types:
                wrong.append(f"{row['kind']} at {pfn:#x}: {types.names}")
    assert not wrong, wrong[:20]
    missing = {row["kind"] for row in planted(name)} & set(PLANTED) - set(seen)
    # Left out of page tables by a capture (zero page), or never in one (perf ring of 7.2).
    allowed = {"zero_page"} | ({"perf_ring"} if name == "debian-7.2" else set())
    assert not missing - allowed, f"planted, and no frame was looked at: {missing}"
    assert sum(certain.values()) > 0.8 * sum(seen.values()), certain


@pytest.mark.parametrize("name", NAMES)
def test_certain_kinds_are_certain(name: str) -> None:
    """On 6.12 merged memory may be shared anonymous memory; all else is named outright."""
    _capture, result = opened(name)
    honest = {"bpf_array_mapped", "io_uring_ring", "packet_ring", "perf_ring", "secretmem"}
    if name == "debian-6.12":
        honest |= {"ksm"}
    for row in planted(name):
        if row["kind"] not in PLANTED or row["kind"] in honest:
            continue
        for pfn in frames_of(name, row):
            fact = result.extent(result.index_of(pfn)).fact
            assert fact.types.only is PLANTED[row["kind"]], (row, fact)


EQUAL = (
    "present (zoneinfo)",
    "MemTotal",
    "MemFree",
    "Shmem",
    "PageTables",
    "Hugetlb",
    "Mlocked",
    "HardwareCorrupted",
)
"""Lines that are equal to the byte on a machine that holds still."""


@pytest.mark.parametrize("name", NAMES)
def test_the_counters_of_a_real_kernel_agree(name: str) -> None:
    _capture, result = opened(name)
    lines = reconcile(result).lines
    assert len(lines) >= 12
    assert not [line for line in lines if line.status == "differs"]
    exact = {line.counter: line for line in lines}
    for counter in EQUAL:
        assert exact[counter].difference_bytes == 0, exact[counter]
    # A few pages were touched between the two readings of this counter.
    anon = exact["AnonPages"]
    assert abs(anon.difference_bytes or 0) <= anon.moved_bytes, anon


@pytest.mark.parametrize("name", NAMES)
def test_present_frames_equal_the_zones(name: str) -> None:
    _capture, result = opened(name)
    assert ledger(result).frames_present == result.machine.frames_present


@pytest.mark.parametrize("name", NAMES)
def test_every_map_keeps_its_invariants(name: str) -> None:
    opened(name)[1].check()

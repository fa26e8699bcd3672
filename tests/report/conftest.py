"""Fixtures of the report's tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from report_worlds import HOSTILE, hostile_attribution, known_source, no_processes

from memdesc.map.extents import MemoryMap
from memdesc.map.machine import SlabCache
from memdesc.report.build import ReportData, report_data


@pytest.fixture
def known(tmp_path: Path) -> MemoryMap:
    """The map of `known_source`."""
    return known_source(tmp_path / "known").map()


@pytest.fixture
def hostile(known: MemoryMap) -> ReportData:
    """A report in which every name comes from somebody who means harm."""
    machine = known.machine
    zones = tuple(
        dataclasses.replace(zone, name=name)
        for zone, name in zip(machine.zones, HOSTILE, strict=False)
    )
    machine = dataclasses.replace(
        machine,
        hostname="".join(HOSTILE),
        zones=zones,
        cgroups={7: "/" + "".join(HOSTILE)},
        slabinfo=tuple(SlabCache(name, 3, 4, 100, 1, 50) for name in HOSTILE),
        unseen=dict.fromkeys(HOSTILE, "".join(HOSTILE)),
    )
    result = dataclasses.replace(known, machine=machine)
    return report_data(result, source=HOSTILE[0], attribution=hostile_attribution)


@pytest.fixture
def data(known: MemoryMap) -> ReportData:
    """The report of the known world, without processes."""
    return report_data(known, source="tree:known", attribution=no_processes)

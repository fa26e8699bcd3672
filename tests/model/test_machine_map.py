"""The machine as a map, and a map as a machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from memdesc.answers.ledger import ledger
from memdesc.errors import QuestionError
from memdesc.model import state as s
from memdesc.model.check import check
from memdesc.model.machine import GFP, Layout, Machine
from memdesc.sources.bundled import open_bundled
from memdesc.sources.procfs import parse_buddyinfo, parse_zoneinfo
from memdesc.types import MemoryType, TypeSet


def busy(cpus: int = 1) -> Machine:
    machine = Machine(Layout.pc(64 << 20), cpus=cpus)
    for order in (0, 0, 3, 9, 2, 0, 5, 4):
        machine.alloc(order, GFP.HIGHUSER_MOVABLE)
        machine.alloc(order, GFP.KERNEL)
    return machine


def test_a_machine_as_a_map_holds_every_frame_with_its_type() -> None:
    machine = busy()
    found = machine.map()
    found.check()
    free = found.table.within(TypeSet.of(MemoryType.FREE))[found.facts]
    assert found.nr_pages[free].sum() == machine.counters()["nr_free_pages"]
    waiting = found.table.within(TypeSet.of(MemoryType.FREE_PCP))[found.facts]
    counted = sum(machine.percpu_value(0, zone, s.P_COUNT) for zone in range(2))
    assert found.nr_pages[waiting].sum() == counted


def test_a_map_as_a_machine_is_the_machine_that_it_was_taken_from() -> None:
    machine = busy()
    back = Machine.from_map(machine.map(), migratetypes=np.asarray(machine.state.block))
    check(back)
    assert back.buddyinfo() == machine.buddyinfo()
    assert (np.asarray(back.state.frame) & 15 == np.asarray(machine.state.frame) & 15).all()
    assert back.notes[0] == "migratetypes of pageblocks are as given"
    assert not [note for note in back.notes if "differ" in note]
    assert back.alloc(4, GFP.KERNEL) == machine.alloc(4, GFP.KERNEL)


def test_a_map_of_a_real_machine_becomes_one_that_works() -> None:
    found = open_bundled("debian-6.12").map()
    machine = Machine.from_map(found)
    check(machine)
    assert machine.notes[0].endswith("all are taken to be MOVABLE")
    assert any("per-CPU lists are not visible" in note for note in machine.notes)
    before = machine.counters()["nr_free_pages"]
    pfns = [machine.alloc(gfp=GFP.HIGHUSER_MOVABLE) for _ in range(1000)]
    assert None not in pfns
    for pfn in pfns:
        machine.free(pfn)
    machine.drain()
    check(machine)
    assert machine.counters()["nr_free_pages"] == before


@pytest.mark.parametrize("name", ["debian-6.1", "debian-6.12", "debian-7.2"])
def test_free_frames_of_real_kernels_make_the_blocks_that_they_counted(name: str) -> None:
    found = open_bundled(name).map()
    machine = Machine.from_map(found)
    assert parse_buddyinfo(machine.buddyinfo()) == found.machine.buddyinfo
    assert not [note for note in machine.notes if "differ" in note]


def test_watermarks_that_a_map_knows_are_taken_over() -> None:
    found = busy().map()
    zones = tuple(replace(zone, wmark_min=100, wmark_low=130) for zone in found.machine.zones)
    machine = Machine.from_map(replace(found, machine=replace(found.machine, zones=zones)))
    read = [machine.zone_value(0, column) for column in (s.Z_MIN, s.Z_LOW, s.Z_HIGH, s.Z_PROMO)]
    assert read == [100, 130, 160, 190]


def test_zoneinfo_is_read_back_by_whoever_reads_the_kernels() -> None:
    machine = busy(cpus=2)
    assert parse_zoneinfo(machine.zoneinfo()) == machine.map().machine.zones


def test_every_answer_can_be_asked_of_the_model() -> None:
    assert ledger(busy().map()).rows


def test_a_map_without_zones_is_refused() -> None:
    found = busy().map()
    bare = replace(found, machine=replace(found.machine, zones=()))
    with pytest.raises(QuestionError, match="does not tell the zones"):
        Machine.from_map(bare)

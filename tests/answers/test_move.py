"""Pages, ranges, memory blocks and zones: what lies there, and what would stop it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_worlds import known_source
from worlds import raw_map, tree

from memdesc.answers.ledger import ledger
from memdesc.answers.move import Movement, move, parse_area
from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.map.machine import Machine
from memdesc.map.parts import parts_of
from memdesc.sources.capture import Capture
from memdesc.sources.open import open_source
from memdesc.types import Certainty, MemoryType, Pfn, PfnRange

BUNDLED = ["debian-6.1", "debian-6.12", "debian-7.2"]
TILE = 4096
ANON = int(KPF.ANON | KPF.LRU | KPF.UPTODATE | KPF.SWAPBACKED | KPF.MMAP)


def pages(start: int, end: int) -> PfnRange:
    return PfnRange(Pfn(start), Pfn(end))


def frames(answer: Movement) -> int:
    return sum(row.frames for row in answer.rows)


def test_a_small_world(tmp_path: Path) -> None:
    result = known_source(tmp_path).map()
    free = move(result, pages(0, TILE))
    assert free.can_be_emptied is True
    anon = move(result, pages(TILE, 2 * TILE))
    assert anon.can_be_emptied is None  # a pin would not show
    assert anon.notes
    mixed = move(result, pages(2 * TILE, 3 * TILE))
    assert mixed.can_be_emptied is False
    first = mixed.rows[0]
    assert (first.types.only, first.moves, first.first) == (MemoryType.SLAB, False, 2 * TILE + 8)
    hole = move(result, pages(3 * TILE, 4 * TILE))
    assert (frames(hole), hole.not_present, hole.can_be_emptied) == (0, TILE, True)


def test_edges_cut_extents(tmp_path: Path) -> None:
    result = raw_map(tmp_path, [ANON] * 100)
    answer = move(result, pages(10, 13))
    assert frames(answer) == 3
    assert answer.rows[0].first == 10


def test_equal_answers_are_one_row(tmp_path: Path) -> None:
    """Referenced or not: nobody who wants to move it cares."""
    result = raw_map(tmp_path, [ANON, ANON | int(KPF.REFERENCED | KPF.ACTIVE)] * 8)
    assert len(move(result, pages(0, 16)).rows) == 1


def test_outside(tmp_path: Path) -> None:
    result = raw_map(tmp_path, [ANON] * 4)
    for area in (pages(0, 5), pages(3, 3), pages(9, 12)):
        with pytest.raises(QuestionError):
            move(result, area)


@pytest.mark.parametrize("kernel", BUNDLED)
def test_zones_hold_everything(kernel: str) -> None:
    source = open_source(f"bundled:{kernel}")
    result = source.map()
    zones = [zone for zone in result.machine.zones if zone.present]
    answers = [
        move(result, parse_area(f"zone:{zone.node}/{zone.name}", result.machine, result.pfn_end))
        for zone in zones
    ]
    assert sum(map(frames, answers)) == ledger(result).frames_present
    assert isinstance(source, Capture)
    for zone, answer in zip(zones, answers, strict=True):
        area = pages(zone.pfn_start, min(zone.pfn_end, result.pfn_end))
        again = move(source.parts(), area, answer.name)
        assert again == answer
        assert move(parts_of(result, extents=300), area, answer.name) == answer


def test_references_decide(tmp_path: Path) -> None:
    from dataclasses import replace

    plain = raw_map(tmp_path, [ANON] * 3)
    result = replace(
        plain,
        pfn_starts=np.arange(3, dtype=np.uint32),
        facts=np.zeros(3, np.uint16),
        references=np.array([0, 1, -1], np.int8),
    )
    answer = move(result, pages(0, 3))
    assert [(row.moves, int(row.first)) for row in answer.rows] == [
        (False, 1),
        (None, 2),
        (True, 0),
    ]
    assert not answer.notes
    assert answer.rows[0].offlining.certainty is Certainty.EXACT


@pytest.mark.parametrize(
    ("text", "area"),
    [
        ("0x10-0x20", (0x10, 0x20)),
        ("block:1", (32768, 65536)),
        ("zone:DMA", (1, 4096)),
        ("zone:0/DMA", (1, 4096)),
    ],
)
def test_areas(text: str, area: tuple[int, int]) -> None:
    machine = open_source("bundled:debian-7.2").machine
    assert parse_area(text, machine, 1 << 18) == pages(*area)


@pytest.mark.parametrize(
    "text", ["0x20-0x10", "0x10-0x10", "block:99", "zone:Movable9", "zone:7/DMA", "10-20", "-"]
)
def test_what_is_no_area(text: str) -> None:
    machine = open_source("bundled:debian-7.2").machine
    with pytest.raises(QuestionError):
        parse_area(text, machine, 1 << 16)


def test_a_machine_without_zones() -> None:
    with pytest.raises(QuestionError, match="0 zones"):
        parse_area("zone:Normal", Machine(), 100)


def test_a_block_without_room_elsewhere(tmp_path: Path) -> None:
    """Pages of an ordinary zone never go to Movable, those of Movable go anywhere."""
    words = np.zeros(4 * TILE, np.uint64)
    words[:TILE] = ANON
    words[TILE : TILE + 100] = KPF.BUDDY
    words[TILE + 100 : 2 * TILE] = KPF.SLAB
    words[2 * TILE : 3 * TILE] = ANON
    words[3 * TILE :] = KPF.BUDDY
    zones = {"Normal": (0, 100), "Movable": (2 * TILE, TILE)}
    text = "".join(
        f"Node 0, zone {name:>8}\n  pages free     {free}\n        min      0\n"
        f"        spanned  {2 * TILE}\n        present  {2 * TILE}\n        managed  {2 * TILE}\n"
        f"  start_pfn:           {start}\n"
        for name, (start, free) in zones.items()
    )
    ram = f"00000000-{(4 * TILE << 12) - 1:08x} : System RAM\n"
    source = tree(tmp_path, words, files={"proc/iomem": ram, "proc/zoneinfo": text})
    ordinary = move(source.map(), pages(0, TILE))
    assert (ordinary.frames_to_move, ordinary.room, ordinary.lacks_room) == (TILE, 100, True)
    assert ordinary.can_be_emptied is None
    movable = move(source.map(), pages(2 * TILE, 3 * TILE))
    assert (movable.room, movable.lacks_room) == (TILE + 100, False)

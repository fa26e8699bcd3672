"""Blocks counted against a walk over single frames, and what comes back without something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_worlds import ZONES
from worlds import tree

from memdesc.answers.blocks import BLOCK_SIZES, Blocks, blocks, gained_json
from memdesc.answers.without import gone_of, needs_whole_map
from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.map import parts as module
from memdesc.map.extents import MemoryMap
from memdesc.map.parts import parts_of
from memdesc.rules.move import by_offlining
from memdesc.rules.subject import Knowledge, Subject
from memdesc.sources.capture import Capture
from memdesc.sources.open import open_source
from memdesc.sources.source import ProcSource
from memdesc.types import TypeSet

BUNDLED = ["debian-6.1", "debian-6.12", "debian-7.2"]
ANON = KPF.ANON | KPF.LRU | KPF.UPTODATE | KPF.SWAPBACKED | KPF.MMAP
HUGE = ANON | KPF.THP


def world(folder: Path) -> ProcSource:
    """Six blocks of 2 MiB: free, anonymous, one slab page, slab and a page table, a huge
    page, and half a block of RAM."""
    words = np.zeros(6 * 512, np.uint64)
    words[:512] = KPF.BUDDY
    words[512:1024] = ANON
    words[1024:1536] = KPF.BUDDY
    words[1030] = KPF.SLAB
    words[1536:2048] = ANON
    words[1600:1603] = KPF.SLAB
    words[1700] = KPF.PGTABLE
    words[2048] = HUGE | KPF.COMPOUND_HEAD
    words[2049:2560] = HUGE | KPF.COMPOUND_TAIL
    words[2560:2816] = KPF.BUDDY
    ram = f"00000000-{(2816 << 12) - 1:08x} : System RAM\n"
    return tree(folder, words, files={"proc/iomem": ram})


def states(answer: Blocks) -> list[str]:
    names = ("is_free", "huge", "is_movable", "is_open", "is_blocked")
    found = np.stack([getattr(answer, name) for name in names], axis=1)
    assert (found.sum(axis=1) == 1).all(), "each block is in one state"
    return [names[row.argmax()] for row in found]


def test_a_small_world(tmp_path: Path) -> None:
    answer = blocks(world(tmp_path).map())
    assert states(answer) == ["is_free", "is_movable", "is_blocked", "is_blocked", "huge"]
    slab, table = answer.blockers
    assert (slab.name, slab.frames, slab.blocks, slab.alone, slab.single) == ("slab", 4, 2, 1, 1)
    assert (table.name, table.blocks, table.alone) == ("page table", 1, 0)
    first, second = answer.cheapest
    assert (first.pfn_start, first.in_the_way, first.movable) == (1024, 1, 0)
    assert (second.in_the_way, second.movable, second.names) == (4, 508, ("slab", "page table"))


def test_without(tmp_path: Path) -> None:
    source = world(tmp_path)
    plain = blocks(source.map())
    answer = blocks(source.map(), gone=gone_of(["slab"], source), without=["slab"])
    assert states(answer) == ["is_free", "is_movable", "is_free", "is_blocked", "huge"]
    gained = gained_json(answer, plain)
    assert (gained["blocks_free_gained"], gained["blocks_unblocked"]) == (1, 1)
    both = blocks(source.map(), gone=gone_of(["slab", "0x6a4"], source))
    assert states(both)[3] == "is_movable"
    # A frame stands for its whole folio.
    huge = blocks(source.map(), gone=gone_of(["0x900"], source))
    assert states(huge)[4] == "is_free"


def test_what_cannot_be_gone(tmp_path: Path) -> None:
    source = world(tmp_path)
    assert not needs_whole_map(["slab", "0x12"])
    for word in ("dentry", "pins", "process:1"):
        assert needs_whole_map([word])
        with pytest.raises(QuestionError):
            gone_of([word], source, source.map())


def test_without_a_process() -> None:
    source = open_source("bundled:debian-7.2")
    assert isinstance(source, Capture)
    result = source.map()
    attribution = source.attribution()
    pid = int(attribution.processes.pid[2])
    gone = gone_of([f"process:{pid}"], source, result)
    assert (gone.starts[1:] >= gone.ends[:-1]).all()
    frames = int((gone.ends - gone.starts).sum())
    index = attribution.process_index(pid)
    mine = attribution.process_of_mapping == index
    assert 0 < frames <= int(attribution.mappings.nr_pages[mine].sum())
    plain, answer = blocks(result), blocks(result, gone=gone)
    assert int(answer.counts[:, 0].sum()) > int(plain.counts[:, 0].sum())
    assert gained_json(answer, plain)["blocks_after_compaction_gained"] >= 0


def by_hand(result: MemoryMap, nr_pages: int) -> dict[int, list[int]]:
    """(free, movable, perhaps, in the way) of each block, frame by frame."""
    kernel = Knowledge(result.machine.behaviour, result.machine.sysctls)
    counts: dict[int, list[int]] = {}
    head = 0
    for extent in result.extents():
        flags = KPF(extent.fact.flags & (1 << 49) - 1)
        if flags & KPF.COMPOUND_HEAD:
            head = int(flags)
        if flags & KPF.COMPOUND_TAIL and result.machine.behaviour.tails_show_own_flags:
            flags = KPF(head)
        moves: set[bool] = set()
        for kind in extent.fact.types:
            ruling = by_offlining(Subject(kind, flags), kernel)
            for outcome in ruling.outcomes:
                held = outcome.obstacle.name == "REFERENCES"
                if not outcome.passing and not held:
                    moves.add(outcome.moves)
        is_free = extent.fact.types in (TypeSet.from_names(["free"]),)
        column = (
            0
            if is_free
            else {(True,): 1, (): 1, (False, True): 2, (False,): 3}[tuple(sorted(moves))]
        )
        for pfn in range(extent.pages.pfn_start, extent.pages.pfn_end):
            counts.setdefault(pfn // nr_pages, [0, 0, 0, 0])[column] += 1
    return counts


@pytest.mark.parametrize("kernel", BUNDLED)
def test_against_a_walk_over_frames(kernel: str) -> None:
    result = open_source(f"bundled:{kernel}").map()
    answer = blocks(result)
    counts = by_hand(result, 512)
    for start, row in zip(answer.pfn_starts.tolist(), answer.counts.tolist(), strict=True):
        assert row == counts[start // 512], hex(start)


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("kernel", BUNDLED)
def test_parts_give_the_same(kernel: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(f"bundled:{kernel}")
    assert isinstance(source, Capture)
    whole = blocks(source.map(), BLOCK_SIZES[size]).to_json()
    assert blocks(source.parts(), BLOCK_SIZES[size]).to_json() == whole
    if size == "2M":
        monkeypatch.setattr(module, "PART_FRAMES", 1 << 13)
        parts = list(parts_of(source.map(), extents=500))
        assert len(parts) > 3
        assert blocks(parts, BLOCK_SIZES[size]).to_json() == whole


def test_a_block_lies_in_one_zone(tmp_path: Path) -> None:
    words = np.full(1 << 14, KPF.BUDDY, np.uint64)
    source = tree(tmp_path, words, files={"proc/zoneinfo": ZONES})
    answer = blocks(source.map(), 1 << 25)  # 8192 frames, and the DMA zone ends at 4096
    assert answer.pfn_starts.tolist() == [8192]


def test_sizes_that_are_none(tmp_path: Path) -> None:
    result = world(tmp_path).map()
    for size in (0, 3 << 20, 1 << 31, 100):
        with pytest.raises(QuestionError):
            blocks(result, size)

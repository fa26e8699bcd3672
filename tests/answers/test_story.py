"""One page's whole story: every rule asked with everything that is known of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from worlds import raw_map, tree

from memdesc.answers.places import parse_place
from memdesc.answers.story import Story, story_of, tell
from memdesc.answers.what import describe_page
from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.type_cells import Verdict
from memdesc.rules.failure import Consequence
from memdesc.sources.open import open_source
from memdesc.types import MemoryType, Pfn

ANON = KPF.ANON | KPF.LRU | KPF.UPTODATE | KPF.SWAPBACKED | KPF.MMAP


def test_a_row_has_every_answer(tmp_path: Path) -> None:
    source = tree(tmp_path, [int(KPF.PGTABLE)], release="7.2.13")
    story = tell(source, parse_place("0x0"))
    assert isinstance(story, Story)
    row = story.to_json()
    assert (row["pfn"], row["type"]) == (0, "page_table")
    assert row["hard"]["verdicts"] == ["ignored"]
    assert row["soft"]["verdicts"] == ["EIO"]
    assert row["compaction"]["moves"] == row["offlining"]["moves"] == [False]
    assert row["dirtied"]["outcomes"][0]["tells"] == "must not"
    outcome = row["hard"]["outcomes"][0]
    assert (outcome["injected"], outcome["on_hardware"]) == ("unhandled", "machine_lost")


def test_a_tail_of_6_1_is_judged_by_its_head(tmp_path: Path) -> None:
    """Its own word says neither that it is swap-backed nor that it is on an LRU list."""
    head = int(ANON | KPF.THP | KPF.COMPOUND_HEAD)
    tail = int(KPF.MMAP | KPF.ANON | KPF.THP | KPF.COMPOUND_TAIL)
    result = raw_map(tmp_path, [head, *[tail] * 511], release="6.1.192")
    story = story_of(describe_page(result, Pfn(7)), result.machine)
    first = story.hard.outcomes[0]
    assert (first.verdict, first.message) == (Verdict.RECOVERED, "dirty LRU page")
    assert {out.verdict for out in story.hard.outcomes} == {Verdict.RECOVERED, Verdict.IGNORED}
    assert [one.moves for one in story.offlining.outcomes] == [True, False]


def test_held_buffers_hold_the_page(tmp_path: Path) -> None:
    word = int(KPF.LRU | KPF.UPTODATE | KPF.PRIVATE)
    result = raw_map(tmp_path, [word], release="7.2.13")
    page = describe_page(result, Pfn(0))
    held = story_of(page, result.machine, buffers=True)
    assert held.extra_references is True
    assert [one.moves for one in held.offlining.outcomes] == [False]
    open_story = story_of(page, result.machine)
    assert [one.moves for one in open_story.offlining.outcomes] == [True, False]


def test_who_would_die_and_of_what() -> None:
    source = open_source("bundled:debian-7.2")
    attribution = source.attribution()
    result = source.map()
    seen = {MemoryType.ANON: 0, MemoryType.FILE: 0}
    for run in np.linspace(0, len(attribution.mappings) - 1, 60).astype(int).tolist():
        pfn = int(attribution.mappings.pfn_start[run])
        kind = result.extent(result.index_of(pfn)).fact.types.only
        if kind not in seen:
            continue
        seen[kind] += 1
        story = tell(source, parse_place(f"{pfn:#x}"), attribution=attribution)
        assert isinstance(story, Story)
        pids = {row.process.pid for row in story.would_die or ()}
        owner = int(attribution.processes.pid[attribution.process_of_mapping[run]])
        kills = Consequence.KILLED_ON_TOUCH in {out.on_hardware for out in story.hard.outcomes}
        assert (owner in pids) == kills
        if kind is MemoryType.FILE:
            assert story.file == attribution.vma(int(attribution.mappings.vma[run])).name
        else:
            assert story.file is None
    assert all(seen.values())


def test_an_address_that_holds_no_page() -> None:
    source = open_source("bundled:debian-7.2")
    with pytest.raises(QuestionError):
        tell(source, parse_place("1:0x1000"))
    with pytest.raises(QuestionError):
        tell(source, parse_place("phys:0xfffffffff000"))

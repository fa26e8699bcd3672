"""A map in parts is the map; what parts say of folios is what the whole says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import raw_map

from memdesc.answers.block_counts import Gone
from memdesc.answers.blocks import blocks
from memdesc.answers.exposure import failure_by_range
from memdesc.answers.move import move
from memdesc.kernels.kpageflags import word_of
from memdesc.map import parts as module
from memdesc.map.compound import compounds_of
from memdesc.map.extents import MemoryMap
from memdesc.map.parts import facts_of_folios, orders_of, parts_of
from memdesc.sources.open import open_source
from memdesc.types import Pfn, PfnRange

HEAD, TAIL, BUDDY = word_of(["HEAD"]), word_of(["TAIL"]), word_of(["BUDDY"])
WORDS = [0, HEAD, TAIL, BUDDY, HEAD | BUDDY, TAIL | BUDDY, word_of(["SLAB"])]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(WORDS), st.integers(1, 9)), min_size=1, max_size=30))
def test_orders_are_those_of_compounds(runs: list[tuple[int, int]]) -> None:
    words = [word for word, length in runs for _ in range(length)]
    with TemporaryDirectory() as folder:
        result = raw_map(Path(folder), words)
    assert orders_of(result).tolist() == compounds_of(result).order_of_extent.tolist()


@pytest.mark.parametrize("kernel", ["debian-6.1", "debian-7.2"])
def test_orders_of_a_real_machine(kernel: str) -> None:
    result = open_source(f"bundled:{kernel}").map()
    assert np.array_equal(orders_of(result), compounds_of(result).order_of_extent)


@pytest.mark.parametrize("frames", [1, 1000, 1 << 12])
def test_parts_are_the_map(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_FRAMES", 1 << 10)
    result = open_source("bundled:debian-7.2").map()
    parts = list(parts_of(result, extents=frames))
    assert len(parts) > 1
    assert parts[0].pfn_start == 0
    assert parts[-1].pfn_end == result.pfn_end
    for before, after in pairwise(parts):
        assert before.pfn_end == after.pfn_start
        assert after.pfn_start % (1 << 10) == 0
    sums = sum(part.totals.pages for part in parts)
    assert np.array_equal(sums, result.totals.pages)
    for part in parts[:: max(1, len(parts) // 8)]:
        part.check()
        words = result.words(part.pfn_start, part.pfn_end)
        assert np.array_equal(part.words(part.pfn_start, part.pfn_end), words)


def test_tails_of_6_1_are_judged_by_their_heads() -> None:
    result = open_source("bundled:debian-6.1").map()
    facts = facts_of_folios(result)
    table = result.table
    changed = facts != result.facts
    assert changed.any()
    assert table.with_flags(TAIL)[result.facts[changed]].all()
    assert np.array_equal(table.types[facts], table.types[result.facts])
    lru = table.with_flags(word_of(["LRU"]))
    assert lru[facts].sum() > lru[result.facts].sum()


def test_later_tails_speak_for_themselves() -> None:
    result = open_source("bundled:debian-7.2").map()
    assert facts_of_folios(result) is result.facts


# --- joined for a question ---------------------------------------------------------------

Ask = Callable[[MemoryMap], Any]
QUESTIONS: dict[str, Ask] = {
    "blocks": lambda result: blocks(result, cheapest=30).to_json(),
    "blocks of 64K": lambda result: blocks(result, 1 << 16).to_json(),
    "blocks without": lambda result: blocks(
        result, gone=Gone(starts=np.array([77, 5000]), ends=np.array([1500, 5001]))
    ).to_json(),
    "move": lambda result: move(result, PfnRange(Pfn(5), Pfn(result.pfn_end - 3))).to_json(),
    "failure": lambda result: failure_by_range(result, 1 << 22).to_json(),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("kernel", ["debian-6.1", "debian-6.12", "debian-7.2"])
@pytest.mark.parametrize("held", [False, True], ids=["proc", "held"])
def test_joining_changes_no_answer(
    kernel: str, question: str, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = open_source(f"bundled:{kernel}").map()
    if held:
        chance = np.random.default_rng(1)
        references = chance.integers(-1, 2, len(result)).astype(np.int8)
        owners = chance.integers(0, 3, len(result)).astype(np.uint32)
        result = replace(
            result, references=references, owners=owners, owner_names=("", "dentry", "ext4")
        )
    joined = QUESTIONS[question](result)
    monkeypatch.setattr(module.Joiner, "join", lambda joiner, part: part)
    assert QUESTIONS[question](result) == joined


def test_joining_joins_what_is_alike() -> None:
    """Frames of two facts and one answer are one extent; compound pages are left alone."""
    result = open_source("bundled:debian-7.2").map()
    alike = np.zeros((3, len(result.table)), np.int64)
    joined = module.Joiner(result, alike).join(result)
    joined.check()
    compound = result.table.with_flags(HEAD | TAIL)
    assert compound[result.facts].sum() == compound[joined.facts].sum()
    assert len(joined) < len(result)
    plain = ~compound[joined.facts]
    borders = np.isin(joined.pfn_starts, np.array(result.regions.starts, np.uint64))
    assert not (plain[1:] & plain[:-1] & ~borders[1:]).any()

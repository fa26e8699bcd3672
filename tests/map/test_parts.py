"""A map in parts is the map; what parts say of folios is what the whole says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import raw_map

from memdesc.kernels.kpageflags import word_of
from memdesc.map import parts as module
from memdesc.map.compound import compounds_of
from memdesc.map.parts import facts_of_folios, orders_of, parts_of
from memdesc.sources.open import open_source

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

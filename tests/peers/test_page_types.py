"""Our counts by raw flags against the kernel's own page-types, on the same recorded files.

page-types is built from Debian's kernel sources. It shows the same words with a few bits
re-expressed (`tools/page_types.py:page_types_word`), and refuses words with unnamed bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tools.page_types import (
    PageTypesUnavailable,
    build,
    counts_by_flags,
    default_cache,
    page_types_word,
)

from memdesc.answers.ledger import ledger
from memdesc.sources.source import RawSource

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def page_types() -> Path:
    try:
        return build(default_cache())
    except PageTypesUnavailable as reason:
        pytest.skip(f"page-types cannot be built here: {reason}")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = np.load(DATA / "lazy-6.18.npz")
    path = tmp_path_factory.mktemp("recorded") / "kpageflags"
    np.repeat(runs["words"][runs["codes"]], runs["lengths"]).tofile(path)
    return path


def ours(path: Path, *, raw: bool) -> dict[int, int]:
    counts: dict[int, int] = {}
    book = ledger(RawSource(path, release="6.18.44").totals(), "flags")
    for row in (*book.rows, *book.not_present):
        assert isinstance(row.part_key, int)
        word = page_types_word(row.part_key, raw)
        counts[word] = counts.get(word, 0) + row.frames
    return counts


@pytest.mark.peer
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "plain"])
def test_counts_of_a_real_machine_are_equal(page_types: Path, recorded: Path, raw: bool) -> None:
    assert ours(recorded, raw=raw) == counts_by_flags(page_types, recorded, raw=raw)


@pytest.mark.peer
def test_counts_of_random_words_are_equal(page_types: Path, tmp_path: Path) -> None:
    named = sum(1 << bit for bit in [*range(27), *range(32, 39), 41])
    random = np.random.default_rng(7)
    words = random.integers(0, 1 << 42, 3000, np.uint64) & np.uint64(named)
    path = tmp_path / "random"
    np.repeat(words, random.integers(1, 50, words.size)).tofile(path)
    assert ours(path, raw=True) == counts_by_flags(page_types, path, raw=True)

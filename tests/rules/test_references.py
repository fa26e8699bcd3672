"""References beyond the known holders: by hand, and all kinds of folios at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.rules.references import FolioCounts, holds_extra, is_counted, is_held
from memdesc.types import MemoryType

T = MemoryType


@pytest.mark.parametrize(
    ("kind", "refcount", "mapcount", "nr_pages", "private", "extra"),
    [
        (T.ANON, 1, 1, 1, False, False),
        (T.ANON, 2, 1, 1, False, True),  # in a pipe
        (T.ANON, 1025, 1, 1, False, True),  # pinned: GUP_PIN_COUNTING_BIAS more
        (T.ANON, 512, 512, 512, False, False),  # a huge page mapped by its frames
        (T.KSM, 64, 64, 1, False, False),
        (T.FILE, 1, 0, 1, False, False),
        (T.FILE, 2, 0, 1, True, False),  # buffers
        (T.FILE, 3, 0, 1, True, True),
        (T.FILE, 20, 3, 16, True, False),
        (T.SHMEM, 512, 0, 512, False, False),
        (T.SWAP_CACHE, 2, 1, 1, False, False),
        (T.SWAP_CACHE, 3, 1, 1, False, True),
    ],
)
def test_by_hand(
    kind: MemoryType, refcount: int, mapcount: int, nr_pages: int, private: bool, extra: bool
) -> None:
    assert extra is holds_extra(
        kind,
        refcount=refcount,
        mapcount=mapcount,
        nr_pages=nr_pages,
        private=private,
        on_lru=True,
    )


def test_a_batch_is_not_held_against_a_page() -> None:
    """A page on its way to an LRU list is held once by its processor's batch."""
    for count, on_lru, extra in ((2, False, False), (3, False, True), (2, True, True)):
        assert extra is holds_extra(
            T.ANON, refcount=count, mapcount=1, nr_pages=1, private=False, on_lru=on_lru
        )


def test_counts_of_the_kernels_own_memory_mean_nothing() -> None:
    for kind in (T.SLAB, T.PAGE_TABLE, T.FREE, T.DRIVER_MAPPED, T.HUGETLB):
        assert not is_counted(kind)
        assert (
            holds_extra(kind, refcount=9, mapcount=0, nr_pages=1, private=False, on_lru=False)
            is None
        )


folios = st.tuples(
    st.sampled_from([T.ANON, T.FILE, T.SWAP_CACHE]),
    st.integers(0, 3000),
    st.integers(0, 600),
    st.sampled_from([1, 16, 512]),
    st.booleans(),
    st.booleans(),
)


@given(st.lists(folios, min_size=1, max_size=20))
def test_a_column_is_its_rows(rows: list[tuple[MemoryType, int, int, int, bool, bool]]) -> None:
    kinds, refcounts, mapcounts, nr_pages, private, on_lru = zip(*rows, strict=True)
    held = is_held(
        FolioCounts(
            np.array(refcounts),
            np.array(mapcounts),
            np.array(nr_pages),
            np.array([kind is not T.ANON for kind in kinds]),
            np.array(private),
            np.array(on_lru),
        )
    )
    assert held.tolist() == [
        holds_extra(kind, refcount=r, mapcount=m, nr_pages=n, private=p, on_lru=lru)
        for kind, r, m, n, p, lru in rows
    ]

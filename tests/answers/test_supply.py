"""How many blocks can be had: small zones whose answer is counted by hand.

What real kernels gave is in tests/checks/test_blocks_got.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memdesc.answers.block_counts import BlockCounts, Names
from memdesc.answers.supply import Supply, supply_of
from memdesc.kernels.migration import MoveBehaviour
from memdesc.map.machine import Zone

SIZE = 512
BEHAVIOUR = MoveBehaviour(
    compaction_skips_compound=False,
    dirty_without_op_stays=False,
    cache_dropped_by_faults=(0.0, 0.5),
    cache_dropped_by_pool=(0.5, 1.0),
)


def supply(
    rows: list[tuple[int, int, int, int]],
    *,
    droppable: list[int] | None = None,
    dirty: list[int] | None = None,
    unused: list[int] | None = None,
    huge: list[bool] | None = None,
    **marks: Any,
) -> Supply:
    """Of one zone; a row has a block's frames free, movable, perhaps movable, in the way."""
    frames = np.array(rows, np.int64)
    zeros = np.zeros(len(rows), np.int64)
    counts = BlockCounts(
        names=Names(("",), np.zeros(0, np.uint64), np.zeros(0, np.int64)),
        nr_pages=SIZE,
        first_block=0,
        frames=frames,
        whole=np.ones(len(rows), np.bool_),
        huge=np.zeros(len(rows), np.bool_) if huge is None else np.array(huge),
        droppable=zeros if droppable is None else np.array(droppable),
        dirty=zeros if dirty is None else np.array(dirty),
        unused=zeros if unused is None else np.array(unused),
        zones=zeros,
        by_name=np.zeros((0, 5), np.int64),
        cheap=(),
    )
    spanned = len(rows) * SIZE
    zone = Zone(0, "Normal", 0, spanned, spanned, spanned, int(frames[:, 0].sum()), 0)
    zone = Zone(
        **{
            **{name: getattr(zone, name) for name in Zone.__dataclass_fields__},
            **marks,
        }
    )
    return supply_of(counts, (zone,), BEHAVIOUR)


HALF = (SIZE // 2, SIZE // 2, 0, 0)


def test_half_full_blocks_give_half_of_them() -> None:
    found = supply([HALF] * 20)
    assert (found.now, found.compacted_max) == (0, 10)
    assert found.compacted_min == 8, "two blocks are left free when compaction stops"


def test_blocked_blocks_take_in_but_give_nothing() -> None:
    blocked = (SIZE - 1, 0, 0, 1)
    found = supply([HALF] * 4 + [blocked] * 8)
    assert found.compacted_max == 4
    assert supply([blocked] * 12).compacted_max == 0


def test_the_free_scanner_fills_what_could_have_been_emptied() -> None:
    """Blocked blocks below, movable ones above: the kernel empties from below."""
    blocked = (SIZE // 2, SIZE // 2 - 1, 0, 1)
    found = supply([blocked] * 10 + [HALF] * 10)
    assert found.compacted_max == 10
    assert found.compacted_min == 0
    assert supply([HALF] * 10 + [blocked] * 10).compacted_min == 8


def test_marks_keep_blocks_back() -> None:
    free = [(SIZE, 0, 0, 0)] * 10
    assert supply(free).now == 10
    assert supply(free, wmark_min=3 * SIZE, reserve=SIZE).now == 6
    assert supply(free, wmark_min=100 * SIZE).now == 0


def test_page_cache_counts_for_those_who_have_it_dropped() -> None:
    rows = [(SIZE // 2, SIZE // 2, 0, 0)] * 20
    found = supply(rows, droppable=[SIZE // 4] * 20)
    assert found.compacted_max == 10
    assert found.faulted_max == 12
    assert found.reclaimed_max == 15
    assert found.faulted_min == found.compacted_min < found.reclaimed_min


def test_dirty_page_cache_is_dropped_at_most() -> None:
    """It has to be written first."""
    rows = [(SIZE // 2, SIZE // 2, 0, 0)] * 20
    found, clean = supply(rows, dirty=[SIZE // 4] * 20), supply(rows)
    assert found.reclaimed_max == 15
    assert clean.reclaimed_max == 10
    assert found.reclaimed_min == clean.reclaimed_min


def test_a_torn_huge_page_is_split_under_pressure() -> None:
    rows = [(0, SIZE, 0, 0)] * 4
    torn = supply(rows, huge=[True] * 4, unused=[SIZE // 2] * 4)
    assert (torn.now, torn.compacted_max, torn.reclaimed_max) == (0, 0, 2)
    whole = supply(rows, huge=[True] * 4)
    assert whole.reclaimed_max == 0


@pytest.mark.parametrize("maybe", [0, 1])
def test_what_perhaps_moves_widens_the_range(maybe: int) -> None:
    found = supply([(SIZE // 2, SIZE // 2 - maybe, maybe, 0)] * 20)
    assert (found.compacted_min > 0) == (maybe == 0)
    assert found.compacted_max == 10

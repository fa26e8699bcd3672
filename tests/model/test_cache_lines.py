"""The documented count of lines per operation is what the machine's own accesses come to."""

from __future__ import annotations

import numpy as np
import pytest

from memdesc.errors import QuestionError
from memdesc.model.cache_lines import Lines, Simulation, lines_of_allocation, lines_of_lookup
from memdesc.model.described import ALLOCATED, KIND_CODES, DescribedMachine
from memdesc.model.designs import DESIGNS, Design
from memdesc.model.operations import ALLOC, FREE, LOOKUP
from memdesc.model.slab_state import T_OPERATION, T_WORD
from memdesc.model.zones import Layout
from memdesc.types import MemoryType

KINDS = sorted(ALLOCATED, key=lambda kind: kind.value)


def lines_of(machine: DescribedMachine, code: int, **fields: int) -> Lines:
    machine.slabs.step(code, **fields)
    return Simulation().feed(machine.slabs.take_trace())


@pytest.mark.parametrize("design", DESIGNS.values(), ids=list(DESIGNS))
@pytest.mark.parametrize("order", [0, 1, 3, 9])
def test_allocating_freeing_and_looking_up(design: Design, order: int) -> None:
    machine = DescribedMachine(Layout.pc(64 << 20), design)
    for kind in KINDS:  # every cache has a slab, so that none is made below
        assert machine.alloc(kind) is not None
        assert machine.alloc(kind, 1) is not None
    machine.slabs.trace()
    for kind in KINDS:
        least, most = lines_of_allocation(design, kind, order)
        made = lines_of(machine, ALLOC, kind=KIND_CODES[kind], order=order)
        pfn = int(machine.slabs._one.result[0])
        assert pfn > 0
        assert not made.made_slabs[0]
        assert least <= made.distinct[0] <= most, kind
        counted = machine.refcount(pfn) is not None
        for offset in {0, (1 << order) - 1}:
            seen = lines_of(machine, LOOKUP, value=pfn, arg=offset)
            expected = lines_of_lookup(design, kind, order, tail=offset > 0)
            # What has no count is found to have none in the same lines.
            assert seen.distinct[0] == expected, (kind, counted)
        freed = lines_of(machine, FREE, value=pfn)
        assert least <= freed.distinct[0] <= most


def test_the_counts_that_the_documentation_names() -> None:
    today, eight = DESIGNS["today"], DESIGNS["8"]
    assert lines_of_allocation(today, MemoryType.ANON, 0) == (1, 1)
    assert lines_of_allocation(today, MemoryType.ANON, 9) == (512, 512)
    assert lines_of_allocation(eight, MemoryType.ANON, 0) == (3, 3)
    assert lines_of_allocation(eight, MemoryType.ANON, 9) == (64 + 2, 64 + 2)
    assert lines_of_allocation(eight, MemoryType.DRIVER, 3) == (1, 1)
    assert lines_of_allocation(eight, MemoryType.NET_POOL, 0) == (2, 3)
    assert lines_of_lookup(today, MemoryType.FILE, 4, tail=True) == 2
    assert lines_of_lookup(eight, MemoryType.FILE, 4, tail=True) == 2
    with pytest.raises(QuestionError):
        lines_of_lookup(eight, MemoryType.FILE, 0, tail=True)


def test_the_first_folio_also_pays_for_two_slabs() -> None:
    machine = DescribedMachine(Layout.pc(64 << 20), DESIGNS["8"])
    machine.slabs.trace()
    first = lines_of(machine, ALLOC, kind=KIND_CODES[MemoryType.FILE])
    assert first.made_slabs[0]
    # Its own three, a word and a descriptor for each of two slabs; words may share a line.
    assert 3 + 2 <= first.distinct[0] <= 3 + 4


def touches(*lines: int) -> np.ndarray:
    """One operation per line."""
    rows = [row for line in lines for row in ((0, 0, T_OPERATION), (line * 64, 8, T_WORD))]
    return np.array(rows, np.int64)


def test_the_cache_keeps_the_lines_used_last() -> None:
    cache = Simulation(8 * 64)  # one set of eight ways
    assert cache.feed(touches(*range(8))).misses.tolist() == [1] * 8
    assert cache.feed(touches(0, 8, 0, 1)).misses.tolist() == [0, 1, 0, 1]
    assert cache.feed(touches(0, 8, 1, 2)).misses.tolist() == [0, 0, 0, 1]
    for wrong in (0, 100, 3 * 8 * 64):
        with pytest.raises(QuestionError):
            Simulation(wrong)


def test_an_access_across_two_lines_counts_both_and_a_line_only_once() -> None:
    rows = [(0, 0, T_OPERATION), (60, 8, T_WORD), (64, 4, T_WORD), (0, 4, T_WORD)]
    seen = Simulation().feed(np.array(rows, np.int64))
    assert (seen.distinct.tolist(), seen.misses.tolist()) == ([2], [2])
    assert Simulation().feed(np.zeros((0, 3), np.int64)).distinct.size == 0

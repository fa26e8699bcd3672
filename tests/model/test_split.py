"""Splitting an allocation: each piece is described by itself, under every design."""

from __future__ import annotations

import pytest

from memdesc.errors import QuestionError
from memdesc.model.check_slab import check_described
from memdesc.model.described import DescribedMachine
from memdesc.model.designs import DESIGNS, MEMDESC_8, OVERLAYS, Design
from memdesc.model.zones import Layout
from memdesc.types import MemoryType

ORDER = 9


@pytest.mark.parametrize("kernel", ["6.1", "7.2"])
@pytest.mark.parametrize("design", DESIGNS.values(), ids=lambda design: design.id)
@pytest.mark.parametrize("kind", [MemoryType.ANON, MemoryType.DRIVER, MemoryType.PAGE_TABLE])
def test_pieces_are_described_and_freed_one_by_one(
    kind: MemoryType, design: Design, kernel: str
) -> None:
    machine = DescribedMachine(Layout.pc(64 << 20), design, kernel, cpus=1)
    free = machine.pages.counters()["nr_free_pages"]
    before = machine.metadata().descriptors
    pfn = machine.alloc(kind, ORDER)
    assert pfn is not None
    assert machine.split(pfn, 4)
    check_described(machine)
    assert machine.split(pfn)
    check_described(machine)
    if design.descriptor(kind, 0) is not None:
        pieces = 16 + 31
        assert machine.metadata().descriptors - before >= pieces
        assert len({machine.word(pfn + page) for page in range(16)}) == 16
        assert machine.word(pfn + 16) == machine.word(pfn + 31) != machine.word(pfn + 32)
    for piece in [*range(16), *range(16, 1 << ORDER, 16)]:
        machine.free(pfn + piece)
    check_described(machine)
    machine.pages.drain()
    held = machine.metadata().slab_bytes >> 12
    assert machine.pages.counters()["nr_free_pages"] + held >= free


def test_a_split_without_memory_changes_nothing() -> None:
    machine = DescribedMachine(Layout.pc(64 << 20), MEMDESC_8, "6.12", cpus=1)
    pfn = machine.alloc(MemoryType.ANON, ORDER)
    assert pfn is not None
    while machine.alloc(MemoryType.DRIVER) is not None:
        pass
    word = machine.word(pfn)
    assert not machine.split(pfn)
    check_described(machine)
    assert machine.word(pfn) == machine.word(pfn + 511) == word
    machine.free(pfn)
    check_described(machine)


@pytest.mark.parametrize("design", [OVERLAYS, MEMDESC_8], ids=lambda design: design.id)
def test_what_cannot_be_split(design: Design) -> None:
    machine = DescribedMachine(Layout.pc(64 << 20), design, "6.12", cpus=1)
    pfn = machine.alloc(MemoryType.ANON, 2)
    assert pfn is not None
    with pytest.raises(QuestionError, match="no allocation"):
        machine.split(pfn + 1)
    with pytest.raises(QuestionError, match="no allocation"):
        machine.split(pfn, 3)
    held = machine.get(pfn + 3)
    assert held is not None
    with pytest.raises(QuestionError, match="held"):
        machine.split(pfn)
    machine.put(held)
    assert machine.split(pfn, 2)
    assert machine.split(pfn)

"""From a frame to its descriptor while others free it and use its memory for something else.

A lookup reads the word, tries to take a reference, and reads the word again.  Here every kind of
reuse happens at every point between these steps.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memdesc.model.check_slab import check_described
from memdesc.model.compiled import array, compiled, pointers
from memdesc.model.described import DescribedMachine
from memdesc.model.descriptors import HELD, NOTHING, READ_WORD, lookup_step, try_get
from memdesc.model.designs import FOLIO_SMALL, MEMDESC_8, PAGE_16, PAGE_32, Design
from memdesc.model.slab_state import G_WAITING, NONE, SlabState
from memdesc.model.state import State
from memdesc.model.zones import Layout
from memdesc.plan import PlanKind
from memdesc.types import MemoryType, Pfn

FILE = int(PlanKind.FILE)


@compiled
def step(state: State, slabs: SlabState, pfn: int, stage: int, word: int) -> tuple[int, int]:
    return lookup_step(pointers(state), pointers(slabs), pfn, FILE, 0, stage, word)


@compiled
def hold(state: State, slabs: SlabState, address: int) -> bool:
    return try_get(pointers(state), pointers(slabs), address)


class World:
    """A machine with one file folio among others, which somebody looks up."""

    def __init__(self, design: Design, kernel: str) -> None:
        self.machine = DescribedMachine(Layout.pc(24 << 20), design, kernel)
        self.others = [self.alloc(MemoryType.FILE) for _ in range(3)]
        self.victim = self.alloc(MemoryType.FILE)
        self.address = self.address_of(self.victim)
        self.later: list[Pfn] = []

    def alloc(self, kind: MemoryType, order: int = 0) -> Pfn:
        pfn = self.machine.alloc(kind, order)
        assert pfn is not None
        return pfn

    def address_of(self, pfn: int) -> int:
        return (self.machine.word(pfn) & ~15) - 0xFFFF_8880_0000_0000

    def reuse(self, *kinds: MemoryType) -> None:
        # Somebody else may hold the folio at this moment: its user drops it then, as put does.
        self.machine.put(self.address)
        self.later += [self.alloc(kind) for kind in kinds]


def only_freed(world: World) -> None:
    world.reuse()


def same_frame_same_type(world: World) -> None:
    """The word comes out the same: what was looked up is a new folio at the old place."""
    world.reuse(MemoryType.FILE)


def same_frame_other_type(world: World) -> None:
    world.reuse(MemoryType.ZSMALLOC)


def same_descriptor_other_type(world: World) -> None:
    world.reuse(MemoryType.ANON)


def same_descriptor_other_frame(world: World) -> None:
    """The descriptor describes a file folio again, but of other frames."""
    world.reuse(MemoryType.SECRETMEM)


def twice(world: World) -> None:
    world.reuse(MemoryType.SECRETMEM, MemoryType.FILE)


def its_slab_goes_back(world: World) -> None:
    """The descriptor's slab becomes empty and is given back, if readers let it."""
    world.reuse()
    for other in world.others:
        world.machine.free(other)
    world.others.clear()
    world.machine.slabs.shrink(world.machine.descriptor_caches[FOLIO_SMALL])
    world.later += [world.alloc(MemoryType.DRIVER) for _ in range(40)]


REUSES = [
    *(only_freed, same_frame_same_type, same_frame_other_type, same_descriptor_other_type),
    *(same_descriptor_other_frame, twice, its_slab_goes_back),
]


@pytest.mark.parametrize("design", [PAGE_32, PAGE_16, MEMDESC_8], ids=lambda each: each.id)
@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
@pytest.mark.parametrize("reuse", REUSES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_a_lookup_never_holds_anything_else(
    reuse: Callable[[World], None], before: int, kernel: str, design: Design
) -> None:
    """`before`: how many steps of the lookup go first."""
    world = World(design, kernel)
    machine = world.machine
    stage, word, steps = READ_WORD, 0, 0
    with machine.slabs.reading():
        while stage not in (HELD, NOTHING):
            if steps == before:
                reuse(world)
            steps += 1
            stage, word = step(machine.pages.state, machine.slabs.state, world.victim, stage, word)
        if steps == before:
            reuse(world)
        if stage == HELD:
            # What is held describes this very frame, and it is a file's.
            assert machine.refcount(world.victim) is not None
            assert machine.word(world.victim) & 15 == FILE
            assert (word & ~15) - (0xFFFF_8880_0000_0000 - (1 << 64)) == world.address_of(
                world.victim
            )
            machine.put(world.address_of(world.victim))
        else:
            assert reuse is not same_frame_same_type or before > 0
    for pfn in (*world.others, *world.later):
        count = machine.refcount(pfn)
        assert count in (1, None), "a reference was left behind"
    check_described(machine)
    assert array(machine.slabs.state.cell)[G_WAITING] == NONE


def test_without_readers_the_slab_of_a_descriptor_does_go_back() -> None:
    """Why a reader's section is needed: its memory is no descriptor any more."""
    world = World(MEMDESC_8, "6.12")
    address = world.address
    its_slab_goes_back(world)
    assert world.machine.word(address >> 12) & 15 != int(PlanKind.SLAB)
    assert not hold(world.machine.pages.state, world.machine.slabs.state, address)

    world = World(MEMDESC_8, "6.12")
    with world.machine.slabs.reading():
        its_slab_goes_back(world)
        assert world.machine.word(world.address >> 12) & 15 == int(PlanKind.SLAB)
        assert array(world.machine.slabs.state.cell)[G_WAITING] != NONE
        check_described(world.machine)
    assert world.machine.word(world.address >> 12) & 15 != int(PlanKind.SLAB)
    check_described(world.machine)


def test_a_reference_keeps_frames_and_descriptor() -> None:
    world = World(MEMDESC_8, "6.12")
    reference = world.machine.get(world.victim)
    assert reference == world.address
    assert world.machine.put(reference) == 1
    assert world.machine.get(world.alloc(MemoryType.DRIVER)) is None

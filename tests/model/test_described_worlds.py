"""Every sequence of operations, to a depth, in a world of twelve frames.

So little memory that most sequences run out of it, with descriptors, their slabs, or the slabs of
those half-way through.
"""

from __future__ import annotations

import pytest
from model.worlds import NO_MARKS, rules_of

from memdesc.model.check_slab import check_described
from memdesc.model.compiled import array
from memdesc.model.described import DescribedMachine
from memdesc.model.designs import DESIGNS, MEMDESC_8, OVERLAYS, PAGE_32, Design
from memdesc.model.slab_state import SlabState
from memdesc.model.zones import Layout, ZoneLayout
from memdesc.types import MemoryType

FRAMES, DEPTH = 12, 4
ACTIONS = ("anon", "file pair", "object", "free", "shrink", "fail")


class World:
    """A machine that can be put back to what it was."""

    def __init__(self, design: Design, kernel: str) -> None:
        layout = Layout(
            (ZoneLayout("Normal", 0, 0, FRAMES),), grouping=True, marks=(NO_MARKS,), thp=False
        )
        rules = rules_of(kernel, max_order=2, pageblock_order=2)
        self.machine = DescribedMachine(layout, design, rules, 1)
        self.cache = self.machine.slabs.create("objects", 2048)
        self.live: list[int] = []
        self.objects: list[int] = []
        self.failures = 0

    def save(self) -> tuple[list[object], list[object], list[int], list[int]]:
        pages, slabs = self.machine.pages.state, self.machine.slabs.state
        return (
            [array(each).copy() for each in pages],
            [array(each).copy() for each in slabs],
            self.live.copy(),
            self.objects.copy(),
        )

    def restore(self, saved: tuple[list[object], list[object], list[int], list[int]]) -> None:
        pages, slabs, live, objects = saved
        for column, content in zip(self.machine.pages.state, pages, strict=True):
            array(column)[:] = content
        self.machine.slabs.state = SlabState(*(each.copy() for each in slabs))  # type: ignore[attr-defined]
        self.live, self.objects = live.copy(), objects.copy()

    def act(self, action: str) -> None:
        machine = self.machine
        kinds = {"anon": (MemoryType.ANON, 0), "file pair": (MemoryType.FILE, 1)}
        if action in kinds:
            pfn = machine.alloc(*kinds[action])
            if pfn is None:
                self.failures += 1
            else:
                self.live.append(pfn)
        elif action == "object":
            address = machine.slabs.alloc(self.cache)
            if address is None:
                self.failures += 1
            else:
                self.objects.append(address)
        elif action == "shrink":
            for cache in machine.slabs.caches:
                machine.slabs.shrink(cache)
        elif action == "fail":
            machine.pages.fail_after(1)
        elif self.live:
            machine.free(self.live.pop(0))
        elif self.objects:
            machine.slabs.free(self.objects.pop())


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"])
@pytest.mark.parametrize("design", [MEMDESC_8, PAGE_32, OVERLAYS], ids=lambda each: each.id)
def test_every_sequence_leaves_a_whole_world(design: Design, kernel: str) -> None:
    world = World(design, kernel)
    visited = 0

    def walk(depth: int) -> None:
        nonlocal visited
        check_described(world.machine)
        visited += 1
        if not depth:
            return
        saved = world.save()
        for action in ACTIONS:
            world.act(action)
            walk(depth - 1)
            world.restore(saved)

    depth = DEPTH if design is MEMDESC_8 and kernel == "6.12" else DEPTH - 1
    walk(depth)
    assert visited == sum(len(ACTIONS) ** n for n in range(depth + 1))
    assert world.failures > 0
    assert world.machine.design in DESIGNS.values()

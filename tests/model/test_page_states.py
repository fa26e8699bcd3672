"""Random sequences of every operation, and all short ones, with every invariant after each step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model.worlds import KERNELS, columns, small, tiny

from memdesc.errors import QuestionError
from memdesc.model import state as s
from memdesc.model.batch import Op, operations
from memdesc.model.check import check
from memdesc.model.compiled import array
from memdesc.model.machine import GFP, Machine

REQUESTS = (
    GFP.KERNEL,
    GFP.HIGHUSER_MOVABLE,
    GFP.KERNEL | GFP.RECLAIMABLE,
    GFP.ATOMIC,
    GFP.NOWAIT,
    GFP.DMA32,
    GFP.KERNEL | GFP.MEMALLOC,
    GFP.TRANSHUGE_LIGHT,
)
cpus = st.integers(0, 1)


class PageAllocator(RuleBasedStateMachine):
    """What is allocated is kept here; frames never overlap, and the machine stays whole."""

    machine: Machine
    live: dict[int, int]

    @initialize(kernel=st.sampled_from(KERNELS))
    def boot(self, kernel: str) -> None:
        self.machine = small(kernel)
        self.live = {}

    @rule(order=st.integers(0, 7), gfp=st.sampled_from(REQUESTS), cpu=cpus)
    def alloc(self, order: int, gfp: int, cpu: int) -> None:
        pfn = self.machine.alloc(order, gfp, cpu)
        if pfn is not None:
            assert pfn % (1 << order) == 0
            self.live[pfn] = order

    @rule(order=st.integers(0, 3), gfp=st.sampled_from(REQUESTS), count=st.integers(2, 200))
    def alloc_many(self, order: int, gfp: int, count: int) -> None:
        batch = operations([Op.ALLOC] * count, order=order, flags=int(gfp))
        for pfn in self.machine.run(batch).tolist():
            if pfn >= 0:
                self.live[pfn] = order

    @precondition(lambda self: self.live)
    @rule(data=st.data(), cpu=cpus)
    def free(self, data: st.DataObject, cpu: int) -> None:
        pfn = data.draw(st.sampled_from(sorted(self.live)))
        self.machine.free(pfn, self.live.pop(pfn), cpu)

    @precondition(lambda self: len(self.live) > 1)
    @rule(data=st.data(), cpu=cpus)
    def free_many(self, data: st.DataObject, cpu: int) -> None:
        step = data.draw(st.integers(1, 4))
        for pfn in sorted(self.live)[::step]:
            self.machine.free(pfn, self.live.pop(pfn), cpu)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def split(self, data: st.DataObject) -> None:
        pfn = data.draw(st.sampled_from(sorted(self.live)))
        order = self.live.pop(pfn)
        new = data.draw(st.integers(0, order))
        self.machine.split(pfn, new)
        self.live.update({pfn + at: new for at in range(0, 1 << order, 1 << new)})

    @precondition(lambda self: self.live)
    @rule(data=st.data(), movable=st.booleans())
    def mark(self, data: st.DataObject, movable: bool) -> None:
        self.machine.mark_movable(data.draw(st.sampled_from(sorted(self.live))), movable)

    @rule(pfn=st.integers(0, 511), order=st.integers(0, 6))
    def take(self, pfn: int, order: int) -> None:
        pfn &= -(1 << order)
        if self.machine.take(pfn, order):
            self.live[pfn] = order

    @rule(cpu=st.sampled_from([None, 0, 1]))
    def drain(self, cpu: int | None) -> None:
        self.machine.drain(cpu)

    @rule(cpu=cpus)
    def decay(self, cpu: int) -> None:
        self.machine.decay(cpu)

    @rule(block=st.integers(0, 31), migratetype=st.integers(0, 2))
    def isolate_or_not(self, block: int, migratetype: int) -> None:
        isolated = self.machine.state.block[block] == s.ISOLATE
        try:
            if isolated:
                self.machine.unisolate(block, migratetype)
            else:
                self.machine.isolate(block)
        except QuestionError:
            assert block == 0, "only the pageblock that begins before its zone is refused"

    @rule(zone=st.integers(0, 1), active=st.booleans())
    def reclaim(self, zone: int, active: bool) -> None:
        self.machine.set_reclaim(zone, active)

    @rule(after=st.integers(0, 3))
    def fail(self, after: int) -> None:
        self.machine.fail_after(after)

    @invariant()
    def whole(self) -> None:
        if not hasattr(self, "machine"):
            return
        check(self.machine)
        used = (s.USED, s.USED_MOVABLE)
        frame = bytes(array(self.machine.state.frame))
        heads = {p: frame[p] & s.ORDER_MASK for p in range(512) if frame[p] & ~s.ORDER_MASK in used}
        assert heads == self.live

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        for pfn, order in self.live.items():
            self.machine.free(pfn, order)
        for block in range(32):
            if self.machine.state.block[block] == s.ISOLATE:
                self.machine.unisolate(block)
        self.machine.drain()
        check(self.machine)
        assert self.machine.counters()["nr_free_pages"] == self.machine.layout.managed


TestPageAllocator = PageAllocator.TestCase
TestPageAllocator.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_short_sequence_keeps_a_tiny_world_whole(kernel: str) -> None:
    """16 frames, two orders, all sequences of operations, as deep as 2500 steps go."""
    moves = (
        (Op.ALLOC, 0, int(GFP.KERNEL), 0),
        (Op.ALLOC, 0, int(GFP.HIGHUSER_MOVABLE), 1),
        (Op.ALLOC, 1, int(GFP.KERNEL), 2),
        (Op.ALLOC, 1, int(GFP.HIGHUSER_MOVABLE), 3),
        (Op.FREE_SLOT, 0, 0, 0),
        (Op.FREE_SLOT, 0, 0, 1),
        (Op.FREE_SLOT, 0, 0, 2),
        (Op.DRAIN_ALL, 0, 0, 0),
    )
    start = tiny(kernel)
    seen: set[bytes] = set()
    frontier = [()]
    done = 0
    for _ in range(6):
        following = []
        for sequence in frontier:
            for move in range(len(moves)):
                longer = (*sequence, move)
                machine = _replayed(start, [moves[m] for m in longer])
                mark = b"".join(c.tobytes() for c in columns(machine).values())
                done += 1
                if mark in seen:  # the same world, whose future was looked at
                    continue
                seen.add(mark)
                check(machine)
                following.append(longer)
        frontier = following
        if done > 2500:
            break
    assert done > 500


def _replayed(start: Machine, moves: list[tuple[Op, int, int, int]]) -> Machine:
    machine = object.__new__(Machine)
    machine.rules, machine.layout, machine.notes = start.rules, start.layout, ()
    machine.state = type(start.state)(*columns(start).values())
    codes, orders, flags, slots = zip(*moves, strict=True)
    # A slot that is filled again would lose its block: the first one is kept by the sequence.
    batch = operations(codes, order=orders, flags=flags, argument=slots, slots=4)
    machine.run(batch)
    return machine


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32), kernel=st.sampled_from(KERNELS))
def test_long_random_runs_end_where_they_began(seed: int, kernel: str) -> None:
    rng = np.random.default_rng(seed)
    machine = small(kernel)
    n, slots = 4000, 150
    code = rng.choice([Op.ALLOC, Op.FREE_SLOT, Op.DRAIN, Op.DECAY], n, p=[0.48, 0.5, 0.01, 0.01])
    slot = rng.integers(0, slots, n)
    # Only an empty slot is allocated into.
    held: set[int] = set()
    for i, (what, where) in enumerate(zip(code.tolist(), slot.tolist(), strict=True)):
        if what == Op.ALLOC and where in held:
            code[i] = Op.FREE_SLOT
            held.discard(where)
        elif what == Op.ALLOC:
            held.add(where)
        elif what == Op.FREE_SLOT:
            held.discard(where)
    flags = rng.choice([int(gfp) for gfp in REQUESTS], n)
    order = rng.choice([0, 0, 0, 1, 2, 3, 4, 5, 6], n)
    batch = operations(
        code, order=order, flags=flags, cpu=rng.integers(0, 2, n), argument=slot, slots=slots
    )
    for first in range(0, n, 500):
        machine.run(batch, first, first + 500)
        check(machine)
    end = operations([Op.FREE_SLOT] * slots, argument=np.arange(slots))
    machine.run(end._replace(slots=batch.slots))
    machine.drain()
    check(machine)
    assert machine.counters()["nr_free_pages"] == machine.layout.managed


@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_may_run_out_at_any_allocation(kernel: str) -> None:
    orders = [0, 3, 0, 4, 6, 1, 0, 2, 5, 0, 0, 4]
    whole = small(kernel).counters()["nr_free_pages"]
    for n in range(1, len(orders) + 1):
        machine = small(kernel)
        machine.fail_after(n)
        got = [machine.alloc(order, REQUESTS[order % 4]) for order in orders]
        assert [i for i, pfn in enumerate(got) if pfn is None] == [n - 1]
        check(machine)
        for pfn in got:
            if pfn is not None:
                machine.free(pfn)
        machine.drain()
        check(machine)
        assert machine.counters()["nr_free_pages"] == whole

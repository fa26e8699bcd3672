"""The machine: what Python holds of the model.

>>> machine = Machine(Layout.pc(64 << 20), cpus=1, memmap_bytes_per_frame=0)
>>> pfn = machine.alloc(gfp=GFP.HIGHUSER_MOVABLE)
>>> machine.free(pfn)
>>> machine.counters()["pgfree"]
1

Single calls are for asking and for tests; what is timed goes through `run`, which does millions
of operations in one call.  Addresses, lists and counters are those of the kernel named, as far as
it does nothing else meanwhile: there is no reclaim, no compaction, and no other CPU's timing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.kernels.allocator import MIGRATETYPES, AllocatorRules, allocator_rules
from memdesc.kernels.gfp import GFP
from memdesc.kernels.release import KernelRelease
from memdesc.model import state as s
from memdesc.model.batch import Op, Operations, operations, run_batch
from memdesc.model.boot import empty_state, free_range, set_marks
from memdesc.model.compiled import array
from memdesc.model.counters import COUNTERS, EVENTS, LOG_COUNT, LOG_LOST, LOG_ROWS
from memdesc.model.state import State
from memdesc.model.texts import buddyinfo, pagetypeinfo, zoneinfo
from memdesc.model.zones import Layout, Ranges, ZoneLayout
from memdesc.types import PAGE_SIZE_BYTES, Pfn

if TYPE_CHECKING:
    from memdesc.map.extents import MemoryMap

__all__ = ["GFP", "Event", "Layout", "Machine", "ZoneLayout"]


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the event log: a rule that fired."""

    step: int
    """Number of the operation in its batch."""
    code: int
    zone: str
    pfn: int
    """-1 where the rule is about no frame."""
    details: tuple[int, int, int]

    def __str__(self) -> str:
        """A sentence, as "fallback claimed: UNMOVABLE <- MOVABLE, pageblock 17, zone DMA32"."""
        what, (a, b, c) = EVENTS[self.code], self.details
        if what.startswith(("fallback", "pageblock")) and c < len(MIGRATETYPES):
            types = f"{MIGRATETYPES[c].upper()} <- {MIGRATETYPES[b].upper()}"
            return f"{what}: {types}, pageblock {a}, zone {self.zone}"
        if what.startswith("per-CPU list "):
            return f"{what}: {b} {'blocks' if self.code == 0 else 'frames'}, zone {self.zone}"
        if what == "watermark boosted":
            return f"{what}: to {a} frames, zone {self.zone}"
        if what == "failed":
            return f"{what}: order {a}, request flags {b:#x}"
        return f"{what}: zone {self.zone}"


class Machine:
    """Memory of a layout under one kernel's page allocator, as after boot.

    `kernel`: a release text or the rules themselves. `cpu_nodes`: node of each CPU; by default
    CPUs are dealt out to the nodes in turn. The memory map, `memmap_bytes_per_frame` for each
    frame present, lies at the top of each node's memory and is not free. `log_rows`: room of the
    event log, 0 for none.
    Raises QuestionError for what cannot be modelled.
    """

    def __init__(
        self,
        layout: Layout,
        kernel: str | AllocatorRules = "6.12",
        cpus: int = 2,
        memmap_bytes_per_frame: int = 64,
        *,
        cpu_nodes: Sequence[int] | None = None,
        log_rows: int = 0,
    ) -> None:
        nodes = [cpu % layout.nodes for cpu in range(cpus)] if cpu_nodes is None else cpu_nodes
        self.rules = _rules(kernel)
        self.layout = _with_memmap(layout, memmap_bytes_per_frame)
        self.notes: tuple[str, ...] = ()
        self.state: State = empty_state(self.layout, self.rules, nodes, log_rows=log_rows)
        set_marks(self.state, self.layout, self.rules, [z.managed for z in self.layout.zones])
        for index, zone in enumerate(self.layout.zones):
            for start, end in zone.free_ranges:
                free_range(self.state, index, start, end)

    @classmethod
    def from_map(
        cls,
        found: MemoryMap,
        *,
        kernel: str | AllocatorRules | None = None,
        migratetypes: NDArray[np.uint8] | None = None,
        log_rows: int = 0,
    ) -> Self:
        """The machine that a map shows, each frame free or in use as it is there.

        `kernel`: None for the map's own. `migratetypes`: uint8 per pageblock from frame 0 on, 0
        to 4 (UNMOVABLE, MOVABLE, RECLAIMABLE, HIGHATOMIC, ISOLATE); without them all are MOVABLE.
        `notes` of the result says what was inferred.
        Raises QuestionError where the map does not tell zones.
        """
        from memdesc.model.loading import load_map

        machine = cls.__new__(cls)
        release = found.machine.release
        machine.rules = allocator_rules(release) if kernel is None else _rules(kernel)
        machine.layout, machine.state, machine.notes = load_map(
            found, machine.rules, migratetypes, log_rows
        )
        return machine

    # --- operations ----------------------------------------------------------------------

    def alloc(self, order: int = 0, gfp: int = GFP.KERNEL, cpu: int = 0) -> Pfn | None:
        """First of 2^order frames for a request with these flags; None: there are none."""
        pfn = self._one(Op.ALLOC, order=order, flags=gfp, cpu=cpu)
        return None if pfn < 0 else Pfn(pfn)

    def free(self, pfn: int | None, order: int | None = None, cpu: int = 0) -> None:
        """Free a block; `order` None: the order that it was allocated with.

        Raises QuestionError where no such block is allocated.
        """
        head = self._frame(pfn)
        order = self.state.frame[head] & s.ORDER_MASK if order is None else order
        if self._one(Op.FREE, order=order, cpu=cpu, argument=head) < 0:
            raise QuestionError(
                f"no block of order {order} is allocated at frame {head:#x}",
                hint="it was freed before, or allocated with another order",
            )

    def take(self, pfn: int, order: int = 0, *, movable: bool = False) -> bool:
        """Take exactly these frames out of the free lists; False where not all are free."""
        kind = s.USED_MOVABLE if movable else s.USED
        return self._one(Op.TAKE, order=order, flags=kind, argument=self._frame(pfn)) == 0

    def split(self, pfn: int, new_order: int = 0) -> None:
        """Make an allocated block several smaller ones, each to be freed on its own."""
        order = self.state.frame[self._frame(pfn)] & s.ORDER_MASK
        if self._one(Op.SPLIT, order=order, flags=new_order, argument=pfn) < 0:
            raise QuestionError(f"no block larger than order {new_order} is allocated at {pfn:#x}")

    def mark_movable(self, pfn: int, movable: bool = True) -> None:
        """Say whether an allocated block can be moved: claims of its pageblock go by that."""
        if self._one(Op.MARK, flags=int(movable), argument=self._frame(pfn)) < 0:
            raise QuestionError(f"no block is allocated at frame {pfn:#x}")

    def drain(self, cpu: int | None = None) -> None:
        """Empty the per-CPU lists of one CPU, or of all."""
        self._one(Op.DRAIN_ALL if cpu is None else Op.DRAIN, cpu=cpu or 0)

    def decay(self, cpu: int = 0) -> None:
        """A second passes for the per-CPU lists of a CPU (6.12 and later)."""
        self._one(Op.DECAY, cpu=cpu)

    def isolate(self, block: int) -> int:
        """Isolate a pageblock; returns the free frames in it. Raises QuestionError if refused."""
        return self._block(Op.ISOLATE, block, 0)

    def unisolate(self, block: int, migratetype: int = s.MOVABLE) -> int:
        """Give an isolated pageblock back; returns its free frames."""
        return self._block(Op.UNISOLATE, block, migratetype)

    def set_reclaim(self, zone: int, active: bool) -> None:
        """Say that reclaim is at work in a zone, or that it is done and boosts end."""
        if not 0 <= zone < len(self.layout.zones):
            raise QuestionError(f"there is no zone {zone}")
        self._one(Op.RECLAIMING if active else Op.BALANCED, argument=zone)

    def fail_after(self, allocations: int) -> None:
        """Let the n-th allocation from now on fail; 0: none."""
        self.state.params[s.V_FAIL_AFTER] = allocations

    def run(self, batch: Operations, first: int = 0, last: int | None = None) -> NDArray[np.int64]:
        """Do operations [first, last) of a batch and return its column of results.

        Raises QuestionError where an operation names a CPU, slot or frame that does not exist.
        """
        last = array(batch.code).size if last is None else last
        _check(batch, self.state, first, last)
        run_batch(self.state, batch, first, last)
        return array(batch.result)

    # --- what it looks like --------------------------------------------------------------

    def buddyinfo(self) -> str:
        """/proc/buddyinfo, to the byte."""
        return buddyinfo(self.layout, self.rules, self.state)

    def pagetypeinfo(self) -> str:
        """/proc/pagetypeinfo, to the byte."""
        return pagetypeinfo(self.layout, self.rules, self.state)

    def zoneinfo(self) -> str:
        """Those lines of /proc/zoneinfo that the model knows, in the kernel's form."""
        return zoneinfo(self.layout, self.state)

    def counters(self) -> dict[str, int]:
        """Event counters by name, as in /proc/vmstat; the model's own begin with `model_`."""
        free = sum(self.zone_value(zone, s.Z_FREE) for zone in range(len(self.layout.zones)))
        named = {name: self.state.stats[index] for name, index in COUNTERS.items()}
        return {"nr_free_pages": int(free), **{name: int(value) for name, value in named.items()}}

    def zone_value(self, zone: int, column: int) -> int:
        """One number of a zone: `memdesc.model.state.Z_...`."""
        return int(self.state.zones[(zone << s.ZONE_SHIFT) + column])

    def percpu_value(self, cpu: int, zone: int, column: int) -> int:
        """One number of a CPU's lists of a zone: `memdesc.model.state.P_...`."""
        row = cpu * len(self.layout.zones) + zone
        return int(self.state.percpu[(row << s.PERCPU_SHIFT) + column])

    def free_lists(self) -> Mapping[tuple[int, int, int], list[int]]:
        """(zone, order, migratetype) -> heads of the free blocks, in the list's order."""
        found: dict[tuple[int, int, int], list[int]] = {}
        for zone in range(len(self.layout.zones)):
            for order in range(self.rules.max_order + 1):
                for migratetype in range(len(MIGRATETYPES)):
                    slot = (zone << 4 | order) << s.LIST_ORDER_SHIFT | migratetype
                    heads = list(self._walk(self.state.params[s.G_LISTS] + slot))
                    if heads:
                        found[zone, order, migratetype] = heads
        return found

    def percpu_lists(self) -> Mapping[tuple[int, int, int], list[int]]:
        """(cpu, zone, index of the list) -> heads of its blocks, in the list's order."""
        found: dict[tuple[int, int, int], list[int]] = {}
        zones = len(self.layout.zones)
        for row in range(self.state.params[s.G_CPUS] * zones):
            for index in range(s.PCP_LISTS):
                slot = (row << s.PCP_LISTS_SHIFT) + index
                heads = list(self._walk(self.state.params[s.G_PCP_LISTS] + slot))
                if heads:
                    found[row // zones, row % zones, index] = heads
        return found

    def events(self) -> list[Event]:
        """Rules that fired since the log was last cleared, oldest first."""
        rows = array(self.state.log)[LOG_ROWS:].reshape(-1, 8)[: self.state.log[LOG_COUNT]]
        names = [zone.name for zone in self.layout.zones]
        return [
            Event(step, code, names[zone] if zone >= 0 else "", pfn, (a, b, c))
            for code, zone, pfn, a, b, c, step, _ in rows.tolist()
        ]

    @property
    def events_lost(self) -> int:
        """Events for which the log had no room."""
        return int(self.state.log[LOG_LOST])

    def clear_events(self) -> None:
        """Empty the event log."""
        self.state.log[LOG_COUNT] = self.state.log[LOG_LOST] = 0

    def map(self) -> MemoryMap:
        """The machine as a map of typed frames, so that every answer can be asked of it.

        The page allocator does not know what memory is used for: a movable block is shown as
        anonymous memory, any other as kernel memory of a type that is not visible.
        """
        from memdesc.model.as_map import map_of

        return map_of(self.layout, self.rules, self.state)

    @property
    def bytes_per_frame(self) -> float:
        """What the model itself needs for each frame, in bytes."""
        return sum(array(column).nbytes for column in self.state) / self.state.params[s.G_FRAMES]

    # --- helpers -------------------------------------------------------------------------

    @cached_property
    def _single(self) -> Operations:
        """A batch of one operation, used again and again."""
        return operations([Op.DRAIN_ALL])

    def _one(
        self, code: Op, *, order: int = 0, flags: int = 0, cpu: int = 0, argument: int = -1
    ) -> int:
        """One operation, of which the caller has checked the argument."""
        if not 0 <= cpu < self.state.params[s.G_CPUS] or not 0 <= order <= s.ORDER_MASK:
            raise QuestionError(f"there is no CPU {cpu}, or no order {order}")
        single = self._single
        single.code[0], single.order[0], single.flags[0] = code, order, flags
        single.cpu[0], single.argument[0] = cpu, argument
        run_batch(self.state, single, 0, 1)
        return int(single.result[0])

    def _block(self, code: Op, block: int, migratetype: int) -> int:
        moved = -1
        if 0 <= block < array(self.state.block).size:
            moved = self._one(code, flags=migratetype, argument=block)
        if moved < 0:
            raise QuestionError(f"pageblock {block} is in no whole zone, or in that state already")
        return moved

    def _frame(self, pfn: int | None) -> int:
        if pfn is None or not 0 <= pfn < self.state.params[s.G_FRAMES]:
            raise QuestionError(f"there is no frame {pfn}")
        return pfn

    def _walk(self, item: int) -> Iterator[int]:
        links = array(self.state.next)
        pfn = int(links[item])
        while pfn != item:
            yield pfn
            pfn = int(links[pfn])


# --- helpers -----------------------------------------------------------------------------


def _rules(kernel: str | AllocatorRules) -> AllocatorRules:
    if isinstance(kernel, AllocatorRules):
        return kernel
    return allocator_rules(KernelRelease.parse(kernel))


def _with_memmap(layout: Layout, bytes_per_frame: int) -> Layout:
    """`layout` with the memory map reserved at the top of each node's memory.

    `mm/sparse.c:sparse_init_nid @6.12`: memblock gives memory from the top of the node down; none
    that is to stay movable.
    """
    zones = list(layout.zones)
    for node in range(layout.nodes):
        mine = sorted(
            (i for i, z in enumerate(zones) if z.node == node and z.type != s.ZONE_MOVABLE),
            key=lambda i: -zones[i].pfn_start,
        )
        present = sum(zone.frames_present for zone in zones if zone.node == node)
        left = -(-present * bytes_per_frame // PAGE_SIZE_BYTES)
        for index in mine:
            taken: Ranges = ()
            for start, end in reversed(zones[index].free_ranges):
                size = min(left, end - start)
                if size:
                    taken = ((end - size, end), *taken)
                left -= size
            reserved = tuple(sorted((*zones[index].reserved, *taken)))
            zones[index] = replace(zones[index], reserved=reserved)
        if left:
            raise QuestionError(f"the memory map does not fit on node {node}")
    return replace(layout, zones=tuple(zones))


def _check(batch: Operations, state: State, first: int, last: int) -> None:
    """Compiled code does not look where it reads: refuse what would lead it astray."""
    code, cpu, argument = (array(c)[first:last] for c in (batch.code, batch.cpu, batch.argument))
    order = array(batch.order)[first:last]
    if not 0 <= first <= last <= array(batch.code).size:
        raise QuestionError(f"no operations {first} to {last} in this batch")
    if not code.size:
        return
    if cpu.max() >= state.params[s.G_CPUS] or code.max() >= len(Op) or order.max() > 15:
        raise QuestionError("an operation names a CPU, a code or an order that does not exist")
    limits = np.full(len(Op), 1 << 62, np.int64)
    limits[[Op.ALLOC, Op.FREE_SLOT]] = array(batch.slots).size
    limits[[Op.FREE, Op.TAKE, Op.SPLIT, Op.MARK]] = state.params[s.G_FRAMES]
    limits[[Op.ISOLATE, Op.UNISOLATE]] = array(state.block).size
    limits[[Op.UNRESERVE, Op.BALANCED, Op.RECLAIMING]] = state.params[s.G_ZONES]
    free_of_argument = np.isin(code, (Op.ALLOC, Op.DRAIN, Op.DRAIN_ALL, Op.DECAY))
    if (argument >= limits[code]).any() or (argument[~free_of_argument] < 0).any():
        raise QuestionError("an operation names a slot, frame, pageblock or zone out of range")
    flags = array(batch.flags)[first:last]
    kinds = flags[code == Op.TAKE]
    if not np.isin(kinds, (s.USED, s.USED_MOVABLE, s.TAKEN)).all():
        raise QuestionError("frames are taken as USED, USED_MOVABLE or TAKEN")

"""Is everything that the slab allocator and the descriptors know true of each other?

`problems_of` looks at every slab, object, list, sheaf and word, and says in sentences what does
not fit; `check_described` asserts that there is nothing to say, here and in the page allocator.

- Every slab is in exactly one place, its frames lead to it, and its list says the same.
- Every object is in exactly one place: with a user, on a free list, or in a sheaf.
- Every frame's word says what the frame is. A pointer leads to a descriptor in use of the
  right cache that leads back; no two allocations share one, and none is in use without one.
- Totals are what they count.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memdesc.model import slab_state as t
from memdesc.model.check import check
from memdesc.model.check_words import check_words
from memdesc.model.compiled import array
from memdesc.model.described import DescribedMachine
from memdesc.model.slab_caches import SlabAllocator
from memdesc.model.state import USED

__all__ = ["check_described", "check_slabs", "problems_of"]


def check_described(machine: DescribedMachine) -> None:
    """Assert every invariant of a machine. Raises AssertionError with the first few problems."""
    check(machine.pages)
    found = problems_of(machine)
    assert not found, "; ".join(found[:5])


def problems_of(machine: DescribedMachine) -> list[str]:
    """Everything that is wrong with the slabs, descriptors and words of a machine."""
    return [*check_slabs(machine.slabs), *check_words(machine)]


def check_slabs(slabs: SlabAllocator) -> list[str]:
    """Everything that is wrong with caches, slabs, objects and sheaves."""
    return list(_Check(slabs).run())


class _Check:
    def __init__(self, slabs: SlabAllocator) -> None:
        self.slabs = slabs
        state = slabs.state
        self.cell: list[int] = array(state.cell).tolist()
        self.cpu: NDArray[np.int64] = array(state.cpu).reshape(-1, t.CPU_FIELDS)
        self.node: NDArray[np.int64] = array(state.node).reshape(-1, t.NODE_FIELDS)
        self.caches: NDArray[np.int64] = array(state.cache).reshape(-1, t.CACHE_FIELDS)
        self.records: list[list[int]] = slabs.records().tolist()
        self.slots: NDArray[np.int32] = array(state.slot).reshape(-1, t.SLOT_FIELDS)
        self.sheaves: NDArray[np.int64] = array(state.sheaf).reshape(-1, t.SHEAF_FIELDS)
        self.used = [i for i, row in enumerate(self.records) if row[t.R_PLACE] != t.UNUSED]
        self.in_sheaves: dict[int, set[int]] = {}
        """record -> objects of it that lie in sheaves."""

    def run(self) -> Iterator[str]:
        yield from self._frames()
        yield from self._spare()
        yield from self._sheaves()
        yield from self._places()
        for record in self.used:
            yield from self._objects(record)
        yield from self._totals()
        if self.cell[t.G_TO_FREE] != t.NONE:
            yield "a descriptor of a slab waits to be freed between operations"
        if self.cell[t.G_WAITING] != t.NONE and not self.cell[t.G_READERS]:
            yield "slabs wait for readers, and there are none"

    # --- slabs ---------------------------------------------------------------------------

    def _frames(self) -> Iterator[str]:
        frame = array(self.slabs.machine.state.frame)
        links = array(self.slabs.machine.state.next)
        bases: list[tuple[int, int]] = []
        for record in self.used:
            row = self.records[record]
            pfn, order = row[t.R_PFN], row[t.R_ORDER]
            if frame[pfn] != (USED | order):
                yield f"slab {record} at {pfn:#x} is no allocated block of order {order}"
            if (links[pfn : pfn + (1 << order)] != record).any():
                yield f"a frame of slab {record} leads to another"
            cache = self.caches[row[t.R_CACHE]]
            least = order == cache[t.C_LEAST_ORDER]
            expected = cache[t.C_LEAST_OBJECTS] if least else cache[t.C_OBJECTS]
            if order not in (cache[t.C_ORDER], cache[t.C_LEAST_ORDER]) or (
                row[t.R_OBJECTS] not in (expected, cache[t.C_OBJECTS])
            ):
                yield f"slab {record} has {row[t.R_OBJECTS]} objects in order {order}"
        for row in self.records:
            bases.append((row[t.R_BASE], row[t.R_BASE] + row[t.R_OBJECTS]))
        bases.sort()
        if any(a[1] > b[0] for a, b in itertools.pairwise(bases)):
            yield "two records share slots"
        if bases and bases[-1][1] > self.cell[t.G_SLOTS]:
            yield "a record has slots that were not given out"

    def _spare(self) -> Iterator[str]:
        """Records of slabs that are gone wait under their number of objects, each once."""
        found: list[int] = []
        for objects, record in enumerate(array(self.slabs.state.spare).tolist()):
            while record != t.NONE and len(found) <= len(self.records):
                if self.records[record][t.R_OBJECTS] != objects:
                    yield f"unused record {record} waits under {objects} objects"
                found.append(record)
                record = self.records[record][t.R_NEXT]
        unused = set(range(len(self.records))) - set(self.used)
        if len(found) != len(set(found)) or set(found) != unused:
            yield f"unused records are {sorted(unused)}, those that wait {sorted(found)}"

    def _places(self) -> Iterator[str]:
        """Each slab is where its record says, and nowhere else."""
        seen: Counter[int] = Counter()
        cpus, nodes = self.cell[t.G_CPUS], self.cell[t.G_NODES]
        for at, cpu_row in enumerate(self.cpu.tolist()):
            cache, cpu = divmod(at, cpus)
            mine = [cpu_row[t.P_SLAB]] if cpu_row[t.P_SLAB] != t.NONE else []
            listed = self._chain(cpu_row[t.P_PARTIAL])
            if len(listed) != max(cpu_row[t.P_PARTIALS], 0):
                yield f"CPU {cpu} counts {cpu_row[t.P_PARTIALS]} partial slabs of cache {cache}"
            for place, members in ((t.ON_CPU, mine), (t.ON_CPU_PARTIAL, listed)):
                for record in members:
                    row = self.records[record]
                    seen[record] += 1
                    if (row[t.R_PLACE], row[t.R_CACHE], row[t.R_CPU]) != (place, cache, cpu):
                        yield f"slab {record} of CPU {cpu} and cache {cache} says otherwise"
        for at, node_row in enumerate(self.node.tolist()):
            cache, node = divmod(at, nodes)
            before = t.NONE
            listed = self._chain(node_row[t.N_HEAD])
            if len(listed) != node_row[t.N_PARTIALS]:
                yield f"node {node} counts {node_row[t.N_PARTIALS]} partial slabs of cache {cache}"
            for record in listed:
                row = self.records[record]
                seen[record] += 1
                if (row[t.R_PLACE], row[t.R_CACHE], row[t.R_NODE]) != (t.ON_NODE, cache, node):
                    yield f"slab {record} of node {node} and cache {cache} says otherwise"
                if row[t.R_PREV] != before:
                    yield f"slab {record} does not lead back to {before}"
                before = record
            if node_row[t.N_TAIL] != before:
                yield f"the last partial slab of node {node} and cache {cache} is another"
        for record in self._chain(self.cell[t.G_WAITING]):
            seen[record] += 1
            if self.records[record][t.R_PLACE] != t.WAITING:
                yield f"slab {record} waits for readers and does not say so"
        for record in self.used:
            expected = 0 if self.records[record][t.R_PLACE] == t.ON_NO_LIST else 1
            if seen[record] != expected:
                yield f"slab {record} is on {seen[record]} lists"

    def _chain(self, record: int) -> list[int]:
        found: list[int] = []
        while record != t.NONE and len(found) <= len(self.records):
            found.append(record)
            record = self.records[record][t.R_NEXT]
        return found

    # --- objects -------------------------------------------------------------------------

    def _objects(self, record: int) -> Iterator[str]:
        row = self.records[record]
        base, objects = row[t.R_BASE], row[t.R_OBJECTS]
        own = self._free_list(base, row[t.R_FREE], objects)
        reserve: list[int] = []
        if row[t.R_PLACE] == t.ON_CPU:
            cpu = self.cpu[row[t.R_CACHE] * self.cell[t.G_CPUS] + row[t.R_CPU]]
            reserve = self._free_list(base, int(cpu[t.P_FREE]), objects)
        sheaf = self.in_sheaves.get(record, set())
        free = set(own) | set(reserve) | sheaf
        if len(free) != len(own) + len(reserve) + len(sheaf):
            yield f"a free object of slab {record} is in two places"
        if row[t.R_IN_USE] != objects - len(own):
            yield f"slab {record} counts {row[t.R_IN_USE]} objects in use"
        refs = self.slots[base : base + objects, t.S_REFS]
        held = set(np.flatnonzero(refs != 0).tolist())
        if held != set(range(objects)) - free:
            yield f"objects of slab {record} are in use and free, or neither"
        if row[t.R_PLACE] == t.ON_NODE and not own:
            yield f"a full slab {record} is on the partial list"
        if row[t.R_PLACE] == t.ON_NO_LIST and own:
            yield f"slab {record} with free objects is on no list"
        if row[t.R_PLACE] == t.WAITING and len(own) != objects - row[t.R_SELF]:
            yield f"slab {record} waits to go back and is not empty"

    def _free_list(self, base: int, number: int, objects: int) -> list[int]:
        found: list[int] = []
        while number != t.NONE and len(found) <= objects:
            found.append(number)
            number = int(self.slots[base + number, t.S_VALUE])
        return found

    def _sheaves(self) -> Iterator[str]:
        """Each sheaf is with a CPU, in a barn or spare; what it holds is free."""
        seen: Counter[int] = Counter()
        for at, row in enumerate(self.cpu.tolist()):
            cache = at // self.cell[t.G_CPUS]
            for sheaf in (row[t.P_MAIN], row[t.P_SPARE]):
                if sheaf != t.NONE:
                    seen[sheaf] += 1
                    yield from self._sheaf(sheaf, cache)
        for at, row in enumerate(self.node.tolist()):
            cache = at // self.cell[t.G_NODES]
            capacity = int(self.caches[cache][t.C_SHEAF])
            for first, count, size in (
                (row[t.N_FULL], row[t.N_FULLS], capacity),
                (row[t.N_EMPTY], row[t.N_EMPTIES], 0),
            ):
                listed = self._sheaf_chain(first)
                if len(listed) != count:
                    yield f"the barn of cache {cache} counts {count} sheaves"
                for sheaf in listed:
                    seen[sheaf] += 1
                    yield from self._sheaf(sheaf, cache)
                    if self.sheaves[sheaf, t.H_SIZE] != size:
                        yield f"sheaf {sheaf} in the barn holds another number than {size}"
        for sheaf in self._sheaf_chain(self.cell[t.G_SPARE_SHEAF]):
            seen[sheaf] += 1
        if sorted(seen) != list(range(self.cell[t.G_SHEAVES])) or set(seen.values()) - {1}:
            yield "a sheaf is in two places, or in none"

    def _sheaf(self, sheaf: int, cache: int) -> Iterator[str]:
        size = int(self.sheaves[sheaf, t.H_SIZE])
        if size > self.caches[cache][t.C_SHEAF]:
            yield f"sheaf {sheaf} holds more than it can"
        links = array(self.slabs.machine.state.next)
        for address in self.sheaves[sheaf, t.H_FIRST : t.H_FIRST + size].tolist():
            record = int(links[address >> 12])
            row = self.records[record]
            if row[t.R_CACHE] != cache or row[t.R_PLACE] == t.UNUSED:
                yield f"sheaf {sheaf} holds an object of another cache"
                continue
            number, rest = divmod(address - (row[t.R_PFN] << 12), int(self.caches[cache][t.C_SIZE]))
            objects = self.in_sheaves.setdefault(record, set())
            if rest or number in objects:
                yield f"sheaf {sheaf} holds {address:#x} twice, or it is no object"
            objects.add(number)

    def _sheaf_chain(self, sheaf: int) -> list[int]:
        found: list[int] = []
        while sheaf != t.NONE and len(found) <= self.cell[t.G_SHEAVES]:
            found.append(sheaf)
            sheaf = int(self.sheaves[sheaf, t.H_NEXT])
        return found

    # --- totals --------------------------------------------------------------------------

    def _totals(self) -> Iterator[str]:
        held: Counter[int] = Counter()
        frames: Counter[int] = Counter()
        count: Counter[int] = Counter()
        by_node: Counter[int] = Counter()
        for record in self.used:
            row = self.records[record]
            base, cache = row[t.R_BASE], row[t.R_CACHE]
            refs = self.slots[base : base + row[t.R_OBJECTS], t.S_REFS]
            held[cache] += int(np.count_nonzero(refs))
            frames[cache] += 1 << row[t.R_ORDER]
            count[cache] += 1
            by_node[cache * self.cell[t.G_NODES] + row[t.R_NODE]] += 1
        total, size, slab_frames = 0, 0, 0
        for cache, row in enumerate(self.caches.tolist()):
            seen = (held[cache], frames[cache], count[cache])
            if seen != (row[t.C_IN_USE], row[t.C_FRAMES], row[t.C_SLABS]):
                yield f"cache {cache} has {seen} objects, frames and slabs, and counts others"
            if row[t.C_ALLOCS] - row[t.C_FREES] != row[t.C_IN_USE]:
                yield f"cache {cache} lost an allocation or a free"
            if row[t.C_DESCRIPTOR_BYTES]:
                total += held[cache]
                size += held[cache] * row[t.C_DESCRIPTOR_BYTES]
                slab_frames += frames[cache]
        if (total, size, slab_frames) != (
            self.cell[t.G_DESCRIPTORS],
            self.cell[t.G_DESCRIPTOR_BYTES],
            self.cell[t.G_DESCRIPTOR_FRAMES],
        ):
            yield "the totals of descriptors are others"
        for at, slabs in enumerate(self.node[:, t.N_SLABS].tolist()):
            if by_node[at] != slabs:
                yield f"node row {at} counts {slabs} slabs"

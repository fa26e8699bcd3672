"""The slab allocator of a machine: create caches, allocate, free, shrink, and its statistics.

    slabs = SlabAllocator(machine, slub_rules(machine.rules.release))
    dentry = slabs.create("dentry", 192, reclaim_account=True)
    address = slabs.alloc(dentry)

Objects are named by their physical address in bytes.  What happens is in `memdesc.model.slab`;
this is the face.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.kernels.slub import (
    KMALLOC_SIZES_BYTES,
    CacheTraits,
    SlubRules,
    kmalloc_size_bytes,
    may_merge,
    object_layout,
    slab_order,
)
from memdesc.model.cache_types import (
    DIRECT_MAP,
    MOST_CACHES,
    RECORD_HEADROOM,
    Cache,
    CacheStatistics,
    SlabInfo,
    column,
    fill_row,
    kmalloc_align,
    short_size,
)
from memdesc.model.compiled import array, compiled, pointers
from memdesc.model.operations import (
    KMEM_ALLOC,
    KMEM_FREE,
    SHEAF_HEADROOM,
    TOUCH_HEADROOM,
    Operations,
    one_operation,
    run,
)
from memdesc.model.slab_shrink import reader_begins, reader_ends, shrink
from memdesc.model.slab_state import (
    C_ALIVE,
    C_ALLOCS,
    C_FRAMES,
    C_FREES,
    C_IN_USE,
    C_SLABS,
    C_SLABS_FREED,
    C_SLABS_MADE,
    CACHE_FIELDS,
    G_CACHES,
    G_DIRECT_MAP,
    G_RECORD_HEADROOM,
    G_RECORDS,
    G_SHEAF_MODE,
    G_SHEAVES,
    G_SLOT_HEADROOM,
    G_SLOTS,
    G_TOUCH_ROOM,
    G_TOUCHED,
    G_TRACING,
    ON_NODE,
    R_CACHE,
    R_IN_USE,
    R_OBJECTS,
    R_PLACE,
    RECORD_FIELDS,
    TOUCH_FIELDS,
    UNUSED,
    SlabState,
    empty_state,
    grown,
)
from memdesc.model.state import G_CPUS, G_FRAMES, G_NODES, State

if TYPE_CHECKING:
    from memdesc.model.machine import Machine

__all__ = ["SlabAllocator"]


class SlabAllocator:
    """SLUB on the page allocator of a machine.

    `state` is replaced when its arrays grow: ask for it anew after each call.
    """

    def __init__(self, machine: Machine, rules: SlubRules) -> None:
        self.machine = machine
        self.rules = rules
        self.cpus = int(machine.state.params[G_CPUS])
        self.caches: list[Cache] = []
        self.state: SlabState = empty_state(
            frames=machine.state.params[G_FRAMES],
            cpus=machine.state.params[G_CPUS],
            nodes=machine.state.params[G_NODES],
            caches=MOST_CACHES,
            kinds=64,
        )
        cell = array(self.state.cell)
        cell[G_DIRECT_MAP] = DIRECT_MAP - (1 << 64)
        cell[G_SHEAF_MODE] = int(rules.has_sheaves)
        cell[G_RECORD_HEADROOM] = RECORD_HEADROOM
        self._one = one_operation()

    # --- caches --------------------------------------------------------------------------

    def create(
        self,
        name: str,
        object_bytes: int,
        *,
        align: int = 0,
        hwcache_align: bool = False,
        constructor: bool = False,
        typesafe: bool = False,
        placed_pointer: bool = False,
        usercopy: bool = False,
        reclaim_account: bool = False,
        account: bool = False,
        descriptor: bool = False,
        never_merge: bool = False,
    ) -> Cache:
        """kmem_cache_create. An older cache serves it where the kernel would merge the two.

        `placed_pointer`: the creator of a type-safe cache names a member that the free pointer
        may overwrite; where the release knows no such thing it lies behind the object.
        Raises QuestionError for a name in use, and FormatError for a size that cannot be.
        """
        if any(cache.name == name for cache in self.caches):
            raise QuestionError(f"a cache {name!r} exists", hint="destroy it first")
        placed = placed_pointer and self.rules.freed_pointer_may_be_placed
        outside = constructor or (typesafe and not placed)
        layout = object_layout(
            object_bytes, align=align, hwcache_align=hwcache_align, pointer_outside=outside
        )
        traits = CacheTraits(
            layout.size_bytes,
            layout.align,
            has_constructor=constructor,
            has_usercopy_window=usercopy,
            never_merge=typesafe or descriptor or never_merge,
            reclaim_account=reclaim_account,
            account=account,
        )
        slab = slab_order(layout.size_bytes, cpus=self.cpus, rules=self.rules)
        for cache in self.caches:
            if not cache.merged_into and may_merge(cache.traits, traits):
                alias = Cache(
                    name,
                    cache.number,
                    object_bytes,
                    cache.layout,
                    cache.slab,
                    cache.traits,
                    merged_into=cache.name,
                )
                self.caches.append(alias)
                return alias
        made = Cache(name, self._row_for_cache(), object_bytes, layout, slab, traits)
        self.caches.append(made)
        fill_row(self._row(made), made, typesafe=typesafe, descriptor=descriptor)
        cell = array(self.state.cell)
        most = max(int(cell[G_SLOT_HEADROOM]), RECORD_HEADROOM * slab.objects)
        cell[G_SLOT_HEADROOM] = most
        return made

    def create_kmalloc(self) -> dict[int, Cache]:
        """The caches of kmalloc: normal ones, by size."""
        return {
            size: self.create(f"kmalloc-{short_size(size)}", size, align=kmalloc_align(size))
            for size in KMALLOC_SIZES_BYTES
        }

    def destroy(self, cache: Cache) -> None:
        """kmem_cache_destroy. Raises QuestionError while objects of it are in use.

        Of a type-safe cache also while readers may look at its slabs, where the kernel waits.
        """
        self._known(cache)
        sharers = [each for each in self.caches if each.number == cache.number]
        if len(sharers) == 1:
            if self.statistics(cache).objects_in_use:
                raise QuestionError(f"objects of {cache.name} are in use", hint="free them first")
            if self.shrink(cache):
                raise QuestionError(
                    f"slabs of {cache.name} wait for readers", hint="end the readers' sections"
                )
            array(self.state.cache)[cache.number * CACHE_FIELDS + C_ALIVE] = 0
        elif not cache.merged_into:
            raise QuestionError(f"others were merged into {cache.name}", hint="destroy those first")
        self.caches.remove(cache)

    def shrink(self, cache: Cache) -> int:
        """Give back every empty slab (`/sys/kernel/slab/NAME/shrink`); how many slabs are left."""
        self._known(cache)
        return int(_shrink(self.machine.state, self.state, cache.number))

    # --- objects -------------------------------------------------------------------------

    def alloc(self, cache: Cache, cpu: int = 0) -> int | None:
        """Physical address of an object, or None without memory."""
        self._known(cache)
        address = self.step(KMEM_ALLOC, kind=cache.number, cpu=cpu)
        return None if address < 0 else address

    def kmalloc(self, size_bytes: int, cpu: int = 0) -> int | None:
        """An object of the kmalloc cache for a size. Raises FormatError above 8 KiB."""
        name = f"kmalloc-{short_size(kmalloc_size_bytes(size_bytes))}"
        return self.alloc(self.cache(name), cpu)

    def free(self, address: int, cpu: int = 0) -> None:
        """Free an object. Raises QuestionError where none in use begins at `address`."""
        if self.step(KMEM_FREE, cpu=cpu, value=address) < 0:
            raise QuestionError(f"no object in use begins at {address:#x}")

    def cache(self, name: str) -> Cache:
        """The cache of that name. Raises QuestionError if there is none."""
        for each in self.caches:
            if each.name == name:
                return each
        raise QuestionError(f"no cache {name!r}")

    @contextmanager
    def reading(self, cpu: int = 0) -> Iterator[None]:
        """A reader's section: what type-safe caches give back waits for its end."""
        _begin(self.state)
        try:
            yield
        finally:
            _end(self.machine.state, self.state, cpu)

    # --- statistics ----------------------------------------------------------------------

    def statistics(self, cache: Cache) -> CacheStatistics:
        """Exact counts of a cache and all that were merged with it."""
        row = self._row(cache)
        return CacheStatistics(
            objects_in_use=int(row[C_IN_USE]),
            slabs=int(row[C_SLABS]),
            frames=int(row[C_FRAMES]),
            allocs=int(row[C_ALLOCS]),
            frees=int(row[C_FREES]),
            slabs_made=int(row[C_SLABS_MADE]),
            slabs_freed=int(row[C_SLABS_FREED]),
        )

    def objects(self, cache: Cache) -> int:
        """Objects in all slabs of a cache, in use or free."""
        records = self.records()
        mine = (records[:, R_CACHE] == cache.number) & (records[:, R_PLACE] != UNUSED)
        return int(records[mine, R_OBJECTS].sum())

    def slabinfo(self) -> list[SlabInfo]:
        """One line per cache with slabs of its own, oldest first."""
        records = self.records()
        found = []
        for cache in self.caches:
            if cache.merged_into:
                continue
            mine = records[(records[:, R_CACHE] == cache.number) & (records[:, R_PLACE] != UNUSED)]
            total = int(mine[:, R_OBJECTS].sum())
            listed = mine[mine[:, R_PLACE] == ON_NODE]
            free = int((listed[:, R_OBJECTS] - listed[:, R_IN_USE]).sum())
            found.append(
                SlabInfo(
                    cache.name,
                    total - free,
                    total,
                    cache.layout.size_bytes,
                    cache.slab.objects,
                    1 << cache.slab.order,
                    len(mine),
                )
            )
        return found

    def records(self) -> NDArray[np.int64]:
        """int64[records, RECORD_FIELDS]: every record that was ever used."""
        used = int(array(self.state.cell)[G_RECORDS])
        flat = array(self.state.record)[: used * RECORD_FIELDS]
        return flat.reshape(used, RECORD_FIELDS)

    # --- running -------------------------------------------------------------------------

    def step(
        self,
        code: int,
        *,
        kind: int = 0,
        order: int = 0,
        cpu: int = 0,
        value: int = -1,
        arg: int = 0,
    ) -> int:
        """One operation (`memdesc.model.operations`); `value` is what its handle holds."""
        if not 0 <= cpu < self.cpus:
            raise QuestionError(f"no CPU {cpu}", hint=f"0 to {self.cpus - 1}")
        one = self._one
        one.code[0], one.kind[0], one.order[0] = code, kind, order
        one.cpu[0], one.arg[0], one.into[0] = cpu, arg, 1
        one.handles[0] = value
        self.run(one)
        return int(one.result[0])

    def run(self, operations: Operations, first: int = 0, end: int | None = None) -> int:
        """Run a batch; rows are added where it stops for them.

        Returns the number of the operation after the last one run: `end`, or an earlier one
        where accesses are traced and the trace is full.
        """
        last = array(operations.code).size if end is None else end
        while first < last:
            self.make_room()
            at = int(run(self.machine.state, self.state, operations, first, last))
            if at == first and self._trace_is_full():
                break
            first = at
        return first

    def trace(self, rows: int = 1 << 18) -> None:
        """From now on note every access to metadata, `rows` at most at a time; 0: no more."""
        if 0 < rows < 2 * TOUCH_HEADROOM:
            raise QuestionError(f"a trace has at least {2 * TOUCH_HEADROOM} rows, or none")
        self.state = self.state._replace(touch=column(np.zeros(rows * TOUCH_FIELDS, np.int64)))
        cell = array(self.state.cell)
        cell[G_TRACING], cell[G_TOUCHED], cell[G_TOUCH_ROOM] = int(rows > 0), 0, rows

    def take_trace(self) -> NDArray[np.int64]:
        """int64[rows, 3]: address, bytes, kind of access since the last call; empties it."""
        cell = array(self.state.cell)
        used = int(cell[G_TOUCHED])
        cell[G_TOUCHED] = 0
        return array(self.state.touch)[: used * TOUCH_FIELDS].reshape(used, TOUCH_FIELDS).copy()

    def make_room(self) -> None:
        """Rows for the next operations: twice as many as are used, at least."""
        cell = array(self.state.cell)
        slots = int(cell[G_SLOT_HEADROOM])
        self.state = grown(
            self.state,
            records=int(cell[G_RECORDS]) + 2 * RECORD_HEADROOM,
            slots=int(cell[G_SLOTS]) + 2 * slots,
            sheaves=int(cell[G_SHEAVES]) + 2 * SHEAF_HEADROOM,
        )

    def _trace_is_full(self) -> bool:
        cell = array(self.state.cell)
        return bool(cell[G_TRACING] and cell[G_TOUCHED] + TOUCH_HEADROOM > cell[G_TOUCH_ROOM])

    # --- helpers -------------------------------------------------------------------------

    def _known(self, cache: Cache) -> None:
        if cache not in self.caches:
            raise QuestionError(f"no cache {cache.name!r} here")

    def _row(self, cache: Cache) -> NDArray[np.int64]:
        start = cache.number * CACHE_FIELDS
        return array(self.state.cache)[start : start + CACHE_FIELDS]

    def _row_for_cache(self) -> int:
        alive = array(self.state.cache).reshape(-1, CACHE_FIELDS)[:, C_ALIVE]
        free = np.flatnonzero(alive == 0)
        if not free.size:
            raise QuestionError(f"a machine has at most {MOST_CACHES} caches")
        number = int(free[0])
        cell = array(self.state.cell)
        cell[G_CACHES] = max(int(cell[G_CACHES]), number + 1)
        return number


@compiled
def _shrink(state: State, slabs: SlabState, cache: int) -> int:
    return shrink(pointers(state), pointers(slabs), cache)


@compiled
def _begin(slabs: SlabState) -> None:
    reader_begins(pointers(slabs))


@compiled
def _end(state: State, slabs: SlabState, cpu: int) -> None:
    reader_ends(pointers(state), pointers(slabs), cpu)

"""Sequences of operations to compare designs with: the same for every design, and repeatable.

Five mixtures, each a caricature of what one kind of machine does to its memory: fill a share
of the memory, then free and allocate. They are not recordings; `memdesc model replay`
runs those. Frames, slab objects and lookups are in all of them, in different shares.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

import numpy as np

from memdesc.errors import QuestionError
from memdesc.model.cache_types import column
from memdesc.model.described import KIND_CODES, DescribedMachine
from memdesc.model.operations import (
    ALLOC,
    FREE,
    KMEM_ALLOC,
    KMEM_FREE,
    LOOKUP,
    SCAN,
    Operations,
)
from memdesc.types import PAGE_SHIFT, MemoryType

__all__ = ["WORKLOADS", "CacheWish", "Workload", "workload"]


@dataclass(frozen=True, slots=True)
class CacheWish:
    """A slab cache that a workload uses."""

    name: str
    object_bytes: int
    reclaim_account: bool = False


_Item = TypeVar("_Item")
Row: TypeAlias = tuple[int, int, int, int, int, int]
"""code, kind (of memory, or index of the cache), order, cpu, handle, argument."""


@dataclass(frozen=True)
class Workload:
    """Rows that know no addresses."""

    name: str
    text: str
    rows: Sequence[Row] = field(repr=False)
    handles: int
    caches: tuple[CacheWish, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def on(self, machine: DescribedMachine) -> Operations:
        """The batch for one machine; creates the caches there."""
        numbers = np.array(
            [
                machine.slabs.create(
                    each.name, each.object_bytes, reclaim_account=each.reclaim_account
                ).number
                for each in self.caches
            ]
            or [0]
        )
        table = np.array(self.rows, np.int64).reshape(-1, 6)
        code, kind, order, cpu, handle, argument = (table[:, at].copy() for at in range(6))
        objects = code == KMEM_ALLOC
        kind[objects] = numbers[kind[objects]]
        return Operations(
            code=column(code.astype(np.uint8)),
            kind=column(kind.astype(np.int16)),
            order=column(order.astype(np.uint8)),
            cpu=column(cpu.astype(np.uint16)),
            handle=column(handle.astype(np.int32)),
            arg=column(argument.astype(np.int32)),
            into=column(np.zeros(len(table), np.int32)),
            result=column(np.zeros(len(table), np.int64)),
            handles=column(np.full(max(self.handles, 1), -1, np.int64)),
        )


def workload(
    name: str,
    *,
    memory_bytes: int,
    operations: int,
    cpus: int = 2,
    seed: int = 1,
    fill: float = 0.8,
) -> Workload:
    """One of `WORKLOADS` for a machine of that size, about `operations` rows long.

    `fill`: share of the memory that is in use before old allocations make way for new ones;
    more than there is makes allocations fail.
    Raises QuestionError for another name and for less than 100 operations.
    """
    if name not in WORKLOADS:
        raise QuestionError(f"no workload {name!r}", hint="workloads: " + ", ".join(WORKLOADS))
    if operations < 100:
        raise QuestionError("a workload has at least 100 operations")
    mixture = WORKLOADS[name]
    writer = _Writer(memory_bytes, operations, cpus, seed, fill)
    while len(writer.rows) < operations:
        mixture.step(writer)
    return Workload(name, mixture.text, writer.rows, writer.handles, mixture.caches)


# --- the mixtures ------------------------------------------------------------------------


class _Writer:
    """Writes rows, and knows what is live."""

    def __init__(
        self, memory_bytes: int, operations: int, cpus: int, seed: int, fill: float
    ) -> None:
        self.chance = random.Random(seed)
        self.rows: list[Row] = []
        self.handles = 0
        self.cpus = cpus
        self.frames = memory_bytes >> PAGE_SHIFT
        self.most = int(self.frames * fill)
        self.used = 0
        self.pages: list[tuple[int, int, MemoryType]] = []
        self.objects: list[int] = []
        self._spare: list[int] = []

    def allocate(self, kind: MemoryType, order: int = 0) -> None:
        handle = self._handle()
        self.rows.append((ALLOC, KIND_CODES[kind], order, self._cpu(), handle, handle & 0xFFFF))
        self.pages.append((handle, order, kind))
        self.used += 1 << order

    def free(self, count: int = 1) -> None:
        for _ in range(min(count, len(self.pages))):
            handle, order, _kind = self._take(self.pages)
            self.rows.append((FREE, 0, 0, self._cpu(), handle, 0))
            self._spare.append(handle)
            self.used -= 1 << order

    def object(self, cache: int) -> None:
        handle = self._handle()
        self.rows.append((KMEM_ALLOC, cache, 0, self._cpu(), handle, 0))
        self.objects.append(handle)

    def free_object(self) -> None:
        if self.objects:
            handle = self._take(self.objects)
            self.rows.append((KMEM_FREE, 0, 0, self._cpu(), handle, 0))
            self._spare.append(handle)

    def look_up(self) -> None:
        if self.pages:
            handle, order, _kind = self.pages[self.chance.randrange(len(self.pages))]
            offset = self.chance.randrange(1 << order)
            self.rows.append((LOOKUP, 0, 0, self._cpu(), handle, offset))

    def scan(self) -> None:
        block = self.chance.randrange(max(1, self.frames >> 9))
        self.rows.append((SCAN, 0, 0, self._cpu(), 0, block))

    @property
    def is_full(self) -> bool:
        return self.used >= self.most

    def _take(self, items: list[_Item]) -> _Item:
        at = self.chance.randrange(len(items))
        items[at], items[-1] = items[-1], items[at]
        return items.pop()

    def _handle(self) -> int:
        if self._spare:
            return self._spare.pop()
        self.handles += 1
        return self.handles - 1

    def _cpu(self) -> int:
        return self.chance.randrange(self.cpus)


@dataclass(frozen=True, slots=True)
class _Mixture:
    text: str
    step: Callable[[_Writer], None]
    caches: tuple[CacheWish, ...]


_INODE, _DENTRY, _NODE, _VMA, _FILP = range(5)
_CACHES = (
    CacheWish("ext4_inode_cache", 1096, reclaim_account=True),
    CacheWish("dentry", 192, reclaim_account=True),
    CacheWish("radix_tree_node", 576, reclaim_account=True),
    CacheWish("vm_area_struct", 192),
    CacheWish("filp", 232),
)
_KMALLOC = tuple(
    CacheWish(f"kmalloc-{size}", size) for size in (8, 16, 32, 64, 96, 128, 256, 512, 1024, 4096)
)


def _files(w: _Writer) -> None:
    """Read files, some of them large: folios of several orders; forget old ones when full."""
    w.object(_INODE)
    w.object(_DENTRY)
    order = w.chance.choices((0, 2, 4, 5), (50, 25, 20, 5))[0]
    for _ in range(w.chance.randint(1, 12)):
        w.allocate(MemoryType.FILE, order)
        w.look_up()
    w.object(_NODE)
    while w.is_full:
        w.free(32)
        w.free_object()
    if w.chance.random() < 0.02:
        w.scan()


def _anon(w: _Writer) -> None:
    """Processes that come, touch single pages, are looked at, and go."""
    w.object(_VMA)
    w.allocate(MemoryType.PAGE_TABLE)
    for _ in range(w.chance.randint(8, 64)):
        w.allocate(MemoryType.ANON)
    for _ in range(8):
        w.look_up()
    if w.chance.random() < 0.3 or w.is_full:
        w.free(w.chance.randint(8, 90))
        w.free_object()
    while w.is_full:
        w.free(64)
    if w.chance.random() < 0.05:
        w.scan()


def _thp(w: _Writer) -> None:
    """Huge pages wherever there can be, single pages between them."""
    if w.chance.random() < 0.4:
        w.allocate(MemoryType.ANON, 9)
        w.allocate(MemoryType.PAGE_TABLE)
    else:
        w.allocate(MemoryType.ANON)
    w.look_up()
    w.look_up()
    while w.is_full:
        w.free(4)
    if w.chance.random() < 0.05:
        w.scan()


def _slab(w: _Writer) -> None:
    """Kernel objects of all sizes, in tides."""
    rising = (len(w.rows) // 4096) % 2 == 0
    for _ in range(16):
        if w.chance.random() < (0.65 if rising else 0.35):
            w.object(w.chance.randrange(len(_KMALLOC)))
        else:
            w.free_object()
    if w.chance.random() < 0.2:
        w.allocate(MemoryType.FILE)
    if len(w.pages) > 1000:
        w.free(100)


def _tables(w: _Writer) -> None:
    """Forks of sparse address spaces: many page tables for few pages, stacks, pipes."""
    for _ in range(w.chance.randint(2, 10)):
        w.allocate(MemoryType.PAGE_TABLE)
    w.allocate(MemoryType.ANON)
    w.allocate(MemoryType.KERNEL_STACK)
    if w.chance.random() < 0.3:
        w.allocate(MemoryType.ZSMALLOC)
    w.object(_VMA)
    w.object(_FILP)
    w.look_up()
    if w.chance.random() < 0.45:
        w.free(w.chance.randint(1, 16))
        w.free_object()
    while w.is_full:
        w.free(32)


WORKLOADS: Final[Mapping[str, _Mixture]] = MappingProxyType(
    {
        "files": _Mixture("page cache: folios of 1 to 32 frames", _files, _CACHES),
        "anon": _Mixture("processes that touch single pages", _anon, _CACHES),
        "thp": _Mixture("huge pages, single pages between them", _thp, _CACHES),
        "slab": _Mixture("kernel objects of 8 to 4096 bytes", _slab, _KMALLOC),
        "tables": _Mixture("page tables, stacks, few pages", _tables, _CACHES),
    }
)
"""Name -> mixture."""

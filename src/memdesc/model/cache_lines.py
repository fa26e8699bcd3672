"""How many cache lines of metadata does an operation touch? Counted, and checked by simulation.

Metadata here is the memory map's entries of the frames concerned, and descriptors. Not
counted, as no design changes it: the kernel's per-CPU structures, list heads, caches of
pointers; and the links of free blocks, which every design keeps in the page itself.

    operation                64-byte page                 smaller page
    allocate, free 2^n       2^n struct pages             the entries (8 of 8 bytes in a line),
                                                          the whole descriptor
    look up a frame          its struct page, and its     its word, and the descriptor's line
                             head's if it is a tail       with the reference count

A descriptor of 80 or 96 bytes lies in two lines wherever a slab puts it; one of 48 in one or
two. Where a descriptor's slab is made or freed on the way, the words of that slab's frames and
its own descriptor are touched too; `Lines` keeps such operations apart.

`simulate` takes the addresses that the machine really touched (`SlabAllocator.trace`) and
gives, for each operation, the distinct lines, and the misses of a small LRU cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.model.compiled import Column, array, compiled, hot, pointers
from memdesc.model.designs import Design
from memdesc.model.slab_state import T_OPERATION, T_SLAB, TOUCH_FIELDS
from memdesc.types import MemoryType

__all__ = ["LINE_BYTES", "Lines", "Simulation", "lines_of_allocation", "lines_of_lookup"]

LINE_BYTES: Final = 64
_LINE_SHIFT: Final = 6
_WAYS: Final = 8
_DISTINCT: Final = 1 << 12
"""Room for the distinct lines of one operation: more than 1,024 struct pages and their rest."""


def lines_of_allocation(design: Design, kind: MemoryType, order: int) -> tuple[int, int]:
    """Lines that allocating, or freeing, 2^order frames touches: at least and at most.

    The two differ only for descriptors whose place in their line depends on the object.
    """
    entries = max(1, (design.bytes_per_frame << order) // LINE_BYTES)
    spec = design.descriptor(kind, order)
    if spec is None:
        return entries, entries
    least, most = _spans(spec.size_bytes)
    return entries + least, entries + most


def lines_of_lookup(design: Design, kind: MemoryType, order: int, *, tail: bool = False) -> int:
    """Lines that a lookup from a frame and its release touch; `tail`: not the first frame.

    Raises QuestionError for a tail of a single frame.
    """
    if tail and not order:
        raise QuestionError("a single frame has no tail")
    if not design.allocates:
        return 2 if tail else 1
    return 1 if design.descriptor(kind, order) is None else 2


@dataclass(frozen=True, slots=True)
class Lines:
    """What a simulation saw; one entry per operation, in order."""

    distinct: NDArray[np.int64]
    """Lines of metadata touched, each once."""
    misses: NDArray[np.int64]
    """Of all accesses, line by line, those that the cache had not."""
    made_slabs: NDArray[np.bool_]
    """A slab was made or freed on the way."""


class _Cache(NamedTuple):
    tags: Column
    """int64[sets * ways]: lines, the latest used first."""
    seen: Column
    """int64[_DISTINCT]: open hash table of the operation's lines."""
    stamp: Column
    """int64[_DISTINCT]: the operation that wrote the entry."""
    params: Column
    """int64: sets, operations so far."""


class _Trace(NamedTuple):
    touch: Column
    distinct: Column
    misses: Column
    slabs: Column


class Simulation:
    """A cache of 8 ways that keeps the lines used last; `size_bytes` is its size.

    Raises QuestionError for a size that gives no power of two of sets.
    """

    def __init__(self, size_bytes: int = 32 << 10) -> None:
        sets = size_bytes // (LINE_BYTES * _WAYS)
        if sets < 1 or sets & (sets - 1) or sets * LINE_BYTES * _WAYS != size_bytes:
            raise QuestionError(f"no cache of 8 ways has {size_bytes} bytes")
        self._cache = _Cache(
            tags=_column(np.full(sets * _WAYS, -1, np.int64)),
            seen=_column(np.zeros(_DISTINCT, np.int64)),
            stamp=_column(np.full(_DISTINCT, -1, np.int64)),
            params=_column(np.array([sets, 0], np.int64)),
        )

    def feed(self, touches: NDArray[np.int64]) -> Lines:
        """Run a trace: rows of address, bytes and kind of access; operations begin with a mark.

        The cache keeps its contents from one call to the next.
        """
        operations = int((touches[:, 2] == T_OPERATION).sum())
        trace = _Trace(
            touch=_column(np.ascontiguousarray(touches).ravel()),
            distinct=_column(np.zeros(operations, np.int64)),
            misses=_column(np.zeros(operations, np.int64)),
            slabs=_column(np.zeros(operations, np.int64)),
        )
        if touches.size:
            _simulate(self._cache, trace, len(touches))
        return Lines(array(trace.distinct), array(trace.misses), array(trace.slabs) != 0)


# --- helpers -----------------------------------------------------------------------------


def _spans(size_bytes: int) -> tuple[int, int]:
    """Lines that an object can lie in, wherever its slab puts it.

    Objects lie at multiples of their size, so at multiples of what size and line share.
    """
    step = size_bytes & -size_bytes
    ends = [start + size_bytes for start in range(0, LINE_BYTES, min(step, LINE_BYTES))]
    spans = [-(-end // LINE_BYTES) for end in ends]
    return min(spans), max(spans)


def _column(values: NDArray[np.int64]) -> Column:
    return cast("Column", values)


@compiled
def _simulate(cache: _Cache, trace: _Trace, rows: int) -> None:
    c = pointers(cache)
    t = pointers(trace)
    sets = c.params[0]
    operation = -1
    for row in range(rows):
        access = t.touch[row * TOUCH_FIELDS + 2]
        if access == T_OPERATION:
            operation += 1
            c.params[1] += 1
            continue
        if access == T_SLAB:
            t.slabs[operation] = 1
        address = t.touch[row * TOUCH_FIELDS]
        size = t.touch[row * TOUCH_FIELDS + 1]
        first = address >> _LINE_SHIFT
        last = (address + size - 1) >> _LINE_SHIFT
        for line in range(first, last + 1):
            if _is_new(c, line):
                t.distinct[operation] += 1
            if not _hits(c, line, sets):
                t.misses[operation] += 1


@hot
def _is_new(c: _Cache, line: int) -> bool:
    """Whether this operation has not touched the line yet."""
    stamp = c.params[1]
    at = (line * 0x9E3779B1 >> 8) & (_DISTINCT - 1)
    while c.stamp[at] == stamp:
        if c.seen[at] == line:
            return False
        at = (at + 1) & (_DISTINCT - 1)
    c.stamp[at] = stamp
    c.seen[at] = line
    return True


@hot
def _hits(c: _Cache, line: int, sets: int) -> bool:
    """Look a line up and make it the latest used of its set."""
    row = (line & (sets - 1)) * _WAYS
    way = 0
    while way < _WAYS - 1 and c.tags[row + way] != line:
        way += 1
    found = c.tags[row + way] == line
    while way > 0:
        c.tags[row + way] = c.tags[row + way - 1]
        way -= 1
    c.tags[row] = line
    return found

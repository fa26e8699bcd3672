"""A map in parts, cut where no folio is: for answers that look at every extent once.

A terabyte is tens of millions of extents.  What works on one part after the other needs
memory for a part, and a source that reads from a file need not hold the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.kpageflags import KPF
from memdesc.map.extents import MemoryMap
from memdesc.map.facts import FactTable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "PART_FRAMES",
    "InParts",
    "Joiner",
    "facts_of_folios",
    "facts_of_heads",
    "orders_of",
    "part_of",
    "parts_of",
]

PART_FRAMES = 1 << 18
"""Parts begin at multiples of so many frames: the largest folio, 1 GiB."""
_EXTENTS = 1 << 18
"""A part has about so many extents, or one span of `PART_FRAMES`."""


@runtime_checkable
class InParts(Protocol):
    """A source that can hand over its map in parts without holding it."""

    @property
    def pfn_end(self) -> int:
        """The first frame after the map."""

    def parts(self, progress: Callable[[int, int], None] | None = None) -> Iterator[MemoryMap]:
        """The map's parts in order, as `parts_of` cuts them."""


def parts_of(result: MemoryMap, *, extents: int = _EXTENTS) -> Iterator[MemoryMap]:
    """Cut `result` into maps of about `extents` extents, at multiples of `PART_FRAMES`."""
    start = result.pfn_start
    while start < result.pfn_end:
        first = result.index_of(start)
        end = result.pfn_end
        if first + extents < len(result):
            reached = int(result.pfn_starts[first + extents])
            end = max(reached & -PART_FRAMES, (start & -PART_FRAMES) + PART_FRAMES)
            end = min(end, result.pfn_end)
        yield part_of(result, start, end)
        start = end


def part_of(result: MemoryMap, pfn_start: int, pfn_end: int) -> MemoryMap:
    """The map of frames [pfn_start, pfn_end) alone. Raises QuestionError outside the map."""
    low, high = result.index_of(pfn_start), result.index_of(pfn_end - 1) + 1
    chosen = slice(low, high)
    starts = result.pfn_starts[chosen]
    if int(starts[0]) != pfn_start:
        starts = starts.copy()
        starts[0] = pfn_start
    return dataclasses.replace(
        result,
        pfn_starts=starts,
        facts=result.facts[chosen],
        pfn_start=pfn_start,
        pfn_end=pfn_end,
        mapcounts=None if result.mapcounts is None else result.mapcounts[chosen],
        cgroups=None if result.cgroups is None else result.cgroups[chosen],
        owners=None if result.owners is None else result.owners[chosen],
        references=None if result.references is None else result.references[chosen],
    )


class Joiner:
    """Makes a map smaller for a question that tells fewer things apart than the map does.

    What costs a look-up and a comparison per extent here saves everything that the question
    would do with it: most neighbours differ in flags that no rule asks about, or in who maps
    them.  Any thread may use one.
    """

    def __init__(self, first: MemoryMap, answers: NDArray[np.integer]) -> None:
        """`first`: any part. `answers`: int[3, facts], what is the same for two frames that may
        be joined, for each fact where nobody knows who holds it, where nobody does, and where
        somebody does (`MemoryMap.references`)."""
        table, self._regions = first.table, first.regions
        _distinct, codes = np.unique(answers, return_inverse=True)
        codes = codes.reshape(answers.shape) + 1
        codes[:, table.with_flags(KPF.COMPOUND_HEAD) | table.with_flags(KPF.COMPOUND_TAIL)] = 0
        self._codes = codes.astype(np.min_scalar_type(int(codes.max(initial=0))))

    def join(self, part: MemoryMap) -> MemoryMap:
        """`part` with neighbours as one extent where the answer is the same, with the fact, the
        map count and the reference of the first; without cgroups.

        Extents of compound pages, of different owners and of different regions stay apart.
        """
        cells: NDArray[np.integer] = part.facts
        if part.references is not None:
            cells = (part.references.astype(np.int32) + 1) * self._codes.shape[1] + part.facts
        codes = self._codes.ravel().take(cells)
        begins = np.empty(len(part), np.bool_)
        begins[:1] = True
        np.not_equal(codes[1:], codes[:-1], out=begins[1:])
        begins |= codes == 0
        if part.owners is not None:
            begins[1:] |= part.owners[1:] != part.owners[:-1]
        for border in self._regions.borders_within(part.pfn_start, part.pfn_end):
            begins[part.index_of(border)] = True
        kept = np.flatnonzero(begins)
        return dataclasses.replace(
            part,
            pfn_starts=part.pfn_starts[kept],
            facts=part.facts[kept],
            mapcounts=None if part.mapcounts is None else part.mapcounts[kept],
            cgroups=None,
            owners=None if part.owners is None else part.owners[kept],
            references=None if part.references is None else part.references[kept],
        )


def facts_of_folios(result: MemoryMap) -> NDArray[np.uint16]:
    """uint16[n]: the fact of each extent; of tails that show their own flags, their head's.

    Rules ask about folios.  Until 6.9 a tail's flag word says little of its folio
    (`Behaviour.tails_show_own_flags`); where the head has the same type, its word counts.
    """
    if not result.machine.behaviour.tails_show_own_flags:
        return result.facts
    return facts_of_heads(result.facts, result.table)


def facts_of_heads(facts: NDArray[np.uint16], table: FactTable) -> NDArray[np.uint16]:
    """uint16[n]: `facts` of runs that follow each other, each tail's replaced by its head's
    where both have the same type."""
    is_tail, is_head = _marks(table)
    before = np.maximum.accumulate(np.where(is_tail[facts], -1, np.arange(facts.size)))
    of_head = facts[np.maximum(before, 0)]
    types = table.types
    good = is_tail[facts] & is_head[of_head] & (types[of_head] == types[facts])
    return np.where(good, of_head, facts)


def orders_of(result: MemoryMap) -> NDArray[np.int8]:
    """int8[n]: as `Compounds.order_of_extent`, quicker, for a map that cuts no folio."""
    is_tail, is_head = _marks(result.table)
    tails = is_tail[result.facts]
    # Whatever is no tail begins something: it reaches to the next that is none.
    begins = np.flatnonzero(~tails)
    orders = np.full(len(result), -1, np.int8)
    if not begins.size:
        return orders
    starts = result.pfn_starts.astype(np.int64)
    edges = np.append(starts[begins], result.pfn_end)
    lengths = result.nr_pages[begins]
    heads = is_head[result.facts[begins]]
    # A run of heads is several heads in a row: only its last frame owns the tails.
    first = edges[:-1] + lengths - 1
    sizes = edges[1:] - first
    whole = heads & (lengths == 1) & (sizes > 1)
    whole &= (sizes & (sizes - 1) == 0) & (first & (sizes - 1) == 0)
    order = np.where(whole, np.frexp(sizes)[1] - 1, np.where(heads, -1, 0)).astype(np.int8)
    # Tails after something that is no head belong to nobody.
    of_tails = np.where(heads, order, np.int8(-1))
    orders[begins[0] :] = np.repeat(of_tails, np.diff(begins, append=len(result)))
    orders[begins] = order
    return orders


def _marks(table: FactTable) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """bool[facts]: (is tail, is head); a freed block that keeps stale marks is neither."""
    used = ~table.with_flags(KPF.BUDDY)
    is_head = table.with_flags(KPF.COMPOUND_HEAD) & used
    return table.with_flags(KPF.COMPOUND_TAIL) & ~is_head & used, is_head

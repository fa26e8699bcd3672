"""Counting what lies in each block of a map: free, movable, in the way, and by whom.

Everything is done on one part of the map after the other (`memdesc.map.parts`), so that a
terabyte needs memory for a part and a few numbers per block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.kpageflags import KPF
from memdesc.map.extents import MemoryMap
from memdesc.map.facts import FactTable
from memdesc.map.parts import Joiner, facts_of_folios
from memdesc.map.threads import in_order, thread_count
from memdesc.rules.classify import Backing
from memdesc.rules.move import MoveOutcome, Obstacle, by_offlining
from memdesc.rules.subject import Asker, Knowledge, Ruling
from memdesc.types import MemoryType, TypeSet

__all__ = [
    "BLOCKING",
    "FREE",
    "MAYBE",
    "MOVABLE",
    "BlockCounts",
    "Cheap",
    "Gone",
    "Names",
    "count_blocks",
]

Ints: TypeAlias = NDArray[np.int64]

FREE, MOVABLE, MAYBE, BLOCKING = range(4)
"""Columns of the count per block."""
_ABSENT, _LOOSE, _DIRTY = 4, 5, 6
"""In the making: frames that no RAM backs, and movable ones that are page cache, clean or not."""
_TAIL: Final = 8
"""Added to the column of a tail."""
_COLUMNS: Final = 2 * _TAIL


@dataclass(frozen=True)
class Gone:
    """What is taken to be free: types, owners, pins, and ranges of frames."""

    types: int = 0
    """Bits of `TypeSet.mask`: frames that are certainly one of these."""
    owners: frozenset[str] = frozenset()
    pins: bool = False
    """Frames that somebody holds beyond mappings and caches count as movable."""
    starts: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Ranges of frames, rising and not touching."""
    ends: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass
class Names:
    """What to call an extent: its owner and its types, as one number."""

    owner_names: tuple[str, ...]
    types: NDArray[np.uint64]
    """uint64[t]: the distinct masks of the fact table."""
    type_of_fact: Ints

    @classmethod
    def of(cls, table: FactTable, owner_names: tuple[str, ...]) -> Names:
        distinct, codes = np.unique(table.types, return_inverse=True)
        return cls(owner_names or ("",), distinct, codes.ravel().astype(np.int64))

    def __len__(self) -> int:
        return len(self.owner_names) * max(1, self.types.size)

    def codes(self, facts: NDArray[np.uint16], owners: NDArray[np.uint32] | None) -> Ints:
        codes = self.type_of_fact[facts]
        if owners is not None:
            codes += owners.astype(np.int64) * self.types.size
        return codes

    def kind(self, code: int) -> TypeSet:
        return TypeSet(int(self.types[code % self.types.size]))

    def owner(self, code: int) -> str:
        return self.owner_names[code // self.types.size]

    def text(self, code: int) -> str:
        """In words: the type, and its owner where that is known."""
        kind, owner = self.kind(code).label, self.owner(code)
        return f"{kind}: {owner}" if owner else kind


@dataclass(frozen=True, slots=True)
class Cheap:
    """A block that little keeps from being free."""

    block: int
    """Number of the block."""
    movable: int
    in_the_way: int
    names: tuple[int, ...]
    """Codes of what is in the way."""


@dataclass
class BlockCounts:
    """Columns per block from `first_block` on, and per name (`Names`)."""

    names: Names
    nr_pages: int
    first_block: int
    frames: Ints
    """int64[b, 4]: frames free, movable, perhaps movable, in the way."""
    whole: NDArray[np.bool_]
    """bool[b]: System RAM of one zone backs all of it."""
    huge: NDArray[np.bool_]
    """bool[b]: one large page fills it."""
    droppable: Ints
    """int64[b]: movable frames that are clean page cache."""
    dirty: Ints
    """int64[b]: movable frames of page cache that has to be written first."""
    unused: Ints
    """int64[b]: frames of large anonymous folios that nobody maps any more: a split gives
    them back."""
    zones: Ints
    """int64[b]: number of the zone, -1 for none."""
    by_name: Ints
    """int64[names, 5]: frames in the way, blocks, blocks alone, blocks by one frame, and
    whether any of them certainly cannot move."""
    cheap: tuple[Cheap, ...]
    """The blocks with least in the way, then with least to move."""


@dataclass(frozen=True)
class _PartCount:
    first_block: int
    frames: Ints
    whole: NDArray[np.bool_]
    huge: NDArray[np.bool_]
    droppable: Ints
    dirty: Ints
    unused: Ints
    zones: Ints
    name_codes: Ints
    by_name: Ints
    cheap: list[Cheap]


def count_blocks(
    parts: Iterable[MemoryMap],
    nr_pages: int,
    kernel: Knowledge,
    *,
    gone: Gone | None = None,
    cheapest: int = 10,
    threads: int = 0,
) -> BlockCounts | None:
    """Count every block of `nr_pages` frames of a map that comes in parts, and name what is in
    the `cheapest` ones; None for a map without frames."""
    counter: _Counter | None = None
    done: list[_PartCount] = []

    def ready() -> Iterator[MemoryMap]:
        nonlocal counter
        for part in parts:
            if counter is None:
                counter = _Counter(part, nr_pages, kernel, gone or Gone(), cheapest)
            yield part

    def count(part: MemoryMap) -> _PartCount:
        assert counter is not None
        return counter.count(part)

    done.extend(in_order(ready(), count, threads=threads or min(2, thread_count())))
    if counter is None:
        return None
    by_name = np.zeros((len(counter.names), 5), np.int64)
    for part in done:
        by_name[part.name_codes] += part.by_name
    return BlockCounts(
        counter.names,
        nr_pages,
        done[0].first_block,
        np.concatenate([part.frames for part in done]),
        np.concatenate([part.whole for part in done]),
        np.concatenate([part.huge for part in done]),
        np.concatenate([part.droppable for part in done]),
        np.concatenate([part.dirty for part in done]),
        np.concatenate([part.unused for part in done]),
        np.concatenate([part.zones for part in done]),
        by_name,
        tuple(_cheapest([one for part in done for one in part.cheap], cheapest)),
    )


# --- one part ----------------------------------------------------------------------------


class _Counter:
    """Counts parts of one map; any thread may ask it.

    What an extent counts as follows from its fact and whether it is held, so there is a table
    of that, and an extent costs a look-up, a shift and an addition.
    """

    def __init__(
        self, first: MemoryMap, nr_pages: int, kernel: Knowledge, gone: Gone, cheapest: int
    ) -> None:
        self.nr_pages, self.gone, self.cheapest = nr_pages, gone, cheapest
        self.shift = nr_pages.bit_length() - 1
        self.names = Names.of(first.table, first.owner_names if first.owners is not None else ())
        table, regions = first.table, first.regions
        self.regions = regions
        is_tail = table.with_flags(KPF.COMPOUND_TAIL) & ~table.with_flags(KPF.BUDDY)
        self._is_head = table.with_flags(KPF.COMPOUND_HEAD)
        self._is_large_anon = table.within(TypeSet.of(MemoryType.ANON)) & table.with_flags(
            KPF.COMPOUND_HEAD | KPF.COMPOUND_TAIL
        )
        self._tail = np.where(is_tail, np.uint8(_TAIL), np.uint8(0))
        self._columns = _columns(table, kernel, gone)
        # Frames that count for the same column, and where they are in the way by the same name.
        named = (self._columns == MAYBE) | (self._columns == BLOCKING)
        name = np.where(named, self.names.type_of_fact + 1, 0)
        self._joiner = Joiner(first, name * _TAIL + self._columns)
        self._gone_owners = np.array([name in gone.owners for name in self.names.owner_names])
        self._is_ram = np.array(
            [region.backing in (Backing.RAM, Backing.UNKNOWN) for region in regions.all]
        )
        zones = list(first.machine.zones)
        self._zone = np.array(
            [-1 if region.zone is None else zones.index(region.zone) for region in regions.all],
            np.int64,
        )

    def count(self, part: MemoryMap) -> _PartCount:
        part = self._joiner.join(part)
        first = part.pfn_start >> self.shift
        blocks = -(-part.pfn_end // self.nr_pages) - first
        starts, column, inserted = self._pieces(part)
        sizes = np.empty(starts.size)
        np.subtract(starts[1:], starts[:-1], out=sizes[:-1])
        sizes[-1] = part.pfn_end - starts[-1]
        block = (starts >> self.shift) - first
        keys = block * _COLUMNS
        keys += column
        table = np.bincount(keys, sizes, minlength=blocks * _COLUMNS).astype(np.int64)
        table = table.reshape(blocks, 2, _TAIL)
        counted = table[:, 0] + table[:, 1]
        counted[:, MOVABLE] += counted[:, _LOOSE]
        counted[:, MOVABLE] += counted[:, _DIRTY]
        frames = np.ascontiguousarray(counted[:, :4])
        zones = self._zones_of(first, blocks)
        whole = (frames.sum(axis=1) == self.nr_pages) & (zones != -2)
        # What was taken to be gone keeps its marks, and fills no block any more.
        huge = whole & (frames[:, FREE] < self.nr_pages)
        huge &= self._huge(part, first, table[:, 1].sum(axis=1))
        plain = column & np.uint8(_TAIL - 1)
        ways = np.flatnonzero((plain == MAYBE) | (plain == BLOCKING))
        ways = ways[(whole & ~huge)[block[ways]]]
        extents = ways - np.cumsum(inserted, dtype=np.int32)[ways]
        owners = None if part.owners is None else part.owners[extents]
        names = self.names.codes(part.facts[extents], owners)
        at, certain = block[ways], plain[ways] == BLOCKING
        codes, by_name = _by_name(names, at, sizes[ways], certain, frames)
        cheap = self._cheap(at, names, frames, first)
        cache = counted[:, _LOOSE], counted[:, _DIRTY]
        unused = self._unused(part, first, blocks)
        return _PartCount(first, frames, whole, huge, *cache, unused, zones, codes, by_name, cheap)

    # --- helpers -------------------------------------------------------------------------

    def _unused(self, part: MemoryMap, first: int, blocks: int) -> Ints:
        """int64[blocks]: frames of large anonymous folios that nobody maps. An extent of tails
        lies in one folio, and so in one block of at least its size."""
        if part.mapcounts is None or not self._is_large_anon.any():
            return np.zeros(blocks, np.int64)
        found = np.flatnonzero(part.mapcounts == 0)
        found = found[self._is_large_anon[part.facts[found]]]
        block = (part.pfn_starts[found].astype(np.int64) >> self.shift) - first
        return np.bincount(block, part.nr_pages[found], minlength=blocks).astype(np.int64)

    def _pieces(self, part: MemoryMap) -> tuple[Ints, NDArray[np.uint8], NDArray[np.bool_]]:
        """(first frame, column, whether it was inserted) of the extents, cut at the borders of
        blocks and of ranges that are gone."""
        starts = part.pfn_starts.astype(np.int64)
        column = self._column_of_extent(part)
        low = -(-part.pfn_start // self.nr_pages) * self.nr_pages
        borders = np.arange(low, part.pfn_end, self.nr_pages)
        if self.gone.starts.size:
            more = np.concatenate([self.gone.starts, self.gone.ends])
            more = more[(more > part.pfn_start) & (more < part.pfn_end)]
            borders = np.union1d(borders, more)
        at = np.searchsorted(starts, borders)
        known = at < starts.size
        known[known] = starts[at[known]] == borders[known]
        new, at = borders[~known], at[~known]
        starts = np.insert(starts, at, new)
        column = np.insert(column, at, column[at - 1])
        if self.gone.starts.size:
            inside = np.searchsorted(self.gone.starts, starts, side="right") - 1
            hit = (inside >= 0) & (starts < self.gone.ends[np.maximum(inside, 0)])
            column[hit & (column & np.uint8(_TAIL - 1) != _ABSENT)] = FREE
        inserted = np.zeros(starts.size, np.bool_)
        inserted[at + np.arange(at.size)] = True
        return starts, column, inserted

    def _column_of_extent(self, part: MemoryMap) -> NDArray[np.uint8]:
        """uint8[extents]: what each counts as, and `_TAIL` for those that begin no folio."""
        facts = facts_of_folios(part)
        column: NDArray[np.uint8]
        if part.references is None:
            column = self._columns[0].take(facts)
        else:
            column = self._columns.ravel().take(
                (part.references.astype(np.int32) + 1) * self._columns.shape[1] + facts
            )
        if self.gone.owners and part.owners is not None:
            column[self._gone_owners[part.owners]] = FREE
        column += self._tail.take(part.facts)
        for index in self._regions_of(part):
            if not self._is_ram[index]:
                low, high = self._extents_of(part, index)
                column[low:high] = _ABSENT
        return column

    def _regions_of(self, part: MemoryMap) -> range:
        low = self.regions.index_of(part.pfn_start)
        return range(low, self.regions.index_of(part.pfn_end - 1) + 1)

    def _extents_of(self, part: MemoryMap, index: int) -> tuple[int, int]:
        """Extents [low, high) of a part that lie in one region."""
        starts = self.regions.starts
        start = max(starts[index], part.pfn_start)
        end = min([*starts[index + 1 : index + 2], part.pfn_end])
        return part.index_of(start), part.index_of(end - 1) + 1

    def _zones_of(self, first: int, blocks: int) -> Ints:
        """int64[blocks]: number of the zone; -1 for none, -2 for a block of several."""
        low = np.arange(first, first + blocks) << self.shift
        edges = np.array(self.regions.starts, np.int64)
        zones = [
            self._zone[np.maximum(np.searchsorted(edges, frame, side="right") - 1, 0)]
            for frame in (low, low + self.nr_pages - 1)
        ]
        return np.where(zones[0] == zones[1], zones[0], -2)

    def _huge(self, part: MemoryMap, first: int, nr_tails: Ints) -> NDArray[np.bool_]:
        """bool[blocks]: whether one compound page of at least a block fills it."""
        begins = np.arange(first, first + nr_tails.size) << self.shift
        at = np.searchsorted(part.pfn_starts, begins.astype(part.pfn_starts.dtype))
        at = np.minimum(at, len(part) - 1)
        has_head = (part.pfn_starts[at] == begins) & self._is_head[part.facts[at]]
        full: NDArray[np.bool_] = nr_tails + has_head == self.nr_pages
        return full

    def _cheap(self, block: Ints, names: Ints, frames: Ints, first: int) -> list[Cheap]:
        """The blocks of this part that are cheapest to free; `block` and `names` of the pieces
        that are in the way."""
        if not self.cheapest:
            return []
        in_the_way = frames[:, MAYBE:].sum(axis=1)
        candidates = np.flatnonzero(np.bincount(block, minlength=len(frames)))
        # Neither number is larger than a block, and blocks that are equal keep their order.
        cost = in_the_way[candidates] * (self.nr_pages + 1) + frames[candidates, MOVABLE]
        if cost.size > self.cheapest:
            low = cost <= np.partition(cost, self.cheapest)[self.cheapest]
            candidates, cost = candidates[low], cost[low]
        order = np.argsort(cost, kind="stable")
        return [
            Cheap(
                first + place,
                int(frames[place, MOVABLE]),
                int(in_the_way[place]),
                tuple(dict.fromkeys(names[block == place].tolist())),
            )
            for place in candidates[order[: self.cheapest]].tolist()
        ]


def _columns(table: FactTable, kernel: Knowledge, gone: Gone) -> NDArray[np.uint8]:
    """uint8[3, facts]: what a frame of each fact counts as, where nobody knows who holds it,
    where nobody does, and where somebody does."""
    asker = Asker(by_offlining, table.types, table.flags, kernel)
    facts = np.arange(len(table), dtype=np.uint16)
    columns = np.empty((3, len(table)), np.uint8)
    for row, extra in enumerate((-1, 0, 0 if gone.pins else 1)):
        codes = asker.codes(facts, None, np.full(len(table), extra, np.int8))
        per_ruling = np.array([_class_of(ruling) for ruling in asker.rulings], np.uint8)
        columns[row] = per_ruling[codes]
    cache = table.within(_CACHE) & ~table.with_flags(_NEVER_DROPPED)
    dirty = table.with_flags(_WRITTEN_FIRST)
    columns[(columns == MOVABLE) & cache & ~dirty] = _LOOSE
    columns[(columns == MOVABLE) & cache & dirty] = _DIRTY
    columns[:, table.within(_FREE_TYPES)] = FREE
    columns[:, table.within(TypeSet.of(MemoryType.HOLE))] = _ABSENT
    if gone.types:
        columns[:, table.within(TypeSet(gone.types))] = FREE
    return columns


def _by_name(
    names: Ints,
    block: Ints,
    sizes: NDArray[np.float64],
    certain: NDArray[np.bool_],
    frames: Ints,
) -> tuple[Ints, Ints]:
    """(codes of names, int64[n, 5] as `BlockCounts.by_name`) of the pieces in the way."""
    codes, local = _distinct(names)
    keys = local * len(frames) + block
    if codes.size * len(frames) <= _DENSE:
        cells = np.bincount(keys, sizes, minlength=codes.size * len(frames))
        found = np.flatnonzero(cells)
        cells = cells[found]
    else:
        found, place = np.unique(keys, return_inverse=True)
        cells = np.bincount(place.ravel(), sizes, minlength=found.size)
    name, where = np.divmod(found, max(1, len(frames)))
    alone = cells == frames[where, MAYBE:].sum(axis=1)
    result = np.zeros((codes.size, 5), np.int64)
    result[:, 0] = np.bincount(name, cells, minlength=codes.size)
    for column, rows in ((1, slice(None)), (2, alone), (3, alone & (cells == 1))):
        result[:, column] = np.bincount(name[rows], minlength=codes.size)
    result[:, 4] = np.bincount(local[certain], minlength=codes.size)
    return codes, result


def _distinct(names: Ints) -> tuple[Ints, Ints]:
    """As `np.unique` with the inverse, which sorts: names are few, unless there are owners."""
    size = int(names.max(initial=-1)) + 1
    if size > max(names.size, 1 << 10):
        codes, local = np.unique(names, return_inverse=True)
        return codes, local.ravel()
    seen = np.zeros(size, np.bool_)
    seen[names] = True
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[names]


def _cheapest(found: list[Cheap], most: int) -> list[Cheap]:
    return sorted(found, key=lambda one: (one.in_the_way, one.movable, one.block))[:most]


_DENSE: Final = 1 << 22
_FREE_TYPES: Final = TypeSet.of(MemoryType.FREE, MemoryType.FREE_PCP, MemoryType.DEFERRED)
_CACHE: Final = TypeSet.of(MemoryType.FILE)
_NEVER_DROPPED: Final = int(KPF.UNEVICTABLE | KPF.MLOCKED | KPF.LOCKED)
_WRITTEN_FIRST: Final = int(KPF.DIRTY | KPF.WRITEBACK)


def _class_of(ruling: Ruling[MoveOutcome]) -> int:
    # A pin that a source cannot show is rare: without reference counts it is noted, and not
    # held against every page of every process.
    moves = {
        outcome.moves
        for outcome in ruling.outcomes
        if not outcome.passing
        and not (outcome.obstacle is Obstacle.REFERENCES and ruling.only is None)
    }
    if moves == {True} or not moves:
        return MOVABLE
    return BLOCKING if moves == {False} else MAYBE

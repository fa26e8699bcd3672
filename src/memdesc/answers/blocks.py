"""How many huge pages could there be, and what is in the way?

Memory is cut into aligned blocks of the wanted size.  A block is free; or it would be,
once the movable pages in it had been moved elsewhere; or some page in it cannot be moved
and blocks it.  The rule (`memdesc.rules.move`) says which, for every distinct kind of
frame; where a source leaves that open, so does the block.

Moving needs room: emptying k blocks takes free frames in the others.  `Supply` says how
many blocks the kernel can make from what is there, as a range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.failure import knowledge_of
from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.map.compound import compounds_of
from memdesc.map.extents import MemoryMap
from memdesc.rules.classify import Backing
from memdesc.rules.move import MoveOutcome, Obstacle, by_offlining
from memdesc.rules.subject import Ruling, Subjects, ask
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES, MemoryType, TypeSet

__all__ = ["BLOCK_SIZES", "BlockRow", "Blocker", "Blocks", "Supply", "blocks"]

BLOCK_SIZES = {"2M": 1 << 21, "1G": 1 << 30}
"""The huge page sizes of x86-64."""

_FREE, _MOVABLE, _MAYBE, _BLOCKING = range(4)
"""Columns of the count per block."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A kind of frame (or its owner) that stands in the way."""

    name: str
    """The type in words; with owners, the slab cache, the caller or the task."""
    types: TypeSet
    frames: int
    blocks: int
    """Blocks that it is in."""
    alone: int
    """Blocks in which it is the only thing in the way."""
    single: int
    """Of those, blocks with a single such frame."""
    certain: bool
    """False where the source cannot tell whether it could be moved."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.types.json,
            "frames": self.frames,
            "blocks": self.blocks,
            "blocks_alone": self.alone,
            "blocks_single": self.single,
            "certain": self.certain,
        }


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One block that is not free, and what it would take."""

    pfn_start: int
    movable: int
    """Frames to move."""
    in_the_way: int
    """Frames that cannot be moved, or perhaps cannot."""
    names: tuple[str, ...]
    """What stands in the way."""

    def to_json(self) -> dict[str, Any]:
        return {
            "pfn_start": self.pfn_start,
            "frames_movable": self.movable,
            "frames_in_the_way": self.in_the_way,
            "names": list(self.names),
        }


@dataclass(frozen=True, slots=True)
class Supply:
    """How many free blocks there can be."""

    now: int
    """Free as they are."""
    compacted_min: int
    """After moving what certainly moves, into the room that is there."""
    compacted_max: int
    """The same, with what perhaps moves."""
    reclaimed_max: int
    """And with clean page cache dropped, as an allocation under pressure does."""


@dataclass(frozen=True)
class Blocks:
    """The whole answer; arrays are per block, by rising frame."""

    size_bytes: int
    pfn_starts: NDArray[np.int64]
    """int64[b]: first frames of the blocks that System RAM backs as a whole."""
    counts: NDArray[np.int64]
    """int64[b, 4]: frames free, movable, perhaps movable, in the way."""
    huge: NDArray[np.bool_]
    """bool[b]: one large page fills it: it is in use as a huge page."""
    blockers: tuple[Blocker, ...]
    supply: Supply
    cheapest: tuple[BlockRow, ...]
    notes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """What was taken to be gone (`--without`)."""
    _extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def nr_pages(self) -> int:
        """Frames of a block."""
        return self.size_bytes >> PAGE_SHIFT

    @cached_property
    def is_free(self) -> NDArray[np.bool_]:
        free: NDArray[np.bool_] = self.counts[:, _FREE] == self.nr_pages
        return free

    @cached_property
    def is_blocked(self) -> NDArray[np.bool_]:
        blocked: NDArray[np.bool_] = (self.counts[:, _BLOCKING] > 0) & ~self.huge
        return blocked

    @cached_property
    def is_open(self) -> NDArray[np.bool_]:
        """Whether only frames of which nobody knows stand in the way."""
        unknown: NDArray[np.bool_] = (
            (self.counts[:, _MAYBE] > 0) & (self.counts[:, _BLOCKING] == 0) & ~self.huge
        )
        return unknown

    @cached_property
    def is_movable(self) -> NDArray[np.bool_]:
        """Whether moving pages away would free it."""
        movable: NDArray[np.bool_] = ~(self.is_free | self.is_blocked | self.is_open | self.huge)
        return movable

    def to_json(self) -> dict[str, Any]:
        """Schema memdesc-blocks/1."""
        return {
            "schema": "memdesc-blocks/1",
            "block_size_bytes": self.size_bytes,
            "blocks": int(self.pfn_starts.size),
            "blocks_free": int(self.is_free.sum()),
            "blocks_huge": int(self.huge.sum()),
            "blocks_movable": int(self.is_movable.sum()),
            "blocks_open": int(self.is_open.sum()),
            "blocks_blocked": int(self.is_blocked.sum()),
            "frames_to_move": int(self.counts[self.is_movable, _MOVABLE].sum()),
            "supply": {
                "now": self.supply.now,
                "compacted_min": self.supply.compacted_min,
                "compacted_max": self.supply.compacted_max,
                "reclaimed_max": self.supply.reclaimed_max,
            },
            "without": list(self.without),
            "rows": [blocker.to_json() for blocker in self.blockers],
            "cheapest": [row.to_json() for row in self.cheapest],
            "notes": list(self.notes),
        }


def blocks(
    result: MemoryMap,
    size_bytes: int = BLOCK_SIZES["2M"],
    *,
    without: Sequence[str] = (),
    gone: NDArray[np.bool_] | None = None,
    cheapest: int = 10,
) -> Blocks:
    """Cut `result` into blocks of `size_bytes` and say what stands in the way of each.

    `without` names types or owners to be taken as free ("slab", "dentry"); `gone` is a
    bool per extent that does the same, for whatever else a caller can name (a process).
    Exact for the map; a whole block counts only where System RAM backs all of it.
    Raises QuestionError for a name that is no type or owner of this map, and for a size
    that is no power of two of at least a page.
    """
    if size_bytes < PAGE_SIZE_BYTES or size_bytes & (size_bytes - 1):
        raise QuestionError(f"{size_bytes} bytes is no block size", hint="2M or 1G")
    nr_pages = size_bytes >> PAGE_SHIFT
    cut = _Cut.of(result, nr_pages)
    classes, names = _classes(result), _names(result)
    kind = classes[cut.extent]
    name = names.codes[cut.extent]
    removed = np.zeros(len(result), np.bool_) if gone is None else gone.copy()
    for word in without:
        removed |= _named(result, names, word)
    kind = np.where(removed[cut.extent], _FREE, kind)

    counts = np.zeros((cut.nr_blocks, 4), np.int64)
    np.add.at(counts, (cut.block, kind), cut.nr_pages)
    whole = counts.sum(axis=1) == nr_pages
    huge = _filled_by_one(result, cut, nr_pages) & whole
    kept = np.flatnonzero(whole)
    ways = np.flatnonzero((kind >= _MAYBE) & whole[cut.block] & ~huge[cut.block])
    blockers = _blockers(cut, ways, kind, name, names, counts)
    return Blocks(
        size_bytes=size_bytes,
        pfn_starts=kept * nr_pages + cut.first_block * nr_pages,
        counts=counts[kept],
        huge=huge[kept],
        blockers=blockers,
        supply=_supply(result, cut, counts, kind, huge, whole, nr_pages),
        cheapest=_cheapest(cut, ways, name, names, counts, nr_pages, cheapest),
        notes=_notes(result),
        without=tuple(without),
    )


# --- cutting -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """Extents cut at the borders of blocks; columns of the same length."""

    extent: NDArray[np.int64]
    block: NDArray[np.int64]
    """Number of the block, from `first_block`."""
    nr_pages: NDArray[np.int64]
    starts: NDArray[np.int64]
    first_block: int
    nr_blocks: int

    @classmethod
    def of(cls, result: MemoryMap, nr_pages: int) -> _Cut:
        """Pieces of the extents that RAM backs, each inside one block."""
        starts = result.pfn_starts.astype(np.int64)
        sizes = result.nr_pages
        backing = np.array([region.backing for region in result.regions.all])
        ram = np.isin(backing, (Backing.RAM, Backing.UNKNOWN))[result.region_of_extent]
        ram &= ~result.table.within(TypeSet.of(MemoryType.HOLE))[result.facts]
        chosen = np.flatnonzero(ram & (sizes > 0))
        low, high = starts[chosen], starts[chosen] + sizes[chosen]
        pieces = (high - 1) // nr_pages - low // nr_pages + 1
        extent = np.repeat(chosen, pieces)
        first = np.repeat(low // nr_pages, pieces)
        step = np.arange(extent.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        block = first + step
        begin = np.maximum(np.repeat(low, pieces), block * nr_pages)
        end = np.minimum(np.repeat(high, pieces), (block + 1) * nr_pages)
        first_block = int(block[0]) if block.size else 0
        nr_blocks = int(block[-1]) - first_block + 1 if block.size else 0
        return cls(extent, block - first_block, end - begin, begin, first_block, nr_blocks)


def _filled_by_one(result: MemoryMap, cut: _Cut, nr_pages: int) -> NDArray[np.bool_]:
    """bool[blocks]: whether one compound page of at least a block fills it."""
    orders = compounds_of(result).order_of_extent
    wanted = nr_pages.bit_length() - 1
    in_large = np.zeros(cut.nr_blocks, np.int64)
    large = orders[cut.extent] >= wanted
    np.add.at(in_large, cut.block[large], cut.nr_pages[large])
    filled: NDArray[np.bool_] = in_large == nr_pages
    return filled


# --- classes and names -------------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    """What to call an extent that is in the way."""

    codes: NDArray[np.int64]
    texts: tuple[str, ...]
    types: tuple[TypeSet, ...]


def _classes(result: MemoryMap) -> NDArray[np.int64]:
    """int64[extents]: free, movable, perhaps movable, in the way."""
    subjects = Subjects(
        result.table.types[result.facts],
        result.table.flags[result.facts],
        compounds_of(result).order_of_extent.astype(np.int8),
        result.references,
    )
    answers = ask(by_offlining, subjects, knowledge_of(result.machine))
    per_ruling = np.array([_class_of(ruling) for ruling in answers.rulings], np.int64)
    classes: NDArray[np.int64] = per_ruling[answers.codes]
    free = result.table.within(_FREE_TYPES)[result.facts]
    classes[free] = _FREE
    return classes


_FREE_TYPES = TypeSet.of(MemoryType.FREE, MemoryType.FREE_PCP, MemoryType.DEFERRED)


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
        return _MOVABLE
    return _BLOCKING if moves == {False} else _MAYBE


def _names(result: MemoryMap) -> _Names:
    types = result.table.types[result.facts]
    owners = np.zeros(len(result), np.int64)
    if result.owners is not None:
        owners = result.owners.astype(np.int64)
    distinct_types, type_code = np.unique(types, return_inverse=True)
    keys = owners * distinct_types.size + type_code.ravel()
    distinct, codes = np.unique(keys, return_inverse=True)
    texts, kinds = [], []
    for key in distinct.tolist():
        owner, code = divmod(key, distinct_types.size)
        kind = TypeSet(int(distinct_types[code]))
        owner_name = result.owner_names[owner] if result.owners is not None else ""
        texts.append(f"{kind.label}: {owner_name}" if owner_name else kind.label)
        kinds.append(kind)
    return _Names(codes.ravel().astype(np.int64), tuple(texts), tuple(kinds))


def _named(result: MemoryMap, names: _Names, word: str) -> NDArray[np.bool_]:
    """bool[extents]: whose type or owner is `word`."""
    by_type = {kind.value for kind in MemoryType}
    if word in by_type:
        kind = TypeSet.of(MemoryType(word))
        return result.table.within(kind)[result.facts]
    if result.owners is not None and word in result.owner_names:
        same: NDArray[np.bool_] = result.owners == result.owner_names.index(word)
        return same
    raise QuestionError(
        f"nothing here is called {word!r}",
        hint="--without takes a type of `memdesc ledger`, or an owner of `ledger --by owner`",
    )


def _blockers(
    cut: _Cut,
    ways: NDArray[np.int64],
    kind: NDArray[np.int64],
    name: NDArray[np.int64],
    names: _Names,
    counts: NDArray[np.int64],
) -> tuple[Blocker, ...]:
    if not ways.size:
        return ()
    keys = name[ways] * cut.nr_blocks + cut.block[ways]
    distinct, place = np.unique(keys, return_inverse=True)
    frames = np.bincount(place.ravel(), weights=cut.nr_pages[ways]).astype(np.int64)
    what, block = np.divmod(distinct, cut.nr_blocks)
    in_the_way = counts[:, _MAYBE:].sum(axis=1)[block]
    alone = frames == in_the_way
    rows = []
    certain = np.zeros(len(names.texts), np.bool_)
    certain[name[ways][kind[ways] == _BLOCKING]] = True
    for code in np.unique(what).tolist():
        mine = what == code
        rows.append(
            Blocker(
                names.texts[code],
                names.types[code],
                int(frames[mine].sum()),
                int(mine.sum()),
                int((mine & alone).sum()),
                int((mine & alone & (frames == 1)).sum()),
                bool(certain[code]),
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.alone, -row.blocks, row.name)))


def _cheapest(
    cut: _Cut,
    ways: NDArray[np.int64],
    name: NDArray[np.int64],
    names: _Names,
    counts: NDArray[np.int64],
    nr_pages: int,
    most: int,
) -> tuple[BlockRow, ...]:
    """The blocks with least in the way, then with least to move."""
    if not ways.size or most < 1:
        return ()
    candidates = np.unique(cut.block[ways])
    in_the_way = counts[candidates][:, _MAYBE:].sum(axis=1)
    order = np.lexsort((counts[candidates, _MOVABLE], in_the_way))[:most]
    rows = []
    for block in candidates[order].tolist():
        mine = ways[cut.block[ways] == block]
        rows.append(
            BlockRow(
                (block + cut.first_block) * nr_pages,
                int(counts[block, _MOVABLE]),
                int(counts[block, _MAYBE:].sum()),
                tuple(dict.fromkeys(names.texts[code] for code in name[mine].tolist())),
            )
        )
    return tuple(rows)


# --- supply ------------------------------------------------------------------------------

_CLEAN_CACHE_NOT = KPF.DIRTY | KPF.WRITEBACK | KPF.UNEVICTABLE | KPF.MLOCKED | KPF.LOCKED


def _supply(
    result: MemoryMap,
    cut: _Cut,
    counts: NDArray[np.int64],
    kind: NDArray[np.int64],
    huge: NDArray[np.bool_],
    whole: NDArray[np.bool_],
    nr_pages: int,
) -> Supply:
    """How many blocks can be had, zone by zone: pages do not move across zones."""
    region = result.region_of_extent[cut.extent]
    zone_of_region = np.array(
        [_zone_number(result, index) for index in range(len(result.regions.all))], np.int64
    )
    zone_of_block = np.full(cut.nr_blocks, -1, np.int64)
    zone_of_block[cut.block] = zone_of_region[region]
    droppable = np.zeros(cut.nr_blocks, np.int64)
    clean = result.table.within(TypeSet.of(MemoryType.FILE)) & ~result.table.with_flags(
        _CLEAN_CACHE_NOT.value
    )
    loose = clean[result.facts][cut.extent] & (kind != _FREE)
    np.add.at(droppable, cut.block[loose], cut.nr_pages[loose])

    def add_up(maybe: bool, drop: bool) -> int:
        total = 0
        for zone in np.unique(zone_of_block[whole]).tolist():
            mine = whole & (zone_of_block == zone) & ~huge
            part = counts[mine]
            free, moving = part[:, _FREE].copy(), part[:, _MOVABLE].copy()
            if maybe:
                moving += part[:, _MAYBE]
                usable = part[:, _BLOCKING] == 0
            else:
                usable = part[:, _BLOCKING] + part[:, _MAYBE] == 0
            if drop:
                gone = np.minimum(droppable[mine], moving)
                free += gone
                moving -= gone
            total += _packed(free, moving, usable)
        return total

    now = int((whole & ~huge & (counts[:, _FREE] == nr_pages)).sum())
    return Supply(now, add_up(False, False), add_up(True, False), add_up(True, True))


def _packed(free: NDArray[np.int64], moving: NDArray[np.int64], usable: NDArray[np.bool_]) -> int:
    """Blocks that can be emptied: those with least to move first, while there is room.

    Emptying the first k of them needs room for their movable pages in the free frames of
    all the others.
    """
    order = np.flatnonzero(usable)[np.argsort(moving[usable], kind="stable")]
    needed = np.cumsum(moving[order])
    room = int(free.sum()) - np.cumsum(free[order])
    fits = np.flatnonzero(needed <= room)
    return int(fits[-1]) + 1 if fits.size else 0


def _zone_number(result: MemoryMap, index: int) -> int:
    zone = result.regions.all[index].zone
    return -1 if zone is None else list(result.machine.zones).index(zone)


def _notes(result: MemoryMap) -> tuple[str, ...]:
    notes = []
    if result.references is None:
        notes.append(
            "reference counts are not visible here: a pinned page would count as movable "
            "(--source live:struct, or a crash dump, shows pins)"
        )
    return tuple(notes)

"""Can this memory be moved away? A page, a range, a memory block or a whole zone.

Offlining a memory block, and every large contiguous allocation, has to empty a range; one
page that cannot move stops it, and so does a lack of free frames to move to.  The answer
counts what lies in the range and names what would stop it, before anybody tries.

Pages of ZONE_MOVABLE go to any zone, all others never there
(`mm/migrate.c:alloc_migration_target` @6.1, @6.12, @7.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.failure import knowledge_of
from memdesc.errors import QuestionError
from memdesc.map.extents import MemoryMap
from memdesc.map.facts import FactTable
from memdesc.map.machine import Machine
from memdesc.map.parts import Joiner, facts_of_folios, orders_of, parts_of
from memdesc.map.threads import in_order, thread_count
from memdesc.rules.classify import Backing
from memdesc.rules.move import MovedBy, MoveOutcome, by_compaction, by_offlining
from memdesc.rules.subject import Asker, Knowledge, Ruling
from memdesc.types import PAGE_SIZE_BYTES, Certainty, MemoryType, Pfn, PfnRange, TypeSet

__all__ = ["Movement", "MovementRow", "move", "parse_area"]


@dataclass(frozen=True, slots=True)
class MovementRow:
    """Frames of one type for which the answer is the same."""

    types: TypeSet
    owner: str
    """Slab cache, caller, task, file system; "" where not visible."""
    frames: int
    offlining: Ruling[MoveOutcome]
    compaction: Ruling[MoveOutcome]
    first: Pfn
    """One of the frames, for `memdesc what`."""

    @property
    def moves(self) -> bool | None:
        """Whether it leaves the range when that is offlined; None where nobody can tell."""
        answers = {outcome.moves for outcome in self.offlining.outcomes}
        return answers.pop() if len(answers) == 1 else None

    @property
    def leaves(self) -> bool | None:
        """As `moves`, but with time: offlining tries again, and drains per-CPU batches first
        (`mm/memory_hotplug.c:offline_pages`, lru_cache_disable @6.1)."""
        answers = {outcome.moves or outcome.passing for outcome in self.offlining.outcomes}
        return answers.pop() if len(answers) == 1 else None

    def to_json(self) -> dict[str, Any]:
        return {
            "type": self.types.json,
            "owner": self.owner or None,
            "frames": self.frames,
            "size_bytes": self.frames * PAGE_SIZE_BYTES,
            "moves": self.moves,
            "first_pfn": self.first,
            "offlining": move_json(self.offlining),
            "compaction": move_json(self.compaction),
        }


@dataclass(frozen=True)
class Movement:
    """The answer for one area; rows with what stops it first."""

    name: str
    pages: PfnRange
    rows: tuple[MovementRow, ...]
    not_present: int
    """Frames of the area that no RAM backs."""
    notes: tuple[str, ...] = ()
    room: int | None = None
    """Frames outside the area that its pages may be moved to, without reclaim; None where the
    source has no zones."""

    @property
    def can_be_emptied(self) -> bool | None:
        """True: everything moves, if not at once; False: something certainly does not; None: it
        depends on what the source cannot see, or on reclaim making room."""
        answers = {row.leaves for row in self.rows}
        if False in answers:
            return False
        return None if None in answers or self.lacks_room else True

    @property
    def frames_to_move(self) -> int:
        """Frames that have to go somewhere else."""
        return sum(row.frames for row in self.rows if _is_moved(row.offlining))

    @property
    def lacks_room(self) -> bool:
        """Whether reclaim would have to make room first."""
        return self.room is not None and self.frames_to_move > self.room

    def to_json(self) -> dict[str, Any]:
        return {
            "asked": self.name,
            "pfn_start": self.pages.pfn_start,
            "pfn_end": self.pages.pfn_end,
            "frames_present": sum(row.frames for row in self.rows),
            "frames_not_present": self.not_present,
            "can_be_emptied": self.can_be_emptied,
            "frames_to_move": self.frames_to_move,
            "frames_of_room": self.room,
            "rows": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }


def move(result: MemoryMap | Iterable[MemoryMap], pages: PfnRange, name: str = "") -> Movement:
    """What lies in `pages` and whether it moves; `result` is a map, or its parts in order
    (`memdesc.map.parts`). Raises QuestionError outside the map."""
    parts = parts_of(result) if isinstance(result, MemoryMap) else result
    count: _Count | None = None
    reached = 0

    def wanted() -> Iterator[MemoryMap]:
        nonlocal count, reached
        for part in parts:
            reached = part.pfn_end
            if part.pfn_end > pages.pfn_start:
                count = count or _Count(part)
                yield part
            if part.pfn_end >= pages.pfn_end:
                return

    def look(part: MemoryMap) -> _Cells:
        assert count is not None
        return count.cells(part, pages)

    for cells in in_order(wanted(), look, threads=min(2, thread_count())):
        assert count is not None
        count.add(cells)
    if count is None or pages.pfn_start >= pages.pfn_end or pages.pfn_end > reached:
        raise QuestionError(f"frames {pages} are not all in the map, which ends at {reached:#x}")
    rows = count.rows()
    order = {False: 0, None: 1, True: 2}
    rows.sort(key=lambda row: (order[row.moves], -row.frames, row.types.mask, row.owner))
    notes = _notes(count.sees_references, rows)
    room = _room(count.machine, pages, rows)
    return Movement(name or str(pages), pages, tuple(rows), count.absent, notes, room)


def parse_area(text: str, machine: Machine, pfn_end: int) -> PfnRange:
    """Read what people call an area.

    0x1000-0x2000      frames, half-open
    block:37           memory block 37 of /sys/devices/system/memory
    zone:DMA32         a zone; zone:1/Normal names that of node 1

    Raises QuestionError for anything else, and for an area that this machine does not have.
    """
    word = text.strip()
    if found := re.fullmatch(r"(0x[0-9a-fA-F]{1,13})-(0x[0-9a-fA-F]{1,13})", word):
        pages = PfnRange(Pfn(int(found[1], 16)), Pfn(int(found[2], 16)))
        if pages.nr_pages < 1:
            raise QuestionError(f"{word} holds no frame: the end is not part of a range")
        return pages
    if found := re.fullmatch(r"block:([0-9]{1,9})", word):
        size = machine.section_pages
        start = int(found[1]) * size
        if start >= pfn_end:
            raise QuestionError(
                f"there is no memory block {found[1]}: the last one is {(pfn_end - 1) // size}"
            )
        return PfnRange(Pfn(start), Pfn(min(start + size, pfn_end)))
    if found := re.fullmatch(r"zone:(?:([0-9]{1,4})/)?(\w{1,16})", word):
        zones = [
            zone
            for zone in machine.zones
            if zone.name == found[2] and (found[1] is None or zone.node == int(found[1]))
        ]
        if len(zones) == 1:
            zone = zones[0]
            return PfnRange(Pfn(zone.pfn_start), Pfn(min(zone.pfn_start + zone.spanned, pfn_end)))
        known = ", ".join(f"zone:{zone.node}/{zone.name}" for zone in machine.zones)
        raise QuestionError(
            f"{word} names {len(zones)} zones of this machine", hint=f"it has {known or 'none'}"
        )
    raise QuestionError(
        f"not a place or an area: {word[:60]!r}",
        hint="0x1000-0x2000 (frames), block:37 (a memory block), zone:DMA32, or a place as in "
        "`memdesc what`",
    )


def move_json(ruling: Ruling[MoveOutcome]) -> dict[str, Any]:
    """The JSON form of a ruling."""
    return {
        "moves": sorted({outcome.moves for outcome in ruling.outcomes}, reverse=True),
        "certainty": ruling.certainty.value,
        "outcomes": [
            {
                "moves": outcome.moves,
                "by": outcome.by.value,
                "obstacle": outcome.obstacle.name.lower(),
                "reason": outcome.obstacle.value,
                "passing": outcome.passing,
            }
            for outcome in ruling.outcomes
        ],
        "source": ruling.source,
    }


# --- helpers -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cells:
    """What one part adds: frames by cell, and where its extents are."""

    found: NDArray[np.int64]
    frames: NDArray[np.int64]
    absent: int
    cells: NDArray[np.integer]
    starts: NDArray[np.int64]


class _Count:
    """Frames by fact, order, references and owner: what the rules are asked about."""

    def __init__(self, first: MemoryMap) -> None:
        self.table, self.machine = first.table, first.machine
        self.owner_names = first.owner_names if first.owners is not None else ("",)
        self.sees_references = first.references is not None
        self.absent = 0
        self._is_hole = first.table.within(TypeSet.of(MemoryType.HOLE))
        self._joiner = Joiner(first, _alike(first.table, knowledge_of(first.machine)))
        self._is_ram = np.array(
            [one.backing in (Backing.RAM, Backing.UNKNOWN) for one in first.regions.all]
        )
        self._found: dict[int, list[int]] = {}

    def cells(self, part: MemoryMap, pages: PfnRange) -> _Cells:
        """Count the frames of `part` that lie in `pages`; any thread may call it."""
        part = self._joiner.join(part)
        starts = part.pfn_starts.astype(np.int64)
        sizes = part.nr_pages
        if part.pfn_start < pages.pfn_start or part.pfn_end > pages.pfn_end:
            ends = np.minimum(starts + sizes, pages.pfn_end)
            starts = np.maximum(starts, pages.pfn_start)
            sizes = np.maximum(ends - starts, 0)
        cells = facts_of_folios(part).astype(np.int32) * np.int32(_CELLS)
        cells += (orders_of(part) + np.int8(1)) * np.int8(3)
        if part.references is not None:
            cells += part.references + np.int8(1)
        if part.owners is not None:
            cells = cells + part.owners.astype(np.int64) * (len(self.table) * _CELLS)
        there = self._is_ram[part.region_of_extent] & ~self._is_hole[part.facts]
        absent = int(sizes[~there].sum())
        there &= sizes > 0
        if not there.all():
            cells, starts, sizes = cells[there], starts[there], sizes[there]
        if part.owners is None:
            sums = np.bincount(cells, sizes)
            found = np.flatnonzero(sums)
            return _Cells(found, sums[found].astype(np.int64), absent, cells, starts)
        found, place = np.unique(cells, return_inverse=True)
        sums = np.bincount(place.ravel(), sizes, minlength=found.size)
        return _Cells(found, sums.astype(np.int64), absent, cells, starts)

    def add(self, part: _Cells) -> None:
        """Add what `cells` counted; parts in order."""
        self.absent += part.absent
        for cell, frames in zip(part.found.tolist(), part.frames.tolist(), strict=True):
            if cell not in self._found:
                first = int(part.starts[int(np.argmax(part.cells == cell))])
                self._found[cell] = [0, first]
            self._found[cell][0] += frames

    def rows(self) -> list[MovementRow]:
        """Equal answers about one type and owner joined."""
        kernel = knowledge_of(self.machine)
        types, flags = self.table.types, self.table.flags
        offline = Asker(by_offlining, types, flags, kernel)
        compact = Asker(by_compaction, types, flags, kernel)
        keys = np.array(list(self._found), np.int64)
        owners, cells = np.divmod(keys, max(1, len(self.table)) * _CELLS)
        facts, rest = np.divmod(cells, _CELLS)
        orders, extra = np.divmod(rest, 3)
        columns = (
            facts.astype(np.uint16),
            (orders - 1).astype(np.int8),
            (extra - 1 if self.sees_references else extra * 0 - 1).astype(np.int8),
        )
        answers = offline.codes(*columns).tolist(), compact.codes(*columns).tolist()
        joined: dict[
            tuple[int, int, Ruling[MoveOutcome], Ruling[MoveOutcome]], tuple[int, int]
        ] = {}
        for fact, owner, off, comp, (frames, pfn) in zip(
            facts.tolist(), owners.tolist(), *answers, self._found.values(), strict=True
        ):
            key = int(types[fact]), owner, offline.rulings[off], compact.rulings[comp]
            sums = joined.get(key, (0, pfn))
            joined[key] = sums[0] + frames, min(sums[1], pfn)
        return [
            MovementRow(TypeSet(mask), self.owner_names[owner], frames, off, comp, Pfn(pfn))
            for (mask, owner, off, comp), (frames, pfn) in joined.items()
        ]


_CELLS = 32 * 3
"""Cells of one fact: orders from -1 to 30, and references -1, 0 and 1."""


def _alike(table: FactTable, kernel: Knowledge) -> NDArray[np.int64]:
    """int64[3, facts]: equal where type and answers are, for frames of no compound page."""
    rows = len(table)
    facts, orders = np.arange(rows, dtype=np.uint16), np.zeros(rows, np.int8)
    askers = [
        Asker(rule, table.types, table.flags, kernel) for rule in (by_offlining, by_compaction)
    ]
    code_of: dict[tuple[int, *tuple[Ruling[MoveOutcome], ...]], int] = {}
    alike = np.empty((3, rows), np.int64)
    for row in range(3):
        extra = np.full(rows, row - 1, np.int8)
        codes = [asker.codes(facts, orders, extra).tolist() for asker in askers]
        alike[row] = [
            code_of.setdefault(
                (mask, *(asker.rulings[code] for asker, code in zip(askers, pair, strict=True))),
                len(code_of),
            )
            for mask, *pair in zip(table.types.tolist(), *codes, strict=True)
        ]
    return alike


def _is_moved(ruling: Ruling[MoveOutcome]) -> bool:
    return any(one.moves and one.by is not MovedBy.NOTHING for one in ruling.outcomes)


def _room(machine: Machine, pages: PfnRange, rows: Sequence[MovementRow]) -> int | None:
    """Free frames outside `pages`, above the marks of the zones that its pages may go to."""
    if not machine.zones:
        return None
    mine = [
        zone
        for zone in machine.zones
        if zone.pfn_start < pages.pfn_end and pages.pfn_start < zone.pfn_end
    ]
    anywhere = all(zone.name == _MOVABLE_ZONE for zone in mine)
    room = -sum(row.frames for row in rows if row.types.names[0] in _FREE_NAMES)
    for zone in machine.zones:
        if zone.managed and (anywhere or zone.name != _MOVABLE_ZONE):
            room += max(0, zone.free + zone.pcp - zone.wmark_min - zone.reserve)
    return max(0, room)


_MOVABLE_ZONE = "Movable"
_FREE_NAMES = (MemoryType.FREE.value, MemoryType.FREE_PCP.value)


def _notes(sees_references: bool, rows: Sequence[MovementRow]) -> tuple[str, ...]:
    unsure = any(row.offlining.certainty is Certainty.NOT_VISIBLE for row in rows)
    if unsure and not sees_references:
        return (
            "reference counts are not visible here, so a pin would not show "
            "(--source live:struct, or a crash dump, shows them)",
        )
    return ()

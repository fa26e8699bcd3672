"""Can this memory be moved away? A page, a range, a memory block or a whole zone.

Offlining a memory block, and every large contiguous allocation, has to empty a range; one
page that cannot move stops it.  The answer counts what lies in the range and names what
would stop it, before anybody tries.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memdesc.answers.failure import knowledge_of
from memdesc.errors import QuestionError
from memdesc.map.compound import compounds_of
from memdesc.map.extents import MemoryMap
from memdesc.map.machine import Machine
from memdesc.rules.classify import Backing
from memdesc.rules.move import MoveOutcome, by_compaction, by_offlining
from memdesc.rules.subject import Ruling, Subjects, ask
from memdesc.types import PAGE_SIZE_BYTES, Certainty, Pfn, PfnRange, TypeSet

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

    @property
    def can_be_emptied(self) -> bool | None:
        """True: everything moves; False: something certainly does not; None: it depends on
        what the source cannot see."""
        answers = {row.moves for row in self.rows}
        return False if False in answers else None if None in answers else True

    def to_json(self) -> dict[str, Any]:
        return {
            "asked": self.name,
            "pfn_start": self.pages.pfn_start,
            "pfn_end": self.pages.pfn_end,
            "frames_present": sum(row.frames for row in self.rows),
            "frames_not_present": self.not_present,
            "can_be_emptied": self.can_be_emptied,
            "rows": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }


def move(result: MemoryMap, pages: PfnRange, name: str = "") -> Movement:
    """What lies in `pages` and whether it moves. Raises QuestionError outside the map."""
    if pages.pfn_start >= pages.pfn_end or pages.pfn_end > result.pfn_end:
        raise QuestionError(
            f"frames {pages} are not all in the map, which ends at {result.pfn_end:#x}"
        )
    low = result.index_of(pages.pfn_start)
    high = result.index_of(pages.pfn_end - 1) + 1
    chosen = slice(low, high)
    subjects = Subjects(
        result.table.types[result.facts[chosen]],
        result.table.flags[result.facts[chosen]],
        compounds_of(result).order_of_extent[chosen].astype(np.int8),
        None if result.references is None else result.references[chosen],
    )
    kernel = knowledge_of(result.machine)
    offlining = ask(by_offlining, subjects, kernel)
    compaction = ask(by_compaction, subjects, kernel)
    sums: dict[tuple[int, str, int, int], list[int]] = defaultdict(lambda: [0, -1])
    absent = 0
    starts = result.pfn_starts[chosen].astype(np.int64)
    for row, start in enumerate(starts.tolist()):
        first = max(start, pages.pfn_start)
        end = min(start + int(result.nr_pages[low + row]), pages.pfn_end)
        region = result.regions.all[int(result.region_of_extent[low + row])]
        if region.backing not in (Backing.RAM, Backing.UNKNOWN):
            absent += end - first
            continue
        owner = ""
        if result.owners is not None:
            owner = result.owner_names[int(result.owners[low + row])]
        mask = int(subjects.types[row])
        cell = sums[mask, owner, int(offlining.codes[row]), int(compaction.codes[row])]
        cell[0] += end - first
        cell[1] = first if cell[1] < 0 else cell[1]
    rows = [
        MovementRow(
            TypeSet(mask), owner, frames, offlining.rulings[a], compaction.rulings[b], Pfn(first)
        )
        for (mask, owner, a, b), (frames, first) in sums.items()
    ]
    order = {False: 0, None: 1, True: 2}
    rows.sort(key=lambda row: (order[row.moves], -row.frames, row.types.mask))
    return Movement(name or str(pages), pages, tuple(rows), absent, _notes(result, rows))


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


def _notes(result: MemoryMap, rows: Sequence[MovementRow]) -> tuple[str, ...]:
    unsure = any(row.offlining.certainty is Certainty.NOT_VISIBLE for row in rows)
    if unsure and result.references is None:
        return (
            "reference counts are not visible here, so a pin would not show "
            "(--source live:struct, or a crash dump, shows them)",
        )
    return ()

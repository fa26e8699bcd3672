"""What the report says of moving and failing memory, beyond the rows of the answers.

Zones, memory blocks and kinds: three looks at what could be moved away.
"""

from __future__ import annotations

from dataclasses import dataclass

from memdesc.answers.blocks import Blocks, blocks
from memdesc.answers.brief import failure_rows, movement_rows
from memdesc.answers.failure import Failure, FailureRow
from memdesc.answers.move import Movement, MovementRow, move
from memdesc.answers.titles import title_of
from memdesc.errors import QuestionError
from memdesc.map.extents import MemoryMap
from memdesc.types import PAGE_SHIFT, Pfn, PfnRange

__all__ = ["Outlook", "ZoneMovement", "failure_kinds", "outlook_of"]


@dataclass(frozen=True, slots=True)
class ZoneMovement:
    """Whether one zone could be emptied, in frames."""

    name: str
    moving: int
    unsure: int
    staying: int
    stays: tuple[str, ...]
    """The titles of the largest kinds that stay."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What could be moved away."""

    zones: tuple[ZoneMovement, ...]
    """Empty where no zone is visible."""
    stays: tuple[MovementRow, ...]
    """Kinds that do not move, or may not, largest first; each row reads differently."""
    memory_blocks: Blocks
    """Blocks of the size in which memory is set offline."""
    notes: tuple[str, ...] = ()


def outlook_of(result: MemoryMap) -> Outlook:
    """Ask what could be moved away. Raises QuestionError for a map without frames."""
    if result.pfn_end <= result.pfn_start:
        raise QuestionError("the map has no frames")
    pages = PfnRange(Pfn(result.pfn_start), Pfn(result.pfn_end))
    whole = move(result, pages)
    staying = [row for row in movement_rows(whole.rows) if row.leaves is not True]
    return Outlook(
        zones=_zones(result),
        stays=tuple(sorted(staying, key=lambda row: -row.frames)),
        memory_blocks=blocks(result, result.machine.section_pages << PAGE_SHIFT, cheapest=0),
        notes=whole.notes,
    )


def failure_kinds(answer: Failure, most: int) -> tuple[tuple[FailureRow, ...], int, int]:
    """(the largest rows that read differently, how many others there are, their frames)."""
    rows = failure_rows(answer.rows, basis=False)
    rest = rows[most:]
    return tuple(rows[:most]), len(rest), sum(row.frames for row in rest)


# --- helpers -----------------------------------------------------------------------------


def _zones(result: MemoryMap) -> tuple[ZoneMovement, ...]:
    """Each zone that has memory, asked whether it can be emptied."""
    zones = [zone for zone in result.machine.zones if zone.present]
    several = len({zone.node for zone in zones}) > 1
    rows = []
    for zone in zones:
        pages = PfnRange(Pfn(zone.pfn_start), Pfn(min(zone.pfn_end, result.pfn_end)))
        if pages.nr_pages > 0:
            name = f"{zone.name} of node {zone.node}" if several else zone.name
            rows.append(_zone(name, move(result, pages)))
    return tuple(rows)


def _zone(name: str, answer: Movement) -> ZoneMovement:
    frames: dict[bool | None, int] = {True: 0, None: 0, False: 0}
    for row in answer.rows:
        frames[row.moves] += row.frames
    stays = dict.fromkeys(title_of(row.types) for row in answer.rows if row.moves is False)
    return ZoneMovement(name, frames[True], frames[None], frames[False], tuple(stays)[:3])

"""Answers about failure and movement in few words, and rows that read the same as one.

What a table on a screen and one in a report have room for; the whole sentences are in the
JSON forms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from memdesc.answers.failure import FailureRow
from memdesc.answers.move import MovementRow
from memdesc.rules.failure import Consequence
from memdesc.rules.move import Obstacle

__all__ = [
    "failure_basis",
    "failure_ends",
    "failure_errnos",
    "failure_rows",
    "failure_verdicts",
    "movement_rows",
    "movement_text",
    "short",
]

_CONSEQUENCES = {
    Consequence.NOTHING_LOST: "nothing lost",
    Consequence.CONTENT_LOST: "content lost",
    Consequence.KILLED_ON_TOUCH: "killed on touch",
    Consequence.KILLED_NOW: "killed at once",
    Consequence.UNHANDLED: "not handled",
    Consequence.MACHINE_LOST: "machine lost",
}

_OBSTACLES = {
    Obstacle.KIND: "it never moves",
    Obstacle.REFERENCES: "held",
    Obstacle.WRITEBACK: "being written back",
    Obstacle.NO_OPERATION: "its file lies in memory alone",
    Obstacle.MLOCKED: "mlocked",
    Obstacle.INACCESSIBLE: "its mapping forbids it",
    Obstacle.TOO_LARGE: "too large a folio",
    Obstacle.HUGETLB: "a huge page",
    Obstacle.NO_MOVABLE_OPS: "its owner cannot move it",
    Obstacle.DEVICE: "its driver alone moves it",
    Obstacle.NOT_ON_LRU: "off the LRU just now",
}


def short(consequence: Consequence) -> str:
    """A consequence in two or three words."""
    return _CONSEQUENCES[consequence]


# --- failure -----------------------------------------------------------------------------


def failure_verdicts(row: FailureRow) -> str:
    """The kernel's verdicts: "recovered/failed"."""
    return "/".join(dict.fromkeys(outcome.verdict.value for outcome in row.hard.outcomes))


def failure_ends(row: FailureRow) -> str:
    """What it means on broken memory: "nothing lost/content lost"."""
    return "/".join(dict.fromkeys(short(outcome.on_hardware) for outcome in row.hard.outcomes))


def failure_errnos(row: FailureRow) -> str:
    """What soft_offline_page returns: "ok/EBUSY"."""
    return "/".join(dict.fromkeys(outcome.errno for outcome in row.soft.outcomes))


def failure_basis(row: FailureRow) -> str:
    """Where it was seen: "observed" here, "in part", "seen on 6.1, 6.12", or "inferred"."""
    if row.is_observed:
        return "observed"
    if row.is_observed_in_part:
        return "in part"
    return f"seen on {', '.join(row.observed_on)}" if row.observed_on else "inferred"


def failure_rows(rows: Iterable[FailureRow], *, basis: bool = True) -> list[FailureRow]:
    """Rows that read the same, added up, largest first; with `basis`, also where they were
    observed has to read the same."""
    sums: dict[tuple[object, ...], FailureRow] = {}
    for row in rows:
        texts = failure_verdicts(row), failure_ends(row), failure_errnos(row)
        key = row.part, row.types, *texts, failure_basis(row) if basis else ""
        old = sums.get(key)
        sums[key] = dataclasses.replace(row, frames=row.frames + (old.frames if old else 0))
    return sorted(sums.values(), key=lambda row: -row.frames)


# --- movement ----------------------------------------------------------------------------


def movement_text(row: MovementRow) -> str:
    """What happens when its memory block is offlined: "moves: LRU, unless held"."""
    outcomes = row.offlining.outcomes
    moves = [f"moves: {one.by.value}" for one in outcomes if one.moves]
    stays = [_OBSTACLES[one.obstacle] for one in outcomes if not one.moves]
    if moves and stays:
        return f"{moves[0]}, unless {' or '.join(dict.fromkeys(stays))}"
    return moves[0] if moves else f"stays: {' or '.join(dict.fromkeys(stays))}"


def movement_rows(rows: Iterable[MovementRow]) -> list[MovementRow]:
    """Rows that read the same, added up, in their order, each with its first frame."""
    sums: dict[tuple[object, ...], MovementRow] = {}
    for row in rows:
        key = row.types, row.owner, movement_text(row)
        old = sums.get(key)
        sums[key] = row if old is None else dataclasses.replace(old, frames=old.frames + row.frames)
    return list(sums.values())

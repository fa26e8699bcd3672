"""Is a map right? Frame by frame against a map that knows.

The truth comes from a dump of the same machine, stopped just after the judged files were
read: there, struct pages and the kernel's own lists name every frame.  A judged frame is

    exact        it names the one true type
    union        it names several, and the truth is among them
    not visible  the same, by a rule that says that the source cannot tell these apart
    wrong        the truth is not among what it names
    open         the truth itself is several types, and the two have one in common
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.map.extents import MemoryMap
from memdesc.map.facts import Fact
from memdesc.types import Certainty, TypeSet

__all__ = ["Outcome", "Score", "TypeScore", "WrongFrames", "outcome_of", "score"]


class Outcome(enum.Enum):
    """How one frame was judged."""

    EXACT = "exact"
    UNION = "union"
    NOT_VISIBLE = "not_visible"
    WRONG = "wrong"
    OPEN = "open"


@dataclass
class TypeScore:
    """How the frames of one true type were judged."""

    truth: TypeSet
    frames: Counter[Outcome] = field(default_factory=Counter)
    named: Counter[TypeSet] = field(default_factory=Counter)
    """Judged as what, in frames."""

    @property
    def total(self) -> int:
        return self.frames.total()

    @property
    def mean_width(self) -> float:
        """Types named per frame: 1.0 where every frame is named exactly."""
        return sum(len(kinds) * frames for kinds, frames in self.named.items()) / self.total

    def to_json(self) -> dict[str, Any]:
        return {
            "type": self.truth.json,
            "frames": self.total,
            **{outcome.value: self.frames[outcome] for outcome in Outcome},
            "mean_width": round(self.mean_width, 2),
            "named": [
                {"type": kinds.json, "frames": frames} for kinds, frames in self.named.most_common()
            ],
        }


@dataclass(frozen=True, slots=True)
class WrongFrames:
    """A run of frames judged wrongly."""

    pfn_start: int
    nr_pages: int
    flags: int
    named: TypeSet
    rule: str
    truth: TypeSet
    truth_rule: str


@dataclass(frozen=True)
class Score:
    """The whole comparison; rows by falling number of frames."""

    rows: tuple[TypeScore, ...]
    wrong: tuple[WrongFrames, ...]
    moved: int
    """Frames left out: they changed between the readings."""

    def frames(self, outcome: Outcome) -> int:
        return sum(row.frames[outcome] for row in self.rows)

    @property
    def total(self) -> int:
        return sum(row.total for row in self.rows)


def score(judged: MemoryMap, truth: MemoryMap, *, before: MemoryMap | None = None) -> Score:
    """Judge every frame of `judged` by `truth`.

    Frames whose flag words differ changed between the two readings: they are counted as
    `moved` and not judged. With `before`, the truth of an earlier moment, so are those that
    are not the same in both truths. Raises QuestionError for maps of other frames.
    """
    maps = [judged, truth] if before is None else [judged, truth, before]
    if len({(each.pfn_start, each.pfn_end) for each in maps}) > 1:
        raise QuestionError("the maps do not cover the same frames")
    starts = np.unique(np.concatenate([each.pfn_starts for each in maps])).astype(np.int64)
    sizes = np.diff(starts, append=judged.pfn_end)
    ours, theirs = _facts_at(judged, starts), _facts_at(truth, starts)
    moved = judged.table.flags[ours] != truth.table.flags[theirs]
    if before is not None:
        earlier = _facts_at(before, starts)
        moved |= before.table.flags[earlier] != truth.table.flags[theirs]
        moved |= before.table.types[earlier] != truth.table.types[theirs]
    rows: dict[int, TypeScore] = {}
    wrong: list[WrongFrames] = []
    keys = ours.astype(np.int64) << 16 | theirs
    for key in np.unique(keys[~moved]).tolist():
        named, known = judged.table[key >> 16], truth.table[key & 0xFFFF]
        here = (keys == key) & ~moved
        frames = int(sizes[here].sum())
        outcome = outcome_of(named, known.types)
        row = rows.setdefault(known.types.mask, TypeScore(known.types))
        row.frames[outcome] += frames
        row.named[named.types] += frames
        if outcome is Outcome.WRONG:
            wrong += [
                WrongFrames(
                    start, size, named.flags, named.types, named.rule.name,
                    known.types, known.rule.name,
                )
                for start, size in zip(starts[here].tolist(), sizes[here].tolist(), strict=True)
            ]  # fmt: skip
    return Score(
        tuple(sorted(rows.values(), key=lambda row: -row.total)),
        tuple(sorted(wrong, key=lambda item: item.pfn_start)),
        int(sizes[moved].sum()),
    )


def outcome_of(named: Fact, truth: TypeSet) -> Outcome:
    """How a frame with the fact `named` is judged whose truth is `truth`."""
    if not named.types.mask & truth.mask:
        return Outcome.WRONG
    if not truth.is_certain:
        return Outcome.OPEN
    if named.types == truth:
        return Outcome.EXACT
    if named.rule.certainty is Certainty.NOT_VISIBLE:
        return Outcome.NOT_VISIBLE
    return Outcome.UNION


# --- helpers -----------------------------------------------------------------------------


def _facts_at(result: MemoryMap, starts: NDArray[np.int64]) -> NDArray[np.uint16]:
    at = np.searchsorted(result.pfn_starts, starts.astype(np.uint64), side="right") - 1
    facts: NDArray[np.uint16] = result.facts[at]
    return facts

"""What changed between two sources: types that grew and shrank, frames that changed hands.

The two may be two captures of one machine, a capture and the live machine, or two
machines. Frames are compared one by one only where both maps cover the same frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.ledger import type_frames
from memdesc.map.extents import MemoryMap
from memdesc.types import PAGE_SIZE_BYTES, TypeSet

__all__ = ["Change", "Diff", "Transition", "diff"]


@dataclass(frozen=True, slots=True)
class Change:
    """One type in both sources, in frames."""

    types: TypeSet
    frames_before: int
    frames_after: int

    @property
    def frames_delta(self) -> int:
        return self.frames_after - self.frames_before


@dataclass(frozen=True, slots=True)
class Transition:
    """Frames that were one type and are another."""

    before: TypeSet
    after: TypeSet
    frames: int


@dataclass(frozen=True, slots=True)
class Diff:
    """Changes by type, largest first, and who became what."""

    changes: tuple[Change, ...]
    transitions: tuple[Transition, ...] | None
    """None where the maps do not cover the same frames."""
    frames_same: int

    def to_json(self) -> dict[str, Any]:
        """Schema memdesc-diff/1."""
        return {
            "schema": "memdesc-diff/1",
            "rows": [
                {
                    "type": change.types.json,
                    "frames_before": change.frames_before,
                    "frames_after": change.frames_after,
                    "frames_delta": change.frames_delta,
                    "size_bytes_delta": change.frames_delta * PAGE_SIZE_BYTES,
                }
                for change in self.changes
            ],
            "transitions": None
            if self.transitions is None
            else [
                {
                    "before": t.before.json,
                    "after": t.after.json,
                    "frames": t.frames,
                    "size_bytes": t.frames * PAGE_SIZE_BYTES,
                }
                for t in self.transitions
            ],
            "frames_same_type": self.frames_same,
        }


def diff(before: MemoryMap, after: MemoryMap) -> Diff:
    """Compare two maps. Exact for what both read."""
    first, last = type_frames(before), type_frames(after)
    changes = [Change(types, first.get(types, 0), last.get(types, 0)) for types in first | last]
    changes.sort(key=lambda change: (-abs(change.frames_delta), change.types.mask))
    if before.pfn_end != after.pfn_end:
        return Diff(tuple(changes), None, 0)
    transitions, same = _transitions(before, after)
    return Diff(tuple(changes), transitions, same)


# --- helpers -----------------------------------------------------------------------------


def _transitions(before: MemoryMap, after: MemoryMap) -> tuple[tuple[Transition, ...], int]:
    borders = np.union1d(before.pfn_starts, after.pfn_starts).astype(np.int64)
    lengths = np.diff(borders, append=before.pfn_end)
    old, new = _types_at(before, borders), _types_at(after, borders)
    kinds, codes = np.unique(np.concatenate([old, new]), return_inverse=True)
    width = kinds.size
    pairs = codes[: borders.size] * width + codes[borders.size :]
    frames = np.bincount(pairs, weights=lengths, minlength=width * width).astype(np.int64)
    rows: list[Transition] = []
    same = 0
    for pair in np.flatnonzero(frames):
        a, b = divmod(int(pair), width)
        if a == b:
            same += int(frames[pair])
        else:
            rows.append(
                Transition(TypeSet(int(kinds[a])), TypeSet(int(kinds[b])), int(frames[pair]))
            )
    rows.sort(key=lambda row: (-row.frames, row.before.mask, row.after.mask))
    return tuple(rows), same


def _types_at(result: MemoryMap, borders: NDArray[np.int64]) -> NDArray[np.uint64]:
    index = np.searchsorted(result.pfn_starts.astype(np.int64), borders, side="right") - 1
    return result.table.types[result.facts[index]]

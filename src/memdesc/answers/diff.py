"""What changed between two sources: types that grew and shrank, frames that changed hands.

The two may be two captures of one machine, a capture and the live machine, or two
machines. Frames are compared one by one only where both are one machine, by its zones and
kernel release.
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
    """None where frame n of one is not known to be frame n of the other."""
    frames_same: int | None
    """Frames of the same type in both; None where frames are not compared."""
    why: str = ""
    """Why frames are not compared one by one; "" where they are."""

    @property
    def comparable(self) -> bool:
        """Whether frames were compared one by one."""
        return not self.why

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
                    "size_bytes_before": change.frames_before * PAGE_SIZE_BYTES,
                    "size_bytes_after": change.frames_after * PAGE_SIZE_BYTES,
                    "size_bytes_delta": change.frames_delta * PAGE_SIZE_BYTES,
                }
                for change in self.changes
            ],
            "comparable": self.comparable,
            "why": self.why or None,
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


def diff(
    before: MemoryMap, after: MemoryMap, *, names: tuple[str, str] = ("BEFORE", "AFTER")
) -> Diff:
    """Compare two maps, which `names` call by their names. Exact for what both read."""
    first, last = type_frames(before), type_frames(after)
    same_name = _same_name([*first, *last])
    frames: dict[TypeSet, tuple[int, int]] = {}
    for index, book in enumerate((first, last)):
        for types, count in book.items():
            old = frames.get(same_name[types], (0, 0))
            frames[same_name[types]] = (
                (old[0] + count, 0) if not index else (old[0], old[1] + count)
            )
    changes = [Change(types, *counts) for types, counts in frames.items()]
    changes.sort(key=lambda change: (-abs(change.frames_delta), change.types.mask))
    why = _why_not_comparable(before, after, names)
    if why:
        return Diff(tuple(changes), None, None, why)
    transitions, same = _transitions(before, after)
    return Diff(tuple(changes), transitions, same)


# --- helpers -----------------------------------------------------------------------------


def _why_not_comparable(
    before: MemoryMap, after: MemoryMap, names: tuple[str, str] = ("BEFORE", "AFTER")
) -> str:
    """Why frame n of one is not frame n of the other, as far as the sources tell; or ""."""
    unknown = [
        name
        for name, result in zip(names, (before, after), strict=True)
        if not result.machine.release.is_known
    ]
    if unknown:
        many = "kernels" if len(unknown) > 1 else "kernel"
        verb = "are" if len(unknown) > 1 else "is"
        return f"the {many} of {' and '.join(unknown)} {verb} not known (--kernel)"
    first, last = (result.machine.release.numbers for result in (before, after))
    if first != last:
        return f"different kernels: {first}, {last}"
    if before.pfn_end != after.pfn_end:
        return f"different numbers of frames: {before.pfn_end:,}, {after.pfn_end:,}"
    old, new = (
        [(zone.node, zone.name, zone.pfn_start) for zone in result.machine.zones]
        for result in (before, after)
    )
    if old and new and old != new:
        return "different zones: two machines, or memory was added or removed"
    booted = [result.machine.boot_time_unix_s for result in (before, after)]
    if None not in booted and abs((booted[0] or 0) - (booted[1] or 0)) > _BOOT_SLACK_S:
        return "booted at different times: two machines, or a reboot between"
    return ""


_BOOT_SLACK_S = 2
"""btime is computed from the clock, and moves with it by a second."""


def _same_name(kinds: list[TypeSet]) -> dict[TypeSet, TypeSet]:
    """Unions of one family count as one: kernels differ in what they can exclude."""
    by_family: dict[str, int] = {}
    for types in kinds:
        if types.family is not None:
            by_family[types.family] = by_family.get(types.family, 0) | types.mask
    return {
        types: types if types.family is None else TypeSet(by_family[types.family])
        for types in kinds
    }


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

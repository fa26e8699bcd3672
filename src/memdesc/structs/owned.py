"""Frames whose type only a walk over the kernel's structures can tell.

A struct page does not say that it backs a vmalloc area, a task's stack or a per-CPU
chunk, or that it waits on a CPU's free list.  The walks of `memdesc.structs.walk` do, and
hand over ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memdesc.types import MemoryType

__all__ = ["Owned", "OwnedRanges", "kind_code", "kind_of_code"]

_KINDS = tuple(MemoryType)


@dataclass(frozen=True, slots=True)
class Owned:
    """Frames [pfn_start, pfn_start + nr_pages) belong to `owner`."""

    pfn_start: int
    nr_pages: int
    kind: MemoryType
    owner: str
    """In words, the same for all that belongs together: the caller of a vmalloc
    ("pcpu_create_chunk"), "stack of task 1 (init)", "cpu 0"."""
    address: int = 0
    """Kernel address of what owns it: a vm_struct, task_struct, pcpu_chunk; 0 for none."""


@dataclass(frozen=True)
class OwnedRanges:
    """Ranges as columns, sorted by frame, not overlapping."""

    pfn_start: NDArray[np.int64]
    nr_pages: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    """uint8[n]: `kind_code` of the MemoryType."""
    owners: NDArray[np.uint32]
    """uint32[n]: index into `names`."""
    addresses: NDArray[np.uint64]
    names: tuple[str, ...]
    torn: Mapping[str, int] = field(default_factory=dict)
    """Walk -> links that led nowhere (a live machine, or a damaged dump)."""
    unseen: Mapping[str, str] = field(default_factory=dict)
    """Walk -> why it could not be done at all."""

    @classmethod
    def of(
        cls,
        rows: Iterable[Owned],
        *,
        torn: Mapping[str, int] | None = None,
        unseen: Mapping[str, str] | None = None,
    ) -> OwnedRanges:
        """Sort `rows`. Where two overlap, the one given first keeps the frames: hand over the
        more specific walks (stacks, per-CPU) before the general one (vmalloc)."""
        taken: list[Owned] = []
        for row in _without_overlaps(rows):
            last = taken[-1] if taken else None
            if (
                last is not None
                and last.pfn_start + last.nr_pages == row.pfn_start
                and (last.kind, last.owner, last.address) == (row.kind, row.owner, row.address)
            ):
                taken[-1] = Owned(
                    last.pfn_start, last.nr_pages + row.nr_pages, row.kind, row.owner, row.address
                )
            else:
                taken.append(row)
        names = {name: code for code, name in enumerate(dict.fromkeys(row.owner for row in taken))}
        return cls(
            pfn_start=np.array([row.pfn_start for row in taken], np.int64),
            nr_pages=np.array([row.nr_pages for row in taken], np.int64),
            kinds=np.array([kind_code(row.kind) for row in taken], np.uint8),
            owners=np.array([names[row.owner] for row in taken], np.uint32),
            addresses=np.array([row.address for row in taken], np.uint64),
            names=tuple(names),
            torn=dict(torn or {}),
            unseen=dict(unseen or {}),
        )

    def __len__(self) -> int:
        return int(self.pfn_start.size)

    def at(self, pfn: int) -> Owned | None:
        """The range that holds `pfn`, cut to nothing; None where no walk met it."""
        index = int(np.searchsorted(self.pfn_start, pfn, side="right")) - 1
        if index < 0 or pfn >= self.pfn_start[index] + self.nr_pages[index]:
            return None
        return Owned(
            int(self.pfn_start[index]),
            int(self.nr_pages[index]),
            kind_of_code(int(self.kinds[index])),
            self.names[int(self.owners[index])],
            int(self.addresses[index]),
        )


def kind_code(kind: MemoryType) -> int:
    """The number of `kind` in a uint8 column; 0 is kept for "no walk met it"."""
    return _KINDS.index(kind) + 1


def kind_of_code(code: int) -> MemoryType:
    """Inverse of `kind_code`."""
    return _KINDS[code - 1]


def _without_overlaps(rows: Iterable[Owned]) -> list[Owned]:
    """The rows sorted by frame, each cut to the frames that no earlier row has."""
    ordered = sorted(
        ((row.pfn_start, row.pfn_start + row.nr_pages, rank, row) for rank, row in enumerate(rows)),
        key=lambda item: item[:3],
    )
    edges = sorted({edge for low, high, _, _ in ordered for edge in (low, high)})
    if not edges:
        return []
    points = np.array(edges, np.int64)
    best = np.full(points.size, -1, np.int64)
    by_rank = sorted(ordered, key=lambda item: -item[2])
    for low, high, rank, _row in by_rank:
        first, last = np.searchsorted(points, (low, high))
        best[first:last] = rank
    row_of = {rank: row for _, _, rank, row in ordered}
    pieces: list[Owned] = []
    for index in np.flatnonzero(best >= 0).tolist():
        row = row_of[int(best[index])]
        pieces.append(
            Owned(
                int(points[index]),
                int(points[index + 1] - points[index]),
                row.kind,
                row.owner,
                row.address,
            )
        )
    return pieces

"""Frames whose type only a walk over the kernel's structures can tell.

A struct page does not say that it backs a vmalloc area, a task's stack or a per-CPU
chunk, or that it waits on a CPU's free list.  The walks of `memdesc.structs.walk` do, and
hand over ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memdesc.types import MemoryType

__all__ = ["Owned", "OwnedFrames", "OwnedRanges", "kind_code", "kind_of_code"]

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
class OwnedFrames:
    """Frames of one kind, as a walk found them: in any order."""

    kind: MemoryType
    pfns: NDArray[np.int64]
    owners: NDArray[np.uint32]
    """uint32[n]: index into `names`."""
    addresses: NDArray[np.uint64]
    """uint64[n]: as `Owned.address`."""
    names: Sequence[str]

    @classmethod
    def of_one(
        cls, kind: MemoryType, pfns: NDArray[np.int64], owner: str, address: int = 0
    ) -> OwnedFrames:
        """Frames that all belong to one owner."""
        return cls(
            kind,
            pfns,
            np.zeros(pfns.size, np.uint32),
            np.full(pfns.size, address, np.uint64),
            (owner,),
        )

    @property
    def nr_pages(self) -> int:
        return int(self.pfns.size)


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
    done: frozenset[str] = frozenset()
    """Walks that met no broken link: what they look for and did not meet is not there."""

    @classmethod
    def of(
        cls,
        groups: Iterable[OwnedFrames],
        *,
        torn: Mapping[str, int] | None = None,
        unseen: Mapping[str, str] | None = None,
    ) -> OwnedRanges:
        """Sort and join. A frame that several groups name belongs to the first of them: hand
        over the more specific walks (stacks, per-CPU) before the general one (vmalloc)."""
        groups = [group for group in groups if group.pfns.size]
        names: dict[str, int] = {}
        codes = [np.zeros(0, np.uint32)]
        for group in groups:
            table = [names.setdefault(name, len(names)) for name in group.names]
            codes.append(np.array(table, np.uint32)[group.owners])
        pfns = np.concatenate([np.zeros(0, np.int64), *(group.pfns for group in groups)])
        # np.unique sorts stably for the index of the first: the first group wins.
        pfns, first = np.unique(pfns, return_index=True)
        owners = np.concatenate(codes)[first]
        kinds = np.concatenate(
            [
                np.zeros(0, np.uint8),
                *(np.full(group.pfns.size, kind_code(group.kind), np.uint8) for group in groups),
            ]
        )[first]
        addresses = np.concatenate(
            [np.zeros(0, np.uint64), *(group.addresses for group in groups)]
        )[first]
        begins = np.ones(pfns.size, np.bool_)
        begins[1:] = (
            (np.diff(pfns) != 1)
            | (owners[1:] != owners[:-1])
            | (kinds[1:] != kinds[:-1])
            | (addresses[1:] != addresses[:-1])
        )
        starts = np.flatnonzero(begins)
        return cls(
            pfn_start=pfns[starts],
            nr_pages=np.diff(starts, append=pfns.size),
            kinds=kinds[starts],
            owners=owners[starts],
            addresses=addresses[starts],
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

"""How many huge pages could there be, and what is in the way?

Memory is cut into aligned blocks of the wanted size.  A block is free; or it would be,
once the movable pages in it had been moved elsewhere; or some page in it cannot be moved
and blocks it.  The rule (`memdesc.rules.move`) says which, for every distinct kind of
frame; where a source leaves that open, so does the block.

Moving needs room: emptying k blocks takes free frames in the others.  `Supply` says how
many blocks the kernel can make from what is there, as a range (`memdesc.answers.supply`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.block_counts import (
    BLOCKING,
    FREE,
    MAYBE,
    MOVABLE,
    BlockCounts,
    Gone,
    count_blocks,
)
from memdesc.answers.failure import knowledge_of
from memdesc.answers.supply import Supply, supply_of
from memdesc.errors import QuestionError
from memdesc.kernels.migration import move_behaviour
from memdesc.map.extents import MemoryMap
from memdesc.map.parts import PART_FRAMES, parts_of
from memdesc.types import PAGE_SHIFT, TypeSet

__all__ = ["BLOCK_SIZES", "BlockRow", "Blocker", "Blocks", "Supply", "blocks", "gained_json"]

BLOCK_SIZES = {"2M": 1 << 21, "1G": 1 << 30}
"""The huge page sizes of x86-64."""


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


@dataclass(frozen=True)
class Blocks:
    """The whole answer; arrays are per block, by rising frame."""

    size_bytes: int
    pfn_starts: NDArray[np.int64]
    """int64[b]: first frames of the blocks that System RAM backs as a whole."""
    counts: NDArray[np.int64]
    """int64[b, 4]: frames free, movable, perhaps movable, in the way
    (`memdesc.answers.block_counts`)."""
    huge: NDArray[np.bool_]
    """bool[b]: one large page fills it: it is in use as a huge page."""
    blockers: tuple[Blocker, ...]
    supply: Supply
    cheapest: tuple[BlockRow, ...]
    notes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """What was taken to be gone (`--without`)."""

    @property
    def blocks(self) -> int:
        return int(self.pfn_starts.size)

    @property
    def nr_pages(self) -> int:
        """Frames of a block."""
        return self.size_bytes >> PAGE_SHIFT

    @cached_property
    def is_free(self) -> NDArray[np.bool_]:
        free: NDArray[np.bool_] = self.counts[:, FREE] == self.nr_pages
        return free

    @cached_property
    def is_blocked(self) -> NDArray[np.bool_]:
        blocked: NDArray[np.bool_] = (self.counts[:, BLOCKING] > 0) & ~self.huge
        return blocked

    @cached_property
    def is_open(self) -> NDArray[np.bool_]:
        """Whether only frames of which nobody knows stand in the way."""
        unknown: NDArray[np.bool_] = (
            (self.counts[:, MAYBE] > 0) & (self.counts[:, BLOCKING] == 0) & ~self.huge
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
            "frames_to_move": int(self.counts[self.is_movable, MOVABLE].sum()),
            "supply": {
                "now": self.supply.now,
                "compacted_min": self.supply.compacted_min,
                "compacted_max": self.supply.compacted_max,
                "faulted_min": self.supply.faulted_min,
                "faulted_max": self.supply.faulted_max,
                "reclaimed_min": self.supply.reclaimed_min,
                "reclaimed_max": self.supply.reclaimed_max,
            },
            "without": list(self.without),
            "rows": [blocker.to_json() for blocker in self.blockers],
            "cheapest": [row.to_json() for row in self.cheapest],
            "notes": list(self.notes),
        }


def blocks(
    result: MemoryMap | Iterable[MemoryMap],
    size_bytes: int = BLOCK_SIZES["2M"],
    *,
    gone: Gone | None = None,
    without: Sequence[str] = (),
    cheapest: int = 10,
) -> Blocks:
    """Cut a map into blocks of `size_bytes` and say what stands in the way of each.

    `result` is a map, or its parts in order (`memdesc.map.parts`). `gone` is taken to be
    free, and `without` says in words what that is (`memdesc.answers.without`). Exact for
    the map; a block counts only where System RAM of one zone backs all of it.
    Raises QuestionError for a size that is no power of two from a page to 1 GiB, and for
    a map without frames.
    """
    nr_pages = size_bytes >> PAGE_SHIFT
    if not 1 <= nr_pages <= PART_FRAMES or size_bytes & (size_bytes - 1):
        raise QuestionError(f"{size_bytes} bytes is no block size", hint="2M or 1G")
    parts = iter(parts_of(result) if isinstance(result, MemoryMap) else result)
    first = next(parts, None)
    if first is None:
        raise QuestionError("the map has no frames")
    counts = count_blocks(
        itertools.chain([first], parts),
        nr_pages,
        knowledge_of(first.machine),
        gone=gone,
        cheapest=cheapest,
    )
    assert counts is not None
    kept = np.flatnonzero(counts.whole)
    return Blocks(
        size_bytes=size_bytes,
        pfn_starts=(kept + counts.first_block) * nr_pages,
        counts=counts.frames[kept],
        huge=counts.huge[kept],
        blockers=_blockers(counts),
        supply=supply_of(counts, first.machine.zones, move_behaviour(first.machine.release)),
        cheapest=tuple(
            BlockRow(
                one.block * nr_pages,
                one.movable,
                one.in_the_way,
                tuple(dict.fromkeys(counts.names.text(code) for code in one.names)),
            )
            for one in counts.cheap
        ),
        notes=_notes(first),
        without=tuple(without),
    )


def gained_json(answer: Blocks, plain: Blocks) -> dict[str, int]:
    """What `answer`, without something, has more than `plain`, with it."""
    return {
        "blocks_free_gained": int(answer.is_free.sum() - plain.is_free.sum()),
        "blocks_unblocked": int(plain.is_blocked.sum() - answer.is_blocked.sum()),
        "blocks_after_compaction_gained": answer.supply.compacted_min - plain.supply.compacted_min,
    }


# --- helpers -----------------------------------------------------------------------------


def _blockers(counts: BlockCounts) -> tuple[Blocker, ...]:
    """Those that alone keep the most blocks first."""
    rows = [
        Blocker(
            counts.names.text(code),
            counts.names.kind(code),
            int(counts.by_name[code, 0]),
            int(counts.by_name[code, 1]),
            int(counts.by_name[code, 2]),
            int(counts.by_name[code, 3]),
            bool(counts.by_name[code, 4]),
        )
        for code in np.flatnonzero(counts.by_name[:, 0]).tolist()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.alone, -row.blocks, row.name)))


def _notes(first: MemoryMap) -> tuple[str, ...]:
    if first.references is not None:
        return ()
    return (
        "reference counts are not visible here: a pinned page would count as movable "
        "(--source live:struct, or a crash dump, shows pins)",
    )

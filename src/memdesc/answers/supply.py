"""How many huge pages can be had: free as they are, after compaction, and under pressure.

What limits the number in a zone, and how it is counted here (all in `mm/page_alloc.c`,
`mm/compaction.c`, `mm/hugetlb.c` @6.1, @6.12, @7.2):

- *Blocks.* Only a block without frames that stay can be emptied.  The kernel does not choose
  the cheapest: it goes through the zone from below and fills free frames from above
  (`compact_zone`); after enough requests the outcome is close to choosing them.
- *Room.* The pages of emptied blocks need free frames elsewhere in the same zone; compaction
  moves nothing across zones.
- *Watermarks.* An allocation must leave `min` and the frames that are kept from memory which
  may also lie in a higher zone (`__zone_watermark_ok`, `lowmem_reserve`).  Compaction is not
  begun unless, beside these, `low` and twice the block are free (`compaction_suitable`,
  `compact_gap`), so it ends with less than one block above `low` plus one: what lies between
  that and `min` may be had or not.
- *Per-CPU lists.* Frames on them count as room at most; they are drained only in need.
- *Page cache.* An allocation that goes on asking (the hugetlb pool) has clean page cache
  dropped, a page fault at most a part of it; slab caches are left out here.

`memdesc.checks.moves` compares these numbers with those of real kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.block_counts import BLOCKING, FREE, MAYBE, MOVABLE, BlockCounts
from memdesc.map.machine import Zone

__all__ = ["Supply", "supply_of"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Supply:
    """How many free blocks there can be."""

    now: int
    """Free as they are."""
    compacted_min: int
    """What is had at least after compaction, without dropping page cache: only what certainly
    moves, and all marks kept."""
    compacted_max: int
    """What is had at most without dropping page cache."""
    reclaimed_max: int
    """And with clean page cache dropped, as an allocation under pressure does."""


def supply_of(counts: BlockCounts, zones: Sequence[Zone]) -> Supply:
    """Blocks to be had, added up over the zones; `zones` are those of the machine.

    Where the marks of a zone are not visible they count as 0.
    """
    now = least = most = reclaimed = 0
    for number in np.unique(counts.zones[counts.zones >= -1]).tolist():
        zone = zones[number] if number >= 0 else None
        part = _Part.of(counts, counts.zones == number, zone)
        now += part.now
        least += part.at_least()
        most += part.at_most(drop=False)
        reclaimed += part.at_most(drop=True)
    return Supply(now, least, max(least, most), max(least, most, reclaimed))


# --- helpers -----------------------------------------------------------------------------

_GAP_BLOCKS: Final = 1
"""Blocks above `low` that may be left when compaction is not begun any more (`compact_gap` is
two, of which the last one that was made has been taken)."""


@dataclass(frozen=True)
class _Part:
    """The blocks of one zone that are not huge pages already."""

    size: int
    frames: Ints
    droppable: Ints
    free: int
    """Free frames of the whole zone, also outside whole blocks."""
    cache: int
    on_lists: int
    """Of the free ones, those on per-CPU lists."""
    hard: int
    """Frames that must stay free."""
    soft: int
    """Frames that are left when compaction ends for want of free memory."""

    @classmethod
    def of(cls, counts: BlockCounts, mine: NDArray[np.bool_], zone: Zone | None) -> _Part:
        usable = mine & counts.whole & ~counts.huge
        kept = (zone.wmark_min, zone.wmark_low, zone.reserve) if zone else (0, 0, 0)
        return cls(
            counts.nr_pages,
            counts.frames[usable],
            counts.droppable[usable],
            int(counts.frames[mine, FREE].sum()),
            int(counts.droppable[mine].sum()),
            zone.pcp if zone else 0,
            kept[0] + kept[2],
            kept[1] + kept[2] + _GAP_BLOCKS * counts.nr_pages,
        )

    @property
    def now(self) -> int:
        """Blocks that are free and that an allocation may take."""
        blocks = int((self.frames[:, FREE] == self.size).sum())
        return max(0, min(blocks, (self.free - self.on_lists - self.hard) // self.size))

    def at_least(self) -> int:
        """With what certainly moves, all marks kept and the lists full."""
        usable = self.frames[:, BLOCKING] + self.frames[:, MAYBE] == 0
        blocks = _packed(self.frames[:, FREE], self.frames[:, MOVABLE], usable)
        room = (self.free - self.on_lists - self.soft) // self.size
        return max(self.now, min(blocks, room))

    def at_most(self, *, drop: bool) -> int:
        """With what perhaps moves, and down to the last mark."""
        free = self.frames[:, FREE]
        moving = self.frames[:, MOVABLE] + self.frames[:, MAYBE]
        gone = np.minimum(self.droppable, moving) if drop else np.zeros_like(moving)
        blocks = _packed(free + gone, moving - gone, self.frames[:, BLOCKING] == 0)
        room = (self.free + (self.cache if drop else 0) - self.hard) // self.size
        return max(self.now, min(blocks, room))


def _packed(free: Ints, moving: Ints, usable: NDArray[np.bool_]) -> int:
    """Blocks that can be emptied: those with least to move first, while there is room.

    Emptying the first k of them needs room for their movable pages in the free frames of
    all the others.
    """
    order = np.flatnonzero(usable)[np.argsort(moving[usable], kind="stable")]
    needed = np.cumsum(moving[order])
    room = int(free.sum()) - np.cumsum(free[order])
    fits = np.flatnonzero(needed <= room)
    return int(fits[-1]) + 1 if fits.size else 0

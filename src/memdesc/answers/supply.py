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
- *Page cache.* Those who go on asking have clean page cache dropped: at least the inactive half
  of it (`inactive_list_is_low` keeps the lists at 1:1 below 1 GiB), at most all.  Slab caches
  are left out here.

A single request may get less, and a few in a row: after a compaction in vain the next ones are
deferred, and blocks that were looked at are skipped for a while (`defer_compaction`,
`__reset_isolation_suitable`).
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
    reclaimed_min: int
    """What those have at least who go on asking: with half of the clean page cache dropped."""
    reclaimed_max: int
    """And at most: with all of it dropped, and down to the last mark."""


def supply_of(counts: BlockCounts, zones: Sequence[Zone]) -> Supply:
    """Blocks to be had, added up over the zones; `zones` are those of the machine.

    Where the marks of a zone are not visible they count as 0.
    """
    now = least = most = asked = reclaimed = 0
    for number in np.unique(counts.zones[counts.zones >= -1]).tolist():
        zone = zones[number] if number >= 0 else None
        part = _Part.of(counts, counts.zones == number, zone)
        now += part.now
        least += part.at_least(0)
        asked += part.at_least(_DROPPED)
        most += part.at_most(0)
        reclaimed += part.at_most(1)
    return Supply(now, least, most, asked, reclaimed)


# --- helpers -----------------------------------------------------------------------------

_DROPPED: Final = 0.5
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
    """Free frames of the whole zone; its own counter knows also those in blocks that it
    shares with another zone or a hole."""
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
        counted = zone.free + zone.pcp if zone else 0
        return cls(
            counts.nr_pages,
            counts.frames[usable],
            counts.droppable[usable],
            max(int(counts.frames[mine, FREE].sum()), counted),
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

    def at_least(self, dropped: float) -> int:
        """With what certainly moves, all marks kept and the lists full; `dropped` is the share
        of clean page cache that is gone."""
        usable = self.frames[:, BLOCKING] + self.frames[:, MAYBE] == 0
        free, moving = self._after(dropped, self.frames[:, MOVABLE])
        room = self.free - self.on_lists - self.soft + int(self.cache * dropped)
        return max(self.now, min(_packed(free, moving, usable), room // self.size))

    def at_most(self, dropped: float) -> int:
        """With what perhaps moves, and down to the last mark."""
        usable = self.frames[:, BLOCKING] == 0
        free, moving = self._after(dropped, self.frames[:, MOVABLE] + self.frames[:, MAYBE])
        room = self.free - self.hard + int(self.cache * dropped)
        return max(self.now, min(_packed(free, moving, usable), room // self.size))

    def _after(self, dropped: float, moving: Ints) -> tuple[Ints, Ints]:
        """Free and movable frames per block, with a share of the cache gone."""
        gone = np.minimum((self.droppable * dropped).astype(np.int64), moving)
        return self.frames[:, FREE] + gone, moving - gone


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

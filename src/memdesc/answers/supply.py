"""How many huge pages can be had: free as they are, after compaction, and under pressure.

What limits the number in a zone, and how it is counted here (all in `mm/page_alloc.c`,
`mm/compaction.c`, `mm/hugetlb.c` @6.1, @6.12, @7.2):

- *Blocks.* Only a block without frames that stay can be emptied.  At most, the cheapest are; at
  least, those below the point where the two scanners meet: one empties blocks from below, the
  other fills free frames from above, whatever could have been made of them, and leaves out
  only whole free blocks (`compact_zone`, `suitable_migration_target`).
- *Room.* The pages of emptied blocks need free frames elsewhere in the same zone; compaction
  moves nothing across zones.
- *Watermarks.* An allocation must leave `min` and the frames that are kept from memory which
  may also lie in a higher zone (`__zone_watermark_ok`, `lowmem_reserve`).  Compaction is not
  begun unless, beside these, `low` and twice the block are free (`compaction_suitable`,
  `compact_gap`): what lies between that and `min` may be had or not.
- *Per-CPU lists.* Frames on them count as room at most; they are drained only in need.
- *Page cache.* Those who go on asking have clean page cache dropped: what share of it, depends on
  the kernel and on who asks (`memdesc.kernels.migration`).  Slab caches are left out here.
- *Torn huge pages.* Frames of a large anonymous folio that nobody maps come back when reclaim
  splits it (`deferred_split_scan`), and its other pages can be moved then.

A single request may get less, and a few in a row: after a compaction in vain the next ones are
deferred, and blocks that were looked at are skipped for a while (`defer_compaction`,
`__reset_isolation_suitable`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.block_counts import BLOCKING, FREE, MAYBE, MOVABLE, BlockCounts
from memdesc.kernels.migration import MoveBehaviour
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
    faulted_min: int
    """What faults get at least (transparent huge pages) that go on asking."""
    faulted_max: int
    reclaimed_min: int
    """What the hugetlb pool gets at least that goes on asking."""
    reclaimed_max: int
    """And at most: with all of it dropped, and down to the last mark."""


def supply_of(counts: BlockCounts, zones: Sequence[Zone], behaviour: MoveBehaviour) -> Supply:
    """Blocks to be had, added up over the zones; `zones` are those of the machine.

    Where the marks of a zone are not visible they count as 0.
    """
    shares = (0.0, 0.0), behaviour.cache_dropped_by_faults, behaviour.cache_dropped_by_pool
    sums = np.zeros(1 + 2 * len(shares), np.int64)
    for number in np.unique(counts.zones[counts.zones >= -1]).tolist():
        zone = zones[number] if number >= 0 else None
        part = _Part.of(counts, counts.zones == number, zone)
        ranges = ((part.at_least(least), part.at_most(most)) for least, most in shares)
        sums += [part.now, *(bound for both in ranges for bound in both)]
    return Supply(*sums.tolist())


# --- helpers -----------------------------------------------------------------------------

_GAP_BLOCKS: Final = 2
"""Blocks above `low` without which compaction is not begun (`compact_gap`)."""


@dataclass(frozen=True)
class _Part:
    """The blocks of one zone, without huge pages that are whole."""

    size: int
    frames: Ints
    droppable: Ints
    dirty: Ints
    unused: Ints
    free: int
    """Free frames of the whole zone; its own counter knows also those in blocks that it
    shares with another zone or a hole."""
    cache: int
    dirty_cache: int
    """Of the whole zone as well."""
    on_lists: int
    """Of the free ones, those on per-CPU lists."""
    hard: int
    """Frames that must stay free."""
    soft: int
    """Frames that are left when compaction ends for want of free memory."""

    @classmethod
    def of(cls, counts: BlockCounts, mine: NDArray[np.bool_], zone: Zone | None) -> _Part:
        usable = mine & counts.whole & (~counts.huge | (counts.unused > 0))
        kept = (zone.wmark_min, zone.wmark_low, zone.reserve) if zone else (0, 0, 0)
        counted = zone.free + zone.pcp if zone else 0
        return cls(
            counts.nr_pages,
            counts.frames[usable],
            counts.droppable[usable],
            counts.dirty[usable],
            counts.unused[usable],
            max(int(counts.frames[mine, FREE].sum()), counted),
            int(counts.droppable[mine].sum()),
            int(counts.dirty[mine].sum()),
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
        free, moving, gained = self._after(dropped, self.frames[:, MOVABLE])
        room = (self.free - self.on_lists - self.soft + gained) // self.size
        found = min(_packed(free, moving, usable), _scanned(free, moving, usable, self.size))
        return max(self.now, min(found, room))

    def at_most(self, dropped: float) -> int:
        """With what perhaps moves, down to the last mark, and with dirty cache written."""
        usable = self.frames[:, BLOCKING] == 0
        written = replace(
            self, droppable=self.droppable + self.dirty, cache=self.cache + self.dirty_cache
        )
        moving = self.frames[:, MOVABLE] + self.frames[:, MAYBE]
        free, moving, gained = written._after(dropped, moving)
        room = (self.free - self.hard + gained) // self.size
        return max(self.now, min(_packed(free, moving, usable), room))

    def _after(self, dropped: float, moving: Ints) -> tuple[Ints, Ints, int]:
        """Free and movable frames per block with a share of the cache gone, and how many
        frames that gave in the whole zone. Folios are split when there is reclaim at all."""
        gone = (self.droppable * dropped).astype(np.int64) + (self.unused if dropped else 0)
        gone = np.minimum(gone, moving)
        outside = int((self.cache - int(self.droppable.sum())) * dropped)
        return self.frames[:, FREE] + gone, moving - gone, int(gone.sum()) + outside


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


def _scanned(free: Ints, moving: Ints, usable: NDArray[np.bool_], size: int) -> int:
    """Blocks that are empty when the scanners have met: usable ones below that point, and
    those above it that were free from the start."""
    is_free = free == size
    targets = np.where(is_free, 0, free)
    below = np.concatenate([[0], np.cumsum(moving)])
    above = int(targets.sum()) - np.concatenate([[0], np.cumsum(targets)])
    meet = int(np.flatnonzero(below <= above)[-1])
    return int(usable[:meet].sum()) + int((is_free & usable)[meet:].sum())

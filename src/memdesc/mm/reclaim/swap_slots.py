"""Which slots of a swap device are handed out: clusters of 512, each for folios of one size.

`mm/swapfile.c:cluster_alloc_swap_entry, alloc_swap_scan_cluster @6.12` (6.1 has the same for
devices that do not seek).  A size goes through its cluster from the beginning to the end, then
takes another one that nobody has touched.  So slots of folios that are swapped out one after
another follow one another, and those of a large folio are aligned to its size.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from memdesc.types import PAGE_SIZE_BYTES

__all__ = ["SWAP_PAGES", "Slots"]

_CLUSTER: Final = 512
_SWAP_PAGES: Final = (64 << 20) // PAGE_SIZE_BYTES
"""Pages of the device that `swap on` makes; the first one is its header."""
SWAP_PAGES: Final = _SWAP_PAGES - 1


@dataclass(slots=True)
class Slots:
    """Free slots. `behind_header`: the first cluster, which has the header, is used first."""

    behind_header: bool = False
    pages: int = SWAP_PAGES
    """Slots that the device has."""
    _taken: bytearray = field(default_factory=lambda: bytearray(b"\1" + bytes(SWAP_PAGES)))
    _counts: list[int] = field(default_factory=lambda: [1] + [0] * (_SWAP_PAGES // _CLUSTER - 1))
    """Slots of each cluster that are taken."""
    _orders: dict[int, int] = field(default_factory=lambda: {0: 0})
    """Cluster -> order of the folios that it is for, while it is in use."""
    _next: dict[int, int] = field(default_factory=dict)
    """Order -> where it goes on."""
    _untouched: deque[int] = field(default_factory=lambda: deque(range(1, _SWAP_PAGES // _CLUSTER)))

    def __post_init__(self) -> None:
        for slot in range(self.pages + 1, _SWAP_PAGES):
            self._taken[slot] = 1
            self._counts[slot // _CLUSTER] += 1
        self._untouched = deque(cluster for cluster in self._untouched if not self._counts[cluster])
        last = self.pages // _CLUSTER
        if last not in self._untouched:
            # The device ends in it: it has room for small pages.
            self._orders[last] = 0
        if self.behind_header:
            self._next[0] = 1

    def alloc(self, order: int) -> int | None:
        """The first of 2^order slots in a row, aligned; None where there are none."""
        found = self._in_its_cluster(order)
        if found is None and self._untouched:
            cluster = self._untouched.popleft()
            self._orders[cluster] = order
            found = cluster * _CLUSTER
        if found is None:
            found = self._in_another_cluster(order)
        if found is None:
            return None
        pages = 1 << order
        self._taken[found : found + pages] = b"\1" * pages
        self._counts[found // _CLUSTER] += pages
        self._next[order] = found + pages
        return found

    def release(self, slot: int) -> None:
        """A slot is free again; so is its cluster after the last one."""
        cluster = slot // _CLUSTER
        self._taken[slot] = 0
        self._counts[cluster] -= 1
        if not self._counts[cluster]:
            del self._orders[cluster]
            self._untouched.append(cluster)

    # --- helpers -------------------------------------------------------------------------

    def _in_its_cluster(self, order: int) -> int | None:
        place = self._next.get(order, 0)
        cluster = place // _CLUSTER
        if place % _CLUSTER == 0 or self._orders.get(cluster) != order:
            return None
        return self._search(place, (cluster + 1) * _CLUSTER, order)

    def _in_another_cluster(self, order: int) -> int | None:
        """Clusters for folios of this size that have room; small ones take any."""
        for cluster in sorted(self._orders):
            if not order or self._orders[cluster] == order:
                found = self._search(cluster * _CLUSTER, (cluster + 1) * _CLUSTER, order)
                if found is not None:
                    return found
        return None

    def _search(self, start: int, end: int, order: int) -> int | None:
        pages = 1 << order
        for slot in range(-(-start // pages) * pages, end, pages):
            if not any(self._taken[slot : slot + pages]):
                return slot
        return None

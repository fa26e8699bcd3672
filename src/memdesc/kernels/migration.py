"""How compaction and migration differ between kernel releases.

Sources: `mm/compaction.c:isolate_migratepages_block`, `mm/migrate.c` of 6.1.192, 6.12.117
and 7.2.13.
"""

from __future__ import annotations

from dataclasses import dataclass

from memdesc.kernels.release import KernelRelease

__all__ = ["MoveBehaviour", "move_behaviour"]


@dataclass(frozen=True, slots=True)
class MoveBehaviour:
    """One kernel's way of moving pages."""

    compaction_skips_compound: bool
    """Compaction leaves every compound page where it is, small folios too. Read in 6.1; later
    kernels skip only folios of at least the wanted order."""

    dirty_without_op_stays: bool
    """A dirty page of a file system without migrate_folio is refused (7.2); before, it is
    written out first by synchronous migration (6.1, 6.12). 6.16, believed: writepage went."""

    cache_dropped_by_faults: tuple[float, float]
    """The share of clean page cache that faults for huge pages have dropped when they go on, at
    least and at most. Measured in fragmented guests: next to nothing in 6.1 (two lists, a fault
    reclaims only where compaction lacks free memory), most of it in 6.12 and 7.2
    (multi-generation LRU; its release is believed), or a quarter if the asker pauses."""

    cache_dropped_by_pool: tuple[float, float]
    """The same for those who enlarge the hugetlb pool."""


def move_behaviour(release: KernelRelease) -> MoveBehaviour:
    """What `release` does; an unknown one counts as the newest that was read."""
    version: tuple[int, int] = (release.major, release.minor) if release.is_known else (7, 2)
    return MoveBehaviour(
        compaction_skips_compound=version < (6, 10),
        dirty_without_op_stays=version >= (6, 16),
        cache_dropped_by_faults=(0.25, 1.0) if version >= (6, 10) else (0.0, 0.5),
        cache_dropped_by_pool=(0.7, 1.0) if version >= (6, 10) else (0.5, 1.0),
    )

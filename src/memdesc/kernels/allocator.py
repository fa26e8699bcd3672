"""How the page allocator differs between kernel releases.

Sources: `mm/page_alloc.c`, `mm/khugepaged.c` and `include/linux/mmzone.h` of 6.1.192,
6.12.117 (Debian's build, with what was ported back) and 7.2.13.  A release between those
that were read counts as the nearest older one.

>>> allocator_rules(KernelRelease.parse("6.12.117")).claims_before_steals
True
>>> allocator_rules(KernelRelease.parse("6.1.192")).pcp_tuned
False
"""

from __future__ import annotations

from dataclasses import dataclass

from memdesc.kernels.release import KernelRelease

__all__ = [
    "COSTLY_ORDER",
    "MAX_ORDER",
    "MIGRATETYPES",
    "PAGEBLOCK_ORDER",
    "AllocatorRules",
    "allocator_rules",
]

MAX_ORDER = 10
"""Order of the largest block. `include/linux/mmzone.h:MAX_PAGE_ORDER @6.12`; MAX_ORDER - 1 @6.1."""

PAGEBLOCK_ORDER = 9
"""Of x86-64 with huge pages, that of a PMD mapping: `include/linux/pageblock-flags.h`; @7.2 at most
PAGE_BLOCK_MAX_ORDER, which Debian leaves at 10."""

COSTLY_ORDER = 3
"""The highest order of the per-CPU lists below a pageblock's.
`include/linux/mmzone.h:PAGE_ALLOC_COSTLY_ORDER`."""

MIGRATETYPES = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate")
"""By number (`include/linux/mmzone.h:enum migratetype`), as /proc/pagetypeinfo spells them. Where
CMA is built, the kernel has it at 4, and Isolate at 5."""


@dataclass(frozen=True, slots=True)
class AllocatorRules:
    """One kernel's page allocator."""

    release: KernelRelease

    max_order: int
    """Order of the largest block: `MAX_ORDER`, or less for a machine made small."""

    pageblock_order: int
    """`PAGEBLOCK_ORDER`, or less for a machine made small."""

    migratetypes: int
    """How many there are, for the test of whether memory is too small to group by mobility:
    MIGRATE_TYPES with ISOLATE; one more where CMA is built, as in Debian's 7.2.
    `mm/page_alloc.c:build_all_zonelists`."""

    claims_before_steals: bool
    """A request without blocks of its type claims a pageblock, and only where none can be had
    steals a single block. `mm/page_alloc.c:__rmqueue @6.12, @7.2`. 6.1 does both in
    `__rmqueue_fallback`, and moves free blocks before it decides on the pageblock."""

    high_mark_first: bool
    """A zone is tried at the high mark before the one asked for, and remembers that it is
    below (ZONE_BELOW_HIGH). `mm/page_alloc.c:get_page_from_freelist @6.12, @7.2`."""

    pcp_tuned: bool
    """Per-CPU lists have a `high` between two limits that follows their use, and refills that
    double. `mm/page_alloc.c:nr_pcp_alloc, nr_pcp_high @6.12, @7.2`; one limit @6.1."""

    pcp_remembers_type: bool
    """A block goes back from a per-CPU list under the type that it came with, not its
    pageblock's. `mm/page_alloc.c:free_pcppages_bulk @6.1` (get_pcppage_migratetype)."""

    pcp_flush_counts_half_min: bool
    """Frees of orders 1 to 3 in a row flush the list only from batch + high_min / 2.
    `mm/page_alloc.c:free_frozen_page_commit @7.2`; from batch @6.12."""

    pcp_flush_in_batches: bool
    """A flush gives back `batch` frames at a time, each time beginning with the list in use.
    `mm/page_alloc.c:free_frozen_page_commit @7.2`."""

    merged_pageblocks_retyped: bool
    """A pageblock that merges with one of another type takes the type of the freed one.
    `mm/page_alloc.c:__free_one_page @6.12, @7.2`; types stay @6.1."""

    freed_by_pageblock: bool
    """A block of several pageblocks is put back one pageblock at a time, each with its type.
    `mm/page_alloc.c:split_large_buddy @6.12, @7.2`."""

    highatomic_rounded: bool
    """The HIGHATOMIC reserve is 1 % of the zone rounded up to pageblocks, and none where that
    is less than one. `mm/page_alloc.c:reserve_highatomic_pageblock @6.12, @7.2`; 1 % plus a
    pageblock @6.1."""

    highatomic_counts_free: bool
    """Watermarks leave aside the free frames of the reserve (nr_free_highatomic), not its whole
    size. `mm/page_alloc.c:__zone_watermark_unusable_free @6.12, @7.2`; nr_reserved_highatomic
    @6.1."""

    highatomic_no_refill: bool
    """A HIGHATOMIC request does not refill an empty per-CPU list.
    `mm/page_alloc.c:__rmqueue_pcplist @7.2`."""

    pgfree_counts_frames: bool
    """pgfree goes up by the frames of a block: `mm/page_alloc.c:free_unref_page_commit @6.12`.
    @6.1 a block on its way to a per-CPU list counts 1 (believed for 6.1.192)."""

    movable_zone_apart: bool
    """ZONE_MOVABLE gets marks of its own and no share of min_free_kbytes.
    `mm/page_alloc.c:__setup_per_zone_wmarks @6.12, @7.2`; like the others @6.1."""

    def min_free_kbytes(self, lowmem_kbytes: int) -> int:
        """vm.min_free_kbytes by the size of memory: `calculate_min_free_kbytes`."""
        root = int((16 * lowmem_kbytes) ** 0.5)
        while root * root > 16 * lowmem_kbytes:
            root -= 1
        while (root + 1) * (root + 1) <= 16 * lowmem_kbytes:
            root += 1
        return min(max(root, 128), 262144)

    def pcp_batch(self, managed: int) -> int:
        """Frames that a per-CPU list takes at once: `zone_batchsize`; 7.2 comes to the same."""
        quarter = max(min(managed >> 10, 256) // 4, 1)
        power = 1 << ((quarter + quarter // 2).bit_length() - 1)
        return max(power - 1, 1)


def allocator_rules(release: KernelRelease) -> AllocatorRules:
    """What `release` does; an unknown one counts as 6.12, the release modelled first."""
    version: tuple[int, int] = (release.major, release.minor) if release.is_known else (6, 12)
    new, newest = version >= (6, 12), version >= (7, 2)
    return AllocatorRules(
        release=release,
        max_order=MAX_ORDER,
        pageblock_order=PAGEBLOCK_ORDER,
        migratetypes=6 if newest else 5,
        claims_before_steals=new,
        high_mark_first=new,
        pcp_tuned=new,
        pcp_remembers_type=not new,
        pcp_flush_counts_half_min=newest,
        pcp_flush_in_batches=newest,
        merged_pageblocks_retyped=new,
        freed_by_pageblock=new,
        highatomic_rounded=new,
        highatomic_counts_free=new,
        highatomic_no_refill=newest,
        pgfree_counts_frames=new,
        movable_zone_apart=new,
    )

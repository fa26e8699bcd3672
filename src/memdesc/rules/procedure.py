"""The sentences of the decision procedure: every rule that can name a type, with its source.

`memdesc.rules.classify` decides which one applies; this table is what people read in
`memdesc what` and in the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from memdesc.rules.procedure_structs import STRUCT_PAGE_ROWS
from memdesc.types import Certainty

__all__ = ["RULES", "Rule"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the decision procedure: its name, the reason in words, and the source."""

    name: str
    text: str
    certainty: Certainty
    source: str


_E, _I, _N = Certainty.EXACT, Certainty.INFERRED, Certainty.NOT_VISIBLE
_PAGE_C = "fs/proc/page.c:stable_page_flags @6.1, @6.12, @7.2"

_TABLE: tuple[tuple[str, Certainty, str, str], ...] = (
    ("nopage", _E, "NOPAGE: no online struct page here", "fs/proc/page.c @6.1, @6.12"),
    (
        "nopage-device",
        _I,
        "NOPAGE inside a device memory range of /proc/iomem",
        "fs/proc/page.c @6.1, @6.12; /proc/iomem",
    ),
    (
        "nopage-unknown",
        _E,
        "NOPAGE: a hole, an offline section or device memory; /proc/iomem would tell",
        "fs/proc/page.c @6.1, @6.12",
    ),
    (
        "release-unknown",
        _N,
        "kernels mean different things by this word, and the release is not known (--kernel)",
        _PAGE_C,
    ),
    (
        "hwpoison",
        _E,
        "HWPOISON: a memory error (or a soft offline) was recorded for this frame; a frame of the "
        "kernel stays in use all the same",
        _PAGE_C,
    ),
    (
        "huge-hwpoison",
        _I,
        "HUGE with HWPOISON: the bit is the huge page's, and which of its frames is bad is not "
        "visible",
        _PAGE_C,
    ),
    ("buddy", _E, "BUDDY: in the page allocator's free lists", _PAGE_C),
    (
        "slab",
        _E,
        "SLAB (ANON, KSM, ACTIVE, LOCKED beside it are slab data, not facts)",
        "fs/proc/page.c @6.12; struct slab @6.12, @6.18",
    ),
    ("pgtable", _E, "PGTABLE: the page type of a page table", _PAGE_C),
    (
        "offline-movable",
        _I,
        "OFFLINE with UPTODATE (PG_movable_ops): a movable balloon page",
        "mm/balloon.c:balloon_page_insert @7.2",
    ),
    (
        "offline",
        _E,
        "OFFLINE: a balloon page, or logically offline (virtio-mem, Xen)",
        "callers of __SetPageOffline @7.2",
    ),
    ("huge", _E, "HUGE: a hugetlb folio, in use or in its pool", _PAGE_C),
    ("zero", _N, "no flag that names a type: nothing in /proc marks this kind", _PAGE_C),
    ("zero-page", _E, "ZERO_PAGE: the shared page of zeroes", _PAGE_C),
    ("huge-zero", _E, "ZERO_PAGE on a large folio: the shared huge page of zeroes", _PAGE_C),
    ("anon", _E, "ANON: anonymous memory of processes", _PAGE_C),
    (
        "anon-swap-cache",
        _E,
        "ANON with SWAPCACHE: anonymous memory that also has a swap slot",
        "include/linux/page-flags.h:folio_test_swapcache @7.2",
    ),
    ("ksm", _E, "ANON with KSM: merged by same-page merging", _PAGE_C),
    (
        "anon-ksm-bug",
        _N,
        "ANON; this kernel sets KSM on every anonymous page, so a merged page looks the same",
        "fs/proc/page.c:stable_page_flags @6.12",
    ),
    (
        "anon-ksm-bug-idle",
        _I,
        "ANON; this kernel sets KSM on every anonymous page, and pages_shared is 0",
        "fs/proc/page.c @6.12; /sys/kernel/mm/ksm/pages_shared",
    ),
    (
        "anon-ksm-bug-exclusive",
        _I,
        "ANON, and exclusive or large, which a merged page never is",
        "fs/proc/page.c @6.12; mm/ksm.c",
    ),
    (
        "anon-ksm-bug-clean",
        _I,
        "ANON, on the LRU and not dirty, which a merged page never is",
        "fs/proc/page.c @6.12; mm/ksm.c:try_to_merge_one_page @6.12, @6.18",
    ),
    ("shmem", _E, "SWAPBACKED without ANON: tmpfs, memfd, shared anonymous, SysV", _PAGE_C),
    (
        "swap-cache",
        _E,
        "SWAPBACKED with SWAPCACHE, not ANON: shmem with a swap slot, or anonymous memory read "
        "ahead from swap and not mapped yet",
        _PAGE_C,
    ),
    (
        "swapbacked-new",
        _I,
        "SWAPBACKED without content: being filled or migrated, shmem or anonymous",
        "mm/memory.c:do_swap_page, mm/shmem.c @7.2",
    ),
    ("reserved", _E, "RESERVED: kernel image, boot memory or firmware", _PAGE_C),
    (
        "reserved-mapped",
        _I,
        "RESERVED with MMAP: a page of the kernel image that processes map, such as the vdso",
        "include/linux/mm.h; mm/memory.c:insert_page",
    ),
    (
        "zsmalloc-mmap-private",
        _I,
        "MMAP with PRIVATE and no content: zsmalloc (the MMAP bit is false), or a perf AUX buffer",
        "mm/zsmalloc.c:set_first_obj_offset @6.1",
    ),
    (
        "mmap-or-zsmalloc",
        _I,
        "MMAP alone: a driver's page mapped to user space, or zsmalloc with a false MMAP bit",
        "mm/zsmalloc.c:set_first_obj_offset @6.1; mm/memory.c:insert_page @6.1",
    ),
    ("file", _I, "on the LRU or in use with content, not swap-backed: page cache", _PAGE_C),
    (
        "file-unevictable",
        _I,
        "page cache that may not be reclaimed, with no mark of a file system: mlocked or ramfs, "
        "secretmem or guest_memfd",
        "mm/secretmem.c, virt/kvm/guest_memfd.c @7.2",
    ),
    (
        "file-mlocked-batch",
        _I,
        "mlocked and not yet on the LRU: page cache or secretmem",
        "mm/secretmem.c @7.2; mm/mlock.c @7.2",
    ),
    (
        "file-batch",
        _I,
        "content in use, not swap-backed, not yet on the LRU, no mark of a file system: page "
        "cache or guest_memfd",
        "mm/swap.c:folio_add_lru, virt/kvm/guest_memfd.c @7.2",
    ),
    (
        "weak-marks",
        _N,
        "only marks that any page can carry (dirty, locked, private): a driver's or kernel page, "
        "or page cache in the making",
        "mm/memory.c:zap_pte_range @7.2",
    ),
    (
        "mmap-weak",
        _I,
        "mapped, with marks that unmapping leaves on any page: a driver's ring, or page cache",
        "mm/memory.c:zap_pte_range @7.2",
    ),
    (
        "compound-content",
        _I,
        "a compound page with content or a large folio's mark, not on the LRU: page cache or a "
        "folio in the making, or a driver's",
        _PAGE_C,
    ),
    (
        "leftover",
        _I,
        "only OWNER_2 left: a page just freed to a per-CPU list, or in flight",
        _PAGE_C,
    ),
    (
        "content-alone",
        _I,
        "content, no mapping, no LRU: zsmalloc, or page cache (guest_memfd) not yet on the LRU",
        "mm/zpdesc.h, mm/zsmalloc.c @7.2",
    ),
    (
        "mmap-alone",
        _I,
        "MMAP alone: inserted into a process by a driver or the kernel (rings, vvar)",
        "mm/memory.c:insert_page_into_pte_locked @7.2",
    ),
    (
        "compound-alone",
        _N,
        "HEAD or TAIL and nothing else: a kernel compound page of a kind /proc does not mark",
        _PAGE_C,
    ),
    (
        "zero-device",
        _I,
        "reads 0 inside a device memory range of /proc/iomem",
        "fs/proc/page.c:kpage_read @7.2; /proc/iomem",
    ),
    (
        "zero-hole",
        _I,
        "reads 0 and /proc/iomem has no System RAM here",
        "fs/proc/page.c:kpage_read @7.2; /proc/iomem",
    ),
    (
        "zero-deferred",
        _I,
        "a whole section of System RAM reads 0 in a zone with present above managed: "
        "its struct pages are not initialised yet",
        "mm/mm_init.c deferred init; /proc/zoneinfo",
    ),
    (
        "zero-section",
        _N,
        "a whole memory section reads 0: a hole, device memory or an uninitialised memmap",
        "fs/proc/page.c:kpage_read @7.2",
    ),
    (
        "zero-unknown-backing",
        _N,
        "reads 0, and without /proc/iomem a hole looks the same as unmarked kernel memory",
        "fs/proc/page.c:kpage_read @7.2",
    ),
)

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        name: Rule(name, text, certainty, source)
        for name, certainty, text, source in (*_TABLE, *STRUCT_PAGE_ROWS)
    }
)
"""Every rule by name."""

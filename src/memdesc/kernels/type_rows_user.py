"""Rows of the type table: memory that processes see.

Anonymous memory, files, shared memory, merged and huge pages, secret and guest memory,
and the two zero pages.  All but the zero pages are folios: they have a reference
count, a map count, a cgroup and mostly a place on the LRU, and they can be moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from memdesc.kernels.page_types import PageType
from memdesc.kernels.type_cells import (
    Cell,
    Dirtying,
    MovedBy,
    TypeFacts,
    UserMapping,
    Verdict,
    depends,
    no,
    yes,
)
from memdesc.kernels.type_titles import TITLES
from memdesc.plan import PLAN_TYPE, InPlan, PlanCode, PlanKind
from memdesc.types import Certainty, MemoryType

__all__ = ["LARGE_FOLIO", "USER_ROWS"]

_PLAN: Final = "Memdescs wiki, revision R6"
_FLAGS: Final = "include/linux/page-flags.h @6.1, @6.12, @7.2"
_PINS: Final = "include/linux/mm.h (GUP_PIN_COUNTING_BIAS) and mm/gup.c @7.2"
_DIRTY: Final = "mm/page-writeback.c:folio_mark_dirty @6.1, @6.12, @7.2"
_MOVE: Final = "mm/compaction.c:isolate_migratepages_block and mm/migrate.c @6.12, @7.2"
_FAIL: Final = "mm/memory-failure.c:memory_failure @7.2"
_FAIL_6_12: Final = "mm/memory-failure.c:memory_failure @6.12"
_FAIL_6_1: Final = "mm/memory-failure.c:memory_failure @6.1"
_SHOWN: Final = "fs/proc/page.c:stable_page_flags @6.1, @6.12, @7.2"
_FOLIO: Final = "include/linux/mm_types.h (struct folio) @6.1, @6.12, @7.2"

_NO_PAGE_TYPE: Final[Cell[tuple[PageType, ...]]] = Cell(
    (), "none: the page_type word holds the map count", _FLAGS
)

_ANON: Final = TypeFacts(
    title=TITLES[MemoryType.ANON],
    description=(
        "Heap, stack and other private memory of processes that no file backs. A page fault"
        " allocates it, filled with zeroes; under pressure it goes to swap."
    ),
    owner=Cell("processes", "allocated by page faults, owned through the anon_vma", _FOLIO),
    descriptor=Cell("struct folio", "over the frame's struct page; mapping has low bit 1", _FOLIO),
    page_type=_NO_PAGE_TYPE,
    plan=Cell(PLAN_TYPE[MemoryType.ANON], "type 3, struct anon_folio", _PLAN),
    refcounted=yes("one per mapping, one for the swap cache, and passing ones", _FOLIO),
    mapcount=yes("user page-table entries", _FOLIO),
    pinnable=yes("one frame: 1024 on the refcount for each pin; large: _pincount", _PINS),
    on_lru=yes("after a per-CPU batch has been drained", "mm/swap.c @6.12"),
    charged=yes("to the memory cgroup of the process that faulted", "mm/memory.c @7.2"),
    user_mapping=Cell(
        (UserMapping.ANON_RMAP,), "found again through the anon_vma", "mm/rmap.c @6.12"
    ),
    gup=yes(
        "a write needs an exclusive page or copies first; a read pin unshares",
        "mm/gup.c:follow_page_pte @7.2",
    ),
    dirtying=Cell(
        Dirtying.FLAG_ONLY,
        "no address space: PG_dirty alone; most of the time the dirty bit is in the page table",
        _DIRTY,
    ),
    movable=Cell(
        MovedBy.LRU,
        "unless it is pinned: skipped where references exceed mappings by more than one",
        _MOVE,
    ),
    failure_7_2=Cell(
        (Verdict.RECOVERED,),
        "dirty (or clean) LRU page; the data is lost and its processes get SIGBUS,"
        " at once with early kill, else at the next touch",
        _FAIL,
    ),
    failure_6_12=Cell((Verdict.RECOVERED,), "as in 7.2", _FAIL_6_12),
    failure_6_1=Cell((Verdict.RECOVERED,), "as in 7.2", _FAIL_6_1),
    shown=Cell(
        "ANON",
        "with SWAPBACKED (absent after MADV_FREE), LRU, MMAP; OWNER_2 marks a page that belongs"
        " to one process only. From 6.10 to 6.12 KSM is set on every one of them",
        _SHOWN,
    ),
)

_FILE: Final = replace(
    _ANON,
    title=TITLES[MemoryType.FILE],
    description=(
        "Content of files and block devices kept in memory. Reading or mapping a file"
        " allocates it; clean pages can be dropped at any time and read again."
    ),
    owner=Cell("a file system", "through the file's address_space", "mm/filemap.c @7.2"),
    descriptor=Cell("struct folio", "mapping points to the address_space", _FOLIO),
    plan=Cell(PLAN_TYPE[MemoryType.FILE], "type 2, struct folio", _PLAN),
    refcounted=yes("one per frame for the cache, plus mappings and private data", _FOLIO),
    charged=yes("to the memory cgroup that read it in first", "mm/filemap.c @7.2"),
    user_mapping=Cell(
        (UserMapping.FILE_RMAP,), "found again through the i_mmap tree", "mm/rmap.c @6.12"
    ),
    gup=depends(
        "yes, but a long-term pin for writing is refused (6.12, 7.2) because write-back could"
        " not see later writes",
        "mm/gup.c:gup_fast_folio_allowed @7.2",
    ),
    dirtying=Cell(
        Dirtying.FILE_SYSTEM,
        "the address space's dirty_folio (ext4_dirty_folio, iomap_dirty_folio,"
        " filemap_dirty_folio ...): accounts it and queues the inode for write-back."
        " ramfs and DAX files only set the flag",
        _DIRTY,
    ),
    movable=Cell(
        MovedBy.LRU,
        "through the file system's migrate_folio; without one only clean folios (7.2)."
        " Needs a caller that may enter the file system",
        _MOVE,
    ),
    failure_7_2=Cell(
        (Verdict.RECOVERED, Verdict.FAILED),
        "clean: dropped and read again later, nobody is told. Dirty: data lost, the file"
        " reports EIO, mappers get SIGBUS. Failed while something else holds a reference, or where"
        " the file system has no error_remove_folio",
        "mm/memory-failure.c:me_pagecache_clean, me_pagecache_dirty @7.2",
    ),
    failure_6_12=Cell((Verdict.RECOVERED, Verdict.FAILED), "as in 7.2", _FAIL_6_12),
    failure_6_1=Cell((Verdict.RECOVERED, Verdict.FAILED), "as in 7.2", _FAIL_6_1),
    shown=Cell("LRU, neither ANON nor SWAPBACKED", "UPTODATE, DIRTY, MMAP as they apply", _SHOWN),
)

_SHMEM: Final = replace(
    _FILE,
    title=TITLES[MemoryType.SHMEM],
    description=(
        "tmpfs files, memfd, shared anonymous and System V memory, buffers of some graphics"
        " drivers. It lives in the page cache like a file and goes to swap like anonymous memory."
    ),
    owner=Cell("shmem", "mm/shmem.c, through the file's address_space", "mm/shmem.c @7.2"),
    plan=Cell(PLAN_TYPE[MemoryType.SHMEM], "type 2, struct folio", _PLAN),
    on_lru=yes("on the anonymous lists, because it is swap-backed", "mm/swap.c @6.12"),
    charged=yes("to the memory cgroup that touched it first", "mm/shmem.c @7.2"),
    gup=yes("long-term pins included", "mm/gup.c:gup_fast_folio_allowed @7.2"),
    dirtying=Cell(
        Dirtying.FLAG_ONLY,
        "noop_dirty_folio: PG_dirty alone, no accounting, no inode list",
        "mm/shmem.c:shmem_aops @7.2",
    ),
    movable=Cell(MovedBy.LRU, "migrate_folio", "mm/shmem.c:shmem_aops @7.2"),
    failure_7_2=Cell(
        (Verdict.RECOVERED, Verdict.FAILED),
        "the poisoned page stays in the page cache: later reads get EIO, touches get SIGBUS."
        " Failed while something else holds a reference",
        "mm/shmem.c:shmem_error_remove_folio, mm/memory-failure.c:has_extra_refcount @7.2",
    ),
    failure_6_12=Cell((Verdict.RECOVERED, Verdict.FAILED), "as in 7.2", _FAIL_6_12),
    failure_6_1=Cell((Verdict.RECOVERED, Verdict.FAILED), "as in 7.2", _FAIL_6_1),
    shown=Cell("SWAPBACKED without ANON", "a fresh page shows LRU only after a batch", _SHOWN),
)

_SWAP_CACHE: Final = replace(
    _ANON,
    title=TITLES[MemoryType.SWAP_CACHE],
    description=(
        "An anonymous or shmem folio that has a slot in a swap area: on its way out, or just"
        " read back. While both copies agree the memory can be dropped."
    ),
    owner=Cell("swap", "mm/swap_state.c, until the slot is freed", "mm/swap_state.c @7.2"),
    descriptor=Cell("struct folio", "the swap entry is in the private word", _FOLIO),
    plan=Cell(PLAN_TYPE[MemoryType.SWAP_CACHE], "type 3 for anonymous, 2 for shmem", _PLAN),
    dirtying=Cell(
        Dirtying.FLAG_ONLY,
        "the swap address space answers: noop_dirty_folio, PG_dirty alone",
        "mm/swap_state.c @7.2",
    ),
    movable=Cell(MovedBy.LRU, "migrate_folio of the swap address space", "mm/swap_state.c @7.2"),
    user_mapping=Cell(
        (UserMapping.ANON_RMAP, UserMapping.FILE_RMAP), "as its base type", "mm/rmap.c @6.12"
    ),
    failure_7_2=Cell(
        (Verdict.RECOVERED, Verdict.DELAYED, Verdict.FAILED),
        "clean: dropped, the copy in swap is good. Dirty: kept, and the process gets SIGBUS when"
        " it touches the page. Failed while something else holds a reference",
        "mm/memory-failure.c:me_swapcache_clean, me_swapcache_dirty @7.2",
    ),
    failure_6_12=Cell(
        (Verdict.RECOVERED, Verdict.DELAYED, Verdict.FAILED), "as in 7.2", _FAIL_6_12
    ),
    failure_6_1=Cell((Verdict.RECOVERED, Verdict.DELAYED, Verdict.FAILED), "as in 7.2", _FAIL_6_1),
    shown=Cell("SWAPCACHE", "together with SWAPBACKED, and ANON unless it is shmem", _SHOWN),
)

_KSM: Final = replace(
    _ANON,
    title=TITLES[MemoryType.KSM],
    description=(
        "One read-only frame that stands for several equal anonymous pages, also of different"
        " processes. The ksmd thread finds them; a write copies the page again."
    ),
    owner=Cell("KSM", "mm/ksm.c, through a node of the stable tree", "mm/ksm.c @7.2"),
    descriptor=Cell("struct folio", "mapping has low bits 3 and leads to the stable node", _FOLIO),
    plan=Cell(PLAN_TYPE[MemoryType.KSM], "type 4, struct ksm (to be decided)", _PLAN),
    refcounted=yes("the page-table entries hold it; the stable node holds none", "mm/ksm.c @7.2"),
    user_mapping=Cell(
        (UserMapping.KSM_RMAP,), "read-only, found through the stable node", "mm/ksm.c @7.2"
    ),
    gup=depends(
        "FOLL_GET for reading: yes. Any FOLL_PIN, and any write, makes a private copy first",
        "mm/gup.c:follow_page_pte (gup_must_unshare) @7.2",
    ),
    dirtying=Cell(
        Dirtying.FLAG_ONLY,
        "as anonymous memory; writing through an old pin would be a bug, the content is shared",
        _DIRTY,
    ),
    failure_7_2=Cell(
        (Verdict.RECOVERED,),
        "as anonymous memory; every process that maps it is found through the stable tree",
        "mm/memory-failure.c:collect_procs @7.2",
    ),
    failure_6_1=Cell(
        (Verdict.IGNORED,),
        "unmapping failed: this kernel cannot handle merged pages",
        "mm/memory-failure.c:hwpoison_user_mappings @6.1",
    ),
    shown=Cell(
        "KSM and ANON",
        "not reliable from 6.10 (believed) to 6.12, where every anonymous page shows KSM",
        _SHOWN,
    ),
)

_HUGETLB: Final = replace(
    _ANON,
    title=TITLES[MemoryType.HUGETLB],
    description=(
        "A huge page from the pool that the administrator sets aside (2 MiB, 1 GiB), used"
        " through hugetlbfs, MAP_HUGETLB or SHM_HUGETLB. It never goes to swap."
    ),
    owner=Cell("hugetlb", "mm/hugetlb.c; in the pool or in use", "mm/hugetlb.c @7.2"),
    descriptor=Cell("struct folio", "and fields in its later pages", "mm/hugetlb.c @7.2"),
    page_type=Cell((PageType.HUGETLB,), "0xf4 on the first frame; 6.1: compound_dtor 2", _FLAGS),
    plan=Cell(
        PLAN_TYPE[MemoryType.HUGETLB],
        "type 2 or 3, as any folio of a file or anonymous",
        _PLAN,
        Certainty.INFERRED,
    ),
    refcounted=depends("0 (frozen) while in the pool, at least 1 in use", "mm/hugetlb.c @7.2"),
    pinnable=yes("_pincount", _PINS),
    on_lru=no("on lists of its own", "mm/hugetlb.c @7.2"),
    charged=yes("to the hugetlb controller, to memory cgroups as an option", "mm/hugetlb.c @7.2"),
    user_mapping=Cell(
        (UserMapping.ANON_RMAP, UserMapping.FILE_RMAP),
        "by entries of PMD or PUD size, of a file or private",
        "mm/hugetlb.c @7.2",
    ),
    gup=yes("long-term pins included", "mm/gup.c:gup_fast_folio_allowed @7.2"),
    dirtying=Cell(
        Dirtying.FLAG_ONLY, "noop_dirty_folio: PG_dirty alone", "fs/hugetlbfs/inode.c @7.2"
    ),
    movable=Cell(
        MovedBy.HUGETLB,
        "only for an allocation of contiguous memory, which may dissolve it instead;"
        " compaction skips it",
        "mm/compaction.c @7.2",
    ),
    failure_7_2=Cell(
        (Verdict.RECOVERED, Verdict.FAILED),
        "free: dissolved into small pages. In use: unmapped, SIGBUS with the huge page's size;"
        " private memory is dissolved, a file keeps it in its cache. Failed where it cannot be"
        " dissolved",
        "mm/memory-failure.c:try_memory_failure_hugetlb, me_huge_page @7.2",
    ),
    failure_6_12=Cell(
        (Verdict.RECOVERED, Verdict.FAILED),
        "as in 7.2",
        "mm/memory-failure.c:try_memory_failure_hugetlb @6.12",
    ),
    failure_6_1=Cell(
        (Verdict.RECOVERED, Verdict.FAILED),
        "as in 7.2",
        "mm/memory-failure.c:try_memory_failure_hugetlb @6.1",
    ),
    shown=Cell("HUGE", "with COMPOUND_HEAD or COMPOUND_TAIL; MMAP while in use and mapped", _SHOWN),
)

_SECRETMEM: Final = replace(
    _FILE,
    title=TITLES[MemoryType.SECRETMEM],
    description=(
        "Memory of memfd_secret: the kernel removed it from its own mapping, so that not even"
        " a kernel bug can read it. Always single frames."
    ),
    owner=Cell("secretmem", "mm/secretmem.c, through its file", "mm/secretmem.c @7.2"),
    plan=Cell(PLAN_TYPE[MemoryType.SECRETMEM], "type 2, struct folio", _PLAN),
    on_lru=yes("on the unevictable list", "mm/secretmem.c @7.2"),
    charged=yes("to the process's memory cgroup", "mm/secretmem.c @7.2"),
    pinnable=no("GUP refuses it", "mm/gup.c:check_vma_flags @7.2"),
    gup=no("-EFAULT in the slow path, rejected in the fast one", "mm/gup.c:check_vma_flags @7.2"),
    dirtying=Cell(Dirtying.FLAG_ONLY, "noop_dirty_folio", "mm/secretmem.c @7.2"),
    movable=Cell(
        MovedBy.NEVER,
        "its migrate call returns -EBUSY, and compaction skips inaccessible mappings",
        "mm/secretmem.c, mm/compaction.c @7.2",
    ),
    failure_7_2=Cell(
        (Verdict.FAILED,),
        "dirty, and without error_remove_folio it cannot be taken away; unmapped all the same, so"
        " its process gets SIGBUS",
        "mm/memory-failure.c:truncate_error_folio @7.2",
        Certainty.INFERRED,
    ),
    failure_6_12=Cell(
        (Verdict.FAILED,),
        "dirty unevictable LRU page: Failed (-EBUSY)",
        "mm/memory-failure.c:me_pagecache_clean @6.12",
    ),
    failure_6_1=Cell((Verdict.FAILED,), "as in 6.12", _FAIL_6_1, Certainty.INFERRED),
    shown=Cell(
        "as page cache",
        "UPTODATE, DIRTY, MMAP, UNEVICTABLE, never SWAPBACKED: like any file without a disk",
        _SHOWN,
    ),
)

_GUEST_MEMFD: Final = replace(
    _SECRETMEM,
    title=TITLES[MemoryType.GUEST_MEMFD],
    description=(
        "Private memory of a KVM guest, for confidential machines: the host kernel manages"
        " it and mostly cannot read it."
    ),
    owner=Cell("KVM", "virt/kvm/guest_memfd.c, through its file", "virt/kvm/guest_memfd.c @7.2"),
    plan=Cell(PLAN_TYPE[MemoryType.GUEST_MEMFD], "type 2, struct folio", _PLAN),
    refcounted=yes("as a folio of a file", "virt/kvm/guest_memfd.c @7.2", Certainty.INFERRED),
    mapcount=depends("only if the file was made mappable", "virt/kvm/guest_memfd.c @7.2"),
    pinnable=no("not meant for long-term use", "virt/kvm/guest_memfd.c @7.2", Certainty.INFERRED),
    on_lru=yes("on the unevictable list", "virt/kvm/guest_memfd.c @7.2"),
    charged=yes("to the memory cgroup of the machine's process", "virt/kvm/guest_memfd.c @7.2"),
    user_mapping=Cell(
        (UserMapping.FILE_RMAP, UserMapping.NEVER),
        "in the host only if the file was made mappable; the guest maps it through KVM",
        "virt/kvm/guest_memfd.c @7.2",
    ),
    gup=depends("only where the host may map it", "virt/kvm/guest_memfd.c @7.2"),
    dirtying=Cell(Dirtying.FLAG_ONLY, "noop_dirty_folio", "virt/kvm/guest_memfd.c @7.2"),
    movable=Cell(
        MovedBy.NEVER,
        "its migrate call returns -EINVAL, and compaction skips inaccessible mappings",
        "virt/kvm/guest_memfd.c, mm/compaction.c @7.2",
    ),
    failure_7_2=Cell(
        (Verdict.FAILED,),
        "Failed in the log; the guest gets -EHWPOISON from KVM when it uses the page",
        "virt/kvm/guest_memfd.c:kvm_gmem_error_folio @7.2",
        Certainty.INFERRED,
    ),
    failure_6_12=Cell(
        (Verdict.FAILED,),
        "as in 7.2",
        "virt/kvm/guest_memfd.c:kvm_gmem_error_folio @6.12",
        Certainty.INFERRED,
    ),
    failure_6_1=Cell(
        (Verdict.NO_SUCH_TYPE,), "guest_memfd is younger", "virt/kvm @6.1 (no such file)"
    ),
    shown=Cell("as page cache", "no bit of its own", _SHOWN),
)

_ZERO: Final = replace(
    _ANON,
    title=TITLES[MemoryType.ZERO],
    description=(
        "The one frame of zeroes that every process sees when it reads anonymous memory it"
        " never wrote. Part of the kernel image."
    ),
    owner=Cell("the kernel", "one frame in the kernel's bss (x86), made at boot", _SHOWN),
    descriptor=Cell("struct page", "PG_reserved; recognised by its frame number", _SHOWN),
    plan=Cell(PLAN_TYPE[MemoryType.ZERO], "Misc, subtype 1", _PLAN),
    refcounted=no("has a count of 1 that mappings do not change", "mm/gup.c @7.2"),
    mapcount=no("0 by rule", "mm/memory.c:vm_normal_page @7.2"),
    pinnable=no("a pin does nothing and an unpin neither", "mm/gup.c:folio_add_pin @7.2"),
    on_lru=no("never", _FLAGS),
    charged=no("never", _FLAGS),
    user_mapping=Cell(
        (UserMapping.ZERO_ENTRY,), "a special PTE, read-only", "mm/memory.c:vm_normal_page @7.2"
    ),
    gup=yes("for reading; recognised by its number", "mm/gup.c:follow_page_pte @7.2"),
    dirtying=Cell(Dirtying.FLAG_ONLY, "PG_dirty is set on it, without effect", _DIRTY),
    movable=Cell(MovedBy.NEVER, "not on the LRU, no movable_ops", _MOVE),
    failure_7_2=Cell(
        (Verdict.IGNORED,),
        "get hwpoison page: Ignored; the shared page is marked poisoned and reads go on",
        "mm/memory-failure.c:HWPoisonHandlable @7.2, seen in guests",
    ),
    failure_6_12=Cell((Verdict.IGNORED,), "as in 7.2", _FAIL_6_12),
    failure_6_1=Cell((Verdict.IGNORED,), "unknown page: Ignored", _FAIL_6_1),
    shown=Cell(
        "ZERO_PAGE",
        "with RESERVED on x86. pagemap: present only, neither exclusive nor file",
        _SHOWN,
    ),
)

_HUGE_ZERO: Final = replace(
    _ZERO,
    title=TITLES[MemoryType.HUGE_ZERO],
    description=(
        "2 MiB of zeroes for reads of memory that may use transparent huge pages. Made when it"
        " is first needed."
    ),
    owner=Cell("THP", "mm/huge_memory.c, on demand", "mm/huge_memory.c @7.2"),
    descriptor=Cell("struct folio", "512 frames, not marked as rmappable", "mm/huge_memory.c @7.2"),
    plan=Cell(PLAN_TYPE[MemoryType.HUGE_ZERO], "Misc, subtype 1", _PLAN),
    pinnable=yes("unlike the small one, a pin counts", "mm/gup.c @6.12"),
    user_mapping=Cell(
        (UserMapping.ZERO_ENTRY,), "a PMD, read-only, not counted", "mm/huge_memory.c @7.2"
    ),
    shown=Cell(
        "ZERO_PAGE and THP",
        "1 head and 511 tails, no RESERVED, no LRU. pagemap: present and, wrongly, file",
        _SHOWN,
    ),
)

USER_ROWS: Mapping[MemoryType, TypeFacts] = MappingProxyType(
    {
        MemoryType.ANON: _ANON,
        MemoryType.FILE: _FILE,
        MemoryType.SHMEM: _SHMEM,
        MemoryType.SWAP_CACHE: _SWAP_CACHE,
        MemoryType.KSM: _KSM,
        MemoryType.HUGETLB: _HUGETLB,
        MemoryType.SECRETMEM: _SECRETMEM,
        MemoryType.GUEST_MEMFD: _GUEST_MEMFD,
        MemoryType.ZERO: _ZERO,
        MemoryType.HUGE_ZERO: _HUGE_ZERO,
    }
)
"""The rows of this module, in the order in which a reader meets them."""

LARGE_FOLIO: Final = replace(
    _ANON,
    title="large folio (THP)",
    description=(
        "Not a type but a size: one anonymous, file or shmem folio of several frames, up to"
        " 2 MiB. Everything that is not listed here is as for its base type."
    ),
    owner=Cell(
        "as its base type", "made by faults, khugepaged and readahead", "Memdescs/Path wiki"
    ),
    descriptor=Cell(
        "struct folio",
        "256 bytes over the first four struct pages (6.12, 7.2); 112 bytes over two in 6.1",
        _FOLIO,
    ),
    plan=Cell(
        InPlan(
            (PlanCode(PlanKind.FILE), PlanCode(PlanKind.ANON)),
            "file or anonymous; the order is in the descriptor",
        ),
        "type 2 or 3; the order is in the descriptor",
        "Memdescs/Path wiki",
    ),
    refcounted=yes("as the base type, one for each mapped page-table entry", _FOLIO),
    mapcount=yes(
        "for the whole (_large_mapcount, _entire_mapcount), and per frame with"
        " CONFIG_PAGE_MAPCOUNT",
        _FOLIO,
    ),
    pinnable=yes("_pincount, one for each page pinned", _PINS),
    user_mapping=Cell(
        (UserMapping.ANON_RMAP, UserMapping.FILE_RMAP),
        "by one PMD, by PTEs, or both at once",
        "mm/rmap.c @6.12",
    ),
    gup=yes("as its base type", "mm/gup.c @7.2"),
    dirtying=Cell(Dirtying.AS_BASE, "a tail leads to the same folio as its head", _DIRTY),
    movable=Cell(
        MovedBy.LRU,
        "isolated as a whole; skipped where its order reaches the order compaction works for, and"
        " always from the pageblock's order up (6.1: every compound page is skipped)",
        "mm/compaction.c:skip_isolation_on_order @7.2",
    ),
    failure_7_2=Cell(
        (Verdict.RECOVERED, Verdict.FAILED),
        "split first, then one frame as its base type. If it cannot be split: unsplit thp, Failed,"
        " and it stays mapped; so it is with dirty large ext4 folios and with a minimum order",
        _FAIL,
    ),
    failure_6_12=Cell(
        (Verdict.RECOVERED, Verdict.FAILED), "as in 7.2, without the minimum order", _FAIL_6_12
    ),
    failure_6_1=Cell(
        (Verdict.RECOVERED, Verdict.IGNORED),
        "split first; unsplit thp is Ignored, and nobody gets a signal",
        _FAIL_6_1,
    ),
    shown=Cell(
        "THP",
        "with COMPOUND_HEAD and COMPOUND_TAIL. 6.12 and 7.2: any size; tails repeat their head's"
        " flags. 6.1: tails show little of their own",
        _SHOWN,
    ),
)
"""What differs for a folio of more than one frame. An entry of its own, not a `MemoryType`."""

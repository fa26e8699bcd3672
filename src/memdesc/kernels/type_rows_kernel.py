"""Rows of the type table: free memory, the kernel's own memory, devices, and the rest.

None of it is a folio of processes.  Most of it is never mapped to users, never moved,
and a memory error in it is ignored, because nobody can find and fix the pointers to it.
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
    not_stated,
    yes,
)
from memdesc.kernels.type_titles import TITLES
from memdesc.plan import PLAN_TYPE
from memdesc.types import Certainty, MemoryType

__all__ = ["KERNEL_ROWS"]

_DERIVED: Final = Certainty.INFERRED
_PLAN: Final = "Memdescs wiki, revision R6"
_FLAGS: Final = "include/linux/page-flags.h @6.1, @6.12, @7.2"
_PAGE: Final = "include/linux/mm_types.h (struct page) @6.1, @6.12, @7.2"
_ALLOC: Final = "mm/page_alloc.c @7.2"
_INSERT: Final = "mm/memory.c:validate_page_before_insert @7.2"
_DIRTY: Final = "mm/page-writeback.c:folio_mark_dirty @6.1, @6.12, @7.2"
_MOVE: Final = "mm/compaction.c:isolate_migratepages_block @6.12, @7.2"
_MOVABLE_OPS: Final = "mm/migrate.c:isolate_movable_ops_page, set_movable_ops @7.2"
_HANDLABLE: Final = "mm/memory-failure.c:HWPoisonHandlable, get_any_page @7.2"
_FAIL_6_12: Final = "mm/memory-failure.c:memory_failure @6.12"
_FAIL_6_1: Final = "mm/memory-failure.c:memory_failure @6.1"
_FRAG: Final = "include/linux/page_frag_cache.h @7.2"
_SHOWN: Final = "fs/proc/page.c:stable_page_flags @6.1, @6.12, @7.2"
_ZERO_WORD: Final = "no flag at all; page_owner or a crash dump can tell what it is"

_NO_PAGE_TYPE: Final[Cell[tuple[PageType, ...]]] = Cell((), "none", _FLAGS)
_NEVER_MAPPED: Final = Cell((UserMapping.NEVER,), "never", _ALLOC)


def _typed(page_type: PageType, text: str) -> Cell[tuple[PageType, ...]]:
    return Cell((page_type,), text, _FLAGS)


# A page from alloc_pages for the kernel's own use; the rows below say what differs.
_DRIVER: Final = TypeFacts(
    title=TITLES[MemoryType.DRIVER],
    description=(
        "Pages that a driver or another part of the kernel took from the page allocator for"
        " itself. Nothing in struct page says who: only the allocation record (page_owner) knows."
    ),
    owner=Cell("a driver", "whoever called alloc_pages and kept the pointer", _PAGE),
    descriptor=Cell("struct page", "the owner may use some of its words", _PAGE),
    page_type=_NO_PAGE_TYPE,
    plan=Cell(PLAN_TYPE[MemoryType.DRIVER], "Misc, subtype 2, bit 11 clear", _PLAN),
    refcounted=depends("the owner's choice; 1 after allocation", _PAGE),
    mapcount=no("the owner must not touch the field", _PAGE),
    pinnable=no("GUP cannot reach it", "mm/gup.c @7.2"),
    on_lru=no("never", _FLAGS),
    charged=depends("only with __GFP_ACCOUNT", "mm/memcontrol.c @7.2"),
    user_mapping=_NEVER_MAPPED,
    gup=no("there is no user address", "mm/gup.c @7.2"),
    dirtying=Cell(Dirtying.MUST_NOT, "nobody maps it, so nobody may dirty it", _DIRTY, _DERIVED),
    movable=Cell(
        MovedBy.NEVER,
        "not on the LRU and no movable_ops: nobody can find and fix the pointers to it",
        _MOVE,
    ),
    failure_7_2=Cell(
        (Verdict.IGNORED,),
        "get hwpoison page: Ignored (-EBUSY); the frame is marked poisoned and stays in use",
        _HANDLABLE,
    ),
    failure_6_12=Cell((Verdict.IGNORED,), "as in 7.2", _FAIL_6_12),
    failure_6_1=Cell((Verdict.IGNORED,), "unknown page: Ignored", _FAIL_6_1),
    shown=Cell("nothing", _ZERO_WORD + "; HEAD and TAIL if it is compound", _SHOWN),
)

_FREE: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.FREE],
    description=(
        "Nobody uses it. The buddy allocator keeps it in blocks of 2^order frames and merges"
        " neighbours when both are free."
    ),
    owner=Cell("the page allocator", "in the free list of a zone, by order", _ALLOC),
    descriptor=Cell("struct page", "order in private of the block's first frame", _ALLOC),
    page_type=_typed(PageType.BUDDY, "0xf0 on the block's first frame; 6.1: bit 0x80 clear"),
    plan=Cell(PLAN_TYPE[MemoryType.FREE], "type 1, embedded data, no pointer", _PLAN),
    refcounted=no("the count is 0", _ALLOC),
    mapcount=no("the type lies over it", _FLAGS),
    charged=no("nobody owns it", _ALLOC),
    dirtying=Cell(Dirtying.MUST_NOT, "nobody may touch it", _DIRTY, _DERIVED),
    movable=Cell(
        MovedBy.NOTHING, "compaction skips the block by its order, read without a lock", _MOVE
    ),
    failure_7_2=Cell(
        (Verdict.RECOVERED,),
        "free buddy page: the frame is taken out, the rest of the block stays free",
        "mm/memory-failure.c:memory_failure @7.2",
    ),
    failure_6_12=Cell((Verdict.RECOVERED,), "as in 7.2", _FAIL_6_12),
    failure_6_1=Cell((Verdict.RECOVERED,), "as in 7.2", _FAIL_6_1),
    shown=Cell(
        "BUDDY",
        "on every frame of the block; the block's order is not visible. With UPTODATE: reported"
        " to the hypervisor",
        _SHOWN,
    ),
)

_FREE_PCP: Final = replace(
    _FREE,
    title=TITLES[MemoryType.FREE_PCP],
    description=(
        "Free as well, but kept on a short list of one CPU so that the next small allocation"
        " needs no lock. Not merged, and not counted in MemFree."
    ),
    owner=Cell("the page allocator", "per-CPU lists of each zone", _PAGE),
    descriptor=Cell("struct page", "linked by pcp_list", _PAGE),
    page_type=_NO_PAGE_TYPE,
    plan=Cell(PLAN_TYPE[MemoryType.FREE_PCP], "asked in August 2022, left open", _PLAN),
    mapcount=no("nobody maps it", _ALLOC),
    movable=Cell(MovedBy.NOTHING, "compaction passes it by: not on the LRU", _MOVE),
    failure_7_2=Cell(
        (Verdict.RECOVERED,),
        "the per-CPU lists are drained first, then as free memory",
        "mm/memory-failure.c:get_hwpoison_page @7.2",
    ),
    shown=Cell("nothing", _ZERO_WORD + "; the total is in /proc/zoneinfo", _SHOWN),
)

_GUEST_SEEN: Final = "a 6.18.44 guest booted with deferred_init=lazy"
_DEFERRED: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.DEFERRED],
    description=(
        "Memory whose struct pages the kernel has not filled in: it starts with a few and does"
        " the rest when it needs them. Seen on one guest kernel only, which already counts it as"
        " free."
    ),
    owner=Cell("the boot code", "present in its zone and not yet managed by it", _GUEST_SEEN),
    descriptor=Cell("struct page", "all zero", _GUEST_SEEN),
    plan=Cell(
        PLAN_TYPE[MemoryType.DEFERRED],
        "a word of zeroes reads as Misc, reserved",
        _PLAN,
        _DERIVED,
    ),
    refcounted=no("the count is 0", _GUEST_SEEN),
    mapcount=no("the memory was never given out", _GUEST_SEEN, _DERIVED),
    pinnable=no("never given out", _GUEST_SEEN, _DERIVED),
    on_lru=no("never", _GUEST_SEEN),
    charged=no("nobody owns it", _GUEST_SEEN, _DERIVED),
    user_mapping=Cell((UserMapping.NEVER,), "never", _GUEST_SEEN, _DERIVED),
    gup=no("there is no user address", _GUEST_SEEN, _DERIVED),
    movable=Cell(MovedBy.NOTHING, "it holds nothing", _GUEST_SEEN, _DERIVED),
    failure_7_2=Cell(
        (Verdict.IGNORED,),
        "by the rule for frames that are neither on the LRU nor free; not tried",
        _HANDLABLE,
        _DERIVED,
    ),
    failure_6_12=Cell((Verdict.NO_SUCH_TYPE,), "not met in this kernel", _GUEST_SEEN, _DERIVED),
    failure_6_1=Cell((Verdict.NO_SUCH_TYPE,), "not met in this kernel", _GUEST_SEEN, _DERIVED),
    shown=Cell(
        "nothing",
        "whole 128 MiB sections of zeroes. /proc/zoneinfo shows how much: present minus managed"
        " equals these frames, and MemFree counts them",
        _GUEST_SEEN,
    ),
)

_GUARD: Final = replace(
    _FREE,
    title=TITLES[MemoryType.GUARD],
    description=(
        "A frame left unmapped beside an allocation to catch overruns. Only in kernels that"
        " debug with debug_guardpage_minorder."
    ),
    owner=Cell("debug_pagealloc", "mm/debug_page_alloc.c", "mm/debug_page_alloc.c @7.2"),
    descriptor=Cell("struct page", "order in private", "mm/debug_page_alloc.c @7.2"),
    page_type=_typed(PageType.GUARD, "0xf3; 6.1: bit 0x400 clear"),
    plan=Cell(PLAN_TYPE[MemoryType.GUARD], "Misc, subtype 4", _PLAN),
    movable=_DRIVER.movable,
    failure_7_2=_DRIVER.failure_7_2,
    failure_6_12=_DRIVER.failure_6_12,
    failure_6_1=_DRIVER.failure_6_1,
    shown=Cell("nothing", _ZERO_WORD, _SHOWN),
)

_UNACCEPTED: Final = replace(
    _FREE,
    title=TITLES[MemoryType.UNACCEPTED],
    description=(
        "Memory of a confidential guest (TDX, SEV) that it has not accepted from the host yet."
        " It is accepted in large blocks when free memory runs short."
    ),
    owner=Cell("the page allocator", "a list in each zone, blocks of the largest order", _ALLOC),
    descriptor=Cell("struct page", "of each block's first frame", _ALLOC),
    page_type=_typed(PageType.UNACCEPTED, "0xf7 on a block's first frame; not in 6.1"),
    plan=Cell(PLAN_TYPE[MemoryType.UNACCEPTED], "no revision mentions it", _PLAN),
    movable=Cell(MovedBy.NOTHING, "it holds nothing", _MOVE, _DERIVED),
    failure_7_2=_DRIVER.failure_7_2,
    failure_6_12=_DRIVER.failure_6_12,
    failure_6_1=Cell((Verdict.NO_SUCH_TYPE,), "unaccepted memory is younger", _FLAGS, _DERIVED),
    shown=Cell("nothing", "Unaccepted in /proc/meminfo gives the total", _SHOWN),
)

_HOLE: Final = replace(
    _DEFERRED,
    title=TITLES[MemoryType.HOLE],
    description=(
        "Frame numbers with no memory that the kernel manages behind them: gaps in the address"
        " map, device registers, memory sections that are offline."
    ),
    owner=Cell("nobody", "the firmware's memory map leaves it out", "fs/proc/page.c @7.2"),
    descriptor=Cell("none", "no online struct page", "fs/proc/page.c @7.2"),
    page_type=Cell((), "there is no word to hold one", "fs/proc/page.c @7.2"),
    plan=Cell(PLAN_TYPE[MemoryType.HOLE], "there is no word", _PLAN),
    refcounted=no("no struct page", "fs/proc/page.c @7.2"),
    mapcount=no("no struct page", "fs/proc/page.c @7.2"),
    pinnable=no("no struct page", "mm/gup.c @7.2"),
    on_lru=no("no struct page", "fs/proc/page.c @7.2"),
    charged=no("no struct page", "fs/proc/page.c @7.2"),
    user_mapping=Cell(
        (UserMapping.PFN_ONLY,),
        "registers and device memory can be mapped by their frame numbers",
        "mm/memory.c:remap_pfn_range @7.2",
    ),
    gup=no("VM_PFNMAP and VM_IO are refused with -EFAULT", "mm/gup.c:check_vma_flags @7.2"),
    dirtying=Cell(Dirtying.MUST_NOT, "there is nothing to mark", _DIRTY, _DERIVED),
    movable=Cell(MovedBy.NOTHING, "compaction does not walk it", _MOVE),
    failure_7_2=Cell(
        (Verdict.IGNORED, Verdict.RECOVERED),
        "non struct page pfn: Ignored; Recovered where a driver registered the range, then every"
        " mapper gets SIGBUS",
        "mm/memory-failure.c:memory_failure_pfn @7.2",
    ),
    failure_6_12=Cell((Verdict.NO_VERDICT,), "memory outside kernel control, -ENXIO", _FAIL_6_12),
    failure_6_1=Cell((Verdict.NO_VERDICT,), "memory outside kernel control, -ENXIO", _FAIL_6_1),
    shown=Cell(
        "NOPAGE, or nothing",
        "NOPAGE in 6.1 and 6.12; 0 in 6.18 and 7.2, so that /proc/iomem must help",
        "fs/proc/page.c:kpage_read @7.2",
    ),
)

_POISONED: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.POISONED],
    description=(
        "A frame with a memory error, taken out of use for good. Free frames are pulled out of"
        " the allocator; frames in use stay until their last user lets go."
    ),
    owner=Cell("memory_failure", "holds one reference", "mm/memory-failure.c @7.2"),
    descriptor=Cell(
        "struct page",
        "PG_hwpoison on the very frame; private holds a mark if it was free",
        "mm/page_alloc.c:take_page_off_buddy, mm/internal.h @7.2",
    ),
    plan=Cell(PLAN_TYPE[MemoryType.POISONED], "type 9, struct hwpoison (to be decided)", _PLAN),
    refcounted=yes("at least 1, held by the handler", "mm/memory-failure.c @7.2"),
    mapcount=no("its mappings were removed where that was possible", "mm/memory-failure.c @7.2"),
    pinnable=no("nobody may get it again", "mm/gup.c @7.2"),
    charged=no("the charge is given back", "mm/memory-failure.c @7.2"),
    user_mapping=Cell(
        (UserMapping.NON_PRESENT,),
        "a hwpoison entry that holds the frame number; a touch gives SIGBUS",
        "mm/memory-failure.c:unmap_poisoned_folio @7.2",
    ),
    gup=no("-EHWPOISON, or -EFAULT without FOLL_HWPOISON", "mm/memory-failure.c, mm/gup.c @7.2"),
    movable=Cell(MovedBy.NEVER, "its content is lost", _MOVE, _DERIVED),
    failure_7_2=Cell(
        (Verdict.FAILED,),
        "already poisoned page: Failed (-EHWPOISON); the current task is killed if the error"
        " needs action",
        "mm/memory-failure.c:memory_failure @7.2",
    ),
    failure_6_12=Cell((Verdict.FAILED,), "as in 7.2", _FAIL_6_12),
    failure_6_1=Cell((Verdict.NO_VERDICT,), "a log line and -EHWPOISON", _FAIL_6_1),
    shown=Cell(
        "HWPOISON",
        "with leftovers of its former type, which tell what it was; HardwareCorrupted in"
        " /proc/meminfo counts it",
        _SHOWN,
    ),
)

_RESERVED: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.RESERVED],
    description=(
        "Memory taken before the page allocator ran: the kernel image, boot-time tables, the"
        " memory map itself, firmware. Nobody gives it back."
    ),
    owner=Cell("boot", "memblock and firmware", "mm/mm_init.c (__SetPageReserved) @7.2"),
    descriptor=Cell("struct page", "PG_reserved", "mm/mm_init.c @7.2"),
    plan=Cell(PLAN_TYPE[MemoryType.RESERVED], "Misc, subtype 0", _PLAN),
    refcounted=depends("the count is 1 and stays so, unless it is mapped", "mm/mm_init.c @7.2"),
    mapcount=depends(
        "only where it is mapped to users, as the vdso is", "mm/memory.c:vm_normal_page @7.2"
    ),
    pinnable=depends("through the vdso mapping, for reading", "mm/gup.c @7.2", _DERIVED),
    charged=no("never", "mm/mm_init.c @7.2"),
    user_mapping=Cell(
        (UserMapping.INSERTED, UserMapping.PFN_ONLY),
        "mostly never; the vdso is inserted and counted, drivers map frames by number",
        "mm/memory.c:vm_normal_page @7.2",
    ),
    gup=depends("the vdso: yes, for reading. By frame number: no", "mm/gup.c:check_vma_flags @7.2"),
    dirtying=Cell(Dirtying.FLAG_ONLY, "no address space: PG_dirty alone", _DIRTY, _DERIVED),
    shown=Cell(
        "RESERVED",
        "with MMAP: mapped to users. With PRIVATE in 6.1 and 6.12: boot-time memory map."
        " /proc/iomem names the ranges",
        _SHOWN,
    ),
)

_SLAB: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.SLAB],
    description=(
        "Frames cut into equal objects: inodes, dentries, task structures, small kmalloc. The"
        " slab allocator (SLUB) owns them."
    ),
    owner=Cell("SLUB", "one kmem_cache for each slab", "mm/slub.c:alloc_slab_page @7.2"),
    descriptor=Cell("struct slab", "64 bytes over struct page", "mm/slab.h @6.1, @6.12, @7.2"),
    page_type=_typed(PageType.SLAB, "0xf5 on the first frame; 6.1: the PG_slab flag"),
    plan=Cell(PLAN_TYPE[MemoryType.SLAB], "type 5, struct slab", _PLAN),
    refcounted=no(
        "7.2: the count is 0 (frozen); 6.12: it is 1 and means nothing",
        "mm/slub.c:alloc_slab_page @6.12, @7.2",
    ),
    mapcount=no("the field holds the type (6.12, 7.2)", _FLAGS),
    charged=depends("each object for itself (obj_exts), never the frame", "mm/slub.c @7.2"),
    user_mapping=Cell((UserMapping.NEVER,), "vm_insert_page refuses typed pages", _INSERT),
    dirtying=Cell(
        Dirtying.MUST_NOT,
        "the flag word has other meanings; the lookup of an address space gives none",
        _DIRTY,
    ),
    failure_6_1=Cell(
        (Verdict.IGNORED,),
        "unknown page: Ignored (the kernel slab page row of its table is not reached)",
        _FAIL_6_1,
    ),
    shown=Cell(
        "SLAB",
        "on head and tails. 6.2 (believed) to 6.18 can add ANON and KSM by accident",
        _SHOWN,
    ),
)

_LARGE_KMALLOC: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.LARGE_KMALLOC],
    description=(
        "A kmalloc of more than two pages: too large for a slab, so it comes straight from the"
        " page allocator. Counted as unreclaimable slab."
    ),
    owner=Cell("kmalloc callers", "mm/slub.c", "mm/slub.c:___kmalloc_large_node @6.12, @7.2"),
    descriptor=Cell("struct page", "compound, order in the second page's flags", "mm/slub.c @7.2"),
    page_type=_typed(
        PageType.LARGE_KMALLOC, "0xf8 on the first frame (6.18, 7.2); none in 6.1 and 6.12"
    ),
    plan=Cell(
        PLAN_TYPE[MemoryType.LARGE_KMALLOC], "Misc, subtype 6; type 11 if it is charged", _PLAN
    ),
    refcounted=no("7.2: the count is 0 (frozen); 6.12: 1", "mm/slub.c:___kmalloc_large_node @7.2"),
    user_mapping=Cell((UserMapping.NEVER,), "vm_insert_page refuses it", _INSERT),
    dirtying=Cell(Dirtying.MUST_NOT, "as slab", _DIRTY),
    shown=Cell("COMPOUND_HEAD, COMPOUND_TAIL", "alone: like every other kernel compound", _SHOWN),
)

_PAGE_TABLE: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.PAGE_TABLE],
    description=(
        "A table of the tree that translates virtual to physical addresses: for a process, or"
        " for the kernel itself. A fault allocates the missing ones."
    ),
    owner=Cell(
        "an address space", "pagetable_alloc and its constructors", "include/linux/mm.h @7.2"
    ),
    descriptor=Cell("struct ptdesc", "64 bytes over struct page (since 6.6)", _PAGE),
    page_type=_typed(PageType.TABLE, "0xf2; 6.1: bit 0x200 clear"),
    plan=Cell(PLAN_TYPE[MemoryType.PAGE_TABLE], "type 8, struct ptdesc", _PLAN),
    refcounted=no(
        "has a count of 1 that nobody takes",
        "include/linux/mm.h:pagetable_alloc_noprof @7.2",
        _DERIVED,
    ),
    mapcount=no("the field holds the type", _FLAGS),
    charged=depends("user tables yes, kernel tables no", "include/asm-generic/pgalloc.h @7.2"),
    user_mapping=Cell((UserMapping.NEVER,), "vm_insert_page refuses typed pages", _INSERT),
    dirtying=Cell(Dirtying.MUST_NOT, "the flag word has other meanings", _DIRTY),
    shown=Cell(
        "PGTABLE",
        "6.18 and 7.2: user and kernel tables of all levels, REFERENCED marks the kernel's; two of"
        " the kernel's, made early, were seen without. 6.1 and 6.12: lower levels only, no tails",
        _SHOWN,
    ),
)

_VMALLOC: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.VMALLOC],
    description=(
        "Single frames that the kernel maps side by side for a large buffer: module and BPF code,"
        " big tables. The frames need not be neighbours."
    ),
    owner=Cell("vmalloc callers", "named by caller in /proc/vmallocinfo", "mm/vmalloc.c @7.2"),
    descriptor=Cell(
        "struct page",
        "higher orders are split to single frames",
        "mm/vmalloc.c:vm_area_alloc_pages @7.2",
    ),
    plan=Cell(PLAN_TYPE[MemoryType.VMALLOC], "Misc, subtype 3; type 11 if it is charged", _PLAN),
    refcounted=yes("1 each", "mm/vmalloc.c:vm_area_alloc_pages @7.2"),
    mapcount=depends("only after remap_vmalloc_range", "mm/vmalloc.c @7.2"),
    pinnable=depends("where it was remapped to users", "mm/gup.c @7.2", _DERIVED),
    user_mapping=Cell(
        (UserMapping.NEVER, UserMapping.INSERTED),
        "mostly never; remap_vmalloc_range inserts it page by page",
        "mm/vmalloc.c @7.2",
    ),
    gup=depends("where it was remapped to users: yes", "mm/vmalloc.c @7.2"),
    dirtying=Cell(Dirtying.FLAG_ONLY, "where users map it: PG_dirty alone", _DIRTY, _DERIVED),
    shown=Cell("nothing", _ZERO_WORD + "; VmallocUsed gives the total", _SHOWN),
)

_KERNEL_STACK: Final = replace(
    _VMALLOC,
    title=TITLES[MemoryType.KERNEL_STACK],
    description=(
        "The stack that a thread uses while it runs in the kernel: 16 KiB, four single frames"
        " from vmalloc on x86-64."
    ),
    owner=Cell("a thread", "allocated by fork, through vmalloc", "kernel/fork.c @7.2"),
    descriptor=Cell("struct page", "four frames, as vmalloc", "CONFIG_VMAP_STACK @7.2"),
    plan=Cell(
        PLAN_TYPE[MemoryType.KERNEL_STACK],
        "as vmalloc: Misc 3, or 11 if it is charged",
        _PLAN,
        _DERIVED,
    ),
    mapcount=no("never mapped to users", "MemoryTypes wiki"),
    pinnable=no("GUP cannot reach it", "mm/gup.c @7.2"),
    charged=depends("can be charged to the thread's memory cgroup", "MemoryTypes wiki"),
    user_mapping=Cell((UserMapping.NEVER,), "never", "MemoryTypes wiki"),
    gup=no("there is no user address", "mm/gup.c @7.2"),
    dirtying=_DRIVER.dirtying,
    shown=Cell("nothing", _ZERO_WORD + "; KernelStack gives the total", _SHOWN),
)

_PERCPU: Final = replace(
    _KERNEL_STACK,
    title=TITLES[MemoryType.PERCPU],
    description="Backing of variables that exist once for each CPU: counters, caches.",
    owner=Cell("the per-CPU allocator", "mm/percpu-vm.c", "mm/percpu-vm.c @7.2"),
    descriptor=Cell(
        "struct page",
        "leads to its chunk: in index (6.1, 6.12) or private (7.2)",
        "mm/percpu.c:pcpu_set_page_chunk @6.1, @6.12, @7.2",
    ),
    plan=Cell(PLAN_TYPE[MemoryType.PERCPU], "type 10, struct pcpudesc (to be decided)", _PLAN),
    refcounted=yes("1 each", "mm/percpu-vm.c @7.2"),
    charged=depends("allocations can be charged", "MemoryTypes wiki"),
    shown=Cell("nothing", _ZERO_WORD + "; Percpu gives the total", _SHOWN),
)

_NET_POOL: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.NET_POOL],
    description=(
        "Receive buffers that a network driver recycles through a page_pool, mapped for the"
        " card's DMA. The plan calls it Bump."
    ),
    owner=Cell("a page_pool", "net/core/page_pool.c", "include/net/netmem.h @7.2"),
    descriptor=Cell(
        "struct netmem_desc", "48 bytes over struct page (since 6.17)", "include/net/netmem.h @7.2"
    ),
    page_type=Cell(
        (), "none; a magic number at byte 8", "include/linux/mm.h:page_pool_page_is_pp @7.2"
    ),
    plan=Cell(PLAN_TYPE[MemoryType.NET_POOL], "type 6, struct bump (to be decided)", _PLAN),
    refcounted=yes(
        "1, and a count of its own for pieces (pp_ref_count)", "include/net/netmem.h @7.2"
    ),
    mapcount=depends("where TCP receive zero-copy maps it", "include/net/netmem.h @7.2"),
    pinnable=depends("where it is mapped to users", "mm/gup.c @7.2", _DERIVED),
    charged=no("never", "include/net/netmem.h @7.2"),
    user_mapping=Cell(
        (UserMapping.NEVER, UserMapping.INSERTED),
        "TCP receive zero-copy inserts it",
        "include/net/netmem.h @7.2",
    ),
    gup=depends("where it is mapped to users: yes", "mm/gup.c @7.2"),
    dirtying=Cell(Dirtying.FLAG_ONLY, "where users map it: PG_dirty alone", _DIRTY),
    shown=Cell("nothing, or COMPOUND_HEAD and TAIL", "only its magic number tells", _SHOWN),
)

_PAGE_FRAG: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.PAGE_FRAG],
    description=(
        "A block (order 3) handed out in pieces, mostly for network packets. It is freed when the"
        " last piece comes back."
    ),
    owner=Cell("page_frag caches", "page_frag_alloc, sockets", _FRAG),
    descriptor=Cell("struct page", "compound", _FRAG),
    plan=Cell(
        PLAN_TYPE[MemoryType.PAGE_FRAG],
        "type 6, or Misc subtype 2; the plan does not say",
        _PLAN,
        _DERIVED,
    ),
    refcounted=yes("many: taken in advance for pieces", _FRAG),
    mapcount=depends("where it is mapped to users", _FRAG),
    pinnable=not_stated(),
    charged=no("never", _FRAG),
    user_mapping=Cell((UserMapping.NEVER, UserMapping.INSERTED), "rarely", _FRAG),
    gup=not_stated(),
    dirtying=Cell(Dirtying.FLAG_ONLY, "where users map it: PG_dirty alone", _DIRTY, _DERIVED),
    shown=Cell("COMPOUND_HEAD, COMPOUND_TAIL", "alone: like every other kernel compound", _SHOWN),
)

_ZSMALLOC: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.ZSMALLOC],
    description=(
        "Frames that hold compressed pages of zram or zswap, several to a frame, across frame"
        " borders."
    ),
    owner=Cell("zsmalloc", "for zram and zswap", "mm/zsmalloc.c @6.12, @7.2"),
    descriptor=Cell("struct zpdesc", "56 bytes over struct page (since 6.14)", "mm/zpdesc.h @7.2"),
    page_type=_typed(
        PageType.ZSMALLOC, "0xf6, low 24 bits = offset of the first object; none in 6.1"
    ),
    plan=Cell(PLAN_TYPE[MemoryType.ZSMALLOC], "type 12, struct zpdesc", _PLAN),
    refcounted=yes("1", "mm/zpdesc.h @7.2"),
    mapcount=no("type and offset lie over it", "mm/zpdesc.h @7.2"),
    charged=depends("zswap charges what was compressed, not the frame", "mm/zpdesc.h @7.2"),
    dirtying=Cell(Dirtying.MUST_NOT, "the flag word has other meanings", _DIRTY, _DERIVED),
    movable=Cell(
        MovedBy.MOVABLE_OPS,
        "through the calls of its page type (7.2) or of its mapping word (6.12); needs"
        " PG_movable_ops and not yet isolated",
        _MOVABLE_OPS,
    ),
    failure_7_2=Cell(
        (Verdict.IGNORED,),
        "get hwpoison page: Ignored; soft offline can move it away",
        _HANDLABLE,
    ),
    shown=Cell(
        "UPTODATE and PRIVATE, or either",
        "7.2. In 6.12 only PRIVATE or nothing. In 6.1 MMAP, falsely, with a false map count",
        _SHOWN,
    ),
)

_BALLOON: Final = replace(
    _ZSMALLOC,
    title=TITLES[MemoryType.BALLOON],
    description=(
        "Memory that a guest gave back to its host: the balloon driver keeps the frames so that"
        " nobody else uses them."
    ),
    owner=Cell("a balloon driver", "virtio, VMware, Hyper-V", "mm/balloon.c @7.2"),
    descriptor=Cell("struct page", "on the driver's list", "mm/balloon.c:balloon_page_insert @7.2"),
    page_type=_typed(PageType.OFFLINE, "0xf1; 6.1: bit 0x100 clear"),
    plan=Cell(PLAN_TYPE[MemoryType.BALLOON], "type 7 if movable, Misc subtype 5 if not", _PLAN),
    refcounted=yes("1", "mm/balloon.c @7.2"),
    mapcount=no("the field holds the type", _FLAGS),
    charged=no("never", "mm/balloon.c @7.2"),
    movable=Cell(
        MovedBy.MOVABLE_OPS,
        "if the driver set PG_movable_ops (7.2) or the mapping word (6.12); other balloon pages"
        " never",
        _MOVABLE_OPS,
    ),
    shown=Cell("OFFLINE", "with UPTODATE from 6.17 (believed): movable", _SHOWN),
)

_OFFLINE: Final = replace(
    _BALLOON,
    title=TITLES[MemoryType.OFFLINE],
    description=(
        "Frames that are there and must not be touched: unplugged by virtio-mem, held by Xen,"
        " leaked by SEV-SNP, or about to come online."
    ),
    owner=Cell("a driver", "virtio-mem, Xen, the memory hotplug code", "__SetPageOffline @7.2"),
    descriptor=Cell("struct page", "page type offline", _FLAGS),
    plan=Cell(PLAN_TYPE[MemoryType.OFFLINE], "Misc, subtype 5", _PLAN),
    refcounted=depends("1; 0 while its memory block goes offline", _FLAGS),
    charged=no("never", _FLAGS),
    movable=Cell(MovedBy.NEVER, "it has no content and no movable_ops", _MOVE),
    failure_7_2=Cell((Verdict.IGNORED,), "get hwpoison page: Ignored", _HANDLABLE),
    shown=Cell("OFFLINE", "without UPTODATE; 6.1 and 6.12: not on tails", _SHOWN),
)

_MOVABLE_OPS_ROW: Final = replace(
    _ZSMALLOC,
    title=TITLES[MemoryType.MOVABLE_OPS],
    description=(
        "Other frames outside the LRU whose owner knows how to move them. z3fold was one until"
        " it was removed; 7.2 has none beside balloon and zsmalloc."
    ),
    owner=Cell("z3fold in 6.12; nobody in 7.2", "compressed pages", "mm/z3fold.c @6.12"),
    descriptor=Cell("struct page", "mapping holds the calls, low bits 2", "mm/z3fold.c @6.12"),
    page_type=Cell((), "none; 7.2 knows movable pages by types f1 and f6 only", _MOVABLE_OPS),
    plan=Cell(PLAN_TYPE[MemoryType.MOVABLE_OPS], "type 7, struct movable (to be decided)", _PLAN),
    refcounted=yes("1", "mm/z3fold.c @6.12", _DERIVED),
    mapcount=no("never mapped", "mm/z3fold.c @6.12", _DERIVED),
    charged=not_stated(),
    movable=Cell(
        MovedBy.MOVABLE_OPS,
        "through the pointer in mapping (6.1, 6.12)",
        "mm/compaction.c:__SetPageMovable @6.12",
    ),
    failure_7_2=Cell((Verdict.NO_SUCH_TYPE,), "7.2 has none", "mm/migrate.c:set_movable_ops @7.2"),
    shown=Cell("nothing of its own", "no flag names it", _SHOWN, _DERIVED),
)

_DRIVER_MAPPED: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.DRIVER_MAPPED],
    description=(
        "Kernel pages that processes share: the rings of perf, io_uring, packet sockets and BPF,"
        " buffers of video and graphics drivers."
    ),
    owner=Cell("a driver", "mapped by its mmap call", _PAGE),
    descriptor=Cell("struct page", "has no address space", _PAGE),
    plan=Cell(
        PLAN_TYPE[MemoryType.DRIVER_MAPPED],
        "Misc, subtype 2, bit 11 set; type 13 if it needs a refcount or a list",
        _PLAN,
    ),
    refcounted=depends(
        "inserted: one for each mapping. By frame number: untouched",
        "mm/memory.c:insert_page_into_pte_locked @7.2",
    ),
    mapcount=depends(
        "inserted: yes, counted as a file mapping. By frame number: no",
        "mm/memory.c:insert_page_into_pte_locked @7.2",
    ),
    pinnable=depends("inserted: yes. By frame number: no", "mm/gup.c:check_vma_flags @7.2"),
    charged=not_stated(),
    user_mapping=Cell(
        (UserMapping.INSERTED, UserMapping.PFN_ONLY),
        "vm_insert_page: a normal entry. remap_pfn_range, vmf_insert_pfn: a special one",
        "mm/memory.c @7.2",
    ),
    gup=depends(
        "inserted: yes. By frame number: -EFAULT, because the area is VM_PFNMAP or VM_IO",
        "mm/gup.c:check_vma_flags @7.2",
    ),
    dirtying=Cell(Dirtying.FLAG_ONLY, "no address space: PG_dirty alone", _DIRTY),
    failure_6_12=Cell(
        (Verdict.IGNORED,), "as in 7.2; through madvise: reserved or unknown page", _FAIL_6_12
    ),
    failure_6_1=Cell(
        (Verdict.IGNORED,), "unknown page; through madvise: reserved or unknown page", _FAIL_6_1
    ),
    shown=Cell(
        "MMAP",
        "alone or with REFERENCED, and HEAD or TAIL. Mapped by frame number: nothing, and no"
        " pagemap shows it",
        _SHOWN,
    ),
)

_EXACT: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.EXACT_ALLOC],
    description="A block cut down to the asked number of frames by alloc_pages_exact.",
    owner=Cell("alloc_pages_exact callers", "drivers, large boot-time tables", _ALLOC),
    descriptor=Cell("struct page", "split into single frames", _ALLOC),
    plan=Cell(PLAN_TYPE[MemoryType.EXACT_ALLOC], "Misc, subtype 7", _PLAN),
    failure_7_2=replace(_DRIVER.failure_7_2, certainty=_DERIVED),
    shown=Cell("nothing", _ZERO_WORD, _SHOWN, _DERIVED),
)

_RAM_DISK: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.RAM_DISK],
    description="Blocks of a brd RAM disk. The page cache above it holds a second copy.",
    owner=Cell("brd", "drivers/block/brd.c", "drivers/block/brd.c @7.2"),
    descriptor=Cell("struct page", "in a tree of the device", "drivers/block/brd.c @7.2"),
    plan=Cell(PLAN_TYPE[MemoryType.RAM_DISK], "Misc, subtype 8", _PLAN),
    charged=not_stated(),
    failure_7_2=replace(_DRIVER.failure_7_2, certainty=_DERIVED),
    shown=Cell("nothing", _ZERO_WORD, _SHOWN, _DERIVED),
)

_ACCOUNTED: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.ACCOUNTED],
    description=(
        "Any bare kernel page that counts against a memory cgroup's limit, such as the buffers of"
        " a pipe."
    ),
    owner=Cell("__GFP_ACCOUNT callers", "through an object cgroup", "mm/memcontrol.c @7.2"),
    descriptor=Cell(
        "struct page", "memcg_data with bit 1", "include/linux/memcontrol.h @6.1, @7.2"
    ),
    plan=Cell(PLAN_TYPE[MemoryType.ACCOUNTED], "type 11, struct acctmem", _PLAN),
    charged=yes("that is what it is", "include/linux/memcontrol.h:folio_memcg_check @7.2"),
    failure_7_2=replace(_DRIVER.failure_7_2, certainty=_DERIVED),
    shown=Cell(
        "nothing", "but /proc/kpagecgroup names a cgroup", "fs/proc/page.c (kpagecgroup) @7.2"
    ),
)

_MEMREMAP: Final = "include/linux/memremap.h @7.2"
_DEVICE_FAIL: Final = "mm/memory-failure.c:mf_generic_kill_procs @7.2"

_DEVICE_DAX: Final = replace(
    _DRIVER,
    title=TITLES[MemoryType.DEVICE_DAX],
    description=(
        "Persistent or other device memory that a program maps as a whole through a device file,"
        " without a file system."
    ),
    owner=Cell("a dax driver", "also Xen's unpopulated memory", _MEMREMAP),
    descriptor=Cell("struct folio", "leads to its pgmap (6.18, 7.2)", _PAGE),
    plan=Cell(PLAN_TYPE[MemoryType.DEVICE_DAX], "no place in any revision", "MemoryTypes wiki"),
    refcounted=not_stated("the number that means idle changed between 6.12 and 7.2"),
    mapcount=yes("yes", _MEMREMAP),
    pinnable=yes("long-term too", _MEMREMAP),
    charged=no("never", _MEMREMAP),
    user_mapping=Cell((UserMapping.DEVICE_ENTRY,), "by PTE, PMD or PUD", _MEMREMAP),
    gup=yes("yes", _MEMREMAP),
    dirtying=Cell(Dirtying.FLAG_ONLY, "noop_dirty_folio, or PG_dirty alone", _DIRTY),
    movable=Cell(MovedBy.NEVER, "compaction does not walk device memory", _MEMREMAP),
    failure_7_2=Cell(
        (Verdict.RECOVERED,),
        "dax page: every mapper gets SIGBUS, or the driver's own handler acts",
        _DEVICE_FAIL,
    ),
    failure_6_12=Cell(
        (Verdict.RECOVERED,), "as in 7.2", "mm/memory-failure.c:mf_generic_kill_procs @6.12"
    ),
    failure_6_1=Cell(
        (Verdict.RECOVERED,), "as in 7.2", "mm/memory-failure.c:mf_generic_kill_procs @6.1"
    ),
    shown=Cell(
        "NOPAGE, or nothing",
        "as a hole, or beyond the end of the file; /proc/iomem names persistent memory",
        "fs/proc/page.c:get_max_dump_pfn @6.1, @6.12, @7.2",
    ),
)

_FS_DAX: Final = replace(
    _DEVICE_DAX,
    title=TITLES[MemoryType.FS_DAX],
    description=(
        "Persistent memory with a file system that maps file content straight to users: no page"
        " cache, no second copy."
    ),
    owner=Cell("a file system", "on persistent memory", _MEMREMAP),
    plan=Cell(PLAN_TYPE[MemoryType.FS_DAX], "no place in any revision", "MemoryTypes wiki"),
    mapcount=yes("share counts reflinks", _MEMREMAP),
    pinnable=depends("not long-term", "mm/gup.c:check_vma_flags @7.2"),
    user_mapping=Cell((UserMapping.DEVICE_ENTRY,), "by PTE or PMD", _MEMREMAP),
    gup=depends("short-term yes; long-term -EOPNOTSUPP", "mm/gup.c:check_vma_flags @7.2"),
    dirtying=Cell(Dirtying.FLAG_ONLY, "the DAX address spaces use noop_dirty_folio", _DIRTY),
)

_PCI_P2PDMA: Final = replace(
    _DEVICE_DAX,
    title=TITLES[MemoryType.PCI_P2PDMA],
    description="Memory on a PCI card, used for transfers from card to card past main memory.",
    owner=Cell("a PCI driver", "p2pdma", _MEMREMAP),
    plan=Cell(PLAN_TYPE[MemoryType.PCI_P2PDMA], "no place in any revision", "MemoryTypes wiki"),
    pinnable=depends("only with FOLL_PCI_P2PDMA", "mm/gup.c @7.2"),
    user_mapping=Cell((UserMapping.INSERTED,), "vm_insert_page", _MEMREMAP),
    gup=depends("only with FOLL_PCI_P2PDMA", "mm/gup.c @7.2"),
    dirtying=Cell(Dirtying.FLAG_ONLY, "no address space: PG_dirty alone", _DIRTY),
)

_DEVICE_PRIVATE: Final = replace(
    _DEVICE_DAX,
    title=TITLES[MemoryType.DEVICE_PRIVATE],
    description=(
        "Memory of a graphics card or accelerator that the CPU cannot read. It holds anonymous"
        " memory of a process; a touch by the CPU moves the page back."
    ),
    owner=Cell("a device driver", "mm/memremap.c and the driver", _MEMREMAP),
    plan=Cell(PLAN_TYPE[MemoryType.DEVICE_PRIVATE], "no place in any revision", "MemoryTypes wiki"),
    pinnable=no("no", _MEMREMAP),
    charged=yes("the charge stays when a page moves there", _MEMREMAP),
    user_mapping=Cell((UserMapping.NON_PRESENT,), "a device-private entry", _MEMREMAP),
    gup=depends("faults the page back to main memory first", _MEMREMAP),
    dirtying=Cell(Dirtying.FLAG_ONLY, "no address space: PG_dirty alone", _DIRTY),
    movable=Cell(MovedBy.MIGRATE_VMA, "by its driver; compaction does not walk it", _MEMREMAP),
    failure_7_2=Cell((Verdict.FAILED,), "dax page: Failed (-ENXIO)", _DEVICE_FAIL),
    failure_6_12=Cell(
        (Verdict.FAILED,), "as in 7.2", "mm/memory-failure.c:mf_generic_kill_procs @6.12"
    ),
    failure_6_1=Cell(
        (Verdict.FAILED,), "as in 7.2", "mm/memory-failure.c:mf_generic_kill_procs @6.1"
    ),
)

_DEVICE_COHERENT: Final = replace(
    _DEVICE_PRIVATE,
    title=TITLES[MemoryType.DEVICE_COHERENT],
    description=(
        "Memory of a device that the CPU can read and write like its own. It holds anonymous"
        " memory of a process, placed there by the driver."
    ),
    plan=Cell(
        PLAN_TYPE[MemoryType.DEVICE_COHERENT], "no place in any revision", "MemoryTypes wiki"
    ),
    pinnable=depends("not long-term", "include/linux/mm.h:folio_is_longterm_pinnable @7.2"),
    charged=yes("yes", _MEMREMAP),
    user_mapping=Cell((UserMapping.DEVICE_ENTRY,), "a normal PTE", _MEMREMAP),
    gup=depends(
        "short-term yes, long-term no", "include/linux/mm.h:folio_is_longterm_pinnable @7.2"
    ),
)

KERNEL_ROWS: Mapping[MemoryType, TypeFacts] = MappingProxyType(
    {
        MemoryType.FREE: _FREE,
        MemoryType.FREE_PCP: _FREE_PCP,
        MemoryType.DEFERRED: _DEFERRED,
        MemoryType.UNACCEPTED: _UNACCEPTED,
        MemoryType.GUARD: _GUARD,
        MemoryType.POISONED: _POISONED,
        MemoryType.RESERVED: _RESERVED,
        MemoryType.SLAB: _SLAB,
        MemoryType.LARGE_KMALLOC: _LARGE_KMALLOC,
        MemoryType.PAGE_TABLE: _PAGE_TABLE,
        MemoryType.VMALLOC: _VMALLOC,
        MemoryType.KERNEL_STACK: _KERNEL_STACK,
        MemoryType.PERCPU: _PERCPU,
        MemoryType.NET_POOL: _NET_POOL,
        MemoryType.PAGE_FRAG: _PAGE_FRAG,
        MemoryType.ZSMALLOC: _ZSMALLOC,
        MemoryType.BALLOON: _BALLOON,
        MemoryType.OFFLINE: _OFFLINE,
        MemoryType.MOVABLE_OPS: _MOVABLE_OPS_ROW,
        MemoryType.DRIVER: _DRIVER,
        MemoryType.DRIVER_MAPPED: _DRIVER_MAPPED,
        MemoryType.EXACT_ALLOC: _EXACT,
        MemoryType.RAM_DISK: _RAM_DISK,
        MemoryType.ACCOUNTED: _ACCOUNTED,
        MemoryType.DEVICE_PRIVATE: _DEVICE_PRIVATE,
        MemoryType.DEVICE_COHERENT: _DEVICE_COHERENT,
        MemoryType.FS_DAX: _FS_DAX,
        MemoryType.DEVICE_DAX: _DEVICE_DAX,
        MemoryType.PCI_P2PDMA: _PCI_P2PDMA,
        MemoryType.HOLE: _HOLE,
    }
)
"""The rows of this module, in the order in which a reader meets them."""

"""The sentences of the decision procedure for struct pages (`memdesc.rules.structpage`)."""

from __future__ import annotations

from typing import Final

from memdesc.types import Certainty

__all__ = ["STRUCT_PAGE_ROWS"]

_E, _I, _N = Certainty.EXACT, Certainty.INFERRED, Certainty.NOT_VISIBLE
_PAGE_FLAGS_H = "include/linux/page-flags.h @6.1, @6.12, @7.2"

STRUCT_PAGE_ROWS: Final[tuple[tuple[str, Certainty, str, str], ...]] = (
    (
        "struct-hole",
        _E,
        "no memory section with an online memory map holds this frame",
        "include/linux/mmzone.h:online_section @6.12",
    ),
    (
        "struct-device",
        _E,
        "its section has a memory map, is not online, and lies in ZONE_DEVICE",
        "mm/memory_hotplug.c:pfn_to_online_page @6.12",
    ),
    (
        "struct-unreadable",
        _N,
        "the struct page is not in the dump, or cannot be read",
        "memdesc.structs.memmap",
    ),
    (
        "struct-damaged",
        _N,
        "more distinct states of struct pages than any kernel has: these bytes are none",
        "memdesc.structs.states",
    ),
    (
        "struct-deferred",
        _E,
        "the struct page is all zero, and an initialised one never is: it still waits",
        "mm/mm_init.c:__init_single_page @6.12",
    ),
    (
        "struct-free",
        _E,
        "page type buddy, or reference count 0 inside a block of that type",
        "mm/page_alloc.c:is_free_buddy_page @6.12",
    ),
    (
        "struct-torn",
        _N,
        "a tail whose head is none: it changed while it was read, or is damaged",
        "include/linux/page-flags.h:_compound_head @7.2",
    ),
    ("struct-slab", _E, "page type slab (before it: PG_slab of the head)", _PAGE_FLAGS_H),
    ("struct-table", _E, "page type table", _PAGE_FLAGS_H),
    ("struct-guard", _E, "page type guard (debug_pagealloc)", _PAGE_FLAGS_H),
    (
        "struct-hugetlb",
        _E,
        "page type hugetlb (before it: the hugetlb destructor)",
        "include/linux/page-flags.h @6.12; mm/hugetlb.c:PageHuge @6.1",
    ),
    ("struct-zsmalloc", _E, "page type zsmalloc", _PAGE_FLAGS_H),
    ("struct-unaccepted", _E, "page type unaccepted", _PAGE_FLAGS_H),
    ("struct-large-kmalloc", _E, "page type large_kmalloc", "mm/slub.c @7.2"),
    (
        "struct-balloon",
        _E,
        "page type offline with movable operations: a balloon page",
        "mm/balloon_compaction.c @6.12; mm/balloon.c:balloon_page_insert @7.2",
    ),
    (
        "struct-offline",
        _E,
        "page type offline: a balloon page, or logically offline (virtio-mem, Xen)",
        "callers of __SetPageOffline @7.2",
    ),
    (
        "struct-unknown-type",
        _N,
        "a page type that this kernel's type information does not name",
        _PAGE_FLAGS_H,
    ),
    (
        "struct-huge-zero",
        _E,
        "inside the huge zero folio, whose place the kernel's own variable names",
        "mm/huge_memory.c:huge_zero_pfn @6.12",
    ),
    ("struct-zero-page", _E, "the frame of empty_zero_page", "arch/x86/kernel/head_64.S @6.12"),
    ("struct-reserved", _E, "PG_reserved: kernel image, boot memory or firmware", _PAGE_FLAGS_H),
    ("struct-anon", _E, "mapping leads to an anon_vma", _PAGE_FLAGS_H),
    (
        "struct-anon-swap-cache",
        _E,
        "mapping leads to an anon_vma, and PG_swapcache is set",
        "include/linux/page-flags.h:folio_test_swapcache @7.2",
    ),
    ("struct-ksm", _E, "mapping leads to a stable node of same-page merging", _PAGE_FLAGS_H),
    (
        "struct-swap-cache",
        _E,
        "PG_swapbacked and PG_swapcache, not anonymous yet: shmem or read ahead from swap",
        "mm/swap_state.c @6.12",
    ),
    (
        "struct-shmem",
        _E,
        "PG_swapbacked, and mapping leads to an address_space: tmpfs, memfd, shared anonymous",
        "mm/shmem.c @6.12",
    ),
    (
        "struct-swapbacked-new",
        _I,
        "PG_swapbacked without a mapping: being filled, moved or freed",
        "mm/memory.c:do_swap_page, mm/shmem.c @7.2",
    ),
    ("struct-file", _E, "mapping leads to the address_space of a file", "mm/filemap.c @6.12"),
    (
        "struct-driver",
        _E,
        "mapping leads to a character device, or to the inode of files without a name: a driver "
        "put it there, as perf does for its rings",
        "kernel/events/core.c:perf_mmap_fault @6.12; drivers/video/fbdev/core/fb_defio.c @6.12",
    ),
    (
        "struct-file-or-driver",
        _I,
        "mapping leads to an address_space that could not be followed, and no mark of page cache "
        "is set: page cache in the making, or a driver's",
        "kernel/events/core.c:perf_mmap_fault @6.12",
    ),
    (
        "struct-special-file",
        _E,
        "mapping leads to an address_space whose a_ops name secretmem or guest_memfd",
        "mm/secretmem.c, virt/kvm/guest_memfd.c @7.2",
    ),
    (
        "struct-file-unevictable",
        _I,
        "an address_space whose a_ops could not be resolved; not evictable, or not on a list yet",
        "mm/secretmem.c, virt/kvm/guest_memfd.c @7.2",
    ),
    (
        "struct-truncated",
        _I,
        "on a reclaim list without a mapping: page cache that was truncated and is still held",
        "mm/truncate.c @6.12",
    ),
    (
        "struct-movable",
        _E,
        "mapping leads to movable_operations, and their symbol names the owner",
        "mm/zsmalloc.c, mm/balloon_compaction.c @6.1, @6.12",
    ),
    (
        "struct-movable-unnamed",
        _N,
        "mapping leads to movable_operations whose symbol is not known",
        "include/linux/migrate.h @6.12",
    ),
    (
        "struct-net-pool",
        _E,
        "pp_magic holds the signature of a page_pool",
        "include/linux/mm.h:page_pool_page_is_pp @7.2",
    ),
    (
        "struct-walk",
        _E,
        "a walk over the kernel's structures met this frame, and its reference count agrees",
        "mm/vmalloc.c, kernel/fork.c, mm/percpu.c, mm/page_alloc.c @6.12",
    ),
    (
        "struct-folio-new",
        _I,
        "a large folio for user space without a mapping: being filled or freed, or a driver's",
        "mm/internal.h:page_rmappable_folio @6.12",
    ),
    (
        "struct-compound",
        _N,
        "a compound page of the kernel or of a driver, without a type or a mapping",
        _PAGE_FLAGS_H,
    ),
    (
        "struct-mapped",
        _I,
        "mapped into a process, and neither anonymous nor of a file: inserted by the kernel",
        "mm/memory.c:insert_page_into_pte_locked @7.2",
    ),
    (
        "struct-accounted",
        _I,
        "memcg_data charges it as a kernel page",
        "include/linux/memcontrol.h:MEMCG_DATA_KMEM @6.12",
    ),
    (
        "struct-unreferenced",
        _N,
        "reference count 0, no type, not in a free block: on a CPU's free list, or inside a "
        "block of several frames that is no compound page",
        "mm/page_alloc.c:free_unref_page, prep_new_page @6.12",
    ),
    (
        "struct-kernel-or-new",
        _N,
        "in use, with marks of content but no mapping: the kernel's, or page cache in the making",
        "mm/filemap.c:filemap_add_folio @6.12",
    ),
    (
        "struct-kernel",
        _N,
        "in use by the kernel or a driver; nothing in its struct page tells by whom",
        "include/linux/mm_types.h @6.12",
    ),
)
"""(name, certainty, reason, source), as the rows of `memdesc.rules.procedure`."""

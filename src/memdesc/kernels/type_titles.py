"""Short names for people: what is a memory type called on a screen?

Apart from the rest of the type table because almost every command needs these names
and nothing else of it: this module imports in a fraction of the time.

>>> TITLES[MemoryType.FILE]
'page cache'
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from memdesc.types import MemoryType

__all__ = ["TITLES"]

TITLES: Mapping[MemoryType, str] = MappingProxyType(
    {
        MemoryType.ANON: "anonymous memory",
        MemoryType.FILE: "page cache",
        MemoryType.SHMEM: "shared memory (shmem)",
        MemoryType.SWAP_CACHE: "swap cache",
        MemoryType.KSM: "merged (KSM)",
        MemoryType.HUGETLB: "huge page (hugetlb)",
        MemoryType.SECRETMEM: "secret memory",
        MemoryType.GUEST_MEMFD: "guest memory (guest_memfd)",
        MemoryType.ZERO: "zero page",
        MemoryType.HUGE_ZERO: "huge zero page",
        MemoryType.FREE: "free memory",
        MemoryType.FREE_PCP: "free on a CPU's list",
        MemoryType.DEFERRED: "not initialised yet",
        MemoryType.UNACCEPTED: "unaccepted",
        MemoryType.GUARD: "guard page",
        MemoryType.POISONED: "poisoned",
        MemoryType.RESERVED: "reserved",
        MemoryType.SLAB: "slab",
        MemoryType.LARGE_KMALLOC: "large kmalloc",
        MemoryType.PAGE_TABLE: "page table",
        MemoryType.VMALLOC: "vmalloc",
        MemoryType.KERNEL_STACK: "kernel stack",
        MemoryType.PERCPU: "per-CPU data",
        MemoryType.NET_POOL: "network buffer pool",
        MemoryType.PAGE_FRAG: "page fragments",
        MemoryType.ZSMALLOC: "compressed memory (zsmalloc)",
        MemoryType.BALLOON: "balloon",
        MemoryType.OFFLINE: "logically offline",
        MemoryType.MOVABLE_OPS: "movable by its owner",
        MemoryType.DRIVER: "driver memory",
        MemoryType.DRIVER_MAPPED: "driver memory mapped to users",
        MemoryType.EXACT_ALLOC: "exact-size allocation",
        MemoryType.RAM_DISK: "RAM disk",
        MemoryType.ACCOUNTED: "charged kernel page",
        MemoryType.DEVICE_PRIVATE: "device memory, private",
        MemoryType.DEVICE_COHERENT: "device memory, coherent",
        MemoryType.FS_DAX: "file on persistent memory (fs-dax)",
        MemoryType.DEVICE_DAX: "device memory, mapped directly (device-dax)",
        MemoryType.PCI_P2PDMA: "PCI peer memory",
        MemoryType.HOLE: "hole",
    }
)
"""The title of every memory type."""

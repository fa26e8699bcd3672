"""Typed descriptors: what is known about a piece of memory of one kind?

One frozen dataclass per kind, each with only the fields that exist for that kind: a
`Slab` has a cache and no mapping, a `FileFolio` has a mapping and no cache.  A `Page`
has a frame number and a way to its descriptor, and nothing else, so that
`page.mapping` (wrong for a tail page, a slab, a page table, and invisible to a C
compiler) does not exist here and both type checkers reject it.

A descriptor covers a run of frames.  The tail of a large folio leads to the same
descriptor as its head.

A field that a source may not see is a `Fact` (`memdesc.fact`): the value, or
`NotVisible` with the reason.  /proc fills ranges, flags, map counts and cgroup inodes; a
crash dump adds reference counts, pins, mappings, slab caches and page-table owners.

Which fields exist for which kind follows the arms of `struct page` and its overlays
(`include/linux/mm_types.h`, `mm/slab.h`, `mm/zpdesc.h`, `include/net/netmem.h` @7.2).

>>> slab = Slab(PfnRange(Pfn(8), Pfn(16)), cache="dentry")
>>> frames = DescriptorIndex([slab])
>>> frames.page(Pfn(11)).descriptor() is slab
True
>>> slab.objects
NotVisible(reason='the source did not look')
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeAlias, assert_never, runtime_checkable

from memdesc.errors import QuestionError
from memdesc.fact import NOT_LOOKED, Fact, Nobody, NotVisible
from memdesc.types import DEVICE, CgroupInode, MemoryType, Pfn, PfnRange, Pid, TypeSet

__all__ = [
    "CLASS_OF",
    "NOT_LOOKED",
    "Accounted",
    "AddressSpace",
    "AnonFolio",
    "Balloon",
    "Buddy",
    "Deferred",
    "Described",
    "Descriptor",
    "DescriptorIndex",
    "DescriptorLookup",
    "DeviceKind",
    "DevicePage",
    "DriverPage",
    "ExactAlloc",
    "Fact",
    "FileFolio",
    "Folio",
    "Guard",
    "GuestMemfdFolio",
    "Hole",
    "HugeZeroFolio",
    "HugetlbFolio",
    "KernelStack",
    "KsmFolio",
    "LargeKmalloc",
    "MappedDriverPage",
    "MovableOps",
    "NetPool",
    "Nobody",
    "NotVisible",
    "Offline",
    "Page",
    "PageFrag",
    "PageTable",
    "PcpFree",
    "PerCpu",
    "Poisoned",
    "RamDisk",
    "RawPageLookup",
    "Reserved",
    "SecretmemFolio",
    "ShmemFolio",
    "Slab",
    "SwapCacheFolio",
    "TableRole",
    "Unaccepted",
    "Undescribed",
    "Vmalloc",
    "ZPDesc",
    "ZeroPage",
    "bare_descriptor",
    "descriptor_kind",
]

# Parts of descriptors


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """`struct address_space`: what a file folio's mapping leads to.

    `address` is a kernel address; `operations` names the table of calls (`ext4_da_aops`).
    """

    address: Fact[int] = NOT_LOOKED
    filesystem: Fact[str] = NOT_LOOKED
    inode: Fact[int] = NOT_LOOKED
    path: Fact[str] = NOT_LOOKED
    """As /proc/PID/maps prints it: "/memfd:NAME (deleted)" for a memfd."""
    operations: Fact[str] = NOT_LOOKED


class TableRole(enum.Enum):
    """Whose addresses a page table translates."""

    USER = "user"
    KERNEL = "kernel"
    BOOT = "boot"


class DeviceKind(enum.Enum):
    """The kind of a ZONE_DEVICE page (`include/linux/memremap.h`: enum memory_type)."""

    PRIVATE = MemoryType.DEVICE_PRIVATE
    COHERENT = MemoryType.DEVICE_COHERENT
    FS_DAX = MemoryType.FS_DAX
    GENERIC = MemoryType.DEVICE_DAX
    PCI_P2PDMA = MemoryType.PCI_P2PDMA


# Shared field groups. Nobody makes an instance of these three.


@dataclass(frozen=True, slots=True)
class Described:
    """What every descriptor has: the frames it covers. Raises ValueError for an empty run."""

    pages: PfnRange

    def __post_init__(self) -> None:
        if self.pages.nr_pages < 1:
            raise ValueError(f"a descriptor covers at least one frame, not {self.pages}")


@dataclass(frozen=True, slots=True)
class _Charged(Described):
    cgroup: Fact[CgroupInode | Nobody] = NOT_LOOKED
    """Memory cgroup the frames are charged to."""


@dataclass(frozen=True, slots=True)
class Folio(_Charged):
    """What anonymous and file memory share: counts, flags, a place on the LRU.

    `mapcount` counts user page-table entries for the whole folio; flags are the kernel's
    names in lower case. `pins` is what `folio_maybe_dma_pinned` looks at: exact for a large
    folio; for a single frame references and pins share one counter, and it is an upper
    bound (0 is certain).
    """

    flags: Fact[frozenset[str]] = NOT_LOOKED
    refcount: Fact[int] = NOT_LOOKED
    mapcount: Fact[int] = NOT_LOOKED
    pins: Fact[int] = NOT_LOOKED


# Folios


@dataclass(frozen=True, slots=True)
class AnonFolio(Folio):
    """Memory of processes that no file backs."""

    exclusive: Fact[bool] = NOT_LOOKED
    """PG_anon_exclusive: known to belong to one process (no copy-on-write sharing)."""
    anon_vma: Fact[int] = NOT_LOOKED
    """Kernel address of the anon_vma; /proc does not show it."""
    index: Fact[int] = NOT_LOOKED
    """Virtual page number at which it was first mapped."""


@dataclass(frozen=True, slots=True)
class SwapCacheFolio(Folio):
    """An anonymous or shmem folio that has a slot in a swap area."""

    shmem: Fact[bool] = NOT_LOOKED
    swap_type: Fact[int] = NOT_LOOKED
    """Number of the swap area."""
    swap_offset: Fact[int] = NOT_LOOKED
    """Slot within the area, in pages."""


@dataclass(frozen=True, slots=True)
class KsmFolio(Folio):
    """One frame that stands for several equal anonymous pages."""

    stable_node: Fact[int] = NOT_LOOKED
    """Kernel address of the node in KSM's stable tree."""
    sharers: Fact[int] = NOT_LOOKED
    """Virtual pages that KSM merged into it; entries inherited by fork count once."""


@dataclass(frozen=True, slots=True)
class FileFolio(Folio):
    """Page cache of a file or a block device. `index` is in pages from its start."""

    mapping: Fact[AddressSpace] = NOT_LOOKED
    index: Fact[int] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class ShmemFolio(Folio):
    """tmpfs, memfd, shared anonymous or System V memory. `index` is in pages."""

    mapping: Fact[AddressSpace] = NOT_LOOKED
    index: Fact[int] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class HugetlbFolio(Folio):
    """A huge page of the hugetlb pool, in use or waiting in the pool."""

    in_use: Fact[bool] = NOT_LOOKED
    mapping: Fact[AddressSpace | Nobody] = NOT_LOOKED
    """The hugetlbfs file; `Nobody` for a private mapping or a free huge page."""
    index: Fact[int] = NOT_LOOKED
    """In frames from the start of the file, as for every folio."""


@dataclass(frozen=True, slots=True)
class SecretmemFolio(Folio):
    """memfd_secret: one frame that the kernel removed from its own mapping."""

    mapping: Fact[AddressSpace] = NOT_LOOKED
    index: Fact[int] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class GuestMemfdFolio(Folio):
    """Private memory of a KVM guest."""

    mapping: Fact[AddressSpace] = NOT_LOOKED
    index: Fact[int] = NOT_LOOKED


# Free memory, and memory that holds nothing


@dataclass(frozen=True, slots=True)
class Buddy(Described):
    """A free block, or a run of free blocks where a source cannot see the borders."""

    order: Fact[int] = NOT_LOOKED
    migratetype: Fact[str] = NOT_LOOKED
    reported: Fact[bool] = NOT_LOOKED
    """The hypervisor was told that the block is free."""


@dataclass(frozen=True, slots=True)
class PcpFree(Described):
    """Free, on the list of one CPU."""

    cpu: Fact[int] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class Deferred(Described):
    """Memory whose struct pages are not initialised yet."""


@dataclass(frozen=True, slots=True)
class Guard(Described):
    """A trap next to an allocation (debug_guardpage)."""


@dataclass(frozen=True, slots=True)
class Unaccepted(Described):
    """Guest memory that the hypervisor has not been asked for yet."""


@dataclass(frozen=True, slots=True)
class Hole(Described):
    """Frame numbers without an online struct page."""


@dataclass(frozen=True, slots=True)
class ZeroPage(Described):
    """The one frame of zeroes that every first read of anonymous memory shows."""


@dataclass(frozen=True, slots=True)
class HugeZeroFolio(Described):
    """The same for 2 MiB mappings; made on demand."""


@dataclass(frozen=True, slots=True)
class Poisoned(Described):
    """Taken out of use after a memory error."""

    former: Fact[TypeSet] = NOT_LOOKED
    """What it was before."""


# The kernel's own memory


@dataclass(frozen=True, slots=True)
class Reserved(Described):
    """Kernel image, boot-time allocations, firmware. `role` as in /proc/iomem."""

    role: Fact[str] = NOT_LOOKED
    mapcount: Fact[int] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class Slab(Described):
    """Frames that hold objects of one kmem_cache. Charged per object, not per frame."""

    cache: Fact[str] = NOT_LOOKED
    objects: Fact[int] = NOT_LOOKED
    objects_in_use: Fact[int] = NOT_LOOKED
    """As the slab counts: what a CPU holds in reserve counts as used."""
    object_size_bytes: Fact[int] = NOT_LOOKED
    """What a caller gets, without the padding between objects."""
    pfmemalloc: Fact[bool] = NOT_LOOKED
    """Allocated from emergency reserves."""


@dataclass(frozen=True, slots=True)
class LargeKmalloc(_Charged):
    """A kmalloc of more than two pages, straight from the page allocator."""


@dataclass(frozen=True, slots=True)
class PageTable(_Charged):
    """A table of the hardware's page-table tree."""

    role: Fact[TableRole] = NOT_LOOKED
    level: Fact[int] = NOT_LOOKED
    """1 = PTE table, 2 = PMD, 3 = PUD, 4 = P4D, 5 = PGD."""
    owner: Fact[Pid | Nobody] = NOT_LOOKED
    """A process with this address space; `Nobody` for the kernel's own tables."""
    owner_name: Fact[str | Nobody] = NOT_LOOKED
    """What that process is called."""


@dataclass(frozen=True, slots=True)
class Vmalloc(_Charged):
    """Frames behind the kernel's vmalloc area (module and BPF text too)."""

    area: Fact[int] = NOT_LOOKED
    """Kernel address where the area starts."""
    area_size_bytes: Fact[int] = NOT_LOOKED
    """Memory behind the whole area, without its guard page."""
    caller: Fact[str] = NOT_LOOKED
    refcount: Fact[int] = NOT_LOOKED
    mapcount: Fact[int] = NOT_LOOKED
    """User entries, after remap_vmalloc_range."""


@dataclass(frozen=True, slots=True)
class KernelStack(_Charged):
    """The stack a task uses inside the kernel."""

    task: Fact[Pid | Nobody] = NOT_LOOKED
    """The thread; `Nobody` for a stack kept for the next fork."""
    task_name: Fact[str | Nobody] = NOT_LOOKED
    """What that thread is called."""


@dataclass(frozen=True, slots=True)
class PerCpu(_Charged):
    """Backing of per-CPU variables."""

    chunk: Fact[int] = NOT_LOOKED
    """Kernel address of the pcpu_chunk."""


@dataclass(frozen=True, slots=True)
class NetPool(Described):
    """A receive buffer of a network driver's page_pool."""

    pool: Fact[int] = NOT_LOOKED
    """Kernel address of the page_pool."""
    dma_addr: Fact[int] = NOT_LOOKED
    pool_refcount: Fact[int] = NOT_LOOKED
    """pp_ref_count: fragments given out."""
    refcount: Fact[int] = NOT_LOOKED
    mapcount: Fact[int] = NOT_LOOKED
    """User entries, after TCP receive zero-copy."""


@dataclass(frozen=True, slots=True)
class PageFrag(Described):
    """A block that is handed out in pieces, mostly to the network stack."""

    refcount: Fact[int] = NOT_LOOKED
    """Biased: taken in advance for the pieces to come."""


@dataclass(frozen=True, slots=True)
class ZPDesc(Described):
    """A frame of compressed memory (zram, zswap)."""

    zspage: Fact[int] = NOT_LOOKED
    """Kernel address of the zspage it belongs to."""
    first_of_zspage: Fact[bool] = NOT_LOOKED
    first_object_offset_bytes: Fact[int] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class Balloon(Described):
    """Given back to the host by a balloon driver."""

    movable: Fact[bool] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class Offline(Described):
    """Present, and by agreement not to be touched (virtio-mem, Xen, leaked SEV-SNP)."""

    driver: Fact[str] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class MovableOps(Described):
    """Not on the LRU, and movable by calls of its owner."""

    operations: Fact[str] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class DriverPage(_Charged):
    """From alloc_pages, for a driver's own use; not mapped to users."""

    refcount: Fact[int] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class MappedDriverPage(_Charged):
    """A driver's page that users see: rings of perf, io_uring, packet sockets."""

    refcount: Fact[int] = NOT_LOOKED
    mapcount: Fact[int] = NOT_LOOKED
    """Counts vm_insert_page; a PFN mapping is not counted by anybody."""
    pins: Fact[int] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class ExactAlloc(_Charged):
    """From alloc_pages_exact: a block cut to size."""

    refcount: Fact[int] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class RamDisk(Described):
    """A page of a brd RAM disk."""


@dataclass(frozen=True, slots=True)
class Accounted(_Charged):
    """A bare kernel page that is charged to a memory cgroup."""

    refcount: Fact[int] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class DevicePage(_Charged):
    """Memory of a device that has struct pages (ZONE_DEVICE)."""

    kind: Fact[DeviceKind] = NOT_LOOKED
    pgmap: Fact[int] = NOT_LOOKED
    """Kernel address of the dev_pagemap."""
    refcount: Fact[int] = NOT_LOOKED
    mapcount: Fact[int] = NOT_LOOKED
    pins: Fact[int] = NOT_LOOKED


@dataclass(frozen=True, slots=True)
class Undescribed(_Charged):
    """An honest union: the source cannot tell `kinds` apart, and `reason` says why.

    It has no field of any member, because none is known to exist.
    """

    kinds: TypeSet = field(kw_only=True)
    reason: str = field(kw_only=True)


Descriptor: TypeAlias = (
    AnonFolio
    | SwapCacheFolio
    | KsmFolio
    | FileFolio
    | ShmemFolio
    | HugetlbFolio
    | SecretmemFolio
    | GuestMemfdFolio
    | Buddy
    | PcpFree
    | Deferred
    | Guard
    | Unaccepted
    | Hole
    | ZeroPage
    | HugeZeroFolio
    | Poisoned
    | Reserved
    | Slab
    | LargeKmalloc
    | PageTable
    | Vmalloc
    | KernelStack
    | PerCpu
    | NetPool
    | PageFrag
    | ZPDesc
    | Balloon
    | Offline
    | MovableOps
    | DriverPage
    | MappedDriverPage
    | ExactAlloc
    | RamDisk
    | Accounted
    | DevicePage
    | Undescribed
)
"""Every descriptor. A `match` over it ends in `assert_never`."""


# Pages


class DescriptorLookup(Protocol):
    """Anything that finds the descriptor of a frame: a map, a crash dump, an index."""

    def descriptor_of(self, pfn: Pfn) -> Descriptor:
        """Return the descriptor that covers `pfn`. Raises QuestionError if none does."""


@runtime_checkable
class RawPageLookup(Protocol):
    """A lookup that also sees the struct pages themselves."""

    def raw_page(self, pfn: Pfn) -> Mapping[str, int] | NotVisible:
        """The words of the struct page of `pfn` by name, or why they cannot be read."""


@dataclass(frozen=True, slots=True)
class Page:
    """One frame: its number, and a way to its descriptor. There is nothing else to ask it."""

    pfn: Pfn
    _lookup: DescriptorLookup = field(repr=False, compare=False)

    def descriptor(self) -> Descriptor:
        """Return what describes this frame; for a tail, its head's descriptor."""
        return self._lookup.descriptor_of(self.pfn)


class DescriptorIndex:
    """A few descriptors in memory, found by frame (binary search).

    Raises ValueError when two descriptors claim the same frame.
    """

    __slots__ = ("_descriptors", "_starts")

    def __init__(self, descriptors: Iterable[Descriptor]) -> None:
        self._descriptors = sorted(descriptors, key=lambda each: each.pages.pfn_start)
        self._starts = [each.pages.pfn_start for each in self._descriptors]
        for left, right in zip(self._descriptors, self._descriptors[1:], strict=False):
            if left.pages.pfn_end > right.pages.pfn_start:
                raise ValueError(f"{left.pages} and {right.pages} overlap")

    def __len__(self) -> int:
        return len(self._descriptors)

    def __iter__(self) -> Iterator[Descriptor]:
        return iter(self._descriptors)

    def page(self, pfn: Pfn) -> Page:
        """Return the page `pfn`; asking for its descriptor may raise QuestionError."""
        return Page(pfn, self)

    def descriptor_of(self, pfn: Pfn) -> Descriptor:
        """Return the descriptor that covers `pfn`. Raises QuestionError if none does."""
        at = bisect_right(self._starts, pfn) - 1
        if at >= 0 and pfn in self._descriptors[at].pages:
            return self._descriptors[at]
        raise QuestionError(f"no descriptor covers frame {pfn:#x}")


# Kinds


def descriptor_kind(descriptor: Descriptor) -> MemoryType | TypeSet:
    """Return the type of the memory described, or the union where it is not visible."""
    match descriptor:
        case AnonFolio():
            return MemoryType.ANON
        case SwapCacheFolio():
            return MemoryType.SWAP_CACHE
        case KsmFolio():
            return MemoryType.KSM
        case FileFolio():
            return MemoryType.FILE
        case ShmemFolio():
            return MemoryType.SHMEM
        case HugetlbFolio():
            return MemoryType.HUGETLB
        case SecretmemFolio():
            return MemoryType.SECRETMEM
        case GuestMemfdFolio():
            return MemoryType.GUEST_MEMFD
        case Buddy():
            return MemoryType.FREE
        case PcpFree():
            return MemoryType.FREE_PCP
        case Deferred():
            return MemoryType.DEFERRED
        case Guard():
            return MemoryType.GUARD
        case Unaccepted():
            return MemoryType.UNACCEPTED
        case Hole():
            return MemoryType.HOLE
        case ZeroPage():
            return MemoryType.ZERO
        case HugeZeroFolio():
            return MemoryType.HUGE_ZERO
        case Poisoned():
            return MemoryType.POISONED
        case Reserved():
            return MemoryType.RESERVED
        case Slab():
            return MemoryType.SLAB
        case LargeKmalloc():
            return MemoryType.LARGE_KMALLOC
        case PageTable():
            return MemoryType.PAGE_TABLE
        case Vmalloc():
            return MemoryType.VMALLOC
        case KernelStack():
            return MemoryType.KERNEL_STACK
        case PerCpu():
            return MemoryType.PERCPU
        case NetPool():
            return MemoryType.NET_POOL
        case PageFrag():
            return MemoryType.PAGE_FRAG
        case ZPDesc():
            return MemoryType.ZSMALLOC
        case Balloon():
            return MemoryType.BALLOON
        case Offline():
            return MemoryType.OFFLINE
        case MovableOps():
            return MemoryType.MOVABLE_OPS
        case DriverPage():
            return MemoryType.DRIVER
        case MappedDriverPage():
            return MemoryType.DRIVER_MAPPED
        case ExactAlloc():
            return MemoryType.EXACT_ALLOC
        case RamDisk():
            return MemoryType.RAM_DISK
        case Accounted():
            return MemoryType.ACCOUNTED
        case DevicePage():
            return DEVICE if isinstance(descriptor.kind, NotVisible) else descriptor.kind.value
        case Undescribed():
            return descriptor.kinds
        case _:
            assert_never(descriptor)


def bare_descriptor(kinds: TypeSet, pages: PfnRange, reason: str) -> Descriptor:
    """Return a descriptor that knows the kind and the frames, and nothing more.

    `reason` says why a union cannot be told apart; it is used for unions only.
    """
    if kinds.mask == DEVICE.mask:
        return DevicePage(pages, kind=NotVisible(reason))
    kind = kinds.only
    if kind is None:
        return Undescribed(pages, kinds=kinds, reason=reason)
    if kind in DEVICE:
        return DevicePage(pages, kind=DeviceKind(kind))
    return _PLAIN[kind](pages)


_PLAIN: Mapping[MemoryType, Callable[[PfnRange], Descriptor]] = MappingProxyType(
    {
        MemoryType.ANON: AnonFolio,
        MemoryType.SWAP_CACHE: SwapCacheFolio,
        MemoryType.KSM: KsmFolio,
        MemoryType.FILE: FileFolio,
        MemoryType.SHMEM: ShmemFolio,
        MemoryType.HUGETLB: HugetlbFolio,
        MemoryType.SECRETMEM: SecretmemFolio,
        MemoryType.GUEST_MEMFD: GuestMemfdFolio,
        MemoryType.FREE: Buddy,
        MemoryType.FREE_PCP: PcpFree,
        MemoryType.DEFERRED: Deferred,
        MemoryType.GUARD: Guard,
        MemoryType.UNACCEPTED: Unaccepted,
        MemoryType.HOLE: Hole,
        MemoryType.ZERO: ZeroPage,
        MemoryType.HUGE_ZERO: HugeZeroFolio,
        MemoryType.POISONED: Poisoned,
        MemoryType.RESERVED: Reserved,
        MemoryType.SLAB: Slab,
        MemoryType.LARGE_KMALLOC: LargeKmalloc,
        MemoryType.PAGE_TABLE: PageTable,
        MemoryType.VMALLOC: Vmalloc,
        MemoryType.KERNEL_STACK: KernelStack,
        MemoryType.PERCPU: PerCpu,
        MemoryType.NET_POOL: NetPool,
        MemoryType.PAGE_FRAG: PageFrag,
        MemoryType.ZSMALLOC: ZPDesc,
        MemoryType.BALLOON: Balloon,
        MemoryType.OFFLINE: Offline,
        MemoryType.MOVABLE_OPS: MovableOps,
        MemoryType.DRIVER: DriverPage,
        MemoryType.DRIVER_MAPPED: MappedDriverPage,
        MemoryType.EXACT_ALLOC: ExactAlloc,
        MemoryType.RAM_DISK: RamDisk,
        MemoryType.ACCOUNTED: Accounted,
    }
)

CLASS_OF: Mapping[MemoryType, type[Described]] = MappingProxyType(
    {
        kind: type(bare_descriptor(TypeSet.of(kind), PfnRange(Pfn(0), Pfn(1)), ""))
        for kind in MemoryType
    }
)
"""The descriptor class of every memory type."""

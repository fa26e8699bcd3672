"""The vocabulary: frame numbers, memory types, and honest unions of types.

Every other module speaks in these words.  `MemoryType` is a closed set: what
one page frame of a Linux machine can hold.  Where a source cannot tell some of
them apart it says so with a `TypeSet` of several members, never with a guess.

The set follows section "Every memory type on a page frame" of the project's
type reference (docs/reference/types.md); what each type allows is data in
`memdesc.kernels.type_table`.

>>> TypeSet.of(MemoryType.ANON).names
['anon']
>>> MemoryType.SLAB in KERNEL_UNKNOWN
False
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NewType, Self

__all__ = [
    "DEVICE",
    "FREE_LIKE",
    "KERNEL_COMPOUND",
    "KERNEL_MAPPED",
    "KERNEL_UNKNOWN",
    "NOT_BACKED",
    "PAGE_SHIFT",
    "PAGE_SIZE_BYTES",
    "Certainty",
    "CgroupInode",
    "MemoryType",
    "Pfn",
    "PfnRange",
    "PhysAddr",
    "Pid",
    "TypeSet",
    "VirtAddr",
    "pfn_of",
    "phys_of",
]

PAGE_SHIFT = 12
"""log2 of the page size. memdesc reads x86-64 machines: 4 KiB frames."""
PAGE_SIZE_BYTES = 1 << PAGE_SHIFT

Pfn = NewType("Pfn", int)
"""A page frame number: physical address >> `PAGE_SHIFT`."""
PhysAddr = NewType("PhysAddr", int)
"""A physical address in bytes."""
VirtAddr = NewType("VirtAddr", int)
"""A user virtual address in bytes."""
Pid = NewType("Pid", int)
"""A process id in the namespace of the /proc that was read."""
CgroupInode = NewType("CgroupInode", int)
"""Inode number of a memory cgroup's directory, the value in /proc/kpagecgroup."""


def pfn_of(address: PhysAddr) -> Pfn:
    """Return the frame that holds the physical `address`."""
    return Pfn(address >> PAGE_SHIFT)


def phys_of(pfn: Pfn) -> PhysAddr:
    """Return the physical address of the first byte of frame `pfn`."""
    return PhysAddr(pfn << PAGE_SHIFT)


@dataclass(frozen=True, slots=True)
class PfnRange:
    """A half-open run of frames, `pfn_start` <= pfn < `pfn_end`."""

    pfn_start: Pfn
    pfn_end: Pfn

    @property
    def nr_pages(self) -> int:
        return self.pfn_end - self.pfn_start

    @property
    def size_bytes(self) -> int:
        return self.nr_pages << PAGE_SHIFT

    def __contains__(self, pfn: object) -> bool:
        return isinstance(pfn, int) and self.pfn_start <= pfn < self.pfn_end

    def __str__(self) -> str:
        return f"{self.pfn_start:#x}-{self.pfn_end:#x}"


class Certainty(enum.Enum):
    """How a fact is known."""

    EXACT = "exact"
    """The source states it."""
    INFERRED = "inferred"
    """It follows from several facts, or from a rule that could have an exception."""
    NOT_VISIBLE = "not visible"
    """The source cannot see it; the reason stands beside it."""


class MemoryType(enum.Enum):
    """What one page frame holds. The value is the name used in JSON and in captures."""

    FREE = "free"
    FREE_PCP = "free_pcp"
    DEFERRED = "deferred"
    RESERVED = "reserved"
    ZERO = "zero"
    HUGE_ZERO = "huge_zero"
    ANON = "anon"
    FILE = "file"
    SHMEM = "shmem"
    SWAP_CACHE = "swap_cache"
    KSM = "ksm"
    HUGETLB = "hugetlb"
    SLAB = "slab"
    LARGE_KMALLOC = "large_kmalloc"
    PAGE_TABLE = "page_table"
    VMALLOC = "vmalloc"
    KERNEL_STACK = "kernel_stack"
    PERCPU = "percpu"
    NET_POOL = "net_pool"
    PAGE_FRAG = "page_frag"
    ZSMALLOC = "zsmalloc"
    BALLOON = "balloon"
    OFFLINE = "offline"
    MOVABLE_OPS = "movable_ops"
    DEVICE_PRIVATE = "device_private"
    DEVICE_COHERENT = "device_coherent"
    FS_DAX = "fs_dax"
    DEVICE_DAX = "device_dax"
    PCI_P2PDMA = "pci_p2pdma"
    POISONED = "poisoned"
    GUARD = "guard"
    UNACCEPTED = "unaccepted"
    SECRETMEM = "secretmem"
    GUEST_MEMFD = "guest_memfd"
    DRIVER = "driver"
    DRIVER_MAPPED = "driver_mapped"
    EXACT_ALLOC = "exact_alloc"
    RAM_DISK = "ram_disk"
    ACCOUNTED = "accounted"
    HOLE = "hole"

    @property
    def bit(self) -> int:
        """This type's bit in the 64-bit mask of a `TypeSet`."""
        return _BIT_OF[self]


_BIT_OF: dict[MemoryType, int] = {kind: 1 << index for index, kind in enumerate(MemoryType)}


@dataclass(frozen=True, slots=True, order=True)
class TypeSet:
    """One `MemoryType`, or an honest union of those that a source cannot tell apart.

    Stored as a 64-bit mask so that a column of them is a numpy array of uint64.
    """

    mask: int

    @classmethod
    def of(cls, *kinds: MemoryType) -> Self:
        """Build the set of `kinds` (at least one)."""
        return cls.from_iterable(kinds)

    @classmethod
    def from_iterable(cls, kinds: Iterable[MemoryType]) -> Self:
        mask = 0
        for kind in kinds:
            mask |= _BIT_OF[kind]
        if not mask:
            raise ValueError("a TypeSet needs at least one member")
        return cls(mask)

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Self:
        """Inverse of `names`. Raises ValueError for a name that is no `MemoryType`."""
        return cls.from_iterable(MemoryType(name) for name in names)

    def __iter__(self) -> Iterator[MemoryType]:
        return (kind for kind in MemoryType if self.mask & _BIT_OF[kind])

    def __len__(self) -> int:
        return self.mask.bit_count()

    def __contains__(self, kind: object) -> bool:
        return isinstance(kind, MemoryType) and bool(self.mask & _BIT_OF[kind])

    def __or__(self, other: TypeSet) -> TypeSet:
        return TypeSet(self.mask | other.mask)

    @property
    def is_certain(self) -> bool:
        """True when there is exactly one member."""
        return len(self) == 1

    @property
    def only(self) -> MemoryType | None:
        """The single member, or None for a union."""
        return next(iter(self)) if self.is_certain else None

    @property
    def names(self) -> list[str]:
        return [kind.value for kind in self]

    @property
    def json(self) -> str | list[str]:
        """The form used in JSON rows: a name, or a list of names for a union."""
        names = self.names
        return names[0] if len(names) == 1 else names

    @property
    def label(self) -> str:
        """A short name for people: the type's, or the union's own where it has one."""
        return self.family or " or ".join(name.replace("_", " ") for name in self.names)

    @property
    def family(self) -> str | None:
        """The union's own name, for unions that have one."""
        for family in _FAMILIES:
            if self.mask & family.core == family.core and not self.mask & ~family.members:
                return family.label
        return None

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True)
class _Family:
    """A union that has a name of its own: all of `core`, nothing outside `members`."""

    label: str
    core: int
    members: int


KERNEL_UNKNOWN = TypeSet.of(
    MemoryType.VMALLOC,
    MemoryType.KERNEL_STACK,
    MemoryType.PERCPU,
    MemoryType.NET_POOL,
    MemoryType.PAGE_FRAG,
    MemoryType.DRIVER,
    MemoryType.EXACT_ALLOC,
    MemoryType.RAM_DISK,
    MemoryType.ACCOUNTED,
    MemoryType.FREE_PCP,
    MemoryType.GUARD,
    MemoryType.UNACCEPTED,
    MemoryType.PAGE_TABLE,
    MemoryType.ZSMALLOC,
)
"""Frames with no flag at all: in use by the kernel, or free on a per-CPU list.
Page tables of the direct map and zsmalloc without compaction carry no mark either."""

KERNEL_COMPOUND = TypeSet.of(
    MemoryType.LARGE_KMALLOC,
    MemoryType.PAGE_FRAG,
    MemoryType.NET_POOL,
    MemoryType.DRIVER,
    MemoryType.ACCOUNTED,
)
"""Compound pages with no other flag."""

KERNEL_MAPPED = TypeSet.of(
    MemoryType.DRIVER_MAPPED, MemoryType.VMALLOC, MemoryType.NET_POOL, MemoryType.PAGE_FRAG
)
"""Mapped into a process, and neither anonymous, file nor shmem: rings, vvar, zero-copy."""

DEVICE = TypeSet.of(
    MemoryType.DEVICE_PRIVATE,
    MemoryType.DEVICE_COHERENT,
    MemoryType.FS_DAX,
    MemoryType.DEVICE_DAX,
    MemoryType.PCI_P2PDMA,
)
"""ZONE_DEVICE memory; which kind is not visible from /proc."""

NOT_BACKED = DEVICE | TypeSet.of(MemoryType.HOLE, MemoryType.DEFERRED)
"""Whole memory sections that read 0 where no other file says why."""

FREE_LIKE = TypeSet.of(MemoryType.FREE, MemoryType.FREE_PCP, MemoryType.DEFERRED)
"""Types whose frames hold nobody's data."""

_KERNEL_CORE = TypeSet.of(MemoryType.VMALLOC, MemoryType.KERNEL_STACK).mask
_KERNEL_ALL = (KERNEL_UNKNOWN | TypeSet.of(MemoryType.MOVABLE_OPS)).mask
_IN_FLIGHT = TypeSet.of(
    MemoryType.FILE, MemoryType.ANON, MemoryType.SHMEM, MemoryType.SWAP_CACHE
).mask
_COMPOUND_CORE = TypeSet.of(MemoryType.LARGE_KMALLOC, MemoryType.DRIVER).mask
_COMPOUND_ALL = (KERNEL_COMPOUND | TypeSet.of(MemoryType.PAGE_TABLE)).mask
_MAPPED_CORE = TypeSet.of(MemoryType.DRIVER_MAPPED, MemoryType.VMALLOC).mask

_ANYTHING = TypeSet.from_iterable(MemoryType).mask

_NOBODYS_CORE = TypeSet.of(MemoryType.DRIVER, MemoryType.EXACT_ALLOC, MemoryType.RAM_DISK).mask
_NOBODYS_ALL = (
    KERNEL_UNKNOWN | TypeSet.of(MemoryType.MOVABLE_OPS, MemoryType.LARGE_KMALLOC)
).mask & ~MemoryType.FREE_PCP.bit
_BLOCKS_CORE = TypeSet.of(MemoryType.PAGE_FRAG, MemoryType.DRIVER).mask
_BLOCKS_ALL = TypeSet.of(
    MemoryType.PAGE_FRAG, MemoryType.DRIVER, MemoryType.LARGE_KMALLOC, MemoryType.PAGE_TABLE
).mask

_FAMILIES: tuple[_Family, ...] = (
    _Family("not readable: any type", _ANYTHING, _ANYTHING),
    _Family(
        "kernel or per-CPU free, kind not visible",
        _KERNEL_CORE | MemoryType.FREE_PCP.bit,
        _KERNEL_ALL,
    ),
    _Family("kernel, hole or device, not visible", _KERNEL_CORE, _KERNEL_ALL | NOT_BACKED.mask),
    _Family("kernel or in flight, kind not visible", _KERNEL_CORE, _KERNEL_ALL | _IN_FLIGHT),
    _Family("kernel compound, kind not visible", _COMPOUND_CORE, _COMPOUND_ALL),
    _Family("kernel compound or folio in the making", _COMPOUND_CORE, _COMPOUND_ALL | _IN_FLIGHT),
    _Family("kernel memory mapped to user space", _MAPPED_CORE, KERNEL_MAPPED.mask),
    _Family(
        "kernel memory mapped to user space, or zsmalloc",
        _MAPPED_CORE,
        KERNEL_MAPPED.mask | MemoryType.ZSMALLOC.bit,
    ),
    _Family(
        "kernel memory mapped to user space, or page cache",
        _MAPPED_CORE,
        KERNEL_MAPPED.mask | MemoryType.FILE.bit,
    ),
    _Family("device memory", DEVICE.mask, DEVICE.mask),
    _Family("hole or device memory", DEVICE.mask, (DEVICE | TypeSet.of(MemoryType.HOLE)).mask),
    _Family("hole, device or uninitialised", NOT_BACKED.mask, NOT_BACKED.mask),
    _Family("kernel, owner not known", _NOBODYS_CORE, _NOBODYS_ALL),
    _Family("kernel compound, owner not known", _BLOCKS_CORE, _BLOCKS_ALL),
    _Family(
        "kernel memory mapped to user space, owner not known",
        TypeSet.of(MemoryType.PAGE_FRAG, MemoryType.DRIVER_MAPPED).mask,
        KERNEL_MAPPED.mask,
    ),
)

"""What does it cost to describe a mix of memory under a design? Exact integers, or a range.

A mix is allocations: so many, each of 2^order frames, of one type.  Its cost under a design
is the memory map (frames times the bytes of a page) and, where the design allocates
descriptors, one for each allocation.  Where a source leaves open what an allocation is, the
cost is a range: the cheapest and the dearest that it can be.

Descriptors are objects of slab caches, and slabs are whole frames: `in_slabs` says how many
bytes of slabs the descriptors take when every slab is filled, with the slab descriptors that
those slabs need themselves.  That number stands beside the cost and is not part of it.

>>> from memdesc.model.designs import MEMDESC_8
>>> mix = Mix.of({(MemoryType.SLAB, 2): 9941})  # the example of State Of The Page, Aug 2022
>>> cost(OVERLAYS, mix).total_bytes, cost(MEMDESC_8, mix).total_bytes
((2544896, 2544896), (954336, 954336))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Self, TypeAlias

from memdesc.model.designs import OVERLAYS, SLAB, Alternatives, DescriptorSpec, Design
from memdesc.types import PAGE_SIZE_BYTES, MemoryType, TypeSet

__all__ = [
    "Bounds",
    "Cost",
    "Counts",
    "Geometry",
    "InSlabs",
    "Mix",
    "MixRow",
    "break_even_frames",
    "cost",
    "in_slabs",
    "possible",
]

Bounds: TypeAlias = tuple[int, int]
"""(at least, at most); equal where the answer is exact."""
Counts: TypeAlias = Mapping[DescriptorSpec, int]
"""How many descriptors of each kind."""
Geometry: TypeAlias = Callable[[int], tuple[int, int]]
"""Object size in bytes -> (order, objects) of a slab (`memdesc.kernels.slub`)."""


@dataclass(frozen=True, slots=True)
class MixRow:
    """Equal allocations."""

    types: TypeSet
    """One type, or all that they can be."""
    order: int | None
    """log2 of the frames of each; None where that is not visible, `count` is frames then."""
    count: int
    charged: bool | None = False
    """Whether a memory cgroup is charged for them; None: not visible."""

    @property
    def key(self) -> tuple[int, int, int]:
        """What equal rows share."""
        order = -1 if self.order is None else self.order
        return self.types.mask, order, -1 if self.charged is None else int(self.charged)


@dataclass(frozen=True)
class Mix:
    """Memory as allocations.

    `frames` is what the memory map describes. It is the sum of the rows, but for bad frames
    inside a folio, which are rows of their own (each gets a descriptor in some designs).
    """

    frames: int
    rows: tuple[MixRow, ...]
    """By rising `key`, each key once."""
    vmemmap_freed: bool | None = False
    """Whether the kernel has freed the memory map of huge pages (HugeTLB vmemmap
    optimisation); None: not known."""

    @classmethod
    def of(cls, allocations: Mapping[tuple[MemoryType, int], int]) -> Self:
        """A mix that is known exactly: (type, order) -> allocations."""
        rows = [
            MixRow(TypeSet.of(kind), order, count) for (kind, order), count in allocations.items()
        ]
        return cls(sum(row.count << (row.order or 0) for row in rows), joined(rows))

    @property
    def is_exact(self) -> bool:
        """Whether every allocation has one type and a size."""
        return all(row.types.is_certain and row.order is not None for row in self.rows)


@dataclass(frozen=True)
class Cost:
    """What describing a mix costs. `fewest` and `most` are the two ends of the range."""

    design: Design
    frames: int
    fewest: Counts
    most: Counts
    freed_bytes: Bounds = (0, 0)
    """Memory map of huge pages that the kernel has freed."""

    @property
    def memmap_bytes(self) -> Bounds:
        """The memory map, less what was freed of it."""
        whole = self.frames * self.design.bytes_per_frame
        return whole - self.freed_bytes[1], whole - self.freed_bytes[0]

    @cached_property
    def descriptor_bytes(self) -> Bounds:
        """All descriptors, net: without what is left over in their slabs."""
        return _bytes(self.fewest), _bytes(self.most)

    @property
    def descriptors(self) -> Bounds:
        """How many are allocated."""
        fewest, most = sum(self.fewest.values()), sum(self.most.values())
        return fewest, most

    @property
    def total_bytes(self) -> Bounds:
        low, high = self.memmap_bytes
        return low + self.descriptor_bytes[0], high + self.descriptor_bytes[1]

    @property
    def is_exact(self) -> bool:
        return self.total_bytes[0] == self.total_bytes[1]


def cost(design: Design, mix: Mix) -> Cost:
    """The cost of describing `mix` under `design`; exact where the mix is and the plan says."""
    fewest: dict[DescriptorSpec, int] = {}
    most: dict[DescriptorSpec, int] = {}
    for row in mix.rows:
        choices = possible(design, row)
        for counts, spec in ((fewest, choices[0]), (most, choices[-1])):
            if spec is not None:
                counts[spec] = counts.get(spec, 0) + row.count
    return Cost(
        design,
        mix.frames,
        MappingProxyType(_ordered(fewest)),
        MappingProxyType(_ordered(most)),
        _freed(design, mix),
    )


def possible(design: Design, row: MixRow) -> Alternatives:
    """What an allocation of `row` can have, the smallest first; None is "nothing".

    Frames whose allocation is not visible may belong to one that is counted elsewhere.
    """
    kinds = row.types
    if row.charged is False:
        kinds = _without(kinds, _ONLY_CHARGED)
    elif row.charged:
        kinds = _without(kinds, _NEVER_CHARGED)
    orders = (row.order,) if row.order is not None else (0, 1)
    found = {
        spec
        for kind in kinds
        for order in orders
        for spec in design.descriptors(kind, order, charged=row.charged)
    }
    if row.order is None:
        found.add(None)
    return tuple(sorted(found, key=_rank))


def break_even_frames(design: Design, kind: MemoryType, *, charged: bool = False) -> int | None:
    """The smallest allocation of `kind`, in frames, that costs less than 64 bytes per frame.

    With descriptor D and page w that is the first n > D / (64 - w). None: never.
    """
    saved_per_frame = OVERLAYS.bytes_per_frame - design.bytes_per_frame
    if saved_per_frame <= 0:
        return None
    for order in (0, 1):
        spec = design.descriptor(kind, order, charged=charged)
        frames = (spec.size_bytes if spec else 0) // saved_per_frame + 1
        if frames == 1 or order:
            return max(frames, 1 << order)
    return None


# --- slabs -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InSlabs:
    """Descriptors as their slabs hold them, every slab filled."""

    slabs: Counts
    """Slabs of each cache; those of slab descriptors for all these slabs included."""
    frames: int
    slab_descriptors: int
    """Slab descriptors beyond those of the mix: each slab of descriptors has one."""

    @property
    def size_bytes(self) -> int:
        return self.frames * PAGE_SIZE_BYTES


def in_slabs(counts: Counts, geometry: Geometry) -> InSlabs:
    """The slabs that hold `counts` descriptors when none is left half empty but the last.

    The plan's recursion: a slab of any other cache takes a slab descriptor; a slab of slab
    descriptors describes itself with its first object, so that it ends there.
    """
    slabs = {
        spec: -(-number // geometry(spec.size_bytes)[1])
        for spec, number in counts.items()
        if spec is not SLAB and number
    }
    frames = sum(number << geometry(spec.size_bytes)[0] for spec, number in slabs.items())
    described = sum(slabs.values())
    order, objects = geometry(SLAB.size_bytes)
    own = -(-(counts.get(SLAB, 0) + described) // (objects - 1))
    if own:
        slabs[SLAB] = own
        frames += own << order
    return InSlabs(MappingProxyType(_ordered(slabs)), frames, described + own)


# --- helpers -----------------------------------------------------------------------------

_ONLY_CHARGED = TypeSet.of(MemoryType.ACCOUNTED)
_NEVER_CHARGED = TypeSet.of(
    *(MemoryType.FREE_PCP, MemoryType.GUARD, MemoryType.UNACCEPTED, MemoryType.PERCPU),
    *(MemoryType.NET_POOL, MemoryType.ZSMALLOC, MemoryType.MOVABLE_OPS, MemoryType.DEFERRED),
)
"""Types whose frames never carry a cgroup themselves (memory-cgroup charges are made with
__GFP_ACCOUNT or for folios; per-CPU and zsmalloc charge by object)."""


def joined(rows: Iterable[MixRow]) -> tuple[MixRow, ...]:
    """`rows` by rising key, equal ones added up, empty ones left out."""
    sums: dict[tuple[int, int, int], MixRow] = {}
    for row in rows:
        old = sums.get(row.key)
        count = row.count + (old.count if old else 0)
        sums[row.key] = MixRow(row.types, row.order, count, row.charged)
    return tuple(sums[key] for key in sorted(sums) if sums[key].count)


def _without(kinds: TypeSet, others: TypeSet) -> TypeSet:
    """`kinds` without `others`, unless that leaves nothing."""
    return TypeSet(kinds.mask & ~others.mask or kinds.mask)


def _rank(spec: DescriptorSpec | None) -> tuple[int, str]:
    return (0, "") if spec is None else (spec.size_bytes, spec.name)


def _bytes(counts: Counts) -> int:
    return sum(spec.size_bytes * number for spec, number in counts.items())


def _ordered(counts: dict[DescriptorSpec, int]) -> dict[DescriptorSpec, int]:
    return {spec: counts[spec] for spec in sorted(counts, key=_rank)}


def _freed(design: Design, mix: Mix) -> Bounds:
    kept = design.vmemmap_pages_kept
    if kept is None or mix.vmemmap_freed is False:
        return 0, 0
    pages = 0
    for row in mix.rows:
        if row.types.only is MemoryType.HUGETLB and row.order:
            whole = (design.bytes_per_frame << row.order) // PAGE_SIZE_BYTES
            pages += row.count * max(0, whole - kept)
    freed = pages * PAGE_SIZE_BYTES
    return (freed if mix.vmemmap_freed else 0), freed

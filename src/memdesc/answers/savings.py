"""What does describing this memory cost, today and under the designs that may come?

Today every frame has a `struct page` of 64 bytes.  The memdesc plan shrinks it in steps and
gives each folio, slab and page table a descriptor of its own.  The answer counts the
allocations of a map (`memdesc.model.mix`), prices them under each design
(`memdesc.model.cost`), and says by type what is saved and what is lost.

Ranges are honest: where the source leaves open what a frame is, how large its allocation is,
or what the plan will do with it, both ends are given.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from memdesc.answers.ledger import CountedBy, cgroup_column, region_part
from memdesc.answers.titles import title_of
from memdesc.errors import QuestionError
from memdesc.kernels.slub import slab_order, slub_rules
from memdesc.map.extents import MemoryMap, Totals
from memdesc.map.machine import Machine
from memdesc.model.cost import (
    Bounds,
    Cost,
    Geometry,
    Mix,
    break_even_frames,
    cost,
    in_slabs,
    joined,
    possible,
)
from memdesc.model.designs import (
    DESCRIPTORS,
    DESIGNS,
    OVERLAYS,
    Basis,
    DescriptorSpec,
    Design,
    design_of,
)
from memdesc.model.mix import Census, census_of
from memdesc.plan import NEWEST
from memdesc.types import PAGE_SIZE_BYTES, MemoryType, TypeSet

__all__ = [
    "BreakEven",
    "DesignCost",
    "Savings",
    "SavingsRow",
    "savings",
    "slab_geometry",
]


@dataclass(frozen=True, slots=True)
class SavingsRow:
    """Frames of one type (of one part), and what describing them costs. Ranges are bytes."""

    part: str
    types: TypeSet
    frames: int
    today: Bounds
    then: Bounds
    """Under the design that was asked about."""
    saved: Bounds
    """Below 0 where the design costs more."""
    descriptors: Bounds
    """How many it allocates for them."""

    @property
    def size_bytes(self) -> int:
        return self.frames * PAGE_SIZE_BYTES

    def to_json(self) -> dict[str, Any]:
        return {
            "part": self.part or None,
            "type": self.types.json,
            "frames": self.frames,
            "size_bytes": self.size_bytes,
            **_json("today_bytes", self.today),
            **_json("then_bytes", self.then),
            **_json("saved_bytes", self.saved),
            **_json("descriptors", self.descriptors),
        }


@dataclass(frozen=True, slots=True)
class DesignCost:
    """What one design costs for all of the memory."""

    cost: Cost
    saved: Bounds
    """Against today, in bytes."""
    slab_bytes: Bounds
    """The descriptors as full slabs hold them, with the descriptors of those slabs."""

    @property
    def design(self) -> Design:
        return self.cost.design

    def to_json(self) -> dict[str, Any]:
        design = self.design
        return {
            "design": design.id,
            "title": design.title,
            "bytes_per_frame": design.bytes_per_frame,
            "date": design.date,
            "plan_revision": design.revision or None,
            "source": design.source,
            **_json("memmap_bytes", self.cost.memmap_bytes),
            **_json("descriptors", self.cost.descriptors),
            **_json("descriptor_bytes", self.cost.descriptor_bytes),
            **_json("total_bytes", self.cost.total_bytes),
            **_json("saved_bytes", self.saved),
            **_json("descriptor_slab_bytes", self.slab_bytes),
            "by_descriptor": [
                {
                    "descriptor": spec.name,
                    "size_bytes": spec.size_bytes,
                    "basis": spec.basis.value,
                    "count_at_least_cost": self.cost.fewest.get(spec, 0),
                    "count_at_most_cost": self.cost.most.get(spec, 0),
                }
                for spec in _used(self.cost)
            ],
        }


@dataclass(frozen=True, slots=True)
class BreakEven:
    """From how many frames an allocation is cheaper than today."""

    kind: MemoryType
    descriptor: str
    frames: int
    single_bytes: int
    """What one frame of its own costs under the design; 64 today."""

    def to_json(self) -> dict[str, Any]:
        return {
            "type": self.kind.value,
            "descriptor": self.descriptor,
            "frames": self.frames,
            "single_frame_bytes": self.single_bytes,
        }


@dataclass(frozen=True)
class Savings:
    """The whole answer. Rows by what they save, most first."""

    by: CountedBy
    design: Design
    """The design that `rows` and `break_even` are about."""
    rows: tuple[SavingsRow, ...]
    designs: tuple[DesignCost, ...]
    """Every design, the largest memory map first."""
    mix: Mix
    break_even: tuple[BreakEven, ...]
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def frames(self) -> int:
        return self.mix.frames

    @property
    def chosen(self) -> DesignCost:
        """The cost of `design`."""
        return next(one for one in self.designs if one.design is self.design)

    def to_json(self) -> dict[str, Any]:
        """Schema memdesc-savings/1."""
        return {
            "schema": "memdesc-savings/1",
            "by": self.by,
            "design": self.design.id,
            "plan": {"revision": NEWEST.id, "date": _PLAN_DATE, "source": NEWEST.source},
            "frames_present": self.frames,
            "size_bytes_present": self.frames * PAGE_SIZE_BYTES,
            "designs": [one.to_json() for one in self.designs],
            "rows": [row.to_json() for row in self.rows],
            "break_even": [one.to_json() for one in self.break_even],
            "assumptions": list(self.assumptions),
            "notes": list(self.notes),
        }


def savings(
    source: MemoryMap | Iterable[MemoryMap],
    design: str = "8",
    by: CountedBy = "type",
    *,
    totals: Totals | None = None,
) -> Savings:
    """Price the memory of `source`, a map or its parts in order, under every design.

    `design` is an id of `memdesc.model.designs.DESIGNS`, for the rows. `totals` of the same
    map saves counting once more. `by` cgroup needs one whole map that shows cgroups.
    Raises QuestionError for an unknown design, a map without frames, and where `by` asks for
    what the source does not show.

    Precision: exact sums of what was read; ranges where the source or the plan is open.
    """
    chosen = design_of(design)
    if by == "cgroup":
        if not isinstance(source, MemoryMap):
            raise QuestionError("savings by cgroup need the whole map as one")
        text_of = cgroup_column(source)[1]
        census, name = census_of(source, groups="cgroup"), lambda code: text_of(code)[0]
    else:
        census = census_of(source, totals)
        parts = [region_part(census.machine, region, by)[0] for region in census.regions.all]
        name = parts.__getitem__
    mix = census.mix()
    seen = TypeSet(functools.reduce(operator.or_, (cell.types.mask for cell in census.cells), 0))
    geometry = slab_geometry(census.machine)
    designs = tuple(_priced(one, mix, geometry) for one in DESIGNS.values())
    rows = _rows(census, chosen, name, mix.vmemmap_freed)
    today = next(one for one in designs if one.design is OVERLAYS)
    return Savings(
        by,
        chosen,
        rows,
        designs,
        mix,
        _break_even(chosen, seen),
        _assumptions(cost(chosen, mix), seen),
        tuple(_notes(census, chosen, mix, today.cost)),
    )


def slab_geometry(machine: Machine) -> Geometry:
    """(order, objects) of a slab, by the size of its objects, as `machine`'s kernel sizes it."""
    rules = slub_rules(machine.release)
    return lambda size_bytes: slab_order(size_bytes, cpus=max(1, machine.nr_cpus), rules=rules)


# --- helpers -----------------------------------------------------------------------------

_PLAN_DATE = "26 May 2026"
"""Of the mail that the newest revision agrees with."""


def _priced(design: Design, mix: Mix, geometry: Geometry) -> DesignCost:
    then = cost(design, mix)
    ends = [in_slabs(counts, geometry).size_bytes for counts in (then.fewest, then.most)]
    return DesignCost(then, _saved(cost(OVERLAYS, mix), then), (min(ends), max(ends)))


def _saved(today: Cost, then: Cost) -> Bounds:
    """Bytes less than today."""
    if then.design.allocates:
        (low, high), (least, most) = today.total_bytes, then.total_bytes
        return low - most, high - least
    # Whether the map of huge pages was freed is one question, and not one for each design.
    ends = [then.freed_bytes[end] - today.freed_bytes[end] for end in (0, 1)]
    return min(ends), max(ends)


def _rows(
    census: Census, design: Design, name: Callable[[int], str], freed: bool | None
) -> tuple[SavingsRow, ...]:
    """One row for each part and type."""
    mixes: dict[tuple[str, int], Mix] = {}
    for cell in census.cells:
        key = name(cell.group), cell.types.mask
        old = mixes.get(key, Mix(0, ()))
        mixes[key] = Mix(old.frames + cell.frames, joined((*old.rows, *cell.rows)), freed)
    rows = []
    for (part, mask), mix in mixes.items():
        today, then = cost(OVERLAYS, mix), cost(design, mix)
        rows.append(
            SavingsRow(
                part,
                TypeSet(mask),
                mix.frames,
                today.total_bytes,
                then.total_bytes,
                _saved(today, then),
                then.descriptors,
            )
        )
    rows.sort(key=lambda row: (-sum(row.saved), -row.frames, row.part, row.types.mask))
    return tuple(rows)


_EVEN = (
    MemoryType.ANON,
    MemoryType.FILE,
    MemoryType.SLAB,
    MemoryType.PAGE_TABLE,
    MemoryType.ZSMALLOC,
    MemoryType.NET_POOL,
)
"""Kinds with a descriptor for certain, in the order in which people ask."""


def _break_even(design: Design, seen: TypeSet) -> tuple[BreakEven, ...]:
    rows = []
    for kind in _EVEN:
        frames = break_even_frames(design, kind)
        spec = design.descriptor(kind, 0)
        if frames is not None and spec is not None and kind in seen:
            single = design.bytes_per_frame + spec.size_bytes
            rows.append(BreakEven(kind, spec.name, frames, single))
    return tuple(rows)


def _assumptions(priced: Cost, seen: TypeSet) -> tuple[str, ...]:
    """What was taken to be so: sizes that the plan does not give, and the design's own."""
    open_specs = [spec for spec in _used(priced) if spec.basis is not Basis.PLANNED]
    sizes = ", ".join(
        f"{spec.size_bytes}{' bytes' * (index == 0)} "
        f"({spec.name}{', an estimate' * (spec.basis is Basis.ESTIMATED)})"
        for index, spec in enumerate(open_specs)
    )
    texts = [
        one.text for one in priced.design.assumptions if any(kind in seen for kind in one.kinds)
    ]
    return (*([f"descriptors of {sizes}"] if sizes else ()), *texts)


def _notes(census: Census, design: Design, mix: Mix, today: Cost) -> Iterable[str]:
    if census.groups == "cgroup":
        yield "slab is charged per object, so its frames show no cgroup"
    machine = census.machine
    vmstat = (machine.after if machine.after.vmstat else machine.before).vmstat
    pages = [vmstat.get(name) for name in ("nr_memmap_pages", "nr_memmap_boot_pages")]
    if None not in pages:
        counted = sum(filter(None, pages)) * PAGE_SIZE_BYTES
        yield (
            f"the kernel's own count of its memory map is {counted:,} bytes "
            "(nr_memmap_pages, nr_memmap_boot_pages): holes in sections have one too"
        )
    if mix.vmemmap_freed is None and today.freed_bytes[1]:
        yield (
            "whether the kernel freed the memory map of huge pages is not visible here "
            f"(vm.hugetlb_optimize_vmemmap): today may cost {today.freed_bytes[1]:,} bytes less"
        )
    elif mix.vmemmap_freed and today.freed_bytes[1]:
        yield (
            f"the kernel freed {today.freed_bytes[1]:,} bytes of memory map of huge pages "
            "(HugeTLB vmemmap optimisation, taken to hold for all of them)"
        )
    if not census.sees_charges and any(row.charged is None for row in mix.rows):
        yield (
            "which kernel memory is charged to a cgroup is not visible here: "
            "a charge needs a descriptor in the 8-byte design"
        )
    if census.frames_torn:
        yield (
            f"{census.frames_torn:,} frames of compound pages were torn while they were read: "
            "their descriptors are open"
        )
    open_rows = [row for row in mix.rows if len(possible(design, row)) > 1]
    if any(not row.types.is_certain for row in open_rows):
        why = "ranges: kinds that this source cannot tell apart"
        if census.read_from == "proc":
            why += "; struct pages tell more (--source live:struct as root, or a crash dump)"
        yield why
    undecided = {row.types for row in open_rows if row.types.is_certain and row.order is not None}
    if undecided:
        names = ", ".join(title_of(types) for types in sorted(undecided))
        yield f"ranges: the plan leaves open what describes {names}"


def _used(priced: Cost) -> tuple[DescriptorSpec, ...]:
    return tuple(spec for spec in DESCRIPTORS if spec in priced.fewest or spec in priced.most)


def _json(name: str, bounds: Bounds) -> dict[str, int]:
    return {f"{name}_min": bounds[0], f"{name}_max": bounds[1]}

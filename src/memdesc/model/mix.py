"""What allocations is this memory made of? From a map to the mix that designs are priced on.

A folio, a slab or a table is one allocation.  Heads and tails show where each begins and how
large it is; a frame in no compound page is an allocation of its own.  Tails are not looked at
one by one: what counts is where heads are, so that a terabyte takes a second.

Cells keep the ledger's types: the frames of a cell are those that the ledger counts there,
and its rows the allocations that begin in it.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.map.extents import MemoryMap, ReadFrom, Totals
from memdesc.map.facts import FactTable
from memdesc.map.machine import Machine
from memdesc.map.parts import parts_of
from memdesc.map.regions import Regions
from memdesc.model.cost import Mix, MixRow, joined
from memdesc.model.designs import DESIGNS
from memdesc.rules.classify import Backing
from memdesc.types import DEVICE, PAGE_SHIFT, PAGE_SIZE_BYTES, MemoryType, TypeSet

__all__ = ["Cell", "Census", "Groups", "census_of", "mix_of", "vmemmap_freed"]

Groups: TypeAlias = Literal["region", "cgroup"]


@dataclass(frozen=True, slots=True)
class Cell:
    """Present frames of one type in one group, and the allocations that begin there."""

    group: int
    """Index into `Regions.all`, or a cgroup code of the map."""
    types: TypeSet
    frames: int
    rows: tuple[MixRow, ...]


@dataclass(frozen=True)
class Census:
    """Every present frame in one cell, cells by rising group and type."""

    machine: Machine
    regions: Regions
    cells: tuple[Cell, ...]
    sees_charges: bool
    """Whether the source shows which frames are charged to a cgroup."""
    frames_torn: int
    """Frames of compound pages whose heads and tails do not fit."""
    read_from: ReadFrom
    groups: Groups

    def mix(self) -> Mix:
        """All cells as one mix."""
        rows = joined(row for cell in self.cells for row in cell.rows)
        frames = sum(cell.frames for cell in self.cells)
        return Mix(frames, rows, vmemmap_freed(self.machine))


def mix_of(result: MemoryMap | Iterable[MemoryMap], totals: Totals | None = None) -> Mix:
    """The mix of a map, or of its parts in order. Raises QuestionError without frames.

    Precision: exact for whole compound pages and single frames; what was torn while it was
    read, and what the source leaves open, stays open in the rows.
    """
    return census_of(result, totals).mix()


def census_of(
    result: MemoryMap | Iterable[MemoryMap],
    totals: Totals | None = None,
    *,
    groups: Groups = "region",
) -> Census:
    """Count the frames and allocations of a map, or of its parts (`memdesc.map.parts`).

    `totals` of the same map saves counting frames once more. Groups of cgroups need the whole
    map as one. Raises QuestionError for a map without frames, and without cgroups where they
    are asked for.
    """
    parts = iter(parts_of(result) if isinstance(result, MemoryMap) else result)
    first = next(parts, None)
    if first is None:
        raise QuestionError("the map has no frames")
    if groups == "cgroup" and first.cgroups is None:
        raise QuestionError("memory cgroups are not visible in this source")
    count = _Count(first, groups, frames=totals is None)
    for part in itertools.chain([first], parts):
        count.add(part)
    if totals is not None and groups == "region":
        count.add_totals(totals)
    return count.census()


def vmemmap_freed(machine: Machine) -> bool | None:
    """Whether the kernel has freed memory map of huge pages (HVO); None: not visible.

    From the command line and vm.hugetlb_optimize_vmemmap, or from the kernel's own counters
    of the memory map (nr_memmap_pages, nr_memmap_boot_pages): where they say that every
    section has its whole map, nothing was freed.
    """
    if _boot_option(machine.cmdline) or machine.sysctls.get("vm.hugetlb_optimize_vmemmap"):
        return True
    if "vm.hugetlb_optimize_vmemmap" in machine.sysctls:
        return False
    vmstat = (machine.after if machine.after.vmstat else machine.before).vmstat
    counted = [vmstat.get("nr_memmap_pages"), vmstat.get("nr_memmap_boot_pages")]
    if None in counted or not machine.iomem:
        return None
    section_bytes = machine.section_pages << PAGE_SHIFT
    sections = {
        section
        for entry in machine.iomem
        if entry.name == "System RAM"
        for section in range(entry.phys_start // section_bytes, -(-entry.phys_end // section_bytes))
    }
    whole = len(sections) * machine.section_pages * DESIGNS["today"].bytes_per_frame
    return False if sum(filter(None, counted)) * PAGE_SIZE_BYTES == whole else None


# --- counting ----------------------------------------------------------------------------

_PLAIN, _TAIL, _HEAD = 0, 1, 2
_TORN = 63
"""Stands for an order that is not visible; counts are frames then."""
_NOT_CHARGED, _CHARGED, _UNKNOWN = 0, 1, 2
_CHARGES = {_NOT_CHARGED: False, _CHARGED: True, _UNKNOWN: None}
_GONE = TypeSet.of(MemoryType.HOLE) | DEVICE
_POISONED = TypeSet.of(MemoryType.POISONED)
_FORMER = TypeSet.of(MemoryType.FILE, MemoryType.DRIVER)
"""What a compound page was whose head shows poison and nothing else: a folio, or bare."""

_CHARGEABLE = TypeSet.of(
    MemoryType.ACCOUNTED,
    *(
        kind
        for design in DESIGNS.values()
        for kind, place in design.placements.items()
        if place.charged
    ),
)
"""Types that a charge to a cgroup gives another descriptor in some design."""


_Sums: TypeAlias = dict[tuple[int, ...], int]


class _Count:
    """Adds up parts of a map."""

    def __init__(self, first: MemoryMap, groups: Groups, *, frames: bool) -> None:
        table = first.table
        self.machine, self.regions, self.table = first.machine, first.regions, table
        self.groups, self.read_from = groups, first.read_from
        self.counts_frames = frames or groups == "cgroup"
        self.classes = _classes(table)
        self.minds_charge = table.types & np.uint64(_CHARGEABLE.mask) != 0
        self.sees_charges = first.cgroups is not None
        self.frames: _Sums = defaultdict(int)
        """(group, fact) -> frames."""
        self.allocations: _Sums = defaultdict(int)
        """(group, fact, order, charge) -> compound pages."""
        self.split: _Sums = defaultdict(int)
        """(group, fact, charge) -> single frames, where a charge makes a difference."""
        self.present = _present(self.regions, table)

    def add(self, part: MemoryMap) -> None:
        """Count the allocations that begin in `part`."""
        if not len(part):
            return
        classes = self.classes.take(part.facts)
        begins = np.flatnonzero(classes != _TAIL)
        is_head = classes.take(begins) == _HEAD
        after = np.append(begins[1:], len(part)) if begins.size else begins
        self._heads(part, begins[is_head], after[is_head])
        stray = ~is_head & (after - begins > 1)
        self._torn(part, begins[stray] + 1, after[stray])
        if not begins.size or begins[0]:
            lead = np.array([begins[0] if begins.size else len(part)])
            self._torn(part, np.zeros(1, np.int64), lead)
        if self.sees_charges:
            chosen = np.flatnonzero(self.minds_charge.take(part.facts) & (classes == _PLAIN))
            self._tally(
                self.split, part, chosen, _lengths(part, chosen), self._charge(part, chosen)
            )
        if self.counts_frames:
            self._count_frames(part)

    def add_totals(self, totals: Totals) -> None:
        """Take the frames from `totals` instead of counting them."""
        for region, fact in zip(*np.nonzero(totals.pages), strict=True):
            self.frames[int(region), int(fact)] += int(totals.pages[region, fact])

    def census(self) -> Census:
        """What was counted, present frames only."""
        rows: dict[tuple[int, int], list[MixRow]] = defaultdict(list)
        frames: dict[tuple[int, int], int] = defaultdict(int)
        torn = 0
        for (group, fact), number in self.frames.items():
            if self._is_present(group, fact):
                types = TypeSet(int(self.table.types[fact]))
                frames[group, types.mask] += number
                rows[group, types.mask] += self._single_rows(group, fact, types, number)
        for (group, fact, order, charge), number in self.allocations.items():
            if self._is_present(group, fact):
                types = TypeSet(int(self.table.types[fact]))
                torn += number if order == _TORN else 0
                rows[group, types.mask] += _compound_rows(types, order, number, _CHARGES[charge])
        cells = tuple(
            Cell(key[0], TypeSet(key[1]), frames[key], joined(rows[key]))
            for key in sorted(frames)
            if frames[key]
        )
        return Census(
            self.machine,
            self.regions,
            cells,
            self.sees_charges,
            torn,
            self.read_from,
            self.groups,
        )

    # --- helpers -------------------------------------------------------------------------

    def _heads(self, part: MemoryMap, heads: NDArray[np.int64], after: NDArray[np.int64]) -> None:
        """Whole compound pages by order; the frames of the others as torn."""
        if not heads.size:
            return
        run = _lengths(part, heads)
        # A run of heads is several heads in a row: only its last frame owns the tails.
        first = part.pfn_starts[heads].astype(np.int64) + run - 1
        sizes = _starts(part, after) - first
        whole = (sizes > 1) & (sizes & (sizes - 1) == 0) & (first & (sizes - 1) == 0)
        orders = np.where(whole, np.frexp(sizes)[1] - 1, _TORN)
        charge = self._charge(part, heads)
        ones = np.where(whole, 1, sizes)
        self._tally(self.allocations, part, heads, ones, orders, charge)
        several = np.flatnonzero(run > 1)
        if several.size:
            torn = np.full(several.size, _TORN)
            more = heads[several]
            self._tally(
                self.allocations, part, more, run[several] - 1, torn, self._charge(part, more)
            )

    def _torn(self, part: MemoryMap, at: NDArray[np.int64], end: NDArray[np.int64]) -> None:
        """Tails [at, end) that no head owns, as frames of the first one's type."""
        if not at.size:
            return
        frames = _starts(part, end) - _starts(part, at)
        torn = np.full(at.size, _TORN)
        self._tally(self.allocations, part, at, frames, torn, self._charge(part, at))

    def _charge(self, part: MemoryMap, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64: whether a cgroup is charged, where that makes a difference."""
        minds = self.minds_charge.take(part.facts[at])
        if part.cgroups is None:
            return np.where(minds, _UNKNOWN, _NOT_CHARGED)
        inodes = part.cgroup_inodes.take(part.cgroups[at])
        return np.where(minds & (inodes != 0), _CHARGED, _NOT_CHARGED)

    def _tally(
        self,
        sums: _Sums,
        part: MemoryMap,
        at: NDArray[np.int64],
        weights: NDArray[np.int64],
        *keys: NDArray[np.int64],
    ) -> None:
        """Add `weights` to `sums` by (group, fact, *keys) of the extents `at`."""
        if self.groups == "cgroup":
            # A cgroup's frames lie in many regions: keep those that are present.
            here = self.present[part.region_of_extent[at], part.facts[at]]
            at, weights, keys = at[here], weights[here], tuple(column[here] for column in keys)
        facts = max(1, len(self.table))
        packed = self._group(part, at) * facts + part.facts[at]
        for column in keys:
            packed = packed * 64 + column
        for key, number in _summed(packed, weights):
            parts: list[int] = []
            for _ in keys:
                key, low = divmod(key, 64)
                parts.insert(0, low)
            sums[(*divmod(key, facts), *parts)] += number

    def _group(self, part: MemoryMap, at: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.groups == "cgroup":
            assert part.cgroups is not None
            return part.cgroups[at].astype(np.int64)
        starts = np.array(self.regions.starts, np.int64)
        ends = np.array([part.pfn_start, part.pfn_end - 1])
        first, last = (np.searchsorted(starts, ends, "right") - 1).tolist()
        if first == last:
            return np.full(at.size, first, np.int64)
        cuts = np.searchsorted(part.pfn_starts, starts[first + 1 : last + 1])
        inside: NDArray[np.int64] = np.searchsorted(cuts, at, "right") + first
        return inside

    def _count_frames(self, part: MemoryMap) -> None:
        if self.groups == "region":
            self.add_totals(part.totals)
        else:
            self._tally(self.frames, part, np.arange(len(part)), part.nr_pages)

    def _is_present(self, group: int, fact: int) -> bool:
        return self.groups == "cgroup" or bool(self.present[group, fact])

    def _single_rows(self, group: int, fact: int, types: TypeSet, frames: int) -> list[MixRow]:
        """The allocations among frames that are in no compound page, and bad frames."""
        if self.classes[fact] == _TAIL and types == _POISONED:
            return [MixRow(types, 0, frames)]
        if self.classes[fact] != _PLAIN:
            return []
        if not self.minds_charge[fact]:
            return [MixRow(types, 0, frames)]
        if not self.sees_charges:
            return [MixRow(types, 0, frames, None)]
        return [
            MixRow(types, 0, self.split.get((group, fact, charge), 0), _CHARGES[charge])
            for charge in (_NOT_CHARGED, _CHARGED)
        ]


def _boot_option(cmdline: str | None) -> bool:
    """Whether hugetlb_free_vmemmap is on from boot."""
    values = re.findall(r"(?:^|\s)hugetlb_free_vmemmap=(\S+)", cmdline or "")
    return bool(values) and values[-1] in ("on", "1", "y", "Y")


def _compound_rows(types: TypeSet, order: int, number: int, charged: bool | None) -> list[MixRow]:
    if order == _TORN:
        return [] if types == _POISONED else [MixRow(types, None, number, charged)]
    if MemoryType.POISONED not in types:
        return [MixRow(types, order, number, charged)]
    # The bad frame's word leads to a descriptor of its own; the folio keeps its own.
    others = types.mask & ~_POISONED.mask or _FORMER.mask
    return [MixRow(TypeSet(others), order, number, charged), MixRow(_POISONED, 0, number)]


def _classes(table: FactTable) -> NDArray[np.uint8]:
    """uint8[facts]: plain, tail or head; a freed block that keeps stale marks is plain."""
    used = ~table.with_flags(KPF.BUDDY)
    head = table.with_flags(KPF.COMPOUND_HEAD) & used
    tail = table.with_flags(KPF.COMPOUND_TAIL) & used & ~head
    return np.where(head, _HEAD, np.where(tail, _TAIL, _PLAIN)).astype(np.uint8)


def _present(regions: Regions, table: FactTable) -> NDArray[np.bool_]:
    """bool[regions, facts]: as in the ledger, what System RAM backs and is no hole."""
    backed = [region.backing in (Backing.RAM, Backing.UNKNOWN) for region in regions.all]
    return np.array(backed, np.bool_)[:, None] & ~table.within(_GONE)[None, :]


def _starts(part: MemoryMap, at: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64: first frames of the extents `at`, of which one past the last is the end."""
    inside = np.minimum(at, len(part) - 1)
    starts = part.pfn_starts[inside].astype(np.int64)
    starts[at == len(part)] = part.pfn_end
    return starts


def _lengths(part: MemoryMap, at: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64: frames of the extents `at`."""
    return _starts(part, at + 1) - part.pfn_starts[at].astype(np.int64)


def _summed(keys: NDArray[np.int64], weights: NDArray[np.int64]) -> Iterable[tuple[int, int]]:
    """(key, sum of weights) for every distinct key."""
    if not keys.size:
        return []
    low = int(keys.min())
    span = int(keys.max()) - low + 1
    if span <= max(1 << 16, 4 * keys.size):
        sums = np.bincount(keys - low, weights)
        found = np.flatnonzero(np.bincount(keys - low))
        return zip((found + low).tolist(), map(int, sums[found].tolist()), strict=True)
    distinct, place = np.unique(keys, return_inverse=True)
    sums = np.bincount(place.ravel(), weights)
    return zip(distinct.tolist(), map(int, sums.tolist()), strict=True)

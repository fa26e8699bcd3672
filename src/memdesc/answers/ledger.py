"""Where did the memory go? Every present frame exactly once.

The rows of a ledger add up to the frames present: nothing is counted twice, nothing is
left over.  What the source cannot tell apart is one row with an honest union as its type.

A frame is present when System RAM backs it (/proc/iomem); without /proc/iomem, every
frame of the file that is not certainly a hole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import flag_names
from memdesc.map.compound import Compounds, compounds_of
from memdesc.map.extents import MemoryMap, Totals
from memdesc.map.machine import Machine
from memdesc.map.regions import Region
from memdesc.rules.classify import Backing
from memdesc.types import DEVICE, PAGE_SIZE_BYTES, MemoryType, TypeSet

__all__ = [
    "BY",
    "COUNTED_BY",
    "By",
    "CountedBy",
    "Ledger",
    "LedgerRow",
    "cgroup_column",
    "column_cells",
    "ledger",
    "needs_extents",
    "present_cells",
    "region_part",
    "type_frames",
]

By = Literal["type", "zone", "node", "cgroup", "order", "flags", "owner"]
BY: tuple[By, ...] = ("type", "zone", "node", "cgroup", "order", "flags", "owner")

CountedBy = Literal["type", "zone", "node", "cgroup"]
"""How answers that count outcomes or costs, instead of frames alone, can be split."""
COUNTED_BY: tuple[CountedBy, ...] = ("type", "zone", "node", "cgroup")


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One row: a type and, when the ledger is split, the part it is about."""

    types: TypeSet
    frames: int
    part: str = ""
    """Zone, node, cgroup, order, flag word or owner; "" in a ledger by type."""
    part_key: int | str | None = None
    """The machine-readable form of `part`: a node, inode, order or flag word."""

    @property
    def size_bytes(self) -> int:
        return self.frames * PAGE_SIZE_BYTES


@dataclass(frozen=True, slots=True)
class Ledger:
    """Rows, largest first, and what they add up to."""

    by: By
    rows: tuple[LedgerRow, ...]
    """Present frames; the same sum whatever the ledger is split by."""
    not_present: tuple[LedgerRow, ...]
    """Frames of the file that no RAM backs: holes, firmware, device memory."""
    notes: tuple[str, ...] = ()
    free_blocks: tuple[tuple[int, str, tuple[int, ...]], ...] = ()
    """(node, zone, free blocks per order) from /proc/buddyinfo, in a ledger by order: the
    marks of a free block do not tell its order."""

    @property
    def frames_present(self) -> int:
        return sum(row.frames for row in self.rows)

    def frames_of(self, kind: MemoryType) -> int:
        """Frames that are certainly `kind`, summed over all parts."""
        return sum(row.frames for row in self.rows if row.types.only is kind)

    def to_json(self) -> dict[str, Any]:
        """The JSON form, schema memdesc-ledger/1."""
        return {
            "schema": "memdesc-ledger/1",
            "by": self.by,
            "frames_present": self.frames_present,
            "size_bytes_present": self.frames_present * PAGE_SIZE_BYTES,
            "rows": [self._row(row) for row in self.rows],
            "not_present": [self._row(row) for row in self.not_present],
            "notes": list(self.notes),
            "free_blocks": [
                {"node": node, "zone": zone, "blocks_by_order": list(blocks)}
                for node, zone, blocks in self.free_blocks
            ],
        }

    def _row(self, row: LedgerRow) -> dict[str, Any]:
        value: dict[str, Any] = {
            "type": row.types.json,
            "frames": row.frames,
            "size_bytes": row.size_bytes,
        }
        if self.by != "type":
            value[self.by] = row.part_key
            value["name"] = row.part
        return value


def needs_extents(by: By) -> bool:
    """Whether a ledger split this way needs the whole map and not only its totals."""
    return by in ("cgroup", "order", "owner")


def ledger(source: Totals | MemoryMap, by: By = "type") -> Ledger:
    """Return the ledger of `source`, split by `by`.

    Precision: exact for what was read; memory goes on changing meanwhile.
    Raises QuestionError when `by` needs what the source does not show.
    """
    if needs_extents(by):
        if not isinstance(source, MemoryMap):
            raise QuestionError(f"a ledger by {by} needs the extents of the map")
        if by == "owner":
            return _by_owner(source)
        return _by_cgroup(source) if by == "cgroup" else _by_order(source)
    totals = source.totals if isinstance(source, MemoryMap) else source
    if by == "flags":
        return _by_flags(totals)
    return _by_region(totals, by)


def type_frames(source: Totals | MemoryMap) -> dict[TypeSet, int]:
    """Present frames per type."""
    return {row.types: row.frames for row in ledger(source).rows}


# --- helpers -----------------------------------------------------------------------------

_GONE = TypeSet.of(MemoryType.HOLE) | DEVICE


def present_cells(totals: Totals) -> NDArray[np.bool_]:
    """bool[regions, facts]: which cells hold present frames."""
    gone = totals.table.within(_GONE)
    present = np.zeros(totals.pages.shape, np.bool_)
    for index, region in enumerate(totals.regions.all):
        if region.backing in (Backing.RAM, Backing.UNKNOWN):
            present[index, : gone.size] = ~gone
    return present


def _rows(cells: Iterable[tuple[TypeSet, str, int | str | None, int]]) -> tuple[LedgerRow, ...]:
    summed: dict[tuple[TypeSet, str, int | str | None], int] = {}
    for types, part, key, frames in cells:
        summed[types, part, key] = summed.get((types, part, key), 0) + frames
    rows = [LedgerRow(t, frames, p, k) for (t, p, k), frames in summed.items() if frames]
    return tuple(sorted(rows, key=lambda row: (-row.frames, row.part, row.types.mask)))


def _by_region(totals: Totals, by: By) -> Ledger:
    parts = [region_part(totals.machine, region, by) for region in totals.regions.all]
    present = present_cells(totals)
    cells: dict[bool, list[tuple[TypeSet, str, int | str | None, int]]] = {True: [], False: []}
    for index, fact in zip(*np.nonzero(totals.pages), strict=True):
        types = TypeSet(int(totals.table.types[fact]))
        cells[bool(present[index, fact])].append(
            (types, *parts[index], int(totals.pages[index, fact]))
        )
    notes = []
    if not totals.machine.iomem and totals.machine.behaviour.holes_read_zero:
        notes.append("without /proc/iomem, holes that read 0 count among the frames present")
    if by != "type" and not totals.machine.zones:
        notes.append("zones are not visible: the source has no /proc/zoneinfo")
    return Ledger(by, _rows(cells[True]), _rows(cells[False]), tuple(notes))


def region_part(machine: Machine, region: Region, by: By) -> tuple[str, int | str | None]:
    """The zone or node of a region: in words, and as a machine reads it.

    A zone comes with its node where the machine has several; ("", None) for any other `by`.
    """
    zone = region.zone
    if by not in ("zone", "node"):
        return "", None
    if zone is None:
        return (f"no {by}" if machine.zones else "not visible"), None
    if by == "node":
        return f"node {zone.node}", zone.node
    several = len({each.node for each in machine.zones}) > 1
    name = f"{zone.name} (node {zone.node})" if several else zone.name
    return name, name


def _by_flags(totals: Totals) -> Ledger:
    """By raw word. page-types counts the rows and those of `not_present` together."""
    release = totals.machine.release
    present = present_cells(totals)
    book: dict[bool, list[tuple[TypeSet, str, int | str | None, int]]] = {True: [], False: []}
    for here, rows in book.items():
        per_fact = np.where(present == here, totals.pages, 0).sum(axis=0)
        for fact in np.flatnonzero(per_fact):
            word = int(totals.table.flags[fact])
            name = ",".join(flag_names(word, release)) or "(no flag)"
            types = TypeSet(int(totals.table.types[fact]))
            rows.append((types, name, word, int(per_fact[fact])))
    return Ledger("flags", _rows(book[True]), _rows(book[False]))


def cgroup_column(
    result: MemoryMap,
) -> tuple[NDArray[np.uint32], Callable[[int], tuple[str, int]]]:
    """The cgroup code of each extent, and what gives a code's path and inode.

    Raises QuestionError where the source shows no cgroups.
    """
    if result.cgroups is None:
        raise QuestionError(
            "memory cgroups are not visible in this source",
            hint=result.unseen.get("cgroups", "it has no kpagecgroup"),
        )
    names = result.machine.cgroups

    def name(code: int) -> tuple[str, int]:
        inode = int(result.cgroup_inodes[code])
        if inode == 0:
            return "(charged to none)", 0
        return names.get(inode, f"inode {inode} (name not visible)"), inode

    return result.cgroups, name


def _by_cgroup(result: MemoryMap) -> Ledger:
    codes, name = cgroup_column(result)
    note = "slab is charged per object, so its frames show no cgroup (fs/proc/page.c)"
    return _by_column(result, "cgroup", codes, name, (note,))


def _by_owner(result: MemoryMap) -> Ledger:
    """By slab cache, vmalloc caller, task of a stack, file system, ..."""
    if result.owners is None:
        raise QuestionError(
            "owners (slab caches, vmalloc callers, file systems) are not visible in this source",
            hint="struct pages tell them: --source live:struct as root, or a crash dump",
        )
    names = result.owner_names

    def name(code: int) -> tuple[str, str | None]:
        return (names[code], names[code]) if names[code] else ("(no owner known)", None)

    return _by_column(result, "owner", result.owners, name, ())


def _by_order(result: MemoryMap) -> Ledger:
    compounds: Compounds = compounds_of(result)
    orders = compounds.order_of_extent.astype(np.int64) + 2
    free = result.table.within(TypeSet.of(MemoryType.FREE))[result.facts]
    orders[free] = 0

    def name(code: int) -> tuple[str, int | None]:
        if code == 0:
            return "not visible (free block; see buddyinfo)", None
        if code == 1:
            return "torn while reading", None
        return f"order {code - 2}", code - 2

    notes = [f"order 0 holds every frame that is in no compound page; page size {PAGE_SIZE_BYTES}"]
    if compounds.torn_heads or compounds.orphan_tails:
        notes.append(
            f"{compounds.torn_heads} heads and {compounds.orphan_tails} tails were torn: "
            "memory changed while it was read"
        )
    book = _by_column(result, "order", orders, name, tuple(notes))
    return dataclasses.replace(book, free_blocks=result.machine.buddyinfo)


def _by_column(
    result: MemoryMap,
    by: By,
    column: NDArray[np.integer[Any]],
    name: Callable[[int], tuple[str, int | str | None]],
    notes: tuple[str, ...],
) -> Ledger:
    parts: dict[bool, list[tuple[TypeSet, str, int | str | None, int]]] = {True: [], False: []}
    for here, code, fact, frames in column_cells(result, column):
        types = TypeSet(int(result.table.types[fact]))
        parts[here].append((types, *name(code), frames))
    return Ledger(by, _rows(parts[True]), _rows(parts[False]), notes)


def column_cells(
    result: MemoryMap, column: NDArray[np.integer[Any]]
) -> Iterator[tuple[bool, int, int, int]]:
    """Yield (present, code, fact, frames) for each code of `column` (one per extent) and fact."""
    present = present_cells(result.totals)[result.region_of_extent, result.facts]
    width = max(1, len(result.table))
    keys = column.astype(np.int64) * width + result.facts
    for here in (True, False):
        chosen = present == here
        if not chosen.any():
            continue
        # Codes are few and far between when they are owners: count only those that occur.
        distinct, place = np.unique(keys[chosen], return_inverse=True)
        pages = np.bincount(place.ravel(), weights=result.nr_pages[chosen])
        for key, frames in zip(distinct.tolist(), pages.tolist(), strict=True):
            yield here, *divmod(key, width), int(frames)

"""Who would a memory error hit? Processes that would die, files that would lose data, ranges.

The rule is asked as in `memdesc.answers.failure`, and frames are added up by who maps them
or where they lie.  Memory that several processes map counts for each of them: its loss
hits all.  Bounds are ranges where the source leaves types or outcomes open.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.failure import Odds, knowledge_of, odds_json, sysctl_notes
from memdesc.answers.usage import Usage
from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.map.extents import MemoryMap
from memdesc.map.facts import FactTable
from memdesc.map.parts import Joiner, facts_of_folios, parts_of
from memdesc.rules.classify import Backing
from memdesc.rules.failure import Consequence, hard_failure
from memdesc.rules.subject import Asker, Knowledge
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES, MemoryType, TypeSet

__all__ = [
    "Exposure",
    "FileExposure",
    "ProcessExposure",
    "RangeExposure",
    "failure_by_file",
    "failure_by_process",
    "failure_by_range",
]


@dataclass(frozen=True, slots=True)
class ProcessExposure:
    """One process: bytes that it maps, by what their loss on broken memory means."""

    pid: int
    comm: str
    mapped_bytes: int
    """Distinct frames."""
    kills_min_bytes: int
    """Their loss certainly kills it: SIGBUS, at once or when it touches them."""
    kills_max_bytes: int
    shared_bytes: int
    """Of `kills_max_bytes`, those that other processes map as well: it dies with them."""
    harmless_bytes: int
    """Read again from where they came: nothing is lost."""
    machine_max_bytes: int
    """Mapped memory whose loss may take the machine with it."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kills_odds": _odds(self.kills_max_bytes, self.mapped_bytes)}


@dataclass(frozen=True, slots=True)
class FileExposure:
    """One file that processes map: what would be lost with a page of it."""

    name: str
    device: int | None
    """Major << 20 | minor; None for the cache that nobody maps."""
    inode: int | None
    cached_bytes: int
    """Frames of it that were reached."""
    lost_min_bytes: int
    """New data in them that nothing else holds: not written back yet, or memory alone."""
    lost_max_bytes: int
    processes: int
    """How many map them."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RangeExposure:
    """A range of frames, by what the loss of one means."""

    pfn_start: int
    pfn_end: int
    frames: int
    """Present ones."""
    odds: tuple[Odds, ...]

    def frames_max(self, consequence: Consequence) -> int:
        """Frames whose loss may have that consequence."""
        return next((o.frames_max for o in self.odds if o.consequence is consequence), 0)

    def to_json(self) -> dict[str, Any]:
        return {
            "pfn_start": self.pfn_start,
            "pfn_end": self.pfn_end,
            "frames_present": self.frames,
            "odds": [odds_json(odds, self.frames) for odds in self.odds],
        }


@dataclass(frozen=True)
class Exposure:
    """The whole answer, the worst hit first."""

    by: str
    rows: tuple[ProcessExposure, ...] | tuple[FileExposure, ...] | tuple[RangeExposure, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Schema memdesc-failure/1."""
        return {
            "schema": "memdesc-failure/1",
            "by": self.by,
            "rows": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }


def failure_by_process(usage: Usage) -> Exposure:
    """Which processes would die, and of how much of their memory."""
    ends = _Ends.of(usage.map.table, knowledge_of(usage.map.machine))
    kills, harmless = ends.with_any(*_KILLS), ends.only(Consequence.NOTHING_LOST)
    piece, process = usage.distinct(
        usage.process_of_entry, np.ones(usage.process_of_entry.size, np.bool_)
    )
    pages = usage.nr_pages[piece]
    cell = _cells_of_pieces(usage)[piece]
    # A piece that several processes map comes once for each.
    shared = np.bincount(piece, minlength=usage.nr_pages.size)[piece] > 1

    def add(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        sums = np.bincount(
            process[chosen], weights=pages[chosen], minlength=len(usage.attribution.processes)
        )
        return sums.astype(np.int64) * PAGE_SIZE_BYTES

    dies = kills[cell]
    columns = zip(
        add(np.ones(cell.size, np.bool_)).tolist(),
        add(ends.only(*_KILLS)[cell]).tolist(),
        add(dies).tolist(),
        add(dies & shared).tolist(),
        add(harmless[cell]).tolist(),
        add(ends.with_any(Consequence.MACHINE_LOST)[cell]).tolist(),
        strict=True,
    )
    rows = []
    for index, sums in enumerate(columns):
        one = usage.attribution.process(index)
        rows.append(ProcessExposure(one.pid, one.comm, *sums))
    rows.sort(key=lambda row: (-row.kills_max_bytes, row.pid))
    notes = (
        *sysctl_notes(usage.map.machine),
        "memory that several processes map counts for each of them",
    )
    return Exposure("process", tuple(rows), notes)


def failure_by_file(usage: Usage) -> Exposure:
    """Which files would lose data: those with pages that nothing else holds.

    Files are named by the processes that map them; the page cache that nobody maps is one
    row, since a map of frames does not say whose it is.
    """
    table = usage.map.table
    ends = _Ends.of(table, knowledge_of(usage.map.machine)).without_clean_files(table)
    vmas = usage.attribution.vmas
    with_file = np.flatnonzero(vmas.inode)
    code_of: dict[tuple[int, int, int], int] = {}
    columns = (vmas.device[with_file], vmas.inode[with_file], vmas.name[with_file])
    file_of_vma = np.full(len(vmas), -1, np.int64)
    file_of_vma[with_file] = [
        code_of.setdefault(key, len(code_of))
        for key in zip(*(column.tolist() for column in columns), strict=True)
    ]
    file = file_of_vma[usage.vma_of_entry]
    facts = _facts_of_pieces(usage)
    cell = _cells_of_pieces(usage)
    is_cache = np.append(_is_cache(table), False)
    own = (file >= 0) & is_cache[facts][usage.piece_of_entry]
    piece, group = usage.distinct(file, own)
    size = len(code_of)
    lost, sure = ends.with_any(*_LOSES), ends.only(*_LOSES)

    def add(chosen: NDArray[np.bool_]) -> list[int]:
        sums = np.bincount(group[chosen], usage.nr_pages[piece[chosen]], minlength=size)
        return [int(pages) * PAGE_SIZE_BYTES for pages in sums]

    cached = add(np.ones(piece.size, np.bool_))
    sums = cached, add(sure[cell[piece]]), add(lost[cell[piece]])
    users = _users(file[own], usage.process_of_entry[own], size)
    rows = [
        FileExposure(
            vmas.names[name],
            device,
            inode,
            sums[0][index],
            sums[1][index],
            sums[2][index],
            int(users[index]),
        )
        for (device, inode, name), index in code_of.items()
        if cached[index]
    ]
    rows.append(_unmapped(usage, piece, lost, sure))
    rows.sort(key=lambda row: (-row.lost_max_bytes, -row.cached_bytes, row.name))
    return Exposure("file", tuple(rows), sysctl_notes(usage.map.machine))


def failure_by_range(
    result: MemoryMap | Iterable[MemoryMap], size_bytes: int = 1 << 30
) -> Exposure:
    """What is at stake in each range of `size_bytes`, a power of two of at least a page.

    `result` is a map or its parts. Rows with most memory whose loss takes the machine first.
    Raises QuestionError for another size, and for a map without frames.
    """
    if size_bytes < PAGE_SIZE_BYTES or size_bytes & (size_bytes - 1):
        raise QuestionError(f"{size_bytes} bytes is no size of a range", hint="1G, 2G, 4G, ...")
    shift = size_bytes.bit_length() - 1 - PAGE_SHIFT
    parts = parts_of(result) if isinstance(result, MemoryMap) else result
    parts = iter(parts)
    first = next(parts, None)
    if first is None:
        raise QuestionError("the map has no frames")
    ends = _Ends.of(first.table, knowledge_of(first.machine))
    joiner = Joiner(first, ends.alike(first.table.within(_NOT_PRESENT)))
    sums: dict[int, NDArray[np.int64]] = {}
    for part in itertools.chain([first], parts):
        _add_ranges(joiner.join(part), shift, ends, sums)
    rows = []
    for index in sorted(sums):
        frames = int(sums[index].sum())
        if frames:
            rows.append(
                RangeExposure(index << shift, (index + 1) << shift, frames, ends.odds(sums[index]))
            )
    worst = Consequence.MACHINE_LOST
    rows.sort(key=lambda row: (-row.frames_max(worst), row.pfn_start))
    return Exposure("range", tuple(rows), sysctl_notes(first.machine))


# --- consequences by fact ----------------------------------------------------------------

_KILLS = (Consequence.KILLED_NOW, Consequence.KILLED_ON_TOUCH)
_LOSES = (*_KILLS, Consequence.CONTENT_LOST)
_CACHE = TypeSet.of(MemoryType.FILE, MemoryType.SHMEM, MemoryType.HUGETLB, MemoryType.SECRETMEM)
_ENDS = tuple(Consequence)


@dataclass(frozen=True)
class _Ends:
    """Bits of consequences per cell: for each fact where nobody knows who holds the frame,
    then where nobody does, then where somebody does; the last is outside the map."""

    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, table: FactTable, kernel: Knowledge) -> _Ends:
        asker = Asker(hard_failure, table.types, table.flags, kernel)
        facts = np.arange(len(table), dtype=np.uint16)
        columns = []
        for extra in (-1, 0, 1):
            codes = asker.codes(facts, None, np.full(len(table), extra, np.int8))
            per_ruling = [
                sum({1 << _ENDS.index(out.on_hardware) for out in ruling.outcomes})
                for ruling in asker.rulings
            ]
            columns.append(np.array(per_ruling, np.uint8)[codes])
        return cls(np.append(np.concatenate(columns), np.uint8(0)))

    def alike(self, apart: NDArray[np.bool_]) -> NDArray[np.int64]:
        """int64[3, facts]: equal where the consequences are; facts that are `apart` are not."""
        bits = self.bits[:-1].astype(np.int64).reshape(3, -1)
        return np.where(apart, -1, bits)

    def without_clean_files(self, table: FactTable) -> _Ends:
        """The same, where clean page cache loses nothing, whoever holds it: its file has it."""
        clean = table.within(TypeSet.of(MemoryType.FILE))
        clean &= ~table.with_flags(KPF.DIRTY | KPF.WRITEBACK)
        harmless = _mask([Consequence.NOTHING_LOST])
        return _Ends(np.where(np.append(np.tile(clean, 3), False), harmless, self.bits))

    def with_any(self, *ends: Consequence) -> NDArray[np.bool_]:
        """bool[cells]: whether one of `ends` is possible."""
        found: NDArray[np.bool_] = self.bits & _mask(ends) != 0
        return found

    def only(self, *ends: Consequence) -> NDArray[np.bool_]:
        """bool[cells]: whether nothing but `ends` is possible."""
        found: NDArray[np.bool_] = (self.bits & ~_mask(ends) == 0) & (self.bits != 0)
        return found

    def odds(self, frames: NDArray[np.int64]) -> tuple[Odds, ...]:
        """The odds of int64[256] frames by bits."""
        bits = np.arange(256)
        found = []
        for index, end in enumerate(_ENDS):
            most = int(frames[bits >> index & 1 == 1].sum())
            if most:
                found.append(Odds(end, int(frames[1 << index]), most))
        return tuple(found)


def _mask(ends: Iterable[Consequence]) -> np.uint8:
    return np.uint8(sum(1 << _ENDS.index(end) for end in ends))


def _cells(result: MemoryMap) -> NDArray[np.int64]:
    """int64[extents]: index into `_Ends.bits`."""
    cells = facts_of_folios(result).astype(np.int64)
    if result.references is not None:
        cells += (result.references.astype(np.int64) + 1) * len(result.table)
    return cells


def _cells_of_pieces(usage: Usage) -> NDArray[np.int64]:
    outside = 3 * len(usage.map.table)
    return np.append(_cells(usage.map), outside)[usage.extent]


def _facts_of_pieces(usage: Usage) -> NDArray[np.int64]:
    """int64[pieces]: the fact; the number of facts for frames outside the map."""
    return np.append(usage.map.facts.astype(np.int64), len(usage.map.table))[usage.extent]


# --- helpers -----------------------------------------------------------------------------


def _unmapped(
    usage: Usage, mapped: NDArray[np.int64], lost: NDArray[np.bool_], sure: NDArray[np.bool_]
) -> FileExposure:
    """The row of the page cache that no process maps."""
    result = usage.map
    is_cache = _is_cache(result.table)
    pages = result.nr_pages.astype(np.float64)
    distinct = np.unique(mapped)
    seen = np.bincount(usage.extent[distinct], usage.nr_pages[distinct], minlength=len(result) + 1)[
        : len(result)
    ]
    left = (pages - seen) * is_cache[result.facts]
    cells = _cells(result)
    total, low, high = (
        int(left[chosen].sum()) * PAGE_SIZE_BYTES
        for chosen in (slice(None), sure[cells], lost[cells])
    )
    return FileExposure("(mapped by nobody)", None, None, total, low, high, 0)


def _is_cache(table: FactTable) -> NDArray[np.bool_]:
    """bool[facts]: whether it may be part of a file; huge pages of private mappings are not."""
    found: NDArray[np.bool_] = table.types & np.uint64(_CACHE.mask) != 0
    return found & ~table.with_flags(KPF.BUDDY | KPF.ANON)


def _users(file: NDArray[np.int64], process: NDArray[np.uint32], files: int) -> NDArray[np.int64]:
    """int64[files]: distinct processes."""
    width = int(process.max(initial=0)) + 1
    pairs = np.unique(file * width + process)
    return np.bincount(pairs // width, minlength=files)


def _add_ranges(
    part: MemoryMap, shift: int, ends: _Ends, sums: dict[int, NDArray[np.int64]]
) -> None:
    """Add the present frames of `part` to int64[256] frames by bits, per range."""
    regions = part.regions.all
    present = np.array(
        [region.backing in (Backing.RAM, Backing.UNKNOWN) for region in regions], np.bool_
    )[part.region_of_extent]
    present &= ~part.table.within(_NOT_PRESENT)[part.facts]
    bits = ends.bits[_cells(part)].astype(np.int64)
    starts = part.pfn_starts.astype(np.int64)
    step = 1 << shift
    borders = np.arange(-(-part.pfn_start // step) * step, part.pfn_end, step)
    at = np.searchsorted(starts, borders, side="right")
    # An extent that holds a border is cut there.
    starts, bits = np.insert(starts, at, borders), np.insert(bits, at, bits[at - 1])
    present = np.insert(present, at, present[at - 1])
    sizes = np.diff(starts, append=part.pfn_end)
    first = part.pfn_start >> shift
    keys = ((starts >> shift) - first) * 256 + bits
    keys, sizes = keys[present], sizes[present]
    width = (part.pfn_end - 1 >> shift) - first + 1
    table = np.bincount(keys, sizes, minlength=width * 256).astype(np.int64).reshape(width, 256)
    for row in np.flatnonzero(table.any(axis=1)).tolist():
        sums[first + row] = sums.get(first + row, np.zeros(256, np.int64)) + table[row]


_NOT_PRESENT = TypeSet.of(MemoryType.HOLE)


def _odds(part: int, whole: int) -> float | None:
    return part / whole if whole else None

"""A capture as a source: a recorded map that answers like the live machine.

`Capture(path)` reads the manifest; everything else is read when asked for, in batches of
bounded size.  It satisfies `memdesc.sources.source.Source`.

Nothing in a capture is trusted: extents must follow each other without a gap, codes must
exist, numbers must fit.  What does not hold is one CaptureError with the file and a hint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from memdesc.descriptors import DescriptorLookup
from memdesc.errors import CaptureError, QuestionError
from memdesc.kernels.pagemap import PM, PagemapEntry, decode_entry
from memdesc.map.attribution import Attribution, ReadReport
from memdesc.map.describe import MapDescriber
from memdesc.map.extents import MemoryMap, Totals
from memdesc.map.facts import FactTable
from memdesc.map.machine import Machine
from memdesc.map.parts import PART_FRAMES
from memdesc.map.regions import Regions, regions_of
from memdesc.rules.procedure import RULES
from memdesc.sources.capture_format import (
    ATTRIBUTION_TABLES,
    CGROUPS,
    EXTENTS,
    FACTS,
    MACHINE,
    MAX_PFN,
    STRING,
    TOTALS,
    CaptureInfo,
)
from memdesc.sources.capture_read import CaptureFiles
from memdesc.sources.capture_totals import RegionCounts
from memdesc.sources.pages import Progress
from memdesc.types import PAGE_SHIFT, Pid, TypeSet, VirtAddr

__all__ = ["Capture"]

_MAX_ZONES = 1 << 10
_MAX_IOMEM = 1 << 10
_MAX_CELLS = 1 << 24
"""Cells of the table regions x facts."""
_MAX_SUMMARY_EXTENTS = 4_000_000
"""Up to so many a summary is the whole map: 56 MB, and a second or two."""
_MIN_WINDOW = 1 << 18
"""Frames of a window: the largest folio, 1 GiB."""


@dataclass(slots=True)
class _Rows:
    """A batch of extents, checked and cut at the borders of regions."""

    pfn_start: NDArray[np.int64]
    nr_pages: NDArray[np.int64]
    fact: NDArray[np.uint16]
    mapcount: NDArray[np.uint32] | None
    cgroup: NDArray[np.uint32] | None

    @property
    def pfn_end(self) -> int:
        return int(self.pfn_start[-1] + self.nr_pages[-1])

    def take(self, chosen: NDArray[Any] | slice) -> _Rows:
        return _Rows(
            self.pfn_start[chosen],
            self.nr_pages[chosen],
            self.fact[chosen],
            None if self.mapcount is None else self.mapcount[chosen],
            None if self.cgroup is None else self.cgroup[chosen],
        )


class Capture:
    """A capture on disk."""

    def __init__(self, path: Path, *, name: str = "") -> None:
        """Open the capture at `path` and read its manifest.

        Raises CaptureError where it is missing, damaged, or of another schema version.
        """
        self.path = Path(path)
        self.name = name or str(path)
        self._files = CaptureFiles(self.path)

    @property
    def info(self) -> CaptureInfo:
        """What the capture says of itself."""
        return self._files.info

    @cached_property
    def machine(self) -> Machine:
        """The machine that was captured, with the counters before and after."""
        with self._files.about_file(MACHINE):
            return _checked_machine(Machine.from_json(self._files.json(MACHINE)))

    @cached_property
    def table(self) -> FactTable:
        """The facts that the extents point into."""
        flags: list[int] = []
        types: list[int] = []
        rules: list[str] = []
        for batch in self._files.batches(FACTS):
            with self._files.about(FACTS):
                expected = range(len(flags), len(flags) + len(batch["fact"]))
                _need(list(batch["fact"]) == list(expected), "facts are not numbered in order")
                for text, rule, certainty in zip(
                    batch["type"], batch["rule"], batch["certainty"], strict=True
                ):
                    types.append(_types(text))
                    _need(rule in RULES, f"no such rule: {rule!r:.60}", _NEWER)
                    _need(certainty == RULES[rule].certainty.value, "a certainty differs", _NEWER)
                    rules.append(rule)
                flags.extend(np.asarray(batch["flags"]).tolist())
        return FactTable(np.array(flags, np.uint64), np.array(types, np.uint64), tuple(rules))

    @cached_property
    def cgroup_inodes(self) -> NDArray[np.uint64]:
        """uint64[m]: inode numbers of cgroups; 0, "charged to none", is the first."""
        parts = [np.zeros(0, np.uint64)]
        size = 0
        for batch in self._files.batches(CGROUPS):
            with self._files.about(CGROUPS):
                expected = np.arange(size, size + len(batch["cgroup"]))
                _need(np.array_equal(batch["cgroup"], expected), "they are not numbered in order")
                parts.append(np.array(batch["inode"]))
                size += expected.size
        inodes = np.concatenate(parts)
        with self._files.about(CGROUPS):
            _need(size > 0 and inodes[0] == 0, "the first is not 0, charged to none")
        return inodes

    @cached_property
    def _regions(self) -> Regions:
        regions = regions_of(self.machine)
        with self._files.about_file(MACHINE):
            _need(len(regions) * len(self.table) <= _MAX_CELLS, "too many regions and facts")
        return regions

    def totals(self, progress: Progress | None = None, *, references: bool = False) -> Totals:
        """Count every frame by region and fact, in a few MB whatever the machine's size.

        The counts were stored with the extents; they are counted again where they were not,
        or where this version draws the borders of regions elsewhere.
        """
        regions, table = self._regions, self.table
        pages = np.zeros((len(regions), max(1, len(table))), np.int64)
        starts = [start for start in regions.starts if start < self.info.pfn_end]
        stored = self._stored_totals()
        if stored is not None and stored.starts.tolist() == starts:
            pages[: len(starts)] = stored.pages
            if progress is not None:
                progress(self.info.pfn_end, self.info.pfn_end)
        else:
            pages[: len(starts)] = self._counted(starts, progress).pages
        return Totals(self.machine, regions, table, pages, self.info.pfn_end, self.info.scan)

    def _counted(self, starts: Sequence[int], progress: Progress | None) -> RegionCounts:
        counts = RegionCounts(starts, len(self.table))
        for rows in self._extents(progress):
            counts.add(rows.pfn_start, rows.nr_pages, rows.fact)
        return counts

    def _stored_totals(self) -> RegionCounts | None:
        """The table of totals, checked; None where the capture has none."""
        if not self.info.has_totals:
            return None
        name, pfn_end, facts = f"{TOTALS}.parquet", self.info.pfn_end, len(self.table)
        with self._files.about(TOTALS):
            _need(self.info.files[name].rows <= _MAX_CELLS, "it has too many rows")
            columns = self._whole(TOTALS)
            first, fact, frames = (np.asarray(columns[key]) for key in columns)
            starts = np.unique(first)
            if not pfn_end:
                _need(not starts.size, "it counts frames where there are none")
                return RegionCounts([], facts)
            _need(starts.size > 0 and int(starts[0]) == 0, "its first region is not at frame 0")
            _need(int(starts[-1]) < pfn_end, "a region lies outside the map")
            _need(int(fact.max()) < facts, "it has a fact that does not exist")
            _need(int(frames.min()) > 0 and int(frames.max()) <= pfn_end, "a count is impossible")
            _need(starts.size * facts <= _MAX_CELLS, "too many regions and facts")
            counts = RegionCounts(starts.tolist(), facts)
            place = np.searchsorted(starts, first), fact.astype(np.int64)
            _need(
                np.unique(place[0] * facts + place[1]).size == fact.size, "a count is there twice"
            )
            counts.pages[place] = frames
            sizes = np.diff(starts, append=pfn_end)
            whole = np.array_equal(counts.pages.sum(axis=1), sizes)
            _need(whole, "its counts are not the frames of the regions")
        return counts

    def map(
        self, progress: Progress | None = None, *, owners: bool = False, references: bool = False
    ) -> MemoryMap:
        """The whole map in memory: about 14 bytes per extent."""
        result = self._map(self._extents(progress), self.info.extents + len(self._regions))
        with self._files.about(TOTALS):
            same = not self.info.has_totals or np.array_equal(
                self.totals().pages, result.totals.pages
            )
            _need(same, "its counts are not those of the extents")
        return result

    @property
    def pfn_end(self) -> int:
        return self.info.pfn_end

    def parts(self, progress: Progress | None = None) -> Iterator[MemoryMap]:
        """The map in parts, without cgroups; memory for one part at a time."""
        table, machine = self.table, self.machine
        wide = self.info.pfn_end > 0xFFFFFFFF
        for starts, facts, mapcounts, pfn_end in _in_parts(
            self._extents(progress), np.dtype(np.uint64 if wide else np.uint32)
        ):
            yield MemoryMap(
                machine=machine,
                table=table,
                pfn_starts=starts,
                facts=facts,
                pfn_end=pfn_end,
                pfn_start=int(starts[0]),
                mapcounts=mapcounts,
                unseen=self.info.unseen,
                stats=self.info.scan,
            )

    def summary(self, progress: Progress | None = None) -> MemoryMap | Totals:
        """The whole map where that takes a moment, else its totals."""
        if self.info.extents <= _MAX_SUMMARY_EXTENTS:
            return self.map(progress)
        return self.totals(progress)

    def window(self, pfn: int) -> MemoryMap:
        """A map of the 1 GiB (or memory section) around `pfn`, with its whole folio."""
        if not 0 <= pfn < self.info.pfn_end:
            raise QuestionError(
                f"frame {pfn:#x} is outside the map, which ends at {self.info.pfn_end:#x}",
                hint="a physical address is written phys:0x..., a frame number 0x...",
            )
        span = max(self.machine.section_pages, _MIN_WINDOW)
        start = pfn & ~(span - 1)
        end = min(start + span, self.info.pfn_end)
        limit = min(span, self.info.extents + len(self._regions))
        return self._map(self._between(start, end), limit)

    def attribution(self, progress: Progress | None = None) -> Attribution:
        """Who maps what. Raises QuestionError where the capture does not hold it."""
        if not self.info.has_attribution:
            raise QuestionError(
                f"the capture {self.name} does not say who maps its frames",
                hint=self.info.unseen.get("processes", "capture again with processes included"),
            )
        tables = {table: self._whole(table) for table in ATTRIBUTION_TABLES}
        with self._files.about(ATTRIBUTION_TABLES[0]):
            try:
                report = ReadReport.from_json(self.info.attribution_report or {})
                return Attribution.from_tables(tables, report)
            except (TypeError, ValueError, OverflowError) as error:
                raise CaptureError(f"its values make no sense: {error}"[:200]) from error

    @cached_property
    def _attribution(self) -> Attribution:
        return self.attribution()

    def describer(self, result: MemoryMap) -> DescriptorLookup:
        return MapDescriber(result)

    def pagemap(self, pid: Pid, address: VirtAddr) -> PagemapEntry:
        """The frame at `address` of process `pid`; only presence and kind were kept.

        Raises QuestionError where the capture holds no frame for it.
        """
        who = self._attribution
        page = address >> PAGE_SHIFT
        process = who.process_index(pid)
        mine = np.flatnonzero(who.process_of_mapping == process)
        starts = who.mappings.page[mine].astype(np.int64)
        at = int(np.searchsorted(starts, page, side="right")) - 1
        if at < 0 or page >= starts[at] + int(who.mappings.nr_pages[mine[at]]):
            raise QuestionError(
                f"the capture holds no frame at {address:#x} of process {pid}",
                hint="it may be unmapped, swapped out, or the shared page of zeroes",
            )
        index = int(mine[at])
        pfn = int(who.mappings.pfn_start[index]) + page - int(starts[at])
        flags = int(PM.PRESENT) | (int(PM.FILE) if who.mappings.file[index] else 0)
        return decode_entry(flags | pfn, self.machine.release)

    def verify(self) -> None:
        """Read everything once and check it. Raises CaptureError at the first thing wrong."""
        for name in self.info.files:
            self._files.verify(name)
        stored = self._stored_totals()
        counted = self._counted([0] if stored is None else stored.starts.tolist(), None)
        with self._files.about(TOTALS):
            same = stored is None or np.array_equal(stored.pages, counted.pages)
            _need(same, "its counts are not those of the extents")
        if self.info.has_attribution:
            self.attribution()

    # --- helpers -------------------------------------------------------------------------

    def _extents(self, progress: Progress | None) -> Iterator[_Rows]:
        """Batches of extents that follow each other from frame 0 to the end."""
        regions = self._regions
        facts, pfn_end = len(self.table), self.info.pfn_end
        cgroups = self.cgroup_inodes.size
        expected = 0
        for batch in self._files.batches(EXTENTS):
            rows = _Rows(
                np.asarray(batch["pfn_start"]),
                np.asarray(batch["nr_pages"]),
                np.asarray(batch["fact"]),
                np.asarray(batch["mapcount"]) if "mapcount" in batch else None,
                np.asarray(batch["cgroup"]) if "cgroup" in batch else None,
            )
            with self._files.about(EXTENTS):
                _check_extents(rows, expected, pfn_end)
                _need(int(rows.fact.max()) < facts, "an extent has a fact that does not exist")
                if rows.cgroup is not None:
                    _need(int(rows.cgroup.max()) < cgroups, "an extent has an unknown cgroup")
            expected = rows.pfn_end
            yield _cut(rows, regions.borders_within(int(rows.pfn_start[0]), expected))
            if progress is not None:
                progress(expected, pfn_end)
        with self._files.about(EXTENTS):
            _need(expected == pfn_end, f"the extents end at {expected:#x}, not at {pfn_end:#x}")

    def _between(self, start: int, end: int) -> Iterator[_Rows]:
        """Extents of [start, end), cut at both ends; reads no further than it must."""
        for rows in self._extents(None):
            low = np.maximum(rows.pfn_start, start)
            high = np.minimum(rows.pfn_start + rows.nr_pages, end)
            chosen = np.flatnonzero(low < high)
            if chosen.size:
                part = rows.take(chosen)
                part.pfn_start, part.nr_pages = low[chosen], (high - low)[chosen]
                yield part
            if rows.pfn_end >= end:
                return

    def _map(self, batches: Iterator[_Rows], limit: int) -> MemoryMap:
        """Collect batches of at most `limit` extents in all."""
        info = self.info
        wide = info.pfn_end > 0xFFFFFFFF
        starts: NDArray[np.unsignedinteger] = np.zeros(0, np.uint64 if wide else np.uint32)
        facts = np.zeros(0, np.uint16)
        mapcounts = np.zeros(0, np.uint32) if "mapcount" in info.columns else None
        cgroups = np.zeros(0, np.uint32) if "cgroup" in info.columns else None
        size = pfn_start = pfn_end = 0
        for rows in batches:
            if not size:  # not before the first batch: until then `limit` is only a claim
                pfn_start = int(rows.pfn_start[0])
                starts, facts = np.empty(limit, starts.dtype), np.empty(limit, facts.dtype)
                mapcounts = None if mapcounts is None else np.empty(limit, np.uint32)
                cgroups = None if cgroups is None else np.empty(limit, np.uint32)
            place = slice(size, size + rows.fact.size)
            starts[place], facts[place] = rows.pfn_start, rows.fact
            if mapcounts is not None and rows.mapcount is not None:
                mapcounts[place] = rows.mapcount
            if cgroups is not None and rows.cgroup is not None:
                cgroups[place] = rows.cgroup
            size, pfn_end = place.stop, rows.pfn_end
        return MemoryMap(
            machine=self.machine,
            table=self.table,
            pfn_starts=starts[:size],
            facts=facts[:size],
            pfn_end=pfn_end,
            pfn_start=pfn_start,
            mapcounts=None if mapcounts is None else mapcounts[:size],
            cgroups=None if cgroups is None else cgroups[:size],
            cgroup_inodes=self.cgroup_inodes,
            unseen=info.unseen,
            stats=info.scan,
        )

    def _whole(self, table: str) -> dict[str, NDArray[Any] | list[str]]:
        """A whole table in memory."""
        kinds = self.info.files[f"{table}.parquet"].columns
        parts: dict[str, list[Any]] = {name: [] for name in kinds}
        for batch in self._files.batches(table):
            for name, values in batch.items():
                if kinds[name] == STRING:
                    parts[name].extend(values)
                else:
                    parts[name].append(np.array(values))
        return {
            name: values
            if kinds[name] == STRING
            else np.concatenate([np.zeros(0, kinds[name]), *values])
            for name, values in parts.items()
        }


_NEWER = "a newer memdesc may have written it: update, or capture again"


def _need(condition: bool | np.bool_, what: str, hint: str = "") -> None:
    if not condition:
        raise CaptureError(what, hint=hint)


def _types(text: str) -> int:
    """The mask of a type's name, or of names joined by `|`."""
    try:
        return TypeSet.from_names(text.split("|")).mask
    except ValueError as error:
        raise CaptureError(f"no such type: {text!r:.60}", hint=_NEWER) from error


def _check_extents(rows: _Rows, expected: int, pfn_end: int) -> None:
    """Each extent starts where the one before ended, and none is empty."""
    starts, sizes = rows.pfn_start, rows.nr_pages
    in_range = 0 <= starts[0] < pfn_end <= MAX_PFN
    in_range = in_range and int(sizes.min()) > 0 and int(sizes.max()) <= pfn_end
    _need(in_range, "an extent is empty or lies outside the map")
    # Sizes of that range cannot overflow, and so no start lies outside where each follows.
    follows = bool((starts[:-1] + sizes[:-1] == starts[1:]).all())
    _need(follows and starts[0] == expected, "the extents have a gap or overlap")
    _need(rows.pfn_end <= pfn_end, "the extents run past the end of the map")


def _cut(rows: _Rows, borders: list[int]) -> _Rows:
    """Cut extents at `borders` where they are not cut yet.

    memdesc cuts there when it scans; a version that knows other borders did not.
    """
    wanted = np.array(borders, np.int64)
    found = rows.pfn_start[np.searchsorted(rows.pfn_start, wanted, side="right") - 1]
    inside = wanted[found != wanted]
    if not inside.size:
        return rows
    at = np.searchsorted(rows.pfn_start, inside, side="right")
    pfn_start = np.insert(rows.pfn_start, at, inside)
    end = rows.pfn_end
    cut = rows.take(np.searchsorted(rows.pfn_start, pfn_start, side="right") - 1)
    cut.pfn_start, cut.nr_pages = pfn_start, np.diff(pfn_start, append=end)
    return cut


_PART_ROWS = 1 << 18
"""A part has at least so many extents, but for the last."""


_Part: TypeAlias = tuple[
    NDArray[np.unsignedinteger], NDArray[np.uint16], NDArray[np.uint32] | None, int
]
"""(first frames, facts, map counts, the frame after the last)."""


def _in_parts(batches: Iterator[_Rows], dtype: np.dtype[np.unsignedinteger]) -> Iterator[_Part]:
    """Batches joined and cut at multiples of `PART_FRAMES`; copies, frames as `dtype`."""
    starts: list[NDArray[np.unsignedinteger]] = []
    facts: list[NDArray[np.uint16]] = []
    counts: list[NDArray[np.uint32]] = []
    held = pfn_end = 0

    def part(size: int, end: int) -> _Part:
        start, fact = np.concatenate(starts), np.concatenate(facts)
        starts[:], facts[:] = [start[size:]], [fact[size:]]
        count = None
        if counts:
            joined = np.concatenate(counts)
            counts[:] = [joined[size:]]
            count = joined[:size]
        return start[:size], fact[:size], count, end

    for rows in batches:
        starts.append(rows.pfn_start.astype(dtype))
        facts.append(rows.fact.copy())
        if rows.mapcount is not None:
            counts.append(rows.mapcount.copy())
        held, pfn_end = held + rows.fact.size, rows.pfn_end
        border = pfn_end & -PART_FRAMES
        if held < _PART_ROWS or border <= int(starts[0][0]):
            continue
        joined = np.concatenate(starts)
        at = int(np.searchsorted(joined, dtype.type(border)))
        if at == joined.size or int(joined[at]) != border:
            # The extent that holds the border is cut in two.
            fact = np.concatenate(facts)
            starts[:] = [np.insert(joined, at, border)]
            facts[:] = [np.insert(fact, at, fact[at - 1])]
            if counts:
                count = np.concatenate(counts)
                counts[:] = [np.insert(count, at, count[at - 1])]
        yield part(at, border)
        held = starts[0].size
    if held:
        yield part(held, pfn_end)


def _checked_machine(machine: Machine) -> Machine:
    """`machine`, whose numbers every answer can bear. Raises CaptureError otherwise."""
    _need(math.isfinite(machine.time_unix_s), "its time is no number")
    _need(len(machine.zones) <= _MAX_ZONES, "it has too many zones")
    _need(len(machine.iomem) <= _MAX_IOMEM, "it has too many ranges of /proc/iomem")
    _need(all(zone.pfn_end <= MAX_PFN for zone in machine.zones), "a zone ends beyond memory")
    inside = all(entry.phys_start <= entry.phys_end for entry in machine.iomem)
    _need(inside, "a range of /proc/iomem ends before it starts")
    return machine

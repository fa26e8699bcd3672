"""Who uses this memory: mappers of a frame, sizes by process, file, VMA and cgroup.

All sizes come from the pagemaps that were read, turned round, and not from kpagecount.
For a process that holds still, while every process that maps its pages could be read,
Rss and Pss equal /proc/PID/smaps_rollup (`memdesc.kernels.smaps` says how the kernel adds
up).  They differ, and the answer says so in `notes` and `unread_bytes`, where

- a process could not be read: the kernel divides by its mappings too, so Pss here is too
  large; pages that it maps do not count as unique (needs kpagecount);
- two processes share one address space: its pages count twice;
- map and attribution are of different moments: a frame then has the type of the map's;
- a large folio's map count is an average (CONFIG_NO_PAGE_MAPCOUNT).

Swap is what pagemap shows; the kernel's `Swap:` also counts swapped shmem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memdesc.answers.sharing import (
    ChargedByMapped,
    ChargedRow,
    FileRow,
    FileSizes,
    charged_by_mapped,
    sizes_by_file,
)
from memdesc.answers.sizes import Sizes, TypeShare, notes_of, report_notes, sizes_of
from memdesc.answers.usage import Usage
from memdesc.errors import QuestionError
from memdesc.map.attribution import Attribution, Process, ReadReport, Vma
from memdesc.map.extents import MemoryMap
from memdesc.map.inverse import mapper
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES, MemoryType, Pfn, TypeSet

__all__ = [
    "ChargedByMapped",
    "ChargedRow",
    "FileRow",
    "FileSizes",
    "MapperRow",
    "Mappers",
    "ProcessRow",
    "ProcessSizes",
    "TypeShare",
    "VmaRow",
    "VmaSizes",
    "ZeroUse",
    "charged_by_mapped",
    "mappers",
    "process_by_vma",
    "sizes_by_file",
    "sizes_by_process",
]

# --- one frame ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MapperRow:
    """One mapping of a frame."""

    process: Process
    address: int
    """Virtual address, in bytes."""
    vma: Vma
    file_offset: int | None
    """Where in the file, in bytes; None for a VMA without a file."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "pid": self.process.pid,
            "comm": self.process.comm,
            "cgroup": self.process.cgroup or None,
            "address": self.address,
            "vma_start": self.vma.start,
            "vma_end": self.vma.end,
            "perms": self.vma.perms,
            "name": self.vma.name or None,
            "file_offset": self.file_offset,
        }


@dataclass(frozen=True, slots=True)
class ZeroUse:
    """Who shows the page of zeroes: it stands for memory that was read and never written."""

    processes: int
    pages: int
    """Of their address spaces, all processes together."""

    def to_json(self) -> dict[str, int]:
        return {"processes": self.processes, "pages": self.pages}


@dataclass(frozen=True, slots=True)
class Mappers:
    """Who maps one frame."""

    pfn: Pfn
    types: TypeSet
    mapcount: int | None
    """The kernel's count (kpagecount); None where not visible."""
    mappers: tuple[MapperRow, ...]
    """Of the page of zeroes only those that were kept, and the place that was asked about."""
    notes: tuple[str, ...] = ()
    zero: ZeroUse | None = None
    """None for every page but the one of zeroes."""

    @property
    def unread(self) -> int | None:
        """Mappings that the kernel counts and we did not read; None where not visible."""
        return None if self.mapcount is None else max(0, self.mapcount - len(self.mappers))

    def rows(self) -> list[dict[str, Any]]:
        """One row per mapping."""
        return [row.to_json() for row in self.mappers]

    def to_json(self) -> dict[str, Any]:
        """The JSON form, schema memdesc-who/1."""
        return {
            "schema": "memdesc-who/1",
            "pfn": int(self.pfn),
            "type": self.types.json,
            "mapcount": self.mapcount,
            "unread": self.unread,
            "zero": None if self.zero is None else self.zero.to_json(),
            "rows": self.rows(),
            "notes": list(self.notes),
        }


def mappers(
    map: MemoryMap,  # noqa: A002
    attribution: Attribution,
    pfn: int,
    *,
    at: tuple[int, int] | None = None,
) -> Mappers:
    """Return every mapping of frame `pfn` that was read, by process and address.

    `at` is the place (PID, address) where the frame was found, if it was: mappings of the page
    of zeroes are counted and not kept, and this one is there.
    Raises QuestionError for a frame outside the map.
    """
    extent = map.extent(map.index_of(pfn))
    mappings = attribution.mappings
    starts = mappings.pfn_start.astype(np.int64)
    runs = np.flatnonzero((starts <= pfn) & (pfn < starts + mappings.nr_pages))
    rows = []
    for run in runs.tolist():
        process, address, vma = mapper(attribution, run, pfn)
        offset = vma.offset + address - vma.start if vma.inode else None
        rows.append(MapperRow(process, address, vma, offset))
    types, zero = extent.fact.types, None
    if types.only is MemoryType.ZERO:
        zero = _zero_use(attribution, [row.process.index for row in rows])
        if at is not None and not any(_is_at(row, at) for row in rows):
            rows += _row_at(attribution, *at)
    notes = report_notes(attribution.report)
    return Mappers(Pfn(pfn), types, extent.mapcount, tuple(rows), tuple(notes), zero)


def _zero_use(attribution: Attribution, kept: Sequence[int]) -> ZeroUse:
    """Places that show the page of zeroes; `kept` are processes of mappings that were kept."""
    vmas = attribution.vmas
    processes = {*vmas.process[vmas.zero > 0].tolist(), *kept}
    return ZeroUse(len(processes), int(vmas.zero.sum()) + len(kept))


def _is_at(row: MapperRow, at: tuple[int, int]) -> bool:
    return (row.process.pid, row.address >> PAGE_SHIFT) == (at[0], at[1] >> PAGE_SHIFT)


def _row_at(attribution: Attribution, pid: int, address: int) -> list[MapperRow]:
    """The mapping at `address` of process `pid`; none where that area was not read."""
    page = address & -PAGE_SIZE_BYTES
    vmas = attribution.vmas
    mine = attribution.processes.pid[vmas.process] == pid
    mine &= (vmas.start <= np.uint64(page)) & (np.uint64(page) < vmas.end)
    found = []
    for index in np.flatnonzero(mine).tolist():
        vma = attribution.vma(index)
        offset = vma.offset + page - vma.start if vma.inode else None
        process = attribution.process(int(vmas.process[index]))
        found.append(MapperRow(process, page, vma, offset))
    return found


# --- by process --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One process. Everything in bytes."""

    process: Process
    sizes: Sizes
    swap_bytes: int
    hugetlb_bytes: int
    """hugetlb pages mapped; not part of Rss, as in the kernel."""
    zero_bytes: int
    """Mappings of the zero page: address space without memory."""
    special_bytes: int
    """Entries of drivers without a page behind them that the kernel would count."""
    hwpoison_bytes: int
    guard_bytes: int
    no_pfn_bytes: int
    """Areas that pagemap leaves blank (VM_PFNMAP), by their size."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        process = self.process
        return {
            "pid": process.pid,
            "ppid": process.ppid,
            "uid": process.uid,
            "comm": process.comm,
            "cgroup": process.cgroup or None,
            **self.sizes.to_json(),
            "swap_bytes": self.swap_bytes,
            "hugetlb_bytes": self.hugetlb_bytes,
            "zero_bytes": self.zero_bytes,
            "special_bytes": self.special_bytes,
            "hwpoison_bytes": self.hwpoison_bytes,
            "guard_bytes": self.guard_bytes,
            "no_pfn_bytes": self.no_pfn_bytes,
        }


@dataclass(frozen=True, slots=True)
class ProcessSizes:
    """Every process that was read, largest Pss first."""

    processes: tuple[ProcessRow, ...]
    report: ReadReport
    notes: tuple[str, ...] = ()

    def of(self, pid: int) -> ProcessRow:
        """The row of `pid`. Raises QuestionError when there is none."""
        for row in self.processes:
            if row.process.pid == pid:
                return row
        raise QuestionError(f"no memory of process {pid} was read")

    def rows(self) -> list[dict[str, Any]]:
        """One row per process."""
        return [row.to_json() for row in self.processes]

    def to_json(self) -> dict[str, Any]:
        """The JSON form, schema memdesc-who-processes/1."""
        return {
            "schema": "memdesc-who-processes/1",
            "rows": self.rows(),
            "report": self.report.to_json(),
            "notes": list(self.notes),
        }


def sizes_by_process(usage: Usage) -> ProcessSizes:
    """Return Rss, Pss, Uss of every process, by type, and what it holds besides."""
    attribution = usage.attribution
    count = len(attribution.processes)
    group = usage.process_of_entry
    sums = usage.sums(group, count)
    kind = usage.kind_of_entry
    zero, hugetlb, special = (usage.pages_by(group, count, kind == code) for code in (1, 2, 3))
    vmas = attribution.vmas
    of_vma = {
        name: np.bincount(vmas.process, weights=getattr(vmas, name), minlength=count).astype(
            np.int64
        )
        for name in ("swapped", "hwpoison", "guard", "no_pfn", "zero")
    }
    zero = zero + of_vma["zero"]
    rows = [
        ProcessRow(
            process=attribution.process(index),
            sizes=sizes_of(usage, sums, index),
            swap_bytes=int(of_vma["swapped"][index]) * PAGE_SIZE_BYTES,
            hugetlb_bytes=int(hugetlb[index]) * PAGE_SIZE_BYTES,
            zero_bytes=int(zero[index]) * PAGE_SIZE_BYTES,
            special_bytes=int(special[index]) * PAGE_SIZE_BYTES,
            hwpoison_bytes=int(of_vma["hwpoison"][index]) * PAGE_SIZE_BYTES,
            guard_bytes=int(of_vma["guard"][index]) * PAGE_SIZE_BYTES,
            no_pfn_bytes=int(of_vma["no_pfn"][index]) * PAGE_SIZE_BYTES,
        )
        for index in range(count)
    ]
    rows.sort(key=lambda row: (-row.sizes.pss_bytes, row.process.pid))
    return ProcessSizes(tuple(rows), attribution.report, notes_of(usage))


# --- one process by VMA ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VmaRow:
    """One VMA. Everything in bytes."""

    vma: Vma
    sizes: Sizes
    swap_bytes: int
    hwpoison_bytes: int
    guard_bytes: int
    zero_bytes: int
    no_pfn_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        vma = self.vma
        return {
            "start": vma.start,
            "end": vma.end,
            "size_bytes": vma.end - vma.start,
            "perms": vma.perms,
            "file_offset": vma.offset if vma.inode else None,
            "inode": vma.inode or None,
            "name": vma.name or None,
            **self.sizes.to_json(),
            "swap_bytes": self.swap_bytes,
            "hwpoison_bytes": self.hwpoison_bytes,
            "guard_bytes": self.guard_bytes,
            "zero_bytes": self.zero_bytes,
            "no_pfn_bytes": self.no_pfn_bytes,
        }


@dataclass(frozen=True, slots=True)
class VmaSizes:
    """The VMAs of one process, by address."""

    process: Process
    vmas: tuple[VmaRow, ...]
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One row per VMA."""
        return [row.to_json() for row in self.vmas]

    def to_json(self) -> dict[str, Any]:
        """The JSON form, schema memdesc-who-vmas/1."""
        return {
            "schema": "memdesc-who-vmas/1",
            "pid": self.process.pid,
            "comm": self.process.comm,
            "rows": self.rows(),
            "notes": list(self.notes),
        }


def process_by_vma(usage: Usage, pid: int) -> VmaSizes:
    """Return the VMAs of `pid` with their types. Raises QuestionError for an unknown pid."""
    attribution = usage.attribution
    vmas = attribution.vmas
    index = attribution.process_index(pid)
    low, high = np.searchsorted(vmas.process, [index, index + 1])
    entries = np.flatnonzero(usage.process_of_entry == index)
    group = usage.vma_of_entry[entries].astype(np.int64) - low
    sums = usage.sums(group, int(high - low), entries)
    is_zero = usage.kind_of_entry[entries] == 1
    pages = usage.nr_pages[usage.piece_of_entry[entries]]
    zero = np.bincount(group[is_zero], weights=pages[is_zero], minlength=int(high - low))
    rows = [
        VmaRow(
            vma=attribution.vma(row),
            sizes=sizes_of(usage, sums, row - int(low)),
            swap_bytes=int(vmas.swapped[row]) * PAGE_SIZE_BYTES,
            hwpoison_bytes=int(vmas.hwpoison[row]) * PAGE_SIZE_BYTES,
            guard_bytes=int(vmas.guard[row]) * PAGE_SIZE_BYTES,
            zero_bytes=(int(vmas.zero[row]) + int(zero[row - int(low)])) << PAGE_SHIFT,
            no_pfn_bytes=int(vmas.no_pfn[row]) * PAGE_SIZE_BYTES,
        )
        for row in range(int(low), int(high))
    ]
    return VmaSizes(attribution.process(index), tuple(rows), notes_of(usage))

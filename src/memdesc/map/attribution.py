"""Who maps what: processes, their VMAs, and runs of frames that each VMA maps.

An `Attribution` is a value like the map: columns, read once from /proc/PID/{maps,pagemap}
or from a capture.  A mapping is a run: consecutive virtual pages of one VMA that hold
consecutive frames.  `memdesc.map.inverse` turns it round, from a frame to its mappers.

Three tables hold all of it (`to_tables`), so a capture is plain rows.  Names repeat
there; in memory they are kept once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import CaptureError, QuestionError
from memdesc.map.read_report import ReadReport
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES

__all__ = [
    "NO_UID",
    "PERM_EXEC",
    "PERM_READ",
    "PERM_SHARED",
    "PERM_WRITE",
    "Attribution",
    "Mappings",
    "Process",
    "Processes",
    "ReadReport",
    "Tables",
    "Vma",
    "Vmas",
    "perms_text",
]

Column: TypeAlias = NDArray[Any] | list[str]
Tables: TypeAlias = Mapping[str, Mapping[str, Column]]
"""Table name -> column name -> numpy array of unsigned integers, or list of str."""

PERM_READ, PERM_WRITE, PERM_EXEC, PERM_SHARED = 1, 2, 4, 8
NO_UID = 0xFFFFFFFF
"""The user is not known: the kernel's own invalid uid."""

_TEXT_LIMIT = 1 << 16
_PFN_LIMIT = 1 << 51
"""A pagemap entry has 55 bits for a frame; half of what fits keeps every sum in int64."""


def perms_text(perms: int) -> str:
    """Permissions as /proc/PID/maps writes them: 11 -> "rw-s"."""
    letters = zip("rwx", (PERM_READ, PERM_WRITE, PERM_EXEC), strict=True)
    text = "".join(letter if perms & bit else "-" for letter, bit in letters)
    return text + ("s" if perms & PERM_SHARED else "p")


@dataclass(frozen=True, slots=True)
class Process:
    """One row of `Processes`."""

    index: int
    pid: int
    ppid: int
    uid: int | None
    """Real user id; None where not visible."""
    comm: str
    cgroup: str
    """Path of its memory cgroup; "" where not visible."""


@dataclass(frozen=True, slots=True)
class Vma:
    """One row of `Vmas`. Addresses in bytes, counts in pages."""

    index: int
    process: int
    start: int
    end: int
    perms: str
    offset: int
    """Offset of `start` in the file, in bytes."""
    device: int
    """Major << 20 | minor, 0 for none."""
    inode: int
    name: str

    @property
    def nr_pages(self) -> int:
        return (self.end - self.start) >> PAGE_SHIFT


@dataclass(frozen=True)
class Processes:
    """n processes that have an address space, by rising pid."""

    pid: NDArray[np.uint32]
    ppid: NDArray[np.uint32]
    uid: NDArray[np.uint32]
    """Real user id, `NO_UID` where not visible (/proc/PID/status)."""
    comm: list[str]
    cgroup: list[str]

    def __len__(self) -> int:
        return int(self.pid.size)


@dataclass(frozen=True)
class Vmas:
    """m areas, by process and rising address. Counts are pages, read with the mappings."""

    process: NDArray[np.uint32]
    """Index into the processes, never falling."""
    start: NDArray[np.uint64]
    """First address, in bytes."""
    end: NDArray[np.uint64]
    """Address after the last byte."""
    perms: NDArray[np.uint8]
    """`PERM_*` bits."""
    offset: NDArray[np.uint64]
    """File offset of `start`, in bytes."""
    device: NDArray[np.uint32]
    """Major << 20 | minor of the file's device."""
    inode: NDArray[np.uint64]
    """Inode number of the file, 0 for none."""
    name: NDArray[np.uint32]
    """Index into `names`."""
    names: list[str]
    """Distinct names; "" for a VMA without one."""
    swapped: NDArray[np.uint64]
    """Entries that name a slot of a real swap area. Swapped shmem shows nothing here."""
    guard: NDArray[np.uint64]
    """Guard markers (since 6.13)."""
    hwpoison: NDArray[np.uint64]
    """Entries whose page was lost to a memory error."""
    special: NDArray[np.uint64]
    """Other entries that are neither present nor empty: migration, device memory, markers,
    and numbers that have several meanings on this release."""
    zero: NDArray[np.uint64]
    """Pages that hold the zero page and were left out of the mappings."""
    no_pfn: NDArray[np.uint64]
    """Pages of areas that pagemap leaves blank (VM_PFNMAP); inferred from the name."""

    def __len__(self) -> int:
        return int(self.start.size)

    @cached_property
    def start_page(self) -> NDArray[np.int64]:
        """int64[m]: first virtual page."""
        return (self.start >> np.uint64(PAGE_SHIFT)).astype(np.int64)


@dataclass(frozen=True)
class Mappings:
    """r runs, by VMA and rising virtual page: page + i holds frame pfn_start + i."""

    pfn_start: NDArray[np.unsignedinteger]
    """uint32 or uint64[r]."""
    nr_pages: NDArray[np.uint32]
    vma: NDArray[np.uint32]
    """Index into the VMAs."""
    page: NDArray[np.uint64]
    """Virtual page: address >> 12."""
    file: NDArray[np.uint8]
    """1 where pagemap says "file page or shared anonymous" (bit 61)."""

    def __len__(self) -> int:
        return int(self.pfn_start.size)

    @cached_property
    def present_pages(self) -> int:
        """Sum of all runs, in pages."""
        return int(self.nr_pages.sum(dtype=np.int64))


@dataclass(frozen=True)
class Attribution:
    """Processes, VMAs and mappings of one machine at one moment."""

    processes: Processes
    vmas: Vmas
    mappings: Mappings
    report: ReadReport = field(default_factory=ReadReport)

    @cached_property
    def process_of_mapping(self) -> NDArray[np.uint32]:
        """uint32[r]: index of the process of each mapping."""
        return self.vmas.process[self.mappings.vma]

    def process(self, index: int) -> Process:
        """The process at `index`."""
        table = self.processes
        uid = int(table.uid[index])
        return Process(
            index,
            int(table.pid[index]),
            int(table.ppid[index]),
            None if uid == NO_UID else uid,
            table.comm[index],
            table.cgroup[index],
        )

    def vma(self, index: int) -> Vma:
        """The VMA at `index`."""
        table = self.vmas
        return Vma(
            index,
            int(table.process[index]),
            int(table.start[index]),
            int(table.end[index]),
            perms_text(int(table.perms[index])),
            int(table.offset[index]),
            int(table.device[index]),
            int(table.inode[index]),
            table.names[int(table.name[index])],
        )

    def process_index(self, pid: int) -> int:
        """Index of the process `pid`. Raises QuestionError when it was not read."""
        found = np.flatnonzero(self.processes.pid == pid)
        if not found.size:
            reason = next((why for number, why in self.report.problems if number == pid), "")
            raise QuestionError(
                f"no memory of process {pid} was read" + (f": {reason}" if reason else ""),
                hint="kernel threads and zombies have none; it may have ended before the read",
            )
        return int(found[0])

    def to_tables(self) -> dict[str, dict[str, Column]]:
        """The tables "processes", "vmas" and "mappings", columns in a fixed order."""
        processes, vmas, mappings = self.processes, self.vmas, self.mappings
        return {
            "processes": {name: getattr(processes, name) for name in _PROCESS_COLUMNS},
            "vmas": {
                name: [vmas.names[code] for code in vmas.name.tolist()]
                if name == "name"
                else getattr(vmas, name)
                for name in _VMA_COLUMNS
            },
            "mappings": {name: getattr(mappings, name) for name in _MAPPING_COLUMNS},
        }

    @classmethod
    def from_tables(cls, tables: Tables, report: ReadReport | None = None) -> Self:
        """Read what `to_tables` gave, possibly from a file that somebody else made.

        Raises CaptureError unless every column is there and every number makes sense.
        """
        rows = _Table(tables, "processes")
        processes = Processes(
            rows.numbers("pid", np.uint32),
            rows.numbers("ppid", np.uint32),
            rows.numbers("uid", np.uint32),
            rows.texts("comm"),
            rows.texts("cgroup"),
        )
        rows.need(np.unique(processes.pid).size == len(processes), "a pid appears twice")
        vmas = _vmas(_Table(tables, "vmas"), len(processes))
        mappings = _mappings(_Table(tables, "mappings"), vmas)
        return cls(processes, vmas, mappings, report or ReadReport(read=len(processes)))

    def check(self) -> None:
        """Assert every invariant; complete. Raises AssertionError."""
        try:
            Attribution.from_tables(self.to_tables())
        except CaptureError as error:
            raise AssertionError(str(error)) from error


# --- tables ------------------------------------------------------------------------------

_PROCESS_COLUMNS = ("pid", "ppid", "uid", "comm", "cgroup")
_VMA_COUNTS = ("swapped", "guard", "hwpoison", "special", "zero", "no_pfn")
_VMA_COLUMNS = (
    *("process", "start", "end", "perms", "offset", "device", "inode", "name"),
    *_VMA_COUNTS,
)
_MAPPING_COLUMNS = ("pfn_start", "nr_pages", "vma", "page", "file")


class _Table:
    """One table of a capture, checked column by column."""

    def __init__(self, tables: Tables, name: str) -> None:
        self.name = name
        if name not in tables:
            raise CaptureError(f"the capture has no table {name!r}")
        self._columns = tables[name]
        lengths = {len(column) for column in self._columns.values()}
        self.need(len(lengths) == 1, f"its columns have different lengths: {sorted(lengths)[:4]}")
        self.size = lengths.pop()

    def need(self, condition: bool | np.bool_, what: str) -> None:
        """Raise CaptureError unless `condition`."""
        if not condition:
            raise CaptureError(f"table {self.name!r} makes no sense: {what}")

    def column(self, name: str) -> Column:
        self.need(name in self._columns, f"it has no column {name!r}")
        return self._columns[name]

    def numbers(self, name: str, dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
        column = self.column(name)
        array = column if isinstance(column, np.ndarray) else None
        self.need(
            array is not None and array.ndim == 1 and array.dtype.kind in "ui",
            f"{name} holds no whole numbers",
        )
        assert array is not None
        if array.size:
            fits = int(array.min()) >= 0 and int(array.max()) <= np.iinfo(dtype).max
            self.need(fits, f"{name} holds a number that does not fit")
        return array.astype(dtype, copy=False)

    def texts(self, name: str) -> list[str]:
        column = self.column(name)
        good = isinstance(column, list) and all(
            isinstance(text, str) and len(text) < _TEXT_LIMIT for text in column
        )
        self.need(good, f"{name} holds no texts")
        assert isinstance(column, list)
        return column


def _vmas(rows: _Table, processes: int) -> Vmas:
    texts = rows.texts("name")
    code_of: dict[str, int] = {}
    name = np.array([code_of.setdefault(text, len(code_of)) for text in texts], np.uint32)
    vmas = Vmas(
        process=rows.numbers("process", np.uint32),
        start=rows.numbers("start", np.uint64),
        end=rows.numbers("end", np.uint64),
        perms=rows.numbers("perms", np.uint8),
        offset=rows.numbers("offset", np.uint64),
        device=rows.numbers("device", np.uint32),
        inode=rows.numbers("inode", np.uint64),
        name=name,
        names=list(code_of),
        **{count: rows.numbers(count, np.uint64) for count in _VMA_COUNTS},
    )
    if not rows.size:
        return vmas
    process = vmas.process.astype(np.int64)
    rows.need(int(process.max()) < processes, "a VMA belongs to no process")
    rows.need((np.diff(process) >= 0).all(), "VMAs are not ordered by process")
    rows.need((vmas.start < vmas.end).all(), "a VMA ends before it starts")
    low_bits = np.uint64(PAGE_SIZE_BYTES - 1)
    rows.need(not ((vmas.start | vmas.end) & low_bits).any(), "a VMA is not page aligned")
    rows.need(int(vmas.perms.max()) < 2 * PERM_SHARED, "unknown permission bits")
    same = process[1:] == process[:-1]
    rows.need(not (same & (vmas.start[1:] < vmas.end[:-1])).any(), "VMAs overlap")
    pages = (vmas.end - vmas.start) >> np.uint64(PAGE_SHIFT)
    for count in _VMA_COUNTS:
        rows.need((getattr(vmas, count) <= pages).all(), f"{count} exceeds the size of a VMA")
    return vmas


def _mappings(rows: _Table, vmas: Vmas) -> Mappings:
    wide = rows.numbers("pfn_start", np.uint64)
    narrow = not wide.size or int(wide.max()) <= 0xFFFFFFFF
    mappings = Mappings(
        pfn_start=wide.astype(np.uint32) if narrow else wide,
        nr_pages=rows.numbers("nr_pages", np.uint32),
        vma=rows.numbers("vma", np.uint32),
        page=rows.numbers("page", np.uint64),
        file=rows.numbers("file", np.uint8),
    )
    if not rows.size:
        return mappings
    rows.need(int(wide.max()) < _PFN_LIMIT, "a frame number is too large")
    rows.need(int(mappings.nr_pages.min()) > 0, "a run of no pages")
    rows.need(int(mappings.vma.max()) < len(vmas), "a run belongs to no VMA")
    rows.need(int(mappings.file.max()) <= 1, "file is neither 0 nor 1")
    vma, page = mappings.vma.astype(np.int64), mappings.page
    rows.need(int(page.max()) < 1 << 52, "a virtual page is too large")
    end = page + mappings.nr_pages
    inside = (page << np.uint64(PAGE_SHIFT) >= vmas.start[vma]) & (
        end <= vmas.end[vma] >> np.uint64(PAGE_SHIFT)
    )
    rows.need(inside.all(), "a run lies outside its VMA")
    later = np.diff(vma) > 0
    follows = (vma[1:] == vma[:-1]) & (page[1:] >= end[:-1])
    rows.need((later | follows).all(), "runs are not ordered by VMA and page")
    return mappings

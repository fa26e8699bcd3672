"""Memory that belongs to more than one: mapped files, and cgroups that pay for others.

Same facts and same limits as `memdesc.answers.who`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.sizes import notes_of
from memdesc.answers.usage import Usage
from memdesc.errors import QuestionError
from memdesc.kernels.smaps import PSS_SHIFT
from memdesc.map.extents import MemoryMap
from memdesc.types import PAGE_SIZE_BYTES

__all__ = [
    "ChargedByMapped",
    "ChargedRow",
    "FileRow",
    "FileSizes",
    "charged_by_mapped",
    "sizes_by_file",
]

# --- by file -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileRow:
    """One mapped file, by name and inode. Bytes of its own pages, private copies apart."""

    name: str
    device: int
    """Major << 20 | minor."""
    inode: int
    processes: int
    """Processes with a page of it."""
    resident_bytes: int
    """Distinct frames that these mappings reach; the cache may hold more of the file."""
    rss_bytes: int
    """The same frames, counted once per mapping."""
    pss_bytes: int
    uss_bytes: int
    copied_bytes: int
    """Anonymous copies of private mappings: they belong to the process, not to the file."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class FileSizes:
    """Every mapped file with a page present, largest first."""

    files: tuple[FileRow, ...]
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One row per file."""
        return [row.to_json() for row in self.files]

    def to_json(self) -> dict[str, Any]:
        """The JSON form, schema memdesc-who-files/1."""
        return {"schema": "memdesc-who-files/1", "rows": self.rows(), "notes": list(self.notes)}


def sizes_by_file(usage: Usage) -> FileSizes:
    """Return what each mapped file has resident through mappings.

    A file is a name with a device and an inode; memfd, SysV and shared anonymous memory
    have one as well ("/memfd:x (deleted)", "/SYSV...", "/dev/zero (deleted)").
    """
    vmas = usage.attribution.vmas
    with_file = np.flatnonzero(vmas.inode)
    code_of: dict[tuple[int, int, int], int] = {}
    columns = (vmas.device[with_file], vmas.inode[with_file], vmas.name[with_file])
    codes = [
        code_of.setdefault(key, len(code_of))
        for key in zip(*(column.tolist() for column in columns), strict=True)
    ]
    file_of_vma = np.full(len(vmas), -1, np.int64)
    file_of_vma[with_file] = codes
    file = file_of_vma[usage.vma_of_entry]
    counted = (file >= 0) & (usage.kind_of_entry == 0)
    anon = usage.anon_piece[usage.piece_of_entry]
    own = counted & ~anon
    files = len(code_of)
    entries = np.flatnonzero(own)
    sums = usage.sums(file[entries], files, entries)
    copied = usage.pages_by(file, files, counted & anon)
    piece, group = usage.distinct(file, own)
    resident = np.bincount(group, weights=usage.nr_pages[piece], minlength=files)
    users = _distinct_pairs(file[counted], usage.process_of_entry[counted], files)
    rows = [
        FileRow(
            name=vmas.names[name],
            device=device,
            inode=inode,
            processes=int(users[index]),
            resident_bytes=int(resident[index]) * PAGE_SIZE_BYTES,
            rss_bytes=int(sums.rss[index].sum()),
            pss_bytes=int(sums.pss_fixed[index].sum()) >> PSS_SHIFT,
            uss_bytes=int(sums.uss[index].sum()),
            copied_bytes=int(copied[index]) * PAGE_SIZE_BYTES,
        )
        for (device, inode, name), index in code_of.items()
        if users[index]
    ]
    rows.sort(key=lambda row: (-row.resident_bytes, -row.copied_bytes, row.name))
    return FileSizes(tuple(rows), notes_of(usage))


# --- by cgroup ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChargedRow:
    """Frames charged to one cgroup, and mapped from one cgroup."""

    charged: str
    """Path of the cgroup that pays, "" for none."""
    charged_inode: int
    mapped_by: str | None
    """Path of the mapping processes' cgroup ("" where not visible); None: mapped by nobody
    who was read."""
    frames: int

    @property
    def is_foreign(self) -> bool:
        """One cgroup pays for what another one maps."""
        return bool(self.charged) and self.mapped_by not in (None, "", self.charged)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "charged": self.charged or None,
            "charged_inode": self.charged_inode,
            "mapped_by": self.mapped_by,
            "frames": self.frames,
            "size_bytes": self.frames * PAGE_SIZE_BYTES,
            "foreign": self.is_foreign,
        }


@dataclass(frozen=True, slots=True)
class ChargedByMapped:
    """The matrix, largest first.

    A frame that several cgroups map counts in each of their rows, so the rows of one
    payer can add up to more than it is charged.
    """

    cells: tuple[ChargedRow, ...]
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One row per pair of cgroups that occurs."""
        return [row.to_json() for row in self.cells]

    def to_json(self) -> dict[str, Any]:
        """The JSON form, schema memdesc-who-cgroups/1."""
        return {"schema": "memdesc-who-cgroups/1", "rows": self.rows(), "notes": list(self.notes)}


def charged_by_mapped(usage: Usage) -> ChargedByMapped:
    """Return bytes by (cgroup that is charged, cgroup of the processes that map them).

    Raises QuestionError where the source does not show charges (kpagecgroup).
    """
    source = usage.map
    if source.cgroups is None:
        raise QuestionError(
            "memory cgroups are not visible in this source",
            hint=source.unseen.get("cgroups", "it has no kpagecgroup"),
        )
    code_of: dict[str, int] = {}
    paths = usage.attribution.processes.cgroup
    of_process = np.array([code_of.setdefault(path, len(code_of)) for path in paths], np.int64)
    group = of_process[usage.process_of_entry]
    piece, mapped = usage.distinct(group, usage.kind_of_entry != 1)
    payers = source.cgroup_inodes.size
    payer_of_piece = np.append(source.cgroups, np.uint32(0))[usage.extent].astype(np.int64)
    width = len(code_of)
    cells = np.bincount(
        payer_of_piece[piece] * width + mapped,
        weights=usage.nr_pages[piece],
        minlength=payers * width,
    ).reshape(payers, width)
    charged = np.bincount(source.cgroups, weights=source.nr_pages, minlength=payers)
    reached = np.bincount(payer_of_piece, weights=usage.nr_pages, minlength=payers)
    names = list(code_of)
    rows = [
        _charged(source, payer, names[column], int(cells[payer, column]))
        for payer, column in zip(*np.nonzero(cells), strict=True)
    ]
    rows += [
        _charged(source, payer, None, int(charged[payer] - reached[payer]))
        for payer in range(1, payers)  # frames charged to nobody are mostly free
        if charged[payer] > reached[payer]
    ]
    rows.sort(key=lambda row: (-row.frames, row.charged, row.mapped_by or ""))
    slab = "slab and other kernel memory charged per object shows no cgroup here"
    return ChargedByMapped(tuple(rows), (*notes_of(usage), slab))


def _charged(source: MemoryMap, payer: int, mapped_by: str | None, frames: int) -> ChargedRow:
    inode = int(source.cgroup_inodes[payer])
    name = source.machine.cgroups.get(inode, f"inode {inode} (name not visible)") if inode else ""
    return ChargedRow(name, inode, mapped_by, frames)


# --- helpers -----------------------------------------------------------------------------


def _distinct_pairs(
    first: NDArray[np.int64], second: NDArray[np.uint32], groups: int
) -> NDArray[np.int64]:
    """How many different values of `second` each value of `first` comes with."""
    key = first << 32 | second.astype(np.int64)
    key.sort()
    if key.size:
        key = key[np.concatenate([[True], key[1:] != key[:-1]])]
    return np.bincount(key >> 32, minlength=groups)

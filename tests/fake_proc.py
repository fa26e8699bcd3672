"""A tree that looks like /proc/PID for a few processes, written by a test.

Pagemaps are sparse regular files with the entries at their true offset, as a copied tree
has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PRESENT, FILE, EXCLUSIVE, SWAP, GUARD = 1 << 63, 1 << 61, 1 << 56, 1 << 62, 1 << 58


@dataclass(frozen=True)
class Area:
    """A VMA: first virtual page, and an entry of pagemap for each of its pages."""

    page: int
    entries: Sequence[int]
    name: str = ""
    perms: str = "rw-p"
    offset: int = 0
    inode: int = 0

    @property
    def line(self) -> str:
        start, end = self.page << 12, (self.page + len(self.entries)) << 12
        head = f"{start:x}-{end:x} {self.perms} {self.offset:08x} fe:01 {self.inode} "
        return f"{head:<73}{self.name}\n" if self.name else f"{head}\n"


def present(*frames: int, file: bool = False) -> list[int]:
    """Entries of present pages with these frames."""
    return [PRESENT | (FILE if file else 0) | frame for frame in frames]


def add_process(
    root: Path,
    pid: int,
    areas: Sequence[Area],
    *,
    comm: str = "fake",
    cgroup: str = "/web",
    maps: str | None = None,
    status: str | None = None,
    pages: int | None = None,
) -> Path:
    """Write the files of one process; `maps` replaces the text, `pages` cuts pagemap."""
    folder = root / f"proc/{pid}"
    folder.mkdir(parents=True)
    (folder / "maps").write_text(
        "".join(area.line for area in areas) if maps is None else maps, "utf-8"
    )
    default = f"Name:\t{comm}\nState:\tS (sleeping)\nPPid:\t1\nUid:\t1000\t1000\t1000\t1000\n"
    (folder / "status").write_text(default if status is None else status, "utf-8")
    (folder / "cgroup").write_text(f"3:memory:{cgroup}\n0::/unified\n", "utf-8")
    with (folder / "pagemap").open("wb") as file:
        for area in areas:
            file.seek(area.page * 8)
            file.write(np.array(area.entries, np.uint64).tobytes())
        if pages is not None:
            file.truncate(pages * 8)
    return folder

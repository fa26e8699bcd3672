"""Dumps of real kernels for the tests: given in MEMDESC_DUMPS, else recorded in QEMU.

MEMDESC_DUMPS is a folder with one folder for each series (6.1, 6.12, 7.2), which holds
vmcore.elf, vmcore.kdump, vmlinux, kallsyms and tree/. MEMDESC_DWARF is a folder under which
each series has a vmlinux with DWARF somewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from memdesc.sources.dump_processes import attribution_of
from memdesc.sources.processes import read_processes
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap


@dataclass(frozen=True)
class RealDump:
    """One moment of one kernel; a file that was not made is a path that does not exist."""

    release: str
    elf: Path
    kdump: Path
    vmlinux: Path
    kallsyms: Path
    debug: Path | None
    """A vmlinux with DWARF."""


def real_dump(request: pytest.FixtureRequest, series: str) -> RealDump:
    """The dump of a series ("6.12"); skips where there is none and none can be made."""
    given = os.environ.get("MEMDESC_DUMPS")
    if given:
        folder = Path(given) / series
        if not folder.is_dir():
            pytest.skip(f"MEMDESC_DUMPS has no folder {series}")
        elf, kdump = folder / "vmcore.elf", folder / "vmcore.kdump"
    else:
        recorded: Callable[[str], object] = request.getfixturevalue("recorded")
        folder = getattr(recorded(series), "folder")  # noqa: B009
        elf, kdump = folder / "vmcore", folder / "vmcore.kdump"
    release = (folder / "tree/proc/sys/kernel/osrelease").read_text().strip()
    return RealDump(
        release, elf, kdump, folder / "vmlinux", folder / "kallsyms", _debug(series, release)
    )


def writers_of(tree: Path) -> frozenset[int]:
    """Processes that changed while the copy was written: its writer, and what that is a fork of.

    Memory that they share is copied at the next write.
    """
    folders = (tree / "proc").glob("[0-9]*")
    return frozenset(
        int(path.name)
        for path in folders
        if path.name == "1" or (path / "comm").read_text() == "recorder\n"
    )


def frames_of_writers(
    kernel: Kernel, memmap: MemMap, tree: Path, pfn_end: int
) -> NDArray[np.bool_]:
    """bool[pfn_end]: mapped, before or after, by who changed while the copy was written."""
    found = np.zeros(pfn_end, np.bool_)
    for mapped in (read_processes(tree), attribution_of(kernel, memmap)):
        owners = mapped.processes.pid[mapped.process_of_mapping]
        for row in np.flatnonzero(np.isin(owners, sorted(writers_of(tree)))):
            pfn = int(mapped.mappings.pfn_start[row])
            found[pfn : pfn + int(mapped.mappings.nr_pages[row])] = True
    return found


def _debug(series: str, release: str) -> Path | None:
    places = [Path("/usr/lib/debug/boot") / f"vmlinux-{release}"]
    places.append(Path("/usr/lib/debug/lib/modules") / release / "vmlinux")
    if given := os.environ.get("MEMDESC_DWARF"):
        places.extend(sorted((Path(given) / series).rglob("vmlinux*")))
    return next((place for place in places if place.is_file()), None)

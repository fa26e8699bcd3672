"""Copy what /proc and /sys say about memory, disturbing it as little as possible.

Everything is read into one arena that was allocated and touched beforehand, and the whole
pass is made twice: the first warms every buffer on the way, only the second is kept.  The page
files come last, so that a memory dump made right after the pass shows the same moment.
"""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

ARENA = 16 << 20

PAGE_FILES = ("kpageflags", "kpagecount", "kpagecgroup")
AROUND = ("meminfo", "vmstat", "zoneinfo")  # read before and after the page files
PROC_FILES = (
    "buddyinfo", "pagetypeinfo", "slabinfo", "iomem", "vmallocinfo", "cmdline", "version", "swaps",
    "stat", "uptime", "filesystems", "modules", "cgroups", "mounts", "partitions",
    "sys/kernel/osrelease", "sys/kernel/hostname",
)  # fmt: skip
PROCESS_FILES = ("maps", "smaps", "smaps_rollup", "status", "stat", "comm", "cmdline", "cgroup")
SYS_PATTERNS = (
    "devices/system/memory/block_size_bytes",
    "devices/system/memory/memory*/state",
    "devices/system/memory/memory*/removable",
    "devices/system/memory/memory*/valid_zones",
    "devices/system/memory/memory*/phys_index",
    "devices/system/node/node*/meminfo",
    "devices/system/node/node*/vmstat",
    "devices/system/node/node*/numastat",
    "devices/system/node/node*/cpulist",
    "devices/system/node/node*/hugepages/*/*",
    "devices/system/node/node*/memory_failure/*",
    "kernel/mm/transparent_hugepage/*",
    "kernel/mm/transparent_hugepage/hugepages-*/enabled",
    "kernel/mm/transparent_hugepage/hugepages-*/stats/*",
    "kernel/mm/transparent_hugepage/khugepaged/*",
    "kernel/mm/ksm/*",
    "kernel/mm/hugepages/*/*",
    "kernel/mm/lru_gen/enabled",
    "kernel/slab/*/order",
    "kernel/slab/*/objs_per_slab",
    "kernel/slab/*/object_size",
    "kernel/slab/*/slab_size",
    "kernel/slab/*/objects",
    "kernel/slab/*/slabs",
    "kernel/slab/*/aliases",
    "block/zram0/mm_stat",
    "block/zram0/disksize",
)
_VSYSCALL = 0xFFFF_FFFF_FF60_0000


class Arena:
    """Named pieces of data in one block of memory that does not move."""

    def __init__(self) -> None:
        self.memory = bytearray(ARENA)
        self.view = memoryview(self.memory)
        self.clear()

    def clear(self) -> None:
        """Forget all pieces."""
        self.used = 0
        self.pieces: list[tuple[str, int, int]] = []

    def _align(self) -> int:
        """Go on at a multiple of 8: the page files take only whole words."""
        self.used = -(-self.used // 8) * 8
        return self.used

    def read(self, name: str, path: str, piece: int = 64 << 10) -> None:
        """Read a whole file; one that cannot be read is left out.

        /proc/sys allocates as much as is asked for, so ask for little.
        """
        start = self._align()
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            return
        try:
            while count := os.readv(fd, [self.view[self.used : self.used + piece]]):
                self.used += count
        except OSError:
            self.used = start
            return
        finally:
            os.close(fd)
        self.pieces.append((name, start, self.used - start))

    def pagemap(self, name: str, path: str, ranges: list[tuple[int, int]]) -> None:
        """Read the entries of some address ranges, each preceded by its first page and count."""
        start = self._align()
        fd = os.open(path, os.O_RDONLY)
        for first, last in ranges:
            struct.pack_into("<QQ", self.memory, self.used, first // 4096, (last - first) // 4096)
            self.used += 16
            end = self.used + (last - first) // 4096 * 8
            position = first // 4096 * 8
            while self.used < end and (
                count := os.preadv(fd, [self.view[self.used : end]], position)
            ):
                self.used += count
                position += count
            self.used = end
        os.close(fd)
        self.pieces.append((name, start, self.used - start))

    def write_to(self, archive: tarfile.TarFile) -> None:
        """Write every piece as a member of an archive."""
        for name, start, length in self.pieces:
            add(archive, name, bytes(self.view[start : start + length]))


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add one member to an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def processes() -> list[str]:
    """Ids of all processes that have an address space."""
    folders = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
    return sorted((path.name for path in folders if (path / "maps").read_bytes()), key=int)


def mapped_ranges(maps: bytes) -> list[tuple[int, int]]:
    """The address ranges of a maps file that pagemap covers."""
    bounds = (line.split(b" ", 1)[0].split(b"-") for line in maps.splitlines())
    ranges = [(int(first, 16), int(last, 16)) for first, last in bounds]
    return [(first, last) for first, last in ranges if first < _VSYSCALL]


def capture(arena: Arena) -> None:
    """One pass over everything."""
    arena.clear()
    for pattern in SYS_PATTERNS:
        for path in sorted(Path("/sys").glob(pattern)):
            if path.is_file() and path.stat().st_mode & 0o400:
                arena.read(str(path)[1:], str(path))
    for path in sorted(Path("/proc/sys/vm").iterdir()):
        if path.name != "stat_refresh" and path.stat().st_mode & 0o400:
            arena.read(str(path)[1:], str(path))
    pids = processes()
    ranges = {pid: mapped_ranges(Path(f"/proc/{pid}/maps").read_bytes()) for pid in pids}
    for pid in pids:
        for name in PROCESS_FILES:
            arena.read(f"proc/{pid}/{name}", f"/proc/{pid}/{name}")
    for name in AROUND:
        arena.read(f"proc/{name}.before", f"/proc/{name}")
    for name in PROC_FILES:
        arena.read(f"proc/{name}", f"/proc/{name}")
    for pid in pids:
        arena.pagemap(f"proc/{pid}/pagemap", f"/proc/{pid}/pagemap", ranges[pid])
    for name in PAGE_FILES:
        arena.read(f"proc/{name}", f"/proc/{name}", piece=4 << 20)
    for name in AROUND:
        arena.read(f"proc/{name}", f"/proc/{name}")


def cgroups() -> str:
    """Inode and path of every cgroup: kpagecgroup holds the inodes."""
    root = Path("/sys/fs/cgroup")
    folders = [root, *sorted(path for path in root.rglob("*") if path.is_dir())]
    return "".join(
        f"{path.stat().st_ino}\t/{path.relative_to(root).as_posix().lstrip('.')}\n"
        for path in folders
    )


def cgroup_files(archive: tarfile.TarFile) -> None:
    """Memory accounts of every cgroup."""
    root = Path("/sys/fs/cgroup")
    for path in sorted(root.rglob("memory.*")):
        if path.name in ("memory.current", "memory.stat", "memory.swap.current"):
            add(archive, str(path)[1:], path.read_bytes())


def deliver(arena: Arena, notes: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Write the recording, and the kernel's symbols, as a tar archive."""
    with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        arena.write_to(archive)
        cgroup_files(archive)
        add(archive, "cgroups.tsv", cgroups().encode())
        add(archive, "kallsyms", Path("/proc/kallsyms").read_bytes())
        for name, content in notes.items():
            add(archive, name, json.dumps(content, indent=1).encode())

"""The text files beside the page files: who made this memory, and how much does it count?

Every parser takes the file's text and is total: a line that it does not understand is
left out, because kernels add lines.  `read_machine` reads them all below a root, so a
copied tree of /proc works as well as the live one.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from memdesc.errors import FormatError
from memdesc.kernels.release import UNKNOWN_RELEASE, KernelRelease
from memdesc.map.machine import Counters, IomemRange, Machine, SlabCache, Zone
from memdesc.types import PAGE_SHIFT

__all__ = [
    "parse_buddyinfo",
    "parse_iomem",
    "parse_meminfo",
    "parse_pagetypeinfo",
    "parse_slabinfo",
    "parse_vmstat",
    "parse_zoneinfo",
    "read_counters",
    "read_machine",
]


def read_machine(root: Path, *, release: str | None = None) -> Machine:
    """Read everything but the page files below `root` (which holds `proc/` and `sys/`).

    `release` overrides what /proc/sys/kernel/osrelease says. Files that cannot be read end
    up in `Machine.unseen`; nothing here raises for a missing file.
    Raises FormatError only for a `release` that is none.
    """
    reader = _Reader(root)
    text = release if release is not None else reader.text("proc/sys/kernel/osrelease").strip()
    try:
        parsed = KernelRelease.parse(text) if text else UNKNOWN_RELEASE
    except FormatError:
        if release is not None:
            raise
        parsed = UNKNOWN_RELEASE
    iomem = parse_iomem(reader.text("proc/iomem"))
    if not iomem and "/proc/iomem" not in reader.unseen:
        reader.unseen["/proc/iomem"] = "addresses are shown as 0 without CAP_SYS_ADMIN"
    ksm = reader.text("sys/kernel/mm/ksm/pages_shared").strip()
    cmdline = reader.text("proc/cmdline").strip()
    zoneinfo = reader.text("proc/zoneinfo")
    boot = re.search(r"(?m)^btime ([0-9]{1,12})$", reader.text("proc/stat"))
    return Machine(
        release=parsed,
        hostname=reader.text("proc/sys/kernel/hostname").strip(),
        time_unix_s=time.time(),
        cmdline=cmdline or None,
        zones=parse_zoneinfo(zoneinfo),
        iomem=iomem,
        before=_counters(reader),
        buddyinfo=parse_buddyinfo(reader.text("proc/buddyinfo")),
        pagetypeinfo=parse_pagetypeinfo(reader.text("proc/pagetypeinfo")),
        slabinfo=parse_slabinfo(reader.text("proc/slabinfo")),
        cgroups=_read_cgroups(root, reader),
        offline=_offline_blocks(root),
        boot_time_unix_s=int(boot[1]) if boot else None,
        ksm_pages_shared=int(ksm) if re.fullmatch(r"[0-9]{1,18}", ksm) else None,
        sysctls=_sysctls(root),
        nr_cpus=len(set(re.findall(r"(?m)^\s+cpu: ([0-9]{1,20})$", zoneinfo))) or 1,
        unseen=reader.unseen,
    )


_SYSCTLS = (
    "vm.memory_failure_early_kill",
    "vm.memory_failure_recovery",
    "vm.enable_soft_offline",
    "vm.compact_unevictable_allowed",
    "vm.compaction_proactiveness",
    "vm.hugetlb_optimize_vmemmap",
)
"""Settings that change answers (`memdesc.rules`). One that this kernel lacks is no loss."""


def _sysctls(root: Path) -> dict[str, int]:
    found = {}
    for name in _SYSCTLS:
        try:
            text = (root / "proc/sys" / name.replace(".", "/")).read_text("ascii", "replace")
        except OSError:
            continue
        if re.fullmatch(r"[0-9]{1,18}", text.strip()):
            found[name] = int(text)
    return found


def read_counters(root: Path) -> Counters:
    """Read meminfo and vmstat once more, after a scan."""
    return _counters(_Reader(root))


_MEMINFO = re.compile(r"^([A-Za-z0-9_()]+):\s+([0-9]{1,20})( kB)?\s*$", re.MULTILINE)


def parse_meminfo(text: str) -> dict[str, int]:
    """Counters of /proc/meminfo: sizes in bytes, HugePages_* in huge pages."""
    return {
        name: int(value) * (1024 if unit else 1) for name, value, unit in _MEMINFO.findall(text)
    }


def parse_vmstat(text: str) -> dict[str, int]:
    """Counters of /proc/vmstat in the kernel's own units (mostly frames)."""
    return {name: int(value) for name, value in _VMSTAT.findall(text)}


_VMSTAT = re.compile(r"^([a-z0-9_]+) ([0-9]{1,20})$", re.MULTILINE)
_ZONE = re.compile(r"Node ([0-9]{1,20}), zone\s+(\S+)")


def parse_zoneinfo(text: str) -> tuple[Zone, ...]:
    """Zones with at least one present frame, in the file's order."""
    zones: list[Zone] = []
    for block in re.split(r"(?m)^(?=Node \d+, zone)", text):
        head = _ZONE.match(block)
        if head is None:
            continue
        values = {
            key: int(value)
            for key, value in re.findall(
                r"(?m)^\s+(min|low|spanned|present|managed|start_pfn:)\s+([0-9]{1,20})$", block
            )
        }
        free = re.search(r"(?m)^\s+pages free\s+([0-9]{1,20})$", block)
        kept = re.search(r"(?m)^\s+protection: \(([0-9, ]{1,200})\)$", block)
        if not values.get("present") or "start_pfn:" not in values:
            continue
        zones.append(
            Zone(
                node=int(head[1]),
                name=head[2],
                pfn_start=values["start_pfn:"],
                spanned=values.get("spanned", values["present"]),
                present=values["present"],
                managed=values.get("managed", 0),
                free=int(free[1]) if free else 0,
                pcp=sum(int(n) for n in re.findall(r"(?m)^\s+count:\s+([0-9]{1,20})$", block)),
                wmark_min=values.get("min", 0),
                wmark_low=values.get("low", 0),
                reserve=max((int(n) for n in kept[1].split(",")), default=0) if kept else 0,
            )
        )
    return tuple(zones)


_IOMEM = re.compile(r"^( *)([0-9a-f]{1,16})-([0-9a-f]{1,16}) : (.*)$")


def parse_iomem(text: str) -> tuple[IomemRange, ...]:
    """Top-level ranges, and System RAM at any depth (virtio-mem, device memory used as RAM).

    Empty where the kernel hides the addresses (all zero).
    """
    ranges: list[IomemRange] = []
    for line in text.splitlines():
        found = _IOMEM.match(line)
        if found is None:
            continue
        start, end = int(found[2], 16), int(found[3], 16) + 1
        if end > 1 and (not found[1] or found[4].startswith("System RAM")):
            ranges.append(IomemRange(start, end, found[4]))
    return tuple(ranges)


def parse_buddyinfo(text: str) -> tuple[tuple[int, str, tuple[int, ...]], ...]:
    """(node, zone, free blocks per order) per line."""
    rows: list[tuple[int, str, tuple[int, ...]]] = []
    for line in text.splitlines():
        found = re.match(r"Node ([0-9]{1,20}), zone\s+(\S+)\s", line)
        counts = _counts(line[found.end() :]) if found else ()
        if found and counts:
            rows.append((int(found[1]), found[2], counts))
    return tuple(rows)


def parse_pagetypeinfo(text: str) -> tuple[tuple[int, str, str, tuple[int, ...]], ...]:
    """(node, zone, migratetype, free blocks per order); ">100000" is read as 100000."""
    rows: list[tuple[int, str, str, tuple[int, ...]]] = []
    for line in text.splitlines():
        found = re.match(r"Node\s+([0-9]{1,20}), zone\s+(\S+), type\s+(\S+)\s", line)
        counts = _counts(line[found.end() :]) if found else ()
        if found and counts:
            rows.append((int(found[1]), found[2], found[3], counts))
    return tuple(rows)


def parse_slabinfo(text: str) -> tuple[SlabCache, ...]:
    """Caches of /proc/slabinfo version 2.1."""
    caches: list[SlabCache] = []
    for line in text.splitlines():
        name, *words = line.partition(" : ")[0].split() or [""]
        sizes = _counts(" ".join(words))
        slabs = _counts(line.partition(" : slabdata")[2])
        if len(sizes) == 5 and len(slabs) >= 2:
            active, objects, size_bytes, _per_slab, pages = sizes
            caches.append(SlabCache(name, active, objects, size_bytes, pages, slabs[1]))
    return tuple(caches)


# --- helpers -----------------------------------------------------------------------------


def _counts(text: str) -> tuple[int, ...]:
    """The numbers in `text`; empty when anything else is in it."""
    words = [word.lstrip(">") for word in text.split()]
    if not all(word.isascii() and word.isdecimal() and len(word) <= 20 for word in words):
        return ()
    return tuple(int(word) for word in words)


class _Reader:
    """Reads small text files below a root and remembers what could not be read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.unseen: dict[str, str] = {}

    def text(self, name: str) -> str:
        try:
            return (self.root / name).read_text("utf-8", "replace")
        except OSError as error:
            self.unseen[f"/{name}"] = error.strerror or type(error).__name__
            return ""


def _counters(reader: _Reader) -> Counters:
    """meminfo, with vmstat from before or after it, whichever has more free frames.

    Free memory that moves between the two reads must not look like memory that only one of
    them counts (`memdesc.map.regions`: uninitialised memmap).
    """
    first = parse_vmstat(reader.text("proc/vmstat"))
    meminfo = parse_meminfo(reader.text("proc/meminfo"))
    last = parse_vmstat(reader.text("proc/vmstat"))
    return Counters(meminfo, max(first, last, key=lambda v: v.get("nr_free_pages", 0)))


def _offline_blocks(root: Path) -> tuple[tuple[int, int], ...]:
    """Frames of memory blocks that are not online; none where sysfs does not say."""
    folder = root / "sys/devices/system/memory"
    size = _sysfs(folder / "block_size_bytes")
    if not re.fullmatch(r"[0-9a-f]{1,12}", size):
        return ()
    pages = int(size, 16) >> PAGE_SHIFT
    offline: list[tuple[int, int]] = []
    for block in folder.glob("memory[0-9]*"):
        number = block.name.removeprefix("memory")
        if re.fullmatch(r"[0-9]{1,9}", number) and _sysfs(block / "state") == "offline":
            offline.append((int(number) * pages, (int(number) + 1) * pages))
    return tuple(sorted(offline))


def _sysfs(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _read_cgroups(root: Path, reader: _Reader) -> dict[int, str]:
    """Inode -> path of every memory cgroup; a copied tree lists them in cgroups.tsv."""
    listing = root / "cgroups.tsv"
    if listing.is_file():
        pairs = (line.split("\t", 1) for line in reader.text("cgroups.tsv").splitlines())
        return {
            int(p[0]): p[1] for p in pairs if len(p) == 2 and re.fullmatch(r"[0-9]{1,19}", p[0])
        }
    names: dict[int, str] = {}
    for top in _cgroup_tops(root):
        for folder, children, _files in os.walk(top, onerror=None):
            try:
                inode = Path(folder).stat().st_ino
            except OSError:
                continue
            names[inode] = folder[len(str(top)) :] or "/"
            children.sort()
    if not names:
        reader.unseen["/sys/fs/cgroup"] = "no memory cgroup hierarchy is mounted here"
    return names


def _cgroup_tops(root: Path) -> list[Path]:
    """Where the memory controller is mounted: v1's own folder, else the v2 root."""
    base = root / "sys/fs/cgroup"
    if (base / "memory").is_dir():
        return [base / "memory"]
    if (base / "cgroup.controllers").is_file():
        return [base]
    unified = base / "unified"
    return [unified] if unified.is_dir() else []

"""The system as scenarios expect it, and the steps that change it.

Only a guest is changed: in `System`, everything that writes to /proc/sys, /sys or a device asks
first.  Elsewhere a setting that already is as a scenario wants it is fine, any other refuses.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from . import calls, hotplug, mounts
from .access import PAGE
from .disk import load_modules
from .khugepaged import FOLDER as _KHUGEPAGED
from .khugepaged import Khugepaged
from .swap import Group, SwapDevice
from .verbs import RefusedError, inside_guest

__all__ = ["DEFAULTS", "FILES", "VERBS", "System", "changes_huge", "vmstat"]

_THP = "/sys/kernel/mm/transparent_hugepage/"
_KSM = "/sys/kernel/mm/ksm/"
_MADV_MERGEABLE = 12
_SHM = "/dev/shm"  # noqa: S108 - a tmpfs that everybody has; files go into a folder of our own
_DEBUG = "/sys/kernel/debug"

FILES = {
    "thp": _THP + "enabled",
    "thp_defrag": _THP + "defrag",
    "thp_zero": _THP + "use_zero_page",
    "thp_shmem": _THP + "shmem_enabled",
    "thp_shmem_64k": _THP + "hugepages-64kB/shmem_enabled",
    "thp_shmem_2m": _THP + "hugepages-2048kB/shmem_enabled",
    "tmpfs_huge": mounts.TMPFS,
    "thp_2m": _THP + "hugepages-2048kB/enabled",
    "thp_16k": _THP + "hugepages-16kB/enabled",
    "thp_64k": _THP + "hugepages-64kB/enabled",
    "max_ptes_none": _KHUGEPAGED + "max_ptes_none",
    "max_ptes_shared": _KHUGEPAGED + "max_ptes_shared",
    "max_ptes_swap": _KHUGEPAGED + "max_ptes_swap",
    "hugepages": "/proc/sys/vm/nr_hugepages",
    "hugepages_overcommit": "/proc/sys/vm/nr_overcommit_hugepages",
    "movable": hotplug.STATES,
    "fault_around": _DEBUG + "/fault_around_bytes",
    "read_ahead": "/sys/block/*/queue/read_ahead_kb",
    "lru_gen": "/sys/kernel/mm/lru_gen/enabled",
    "swappiness": "/proc/sys/vm/swappiness",
    "page_cluster": "/proc/sys/vm/page-cluster",
    "overcommit": "/proc/sys/vm/overcommit_memory",
    "commit_room": "/proc/sys/vm/overcommit_kbytes",
    "max_map_count": "/proc/sys/vm/max_map_count",
    "ksm_max_sharing": _KSM + "max_page_sharing",
    "ksm_zero_pages": _KSM + "use_zero_pages",
    "ksm_smart_scan": _KSM + "smart_scan",
    "ksm_prune": _KSM + "stable_node_chains_prune_millisecs",
    "ksm_across_nodes": _KSM + "merge_across_nodes",
    "ksm_advisor": _KSM + "advisor_mode",
    "ksm_pages_to_scan": _KSM + "pages_to_scan",
    "dirty_writeback": "/proc/sys/vm/dirty_writeback_centisecs",
    "khugepaged_sleep": _KHUGEPAGED + "scan_sleep_millisecs",
    "khugepaged_pages": _KHUGEPAGED + "pages_to_scan",
    "khugepaged_alloc_sleep": _KHUGEPAGED + "alloc_sleep_millisecs",
    "compaction_proactiveness": "/proc/sys/vm/compaction_proactiveness",
    "laptop_mode": "/proc/sys/vm/laptop_mode",
    "damon_stat": "/sys/module/damon_stat/parameters/enabled",
}
"""Settings by name; what a pattern matches is set all alike."""

DEFAULTS = {
    "thp": "never",
    "thp_defrag": "madvise",
    "thp_zero": "1",
    "thp_shmem": "never",
    "lru_gen": "0",
    "fault_around": "4096",
    "read_ahead": "0",
    "dirty_writeback": "0",
    "khugepaged_sleep": "4000000",
    # It also looks when it starts: then it shall not come far.
    "khugepaged_pages": "1",
    # Where no huge page is free it would sleep for a minute, in the middle of a pass.
    "khugepaged_alloc_sleep": "0",
    "compaction_proactiveness": "0",
    # It clears accessed bits of pages here and there, since 6.17.
    "damon_stat": "N",
    "page_cluster": "0",
    "ksm_smart_scan": "0",
    "ksm_zero_pages": "0",
    "ksm_max_sharing": "256",
    "ksm_prune": "4000000",
}
"""What is set before a scenario in a guest, so that nothing happens by itself (`docs`)."""

VERBS = ("knob", "ksm", "khugepaged", "swap", "shrink", "sync", "dropcaches", *mounts.VERBS)
"""Steps of the whole system."""

_SWAP_PAGES = (64 << 20) // PAGE - 1
_PATIENCE = 20.0


def changes_huge(verb: str, args: dict[str, Any]) -> bool:
    """Whether khugepaged may run after a step."""
    return verb == "khugepaged" or (verb == "knob" and args["name"].startswith("thp"))


class System:
    """The machine during one scenario: where files lie, settings, swap.

    `images` are file systems for guests, by name (`mounts`); `disk` lets them lie on devices that
    can fail. `modules` are loaded first. `huge`: huge pages will be allowed (`changes_huge`).
    """

    def __init__(
        self,
        images: dict[str, Any] | None = None,
        disk: bool = False,
        modules: Sequence[str] = (),
        huge: bool = False,
    ) -> None:
        self._is_guest = inside_guest()
        self._images = images or {}
        self._disk = disk
        self._modules = list(modules)
        self._huge = huge
        self._khugepaged: Khugepaged | None = None
        self._mounts: mounts.Mounts | None = None
        self._own: str | None = None
        self._swap: SwapDevice | None = None
        self.group: Group | None = None
        """Of the processes, where a scenario shrinks it."""
        self.folders: dict[str, str] = {}
        """Name of a file system -> folder for a scenario's files."""
        self._began: dict[str, int] = {}
        self._began_sizes: dict[str, int] = {}
        self._ksm_sleep = 10_000_000
        self._ksm_place = 0

    def __enter__(self) -> Self:
        if self._is_guest:
            self._prepare_guest()
        else:
            self._prepare_here()
        self._began = vmstat()
        self._began_sizes = _size_counters()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_guest:
            for folder in self.folders.values():
                shutil.rmtree(folder, ignore_errors=True)

    def do(self, verb: str, args: dict[str, Any]) -> None:
        """One of `VERBS`."""
        if verb == "knob":
            self.set(args["name"], args["value"])
        elif verb == "ksm":
            self._ksm(args["action"], int(args["value"]))
        elif verb == "khugepaged":
            self._scan(int(args["passes"]))
        elif verb == "swap":
            self._set_swap(args)
        elif verb == "shrink":
            assert self.group is not None
            self.group.shrink()
        elif verb == "sync":
            self._only_guest("sync")
            os.sync()
        elif verb == "dropcaches":
            self._only_guest("dropcaches")
            _write("/proc/sys/vm/drop_caches", str(args["value"]))
        elif verb in mounts.VERBS:
            self._only_guest(verb)
            assert self._mounts is not None
            self._mounts.do(verb, args)

    def set(self, name: str, value: str) -> None:
        """A setting by name; outside a guest it must be so already. Raises RefusedError."""
        if name == "movable":
            self._only_guest(f"knob {name}")
            hotplug.online_movable(int(value))
            return
        if name == "tmpfs_huge":
            self._only_guest(f"knob {name}")
            mounts.remount_tmpfs(f"huge={value}")
            return
        if name == "commit_room":
            self._set_commit_room(int(value))
            return
        paths = _files_of(name)
        if not paths:
            raise RefusedError(f"this kernel has no {FILES[name]} (knob {name})")
        for path in paths:
            if _is_set(path, value):
                continue
            if not self._is_guest:
                raise RefusedError(f"needs knob {name} {value}, which is only set in guests")
            _write(path, value)
        if self._khugepaged is not None and name.startswith("thp"):
            self._khugepaged.settle()

    def _set_commit_room(self, pages: int) -> None:
        """CommitLimit so far above Committed_AS. What the system keeps for root and for the last
        of a process's memory (admin_reserve_kbytes, user_reserve_kbytes) is left out."""
        self._only_guest("knob commit_room")
        for name in ("admin_reserve_kbytes", "user_reserve_kbytes"):
            _write(f"/proc/sys/vm/{name}", "0")
        sizes = _meminfo()
        kbytes = sizes["Committed_AS"] - sizes["SwapTotal"] + pages * PAGE // 1024
        _write(FILES["commit_room"], str(kbytes))
        # Adds up what single CPUs have counted (`mm/util.c:overcommit_policy_handler`).
        if Path(FILES["overcommit"]).read_text().strip() == "2":
            _write(FILES["overcommit"], "2")

    def counters(self, names: list[str]) -> dict[str, int]:
        """Counters: ksm.NAME, meminfo.NAME; vmstat.NAME and thp.SIZE.NAME since the scenario
        began."""
        found: dict[str, int] = {}
        sizes = _size_counters() if any(name.startswith("thp.") for name in names) else {}
        events = vmstat() if any(name.startswith("vmstat.") for name in names) else {}
        for name in names:
            kind, _, rest = name.partition(".")
            if kind == "ksm":
                found[name] = int(Path(_KSM + rest).read_text())
            elif kind == "vmstat" and rest in events:
                found[name] = events[rest] - self._began.get(rest, 0)
            elif kind == "thp" and rest in sizes:
                found[name] = sizes[rest] - self._began_sizes.get(rest, 0)
            elif kind == "meminfo":
                values = _meminfo()
                if rest in values:
                    found[name] = values[rest]
        return found

    def log(self, text: str) -> None:
        """Say something in a guest's console, loud enough to be shown there."""
        if self._is_guest:
            _write("/dev/kmsg", f"<3>{text}")

    def make_group(self) -> None:
        """Processes that join it can be made to give their memory up."""
        self._only_guest("shrink")
        self.group = Group()

    # --- helpers -------------------------------------------------------------------------

    def _prepare_guest(self) -> None:
        if not Path(_DEBUG, "fault_around_bytes").exists():
            mounts.mount("debugfs", _DEBUG, "debugfs")
        for name, value in DEFAULTS.items():
            if _files_of(name):
                self.set(name, value)
        load_modules(self._modules)
        if self._huge:
            self._khugepaged = Khugepaged()
        self._mounts = mounts.Mounts(self._images, fails=self._disk)
        self.folders |= self._mounts.folders

    def _prepare_here(self) -> None:
        for where, place in (("tmpfs", _SHM), ("ext4", str(Path.home()))):
            if _file_system(place) == where:
                self.folders[where] = tempfile.mkdtemp(prefix=".memdesc-", dir=place) + "/"

    def _only_guest(self, what: str) -> None:
        if not self._is_guest:
            raise RefusedError(f"`{what}` changes the whole system: only in a guest")

    def _ksm(self, action: str, value: int) -> None:
        self._only_guest("ksm")
        if action == "run":
            _write(_KSM + "run", str(value))
            return
        if not self._ksm_place:
            # While no process has mergeable memory ksmd finishes no pass: this one has, untouched.
            self._ksm_place = calls.mmap(PAGE)
            calls.madvise(self._ksm_place, PAGE, _MADV_MERGEABLE)
        # One call of ksm_do_scan with room for all pages is one pass; changing the time to sleep
        # wakes ksmd for the next (mm/ksm.c:ksm_thread).
        _write(_KSM + "pages_to_scan", "10000000")
        for _ in range(value):
            before = _number(_KSM + "full_scans")
            # A new time each time: ksmd may sleep since the step before.
            self._ksm_sleep -= 1
            _write(_KSM + "sleep_millisecs", str(self._ksm_sleep))
            if _number(_KSM + "run") != 1:
                _write(_KSM + "run", "1")
            end = time.monotonic() + _PATIENCE
            while _number(_KSM + "full_scans") == before:
                if time.monotonic() > end:
                    raise TimeoutError("ksmd finishes no pass: has any process mergeable memory?")
                time.sleep(0.001)
        _write(_KSM + "run", "0")

    def _scan(self, passes: int) -> None:
        self._only_guest("khugepaged")
        assert self._khugepaged is not None
        self._khugepaged.scan(passes)

    def _set_swap(self, args: dict[str, Any]) -> None:
        self._only_guest("swap")
        if args["state"] == "on":
            self._swap = SwapDevice(args["pages"] or _SWAP_PAGES, mapped=args["mapped"])
            return
        assert self._swap is not None, "swap is not on"
        if args["state"] != "off":
            self._swap.set(args["state"])
            return
        self._swap.off()
        self._swap = None


def _files_of(name: str) -> list[str]:
    pattern = Path(FILES[name])
    if "*" not in FILES[name]:
        return [FILES[name]] if pattern.exists() else []
    return [str(path) for path in Path("/").glob(str(pattern.relative_to("/")))]


def _is_set(path: str, value: str) -> bool:
    """Whether a setting has a value; of several words, the one in brackets counts."""
    text = Path(path).read_text().strip()
    if "[" in text:
        text = text.partition("[")[2].partition("]")[0]
    try:
        return int(text, 0) == int(value, 0)
    except ValueError:
        return text == value


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _number(path: str) -> int:
    return int(Path(path).read_text())


def vmstat() -> dict[str, int]:
    """/proc/vmstat; what single CPUs have counted is added up first."""
    try:
        Path("/proc/sys/vm/stat_refresh").read_text()
    except OSError:
        pass
    lines = Path("/proc/vmstat").read_text().splitlines()
    return {name: int(number) for name, number in (line.split() for line in lines)}


def _meminfo() -> dict[str, int]:
    """/proc/meminfo, in kB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def _size_counters() -> dict[str, int]:
    """What the kernel counts for each size of large folios (6.10), as "64kB.split"."""
    found = {}
    for path in Path(_THP).glob("hugepages-*kB/stats/*"):
        size = path.parent.parent.name.removeprefix("hugepages-")
        found[f"{size}.{path.name}"] = _number(str(path))
    return found


def _file_system(folder: str) -> str:
    """The type of the file system that a folder lies on."""
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, found, *_ = line.split()
        inside = folder == place or folder.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best):
            best, kind = place, found
    return kind

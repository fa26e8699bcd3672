"""The system as scenarios expect it, and the steps that change it.

Only a guest is changed: in `System`, everything that writes to /proc/sys, /sys or a device asks
first.  Elsewhere a setting that already is as a scenario wants it is fine, any other refuses.
"""

from __future__ import annotations

import base64
import os
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from . import calls
from .access import PAGE
from .disk import Disk, load_modules
from .verbs import RefusedError, inside_guest

__all__ = ["DEFAULTS", "FILES", "VERBS", "System", "vmstat"]

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
    "thp_16k": _THP + "hugepages-16kB/enabled",
    "thp_64k": _THP + "hugepages-64kB/enabled",
    "max_ptes_none": _THP + "khugepaged/max_ptes_none",
    "max_ptes_shared": _THP + "khugepaged/max_ptes_shared",
    "max_ptes_swap": _THP + "khugepaged/max_ptes_swap",
    "hugepages": "/proc/sys/vm/nr_hugepages",
    "fault_around": _DEBUG + "/fault_around_bytes",
    "read_ahead": "/sys/block/*/queue/read_ahead_kb",
    "lru_gen": "/sys/kernel/mm/lru_gen/enabled",
    "swappiness": "/proc/sys/vm/swappiness",
    "page_cluster": "/proc/sys/vm/page-cluster",
    "overcommit": "/proc/sys/vm/overcommit_memory",
    "max_map_count": "/proc/sys/vm/max_map_count",
    "ksm_max_sharing": _KSM + "max_page_sharing",
    "ksm_zero_pages": _KSM + "use_zero_pages",
    "ksm_smart_scan": _KSM + "smart_scan",
    "dirty_writeback": "/proc/sys/vm/dirty_writeback_centisecs",
    "khugepaged_sleep": _THP + "khugepaged/scan_sleep_millisecs",
    "khugepaged_pages": _THP + "khugepaged/pages_to_scan",
    "compaction_proactiveness": "/proc/sys/vm/compaction_proactiveness",
    "laptop_mode": "/proc/sys/vm/laptop_mode",
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
    # It also wakes when the first process may have huge pages: then it shall not come far.
    "khugepaged_pages": "1",
    "compaction_proactiveness": "0",
    "page_cluster": "0",
    "ksm_smart_scan": "0",
    "ksm_zero_pages": "0",
    "ksm_max_sharing": "256",
}
"""What is set before a scenario in a guest, so that nothing happens by itself (`docs`)."""

VERBS = ("knob", "ksm", "khugepaged", "swap", "sync", "dropcaches", "disk")
"""Steps of the whole system."""

_ZRAM_BYTES = 48 << 20
_SWAP_BYTES = 64 << 20
_PATIENCE = 20.0
_MS_NOATIME = 1024


class System:
    """The machine during one scenario: where files lie, settings, swap.

    `ext4` is an image for guests: {"bytes": size, "pieces": [[offset, base64 of zlib], ...]};
    `disk` lets it lie on a device that can fail: {"data": [[first byte, bytes], ...]}. `modules`
    are loaded first.
    """

    def __init__(
        self,
        ext4: dict[str, Any] | None = None,
        disk: dict[str, Any] | None = None,
        modules: Sequence[str] = (),
    ) -> None:
        self._is_guest = inside_guest()
        self._ext4 = ext4
        self._disk_request = disk
        self._modules = list(modules)
        self._disk: Disk | None = None
        self._own: str | None = None
        self._swap: str | None = None
        self.folders: dict[str, str] = {}
        """Name of a file system -> folder for a scenario's files."""
        self._began: dict[str, int] = {}
        self._ksm_sleep = 10_000_000
        self._ksm_place = 0

    def __enter__(self) -> Self:
        if self._is_guest:
            self._prepare_guest()
        else:
            self._prepare_here()
        self._began = vmstat()
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
            self._khugepaged(int(args["passes"]))
        elif verb == "swap":
            self._set_swap(args["state"] == "on")
        elif verb == "sync":
            self._only_guest("sync")
            os.sync()
        elif verb == "dropcaches":
            self._only_guest("dropcaches")
            _write("/proc/sys/vm/drop_caches", str(args["value"]))
        elif verb == "disk":
            self._only_guest("disk")
            assert self._disk is not None, "no file lies on a disk"
            self._disk.set_failing(failing=args["state"] == "fail")

    def set(self, name: str, value: str) -> None:
        """A setting by name; outside a guest it must be so already. Raises RefusedError."""
        paths = _files_of(name)
        if not paths:
            raise RefusedError(f"this kernel has no {FILES[name]} (knob {name})")
        for path in paths:
            if _is_set(path, value):
                continue
            if not self._is_guest:
                raise RefusedError(f"needs knob {name} {value}, which is only set in guests")
            _write(path, value)

    def counters(self, names: list[str]) -> dict[str, int]:
        """Counters: ksm.NAME, meminfo.NAME, and vmstat.NAME since the scenario began."""
        found: dict[str, int] = {}
        events = vmstat() if any(name.startswith("vmstat.") for name in names) else {}
        for name in names:
            kind, _, rest = name.partition(".")
            if kind == "ksm":
                found[name] = int(Path(_KSM + rest).read_text())
            elif kind == "vmstat" and rest in events:
                found[name] = events[rest] - self._began.get(rest, 0)
            elif kind == "meminfo":
                lines = Path("/proc/meminfo").read_text().splitlines()
                values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
                if rest in values:
                    found[name] = values[rest]
        return found

    def log(self, text: str) -> None:
        """Say something in a guest's console, loud enough to be shown there."""
        if self._is_guest:
            _write("/dev/kmsg", f"<3>{text}")

    # --- helpers -------------------------------------------------------------------------

    def _prepare_guest(self) -> None:
        if not Path(_DEBUG, "fault_around_bytes").exists():
            _mount("debugfs", _DEBUG, "debugfs")
        for name, value in DEFAULTS.items():
            if _files_of(name):
                self.set(name, value)
        load_modules(self._modules)
        _mount("tmpfs", "/mnt/t", "tmpfs", "size=256m")
        self.folders["tmpfs"] = "/mnt/t/"
        if self._ext4 is not None:
            self._mount_ext4(self._ext4)

    def _prepare_here(self) -> None:
        for where, place in (("tmpfs", _SHM), ("ext4", str(Path.home()))):
            if _file_system(place) == where:
                self.folders[where] = tempfile.mkdtemp(prefix=".memdesc-", dir=place) + "/"

    def _mount_ext4(self, image: dict[str, Any]) -> None:
        """An ext4 on zram, whose writeback is done when it is asked for and not later."""
        device = "/dev/zram0"
        _write("/sys/block/zram0/disksize", str(image["bytes"]))
        with Path(device).open("r+b", buffering=0) as disk:
            for offset, data in image["pieces"]:
                os.pwrite(disk.fileno(), zlib.decompress(base64.b64decode(data)), offset)
            os.fsync(disk.fileno())
        if self._disk_request is not None:
            self._disk = Disk(device, image["bytes"], self._disk_request["data"])
            device = self._disk.path
        self.set("read_ahead", DEFAULTS["read_ahead"])
        _mount(device, "/mnt/e", "ext4", "commit=900,noinit_itable", _MS_NOATIME)
        self.folders["ext4"] = "/mnt/e/"

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

    def _khugepaged(self, passes: int) -> None:
        """One wake with room for all pages ends the pass it is in and makes a whole one
        (`mm/khugepaged.c:khugepaged_do_scan`); a change of the time to sleep wakes it."""
        self._only_guest("khugepaged")
        folder = _THP + "khugepaged/"
        _write(folder + "pages_to_scan", "10000000")
        for _ in range(passes):
            before = scans = _number(folder + "full_scans")
            end = time.monotonic() + _PATIENCE
            woken = changed = 0.0
            while scans == before or time.monotonic() < changed + 0.3:
                now = time.monotonic()
                if now > end:
                    raise TimeoutError("khugepaged finishes no pass: may anybody have huge pages?")
                if scans == before and now > woken + 1:
                    # Again after a while: it forgets a wake that comes just before it sleeps.
                    _write(folder + "scan_sleep_millisecs", "4000000")
                    woken = now
                time.sleep(0.01)
                if _number(folder + "full_scans") != scans:
                    scans, changed = _number(folder + "full_scans"), time.monotonic()
        _write(folder + "pages_to_scan", "1")

    def _set_swap(self, on: bool) -> None:
        self._only_guest("swap")
        if not on:
            assert self._swap is not None, "swap is not on"
            calls.call("swapoff", self._swap.encode())
            self._swap = None
            return
        number = _number("/sys/class/zram-control/hot_add")
        device = f"/dev/zram{number}"
        _write(f"/sys/block/zram{number}/disksize", str(_SWAP_BYTES))
        _make_swap(device, _SWAP_BYTES // PAGE)
        calls.call("swapon", device.encode(), 0)
        self._swap = device


def _mount(source: str, target: str, kind: str, options: str = "", flags: int = 0) -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    calls.call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())


def _make_swap(device: str, pages: int) -> None:
    """A swap header, as mkswap writes it (`include/linux/swap.h:union swap_header`)."""
    header = bytearray(PAGE)
    struct.pack_into("<III", header, 1024, 1, pages - 1, 0)
    header[-10:] = b"SWAPSPACE2"
    with Path(device).open("r+b", buffering=0) as disk:
        disk.write(header)
        os.fsync(disk.fileno())


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


def _file_system(folder: str) -> str:
    """The type of the file system that a folder lies on."""
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, found, *_ = line.split()
        inside = folder == place or folder.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best):
            best, kind = place, found
    return kind

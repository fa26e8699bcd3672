"""The file systems of a scenario in a guest, and what is done to them as a whole.

tmpfs and ramfs are memory.  The others are images on zram, whose reads and writes are done when the
call returns; where a scenario lets the disk fail, a device of device mapper lies between.
"""

from __future__ import annotations

import base64
import fcntl
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import calls
from .access import PAGE
from .disk import Disk

__all__ = ["TMPFS", "VERBS", "Mounts", "mount", "remount_tmpfs", "zram"]

TMPFS = "/mnt/t"
_TMPFS_OPTIONS = "size=256m"

VERBS = ("disk", "filesystem", "fill")

_MS_RDONLY, _MS_REMOUNT, _MS_NOATIME = 1, 32, 1024
_FREEZE, _THAW = 0xC0045877, 0xC0045878
"""FIFREEZE, FITHAW"""
_OPTIONS = {
    "ext4": "commit=900,noinit_itable",
    "xfs": "",
    "vfat": "codepage=437,iocharset=ascii",
}
_READ_AHEAD = "0"
_MIN_RATIO = "30"
"""Of all dirty pages so many per cent may be this device's; one that has written nothing yet would
have no share, and be written back at once (`mm/page-writeback.c:wb_over_bg_thresh`)."""


class Mounts:
    """File systems by name, each in a folder of its own."""

    def __init__(self, images: Mapping[str, Mapping[str, Any]], *, fails: bool) -> None:
        """`images`: {"bytes": size, "pieces": [[offset, base64 of zlib], ...], "data": where files
        come to have their data, as [[first byte, bytes], ...]}. `fails`: their disks may."""
        self.folders: dict[str, str] = {}
        self._disks: list[Disk] = []
        mount("tmpfs", TMPFS, "tmpfs", _TMPFS_OPTIONS)
        mount("ramfs", "/mnt/r", "ramfs")
        self.folders |= {"tmpfs": TMPFS + "/", "ramfs": "/mnt/r/"}
        for where, image in images.items():
            self._mount(where, image, fails)

    def do(self, verb: str, args: Mapping[str, Any]) -> None:
        """One of `VERBS`. Raises OSError."""
        if verb == "disk":
            assert self._disks, "no file lies on a disk"
            for disk in self._disks:
                disk.set(args["state"])
        elif verb == "fill":
            self._fill(self.folders[args["where"]], int(args["pages"]))
        else:
            self._change(self.folders[args["where"]], args["state"])

    # --- helpers -------------------------------------------------------------------------

    def _mount(self, where: str, image: Mapping[str, Any], fails: bool) -> None:
        device = zram(image["bytes"])
        with Path(device).open("r+b", buffering=0) as disk:
            for offset, data in image["pieces"]:
                os.pwrite(disk.fileno(), zlib.decompress(base64.b64decode(data)), offset)
            os.fsync(disk.fileno())
        if fails:
            self._disks.append(Disk(device, image["bytes"], image["data"], where))
            device = self._disks[-1].path
        for path in Path("/sys/block").glob("*/queue/read_ahead_kb"):
            path.write_text(_READ_AHEAD)
        number = Path(device).stat().st_rdev
        bdi = Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}")
        Path(bdi, "min_ratio").write_text(_MIN_RATIO)
        folder = f"/mnt/{where[0]}"
        mount(device, folder, where, _OPTIONS[where], _MS_NOATIME)
        self.folders[where] = folder + "/"

    def _change(self, folder: str, state: str) -> None:
        if state in ("readonly", "writable"):
            flags = _MS_REMOUNT | _MS_NOATIME | (_MS_RDONLY if state == "readonly" else 0)
            calls.call("mount", b"", folder.encode(), b"", flags, None)
            return
        fd = os.open(folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _FREEZE if state == "frozen" else _THAW, 0)
        finally:
            os.close(fd)

    def _fill(self, folder: str, pages: int) -> None:
        """Take blocks until so many are left for anybody, by a file that is not looked at."""
        fd = os.open(folder + "filler", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            size = 0
            while (left := os.statvfs(folder).f_bavail - pages) > 0:
                os.posix_fallocate(fd, size, left * PAGE)
                size += left * PAGE
            os.fsync(fd)
            assert os.statvfs(folder).f_bavail == pages, os.statvfs(folder)
        finally:
            os.close(fd)


def remount_tmpfs(option: str) -> None:
    """Change an option of the tmpfs that scenarios' files lie on."""
    mount("tmpfs", TMPFS, "tmpfs", f"{_TMPFS_OPTIONS},{option}", _MS_REMOUNT)


def mount(source: str, target: str, kind: str, options: str = "", flags: int = 0) -> None:
    """mount(2), on a folder that is made."""
    Path(target).mkdir(parents=True, exist_ok=True)
    calls.call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())


def zram(size: int) -> str:
    """A new device of so many bytes."""
    number = int(Path("/sys/class/zram-control/hot_add").read_text())
    Path(f"/sys/block/zram{number}/disksize").write_text(str(size))
    return f"/dev/zram{number}"

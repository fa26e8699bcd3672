"""The disk below a file system, as one that fails to read and write data, or keeps it waiting.

A device-mapper device lies over zram.  Its table is linear; those parts of it in which files have
their data go by way of a second such device, the gate.  `fail` replaces the gate's table by the
target "error" (`drivers/md/dm-target.c:io_err_map`), so what is read or written there fails with
EIO, and `hold` suspends the gate, so it waits (`drivers/md/dm.c:queue_io`), while the journal and
what describes the files goes on.  None of it writes back or freezes the file system.
"""

from __future__ import annotations

import base64
import fcntl
import os
import struct
import time
import zlib
from ctypes import create_string_buffer
from pathlib import Path

from . import calls

__all__ = ["Disk", "Gate", "Mapped", "load_modules"]

_CONTROL = "/dev/mapper/control"
_VERSION = (4, 0, 0)
_HEADER = struct.Struct("<3I2IIiII4xQ128s129s7x")
"""include/uapi/linux/dm-ioctl.h:struct dm_ioctl"""
_TARGET = struct.Struct("<QQiI16s")
"""include/uapi/linux/dm-ioctl.h:struct dm_target_spec"""
_BUFFER = 1 << 14
_CREATE, _SUSPEND, _LOAD = 3, 6, 9
_SUSPENDED, _SKIP_LOCKFS, _NO_FLUSH = 1 << 1, 1 << 10, 1 << 11
_SECTOR = 512
_VMSTAT, _STAT_REFRESH = Path("/proc/vmstat"), Path("/proc/sys/vm/stat_refresh")
_SETTLE, _PAUSE = 1.0, 0.01


class Mapped:
    """A device of device mapper, without a table yet."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        device = _HEADER.unpack_from(self._ioctl(_CREATE))[9]
        # As new_encode_dev() has it: minor in bits 0 to 7 and 20 on.
        self.path = f"/dev/dm-{device & 0xFF | device >> 12 & 0xFFF00}"

    def load(self, parts: list[tuple[str, int, int]]) -> None:
        """A table, which waits for `resume`: (device below, first byte, bytes).

        Every part lies below where it lies here. Without a device ("") it fails.
        """
        table = b""
        for below, first, length in parts:
            words = f"{below} {first // _SECTOR}".encode() if below else b""
            words = (words + b"\0").ljust((len(words) + 8) & ~7, b"\0")
            kind = b"linear" if below else b"error"
            span = (first // _SECTOR, length // _SECTOR)
            # `next` says where the next target begins, from this one's start.
            table += _TARGET.pack(*span, 0, _TARGET.size + len(words), kind) + words
        self._ioctl(_LOAD, table, count=len(parts))

    def resume(self) -> None:
        """Go on, by the table that was loaded last (drivers/md/dm-ioctl.c:do_resume)."""
        self._ioctl(_SUSPEND, flags=_SKIP_LOCKFS | _NO_FLUSH)

    def suspend(self) -> None:
        """Keep what is asked for from now on until `resume`."""
        self._ioctl(_SUSPEND, flags=_SUSPENDED | _SKIP_LOCKFS | _NO_FLUSH)

    # --- helpers -------------------------------------------------------------------------

    def _ioctl(self, command: int, data: bytes = b"", *, count: int = 0, flags: int = 0) -> bytes:
        words = (*_VERSION, _BUFFER, _HEADER.size, count, 0, flags, 0, 0, self._name, b"")
        buffer = bytearray((_HEADER.pack(*words) + data).ljust(_BUFFER, b"\0"))
        number = 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command
        control = os.open(_CONTROL, os.O_RDWR)
        try:
            fcntl.ioctl(control, number, buffer)
        finally:
            os.close(control)
        return bytes(buffer)


class Gate:
    """A device over another, which lets everything pass until it is told not to."""

    def __init__(self, below: str, size: int, name: str) -> None:
        self._below, self._size = below, size
        self._mapped = Mapped(name)
        self.path = self._mapped.path
        self.set("ok")

    def set(self, state: str) -> None:
        """`ok`; `fail`: nothing can be read or written; `hold`: everything waits for the next."""
        if state == "hold":
            self._mapped.suspend()
            return
        self._mapped.load([(self._below if state == "ok" else "", 0, self._size)])
        self._mapped.resume()
        _settle()


class Disk:
    """A device over another, of which data is behind a gate."""

    def __init__(self, below: str, size: int, data: list[list[int]], name: str) -> None:
        """`data`: where data lies, as [first byte, bytes]."""
        self._gate = Gate(below, size, f"gate-{name}")
        parts = []
        at = 0
        for first, length in [*data, (size, 0)]:
            if at < first:
                parts.append((below, at, first - at))
            if length:
                parts.append((self._gate.path, first, length))
            at = first + length
        mapped = Mapped(f"scenario-{name}")
        mapped.load(parts)
        mapped.resume()
        self.path = mapped.path
        self.set = self._gate.set


def _settle() -> None:
    """Wait until workers have done what a device had kept: each page, and what its file system does
    at the end. A device that still holds others makes it wait for nothing."""
    deadline = time.monotonic() + _SETTLE
    while time.monotonic() < deadline:
        _STAT_REFRESH.read_bytes()
        words = _VMSTAT.read_text().split()
        if words[words.index("nr_writeback") + 1] == "0":
            return
        time.sleep(_PAUSE)


def load_modules(modules: list[str]) -> None:
    """Load kernel modules in their order, each as base64 of zlib."""
    for module in modules:
        _load_module(zlib.decompress(base64.b64decode(module)))


def _load_module(content: bytes) -> None:
    """init_module(2); one that is there already is fine."""
    try:
        calls.call("init_module", create_string_buffer(content, len(content)), len(content), b"")
    except FileExistsError:
        pass

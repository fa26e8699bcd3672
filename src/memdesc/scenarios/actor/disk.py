"""The disk below a file system, as one that can lose the ability to read and write data.

A device-mapper device lies over zram.  Its table is linear, and `fail` replaces those parts of
it in which files have their data by the target "error" (`drivers/md/dm-target.c:io_err_map`): what
is read or written there fails with EIO, while the journal and what describes the files goes on.
Neither replacement writes back nor freezes the file system.
"""

from __future__ import annotations

import base64
import fcntl
import os
import struct
import zlib
from ctypes import create_string_buffer

from . import calls

__all__ = ["Disk", "Mapped", "load_modules"]

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


class Mapped:
    """A device of device mapper, without a table yet."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        device = _HEADER.unpack_from(self._ioctl(_CREATE))[9]
        # As new_encode_dev() has it: minor in bits 0 to 7 and 20 on.
        self.path = f"/dev/dm-{device & 0xFF | device >> 12 & 0xFFF00}"

    def load(self, below: str, parts: list[tuple[int, int, bool]]) -> None:
        """A table, which waits for `resume`: (first byte, bytes, whether it fails)."""
        table = b""
        for first, length, failing in parts:
            words = b"" if failing else f"{below} {first // _SECTOR}".encode()
            words = (words + b"\0").ljust((len(words) + 8) & ~7, b"\0")
            kind = b"error" if failing else b"linear"
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


class Disk:
    """A device over another, whose data can fail."""

    def __init__(self, below: str, size: int, data: list[list[int]], name: str) -> None:
        """`data`: where data lies, as [first byte, bytes]."""
        self._below, self._size = below, size
        self._data = [(first, length) for first, length in data]
        self._mapped = Mapped(f"scenario-{name}")
        self.path = self._mapped.path
        self.set_failing(failing=False)

    def set_failing(self, *, failing: bool) -> None:
        """Whether data can no longer be read and written."""
        parts = []
        at = 0
        for first, length in [*self._data, (self._size, 0)]:
            if at < first:
                parts.append((at, first - at, False))
            if length:
                parts.append((first, length, failing))
            at = first + length
        self._mapped.load(self._below, parts)
        self._mapped.resume()


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

"""The disk below ext4, as one that can lose the ability to read and write data.

A device-mapper device lies over zram.  Its table is linear, and `fail` replaces those parts of
it in which the file system keeps data by the target "error" (`drivers/md/dm-target.c:io_err_map`):
what is read or written there fails with EIO, while the journal and all that describes files goes on.
Neither replacement writes back nor freezes the file system.
"""

from __future__ import annotations

import base64
import fcntl
import os
import struct
import zlib
from ctypes import create_string_buffer
from typing import Any

from . import calls

__all__ = ["Disk"]

_CONTROL = "/dev/mapper/control"
_NAME = b"scenario"
_VERSION = (4, 0, 0)
_HEADER = struct.Struct("<3I2IIiII4xQ128s129s7x")
"""include/uapi/linux/dm-ioctl.h:struct dm_ioctl"""
_TARGET = struct.Struct("<QQiI16s")
"""include/uapi/linux/dm-ioctl.h:struct dm_target_spec"""
_BUFFER = 1 << 14
_CREATE, _SUSPEND, _LOAD = 3, 6, 9
_SKIP_LOCKFS, _NO_FLUSH = 1 << 10, 1 << 11
_SECTOR = 512


class Disk:
    """A device over another. `request`: {"modules": [base64 of zlib, ...], "data": [[first byte,
    bytes], ...]}: kernel modules in the order of loading, and where the data lies."""

    def __init__(self, below: str, size: int, request: dict[str, Any]) -> None:
        for module in request["modules"]:
            _load_module(zlib.decompress(base64.b64decode(module)))
        self._below, self._size = below, size
        self._data = [(first, length) for first, length in request["data"]]
        self._control = os.open(_CONTROL, os.O_RDWR)
        answer = self._ioctl(_CREATE)
        device = _HEADER.unpack_from(answer)[9]
        # As new_encode_dev() has it: minor in bits 0 to 7 and 20 on.
        self.path = f"/dev/dm-{device & 0xFF | device >> 12 & 0xFFF00}"
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
        self._ioctl(_LOAD, self._table(parts), count=len(parts))
        # Without DM_SUSPEND_FLAG: the table that was loaded takes the place of the old one
        # (drivers/md/dm-ioctl.c:do_resume).
        self._ioctl(_SUSPEND, flags=_SKIP_LOCKFS | _NO_FLUSH)

    # --- helpers -------------------------------------------------------------------------

    def _table(self, parts: list[tuple[int, int, bool]]) -> bytes:
        """Targets one after the other; `next` says where the next begins, from this one's start."""
        table = b""
        for first, length, failing in parts:
            words = b"" if failing else f"{self._below} {first // _SECTOR}".encode()
            words = (words + b"\0").ljust((len(words) + 8) & ~7, b"\0")
            kind = b"error" if failing else b"linear"
            span = (first // _SECTOR, length // _SECTOR)
            table += _TARGET.pack(*span, 0, _TARGET.size + len(words), kind) + words
        return table

    def _ioctl(self, command: int, data: bytes = b"", *, count: int = 0, flags: int = 0) -> bytes:
        header = _HEADER.pack(*_VERSION, _BUFFER, _HEADER.size, count, 0, flags, 0, 0, _NAME, b"")
        buffer = bytearray((header + data).ljust(_BUFFER, b"\0"))
        number = 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command
        fcntl.ioctl(self._control, number, buffer)
        return bytes(buffer)


def _load_module(content: bytes) -> None:
    """init_module(2); one that is there already is fine."""
    try:
        calls.call("init_module", create_string_buffer(content, len(content)), len(content), b"")
    except FileExistsError:
        pass

"""Blocks of memory that are taken out of the machine and put back as ZONE_MOVABLE."""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["STATES", "online_movable"]

_FOLDER = "/sys/devices/system/memory"
STATES = _FOLDER + "/memory*/state"


def online_movable(mebibytes: int) -> None:
    """Make the last blocks of memory that can be spared ZONE_MOVABLE. Raises OSError."""
    size = int(Path(_FOLDER, "block_size_bytes").read_text(), 16)
    wanted = (mebibytes << 20) // size
    numbers = (int(path.name.removeprefix("memory")) for path in Path(_FOLDER).glob("memory[0-9]*"))
    for number in sorted(numbers, reverse=True):
        if not wanted:
            return
        try:
            _write(number, "offline")
        except OSError:  # the kernel itself uses some of it
            continue
        _write(number, "online_movable")
        wanted -= 1
    if wanted:
        raise OSError(errno.EBUSY, "no block of memory can be spared")


def _write(number: int, state: str) -> None:
    fd = os.open(f"{_FOLDER}/memory{number}/state", os.O_WRONLY)
    try:
        os.write(fd, state.encode())
    finally:
        os.close(fd)

"""Steps with userfaultfd (`include/uapi/linux/userfaultfd.h`).

The descriptors ask for UFFD_FEATURE_SIGBUS: an access that would wait for somebody to resolve the
fault brings SIGBUS instead, so a scenario can show it and go on.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import calls
from .access import PAGE
from .memory import content_bytes
from .verbs import RefusedError, span, verb

if TYPE_CHECKING:
    from .process import Process

__all__ = ["Userfault"]

_API, _REGISTER, _UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
_COPY, _ZEROPAGE, _WRITEPROTECT, _CONTINUE = 0xC028AA03, 0xC020AA04, 0xC018AA06, 0xC020AA07
_POISON, _MOVE = 0xC020AA08, 0xC028AA05
_MODE_WP, _MODE_ALLOW_SRC_HOLES = 2, 2
_SIGBUS, _MINOR_HUGETLBFS, _MINOR_SHMEM = 1 << 7, 1 << 9, 1 << 10
_WP, _WP_HUGETLBFS_SHMEM, _FEATURE_POISON, _WP_ASYNC = 1 << 0, 1 << 12, 1 << 14, 1 << 15
_FEATURES = {
    "missing": _SIGBUS,
    "wp": _SIGBUS | _WP | _WP_HUGETLBFS_SHMEM,
    "wp_async": _WP | _WP_HUGETLBFS_SHMEM | _WP_ASYNC,
    "minor": _SIGBUS | _MINOR_HUGETLBFS | _MINOR_SHMEM,
}
_MODES = {"missing": 1, "wp": 2, "wp_async": 2, "minor": 4}


@dataclass
class Userfault:
    """A descriptor and the ranges that are registered with it."""

    fd: int
    mode: str
    ranges: list[tuple[int, int]] = field(default_factory=list)


@verb("uffd")
def uffd(process: Process, args: dict[str, Any]) -> None:
    address, length = span(args["range"])
    found = next((u for u in process.userfaults if u.mode == args["mode"]), None)
    if found is None:
        found = Userfault(calls.call("userfaultfd", os.O_CLOEXEC), args["mode"])
        try:
            ioctl(found.fd, _API, struct.pack("<3Q", 0xAA, _FEATURES[found.mode], 0))
        except OSError:
            os.close(found.fd)
            raise
        process.userfaults.append(found)
    ioctl(found.fd, _REGISTER, struct.pack("<4Q", address, length, _MODES[found.mode], 0))
    found.ranges.append((address, address + length))


@verb("uffd_protect")
def uffd_protect(process: Process, args: dict[str, Any]) -> None:
    _on(process, args, _WRITEPROTECT, "<3Q", 1)


@verb("uffd_unprotect")
def uffd_unprotect(process: Process, args: dict[str, Any]) -> None:
    _on(process, args, _WRITEPROTECT, "<3Q", 0)


@verb("uffd_copy")
def uffd_copy(process: Process, args: dict[str, Any]) -> None:
    address, length = span(args["range"])
    data = content_bytes(args["content"], length // PAGE)
    buffer = ctypes.create_string_buffer(data, length)
    source = ctypes.addressof(buffer)
    mode = _MODE_WP if args["wp"] else 0
    argument = struct.pack("<4Qq", address, source, length, mode, 0)
    ioctl(_fd_of(process, address), _COPY, argument)


@verb("uffd_continue")
def uffd_continue(process: Process, args: dict[str, Any]) -> None:
    _on(process, args, _CONTINUE, "<4Q", _MODE_WP if args["wp"] else 0, 0)


@verb("uffd_move")
def uffd_move(process: Process, args: dict[str, Any]) -> None:
    address, length = span(args["range"])
    source, _ = span(args["source"])
    mode = _MODE_ALLOW_SRC_HOLES if args["holes"] else 0
    ioctl(_fd_of(process, address), _MOVE, struct.pack("<4Qq", address, source, length, mode, 0))


@verb("uffd_zero")
def uffd_zero(process: Process, args: dict[str, Any]) -> None:
    _on(process, args, _ZEROPAGE, "<4Q", 0, 0)


@verb("uffd_poison")
def uffd_poison(process: Process, args: dict[str, Any]) -> None:
    # Only with CONFIG_MEMORY_FAILURE does an access tell what the marker means; meminfo has the
    # line with it.
    if "HardwareCorrupted:" not in Path("/proc/meminfo").read_text():
        raise RefusedError("this kernel is built without CONFIG_MEMORY_FAILURE")
    _on(process, args, _POISON, "<4Q", 0, 0)


@verb("uffd_unregister")
def uffd_unregister(process: Process, args: dict[str, Any]) -> None:
    _on(process, args, _UNREGISTER, "<2Q")


def _on(process: Process, args: dict[str, Any], request: int, form: str, *more: int) -> None:
    address, length = span(args["range"])
    ioctl(_fd_of(process, address), request, struct.pack(form, address, length, *more))


def _fd_of(process: Process, address: int) -> int:
    """The descriptor that an address was registered with last."""
    for found in reversed(process.userfaults):
        if any(first <= address < end for first, end in found.ranges):
            return found.fd
    raise OSError(22, "no userfaultfd is registered there")

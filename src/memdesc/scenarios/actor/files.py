"""Steps about files: opening, reading and writing, changing their size, writing back."""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from ctypes import create_string_buffer
from fcntl import F_GETFL, F_SETFL, fcntl, ioctl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import calls
from .access import PAGE
from .memory import content_bytes, first_words
from .verbs import RefusedError, span, verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .process import Process

_MFD_FLAGS = {"sealable": 2, "hugetlb": 4, "noexec": 8}
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEALS = {"seal": 1, "shrink": 2, "grow": 4, "write": 8, "future_write": 16, "exec": 32}
_OPEN_FLAGS = {
    "create": os.O_CREAT, "direct": os.O_DIRECT, "sync": os.O_SYNC, "append": os.O_APPEND,
    "truncate": os.O_TRUNC,
}  # fmt: skip
_FALLOCATE = {"grow": 0, "keep_size": 1, "zero": 0x10, "collapse": 0x08, "insert": 0x20}
_PUNCH_HOLE = 0x02 | 0x01
_GETFLAGS, _SETFLAGS, _JOURNAL_DATA = 0x80086601, 0x40086602, 0x4000
"""FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_JOURNAL_DATA_FL"""
_FADVICE = {"normal": 0, "random": 1, "sequential": 2, "willneed": 3, "dontneed": 4, "noreuse": 5}
_SYNC_FILE_RANGE, _SYNC_FILE_RANGE_WRITE = 1 | 2 | 4, 2
"""SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER; and only the second"""
_MSYNC = {"async": 1, "invalidate": 2, "sync": 4}


@verb("memfd")
def memfd(process: Process, args: dict[str, Any]) -> None:
    if args["secret"]:
        fd = calls.call("memfd_secret", 0)
    else:
        flags = sum(bit for name, bit in _MFD_FLAGS.items() if args[name])
        fd = os.memfd_create(args["file"], flags)
    if args["pages"]:
        try:
            os.ftruncate(fd, args["pages"] * PAGE)
        except OSError:
            os.close(fd)
            raise
    process.files[args["file"]] = fd


@verb("seal")
def seal(process: Process, args: dict[str, Any]) -> None:
    seals = sum(bit for name, bit in _SEALS.items() if args[name])
    fcntl(process.files[args["file"]], _F_ADD_SEALS, seals)


@verb("seals")
def seals(process: Process, args: dict[str, Any]) -> list[str]:
    found = fcntl(process.files[args["file"]], _F_GET_SEALS)
    return [name for name, bit in _SEALS.items() if found & bit] or ["none"]


@verb("open")
def open_(process: Process, args: dict[str, Any]) -> None:
    flags = os.O_RDONLY if args["readonly"] else os.O_RDWR
    for name, bit in _OPEN_FLAGS.items():
        if args[name]:
            flags |= bit
    path = _path(process, args["path"])
    if args["tmpfile"]:
        flags, path = flags | os.O_TMPFILE, path.parent
    process.files[args["file"]] = os.open(path, flags, 0o600)


@verb("close")
def close(process: Process, args: dict[str, Any]) -> None:
    os.close(process.files.take(args["file"]))


@verb("dup")
def dup(process: Process, args: dict[str, Any]) -> None:
    process.files[args["file"]] = os.dup(process.files[args["old"]])


@verb("unlink")
def unlink(process: Process, args: dict[str, Any]) -> None:
    _path(process, args["path"]).unlink()


@verb("rename")
def rename(process: Process, args: dict[str, Any]) -> None:
    _path(process, args["path"]).rename(_path(process, args["to"]))


@verb("journal_data")
def journal_data(process: Process, args: dict[str, Any]) -> None:
    flags = bytearray(8)
    fd = process.files[args["file"]]
    ioctl(fd, _GETFLAGS, flags)
    ioctl(fd, _SETFLAGS, struct.pack("<q", int.from_bytes(flags, "little") | _JOURNAL_DATA))


@verb("limit")
def limit(process: Process, args: dict[str, Any]) -> None:
    process.limits.set(args["resource"], args["pages"])


@verb("truncate")
def truncate(process: Process, args: dict[str, Any]) -> None:
    os.ftruncate(process.files[args["file"]], args["pages"] * PAGE + (args["bytes"] or 0))


@verb("fallocate")
def fallocate(process: Process, args: dict[str, Any]) -> None:
    fd, offset, length = _extent(process, args["file"])
    calls.call("fallocate", fd, _FALLOCATE[args["mode"]], offset, length)


@verb("punch")
def punch(process: Process, args: dict[str, Any]) -> None:
    fd, offset, length = _extent(process, args["file"])
    calls.call("fallocate", fd, _PUNCH_HOLE, offset, length)


@verb("pwrite")
def pwrite(process: Process, args: dict[str, Any]) -> int:
    fd, offset, length = _extent(process, args["file"])
    return os.pwrite(fd, content_bytes(args["content"], length // PAGE), offset)


@verb("pread")
def pread(process: Process, args: dict[str, Any]) -> list[int]:
    fd, offset, length = _extent(process, args["file"])
    return first_words(os.pread(fd, length, offset))


@verb("dio_write")
def dio_write(process: Process, args: dict[str, Any]) -> int:
    fd, offset, _ = _extent(process, args["file"])
    with _direct(fd):
        return calls.call("pwrite64", fd, *span(args["range"]), offset)


@verb("dio_read")
def dio_read(process: Process, args: dict[str, Any]) -> int:
    fd, offset, _ = _extent(process, args["file"])
    with _direct(fd):
        return calls.call("pread64", fd, *span(args["range"]), offset)


@verb("fsync")
def fsync(process: Process, args: dict[str, Any]) -> None:
    (os.fdatasync if args["data"] else os.fsync)(process.files[args["file"]])


@verb("msync")
def msync(process: Process, args: dict[str, Any]) -> None:
    calls.call("msync", *span(args["range"]), _MSYNC[args["mode"]])


@verb("syncfs")
def syncfs(process: Process, args: dict[str, Any]) -> None:
    calls.call("syncfs", process.files[args["file"]])


@verb("sync_range")
def sync_range(process: Process, args: dict[str, Any]) -> None:
    flags = _SYNC_FILE_RANGE_WRITE if args["start"] else _SYNC_FILE_RANGE
    calls.call("sync_file_range", *_extent(process, args["file"]), flags)


@verb("readahead")
def readahead(process: Process, args: dict[str, Any]) -> None:
    calls.call("readahead", *_extent(process, args["file"]))


@verb("evict")
def evict(process: Process, args: dict[str, Any]) -> None:
    os.posix_fadvise(*_extent(process, args["file"]), _FADVICE["dontneed"])


@verb("fadvise")
def fadvise(process: Process, args: dict[str, Any]) -> None:
    os.posix_fadvise(*_extent(process, args["file"]), _FADVICE[args["advice"]])


@verb("cachestat")
def cachestat(process: Process, args: dict[str, Any]) -> list[int]:
    fd, offset, length = _extent(process, args["file"])
    found = create_string_buffer(40)
    calls.call(
        "cachestat", fd, create_string_buffer(struct.pack("<QQ", offset, length), 16), found, 0
    )
    return list(struct.unpack("<5Q", found.raw))


# --- helpers -------------------------------------------------------------------------------------


def _path(process: Process, path: dict[str, Any]) -> Path:
    """Where a PATH lies on this machine. Raises RefusedError where it has no such file system."""
    if path["where"] not in process.folders:
        raise RefusedError(f"this machine has no {path['where']} for files of scenarios")
    return Path(process.folders[path["where"]], path["name"])


def _extent(process: Process, file: dict[str, Any]) -> tuple[int, int, int]:
    """Descriptor, offset and length of a FILE_RANGE."""
    fd = process.files[file["file"]]
    if file["pages"] is None:
        return fd, 0, -(-os.fstat(fd).st_size // PAGE) * PAGE
    return fd, file["first"] * PAGE, file["pages"] * PAGE


@contextmanager
def _direct(fd: int) -> Iterator[None]:
    """O_DIRECT for one call, on a file that may have been opened without it."""
    flags = fcntl(fd, F_GETFL)
    fcntl(fd, F_SETFL, flags | os.O_DIRECT)
    try:
        yield
    finally:
        fcntl(fd, F_SETFL, flags)

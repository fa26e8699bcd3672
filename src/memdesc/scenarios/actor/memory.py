"""Steps about a process's memory: mapping, advising, and all ways to read and write."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager
from fcntl import fcntl
from typing import TYPE_CHECKING, Any

from . import calls
from .access import PAGE, Fault
from .verbs import RefusedError, SignalledError, inside_guest, span, verb, words_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .process import Process

__all__ = ["ADVICE", "PROTECTIONS"]

PROTECTIONS = {"rw": 3, "r": 1, "none": 0, "rx": 5, "rwx": 7, "w": 2, "x": 4}

ADVICE = {
    "normal": 0, "random": 1, "sequential": 2, "willneed": 3, "dontneed": 4, "free": 8,
    "remove": 9, "dontfork": 10, "dofork": 11, "mergeable": 12, "unmergeable": 13,
    "hugepage": 14, "nohugepage": 15, "dontdump": 16, "dodump": 17, "wipeonfork": 18,
    "keeponfork": 19, "cold": 20, "pageout": 21, "populate_read": 22, "populate_write": 23,
    "dontneed_locked": 24, "collapse": 25, "hwpoison": 100, "soft_offline": 101,
    "guard_install": 102, "guard_remove": 103,
}  # fmt: skip
"""`include/uapi/asm-generic/mman-common.h`"""

_HARMFUL = ("hwpoison", "soft_offline")

_FLAGS = {
    "populate": calls.MAP_POPULATE, "locked": 0x2000, "noreserve": calls.MAP_NORESERVE,
    "growsdown": 0x100,
}  # fmt: skip
_MAP_DROPPABLE = 0x08
_MREMAP_MAYMOVE, _MREMAP_FIXED, _MREMAP_DONTUNMAP = 1, 2, 4
_PRCTL = {"thp_disable": 41, "memory_merge": 67}
_PR_SET_VMA = 0x53564D41
_F_SETPIPE_SZ = 1031
_PTRACE_PEEKDATA, _PTRACE_POKEDATA = 2, 5
_PTRACE_ATTACH, _PTRACE_DETACH, _WALL = 16, 17, 0x40000000


@verb("map")
def map_(process: Process, args: dict[str, Any]) -> None:
    address, length = span(args["range"])
    if args["sharing"] == "shared":
        flags = calls.MAP_SHARED
    else:
        flags = _MAP_DROPPABLE if args["droppable"] else calls.MAP_PRIVATE
    flags |= calls.MAP_FIXED if args["fixed"] else calls.MAP_FIXED_NOREPLACE
    for name, bit in _FLAGS.items():
        if args[name]:
            flags |= bit
    fd, offset = -1, 0
    if args["file"] is not None:
        fd, offset = process.files[args["file"]], (args["page"] or 0) * PAGE
    else:
        flags |= calls.MAP_ANONYMOUS
        flags |= calls.MAP_HUGETLB if args["backing"] == "hugetlb" else 0
    calls.mmap(length, PROTECTIONS[args["prot"]], flags, fd, offset, address)


@verb("unmap")
def unmap(process: Process, args: dict[str, Any]) -> None:
    calls.munmap(*span(args["range"]))


@verb("protect")
def protect(process: Process, args: dict[str, Any]) -> None:
    calls.mprotect(*span(args["range"]), PROTECTIONS[args["prot"]])


@verb("remap")
def remap(process: Process, args: dict[str, Any]) -> None:
    address, length = span(args["range"])
    new_length = length if args["new_pages"] is None else args["new_pages"] * PAGE
    flags, target = 0, 0
    if args["to"] is not None:
        flags, target = _MREMAP_MAYMOVE | _MREMAP_FIXED, args["to"]["address"]
    if args["dontunmap"]:
        flags |= _MREMAP_MAYMOVE | _MREMAP_DONTUNMAP
    calls.call("mremap", address, length, new_length, flags, target)


@verb("advise")
def advise(process: Process, args: dict[str, Any]) -> None:
    if args["advice"] in _HARMFUL and not inside_guest():
        raise RefusedError(f"advice {args['advice']} harms the machine: only in a guest")
    calls.madvise(*span(args["range"]), ADVICE[args["advice"]])


@verb("lock")
def lock(process: Process, args: dict[str, Any]) -> None:
    calls.call("mlock2", *span(args["range"]), 1 if args["onfault"] else 0)


@verb("unlock")
def unlock(process: Process, args: dict[str, Any]) -> None:
    calls.call("munlock", *span(args["range"]))


@verb("lockall")
def lockall(process: Process, args: dict[str, Any]) -> None:
    calls.call(
        "mlockall",
        (1 if args["current"] else 0)
        | (2 if args["future"] else 0)
        | (4 if args["onfault"] else 0),
    )


@verb("unlockall")
def unlockall(process: Process, args: dict[str, Any]) -> None:
    calls.call("munlockall")


@verb("name_area")
def name_area(process: Process, args: dict[str, Any]) -> None:
    name = ctypes.create_string_buffer(args["text"].encode())
    calls.call("prctl", _PR_SET_VMA, 0, *span(args["range"]), name)


@verb("mincore")
def mincore(process: Process, args: dict[str, Any]) -> list[int]:
    address, length = span(args["range"])
    found = ctypes.create_string_buffer(length // PAGE)
    calls.call("mincore", address, length, found)
    return [byte & 1 for byte in found.raw]


_tables_at_first: dict[int, int] = {}
"""Pid -> page-table pages when it asked first: those of the interpreter and its libraries."""


@verb("tables")
def tables(process: Process, args: dict[str, Any]) -> int:
    if os.getpid() not in _tables_at_first:
        _tables()  # what reading takes is counted before
        _tables_at_first[os.getpid()] = _tables()
    return _tables() - _tables_at_first[os.getpid()]


def _tables() -> int:
    fd = os.open("/proc/self/status", os.O_RDONLY)
    try:
        text = os.read(fd, PAGE)
    finally:
        os.close(fd)
    return int(text.partition(b"VmPTE:")[2].split()[0]) * 1024 // PAGE


@verb("prctl")
def prctl(process: Process, args: dict[str, Any]) -> None:
    calls.prctl(_PRCTL[args["option"]], args["value"])


@verb("clear_refs")
def clear_refs(process: Process, args: dict[str, Any]) -> None:
    fd = os.open("/proc/self/clear_refs", os.O_WRONLY)
    try:
        os.write(fd, str(args["value"]).encode())
    finally:
        os.close(fd)


@verb("ksm_stat")
def ksm_stat(process: Process, args: dict[str, Any]) -> int:
    name = "ksm_" + args["name"]
    # Of its own since 5.19, in ksm_stat since 6.4.
    alone = name == "ksm_merging_pages"
    fd = os.open("/proc/self/" + (name if alone else "ksm_stat"), os.O_RDONLY)
    try:
        text = os.read(fd, PAGE).decode()
    finally:
        os.close(fd)
    for line in text.splitlines():
        if alone or line.split()[0] == name:
            return int(line.split()[-1])
    raise FileNotFoundError(errno.ENOENT, name)


@verb("split")
def split(process: Process, args: dict[str, Any]) -> None:
    if not inside_guest():
        raise RefusedError("folios are split through debugfs: only in a guest")
    address, length = span(args["range"])
    text = f"{os.getpid()},{address:#x},{address + length:#x}"
    if args["order"] is not None or args["around"] is not None:
        text += f",{args['order'] or 0}"
    if args["around"] is not None:
        text += f",{args['around']}"
    fd = os.open("/sys/kernel/debug/split_huge_pages", os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


# --- accesses ------------------------------------------------------------------------------------


@verb("read")
def read(process: Process, args: dict[str, Any]) -> list[int]:
    address, length = span(args["range"])
    found = []
    for place in range(address, address + length, PAGE):
        word = process.access.load(place)
        if isinstance(word, Fault):
            raise SignalledError(word)
        found.append(word)
    return found


@verb("write")
def write(process: Process, args: dict[str, Any]) -> None:
    address, length = span(args["range"])
    for at, word in enumerate(words_of(args["content"], length // PAGE)):
        fault = process.access.store_page(address + at * PAGE, word)
        if fault is not None:
            raise SignalledError(fault)


@verb("copy_to")
def copy_to(process: Process, args: dict[str, Any]) -> int:
    address, length = span(args["range"])
    reader, writer = _pipe(length)
    try:
        os.write(writer, content_bytes(args["content"], length // PAGE))
        return calls.call("read", reader, address, length)
    finally:
        os.close(reader)
        os.close(writer)


@verb("copy_from")
def copy_from(process: Process, args: dict[str, Any]) -> list[int]:
    address, length = span(args["range"])
    reader, writer = _pipe(length)
    try:
        count = calls.call("write", writer, address, length)
        return first_words(os.read(reader, count))
    finally:
        os.close(reader)
        os.close(writer)


@verb("peek")
def peek(process: Process, args: dict[str, Any]) -> list[int]:
    address, length = span(args["range"])
    buffer = ctypes.create_string_buffer(length)
    here = calls.iovec([(ctypes.addressof(buffer), length)])
    there = calls.iovec([(address, length)])
    count = calls.call("process_vm_readv", process.pids[args["other"]], here, 1, there, 1, 0)
    return first_words(buffer.raw[:count])


@verb("poke")
def poke(process: Process, args: dict[str, Any]) -> int:
    address, length = span(args["range"])
    data = content_bytes(args["content"], length // PAGE)
    buffer = ctypes.create_string_buffer(data, length)
    here = calls.iovec([(ctypes.addressof(buffer), length)])
    there = calls.iovec([(address, length)])
    return calls.call("process_vm_writev", process.pids[args["other"]], here, 1, there, 1, 0)


@verb("ptrace_read")
def ptrace_read(process: Process, args: dict[str, Any]) -> list[int]:
    address, length = span(args["range"])
    pid = process.pids[args["other"]]
    with _debugged(pid) as fd:
        if args["words"]:
            return _peek_words(pid, address, length)
        return first_words(os.pread(fd, length, address))


@verb("ptrace_write")
def ptrace_write(process: Process, args: dict[str, Any]) -> int:
    address, length = span(args["range"])
    pid = process.pids[args["other"]]
    data = content_bytes(args["content"], length // PAGE)
    with _debugged(pid) as fd:
        if args["words"]:
            return _poke_words(pid, address, data)
        return os.pwrite(fd, data, address)


# --- helpers -------------------------------------------------------------------------------------


def content_bytes(content: dict[str, Any], pages: int) -> bytes:
    """The bytes of whole pages, each filled with its word."""
    words = words_of(content, pages)
    return b"".join(word.to_bytes(8, "little") * (PAGE // 8) for word in words)


def first_words(data: bytes) -> list[int]:
    """The first word of each page; a page that is cut off counts if its first word is there."""
    starts = range(0, len(data) - 7, PAGE)
    return [int.from_bytes(data[start : start + 8], "little") for start in starts]


def _pipe(length: int) -> tuple[int, int]:
    """A pipe that takes so many bytes at once."""
    reader, writer = os.pipe()
    fcntl(writer, _F_SETPIPE_SZ, max(length, PAGE))
    return reader, writer


def _peek_words(pid: int, address: int, length: int) -> list[int]:
    """PTRACE_PEEKDATA of the first word of each page, up to one that cannot be read."""
    found: list[int] = []
    word = ctypes.create_string_buffer(8)
    for place in range(address, address + length, PAGE):
        try:
            calls.call("ptrace", _PTRACE_PEEKDATA, pid, place, word)
        except OSError:
            if not found:
                raise
            break
        found.append(int.from_bytes(word.raw, "little"))
    return found


def _poke_words(pid: int, address: int, data: bytes) -> int:
    """PTRACE_POKEDATA of each word, up to one that cannot be written: bytes."""
    for at in range(0, len(data), 8):
        word = int.from_bytes(data[at : at + 8], "little")
        try:
            calls.call("ptrace", _PTRACE_POKEDATA, pid, address + at, word)
        except OSError:
            if not at:
                raise
            return at
    return len(data)


@contextmanager
def _debugged(pid: int) -> Iterator[int]:
    """/proc/PID/mem of a process that stands still under ptrace.

    Kernels may give the right to write past protections (FOLL_FORCE) to its debugger alone:
    `fs/proc/base.c:proc_mem_foll_force`, CONFIG_PROC_MEM_FORCE_PTRACE.
    """
    calls.call("ptrace", _PTRACE_ATTACH, pid, 0, 0)
    try:
        os.waitpid(pid, _WALL)
        fd = os.open(f"/proc/{pid}/mem", os.O_RDWR)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        calls.call("ptrace", _PTRACE_DETACH, pid, 0, 0)

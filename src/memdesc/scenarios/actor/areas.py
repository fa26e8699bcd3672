"""Steps about whole areas: sealing them, and from which nodes their memory comes."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import calls
from .access import PAGE
from .memory import ADVICE
from .verbs import RefusedError, span, verb

if TYPE_CHECKING:
    from .process import Process

POLICIES = {
    "default": 0, "preferred": 1, "bind": 2, "interleave": 3, "local": 4, "preferred_many": 5,
    "weighted_interleave": 6,
}  # fmt: skip
_PR_SET_DUMPABLE = 4
_PR_SET_MM, _PR_SET_MM_START_BRK, _PR_SET_MM_BRK = 35, 6, 7
_NOBODY = 65534
_CAPABILITY_VERSION = 0x20080522
_MPOL_F_STATIC_NODES = 1 << 15
_MPOL_F_ADDR = 1 << 1
_NODE_BITS = 1024
"""Bits that get_mempolicy has room for; fewer than the kernel has nodes is EINVAL."""


@verb("mseal")
def mseal(process: Process, args: dict[str, Any]) -> None:
    calls.call("mseal", *span(args["range"]), 0)


@verb("mbind")
def mbind(process: Process, args: dict[str, Any]) -> None:
    mode = POLICIES[args["mode"]] | (_MPOL_F_STATIC_NODES if args["static"] else 0)
    mask = ctypes.create_string_buffer(struct.pack("<Q", args["mask"] or 0), 8)
    calls.call("mbind", *span(args["range"]), mode, mask, 64, 0)


@verb("home_node")
def home_node(process: Process, args: dict[str, Any]) -> None:
    calls.call("set_mempolicy_home_node", *span(args["range"]), args["node"], 0)


@verb("policy")
def policy(process: Process, args: dict[str, Any]) -> list[str]:
    mode = ctypes.create_string_buffer(4)
    nodes = ctypes.create_string_buffer(_NODE_BITS // 8)
    address, _ = span(args["range"])
    calls.call("get_mempolicy", mode, nodes, _NODE_BITS, address, _MPOL_F_ADDR)
    (word,) = struct.unpack("<I", mode.raw)
    names = [name for name, number in POLICIES.items() if number == word & 0xFF]
    static = ["static"] if word & _MPOL_F_STATIC_NODES else []
    mask = int.from_bytes(nodes.raw, "little")
    return [*names, *static, *([str(mask)] if mask else [])]


@verb("heap")
def heap(process: Process, args: dict[str, Any]) -> None:
    process.heap = (args["range"]["address"],) * 2


@verb("brk")
def brk(process: Process, args: dict[str, Any]) -> None:
    """The interpreter has a heap of its own, to which the kernel's fields belong otherwise."""
    start, end = process.heap
    wanted = start + args["pages"] * PAGE
    own = _own_heap()
    with process.limits.lifted():
        _set_heap(start, end)
    try:
        found = calls.call("brk", wanted)
    finally:
        with process.limits.lifted():
            _set_heap(*own)
    process.heap = (start, found)
    if found != wanted:
        raise OSError(errno.ENOMEM, "brk: the end stays")


@verb("remap_file_pages")
def remap_file_pages(process: Process, args: dict[str, Any]) -> None:
    calls.call("remap_file_pages", *span(args["range"]), 0, args["page"], 0)


@verb("process_advise")
def process_advise(process: Process, args: dict[str, Any]) -> int:
    pidfd = os.pidfd_open(process.pids[args["other"]])
    try:
        place = calls.iovec([span(args["range"])])
        return calls.call("process_madvise", pidfd, place, 1, ADVICE[args["advice"]], 0)
    finally:
        os.close(pidfd)


@verb("drop")
def drop(process: Process, args: dict[str, Any]) -> None:
    if args["what"] == "root":
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        calls.prctl(_PR_SET_DUMPABLE, 1)  # its own files in /proc stay its own
        return
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION, 0), 8)
    calls.call("capset", header, ctypes.create_string_buffer(24))


# --- helpers -------------------------------------------------------------------------------------


def _own_heap() -> tuple[int, int]:
    """start_brk and brk of this process as it is."""
    with Path("/proc/self/stat").open("rb", buffering=0) as file:
        start = int(file.read().rpartition(b") ")[2].split()[44])
    return start, calls.call("brk", 0)


def _set_heap(start: int, end: int) -> None:
    """Each of the two is checked against the other: never is the start above the end."""
    first, second = (_PR_SET_MM_START_BRK, start), (_PR_SET_MM_BRK, end)
    if start > calls.call("brk", 0):
        first, second = second, first
    try:
        calls.prctl(_PR_SET_MM, *first)
        calls.prctl(_PR_SET_MM, *second)
    except PermissionError:
        raise RefusedError("a heap of the scenario's own needs CAP_SYS_RESOURCE") from None

"""The BPF programs that read kernel memory, assembled.

Sources: `Documentation/bpf/standardization/instruction-set.rst` and
`include/uapi/linux/bpf.h` (struct bpf_insn, the helpers' numbers) @6.12.
"""

from __future__ import annotations

import ctypes
import errno
import struct

__all__ = [
    "BLOCK_BYTES",
    "BUFFER_BYTES",
    "MANY",
    "MANY_DATA",
    "MANY_LARGEST",
    "MANY_LAST_ROW",
    "MANY_RESULTS",
    "SKEW",
    "Context",
    "current_task",
    "read_many",
    "read_one",
]

BLOCK_BYTES = 1 << 20
"""Bytes copied by one run of the program: larger ones are no quicker, they leave the cache."""

MANY = 512
"""Addresses read by one run of the second program. The verifier follows every round of its
loop, and one round costs less than a fiftieth of a system call."""

SKEW = 2048
"""Where data begin in a page of the buffer. Large arrays begin 16 bytes after the start of a
page, and with a source a little below the destination, modulo 4096, AMD's `rep movsb` (which
is what memcpy is for 2 KiB to some 300 KiB) falls from 25 to 2 GB/s."""
BUFFER_BYTES = BLOCK_BYTES + 4096

MANY_RESULTS = MANY * 8
MANY_DATA = MANY * 16 + SKEW
MANY_LARGEST = 1 << 16
"""Bytes of one of many."""
MANY_LAST_ROW = BUFFER_BYTES - MANY_DATA - MANY_LARGEST
"""Where the last row may begin at most, in bytes from the first one."""

_GET_CURRENT_TASK, _PROBE_READ_KERNEL = 35, 113
_PSEUDO_MAP_VALUE = 2


class Context(ctypes.Structure):
    """What the programs are told: the kernel copies it in for each run, and out again."""

    _fields_ = (("address", ctypes.c_uint64), ("size", ctypes.c_uint64), ("end", ctypes.c_uint64))


def read_one(map_fd: int) -> bytes:
    """return probe_read_kernel(buffer, context->size, context->address)"""
    return b"".join(
        (
            _load_u64(_R3, _R1, Context.address.offset),
            _load_u64(_R2, _R1, Context.size.offset),
            _set(_R0, -errno.E2BIG),
            _jump_if_value(_JMP_GT, _R2, BLOCK_BYTES, 3),
            _buffer(_R1, map_fd, SKEW),
            _CALL_PROBE_READ,
            _EXIT,
        )
    )


def read_many(map_fd: int) -> bytes:
    """The same for every address at the start of the buffer; returns the bytes of addresses
    that it is through with.

    What the caller knows to hold is checked again, for the verifier: it must see that the
    loop ends and that no write leaves the map.
    """
    # r6 context; r7 this address, in bytes from the first one; r8 its row, likewise; r9 the end.
    top = (
        _jump_if(_JMP_GE, _R7, _R9, 18),
        _buffer(_R1, map_fd),
        _add(_R1, _R7),
        _load_u64(_R3, _R1, 0),
        _load_u64(_R2, _R6, Context.size.offset),
        _jump_if_value(_JMP_GT, _R2, MANY_LARGEST, 12),
        _jump_if_value(_JMP_GT, _R8, MANY_LAST_ROW, 11),
        _buffer(_R1, map_fd, MANY_DATA),
        _add(_R1, _R8),
        _add(_R8, _R2),
        _CALL_PROBE_READ,
        _buffer(_R1, map_fd),
        _add(_R1, _R7),
        _store_u64(_R1, _R0, MANY_RESULTS),
        _add_value(_R7, 8),
        _jump_if_value(_JMP_LT, _R7, MANY * 8, -19),
        _copy(_R0, _R7),
        _EXIT,
    )
    return b"".join(
        (
            _copy(_R6, _R1),
            _set(_R7, 0),
            _set(_R8, 0),
            _load_u64(_R9, _R6, Context.end.offset),
            *top,
        )
    )


def current_task(map_fd: int) -> bytes:
    """*buffer = get_current_task()"""
    return b"".join(
        (
            _insn(0x85, value=_GET_CURRENT_TASK),
            _buffer(_R1, map_fd),
            _store_u64(_R1, _R0, 0),
            _set(_R0, 0),
            _EXIT,
        )
    )


# --- the assembler ----------------------------------------------------------------------

_R0, _R1, _R2, _R3, _R6, _R7, _R8, _R9 = 0, 1, 2, 3, 6, 7, 8, 9
_ALU_ADD, _ALU_MOV = 0x00, 0xB0
_JMP_GT, _JMP_GE, _JMP_LT = 0x20, 0x30, 0xA0


def _insn(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """struct bpf_insn: opcode, two registers of four bits, offset, immediate."""
    return struct.pack("<BBhi", code, of << 4 | to, offset, value)


def _set(to: int, value: int) -> bytes:
    return _insn(0x07 | _ALU_MOV, to, value=value)


def _copy(to: int, of: int) -> bytes:
    return _insn(0x0F | _ALU_MOV, to, of)


def _add(to: int, of: int) -> bytes:
    return _insn(0x0F | _ALU_ADD, to, of)


def _add_value(to: int, value: int) -> bytes:
    return _insn(0x07 | _ALU_ADD, to, value=value)


def _load_u64(to: int, of: int, offset: int) -> bytes:
    return _insn(0x79, to, of, offset)


def _store_u64(to: int, of: int, offset: int) -> bytes:
    return _insn(0x7B, to, of, offset)


def _buffer(to: int, map_fd: int, offset: int = 0) -> bytes:
    """Two instructions: the address of the map's only value, plus `offset`."""
    return _insn(0x18, to, _PSEUDO_MAP_VALUE, value=map_fd) + _insn(0, value=offset)


def _jump_if(condition: int, left: int, right: int, offset: int) -> bytes:
    return _insn(0x0D | condition, left, right, offset)


def _jump_if_value(condition: int, left: int, right: int, offset: int) -> bytes:
    return _insn(0x05 | condition, left, offset=offset, value=right)


_CALL_PROBE_READ = _insn(0x85, value=_PROBE_READ_KERNEL)
_EXIT = _insn(0x95)

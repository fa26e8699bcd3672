"""Steps that take references to pages: pipes, fixed buffers of io_uring, slow devices, sockets.

`vmsplice` puts references to the pages themselves into a pipe, until they are read or the pipe is
closed.  Registered buffers of an io_uring are pinned for long and for writing; reads and writes
with them go to the pinned pages and past every page table, as a device's would.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from fcntl import fcntl
from typing import TYPE_CHECKING, Any

from . import calls
from .access import PAGE
from .dma import Transfer
from .memory import content_bytes, first_words
from .sockets import Sent, Umem
from .verbs import RefusedError, part, span, verb

if TYPE_CHECKING:
    from .process import Process

__all__ = ["Pin"]

_F_SETPIPE_SZ = 1031
_NONBLOCK, _GIFT = 2, 8
"""SPLICE_F_* (`include/linux/splice.h`)"""
_FUTEX_WAKE, _FUTEX_PRIVATE = 1, 128
_REGISTER_BUFFERS, _UNREGISTER_BUFFERS = 0, 1
_OFF_SQES = 0x10000000
_FEATURE_SINGLE_MMAP = 1
_READ_FIXED, _WRITE_FIXED = 4, 5
_ENTER_GETEVENTS = 1
_SQE_BYTES, _CQE_BYTES = 64, 16


@dataclass
class Pin:
    """References to the pages of a range, held by a pipe or by a ring."""

    address: int
    length: int
    pipe: tuple[int, int] | None = None
    ring: _Ring | None = None
    transfer: Transfer | None = None
    sent: Sent | None = None
    umem: Umem | None = None

    def close(self, *, settle: bool = False) -> None:
        """Close the descriptors; the references end with the last copy of them.

        `settle`: this is the last copy, and what the kernel does later shall be done.
        """
        for fd in self.pipe or ():
            os.close(fd)
        if self.ring is not None:
            self.ring.close()
        if self.sent is not None:
            self.sent.close()
        if self.umem is not None:
            self.umem.close(settle=settle)


@verb("splice")
def splice(process: Process, args: dict[str, Any]) -> None:
    address, length = span(args["range"])
    pipe = os.pipe()
    times = args["times"] or 1
    try:
        fcntl(pipe[1], _F_SETPIPE_SZ, length * times)
    except PermissionError:  # above /proc/sys/fs/pipe-max-size
        for fd in pipe:
            os.close(fd)
        raise RefusedError("a pipe with so much room needs CAP_SYS_RESOURCE") from None
    ranges = calls.iovec([(address, length)] * times)
    try:
        calls.call("vmsplice", pipe[1], ranges, times, _GIFT if args["gift"] else 0)
    except OSError:
        Pin(address, length, pipe).close()
        raise
    process.pins[args["pin"]] = Pin(address, length * times, pipe)


@verb("splice_more")
def splice_more(process: Process, args: dict[str, Any]) -> int:
    held = process.pins[args["pin"]]
    assert held.pipe is not None, "these references are held by no pipe"
    ranges = calls.iovec([span(args["range"])])
    done = calls.call("vmsplice", held.pipe[1], ranges, 1, _NONBLOCK)
    held.length += done
    return done


@verb("pipe_read")
def pipe_read(process: Process, args: dict[str, Any]) -> list[int]:
    held = process.pins.take(args["pin"])
    assert held.pipe is not None, "these references are held by no pipe"
    try:
        os.set_blocking(held.pipe[0], False)
        return first_words(os.read(held.pipe[0], held.length))
    finally:
        held.close()


@verb("pin")
def pin(process: Process, args: dict[str, Any]) -> None:
    address, length = span(args["range"])
    ring = _Ring()
    try:
        vector = calls.iovec([(address, length)])
        calls.call("io_uring_register", ring.fd, _REGISTER_BUFFERS, vector, 1)
    except OSError:
        ring.close()
        raise
    process.pins[args["pin"]] = Pin(address, length, ring=ring)


@verb("pin_write")
def pin_write(process: Process, args: dict[str, Any]) -> int:
    held = process.pins[args["pin"]]
    fd = os.memfd_create("pin_write")
    try:
        os.pwrite(fd, content_bytes(args["content"], held.length // PAGE), 0)
        return _ring_of(held).transfer(_READ_FIXED, fd, held.address, held.length)
    finally:
        os.close(fd)


@verb("pin_read")
def pin_read(process: Process, args: dict[str, Any]) -> list[int]:
    held = process.pins[args["pin"]]
    fd = os.memfd_create("pin_read")
    try:
        count = _ring_of(held).transfer(_WRITE_FIXED, fd, held.address, held.length)
        return first_words(os.pread(fd, count, 0))
    finally:
        os.close(fd)


@verb("dma")
def dma(process: Process, args: dict[str, Any]) -> None:
    address, length = span(args["range"])
    transfer = Transfer(address, length, content_bytes(args["content"], length // PAGE))
    process.pins[args["pin"]] = Pin(address, length, transfer=transfer)


@verb("dma_from")
def dma_from(process: Process, args: dict[str, Any]) -> None:
    address, length = span(args["range"])
    transfer = Transfer(address, length, None)
    process.pins[args["pin"]] = Pin(address, length, transfer=transfer)


@verb("dma_taken")
def dma_taken(process: Process, args: dict[str, Any]) -> list[int]:
    held = process.pins.take(args["pin"])
    assert held.transfer is not None, "these references are held by no device"
    held.transfer.finish()
    return first_words(held.transfer.on_disk())


@verb("send")
def send(process: Process, args: dict[str, Any]) -> None:
    address, length = span(args["range"])
    process.pins[args["pin"]] = Pin(address, length, sent=Sent(address, length))


@verb("receive")
def receive(process: Process, args: dict[str, Any]) -> list[int]:
    held = process.pins.take(args["pin"])
    assert held.sent is not None, "these references are held by no socket"
    try:
        return first_words(held.sent.received())
    finally:
        held.close()


@verb("umem")
def umem(process: Process, args: dict[str, Any]) -> None:
    address, length = span(args["range"])
    process.pins[args["pin"]] = Pin(address, length, umem=Umem(address, length))


@verb("futex")
def futex(process: Process, args: dict[str, Any]) -> int:
    address, _ = span(args["range"])
    operation = _FUTEX_WAKE | (_FUTEX_PRIVATE if args["private"] else 0)
    return calls.call("futex", address, operation, 1, None, None, 0)


@verb("release")
def release(process: Process, args: dict[str, Any]) -> None:
    held = process.pins.take(args["pin"])
    if held.transfer is not None:
        held.transfer.finish()
    if held.ring is not None:
        # Closing alone would leave it to a worker that runs later.
        calls.call("io_uring_register", held.ring.fd, _UNREGISTER_BUFFERS, 0, 0)
    held.close(settle=True)


@part("handed")
def handed(process: Process, args: dict[str, Any]) -> dict[str, Any]:
    """First part of `hand`: what the other process has to know."""
    held = process.pins[args["pin"]]
    if held.ring is not None:
        return {"address": held.address, "length": held.length, "ring": held.ring.shape()}
    assert held.pipe is not None, "only pipes and rings are handed over"
    return {"address": held.address, "length": held.length, "pipe": held.pipe}


@part("take")
def take(process: Process, args: dict[str, Any]) -> None:
    """Second part, done by the other process: copies of the descriptors."""
    held = args["held"]
    pidfd = calls.call("pidfd_open", args["pid"], 0)
    try:
        if "ring" in held:
            shape = held["ring"]
            ring = _Ring.taken(calls.call("pidfd_getfd", pidfd, shape["fd"], 0), shape)
            process.pins[args["pin"]] = Pin(held["address"], held["length"], ring=ring)
            return
        reader, writer = (calls.call("pidfd_getfd", pidfd, fd, 0) for fd in held["pipe"])
        process.pins[args["pin"]] = Pin(held["address"], held["length"], (reader, writer))
    finally:
        os.close(pidfd)


@part("let_go")
def let_go(process: Process, args: dict[str, Any]) -> None:
    """Third part: the references are the other process's alone."""
    process.pins.pop(args["pin"]).close()


class _Ring:
    """An io_uring with room for one request at a time (`include/uapi/linux/io_uring.h`)."""

    def __init__(self) -> None:
        params = ctypes.create_string_buffer(120)
        self.fd = calls.call("io_uring_setup", 2, params)
        words = struct.unpack("<30I", params.raw)
        self._sq, self._cq = words[10:18], words[20:28]  # head, tail, mask, entries, ...
        sq_bytes = self._sq[6] + 4 * words[0]
        cq_bytes = self._cq[5] + _CQE_BYTES * words[1]
        self._length = -(-max(sq_bytes, cq_bytes) // PAGE) * PAGE
        self._map()

    @classmethod
    def taken(cls, fd: int, shape: dict[str, Any]) -> _Ring:
        """A ring that another process made, of which `fd` is a copy."""
        ring = cls.__new__(cls)
        ring.fd, ring._length = fd, shape["length"]
        ring._sq, ring._cq = tuple(shape["sq"]), tuple(shape["cq"])
        ring._map()
        return ring

    def shape(self) -> dict[str, Any]:
        """What `taken` asks for."""
        return {"fd": self.fd, "length": self._length, "sq": self._sq, "cq": self._cq}

    def _map(self) -> None:
        shared = calls.MAP_SHARED | calls.MAP_POPULATE
        self._rings = calls.mmap(self._length, flags=shared, fd=self.fd)
        self._sqes = calls.mmap(PAGE, flags=shared, fd=self.fd, offset=_OFF_SQES)

    def transfer(self, operation: int, fd: int, address: int, length: int) -> int:
        """Read a file into buffer 0, or write it to a file, and wait. Raises OSError."""
        sqe = struct.pack("<BBHiQQII", operation, 0, 0, fd, 0, address, length, 0)
        ctypes.memmove(self._sqes, sqe.ljust(_SQE_BYTES, b"\0"), _SQE_BYTES)
        tail = self._get(self._sq[1])
        self._put(self._sq[6] + 4 * (tail & self._get(self._sq[2])), 0)
        self._put(self._sq[1], tail + 1)
        calls.call("io_uring_enter", self.fd, 1, 1, _ENTER_GETEVENTS, 0, 0)
        head = self._get(self._cq[0])
        place = self._rings + self._cq[5] + _CQE_BYTES * (head & self._get(self._cq[2]))
        result = ctypes.c_int32.from_address(place + 8).value
        self._put(self._cq[0], head + 1)
        if result < 0:
            raise OSError(-result, "io_uring")
        return result

    def close(self) -> None:
        """Unmap and close it."""
        calls.munmap(self._rings, self._length)
        calls.munmap(self._sqes, PAGE)
        os.close(self.fd)

    def _get(self, offset: int) -> int:
        return ctypes.c_uint32.from_address(self._rings + offset).value

    def _put(self, offset: int, value: int) -> None:
        ctypes.c_uint32.from_address(self._rings + offset).value = value & 0xFFFFFFFF


def _ring_of(held: Pin) -> _Ring:
    assert held.ring is not None, "these references are held by no ring"
    return held.ring

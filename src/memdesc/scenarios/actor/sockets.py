"""Sockets that hold references to pages of memory: TCP with MSG_ZEROCOPY, AF_XDP.

What is sent with MSG_ZEROCOPY lies in the socket's queue as the pages themselves, for as long as
the receiver does not take it.  The receiver here has a small window, which other bytes fill first:
what a loopback device delivered would be copied (`net/core/skbuff.c:skb_orphan_frags_rx`).
"""

from __future__ import annotations

import select
import socket
import struct
import time
from fcntl import ioctl
from pathlib import Path

from . import calls
from .verbs import RefusedError, inside_guest

__all__ = ["Sent", "Umem"]

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_IFREQ = struct.Struct("16sh22x")
_MSG_ZEROCOPY, _SO_ZEROCOPY = 0x4000000, 60
_FILLER, _ROOM, _SMALL = 1 << 17, 1 << 20, 1 << 14
_PATIENCE = 5.0

_AF_XDP, _SOL_XDP, _XDP_UMEM_REG = 44, 283, 4
_UMEM = struct.Struct("<QQIIIxxxx")
"""include/uapi/linux/if_xdp.h:struct xdp_umem_reg, as it was first"""
_CHUNK = 4096


class Sent:
    """Pages that were sent, as many as could be had, and wait for the receiver.

    Raises OSError, RefusedError.
    """

    def __init__(self, address: int, length: int) -> None:
        if not inside_guest():
            raise RefusedError("`send` brings an interface up: only in a guest")
        with socket.socket() as listener:
            _bring_up(listener, b"lo")
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            self._sender = socket.create_connection(listener.getsockname())
            self._receiver, _ = listener.accept()
        self._sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
        self._sender.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
        self._sender.sendall(bytes(_FILLER))
        try:
            self._length = calls.call(
                "sendto", self._sender.fileno(), address, length, _MSG_ZEROCOPY, None, 0
            )
        except OSError:
            self.close()
            raise

    def received(self) -> bytes:
        """What the receiver gets, now that it reads."""
        self._receiver.settimeout(_PATIENCE)
        wanted = _FILLER + self._length
        data = bytearray()
        while len(data) < wanted:
            piece = self._receiver.recv(min(1 << 16, wanted - len(data)))
            assert piece, "the sender has closed"
            data += piece
        # The kernel says when nobody uses the pages any more.
        poll = select.poll()
        poll.register(self._sender, select.POLLERR)
        assert poll.poll(int(_PATIENCE * 1000)), "the pages were not given back"
        return bytes(data[_FILLER:])

    def close(self) -> None:
        """Close both ends; what was not received is dropped, and with it the references."""
        self._receiver.close()
        self._sender.close()


class Umem:
    """Room for packets of an AF_XDP socket. Raises OSError, RefusedError."""

    def __init__(self, address: int, length: int) -> None:
        if not inside_guest():
            raise RefusedError("`umem` is checked by counters of the whole system: only in a guest")
        self._socket = socket.socket(_AF_XDP, socket.SOCK_RAW)
        self._held = _pins_held()
        try:
            room = _UMEM.pack(address, length, _CHUNK, 0, 0)
            self._socket.setsockopt(_SOL_XDP, _XDP_UMEM_REG, room)
        except OSError:
            self._socket.close()
            raise

    def close(self, *, settle: bool = False) -> None:
        """Close it; with `settle` wait for the worker that unpins the pages.

        `net/xdp/xdp_umem.c:xdp_put_umem` leaves that to one.
        """
        self._socket.close()
        end = time.monotonic() + _PATIENCE
        while settle and _pins_held() > self._held:
            assert time.monotonic() < end, "the pages were not given back"
            time.sleep(0.005)


# --- helpers -------------------------------------------------------------------------------------


def _bring_up(some: socket.socket, interface: bytes) -> None:
    """Only if it is down: a process that gave up its rights may still send."""
    _, flags = _IFREQ.unpack(ioctl(some, _SIOCGIFFLAGS, _IFREQ.pack(interface, 0)))
    if not flags & _IFF_UP:
        ioctl(some, _SIOCSIFFLAGS, _IFREQ.pack(interface, flags | _IFF_UP))


def _pins_held() -> int:
    Path("/proc/sys/vm/stat_refresh").read_text()
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counts["nr_foll_pin_acquired"]) - int(counts["nr_foll_pin_released"])

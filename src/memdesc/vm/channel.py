"""The host's end of the channel to a guest's init; what is said on it is in `vm.port`."""

from __future__ import annotations

import json
import secrets
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from memdesc.vm.port import PARKED

__all__ = ["Channel", "Watch"]

_SEND_SECONDS = 60.0


@dataclass(frozen=True)
class Watch:
    """What else to listen to while the guest is silent.

    `connection` is QEMU's monitor and `look` takes in what it says; `ended` and `silent`
    raise the error for a guest whose end of the port is gone, or that said nothing in time.
    """

    connection: socket.socket
    look: Callable[[], None]
    ended: Callable[[], NoReturn]
    silent: Callable[[], NoReturn]


class Channel:
    """Requests and their answers, one at a time. Every method may raise what `Watch` raises."""

    def __init__(self, port: socket.socket, watch: Watch) -> None:
        self.port = port
        self._watch = watch
        self._received = bytearray()
        self._token = PARKED
        self._number = 0

    def ask(
        self,
        request: dict[str, Any],
        seconds: float,
        on_hold: Callable[[str], None] | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for its answer: JSON and data."""
        self._number += 1
        text = json.dumps(request).encode()
        self._send(b"Q %s %d " % (self._token, self._number) + text + b"\n")
        end = time.monotonic() + seconds
        while True:
            words = self._line(end).split(b" ")
            if words[0] == b"A" and int(words[1]) == self._number:
                value: dict[str, Any] = json.loads(self._bytes(int(words[2]), end))
                return value, self._bytes(int(words[3]), end)
            if words[0] == b"H" and int(words[1]) == self._number:
                if on_hold is not None:
                    on_hold(words[2].decode())
                self._send(b"C " + self._token + b"\n")

    def park(self) -> None:
        """Let the guest take no requests, until `wake`."""
        self._set_token(PARKED, 30.0)

    def wake(self, seconds: float = 30.0) -> None:
        """Let the guest take requests again; what it said until now is forgotten."""
        self._set_token(secrets.token_hex(8).encode(), seconds)

    def _set_token(self, token: bytes, seconds: float) -> None:
        self._token = token
        self._send(b"\nT " + token + b"\n")
        end = time.monotonic() + seconds
        mark = b"\nS " + token + b"\n"
        while (at := self._received.find(mark)) < 0:
            self._receive(end)
        del self._received[: at + len(mark)]

    def _send(self, data: bytes) -> None:
        end = time.monotonic() + _SEND_SECONDS
        view = memoryview(data)
        while view:
            # The guest may be answering while we send: never let both ends wait.
            left = max(0.0, end - time.monotonic())
            readable, writable, _ = select.select([self.port], [self.port], [], left)
            if readable:
                self._take()
            if writable:
                try:
                    view = view[self.port.send(view[: 1 << 16], socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    pass
                except OSError:
                    self._watch.ended()
            elif not readable:
                self._watch.silent()

    def _line(self, end: float) -> bytes:
        while (at := self._received.find(b"\n")) < 0:
            self._receive(end)
        line = bytes(self._received[:at])
        del self._received[: at + 1]
        return line

    def _bytes(self, count: int, end: float) -> bytes:
        while len(self._received) < count:
            self._receive(end)
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

    def _receive(self, end: float) -> None:
        """Take in more of what the guest says."""
        left = max(0.0, end - time.monotonic())
        ready, _, _ = select.select([self.port, self._watch.connection], [], [], left)
        if self.port in ready:
            self._take()
        elif ready:
            self._watch.look()
        else:
            self._watch.silent()

    def _take(self) -> None:
        try:
            data = self.port.recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            self._watch.ended()
        self._received += data

"""The guest's end of the channel to the host, and what both ends say on it.

The host writes lines:

    T TOKEN                 from now on requests carry this token; answered by "S TOKEN"
    Q TOKEN NUMBER JSON     a request; one with another token is not for this guest's state
    C TOKEN                 go on after a hold

and the guest writes

    S TOKEN                 on a line of its own
    A NUMBER LENGTH SIZE    an answer: LENGTH bytes of JSON and SIZE bytes of data follow
    H NUMBER NAME           the program stands still until "C"

Tokens are why the channel survives `loadvm`: the host parks the guest under the token "-"
before a snapshot, so that a request that was on its way when the snapshot is loaded again
carries a token that the guest does not know, and is dropped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from memdesc.vm.guard import require_guest

__all__ = ["PARKED", "Port", "current_port", "hold", "open_port"]

PARKED = b"-"
"""The token of a guest that takes no requests."""

_current: list[Port] = []


class Port:
    """The serial port, inherited by every program that the init runs."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.token = PARKED
        self.number = 0
        self._pending = bytearray()

    def request(self) -> dict[str, Any]:
        """Wait for the next request; takes care of tokens on the way. Raises EOFError."""
        while True:
            kind, _, rest = self._line().partition(b" ")
            if kind == b"T":
                self.token = rest
                self.send(b"\nS " + rest + b"\n")
            elif kind == b"Q":
                token, number, text = rest.split(b" ", 2)
                if token == self.token:
                    self.number = int(number)
                    value: dict[str, Any] = json.loads(text)
                    return value

    def answer(self, value: dict[str, Any], data: bytes = b"") -> None:
        """Answer the request that came last."""
        text = json.dumps(value).encode()
        self.send(b"A %d %d %d\n" % (self.number, len(text), len(data)) + text)
        self.send(data)

    def send(self, data: bytes) -> None:
        """Write all of some bytes."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view[: 1 << 15]) :]

    def hold(self, name: str) -> None:
        """Tell the host, and spin until it says to go on: nothing else runs meanwhile."""
        go = b"C " + self.token + b"\n"
        os.set_blocking(self.fd, False)
        try:
            os.write(self.fd, b"H %d %s\n" % (self.number, name.encode()))
            while not self._pending.endswith(go):
                try:
                    self._pending += os.read(self.fd, 4096)
                except BlockingIOError:
                    pass
            self._pending.clear()
        finally:
            os.set_blocking(self.fd, True)

    def _line(self) -> bytes:
        end = self._pending.find(b"\n")
        while end < 0:
            seen = len(self._pending)
            data = os.read(self.fd, 1 << 16)
            if not data:
                raise EOFError("the host closed the port")
            self._pending += data
            end = self._pending.find(b"\n", seen)
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        return line


def open_port(name: str) -> Port:
    """The virtio port of that name. Raises FileNotFoundError where the machine has none."""
    for place in sorted(Path("/sys/class/virtio-ports").glob("*")):
        if (place / "name").exists() and (place / "name").read_text().strip() == name:
            port = Port(os.open(f"/dev/{place.name}", os.O_RDWR))
            _current[:] = [port]
            return port
    raise FileNotFoundError(f"no virtio port is called {name}")


def current_port() -> Port:
    """The port that this process inherited from the init. Raises RuntimeError without one."""
    if not _current:
        raise RuntimeError("this process was not started by the init")
    return _current[0]


def hold(name: str) -> None:
    """Stand still until the host has done what it does at the point `name`.

    For programs that the init runs.  Between the call and its return the host may stop the
    machine, dump its memory or take a snapshot; the program sees one moment.
    """
    require_guest("wait for the host")
    current_port().hold(name)

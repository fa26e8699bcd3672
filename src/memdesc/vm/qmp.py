"""QEMU's monitor (QMP): commands with time limits, and the events that come in between."""

from __future__ import annotations

import json
import select
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from memdesc.errors import VmError

__all__ = ["Event", "Qmp", "QmpClosedError"]


class QmpClosedError(VmError):
    """QEMU closed the connection: it ended."""


@dataclass(frozen=True)
class Event:
    """Something that QEMU reported on its own, as RESET, SHUTDOWN or STOP."""

    name: str
    data: dict[str, Any]


class Qmp:
    """One connection; not for several threads.

    `events` holds what was reported and not yet looked at, oldest first.
    """

    def __init__(self, connection: socket.socket, *, seconds: float = 10.0) -> None:
        self.connection = connection
        self.events: deque[Event] = deque()
        self._pending = bytearray()
        greeting = self._message(time.monotonic() + seconds)
        if greeting is None or "QMP" not in greeting:
            raise VmError("QEMU's monitor did not greet", hint="is this qemu-system-x86_64?")
        self.command("qmp_capabilities", seconds=seconds)

    def command(self, name: str, *, seconds: float = 30.0, **arguments: Any) -> Any:
        """Run a command and return its result; underscores in names stand for hyphens.

        Raises VmError with QEMU's own words when it is refused or takes too long, and
        QmpClosedError when QEMU ended.
        """
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        request: dict[str, Any] = {"execute": name}
        if given:
            request["arguments"] = given
        try:
            self.connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpClosedError(f"QEMU ended before {name}") from error
        end = time.monotonic() + seconds
        while (message := self._message(end)) is not None:
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise VmError(f"QEMU refused {name}: {message['error'].get('desc', 'no reason')}")
            self._keep(message)
        raise VmError(f"QEMU did not answer {name} within {seconds:.0f} s")

    def human(self, line: str, *, seconds: float = 60.0) -> None:
        """Run a command of the human monitor that is silent when it succeeds."""
        said = str(self.command("human-monitor-command", seconds=seconds, command_line=line))
        if said.strip():
            raise VmError(f"QEMU refused {line.split()[0]}: {said.strip().splitlines()[-1]}")

    def poll(self) -> None:
        """Take in what QEMU has reported so far, into `events`. Raises QmpClosedError."""
        while (message := self._message(time.monotonic())) is not None:
            self._keep(message)

    def _keep(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self.events.append(Event(str(message["event"]), dict(message.get("data") or {})))

    def _message(self, end: float) -> dict[str, Any] | None:
        """The next message, or None when there is none until `end`."""
        while b"\n" not in self._pending:
            left = max(0.0, end - time.monotonic())
            if not select.select([self.connection], [], [], left)[0]:
                return None
            try:
                data = self.connection.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                raise QmpClosedError("QEMU ended")
            self._pending += data
        line, _, rest = bytes(self._pending).partition(b"\n")
        self._pending[:] = rest
        value: dict[str, Any] = json.loads(line)
        return value

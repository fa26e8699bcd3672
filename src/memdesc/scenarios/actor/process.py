"""One process of a scenario: it waits for steps, does them, and says how they ended."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import traceback
from typing import Any, NoReturn

from . import areas, calls, devices, files, memory, pins, scan, shm, userfault
from .access import Access
from .limits import Limits
from .quiet import be_quiet
from .verbs import PARTS, PROCESS_VERBS, RefusedError, SignalledError

__all__ = ["Process", "be_process"]

_MODULES = (devices, areas, files, memory, pins, scan, shm, userfault)
"""Imported for the rows they put into the table."""


class Descriptors(dict):  # type: ignore[type-arg]
    """What a process has open, by name; EBADF for a name that it failed to open."""

    def __missing__(self, name: str) -> Any:
        raise OSError(errno.EBADF, f"there is no {name}")

    def take(self, name: str) -> Any:
        """Forget it; the caller closes it."""
        found = self[name]
        del self[name]
        return found


class Process:
    """What a step may use; all of it is inherited over fork, as a process's things are."""

    def __init__(self, folders: dict[str, str]) -> None:
        self.access = Access()
        self.folders = folders
        """Name of a file system -> where its files lie."""
        self.files = Descriptors()
        """File descriptors."""
        self.pins = Descriptors()
        """`pins.Pin`: what holds pages."""
        self.userfaults: list[userfault.Userfault] = []
        self.limits = Limits()
        self.heap = (0, 0)
        """Where `brk` has its heap, and its end."""
        self.pids: dict[str, int] = {}
        """Pids of the processes that a step names."""
        self.segments: dict[str, int] = {}
        """Numbers of all segments of System V shared memory."""

    def forget_references(self) -> None:
        """In a child: pins and userfaultfds belong to the parent alone."""
        for pin in self.pins.values():
            pin.close()
        for held in self.userfaults:
            os.close(held.fd)
        self.pins.clear()
        self.userfaults.clear()


def be_process(name: str, address: str, folders: dict[str, str]) -> NoReturn:
    """Connect to the controller and do what it says, until it says to exit."""
    try:
        process = Process(folders)
        stream = _connect(name, address)
        while True:
            stream = _serve(process, stream, address)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _connect(name: str, address: str) -> socket.SocketIO:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(address)
    stream = socket.SocketIO(connection, "rw")
    _say(stream, {"name": name, "pid": os.getpid()})
    return stream


def _serve(process: Process, stream: socket.SocketIO, address: str) -> socket.SocketIO:
    """Do one step; a child goes on with a connection of its own."""
    line = _line(stream)
    if not line:
        os._exit(0)
    request = json.loads(line)
    if request["verb"] == "exit":
        _say(stream, {"ok": None})
        os._exit(0)
    if request["verb"] == "be_quiet":
        be_quiet(tuple(request["args"]["arena"]))
        _say(stream, {"ok": None})
        return stream
    if request["verb"] == "fork":
        # The parent's children that have ended are of no interest to it.
        while _has_zombie():
            pass
        try:
            pid = os.fork()
        except OSError as error:
            _say(stream, {"errno": calls.error_name(error)})
            return stream
        if pid == 0:
            stream._sock.close()  # type: ignore[attr-defined]
            process.forget_references()
            return _connect(request["args"]["child"], address)
        _say(stream, {"ok": None, "pid": pid})
        return stream
    _say(stream, _outcome(process, request))
    return stream


def _outcome(process: Process, request: dict[str, Any]) -> dict[str, Any]:
    process.pids = request.get("pids", {})
    process.segments = request.get("segments", {})
    try:
        with process.limits.held():
            name = request["verb"]
            value = (PROCESS_VERBS.get(name) or PARTS[name])(process, request["args"])
    except OSError as error:
        return {"errno": calls.error_name(error)}
    except SignalledError as signalled:
        fault = signalled.fault
        return {"signal": fault.signal, "code": fault.code, "address": fault.address}
    except RefusedError as refused:
        return {"refused": str(refused)}
    except Exception:
        return {"broken": traceback.format_exc()}
    late = process.access.late()
    if late is not None:
        return {"signal": late.signal, "code": late.code, "address": late.address}
    return {"ok": value}


def _line(stream: socket.SocketIO) -> bytes:
    parts = []
    while True:
        data = stream.read(1 << 16) or b""
        parts.append(data)
        if not data or data.endswith(b"\n"):
            return b"".join(parts)


def _say(stream: socket.SocketIO, value: dict[str, Any]) -> None:
    view = memoryview(json.dumps(value).encode() + b"\n")
    while view:
        view = view[stream.write(view) :]


def _has_zombie() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


signal.signal(signal.SIGINT, signal.SIG_DFL)

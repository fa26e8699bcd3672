"""Process 1 of a guest: takes requests from the host and runs programs.

Each program runs in a forked child, so that what the init has imported need not be imported
again, and a program that dies takes nothing with it.  What a program leaves running (memory
planted in other processes) stays.  The port's protocol is in `vm.port`.
"""

from __future__ import annotations

import atexit
import base64
import importlib
import io
import json
import math
import os
import resource
import select
import signal
import socket
import struct
import sys
import tarfile
import traceback
from fcntl import ioctl
from pathlib import Path
from typing import Any

from memdesc.vm.guard import require_guest
from memdesc.vm.port import Port, open_port
from memdesc.vm.workload import calls

__all__ = ["main"]

PORT_NAME = "memdesc.port"
"""As `vm.qemu` names it; that module is for the host and heavy."""

_FOLDER = Path("/run/memdesc")
_PRELOAD_WORD = "memdesc.preload="
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_TAIL = 1 << 20
"""Bytes of output kept of a program; more is cut off at its beginning."""


def main() -> None:
    """Set the machine up, then serve until the host closes the port."""
    require_guest("act as the first process")
    try:
        _prepare()
        port = open_port(PORT_NAME)
        _preload()
        while True:
            _serve(port)
    except EOFError:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        calls.restart()


# --- requests ----------------------------------------------------------------------------


def _serve(port: Port) -> None:
    request = port.request()
    data = b""
    try:
        if request["do"] == "pull":
            value, data = _pull(request["path"])
        else:
            value = _DO[request["do"]](request)
    except Exception as error:
        value = {"error": f"{type(error).__name__}: {error}"}
    port.answer(value, data)
    _reap()


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Run a program, a function or a module in a child; its output, status and value."""
    names = [_FOLDER / name for name in ("stdout", "stderr", "value")]
    for name in names:
        name.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        _play(request)
    status = _wait(pid, None if request["cpu"] else request["seconds"])
    out, err, value = (name.read_bytes() if name.exists() else b"" for name in names)
    for name in names:
        name.unlink(missing_ok=True)
    return {
        "status": status,
        "stdout": out[-_TAIL:].decode(errors="replace"),
        "stderr": err[-_TAIL:].decode(errors="replace"),
        "value": json.loads(value) if value else None,
    }


def _push(request: dict[str, Any]) -> dict[str, Any]:
    path = Path(request["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab" if request["more"] else "wb") as file:
        file.write(base64.b64decode(request["data"]))
    return {}


def _pull(path: str) -> tuple[dict[str, Any], bytes]:
    """A file as it is, a folder as a tar archive."""
    if not Path(path).is_dir():
        return {"kind": "file"}, _content(path)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(path, arcname=".")
    return {"kind": "folder"}, packed.getvalue()


def _content(path: str) -> bytes:
    """All of a file; pieces are a multiple of 8, as the page files want them."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    finally:
        os.close(fd)


_DO = {"run": _run, "push": _push}


# --- programs ----------------------------------------------------------------------------


def _play(request: dict[str, Any]) -> None:
    """Be the child: run what was asked for, and end."""
    status = 1
    try:
        os.setsid()
        if request["cpu"]:
            limit = max(1, math.ceil(request["seconds"]))
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        for number, name in ((1, "stdout"), (2, "stderr")):
            fd = os.open(_FOLDER / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(fd, number)
            os.close(fd)
        os.chdir("/tmp")  # noqa: S108 - the guest's own
        status = _status_of(request)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _status_of(request: dict[str, Any]) -> int:
    try:
        value = _value_of(request)
        if value is not None:
            (_FOLDER / "value").write_text(json.dumps(value))
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _value_of(request: dict[str, Any]) -> Any:
    if "function" in request:
        module, _, name = request["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        return function(*request["args"], **request["kwargs"])
    path = request["path"]
    sys.argv = [path, *request["args"]]
    space: dict[str, Any] = {"__name__": "__main__", "__file__": path}
    exec(compile(request["source"], path, "exec"), space)  # noqa: S102 - what the init is for
    return space.get("result")


def _wait(pid: int, seconds: float | None) -> int:
    """Wait for a child, at most so long, then end it and its session; -N: signal N ended it."""
    fd = os.pidfd_open(pid)
    try:
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        if not waiting.poll(None if seconds is None else seconds * 1000):
            os.killpg(pid, signal.SIGKILL)
    finally:
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _reap() -> None:
    """Collect processes that programs left behind and that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


# --- the machine -------------------------------------------------------------------------


def _prepare() -> None:
    calls.mount("tmpfs", "/run", "tmpfs", "size=128m")
    calls.mount("tmpfs", "/tmp", "tmpfs", "size=128m")  # noqa: S108 - the guest's own
    calls.mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
    _FOLDER.mkdir()
    socket.sethostname("memdesc-guest")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        ioctl(link, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def _preload() -> None:
    words = Path("/proc/cmdline").read_text().split()
    for word in words:
        if word.startswith(_PRELOAD_WORD):
            for name in filter(None, word.removeprefix(_PRELOAD_WORD).split(",")):
                importlib.import_module(name)


if __name__ == "__main__":
    main()

"""The guest's side of a sweep: plant, look, and make one frame fail when asked.

One process does it all, so that nothing has to be started (and no frame taken) between the
moment that the host keeps and the failure: it was running then, its files were open, and
each request makes it do a handful of system calls.  A second process watches it, since the
frame that fails may be one of its own.
"""

from __future__ import annotations

import errno
import gc
import mmap
import os
import signal
import struct
import time
from pathlib import Path
from typing import Any

from memdesc.vm import inject
from memdesc.vm.guard import only_in_guest
from memdesc.vm.port import Port, current_port
from memdesc.vm.workload import calls, copying, stage
from memdesc.vm.workload.plant import drain

__all__ = ["TREE", "serve"]

TREE = "/run/sweep.tar"
"""The name by which the host pulls the copy of /proc and /sys."""

_HOW = {"hard": inject.hard_offline, "soft": inject.soft_offline}
_ERRNO = {0: "ok", 133: "EHWPOISON", **errno.errorcode}
"""EHWPOISON is one that Python has no name for (`include/uapi/asm-generic/errno.h`)."""
_HEALTH_SECONDS = 5.0
_SETTLE_SECONDS = 2.0
"""Grace periods, deferred work."""
_WORD = 8


@only_in_guest("plant memory and make it fail")
def serve() -> None:
    """Plant everything, copy what /proc says, and answer requests until the machine ends.

    The answer to this call is [pids of the processes that hold the planted memory]; then
    `guest.pull(TREE)` and `guest.call("...:fail", how, pfn)` are understood.
    """
    calls.set_name("sweep")
    notes = stage.plant()
    port = current_port()
    number = mmap.mmap(-1, mmap.PAGESIZE)
    server = os.fork()
    if server:
        _, status = os.waitpid(server, 0)
        port.number = struct.unpack_from("<Q", number)[0]
        ended = os.waitstatus_to_exitcode(status)
        _answer(port, None, status=ended)
        signal.pause()
    try:
        _Server(port, number, notes).run()
    except BaseException as error:
        _answer(port, None, status=1, said=repr(error))
    finally:
        os._exit(1)


class _Server:
    """The process that waits for requests, with everything open that it will need."""

    def __init__(self, port: Port, number: mmap.mmap, notes: dict[str, Any]) -> None:
        gc.disable()
        self.port = port
        self.number = number
        self.notes = notes
        self.arena = copying.Arena()
        self.log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        self.flags = os.open("/proc/kpageflags", os.O_RDONLY)
        self.counts = os.open("/proc/kpagecount", os.O_RDONLY)
        regions = notes["planted"]
        self.planted = sorted({row["pid"] for row in regions if "pid" in row and row["pid"] > 1})
        self.fail(None, None)  # so that the first failure finds every buffer warm
        copying.capture(self.arena)
        time.sleep(_SETTLE_SECONDS)
        drain()
        copying.capture(self.arena)
        # Looking at everything has moved a few frames: read the page files once more, alone.
        time.sleep(_SETTLE_SECONDS)
        drain()
        time.sleep(_SETTLE_SECONDS)
        for name in copying.PAGE_FILES:
            self.arena.read(f"proc/{name}", f"/proc/{name}", piece=4 << 20)

    def run(self) -> None:
        """Answer the request that started us, and then every other one."""
        _answer(self.port, self.planted)
        while True:
            request = self.port.request()
            struct.pack_into("<Q", self.number, 0, self.port.number)
            if request["do"] == "pull":
                notes = {f"{name}.json": rows for name, rows in self.notes.items()}
                copying.deliver(self.arena, notes, Path(TREE))
                self.port.answer({"kind": "file"}, Path(TREE).read_bytes())
            else:
                _answer(self.port, self.fail(*request["args"]))

    def fail(self, how: str | None, pfn: int | None) -> dict[str, Any]:
        """Make frame `pfn` fail "hard" or "soft"; what was seen. Without: only look around."""
        frame = pfn or 0
        self._said()
        before = self._seen(frame)
        code = _HOW[how](frame).errno if how is not None else 0
        return {
            "errno": _ERRNO.get(code, str(code)),
            "before": before,
            "after": self._seen(frame),
            "log": self._said(),
            "dead": [pid for pid in self.planted if not _lives(pid)],
            "healthy": _is_healthy(),
        }

    def _seen(self, pfn: int) -> list[int]:
        """The kpageflags word and kpagecount of a frame, [] where there is none."""
        try:
            words = [os.pread(fd, _WORD, pfn * _WORD) for fd in (self.flags, self.counts)]
        except OSError:
            return []
        return [int.from_bytes(word, "little") for word in words] if all(words) else []

    def _said(self) -> list[str]:
        """What the kernel has logged since it was last asked."""
        lines: list[str] = []
        while True:
            try:
                record = os.read(self.log, 8192)
            except BlockingIOError:
                return lines
            except OSError as error:
                if error.errno != errno.EPIPE:  # records were overwritten before we read them
                    raise
                continue
            text = record.partition(b";")[2].partition(b"\n")[0]
            lines.append(text.decode(errors="replace"))


# --- helpers -----------------------------------------------------------------------------


def _answer(port: Port, value: Any, status: int = 0, said: str = "") -> None:
    """Answer as the init would for a program that returned `value`."""
    port.answer({"status": status, "stdout": "", "stderr": said, "value": value})


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b") ")[2][:1] not in (b"Z", b"X")


def _is_healthy() -> bool:
    """Whether a new process can be made, use memory, write a file, and end."""
    pid = os.fork()
    if pid == 0:
        try:
            content = b"memdesc!" * (32 << 10)
            path = Path(f"/run/health-{os.getpid()}")
            path.write_bytes(content)
            sound = path.read_bytes() == content
            path.unlink()
            os._exit(0 if sound else 1)
        finally:
            os._exit(1)
    end = time.monotonic() + _HEALTH_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False

"""Does the steps of one scenario with real processes, and looks at all of them after each.

The controller never maps anything where scenarios do, so whatever it forks begins empty there.
It speaks JSON lines with its processes over Unix sockets; a forked child connects by itself.
All of them run on one CPU, so what waits in per-CPU batches is where `settle` empties it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import calls, knobs, look
from .process import be_process
from .quiet import be_quiet
from .shm import Segments
from .verbs import RefusedError

__all__ = ["ALONE", "SEVERAL", "play"]

LOG_WORD = "scenario: line"
"""What the kernel's log says before each step, for when nothing is said afterwards."""

_PR_SET_CHILD_SUBREAPER = 36
_STEP_SECONDS = 30.0
_END_SECONDS = 20.0
_QUIET_SECONDS = 0.2


class BrokenError(Exception):
    """A process of the scenario did what no step says: it ended, or it hangs."""


@dataclass
class _Peer:
    """A process of the scenario, seen from the controller."""

    name: str
    pid: int
    pidfd: int
    connection: socket.socket
    pins: set[str] = field(default_factory=set)
    """What it holds by io_uring or AF_XDP, whose end comes later than the process's."""


class Controller:
    """The processes of one scenario, and what may be done to the system."""

    def __init__(self, system: knobs.System, arena: tuple[int, int]) -> None:
        self._system = system
        self._drains = True
        self._arena = arena
        self._peers: dict[str, _Peer] = {}
        self._segments = Segments()
        self._remembered: dict[str, list[int]] = {}
        self._address = f"\0memdesc-scenario-{os.getpid()}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self._address)
        self._listener.listen(8)
        self._listener.settimeout(_STEP_SECONDS)
        names = [(path, f"{where}:") for where, path in system.folders.items()]
        self.observer = look.Observer(arena, names)

    @property
    def pids(self) -> dict[str, int]:
        """Every process that lives."""
        return {name: peer.pid for name, peer in self._peers.items()}

    def do(self, step: dict[str, Any]) -> dict[str, Any]:
        """Do one step: how it ended, as {"ok"}, {"errno"}, {"signal"} or {"refused"}."""
        alone = ALONE.get(step["verb"])
        try:
            if alone is not None and step["process"] is None:
                return {"ok": alone(self, step["args"])}
            if step["verb"] in SEVERAL:
                return SEVERAL[step["verb"]](self, step)
            return self._tell(step)
        except OSError as error:
            return {"errno": calls.error_name(error)}
        except RefusedError as refused:
            return {"refused": str(refused)}

    def settle(self) -> None:
        """Let nothing that the step began be unfinished."""
        if self._drains:
            self.observer.settle()

    def end(self) -> None:
        """End all processes."""
        for peer in list(self._peers.values()):
            os.kill(peer.pid, signal.SIGKILL)
            self._gone(peer)
        self._segments.end()

    # --- steps of nobody in particular ---------------------------------------------------

    def process(self, args: dict[str, Any]) -> None:
        """A new process, of the controller itself."""
        pid = os.fork()
        if pid == 0:
            self._listener.close()
            for peer in self._peers.values():
                peer.connection.close()
            be_process(args["name"], self._address, self._system.folders)
        self._welcome(args["name"])

    def kill(self, args: dict[str, Any]) -> None:
        """End a process from outside."""
        peer = self._peers[args["process"]]
        os.kill(peer.pid, signal.SIGKILL)
        self._gone(peer)

    def drain(self, args: dict[str, Any]) -> None:
        """What `settle` does after every step, or no longer does."""
        if args["state"] == "off":
            # What Python takes for itself would fill the batches, too.
            be_quiet(self._arena)
            for name in self._peers:
                quiet = {"process": name, "verb": "be_quiet", "args": {"arena": self._arena}}
                self._tell(quiet)
        self.observer.settle()
        if args["state"] != "now":
            self._drains = args["state"] == "on"

    def shm(self, args: dict[str, Any]) -> None:
        """A segment of System V shared memory."""
        self._segments.make(args["segment"], args["pages"])

    def shm_control(self, args: dict[str, Any]) -> None:
        """Lock, unlock or remove one."""
        self._segments.control(args["segment"], args["action"])

    def shm_attached(self, args: dict[str, Any]) -> int:
        """How many areas there are of one."""
        return self._segments.attached(args["segment"])

    def system(self, verb: str, args: dict[str, Any]) -> None:
        """A setting or a service of the whole system."""
        self._system.do(verb, args)

    def remembered(self, names: list[str]) -> dict[str, list[look.Row]]:
        """What has become of remembered frames."""
        return {name: self.observer.look_at_frames(self._remembered[name]) for name in names}

    def remember(self, step: dict[str, Any]) -> dict[str, Any]:
        """Which frames some pages of a process are."""
        place = step["args"]["range"]
        pid = self._peers[step["process"]].pid
        found = self.observer.remember(pid, place["address"], place["pages"])
        self._remembered[step["args"]["frames"]] = found
        return {"ok": None}

    def hand(self, step: dict[str, Any]) -> dict[str, Any]:
        """The other one copies the descriptors, then this one closes its own."""
        process, args = step["process"], step["args"]
        held = self._tell({**step, "verb": "handed"})
        taken = {**args, "held": held["ok"], "pid": self._peers[process].pid}
        self._tell({"process": args["other"], "verb": "take", "args": taken})
        if args["pin"] in self._peers[process].pins:
            self._peers[process].pins.discard(args["pin"])
            self._peers[args["other"]].pins.add(args["pin"])
        return self._tell({**step, "verb": "let_go"})

    # --- helpers -------------------------------------------------------------------------

    def _tell(self, step: dict[str, Any]) -> dict[str, Any]:
        peer = self._peers[step["process"]]
        request = {"verb": step["verb"], "args": step["args"], "pids": self.pids}
        request["segments"] = self._segments.numbers
        try:
            peer.connection.sendall(json.dumps(request).encode() + b"\n")
            reply = _received(peer.connection)
        except (EOFError, ConnectionError):
            return self._died(peer)
        except TimeoutError:
            raise BrokenError(f"process {peer.name} does not answer") from None
        if "broken" in reply:
            raise BrokenError(reply["broken"])
        if step["verb"] in ("pin", "umem") and "ok" in reply:
            peer.pins.add(step["args"]["pin"])
        if step["verb"] == "release":
            peer.pins.discard(step["args"]["pin"])
        if step["verb"] == "fork" and "pid" in reply:
            self._welcome(step["args"]["child"])
        if step["verb"] == "exit":
            self._gone(peer)
        return reply

    def _welcome(self, name: str) -> None:
        """Wait for a new process to say who it is."""
        try:
            connection, _ = self._listener.accept()
        except TimeoutError:
            raise BrokenError(f"process {name} does not come up") from None
        connection.settimeout(_STEP_SECONDS)
        hello = _received(connection)
        assert hello["name"] == name
        pid = hello["pid"]
        self._peers[name] = _Peer(name, pid, os.pidfd_open(pid), connection)
        if self._system.group is not None:
            self._system.group.join(pid)

    def _died(self, peer: _Peer) -> dict[str, Any]:
        """A process ended in the middle of a step: the kernel ended it, or a fault of ours."""
        number = _ending_signal(peer)
        self._gone(peer)
        if number == signal.SIGKILL:
            return {"signal": "SIGKILL", "code": ""}
        how = f"by {signal.Signals(number).name}" if number else "by itself"
        raise BrokenError(f"process {peer.name} ended {how}")

    def _gone(self, peer: _Peer) -> None:
        """Wait until a process has ended and its memory is gone."""
        # It has no memory any more when this says so: `kernel/exit.c:do_exit` comes to
        # exit_notify after exit_mm, exit_files and exit_task_work.
        if not select.select([peer.pidfd], [], [], _END_SECONDS)[0]:
            raise BrokenError(f"process {peer.name} does not end")
        peer.connection.close()
        os.close(peer.pidfd)
        del self._peers[peer.name]
        _reap()
        if peer.pins:
            _wait_for_rings()


ALONE: dict[str, Callable[[Controller, dict[str, Any]], int | None]] = {
    "process": Controller.process,
    "kill": Controller.kill,
    "drain": Controller.drain,
    "shm": Controller.shm,
    "shm_control": Controller.shm_control,
    "shm_attached": Controller.shm_attached,
}
SEVERAL: dict[str, Callable[[Controller, dict[str, Any]], dict[str, Any]]] = {
    "remember": Controller.remember,
    "hand": Controller.hand,
}
"""Steps of a process that are not its own doing alone."""
for _verb in knobs.VERBS:
    ALONE[_verb] = lambda controller, args, verb=_verb: controller.system(verb, args)  # type: ignore[misc]


def play(request: dict[str, Any]) -> dict[str, Any]:
    """Run a scenario's steps: the outcome of each and everything seen after it.

    `request` has "steps" as `Step.as_json` gives them, "counters" (names), "arena" (two
    addresses), "accessed", "contents" and "frame_contents" (whether rows ask for what shows that a
    page was used, for contents, and for those of remembered frames), for a guest "disk",
    "modules" and an image per file system, by its name (`mounts`).  The answer has "steps"; it
    ends early with "broken" (text) or "refused" (text) and the line of the step.  To keep it
    short, a range of pages that is as it was after the step before is left out.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    calls.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    played: list[dict[str, Any]] = []
    answer: dict[str, Any] = {"steps": played, "release": os.uname().release}
    line: int | None = None
    try:
        images: dict[str, Any] = {
            where: request[where] for where in ("ext4", "xfs", "vfat") if where in request
        }
        disk, modules = bool(request.get("disk")), request.get("modules", ())
        huge = any(knobs.changes_huge(step["verb"], step["args"]) for step in request["steps"])
        with knobs.System(images, disk, modules, huge) as system:
            if any(step["verb"] == "shrink" for step in request["steps"]):
                system.make_group()
            controller = Controller(system, tuple(request["arena"]))
            try:
                answer["refs"] = controller.observer.frames.has_refs
                if request.get("accessed"):
                    controller.observer.leave_untouched(contents=request["contents"])
                if request.get("frame_contents") and not controller.observer.frames.has_content:
                    raise RefusedError(
                        "this kernel has no /proc/kcore: nobody reads frames that nobody maps"
                    )
                seen: dict[str, Any] = {}
                for step in request["steps"]:
                    line = step["line"]
                    system.log(f"{LOG_WORD} {line}")
                    outcome = controller.do(step)
                    if "refused" in outcome:
                        return {**answer, "refused": outcome["refused"], "line": line}
                    controller.settle()
                    # First: looking takes memory, and it may be what was freed just now.
                    frames = controller.remembered(step["frames"])
                    looked = controller.observer.look(controller.pids, _watched(step))
                    counters = system.counters(request["counters"])
                    controller.settle()
                    areas = {name: {"vmas": vmas} for name, vmas in looked.vmas.items()}
                    played.append(
                        {
                            "outcome": outcome,
                            "pages": _changed(seen, looked.pages),
                            "vmas": _changed(seen, areas),
                            "counters": counters,
                            "frames": frames,
                        }
                    )
            finally:
                controller.end()
    except RefusedError as refused:
        return {**answer, "refused": str(refused), "line": line}
    except BrokenError as broken:
        return {**answer, "broken": str(broken), "line": line}
    except Exception:
        return {**answer, "broken": traceback.format_exc(), "line": line}
    return answer


def _watched(step: dict[str, Any]) -> list[look.Watched]:
    return [
        look.Watched(process, name, place["address"], place["pages"])
        for process, names in step["watch"].items()
        for name, place in names.items()
    ]


def _changed(before: dict[str, Any], now: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What differs from the last time, by process and name; None for "as before"."""
    found: dict[str, dict[str, Any]] = {}
    for process, names in now.items():
        found[process] = {}
        for name, value in names.items():
            same = before.get(f"{process} {name}") == value
            found[process][name] = None if same else value
            before[f"{process} {name}"] = value
    return found


def _received(connection: socket.socket) -> dict[str, Any]:
    """One line of JSON. Raises EOFError when the other end is gone."""
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(1 << 16)
        if not piece:
            raise EOFError
        data += piece
    value: dict[str, Any] = json.loads(data)
    return value


def _ending_signal(peer: _Peer) -> int:
    """The signal that ended a process that its parent has not collected yet."""
    select.select([peer.pidfd], [], [], _END_SECONDS)
    try:
        return (
            int(Path(f"/proc/{peer.pid}/stat").read_text().rpartition(") ")[2].split()[49]) & 0x7F
        )
    except (OSError, IndexError):
        return 0


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _wait_for_rings() -> None:
    """Wait until the rings of a process that has ended are gone, and their pins with them.

    A worker does that, later than the process ends (`io_uring/io_uring.c:io_ring_exit_work`,
    `net/xdp/xdp_umem.c:xdp_umem_release_deferred`).
    """
    last, since = _pins_held(), time.monotonic()
    began = since
    while time.monotonic() < since + _QUIET_SECONDS and time.monotonic() < began + _END_SECONDS:
        time.sleep(_QUIET_SECONDS / 10)
        now = _pins_held()
        if now != last:
            last, since = now, time.monotonic()


def _pins_held() -> int:
    """Pages that are pinned in the whole system."""
    counts = knobs.vmstat()
    return counts["nr_foll_pin_acquired"] - counts["nr_foll_pin_released"]


def main() -> None:
    """Read a request from standard input, write the answer to standard output."""
    answer = play(json.load(sys.stdin))
    json.dump(answer, sys.stdout, separators=(",", ":"))

"""A guest: boot a kernel, run programs inside, stop, save, load, dump, and always end.

    with Guest("6.12") as guest:
        print(guest.run("print(1 + 1)").stdout)
        guest.savevm("before")
        guest.call("memdesc.vm.inject:hard_offline", pfn)
        guest.loadvm("before")

A guest has no network and sees no file system of this machine.  It ends with its `with`
block, and with the thread that booted it however that ends.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

from memdesc.errors import VmError
from memdesc.vm.channel import Channel, Watch
from memdesc.vm.kdump import unflatten
from memdesc.vm.kernels import Kernel, fetch
from memdesc.vm.qemu import Machine, accelerator, qemu_command, start, stop
from memdesc.vm.qmp import Qmp, QmpClosedError
from memdesc.vm.root_disk import write_root_disk

__all__ = [
    "DumpFormat",
    "Guest",
    "GuestEndedError",
    "GuestProgramError",
    "GuestTimeoutError",
    "Outcome",
]

DumpFormat = Literal["elf", "kdump-zlib"]

_GRACE_SECONDS = 20.0
"""How much longer the host waits than a program may run by the guest's own clock."""

_CONSOLE_LINES = 12
_FOLDER_PREFIX = "memdesc-vm-"
_PANIC = "Kernel panic"
_PIECE = 1 << 20


class GuestEndedError(VmError):
    """The guest restarted, panicked or ended; `console` has its last lines."""

    def __init__(self, message: str, console: str) -> None:
        hint = f"its console ends with:\n{console}" if console else "its console shows nothing"
        super().__init__(message, hint=hint)
        self.console = console


class GuestTimeoutError(VmError):
    """The guest did not answer in time; only `loadvm` or ending it helps."""


class GuestProgramError(VmError):
    """A program inside the guest failed; `outcome` has what it said."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        said = outcome.stderr.strip().splitlines()
        super().__init__(message, hint="\n".join(said[-_CONSOLE_LINES:]))
        self.outcome = outcome


@dataclass(frozen=True)
class Outcome:
    """How a program in the guest ended."""

    status: int
    """Exit status; -N when signal N ended it (-9: also when its time was over)."""
    stdout: str
    stderr: str
    value: Any = None
    """What the program left in its global `result`, or the function returned: any JSON value."""


class Guest:
    """A virtual machine that runs one kernel; a context manager, not for several threads.

    `kernel` is a series ("6.12") or one that `vm.kernels.fetch` returned.  `boot_seconds`
    limits the time until the init answers.  Entering raises VmError where the kernel, QEMU
    or a tool is missing and GuestEndedError where the kernel does not come up.
    """

    def __init__(
        self,
        kernel: Kernel | str,
        machine: Machine | None = None,
        *,
        boot_seconds: float = 120.0,
    ) -> None:
        self.kernel = fetch(kernel) if isinstance(kernel, str) else kernel
        self.machine = machine or Machine()
        self.accelerator = "tcg"
        self._boot_seconds = boot_seconds
        self._folder: Path | None = None
        self._qemu: subprocess.Popen[bytes] | None = None
        self._qmp: Qmp | None = None
        self._channel: Channel | None = None
        self._broken: VmError | None = None
        self._console_start = 0

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.end()

    # --- programs ------------------------------------------------------------------------

    def run(
        self,
        program: str | Path,
        *args: str,
        seconds: float = 60.0,
        check: bool = True,
        on_hold: Callable[[str], None] | None = None,
    ) -> Outcome:
        """Run a Python program, given as its source or as a file of this machine.

        It finds `args` in sys.argv, may import memdesc, and leaves its result in the global
        `result`.  `seconds` is by the guest's clock (with icount: processor time).  `on_hold`
        is called with the name of each `vm.port.hold` that the program comes to, while
        nothing runs in the guest.
        Raises GuestProgramError when the status is not 0 and `check`, GuestTimeoutError,
        GuestEndedError.
        """
        source = program.read_text() if isinstance(program, Path) else program
        name = program.name if isinstance(program, Path) else "<program>"
        request = {"do": "run", "source": source, "path": name, "args": list(args)}
        return self._program(request, name, seconds, check=check, on_hold=on_hold)

    def call(
        self,
        function: str,
        *args: Any,
        seconds: float = 60.0,
        on_hold: Callable[[str], None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call `module:function` in the guest with JSON values; its result, a JSON value.

        Raises GuestProgramError with the traceback's last lines when it raises.
        """
        request = {"do": "run", "function": function, "args": list(args), "kwargs": kwargs}
        return self._program(request, function, seconds, check=True, on_hold=on_hold).value

    def push(self, data: bytes | Path, path: str) -> None:
        """Write bytes, or a file of this machine, to a file in the guest."""
        content = data.read_bytes() if isinstance(data, Path) else data
        for at in range(0, max(1, len(content)), _PIECE):
            piece = base64.b64encode(content[at : at + _PIECE]).decode()
            self._ask({"do": "push", "path": path, "data": piece, "more": at > 0}, 60.0)

    def pull(self, path: str) -> bytes:
        """The content of a file in the guest. Raises VmError when it cannot be read."""
        value, data = self._ask({"do": "pull", "path": path}, 120.0)
        if value["kind"] != "file":
            raise VmError(f"{path} is a folder in the guest", hint="pull_folder brings it")
        return data

    def pull_folder(self, path: str, to: Path) -> None:
        """Copy a folder of the guest to `to`, which is made. Raises VmError."""
        value, data = self._ask({"do": "pull", "path": path}, 120.0)
        if value["kind"] != "folder":
            raise VmError(f"{path} is a file in the guest", hint="pull brings it")
        to.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            _extract(archive, to)

    # --- the machine ---------------------------------------------------------------------

    def stop(self) -> None:
        """Let the guest stand still."""
        self._monitor().command("stop")

    def cont(self) -> None:
        """Let the guest go on."""
        self._monitor().command("cont")

    def savevm(self, tag: str, *, dump: Path | None = None) -> None:
        """Keep the guest's whole state, memory and disks, under a name.

        It lives as long as the guest.  0.3 to 1 s for 512 MB.  With `dump`, the memory of
        that very moment is also written there, as `dump` does with "elf".
        """
        qmp = self._monitor()
        self._requests().park()
        qmp.command("stop")
        try:
            qmp.human(f"savevm {tag}")
            if dump is not None:
                self.dump(dump)
        finally:
            qmp.command("cont")
        self._requests().wake()

    def loadvm(self, tag: str) -> None:
        """Go back to a state that was kept; also when the guest has restarted or hangs."""
        qmp = self._monitor()
        qmp.command("stop")
        qmp.human(f"loadvm {tag}")
        qmp.poll()
        qmp.events.clear()
        self._broken = None
        self._console_start = len(self.console)
        qmp.command("cont")
        self._requests().wake()

    def dump(self, path: Path, format: DumpFormat = "elf") -> None:  # noqa: A002 - QEMU's word
        """Write the guest's memory as a crash dump, with its VMCOREINFO.

        "elf" is as large as the guest's memory, "kdump-zlib" a tenth of it.  The guest
        stands still meanwhile (1 s, 3 s).  Raises VmError when it cannot be written.
        """
        if not path.parent.is_dir():
            raise VmError(f"no such folder: {path.parent}", hint="make it first")
        qmp = self._monitor()
        was_running = qmp.command("query-status")["running"]
        qmp.command("stop")
        try:
            raw = path if format == "elf" else path.with_name(path.name + ".flat")
            target = f"file:{raw.absolute()}"
            qmp.command(
                "dump-guest-memory", seconds=300.0, paging=False, protocol=target, format=format
            )
            if format != "elf":
                version = (f"#1 {self.kernel.package}", self.kernel.release)
                unflatten(raw, path, release=version[1], version=version[0])
                raw.unlink()
            path.chmod(0o600)
        finally:
            if was_running:
                qmp.command("cont")

    def end(self) -> None:
        """End the guest; nothing happens when it has ended."""
        qmp, self._qmp = self._qmp, None
        if qmp is not None:
            try:
                qmp.command("quit", seconds=2.0)
            except VmError:
                pass
            qmp.connection.close()
        if self._channel is not None:
            self._channel.port.close()
            self._channel = None
        if self._qemu is not None:
            stop(self._qemu)
            self._qemu = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    @property
    def pid(self) -> int:
        """Process id of the guest's QEMU. Raises VmError when it has ended."""
        self._monitor()
        assert self._qemu is not None
        return self._qemu.pid

    @property
    def console(self) -> str:
        """What the guest's kernel has written to its console so far."""
        path = self._folder / "console.txt" if self._folder is not None else None
        return path.read_text(errors="replace") if path is not None and path.exists() else ""

    # --- helpers -------------------------------------------------------------------------

    def _boot(self) -> None:
        self._folder = _own_folder()
        swap = self._folder / "swap.img"
        with swap.open("wb") as file:
            file.truncate(self.machine.swap_mb << 20)
        # Instructions can only be counted where they are emulated.
        self.accelerator = "tcg" if self.machine.icount else accelerator(self.kernel)
        monitor, theirs = socket.socketpair()
        ours, port = socket.socketpair()
        watch = Watch(monitor, self._look_at_events, self._gone, self._give_up)
        self._channel = Channel(ours, watch)
        with theirs, port:
            fds = (theirs.fileno(), port.fileno())
            command = qemu_command(
                self.kernel,
                self.machine,
                [write_root_disk(), swap],
                self._folder / "console.txt",
                fds,
                self.accelerator,
            )
            self._qemu = start(command, self._folder, fds)
        try:
            self._qmp = Qmp(monitor)
        except QmpClosedError:
            said = (self._folder / "qemu.txt").read_text(errors="replace").strip()
            monitor.close()
            raise VmError(f"QEMU did not start: {said.splitlines()[-1] if said else '?'}") from None
        if self.machine.balloon_mb:
            left = (self.machine.memory_mb - self.machine.balloon_mb) << 20
            self._qmp.command("balloon", value=left)
        self._qmp.command("cont")
        self._channel.wake(self._boot_seconds)

    def _monitor(self) -> Qmp:
        if self._qmp is None:
            raise VmError("the guest is not running", hint="use it inside its `with` block")
        return self._qmp

    def _program(
        self,
        request: dict[str, Any],
        name: str,
        seconds: float,
        *,
        check: bool,
        on_hold: Callable[[str], None] | None,
    ) -> Outcome:
        # A guest that counts instructions skips time when it idles, also while a disk works:
        # its clock says nothing there, processor time does.
        request = {**request, "seconds": seconds, "cpu": self.machine.icount}
        value, _ = self._ask(request, seconds + _GRACE_SECONDS, on_hold)
        outcome = Outcome(value["status"], value["stdout"], value["stderr"], value["value"])
        if check and outcome.status != 0:
            ended = f"signal {-outcome.status}" if outcome.status < 0 else f"{outcome.status}"
            raise GuestProgramError(f"{name} ended with {ended} in the guest", outcome)
        return outcome

    def _ask(
        self,
        request: dict[str, Any],
        seconds: float,
        on_hold: Callable[[str], None] | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        if self._broken is not None:
            raise self._broken
        value, data = self._requests().ask(request, seconds, on_hold)
        if "error" in value:
            raise VmError(f"the guest could not {request['do']}: {value['error']}")
        return value, data

    def _requests(self) -> Channel:
        if self._channel is None:
            raise VmError("the guest is not running", hint="use it inside its `with` block")
        return self._channel

    def _look_at_events(self) -> None:
        qmp = self._monitor()
        try:
            qmp.poll()
        except QmpClosedError:
            self._gone()
        while qmp.events:
            event = qmp.events.popleft()
            if event.name == "RESET" and event.data.get("guest"):
                qmp.command("stop")
                self._ended("the guest restarted")

    def _gone(self) -> NoReturn:
        self._ended("the guest's QEMU ended")

    def _ended(self, message: str) -> NoReturn:
        """Raise GuestEndedError, now and for every request until `loadvm`."""
        lines = self._last_lines()
        if any(_PANIC in line for line in lines):
            message = f"{message} after a kernel panic"
        text = "\n".join(lines)
        self._broken = GuestEndedError(f"{message} (kernel {self.kernel.release})", text)
        raise self._broken

    def _give_up(self) -> NoReturn:
        self._broken = GuestTimeoutError(
            f"the guest (kernel {self.kernel.release}) did not answer in time",
            hint="its console ends with:\n" + "\n".join(self._last_lines()),
        )
        raise self._broken

    def _last_lines(self) -> list[str]:
        """The end of the console since the last `loadvm`, or where it tells of a panic."""
        lines = [line.rstrip() for line in self.console[self._console_start :].splitlines()]
        lines = [line for line in lines if line]
        panic = next((i for i, line in enumerate(lines) if _PANIC in line), None)
        if panic is not None:
            return lines[max(0, panic - 2) :][:_CONSOLE_LINES]
        return lines[-_CONSOLE_LINES:]


def _own_folder() -> Path:
    """A folder for one guest; those that killed processes left behind are removed."""
    for old in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*-*"):
        owner = old.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-"))


def _extract(archive: tarfile.TarFile, to: Path) -> None:
    """Unpack regular files and folders, and nothing that leads out of `to`.

    tarfile's own filter is newer than the Python of Debian 12.
    """
    for member in archive:
        target = to / member.name
        if not (member.isfile() or member.isdir()) or not target.resolve().is_relative_to(
            to.resolve()
        ):
            raise VmError(f"the guest sent {member.name!r}, which is no plain file")
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        content = archive.extractfile(member)
        assert content is not None
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(content, file)

"""QEMU's command line for a guest, its process, and whether KVM really works here."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memdesc.errors import VmError
from memdesc.vm.guard import GUEST_WORD
from memdesc.vm.host import cache_folder, find_tool, locked
from memdesc.vm.initramfs import write_initramfs
from memdesc.vm.kernels import Kernel

__all__ = ["PORT_NAME", "Machine", "accelerator", "qemu_command", "start", "stop"]

PORT_NAME = "memdesc.port"
"""Name of the serial port on which host and init talk."""

PRELOAD_WORD = "memdesc.preload="

_KERNEL_WORDS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr norandmaps nowatchdog mitigations=off "
    "random.trust_cpu=on tsc=reliable secretmem.enable=1 rdinit=/init"
)
_TRIAL_SECONDS = 10.0
_TRIAL_SAYS = b"memdesc: the trial boot works"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Machine:
    """What a guest is made of."""

    memory_mb: int = 512
    icount: bool = False
    """Count instructions instead of time, and no random sources: runs repeat themselves."""
    balloon_mb: int = 0
    """Given back to the host before the guest's first instruction."""
    swap_mb: int = 64
    preload: tuple[str, ...] = field(default=("numpy", "memdesc.sources.open"))
    """Modules that the init imports once, so that programs need not."""
    words: tuple[str, ...] = ()
    """More words for the kernel's command line, as "movablecore=256M"."""


def qemu_command(
    kernel: Kernel,
    machine: Machine,
    disks: Sequence[Path],
    console: Path,
    sockets: tuple[int, int],
    accel: str,
) -> list[str]:
    """The command that boots a guest, stopped before its first instruction.

    `disks` appear in the guest as vda, vdb, ...; what is written to them is forgotten.
    `sockets` are the descriptors of the monitor and of the init's port.
    """
    words = f"{_KERNEL_WORDS} {GUEST_WORD} {PRELOAD_WORD}{','.join(machine.preload)}"
    words = " ".join((words, f"memdesc.balloon={machine.balloon_mb}", *machine.words))
    monitor, port = sockets
    options: list[tuple[str, str]] = [
        ("machine", f"q35,accel={accel}"),
        ("smp", "1"),
        ("m", f"{machine.memory_mb}M"),
        ("kernel", str(kernel.vmlinux)),
        ("initrd", str(write_initramfs(kernel))),
        ("append", words),
        ("display", "none"),
        ("serial", f"file:{console}"),
        ("chardev", f"socket,id=monitor,fd={monitor}"),
        ("mon", "chardev=monitor,mode=control"),
        ("chardev", f"socket,id=port,fd={port}"),
        ("device", "virtio-serial-pci"),
        ("device", f"virtserialport,chardev=port,name={PORT_NAME}"),
        ("device", "virtio-balloon-pci"),
        ("device", "vmcoreinfo"),
        ("sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"),
    ]
    if machine.icount:
        options += [
            ("cpu", "max,-rdrand,-rdseed"),
            ("icount", "shift=3,sleep=off"),
            ("rtc", "base=2024-01-01,clock=vm"),
            ("seed", "1"),
        ]
    else:
        options += [("cpu", "max")]
    options += [
        ("drive", f"file={disk},if=virtio,format=raw,cache=unsafe,snapshot=on") for disk in disks
    ]
    head = [find_tool("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-S"]
    return head + [word for name, value in options for word in (f"-{name}", value)]


def start(
    command: Sequence[str], folder: Path, keep: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start QEMU so that it ends with the thread that started it, however that ends.

    `folder` takes its temporary files, `keep` are descriptors that it inherits.
    """
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    with (folder / "qemu.txt").open("wb") as said:
        return subprocess.Popen(  # noqa: S603 - our own words, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=keep,
            env={**os.environ, "TMPDIR": str(folder)},
            preexec_fn=tie,  # noqa: PLW1509 - it only makes one system call
            start_new_session=True,  # an interrupt at the terminal is ours to handle
        )


def accelerator(kernel: Kernel) -> str:
    """ "kvm" where a guest really boots with it, else "tcg" (emulation in software).

    That /dev/kvm exists proves nothing: nested or restricted virtual machines offer it and
    then hang.  The trial takes at most 10 s and its outcome is kept until this machine
    starts anew.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept = cache_folder() / "accelerator.json"
    with locked(cache_folder() / "accelerator.lock"):
        try:
            known: dict[str, str] = json.loads(kept.read_text())
        except (OSError, ValueError):
            known = {}
        if known.get("boot") != boot:
            known = {"boot": boot, "accel": "kvm" if _kvm_boots(kernel) else "tcg"}
            kept.write_text(json.dumps(known))
    return known["accel"]


def _kvm_boots(kernel: Kernel) -> bool:
    """Whether a guest under KVM reaches user space within the time limit."""
    with tempfile.TemporaryDirectory(prefix="memdesc-vm-") as folder:
        console = Path(folder) / "console.txt"
        words = f"{_KERNEL_WORDS} {GUEST_WORD} memdesc.trial=1"
        command = [
            *(find_tool("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-machine", "q35,accel=kvm", "-cpu", "max", "-m", "256M", "-display", "none"),
            *("-kernel", str(kernel.vmlinux), "-initrd", str(write_initramfs(kernel))),
            *("-append", words, "-serial", f"file:{console}"),
        ]
        qemu = start(command, Path(folder))
        try:
            end = time.monotonic() + _TRIAL_SECONDS
            while time.monotonic() < end and qemu.poll() is None:
                time.sleep(0.1)
        finally:
            stop(qemu)
        return console.exists() and _TRIAL_SAYS in console.read_bytes()


def stop(qemu: subprocess.Popen[bytes]) -> None:
    """End a QEMU process that `start` started, and wait until it has ended."""
    if qemu.poll() is None:
        qemu.kill()
    try:
        qemu.wait(10)
    except subprocess.TimeoutExpired as error:
        raise VmError(f"QEMU (process {qemu.pid}) does not end") from error

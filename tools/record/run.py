"""Boot a kernel in QEMU, let the guest record itself, and write the recording as a directory tree.

QEMU runs with instruction counting and without random sources, so that a second run of the same
kernel with the same guest gives nearly the same recording (when the disk answers is the rest).
One guest runs at a time, it has no network and sees no file system of this machine, and it is ended
when its time is over.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from .initramfs import write_initramfs, write_root_disk
from .kernels import Kernel, RecordError, fetch

MEMORY_MB = 640
BALLOON_MB = 8
RESULT_MB = 64
SWAP_MB = 64
BOOT_SECONDS = 300.0

_COMMAND_LINE = (
    "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr norandmaps nowatchdog mitigations=off "
    "random.trust_cpu=on tsc=reliable secretmem.enable=1 memdesc.guest=1 "
    f"memdesc.balloon={BALLOON_MB} rdinit=/init"
)
# The balloon is told its size before the guest's first instruction: the same each time.
_MONITOR_INPUT = "".join(
    json.dumps(command) + "\n"
    for command in (
        {"execute": "qmp_capabilities"},
        {"execute": "balloon", "arguments": {"value": (MEMORY_MB - BALLOON_MB) << 20}},
        {"execute": "cont"},
    )
)
_BLOCK = 4096


@dataclass(frozen=True)
class Disks:
    """The guest's disks, in the order in which it sees them (vda, vdb, vdc)."""

    root: Path
    result: Path
    swap: Path


def record(name: str, out: Path, cache: Path, seconds: float = BOOT_SECONDS) -> Kernel:
    """Record one kernel series into ``out``; returns the kernel that was recorded."""
    kernel = fetch(name, cache)
    work = cache / "work"
    work.mkdir(parents=True, exist_ok=True)
    initramfs = work / "initramfs"
    disks = Disks(work / "root.img", work / "result.img", work / "swap.img")
    write_initramfs(kernel, initramfs)
    write_root_disk(disks.root, work / "root")
    for path, size in ((disks.result, RESULT_MB), (disks.swap, SWAP_MB)):
        path.unlink(missing_ok=True)
        with path.open("wb") as disk:
            disk.truncate(size << 20)
    console = work / f"console-{name}"
    boot(kernel, initramfs, disks, console, seconds)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        unpack(disks.result, partial)
    except (tarfile.TarError, OSError) as error:
        shown = "\n".join(console.read_text(errors="replace").splitlines()[:60])
        raise RecordError(
            f"the guest delivered no recording ({error}); its console shows:\n{shown}"
        ) from error
    shutil.copyfile(kernel.config, partial / "config")
    shutil.copyfile(console, partial / "console.txt")
    (partial / "kernel.txt").write_text(f"{kernel.package}\n{kernel.release}\n")
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return kernel


def qemu_command(kernel: Kernel, initramfs: Path, disks: Disks, console: Path) -> list[str]:
    """The command that boots the guest."""
    options = {
        "machine": "q35,accel=tcg",
        "cpu": "max,-rdrand,-rdseed",
        "smp": "1",
        "m": f"{MEMORY_MB}M",
        "icount": "shift=3,sleep=off",
        "rtc": "base=2024-01-01,clock=vm",
        "seed": "1",
        "kernel": str(kernel.vmlinux),
        "initrd": str(initramfs),
        "append": _COMMAND_LINE,
        "display": "none",
        "serial": f"file:{console}",
        "device": "virtio-balloon-pci",
        "qmp": "stdio",
    }
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-S"]
    command += [word for name, value in options.items() for word in (f"-{name}", value)]
    for disk, snapshot in ((disks.root, "on"), (disks.result, "off"), (disks.swap, "on")):
        command += ["-drive", f"file={disk},if=virtio,format=raw,cache=unsafe,snapshot={snapshot}"]
    return command


def boot(kernel: Kernel, initramfs: Path, disks: Disks, console: Path, seconds: float) -> float:
    """Run the guest until it restarts; returns the seconds it took."""
    began = time.monotonic()
    try:
        guest = subprocess.Popen(
            qemu_command(kernel, initramfs, disks, console),
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        raise RecordError("qemu-system-x86_64 is not installed on this machine") from None
    try:
        _, complaint = guest.communicate(_MONITOR_INPUT.encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        raise RecordError(
            f"the guest was still running after {seconds:.0f} s (see {console})"
        ) from None
    finally:
        if guest.poll() is None:
            guest.kill()
            guest.wait()
    if guest.returncode != 0:
        raise RecordError(f"QEMU failed: {complaint.decode(errors='replace').strip()}")
    return time.monotonic() - began


# -- the result --------------------------------------------------------------------------------


def unpack(result: Path, out: Path) -> None:
    """Unpack the archive that the guest wrote; pagemaps become sparse files again."""
    with tarfile.open(result, mode="r|", format=tarfile.USTAR_FORMAT) as archive:
        for member in archive:
            content = archive.extractfile(member)
            parts = Path(member.name).parts
            if content is None or ".." in parts or parts[0] == "/":
                raise RecordError(f"unexpected member {member.name!r} in the recording")
            path = out / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = content.read()
            if path.name == "pagemap":
                write_pagemap(path, data)
            else:
                path.write_bytes(data)
    if not (out / "proc" / "kpageflags").exists():
        raise tarfile.TarError("kpageflags is missing")


def write_pagemap(path: Path, packed: bytes) -> None:
    """Write packed ranges (first page, count, entries) at their true offsets; zeros are holes."""
    zeros = bytes(_BLOCK)
    position = 0
    with path.open("wb") as file:
        while position < len(packed):
            first, count = struct.unpack_from("<QQ", packed, position)
            position += 16
            entries = memoryview(packed)[position : position + 8 * count]
            position += 8 * count
            offset, end = first * 8, (first + count) * 8
            file.truncate(max(end, path.stat().st_size if path.exists() else 0))
            while offset < end:
                stop = min(end, (offset // _BLOCK + 1) * _BLOCK)
                piece = entries[offset - first * 8 : stop - first * 8]
                if piece != zeros[: len(piece)]:
                    file.seek(offset)
                    file.write(piece)
                offset = stop

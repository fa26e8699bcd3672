"""Record a kernel: plant memory of every kind in a guest and bring back what is said about it.

A recording is a folder:

    tree/           a copy of the guest's /proc and /sys, which `--source tree:` opens
    tree/planted.json, counted.json    what was planted, and where (see `workload.stage.plant`)
    vmcore          the memory of the very same moment, as a crash dump
    vmlinux         the kernel, with BTF; kallsyms: its symbols and their addresses
    capture/        the same guest, a little later, as memdesc's own live source saw it

The guest counts instructions instead of time and has no random sources; writeback,
compaction, khugepaged and KSM stand still.  A second recording of the same kernel with the
same memdesc differs in about 1 % of its flag words (when the disk answers is not counted).
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memdesc.errors import QuestionError, VmError
from memdesc.vm.guest import DumpFormat, Guest
from memdesc.vm.kernels import Kernel, fetch
from memdesc.vm.qemu import Machine

__all__ = ["MACHINE", "Recording", "dump_planted", "record", "unpack_tree"]

MACHINE = Machine(memory_mb=640, icount=True, balloon_mb=8, preload=())
"""What recordings are made with."""

_SECONDS = 300.0
_BLOCK = 4096
_PACKED = "/run/recording.tar"
_CAPTURE = "/run/capture"

Tell = Callable[[str], None]
"""Called with what is done now, in a few words."""


@dataclass(frozen=True)
class Recording:
    """A recorded kernel on disk. A part that was left out is a path that does not exist."""

    folder: Path

    @property
    def tree(self) -> Path:
        """The copy of /proc and /sys."""
        return self.folder / "tree"

    @property
    def vmcore(self) -> Path:
        """The memory dump."""
        return self.folder / "vmcore"

    @property
    def vmlinux(self) -> Path:
        """The kernel's ELF file, with BTF and without DWARF."""
        return self.folder / "vmlinux"

    @property
    def kallsyms(self) -> Path:
        """The guest's /proc/kallsyms, with addresses."""
        return self.folder / "kallsyms"

    @property
    def capture(self) -> Path:
        """The capture that memdesc made inside the guest."""
        return self.folder / "capture"

    @property
    def release(self) -> str:
        """The kernel's release, as `uname -r` prints it."""
        return (self.tree / "proc/sys/kernel/osrelease").read_text().strip()

    def planted(self) -> list[dict[str, Any]]:
        """What was planted and exists on this kernel; rows as `workload.stage.plant` has them."""
        rows: list[dict[str, Any]] = json.loads((self.tree / "planted.json").read_text())
        return [row for row in rows if "missing" not in row]


def record(
    kernel: Kernel | str,
    output: Path,
    *,
    dump: DumpFormat | None = "elf",
    capture: bool = True,
    machine: Machine = MACHINE,
    also: Callable[[Guest, Recording], None] | None = None,
    tell: Tell = lambda _: None,
) -> Recording:
    """Record a kernel into the folder `output`, which must not exist.

    `also` is called at the end, with the guest still as it was recorded and the folder that is
    being filled.

    Raises QuestionError when it exists, VmError where the rig lacks something or the guest
    fails; nothing is left at `output` then.
    """
    if output.exists():
        raise QuestionError(f"{output} exists", hint="name a folder that does not exist yet")
    if capture and importlib.util.find_spec("arro3") is None:
        raise VmError(
            "a capture needs the Python package arro3, which goes into the guest from here",
            hint="pip install 'memdesc[capture]'",
        )
    tell("fetching the kernel")
    found = fetch(kernel) if isinstance(kernel, str) else kernel
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _record(found, partial, dump, machine, tell, also, capture=capture)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Recording(output)


def dump_planted(
    kernel: Kernel | str,
    output: Path,
    *,
    format: DumpFormat = "elf",  # noqa: A002 - QEMU's word
    machine: Machine = MACHINE,
    tell: Tell = lambda _: None,
) -> Kernel:
    """Plant memory of every kind in a guest and dump it to the file `output`."""
    tell("booting")
    with Guest(kernel, machine) as guest:
        tell("planting")
        guest.call("memdesc.vm.workload.stage:plant", seconds=_SECONDS)
        tell("dumping")
        guest.dump(output, format)
        return guest.kernel


# --- helpers -----------------------------------------------------------------------------


def _record(
    kernel: Kernel,
    folder: Path,
    dump: DumpFormat | None,
    machine: Machine,
    tell: Tell,
    also: Callable[[Guest, Recording], None] | None,
    *,
    capture: bool,
) -> None:
    recording = Recording(folder)

    def at_hold(_name: str) -> None:
        if dump is not None:
            tell("dumping")
            guest.dump(recording.vmcore, dump)

    tell("booting")
    with Guest(kernel, machine) as guest:
        tell("planting and copying")
        guest.call("memdesc.vm.workload.stage:record", _PACKED, seconds=_SECONDS, on_hold=at_hold)
        tell("bringing the copy back")
        unpack_tree(guest.pull(_PACKED), recording.tree)
        if capture:
            tell("capturing")
            guest.call("memdesc.vm.workload.stage:capture", _CAPTURE, seconds=_SECONDS)
            guest.pull_folder(_CAPTURE, recording.capture)
        if also is not None:
            also(guest, recording)
        (recording.tree / "console.txt").write_text(guest.console)
    (recording.tree / "kallsyms").rename(recording.kallsyms)
    shutil.copyfile(kernel.config, recording.tree / "config")
    shutil.copyfile(kernel.vmlinux, recording.vmlinux)
    (recording.tree / "kernel.txt").write_text(f"{kernel.package}\n{kernel.release}\n")


def unpack_tree(packed: bytes, out: Path) -> None:
    """Unpack the archive that the guest wrote; pagemaps become sparse files again."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            content = archive.extractfile(member)
            parts = Path(member.name).parts
            if content is None or ".." in parts or parts[0] == "/":
                raise VmError(f"unexpected member {member.name!r} in the recording")
            path = out / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = content.read()
            if path.name == "pagemap":
                _write_pagemap(path, data)
            else:
                path.write_bytes(data)
    if not (out / "proc" / "kpageflags").exists():
        raise VmError("the guest's recording has no kpageflags")


def _write_pagemap(path: Path, packed: bytes) -> None:
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

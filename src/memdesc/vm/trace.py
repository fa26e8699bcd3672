"""Record a trace: a guest's page allocator at work, with all of its lists before and after.

A recorded trace is a folder:

    trace/              a copy of tracefs: raw buffers, formats, what was lost
    before/, after/     /proc at the two moments; `--source tree:DIR/before` opens it
    trace.npz           all of it in one small file: the events in columns, the lists of the
                        allocator in their order (from dumps of the two moments), page flags,
                        and the text files copied between the steps
    kallsyms, kernel.txt, console.txt; before.vmcore, after.vmcore and vmlinux if asked for

The guest has one CPU, as every guest here; `memdesc.vm.workload.trace` says what runs in it.
"""

from __future__ import annotations

import dataclasses
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError, VmError
from memdesc.sources.structs import DumpSource
from memdesc.structs.walk.allocator import read_allocator
from memdesc.traces.raw import read_raw
from memdesc.traces.read import STORED_NAME
from memdesc.traces.state import AllocatorState
from memdesc.traces.store import Recorded, save_recorded
from memdesc.vm.guest import Guest
from memdesc.vm.kernels import Kernel, fetch
from memdesc.vm.qemu import Machine

__all__ = ["BUFFER_KB", "MACHINE", "WORKLOADS", "record_trace"]

MACHINE = Machine(memory_mb=512, preload=())
"""What traces are recorded with."""

BUFFER_KB = 32768
"""Size of the ring buffer: three times what the workloads need."""

WORKLOADS = {
    "compile": "Python compiles on ext4, many small files, processes",
    "churn": "anonymous memory, huge pages and munmap, pipes, sockets, forks",
    "steps": "hugetlb pool, mmap and touch, files, pipes; free lists copied after each",
}
"""Name -> what it does; the guest's side is `memdesc.vm.workload.trace.WORKLOADS`."""

_PACKED = "/run/traced.tar"
_SECONDS = 300.0
_MOMENTS = ("before", "after")
_TEXT_FILES = ("buddyinfo", "pagetypeinfo", "zoneinfo", "slabinfo")

Tell = Callable[[str], None]


def record_trace(
    kernel: Kernel | str,
    output: Path,
    *,
    workload: str = "compile",
    machine: Machine = MACHINE,
    buffer_kb: int = BUFFER_KB,
    dumps: bool = False,
    tell: Tell = lambda _: None,
) -> Recorded:
    """Record a trace into the folder `output`, which must not exist.

    `dumps` keeps the memory dumps of both moments, and the kernel's image beside them.
    Raises QuestionError for a folder that exists or a workload that does not, VmError where the
    rig lacks something, the guest fails, or the ring buffer lost events; nothing is left at
    `output` then.
    """
    if output.exists():
        raise QuestionError(f"{output} exists", hint="name a folder that does not exist yet")
    if workload not in WORKLOADS:
        raise QuestionError(f"no such workload: {workload!r}", hint=", ".join(WORKLOADS))
    tell("fetching the kernel")
    found = fetch(kernel) if isinstance(kernel, str) else kernel
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        lost = _run(found, partial, workload, machine, buffer_kb, tell)
        if any(lost.values()):
            kinds = ", ".join(f"{key}: {value}" for key, value in lost.items() if value)
            raise VmError(
                f"the guest's ring buffer lost events ({kinds})", hint="give it more --buffer-kb"
            )
        tell("reading the lists")
        recorded = _gathered(found, partial, workload, machine)
        save_recorded(partial / STORED_NAME, recorded)
        if not dumps:
            for name in (*(f"{moment}.vmcore" for moment in _MOMENTS), "vmlinux"):
                (partial / name).unlink()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return recorded


# --- helpers -----------------------------------------------------------------------------


def _run(
    kernel: Kernel, folder: Path, workload: str, machine: Machine, buffer_kb: int, tell: Tell
) -> dict[str, int]:
    """Boot, trace, dump at both moments, and bring everything back."""

    def at_hold(name: str) -> None:
        if name in _MOMENTS:
            tell(f"dumping ({name})")
            guest.dump(folder / f"{name}.vmcore")

    tell("booting")
    with Guest(kernel, machine) as guest:
        tell(f"tracing ({workload})")
        said: dict[str, Any] = guest.call(
            "memdesc.vm.workload.trace:record",
            *(_PACKED, workload, buffer_kb),
            seconds=_SECONDS,
            on_hold=at_hold,
        )
        tell("bringing the trace back")
        _unpack(guest.pull(_PACKED), folder)
        (folder / "console.txt").write_text(guest.console)
    (folder / "kernel.txt").write_text(f"{kernel.package}\n{kernel.release}\n")
    shutil.copyfile(kernel.vmlinux, folder / "vmlinux")
    lost: dict[str, int] = said["lost"]
    return lost


def _unpack(packed: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            content = archive.extractfile(member)
            path = Path(member.name)
            if content is None or path.is_absolute() or ".." in path.parts:
                raise VmError(f"unexpected member {member.name!r} in the recording")
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content.read())


def _gathered(kernel: Kernel, folder: Path, workload: str, machine: Machine) -> Recorded:
    steps = sorted((folder / "steps").glob("*/*")) if (folder / "steps").is_dir() else []
    before, after = (_state(folder, moment) for moment in _MOMENTS)
    return Recorded(
        trace=read_raw(folder / "trace"),
        before=before,
        after=after,
        flags_before=_flags(folder, "before"),
        flags_after=_flags(folder, "after"),
        steps={f"{path.parent.name}/{path.name}": path.read_text() for path in steps},
        about={
            "kernel": kernel.package,
            "release": kernel.release,
            "workload": workload,
            "memory_mb": machine.memory_mb,
        },
    )


def _state(folder: Path, moment: str) -> AllocatorState:
    source = DumpSource(folder / f"{moment}.vmcore")
    state = read_allocator(source.kernel, source.memmap)
    texts = {name: (folder / moment / "proc" / name).read_text() for name in _TEXT_FILES}
    return dataclasses.replace(state, files=texts)


def _flags(folder: Path, moment: str) -> NDArray[np.uint64]:
    return np.fromfile(folder / moment / "proc" / "kpageflags", np.uint64)

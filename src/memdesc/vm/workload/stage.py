"""The whole workload: settings that make the guest hold still, the roles, the recording.

For the init: `plant` sets everything up and leaves it running, `record` copies what the
kernel says about it, and `capture` lets memdesc itself look.
"""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path
from typing import Any

from memdesc.vm.guard import only_in_guest
from memdesc.vm.port import hold
from memdesc.vm.workload import calls, copying
from memdesc.vm.workload.plant import Planter, Region, drain
from memdesc.vm.workload.roles import KSM_SAME, ROLES, wait

__all__ = ["capture", "plant", "play", "record"]

# What would change memory behind the recording's back is switched off, or made to wait.
SETTINGS = {
    "/proc/sys/kernel/kptr_restrict": "0",
    "/proc/sys/vm/dirty_writeback_centisecs": "0",
    "/proc/sys/vm/dirty_expire_centisecs": "8640000",
    "/proc/sys/vm/compaction_proactiveness": "0",
    "/proc/sys/vm/overcommit_memory": "1",
    "/proc/sys/vm/nr_hugepages": "8",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always",
    "/sys/kernel/mm/transparent_hugepage/defrag": "always",
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled": "advise",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag": "0",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan": "1",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs": "3600000",
    "/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled": "madvise",
}
CGROUPS = ("web", "web/frontend", "web/cache", "db", "batch")
BALLOON_WORD = "memdesc.balloon="
COMM = {"monitor": "monitor (probe)"}  # a name as awkward as real ones are


def _prepare() -> None:
    """Mount what the workload needs and make the machine hold still."""
    calls.mount("tmpfs", "/huge", "tmpfs", "huge=always,size=32m")
    for path, value in SETTINGS.items():
        if Path(path).exists():
            Path(path).write_text(value)
    root = Path("/sys/fs/cgroup")
    (root / "cgroup.subtree_control").write_text("+memory")
    for name in CGROUPS:
        (root / name).mkdir()
        if name == "web":
            (root / name / "cgroup.subtree_control").write_text("+memory")


def _start(role: str, cgroup: str) -> tuple[list[Region], list[Region]]:
    """Start one role in its cgroup; returns its regions and counts, once it has planted them."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        Path(f"/sys/fs/cgroup{cgroup}/cgroup.procs").write_text(str(os.getpid()))
        os.dup2(writing, 1)
        os.execv("/usr/bin/python3", ["python3", "-m", "memdesc.vm.workload", role])
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        line = pipe.readline()
    if not line:
        raise RuntimeError(f"{role} died")
    regions, counted = json.loads(line)
    return regions, counted


@only_in_guest("plant memory")
def play(role: str) -> None:
    """Be one role: plant, report, wait."""
    comm = COMM.get(role, role)
    calls.set_name(comm)
    gc.disable()
    plant = Planter(comm)
    ROLES[role][1](plant)
    drain()
    os.write(1, json.dumps([plant.regions, plant.counted]).encode() + b"\n")
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    wait()


def _merge() -> None:
    """Let KSM merge what is equal, then stop it (merged pages stay merged)."""
    ksm = Path("/sys/kernel/mm/ksm")
    for name, value in (("pages_to_scan", "4000"), ("sleep_millisecs", "1"), ("run", "1")):
        (ksm / name).write_text(value)
    for _ in range(200):
        time.sleep(0.02)
        if (
            int((ksm / "full_scans").read_text()) >= 4
            and int((ksm / "pages_sharing").read_text()) >= KSM_SAME
        ):
            break
    (ksm / "run").write_text("0")


def _kernel_image() -> list[Region]:
    """The kernel's own image, whose place /proc/iomem names."""
    regions: list[Region] = []
    for line in Path("/proc/iomem").read_text().splitlines():
        place, _, name = line.strip().partition(" : ")
        if name in ("Kernel code", "Kernel rodata"):
            first, last = (int(bound, 16) for bound in place.split("-"))
            pages = (last + 1) // 4096 - -(-first // 4096)
            regions.append(
                {
                    "kind": "kernel_image",
                    "pfn_start": -(-first // 4096),
                    "nr_pages": pages,
                    "note": name,
                }
            )
    return regions


def _special_mappings() -> list[Region]:
    """The pages that the kernel maps into every process."""
    regions: list[Region] = []
    for pid in copying.processes():
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            name = line.split()[-1]
            if name in ("[vdso]", "[vvar]", "[vvar_vclock]"):
                first, last = (int(bound, 16) for bound in line.split()[0].split("-"))
                place = {
                    "pid": int(pid),
                    "comm": comm,
                    "address": first,
                    "nr_pages": (last - first) // 4096,
                }
                regions.append(
                    {
                        "kind": name.strip("[]"),
                        **place,
                        "note": "only pages that were touched are present",
                    }
                )
    return regions


@only_in_guest("plant memory and change settings")
def plant() -> dict[str, list[Region]]:
    """Plant memory of every kind, in processes that stay; what was planted, and counted.

    "planted" are regions: mapped ones with `pid`, `comm`, `address`, `nr_pages`, others with
    `pfn_start`, `nr_pages`, and kinds that this kernel has not with `missing`, the reason.
    "counted" is memory of the kernel's own whose place is not known, in bytes.
    """
    _prepare()
    words = Path("/proc/cmdline").read_text().split()
    balloon_mb = next(int(word.split("=")[1]) for word in words if word.startswith(BALLOON_WORD))
    planted: list[Region] = []
    counted: list[Region] = [
        {"kind": "balloon", "bytes": balloon_mb << 20, "note": "returned to the host"}
    ]
    for role, (cgroup, _) in ROLES.items():
        regions, counts = _start(role, cgroup)
        planted += regions
        counted += counts
    _merge()
    planted += _kernel_image() + _special_mappings()
    return {"planted": planted, "counted": counted}


@only_in_guest("record a planted workload")
def record(path: str) -> None:
    """Plant, copy what /proc and /sys say, and write it as a tar archive to `path`.

    Right after the page files were read, holds at "recorded", so that the host may dump the
    memory that they describe.
    """
    calls.set_name("recorder")
    notes = plant()
    gc.disable()
    arena = copying.Arena()
    time.sleep(2)  # grace periods, deferred work
    drain()
    copying.capture(arena)
    drain()
    copying.capture(arena)
    hold("recorded")
    copying.deliver(arena, {f"{name}.json": rows for name, rows in notes.items()}, Path(path))


def capture(path: str) -> dict[str, Any]:
    """Capture this machine with memdesc's own live source into the folder `path`."""
    from memdesc.sources.capture_write import write_capture
    from memdesc.sources.source import ProcSource

    source = ProcSource()
    info = write_capture(
        Path(path),
        source.scan(),
        attribution=source.attribution(),
        names=True,
        after=source.counters,
    )
    return {"extents": info.extents, "size_bytes": info.size_bytes}

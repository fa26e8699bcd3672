"""Process 1 of the guest (no argument), or one role of the workload (its name)."""

from __future__ import annotations

import gc
import json
import os
import socket
import struct
import sys
import time
import traceback
from fcntl import ioctl
from pathlib import Path

from . import dump
from . import syscalls as calls
from .plant import Planter, Region, drain
from .roles import KSM_SAME, ROLES, wait

# What would change memory behind the recording's back is switched off, or made to wait.
SETTINGS = {
    "/proc/sys/kernel/hostname": "memdesc-guest",
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
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def prepare() -> None:
    """Mount what the workload needs and make the machine hold still."""
    calls.mount("tmpfs", "/run", "tmpfs", "size=8m")
    calls.mount("tmpfs", "/tmp", "tmpfs", "size=32m")
    calls.mount("tmpfs", "/huge", "tmpfs", "huge=always,size=32m")
    calls.mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
    for path, value in SETTINGS.items():
        if Path(path).exists():
            Path(path).write_text(value)
    root = Path("/sys/fs/cgroup")
    (root / "cgroup.subtree_control").write_text("+memory")
    for name in CGROUPS:
        (root / name).mkdir()
        if name == "web":
            (root / name / "cgroup.subtree_control").write_text("+memory")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        ioctl(link, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def start(role: str, cgroup: str) -> tuple[list[Region], list[Region]]:
    """Start one role in its cgroup; returns its regions and counts, once it has planted them."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        Path(f"/sys/fs/cgroup{cgroup}/cgroup.procs").write_text(str(os.getpid()))
        os.dup2(writing, 1)
        os.execv("/usr/bin/python3", ["python3", "-m", "guest", role])
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        line = pipe.readline()
    if not line:
        raise RuntimeError(f"{role} died")
    regions, counted = json.loads(line)
    return regions, counted


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


def merge() -> None:
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


def kernel_image() -> list[Region]:
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


def special_mappings() -> list[Region]:
    """The pages that the kernel maps into every process."""
    regions: list[Region] = []
    for pid in dump.processes():
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


def record() -> None:
    """Plant everything, capture it, deliver it."""
    calls.set_name("recorder")
    prepare()
    words = Path("/proc/cmdline").read_text().split()
    balloon_mb = next(int(word.split("=")[1]) for word in words if word.startswith(BALLOON_WORD))
    planted: list[Region] = []
    counted: list[Region] = [
        {
            "kind": "balloon",
            "bytes": balloon_mb << 20,
            "note": "returned to the host",
        }
    ]
    for role, (cgroup, _) in ROLES.items():
        regions, counts = start(role, cgroup)
        planted += regions
        counted += counts
        print(f"guest: {role} is ready", flush=True)
    merge()
    planted += kernel_image() + special_mappings()
    gc.disable()
    arena = dump.Arena()
    time.sleep(2)  # grace periods, deferred work
    drain()
    dump.capture(arena)
    drain()
    dump.capture(arena)
    print(f"guest: captured {arena.used >> 10} KiB", flush=True)
    dump.deliver(arena, {"planted.json": planted, "counted.json": counted}, "/dev/vdb")
    print("guest: delivered", flush=True)


def main() -> None:
    """Run as process 1 or as a role; refuses on any machine that is not a recording guest."""
    calls.require_guest()
    if len(sys.argv) > 1:
        play(sys.argv[1])
        return
    try:
        record()
    except Exception:
        traceback.print_exc()
    finally:
        calls.restart()


if __name__ == "__main__":
    main()

"""What processes cost the model: populate, fork, unmap per page, and memory of a large machine.

    python -m benchmarks.mm --rounds 5
    python -m benchmarks.mm --processes 1000 --memory-gib 64

Populating is a write to each page of a range: page table, descriptor, reverse map and LRU list
done.  It is set against the page allocator alone, which takes and gives back as many frames in
the same round.  Each size is measured in a fresh machine, so columns are touched for the first
time; `again` is the same range once more.  The last table is a machine in a process of its own,
whose peak of resident memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from memdesc.kernels.gfp import GFP
from memdesc.mm.areas.mmap import exit_process, mmap, munmap
from memdesc.mm.faults.fault import populate
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.model.batch import Op, operations
from memdesc.model.designs import DESIGNS, OVERLAYS, Design
from memdesc.model.machine import Machine
from memdesc.model.zones import Layout

MIB = 256
"""Pages."""
START = 1 << 20
SIZES_MIB = (16, 64, 256, 1024)


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def allocator_alone(pages: int, room: int) -> float:
    """Nanoseconds per page that is allocated and freed."""
    machine = Machine(Layout.pc(room))
    slots = np.arange(pages)
    codes = np.repeat([int(Op.ALLOC), int(Op.FREE_SLOT)], pages)
    batch = operations(
        codes, flags=int(GFP.HIGHUSER_MOVABLE), argument=np.tile(slots, 2), slots=pages
    )
    return timed(lambda: machine.run(batch)) / pages * 1e9


def one_size(pages: int, design: Design) -> dict[str, float]:
    """Nanoseconds per page of each operation on a range."""
    room = max(256 << 20, pages * 4096 * 3)
    kernel = Kernel("6.12", memory_bytes=room, design=design)
    process = kernel.process("parent")
    found: dict[str, float] = {}
    for name in ("populate", "populate again"):
        vma = mmap(kernel, process.mm, START, pages)
        found[name] = timed(lambda: populate(kernel, process.mm, vma, START, START + pages, 1))  # noqa: B023
        if name == "populate":
            found["unmap"] = timed(lambda: munmap(kernel, process.mm, START, START + pages))
    found["fork"] = timed(lambda: fork(kernel, process, "child"))
    child = kernel.processes["child"]
    found["child exits"] = timed(lambda: exit_process(kernel, child))
    found = {name: seconds / pages * 1e9 for name, seconds in found.items()}
    found["allocator alone"] = allocator_alone(pages, room)
    return found


def many_processes(processes: int, memory_gib: int) -> dict[str, float]:
    """A machine whose processes fill nine tenths of it: seconds, and MiB resident at most."""
    seconds: dict[str, float] = {}

    def boot() -> Kernel:
        return Kernel("6.12", memory_bytes=memory_gib << 30)

    begin = time.perf_counter()
    kernel = boot()
    seconds["boot_s"] = time.perf_counter() - begin
    pages = int(memory_gib * 1024 * MIB * 0.9) // processes
    begin = time.perf_counter()
    for number in range(processes):
        process = kernel.process(f"p{number}")
        vma = mmap(kernel, process.mm, START, pages)
        populate(kernel, process.mm, vma, START, START + pages, number + 1)
    seconds["populate_s"] = time.perf_counter() - begin
    begin = time.perf_counter()
    for process in list(kernel.processes.values()):
        exit_process(kernel, process)
    seconds["exit_s"] = time.perf_counter() - begin
    with open("/proc/self/status") as status:  # noqa: PTH123
        peak = next(line for line in status if line.startswith("VmHWM"))
    seconds["resident_mib"] = int(peak.split()[1]) / 1024
    seconds["ns_per_page"] = seconds["populate_s"] / (pages * processes) * 1e9
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mm", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1000)
    parser.add_argument("--memory-gib", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--only-processes", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only_processes:
        print(json.dumps(many_processes(given.processes, given.memory_gib)))
        return
    one_size(SIZES_MIB[0] * MIB, OVERLAYS)  # compiles
    rows: list[tuple[str, int, dict[str, float]]] = []
    for design in DESIGNS.values():
        one_size(SIZES_MIB[0] * MIB, design)
        for size in SIZES_MIB if design is OVERLAYS else SIZES_MIB[-1:]:
            rounds = [one_size(size * MIB, design) for _ in range(given.rounds)]
            row = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
            rows.append((design.title, size, row))
    command = [sys.executable, "-m", "benchmarks.mm", "--only-processes"]
    command += ["--processes", str(given.processes), "--memory-gib", str(given.memory_gib)]
    large = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    if given.json:
        named = [{"design": title, "mib": size, **row} for title, size, row in rows]
        print(json.dumps({"ns_per_page": named, "large": large}, indent=1))
        return
    names = list(rows[0][2])
    print(f"{'design':<24}{'MiB':>6}" + "".join(f"{name:>17}" for name in names))
    for title, size, row in rows:
        print(f"{title:<24}{size:>6}" + "".join(f"{row[name]:>17.1f}" for name in names))
    print("\nnanoseconds per page; a fork of 1 GiB is 262,144 pages\n")
    print(f"{given.processes} processes on {given.memory_gib} GiB:", end=" ")
    print(
        f"ready in {large['boot_s']:.2f} s, populated in {large['populate_s']:.1f} s "
        f"({large['ns_per_page']:.0f} ns per page), ended in {large['exit_s']:.1f} s, "
        f"{large['resident_mib']:.0f} MiB resident at most"
    )


if __name__ == "__main__":
    main()

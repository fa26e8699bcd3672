"""Reading and typing this machine's struct pages, against /proc/kpageflags.

    python -m benchmarks.structs [--rounds 7]

All sides run in turns in one process; every ratio is taken within a round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.floor import FLAGS, read_files

from memdesc.errors import FaultError
from memdesc.sources.procfs import read_machine
from memdesc.structs.bpf import BLOCK_BYTES
from memdesc.structs.kernel import Kernel
from memdesc.structs.live import open_live_kernel, why_not
from memdesc.structs.memmap import MemMap
from memdesc.structs.scan import StructScan

_CHUNK_PAGES = BLOCK_BYTES // 64


def read_memmap(memmap: MemMap) -> tuple[int, int]:
    """Read every struct page there is, a block at a time; returns (frames read, in holes)."""
    into = np.empty((_CHUNK_PAGES, memmap.page_size), np.uint8)
    frames = holes = 0
    for low, high in memmap.sections:
        for pfn in range(low, high, _CHUNK_PAGES):
            count = min(_CHUNK_PAGES, high - pfn)
            try:
                memmap.read_pages_into(pfn, into[:count])
                frames += count
            except FaultError:
                holes += count
    return frames, holes


def typed_map() -> dict[str, float]:
    """From nothing to the typed map of this machine; seconds of each step."""
    steps: dict[str, float] = {}
    last = time.perf_counter()

    def step(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        steps[name] = now - last
        last = now

    kernel = open_live_kernel()
    step("open: BPF, BTF, VMCOREINFO")
    memmap = MemMap.find(kernel)
    step("find the memory map")
    machine = read_machine(Path("/"))
    step("the machine from /proc")
    scan = StructScan(kernel, memmap, machine)
    step("prepare the scan")
    scan.map()
    step("scan: read, decode, type")
    close(kernel)
    return steps


def close(kernel: Kernel) -> None:
    """Give back what the kernel's memory holds."""
    getattr(kernel.memory, "close")()  # noqa: B009


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    if reason := why_not():
        print(f"left out: {reason}")
        return 0
    kernel = open_live_kernel()
    memmap = MemMap.find(kernel)
    frames, holes = read_memmap(memmap)
    sides: dict[str, Callable[[], object]] = {
        "struct pages through BPF": lambda: read_memmap(memmap),
        "/proc/kpageflags, 1 thread": lambda: read_files([FLAGS], 1),
        "/proc/kpageflags, 2 threads": lambda: read_files([FLAGS], 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    runs: list[dict[str, float]] = []
    typed_map()
    for _ in range(given.rounds):
        for name, side in sides.items():
            seconds[name].append(timed(side))
        runs.append(typed_map())
    close(kernel)
    print(f"{frames:,} struct pages of {memmap.page_size} bytes; {holes:,} more are in holes")
    first = seconds["struct pages through BPF"]
    for name, took in seconds.items():
        median = statistics.median(took)
        ratio = statistics.median(one / ours for one, ours in zip(took, first, strict=True))
        size = frames * (memmap.page_size if took is first else 8)
        print(
            f"{name:<36}{median * 1e3:8.1f} ms (min {min(took) * 1e3:.1f}) "
            f"{median / frames * 1e9:7.2f} ns/frame {size / median / 1e9:6.2f} GB/s "
            f"{ratio:6.1f} x"
        )
    whole = [sum(run.values()) for run in runs]
    middle = sorted(zip(whole, range(len(runs)), strict=True))[len(runs) // 2][1]
    print(
        f"typed map from nothing, two threads: median {statistics.median(whole):.3f} s, "
        f"min {min(whole):.3f} s, {statistics.median(whole) / frames * 1e9:.1f} ns/frame "
        "(goal: below 0.6 s and 60 ns)"
    )
    for name, took_s in runs[middle].items():
        print(f"  {name:<34}{took_s * 1e3:8.1f} ms {took_s / frames * 1e9:7.2f} ns/frame")
    return 0


if __name__ == "__main__":
    sys.exit(main())

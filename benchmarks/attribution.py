"""Time the reading of who maps what, against the kernel's own cost and against page-types -p.

    python benchmarks/attribution.py                 # about 2.5 GB of memory, root
    python benchmarks/attribution.py --scale 0.25
    python benchmarks/attribution.py --peer          # also page-types -p, which takes longer

Child processes hold the memory: 4 KiB anonymous pages, transparent huge pages, memory shared
after fork, thinly filled areas and many small VMAs. `floor` reads the same pagemap ranges and
does nothing with them: no reader can be quicker. Everything is given per present page. Runs of
the steps are interleaved, so that a busy machine spoils all of them alike; compare ratios of one
run, not figures of two. Processor time is given beside wall time: it is what a busy machine
changes least.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from memdesc.map.attribution import Attribution
from memdesc.map.inverse import Inverse
from memdesc.sources.processes import read_processes

MIB = 1 << 20
_NOHUGEPAGE = 15
_CHUNK = 1 << 16


def _filled(size: int, *, huge: bool, shared: bool = False, step: int = 4096) -> mmap.mmap:
    kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
    memory = mmap.mmap(-1, size, kind | mmap.MAP_ANONYMOUS)
    if not shared:
        memory.madvise(mmap.MADV_HUGEPAGE if huge else _NOHUGEPAGE)
    view = np.frombuffer(memory, np.uint8)
    view[::step] = 1
    del view
    return memory


def _many_small(count: int) -> list[mmap.mmap]:
    """VMAs of a few pages each, which the kernel cannot join: every second one is read-only."""
    areas = []
    for index in range(count):
        area = _filled(16 * 4096, huge=False, step=8192)
        if index % 2:
            area.madvise(mmap.MADV_DONTFORK)
        areas.append(area)
    return areas


@contextmanager
def workload(scale: float) -> Iterator[dict[str, list[int]]]:
    """Child processes that hold memory until the block ends. Kind -> pids."""

    def size(mib: int) -> int:
        return max(2, int(mib * scale)) * MIB

    shared = _filled(size(256), huge=False, shared=True)
    kinds: list[tuple[str, Callable[[], object]]] = [
        ("anon", lambda: _filled(size(512), huge=False)),
        ("anon", lambda: _filled(size(512), huge=False)),
        ("thp", lambda: _filled(size(768), huge=True)),
        ("shared", lambda: shared[::4096]),
        ("shared", lambda: shared[::4096]),
        ("shared", lambda: shared[::4096]),
        ("thin", lambda: _filled(size(2048), huge=False, step=4096 * 8)),
        ("small", lambda: _many_small(int(5000 * scale))),
    ]
    pids: dict[str, list[int]] = {}
    try:
        for kind, hold in kinds:
            ready, told = os.pipe()
            pid = os.fork()
            if not pid:
                held = hold()
                os.write(told, b"x")
                signal.pause()
                os._exit(len(str(held)) & 1)
            os.close(told)
            os.read(ready, 1)
            os.close(ready)
            pids.setdefault(kind, []).append(pid)
        yield pids
    finally:
        for group in pids.values():
            for pid in group:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        shared.close()


def floor(found: Attribution, pids: set[int]) -> int:
    """Read the pagemap ranges of every VMA with plain pread; return the entries read."""
    buffer = memoryview(bytearray(_CHUNK * 8))
    entries = 0
    vmas = found.vmas
    for index, pid in enumerate(found.processes.pid.tolist()):
        if pid not in pids:
            continue
        try:
            fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        except (FileNotFoundError, ProcessLookupError):  # it ended since
            continue
        own = np.flatnonzero(vmas.process == index)
        start, end = vmas.start_page[own], (vmas.end[own] >> np.uint64(12)).astype(np.int64)
        breaks = np.flatnonzero(start[1:] - end[:-1] > 256) + 1
        for low, high in zip([0, *breaks], [*(breaks - 1), own.size - 1], strict=True):
            for page in range(int(start[low]), int(end[high]), _CHUNK):
                count = min(_CHUNK, int(end[high]) - page)
                if page >= 1 << 36:
                    break
                entries += os.preadv(fd, [buffer[: count * 8]], page * 8) // 8
        os.close(fd)
    return entries


def measure(pids: set[int], runs: int, peer: list[str] | None) -> dict[str, object]:
    """Median seconds of each step for these processes, and nanoseconds per present page."""
    wanted = sorted(pids)
    found = read_processes(pids=wanted)
    pages = found.mappings.present_pages
    times: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}

    def clock(name: str, work: Callable[[], object]) -> None:
        begin, spent = time.perf_counter(), _processor_time()
        work()
        times.setdefault(name, []).append(time.perf_counter() - begin)
        processor.setdefault(name, []).append(_processor_time() - spent)

    for _ in range(runs):
        clock("floor", lambda: floor(found, pids))
        clock("read_1_thread", lambda: read_processes(pids=wanted, threads=1))
        clock("read", lambda: read_processes(pids=wanted))
        clock("invert", lambda: Inverse.of(found))
    if peer:
        for pid in wanted:
            clock("peer", partial(_run, [*peer, "-p", str(pid)]))
        times["peer"], processor["peer"] = [sum(times["peer"])], [sum(processor["peer"])]

    def per_page(values: dict[str, list[float]]) -> dict[str, float]:
        medians = {name: statistics.median(seconds) for name, seconds in values.items()}
        return {name: round(value / max(pages, 1) * 1e9, 2) for name, value in medians.items()}

    wall, cpu = per_page(times), per_page(processor)
    return {
        "processes": len(found.processes),
        "vmas": len(found.vmas),
        "runs": len(found.mappings),
        "present_pages": pages,
        "entries_read": found.report.entries_read,
        "pages_skipped": found.report.pages_skipped,
        "wall_ns_per_present_page": wall,
        "processor_ns_per_present_page": cpu,
        "beyond_floor_processor_ns": round(cpu["read_1_thread"] - cpu["floor"], 2),
    }


def _processor_time() -> float:
    """Seconds of processor time of this process and of the children it waited for."""
    spent = os.times()
    return time.process_time() + spent.children_user + spent.children_system


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def main() -> int:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the memory to hold")
    parser.add_argument("--peer", action="store_true", help="time page-types -p as well")
    given = parser.parse_args()
    peer = None
    if given.peer:
        sys.path.insert(0, str(Path(__file__).parent.parent))
        from tools.page_types import PageTypesUnavailable, build, default_cache

        try:
            peer = [str(build(default_cache()))]
        except PageTypesUnavailable as error:
            print(f"page-types is not timed: {error}", file=sys.stderr)
    with workload(given.scale) as pids:
        result = {kind: measure(set(group), given.runs, peer) for kind, group in pids.items()}
        everybody = {pid for group in pids.values() for pid in group}
        result["all of these"] = measure(everybody, given.runs, peer)
        machine = set(read_processes().processes.pid.tolist())
        result["the whole machine"] = measure(machine, given.runs, None)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

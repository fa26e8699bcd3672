"""Programs that fragment a guest's memory: most of it filled, then holes punched by a pattern.

Each fills 80 % of the free memory with 4 KiB anonymous pages in a process that stays, gives
back some of them by a seeded pattern, and differs from the others in what lies between: kernel
memory, page cache, large folios, pages that somebody holds.  `vm.workload.fragment_ask` then
asks the kernel to move them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.vm.guard import only_in_guest
from memdesc.vm.workload import calls
from memdesc.vm.workload.calls import HUGE, PAGE
from memdesc.vm.workload.plant import drain

__all__ = ["PROGRAMS", "fill"]

Held = dict[str, list[int]]
"""How pages are held ("vmsplice", ...) -> frames."""

_SETTINGS = {
    "/proc/sys/kernel/kptr_restrict": "0",
    "/proc/sys/vm/dirty_writeback_centisecs": "0",
    "/proc/sys/vm/dirty_expire_centisecs": "8640000",
    "/proc/sys/vm/compaction_proactiveness": "0",
    "/proc/sys/vm/overcommit_memory": "1",
    "/proc/sys/kernel/printk_ratelimit": "0",
    # khugepaged stands still before it is started, which fills holes with zeros otherwise.
    "/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan": "1",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs": "3600000",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/alloc_sleep_millisecs": "3600000",
    "/sys/kernel/mm/transparent_hugepage/enabled": "madvise",
    "/sys/kernel/mm/transparent_hugepage/defrag": "madvise",
    "/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled": "madvise",
}
_SHARE = 0.8
_STEP = 64
"""Anonymous pages between two helpings of something else."""

_DISK = "/dev/vdb"
"""A disk of the guest that nobody else uses."""

_CACHE_PAGES = 9000
"""Page cache of the program "cache": what fits on the guest's disk."""


class Filler:
    """One process full of pages that are numbered from 1."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kept: list[Any] = []
        self.refused: dict[str, str] = {}
        free = _meminfo("MemFree") // PAGE
        self.pages = int(free * _SHARE)
        self.address = calls.mmap(self.pages * PAGE)
        calls.madvise(self.address, self.pages * PAGE, calls.MADV_NOHUGEPAGE)

    def number(self, first: int, end: int) -> None:
        """Touch the pages [first, end) by writing their numbers."""
        words = (ctypes.c_uint64 * ((end - first) * (PAGE // 8))).from_address(
            self.address + first * PAGE
        )
        view = np.frombuffer(memoryview(words).cast("B"), np.uint64)
        view[:: PAGE // 8] = np.arange(first + 1, end + 1)

    def fill(self, between: Callable[[int], None] | None = None) -> None:
        """Touch every page; `between` is called after each helping with its number."""
        if between is None:
            self.number(0, self.pages)
            return
        for step, first in enumerate(range(0, self.pages, _STEP)):
            self.number(first, min(first + _STEP, self.pages))
            between(step)

    def punch(self, is_hole: NDArray[np.bool_]) -> None:
        """Give the chosen pages back, run by run."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], is_hole, [False]])))
        for first, end in edges.reshape(-1, 2).tolist():
            calls.madvise(self.address + first * PAGE, (end - first) * PAGE, calls.MADV_DONTNEED)

    def at_random(self, share: float) -> NDArray[np.bool_]:
        """bool[pages]: so large a share of them, by the seed."""
        chosen = np.zeros(self.pages, np.bool_)
        chosen[self.random.sample(range(self.pages), int(self.pages * share))] = True
        return chosen


# --- the programs ------------------------------------------------------------------------


def _three_of_four(filler: Filler) -> Held:
    filler.fill()
    filler.punch(np.arange(filler.pages) % 4 != 0)
    return {}


def _random(filler: Filler) -> Held:
    filler.fill()
    filler.punch(filler.at_random(0.6))
    return {}


def _pinned(filler: Filler) -> Held:
    """Random, and 1 % of the pages that are left is held in three ways."""
    filler.fill()
    holes = filler.at_random(0.6)
    filler.punch(holes)
    left = np.flatnonzero(~holes).tolist()
    chosen = filler.random.sample(left, filler.pages // 100)
    third = len(chosen) // 3
    parts = (chosen[:third], chosen[third : 2 * third], chosen[2 * third :])
    held: Held = {}
    for name, hold, part in zip(
        ("vmsplice", "io_uring", "O_DIRECT"), (_splice, _register, _read), parts, strict=True
    ):
        try:
            hold(filler, part)
        except OSError as error:
            filler.refused[name] = str(error)
            continue
        held[name] = [calls.page_frames(filler.address + page * PAGE, 1)[0] for page in part]
    return held


def _kernel(filler: Filler) -> Held:
    """Random, with pipe buffers, page tables, stacks and slab objects between."""
    sparse = calls.aligned(1 << 33, HUGE)
    calls.madvise(sparse, 1 << 33, calls.MADV_NOHUGEPAGE)

    def between(step: int) -> None:
        match step % 8:
            case 0:
                ends = os.pipe()
                os.write(ends[1], b"p" * PAGE)
                filler.kept.append(ends)
            case 2:
                calls.write_pages(sparse + step * HUGE, 1)  # a page table and a page
            case 4:
                for index in range(24):
                    Path(f"/run/no/{step}-{index}").exists()  # dentries
                filler.kept.append([os.eventfd(0) for _ in range(24)])

    filler.fill(between)
    filler.punch(filler.at_random(0.6))
    return {}


def _cache(filler: Filler) -> Held:
    """Random, with page cache between: most of it clean, some mapped, some dirty."""
    fd = os.open("/data/fragment.bin", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    each = max(1, _CACHE_PAGES // (filler.pages // _STEP))
    content = b"c" * PAGE

    def between(_step: int) -> None:
        for _ in range(each):
            os.write(fd, content)

    filler.fill(between)
    os.fsync(fd)
    size = os.fstat(fd).st_size
    mapped = calls.mmap(size // 2, calls.PROT_READ, calls.MAP_SHARED, fd)
    calls.read_pages(mapped, size // 2 // PAGE)
    for page in range(0, size // PAGE, 16):
        os.pwrite(fd, content, page * PAGE)
    filler.punch(filler.at_random(0.6))
    return {}


def _mixed(filler: Filler) -> Held:
    """Random, in large folios for a third, with every eighth run of pages locked."""
    large = filler.pages // 3 // 512 * 512
    start = -(-filler.address // HUGE) * HUGE
    calls.madvise(start, large // 2 // 512 * HUGE, calls.MADV_HUGEPAGE)
    # 64 KiB folios where the kernel has them: no 2 MiB fit into pieces of 1 MiB.
    for piece in range(start + large // 2 * PAGE, start + large * PAGE, HUGE):
        calls.madvise(piece, HUGE // 2, calls.MADV_HUGEPAGE)
    filler.fill()
    holes = filler.at_random(0.6)
    # Whole large folios stay in one half of their part, the other half is torn.
    holes[: large // 4] = False
    filler.punch(holes)
    for first in range(large, filler.pages - 64, 512):
        calls.mlock(filler.address + first * PAGE, 64 * PAGE)
        filler.number(first, first + 64)  # it filled the holes
    return {}


PROGRAMS: dict[str, Callable[[Filler], Held]] = {
    "three-of-four": _three_of_four,
    "random": _random,
    "pinned": _pinned,
    "kernel": _kernel,
    "cache": _cache,
    "mixed": _mixed,
}
"""What fragments, by name; a program returns the frames that somebody holds."""


@only_in_guest("fill the memory")
def fill(name: str, seed: int = 1) -> dict[str, Any]:
    """Run a program in a process that stays: its pid, address and pages, the frames that are
    "held" by name, and the ways to hold that were "refused" with the reason."""
    for path, value in _SETTINGS.items():
        if Path(path).exists():
            Path(path).write_text(value)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            calls.set_name("fragment")
            Path("/proc/self/oom_score_adj").write_text("-1000")
            resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
            gc.disable()
            filler = Filler(seed)
            held = PROGRAMS[name](filler)
            drain()
            report = {
                "pid": os.getpid(),
                "address": filler.address,
                "pages": filler.pages,
                "held": held,
                "refused": filler.refused,
            }
            with os.fdopen(writing, "w") as pipe:
                json.dump(report, pipe)
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    if not text:
        raise RuntimeError(f"the program {name} died")
    note: dict[str, Any] = json.loads(text)
    return note


# --- ways to hold a page -----------------------------------------------------------------


def _splice(filler: Filler, pages: Sequence[int]) -> None:
    """Pages in pipes, without copying: a plain reference each."""
    for first in range(0, len(pages), 16):
        ends = os.pipe()
        filler.kept.append(ends)
        for page in pages[first : first + 16]:
            calls.vmsplice(ends[1], filler.address + page * PAGE, PAGE)


def _register(filler: Filler, pages: Sequence[int]) -> None:
    """Fixed buffers of an io_uring: long-term pins (out of the movable zone)."""
    ring, _ = calls.io_uring(8)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    filler.kept.append(ring)
    calls.io_uring_fix_pages(ring, [filler.address + page * PAGE for page in pages])


def _read(filler: Filler, pages: Sequence[int]) -> None:
    """The target of a direct read that does not end: the cgroup may read two bytes per second."""
    root = Path("/sys/fs/cgroup")
    (root / "cgroup.subtree_control").write_text("+io")
    (root / "slow").mkdir()
    device = Path(_DISK).stat().st_rdev
    limit = f"{os.major(device)}:{os.minor(device)} rbps=2"
    (root / "slow/io.max").write_text(limit)
    (root / "slow/cgroup.procs").write_text(str(os.getpid()))
    fd = os.open(_DISK, os.O_RDONLY | os.O_DIRECT)
    filler.kept.append(fd)
    for first in range(0, len(pages), 128):
        buffers = [
            memoryview((ctypes.c_char * PAGE).from_address(filler.address + page * PAGE))
            for page in pages[first : first + 128]
        ]
        threading.Thread(target=os.preadv, args=(fd, buffers, first * PAGE), daemon=True).start()
    threading.Event().wait(0.5)


# --- helpers -----------------------------------------------------------------------------


def _meminfo(name: str) -> int:
    """A line of /proc/meminfo in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/meminfo has no {name}")

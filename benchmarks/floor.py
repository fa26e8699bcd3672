"""The floor: how long merely reading takes, with nothing done to what was read.

No reader of /proc/kpageflags, kpagecount and kpagecgroup can be quicker than the kernel that
fills them, so a benchmark's figure means something only beside this one. Threads take stripes
from a common counter (a stripe of free frames costs a third of one of used frames, so fixed
halves would leave one thread waiting) and read each into their own buffer, which is there before
the clock starts, as are the threads. Recorded files are read in three ways: `pread` (copied out
of the page cache), `pread+sum` (copied, then looked at once while in the cache) and `mmap+sum`.

    python benchmarks/floor.py                      # live (root)
    python benchmarks/floor.py --file dense.bin     # a recorded file in the page cache
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

FLAGS, COUNT, CGROUP = (Path("/proc", name) for name in ("kpageflags", "kpagecount", "kpagecgroup"))
STRIPE = 1 << 20
WORD = 8


@dataclass(frozen=True, slots=True)
class Timing:
    """What was done how often, and how long it took."""

    what: str
    runs: int
    frames: int
    median_s: float
    min_s: float
    max_s: float
    ns_per_frame: float

    @classmethod
    def of(cls, what: str, seconds: Sequence[float], frames: int) -> Timing:
        """Sum up the seconds of several runs over so many frames."""
        median = statistics.median(seconds)
        per_frame = round(median / frames * 1e9, 3) if frames else 0.0
        low, high = round(min(seconds), 4), round(max(seconds), 4)
        return cls(what, len(seconds), frames, round(median, 4), low, high, per_frame)


def run_threads(work: Callable[[], int], threads: int) -> tuple[float, int]:
    """Return the seconds that `threads` calls of `work` took side by side, and their sum.

    Without the threads' start-up.
    """
    barrier = threading.Barrier(threads + 1)
    results: list[int] = []
    failures: list[BaseException] = []

    def body() -> None:
        barrier.wait()
        try:
            results.append(work())
        except OSError as error:
            failures.append(error)

    pool = [threading.Thread(target=body) for _ in range(threads)]
    for thread in pool:
        thread.start()
    barrier.wait()
    begin = time.perf_counter()
    for thread in pool:
        thread.join()
    seconds = time.perf_counter() - begin
    if failures:
        raise failures[0]
    return seconds, sum(results)


def read_files(
    files: Sequence[Path], threads: int = 2, stripe: int = STRIPE, look: bool = False
) -> tuple[float, int]:
    """Read files side by side, stripe for stripe, to their end; return seconds and frames.

    The frames are those of the first file. `look` sums what was read, as the least that a
    consumer can do.
    """
    with ExitStack() as stack:
        fds = [os.open(file, os.O_RDONLY) for file in files]
        for fd in fds:
            stack.callback(os.close, fd)
        buffers = [np.ones(stripe // WORD, np.uint64) for _ in range(threads)]
        offsets = itertools.count(0, stripe)

        def work() -> int:
            words = buffers.pop()
            into = [words.data.cast("B")]
            total = 0
            while True:
                offset = next(offsets)
                got = os.preadv(fds[0], into, offset)
                for fd in fds[1:]:
                    os.preadv(fd, into, offset)
                if look:
                    words[: got // WORD].sum()
                total += got
                if got < stripe:
                    return total

        seconds, total = run_threads(work, threads)
    return seconds, total // WORD


def read_mapped(file: Path, threads: int = 2, stripe: int = STRIPE) -> tuple[float, int]:
    """Sum a recorded file through a mapping; return as read_files.

    The mapping is made, faulted in and taken down on the clock.
    """
    begin = time.perf_counter()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        mapping.madvise(mmap.MADV_SEQUENTIAL)
        frames = len(mapping) // WORD
        starts = iter(range(0, frames, stripe // WORD))

        def work() -> int:
            total = 0
            for start in starts:
                size = min(stripe // WORD, frames - start)
                np.frombuffer(mapping, "<u8", size, start * WORD).sum()
                total += size
            return total

        _, total = run_threads(work, threads)
    return time.perf_counter() - begin, total


def measure(what: str, once: Callable[[], tuple[float, int]], runs: int) -> Timing:
    """Run once to warm up and `runs` times for the record."""
    once()
    results = [once() for _ in range(runs)]
    return Timing.of(what, [seconds for seconds, _ in results], results[0][1])


def live(runs: int = 7, threads: int = 2) -> list[Timing]:
    """Measure the floors of the live map: each of the three files, and all three together."""
    kinds = {
        "flags": [FLAGS],
        "count": [COUNT],
        "cgroup": [CGROUP],
        "flags+count+cgroup": [FLAGS, COUNT, CGROUP],
    }
    return [
        measure(f"live {name}, {threads} threads", partial(read_files, files, threads), runs)
        for name, files in kinds.items()
    ]


def recorded(file: Path, runs: int = 7, threads: int = 2) -> list[Timing]:
    """Measure the floors of a recorded file.

    It is read once before, so that it is in the page cache if it fits.
    """
    ways: dict[str, Callable[[], tuple[float, int]]] = {}
    for stripe in (1 << 18, 1 << 20):
        size = f"{stripe >> 10} KiB"
        ways[f"pread {size}"] = partial(read_files, [file], threads, stripe)
        ways[f"pread+sum {size}"] = partial(read_files, [file], threads, stripe, look=True)
        ways[f"mmap+sum {size}"] = partial(read_mapped, file, threads, stripe)
    return [measure(f"file {name}, {threads} threads", once, runs) for name, once in ways.items()]


def main() -> int:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--file", type=Path, help="a recorded kpageflags file (default: the live files)"
    )
    parser.add_argument("--runs", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    given = parser.parse_args()
    try:
        timings = (
            recorded(given.file, given.runs, given.threads)
            if given.file
            else live(given.runs, given.threads)
        )
    except PermissionError as error:
        print(f"error: {error} (the live files need root)", file=sys.stderr)
        return 1
    print(json.dumps([asdict(timing) for timing in timings], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

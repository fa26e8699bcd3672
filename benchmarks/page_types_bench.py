"""Time the kernel's own page-types, as the peer that memdesc is compared with.

    python benchmarks/page_types_bench.py                           # live (root)
    python benchmarks/page_types_bench.py dense.bin tile.bin        # and recorded files

Each run is a process of its own; its output goes to /dev/null. The figures are wall clock, start-up (about 1 ms)
included; the seconds of processor time tell how much of it another program on the machine took away.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tools")]

from floor import FLAGS, WORD, Timing, read_files  # noqa: E402
from page_types import PageTypesUnavailable, build, default_cache  # noqa: E402

LIVE = {"summary": [], "-r": ["-r"], "-l -M -C -N": ["-l", "-M", "-C", "-N"]}
RECORDED = {"summary": [], "-r": ["-r"]}


@dataclass(frozen=True, slots=True)
class ProcessTiming:
    """Wall clock and processor time of a command over several runs."""

    wall: Timing
    cpu_median_s: float


def time_process(what: str, command: Sequence[str | Path], frames: int, runs: int) -> ProcessTiming:
    """Run a command once to warm up and `runs` times for the record; raises if it fails."""
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall.append(time.perf_counter() - begin)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, [str(part) for part in command])
        cpu.append(usage.ru_utime + usage.ru_stime)
    return ProcessTiming(Timing.of(what, wall[1:], frames), round(statistics.median(cpu[1:]), 3))


def live(binary: Path, runs: int = 7) -> list[ProcessTiming]:
    """Time page-types on the running kernel."""
    _, frames = read_files([FLAGS])
    return [time_process(f"page-types {name}", [binary, *options], frames, runs) for name, options in LIVE.items()]


def recorded(binary: Path, file: Path, runs: int = 7) -> list[ProcessTiming]:
    """Time page-types on a recorded kpageflags file (-F; the long option --kpageflags reads the live file)."""
    frames = file.stat().st_size // WORD
    return [
        time_process(f"page-types {name} -F {file.name}", [binary, *options, "-F", file], frames, runs)
        for name, options in RECORDED.items()
    ]


def main() -> int:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="*", help="recorded kpageflags files")
    parser.add_argument("--runs", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where page-types is kept")
    parser.add_argument("--no-live", action="store_true", help="recorded files only")
    given = parser.parse_args()
    try:
        binary = build(given.cache.resolve())
        timings = [] if given.no_live else live(binary, given.runs)
    except (PageTypesUnavailable, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for file in given.files:
        timings += recorded(binary, file, given.runs)
    print(json.dumps([asdict(timing) for timing in timings], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

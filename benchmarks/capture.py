"""How large is a capture, and how long do writing, opening and querying it take?

    python -m benchmarks.capture                     # dense map of 6.5 M frames, then 1 TB
    python -m benchmarks.capture --frames 6553600    # one size

Prints one JSON object per line; asserts nothing. The input is a dense map: an order-1
Markov chain over the runs of a real machine (inputs.py), with map counts and cgroups
that follow the runs. Each step runs in a process of its own, so that its memory is its
own; "beyond reading" compares a scan that encodes and drops with one that writes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import inputs

TERABYTE = 1 << 28
ROOT = Path(__file__).resolve().parent.parent


def peak_mib() -> int:
    """This process alone: ru_maxrss would include the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def scan_of(folder: Path) -> Any:
    from memdesc.kernels.release import KernelRelease
    from memdesc.map.machine import Machine
    from memdesc.sources.kpage import PageFile
    from memdesc.sources.pages import PageScan

    return PageScan(
        Machine(release=KernelRelease.parse("6.18.44")),
        PageFile(folder / "kpageflags"),
        PageFile(folder / "kpagecount"),
        PageFile(folder / "kpagecgroup"),
    )


def make(folder: Path, frames: int, distinct: int) -> None:
    """Page files of `frames` frames; beyond `distinct` frames the input repeats.

    Map counts and cgroups change within a run of mapped frames about as often as on the
    machine that the seed came from: 1 in 7 and 1 in 20.
    """
    random = np.random.default_rng(2)
    names = ("kpageflags", "kpagecount", "kpagecgroup")
    handles = [(folder / name).open("wb", buffering=0) for name in names]
    try:
        for words in inputs.dense(min(frames, distinct)):
            mapped = words & np.uint64(1 << 11) != 0
            used = (words & np.uint64(1 << 10 | 1 << 7)) == 0
            starts = np.concatenate(([True], words[1:] != words[:-1]))
            counts = np.where(
                random.random(words.size) < 0.15, random.integers(2, 40, words.size), 1
            )
            groups = random.integers(1, 40, words.size)
            steady = np.maximum.accumulate(
                np.where(starts & (random.random(words.size) < 0.05), np.arange(words.size), 0)
            )
            run = np.maximum.accumulate(np.where(starts, np.arange(words.size), 0))
            columns = (
                words,
                np.where(mapped, counts[run], 0).astype(np.uint64),
                np.where(used, groups[steady], 0).astype(np.uint64),
            )
            for handle, column in zip(handles, columns, strict=True):
                column.tofile(handle)
    finally:
        for handle in handles:
            handle.close()
    for name in names:
        data = np.fromfile(folder / name, np.uint64)
        with (folder / name).open("ab", buffering=0) as out:
            missing = frames - data.size
            while missing > 0:
                data[:missing].tofile(out)
                missing -= data.size


def step(name: str, folder: Path) -> dict[str, Any]:
    """One measured step; runs in its own process."""
    from memdesc.answers.ledger import ledger
    from memdesc.sources.capture import Capture
    from memdesc.sources.capture_write import write_capture

    capture = folder / "capture"
    result: dict[str, Any] = {}
    started, cpu = time.perf_counter(), time.process_time()
    if name == "read":
        scan = scan_of(folder)
        result["extents"] = sum(part.facts.size for part in scan.columns())
    elif name == "write":
        info = write_capture(capture, scan_of(folder), force=True)
        extents = info.files["extents.parquet"]
        result = {
            "extents": info.extents,
            "size_bytes": extents.size_bytes,
            "bytes_per_frame": round(extents.size_bytes / info.pfn_end, 4),
            "bytes_per_extent": round(extents.size_bytes / info.extents, 3),
        }
    elif name == "totals":
        result["rows"] = len(ledger(Capture(capture).totals()).rows)
    elif name == "map":
        result["extents"] = len(Capture(capture).map())
    elif name == "duckdb":
        import duckdb

        connection = duckdb.connect()
        query = (
            f"SELECT type, sum(nr_pages) * 4096 FROM '{capture}/extents.parquet' "
            f"JOIN '{capture}/facts.parquet' USING (fact) GROUP BY type"
        )
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            connection.execute(query).fetchall()
            times.append(time.perf_counter() - begin)
        result = {"query_ms_median": round(sorted(times)[4] * 1e3, 1)}
    result["seconds"] = round(time.perf_counter() - started, 3)
    result["cpu_seconds"] = round(time.process_time() - cpu, 3)
    result["peak_mib"] = peak_mib()
    return result


def measure(frames: int, distinct: int, steps: list[str], repeats: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="memdesc-bench-") as temporary:
        folder = Path(temporary)
        make(folder, frames, distinct)
        best: dict[str, dict[str, Any]] = {}
        for _ in range(repeats):
            for name in steps:
                command = [sys.executable, "-m", "benchmarks.capture", "--step", name]
                command += ["--folder", temporary]
                started = time.perf_counter()
                out = subprocess.run(
                    command, check=True, capture_output=True, text=True, cwd=ROOT
                ).stdout
                found = json.loads(out)
                found["process_seconds"] = round(time.perf_counter() - started, 3)
                if name not in best or found["seconds"] < best[name]["seconds"]:
                    best[name] = found
        for name, found in best.items():
            yield {"frames": frames, "step": name, **found}
        if {"read", "write"} <= best.keys():
            for kind in ("seconds", "cpu_seconds"):
                beyond = (best["write"][kind] - best["read"][kind]) / frames * 1e9
                yield {"frames": frames, f"ns_per_frame_beyond_reading_{kind}": round(beyond, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, action="append", help="sizes (default: two)")
    parser.add_argument("--distinct", type=int, default=1 << 24, help="frames before it repeats")
    parser.add_argument("--steps", nargs="*", default=["read", "write", "totals", "map", "duckdb"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(step(given.step, given.folder)))
        return 0
    for frames in given.frames or [6_553_600, TERABYTE]:
        repeats = given.repeats if frames < TERABYTE else 1
        for row in measure(frames, given.distinct, given.steps, repeats):
            print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`failure`, `move` and `blocks` over the capture of a terabyte: seconds and memory.

    python -m benchmarks.answers                      # makes the capture first: minutes, 7 GB
    python -m benchmarks.answers --capture DIR        # one that is there already
    python -m benchmarks.answers --frames 6553600     # a smaller machine

Prints one JSON object per line; asserts nothing. The input is that of `benchmarks.capture`: a
dense map of 7.4 frames per run, with map counts and cgroups. Every command runs as a person
would call it, in processes of its own; "busy" is what other programs took of one processor
meanwhile, and a figure of a busy machine says little. The goals are 3 s and 1 GB each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import capture
from benchmarks.processes import others, run

MEMDESC = (sys.executable, "-m", "memdesc")


def commands(frames: int) -> list[tuple[str, ...]]:
    """What is measured: each question as a whole, and the ways to split it."""
    whole = f"0x0-{frames:#x}"
    return [
        ("failure",),
        ("failure", "--by", "range", "--gib", "64"),
        ("failure", "0x1234"),
        ("blocks",),
        ("blocks", "--size", "1G"),
        ("move", whole),
        ("move", "0x1234"),
    ]


def timed(words: Sequence[str], source: Path) -> dict[str, Any]:
    """One command: seconds, processor seconds, and the largest of its processes in MiB."""
    busy: list[float] = []
    with others(busy):
        took = run([*MEMDESC, *words, "--source", str(source), "--json"])
    return {
        "command": " ".join(words),
        "seconds": round(took.wall_s, 2),
        "cpu_seconds": round(took.cpu_s, 2),
        "peak_mib": round(took.rss_mib),
        "busy": round(busy[0], 2),
    }


def measure(source: Path, frames: int, rounds: int) -> Iterator[dict[str, Any]]:
    """The quickest of `rounds` of each command, in turns."""
    best: dict[tuple[str, ...], dict[str, Any]] = {}
    for _ in range(rounds):
        for words in commands(frames):
            found = timed(words, source)
            if words not in best or found["seconds"] < best[words]["seconds"]:
                best[words] = found
    yield from best.values()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, default=capture.TERABYTE)
    parser.add_argument("--capture", type=Path, help="measure this capture, and make none")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    # Commands are timed as they run where they are installed: with their byte code cached.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="memdesc-bench-") as temporary:
        source = given.capture
        if source is None:
            folder = Path(temporary)
            capture.make(folder, given.frames, min(given.frames, 1 << 24))
            capture.step("write", folder)
            source = folder / "capture"
        for row in measure(source, given.frames, given.rounds):
            print(json.dumps({"frames": given.frames, **row}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How fast traces are read and replayed: `python -m benchmarks.traces [FOLDER of vm trace]`.

Without a folder, the small ring buffer of tests/data is read again and again.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from memdesc.model.replay import Replayer
from memdesc.traces.raw import read_raw
from memdesc.traces.read import open_trace
from memdesc.traces.text import parse_lines

DATA = Path(__file__).parent.parent / "tests" / "data"
MEGABYTES = 64


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The least of some runs."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with tarfile.open(DATA / "tracefs-6.12.tar.gz") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    (place / member.name).parent.mkdir(parents=True, exist_ok=True)
                    (place / member.name).write_bytes(content.read())
        given = Path(sys.argv[1]) / "trace" if len(sys.argv) > 1 else None
        source = place / "raw" if given is None else given / "per_cpu/cpu0/trace_pipe_raw"
        raw = np.fromfile(source, np.uint8)
        if given is not None:
            (place / "events").rename(place / "other")
            (place / "events").symlink_to(given.absolute() / "events")
        buffer = place / "per_cpu/cpu0/trace_pipe_raw"
        buffer.parent.mkdir(parents=True)
        np.tile(raw, (MEGABYTES << 20) // raw.size + 1).tofile(buffer)
        events = len(read_raw(place))
        taken = seconds(lambda: read_raw(place))
        print(f"tracefs raw   {events / taken / 1e6:6.2f} million events a second")
        lines = (place / "trace.txt").read_text().splitlines(keepends=True) * 500
    taken = seconds(lambda: parse_lines(lines))
    print(f"text          {len(lines) / taken / 1e6:6.2f} million events a second")
    for path in sorted((DATA / "traces").glob("*.npz")):
        recorded = open_trace(path)
        assert recorded.before is not None
        player = Replayer(recorded.trace, recorded.before, recorded.after, recorded.movable())
        player.choose()
        taken = seconds(player.choose)
        print(f"own choice    {player.events / taken / 1e6:6.2f} million page events a second "
              f"({path.stem})")  # fmt: skip


if __name__ == "__main__":
    main()

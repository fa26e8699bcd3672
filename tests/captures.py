"""Small captures for tests: made from words, compared, and forged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from worlds import tree

from memdesc.errors import CaptureError
from memdesc.map.attribution import Attribution, ReadReport
from memdesc.map.extents import MemoryMap
from memdesc.sources.capture import Capture
from memdesc.sources.source import ProcSource
from memdesc.sources.staging import OutFile
from memdesc.sources.tables import write_table

WORDS = [0x0, 0x400, 0x80, 0x5828, 0x401000, 0x10_0000, 0x868, 0x1800, 0x4000_0000, 0x6_4828]
"""Kpageflags words of several types."""


def world(folder: Path, frames: int = 3000, seed: int = 1) -> ProcSource:
    """A tree of runs of random words, counts and cgroups."""
    random = np.random.default_rng(seed)

    def runs(values: Sequence[int]) -> NDArray[np.uint64]:
        lengths = random.geometric(0.1, frames)
        return np.repeat(random.choice(np.array(values, np.uint64), frames), lengths)[:frames]

    folder.mkdir(parents=True, exist_ok=True)
    return tree(
        folder,
        runs(WORDS),
        mapcounts=runs([0, 0, 1, 2, 70_000]).tolist(),
        cgroups=runs([0, 7, 8, 9]).tolist(),
    )


def assert_equal_maps(one: MemoryMap, two: MemoryMap, *, names: bool = True) -> None:
    """The same map; `names` False: but for what redaction changes."""
    two.check()
    assert two.pfn_end == one.pfn_end
    for column in ("pfn_starts", "facts", "mapcounts", "cgroups", "cgroup_inodes"):
        mine, other = getattr(one, column), getattr(two, column)
        assert (mine is None) == (other is None), column
        if mine is not None:
            assert other.dtype == mine.dtype, column
            assert np.array_equal(mine, other), column
    assert np.array_equal(one.table.flags, two.table.flags)
    assert np.array_equal(one.table.types, two.table.types)
    assert one.table.rules == two.table.rules
    if names:
        assert two.machine == one.machine
        assert two.unseen == one.unseen


def read_all(path: Path) -> tuple[MemoryMap, Attribution | None] | CaptureError:
    """Everything a capture holds, or the error; anything else is a bug and is raised."""
    try:
        capture = Capture(path)
        result = capture.map()
        totals = capture.totals()
        assert np.array_equal(totals.pages, result.totals.pages)
        result.check()
        return result, capture.attribution() if capture.info.has_attribution else None
    except CaptureError as error:
        assert_clear(error)
        return error


def assert_clear(error: CaptureError) -> None:
    """One sentence, the file that it is about, and what to do next."""
    assert str(error).startswith("cannot read the capture")
    assert "\n" not in str(error)
    assert len(str(error)) < 1000
    assert error.path
    assert error.hint


def manifest(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return value


def write_manifest(path: Path, value: Any) -> None:
    (path / "manifest.json").write_text(json.dumps(value))


def forge(path: Path, name: str, data: bytes, **declared: Any) -> None:
    """Replace one file and make the manifest agree, as somebody hostile would."""
    (path / name).write_bytes(data)
    value = manifest(path)
    entry = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **declared}
    value["files"][name].update(entry)
    write_manifest(path, value)


def table_bytes(path: Path, columns: Mapping[str, str], batch: Mapping[str, Any]) -> bytes:
    """A Parquet table as our own writer makes it."""
    file = OutFile(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    write_table(file, columns, iter([batch]))
    file.finish()
    return path.read_bytes()


def attribution() -> Attribution:
    """Two processes, three areas, three runs."""
    numbers = np.array
    empty = {
        count: numbers([0, 0, 1])
        for count in ("swapped", "guard", "hwpoison", "special", "zero", "no_pfn")
    }
    result = Attribution.from_tables(
        {
            "processes": {
                "pid": numbers([1, 5]),
                "ppid": numbers([0, 1]),
                "uid": numbers([0, 1000]),
                "comm": ["init", "web server"],
                "cgroup": ["/", "/web"],
            },
            "vmas": {
                "process": numbers([0, 1, 1]),
                "start": numbers([4096, 8192, 256 << 12]),
                "end": numbers([8192, 16384, 264 << 12]),
                "perms": numbers([1, 3, 5]),
                "offset": numbers([0, 0, 0]),
                "device": numbers([0, 0, 1]),
                "inode": numbers([0, 0, 5]),
                "name": ["[heap]", "", "/srv/app/secret.so"],
                **empty,
            },
            "mappings": {
                "pfn_start": numbers([10, 20, 30]),
                "nr_pages": numbers([1, 2, 4]),
                "vma": numbers([0, 1, 2]),
                "page": numbers([1, 2, 256]),
                "file": numbers([0, 0, 1]),
            },
        }
    )
    report = ReadReport(seen=3, read=2, problems=((9, "cannot open /proc/9/maps: gone"),))
    return dataclasses.replace(result, report=report)

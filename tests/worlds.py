"""Small worlds for tests: page files written from words, and trees that look like /proc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memdesc.map.extents import MemoryMap
from memdesc.sources.source import ProcSource, RawSource

ZONEINFO = """\
Node 0, zone   Normal
  pages free     {free}
        spanned  {spanned}
        present  {present}
        managed  {managed}
  pagesets
    cpu: 0
              count:    3
  start_pfn:           0
"""


def write_words(path: Path, words: Sequence[int] | NDArray[np.uint64]) -> Path:
    """Write one little-endian u64 per frame."""
    np.asarray(words, np.uint64).tofile(path)
    return path


def raw_map(
    path: Path,
    words: Sequence[int] | NDArray[np.uint64],
    *,
    release: str = "7.2.13",
    mapcounts: Sequence[int] | None = None,
) -> MemoryMap:
    """The map of a raw file with these words."""
    flags = write_words(path / "flags.bin", words)
    counts = None if mapcounts is None else write_words(path / "counts.bin", mapcounts)
    return RawSource(flags, mapcounts=counts, release=release).map()


def tree(
    root: Path,
    words: Sequence[int] | NDArray[np.uint64],
    *,
    release: str = "7.2.13",
    mapcounts: Sequence[int] | None = None,
    cgroups: Sequence[int] | None = None,
    files: Mapping[str, str] | None = None,
) -> ProcSource:
    """A copied tree of /proc with these page files; `files` adds or replaces text files."""
    frames = len(words)
    texts = {
        "proc/sys/kernel/osrelease": f"{release}\n",
        "proc/sys/kernel/hostname": "testhost\n",
        "proc/cmdline": "quiet\n",
        "proc/zoneinfo": ZONEINFO.format(free=0, spanned=frames, present=frames, managed=frames),
        "proc/iomem": f"00000000-{frames * 4096 - 1:08x} : System RAM\n",
        "proc/meminfo": "MemTotal: 1 kB\n",
        "proc/vmstat": "nr_free_pages 0\n",
        "cgroups.tsv": "7\t/web\n8\t/db\n",
        **(files or {}),
    }
    for name, text in texts.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    write_words(root / "proc/kpageflags", words)
    write_words(root / "proc/kpagecount", mapcounts if mapcounts is not None else [0] * frames)
    write_words(root / "proc/kpagecgroup", cgroups if cgroups is not None else [0] * frames)
    return ProcSource(root, name=f"tree:{root}")

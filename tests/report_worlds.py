"""Machines whose every frame is known, and hostile names, for the report's tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from worlds import tree

from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.map.attribution import Attribution
from memdesc.sources.source import ProcSource

TILE = 4096
"""Frames of a tile in these small worlds, where a cell is one frame."""

ZONES = """\
Node 0, zone      DMA
  pages free     1
        spanned  4096
        present  4096
        managed  4000
  pagesets
    cpu: 0
              count:    0
  start_pfn:           0
Node 0, zone   Normal
  pages free     1
        spanned  12288
        present  8192
        managed  8000
  pagesets
    cpu: 0
              count:    3
  start_pfn:           4096
"""


def known_words() -> NDArray[np.uint64]:
    """Four tiles: free, anon, a chessboard of slab and file, and a hole."""
    words = np.zeros(4 * TILE, np.uint64)
    words[:TILE] = KPF.BUDDY
    words[TILE : 2 * TILE] = KPF.ANON | KPF.LRU | KPF.UPTODATE | KPF.SWAPBACKED | KPF.MMAP
    words[2 * TILE : 3 * TILE : 2] = KPF.SLAB
    words[2 * TILE + 1 : 3 * TILE : 2] = KPF.LRU | KPF.UPTODATE | KPF.REFERENCED
    words[2 * TILE : 2 * TILE + 8] = 0
    return words


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '" onmouseover="alert(3)',
    "<!--<script>",
    "{{ 7 * 7 }}",
    "a\u202eb\x00c\x1b[31m\ud800",
)


def no_processes() -> Attribution:
    raise QuestionError("nobody was asked", hint="a test")


def hostile_attribution() -> Attribution:
    """Processes with hostile names, each mapping one frame."""
    size = len(HOSTILE)
    names = list(HOSTILE)
    numbers = np.arange(size, dtype=np.uint64)
    zeros = np.zeros(size, np.uint64)
    vmas = dict.fromkeys(("swapped", "guard", "hwpoison", "special", "zero", "no_pfn"), zeros)
    return Attribution.from_tables(
        {
            "processes": {
                "pid": numbers + np.uint64(1),
                "ppid": zeros,
                "uid": zeros,
                "comm": names,
                "cgroup": names,
            },
            "vmas": {
                "process": numbers,
                "start": np.full(size, 0x1000, np.uint64),
                "end": np.full(size, 0x2000, np.uint64),
                "perms": np.full(size, 1, np.uint64),
                "offset": zeros,
                "device": zeros,
                "inode": zeros,
                "name": names,
                **vmas,
            },
            "mappings": {
                "pfn_start": numbers + np.uint64(TILE),
                "nr_pages": np.ones(size, np.uint64),
                "vma": numbers,
                "page": np.ones(size, np.uint64),
                "file": zeros,
            },
        }
    )


def known_source(folder: Path) -> ProcSource:
    """A tree of `known_words`, with two zones, cgroups and the last tile not present."""
    cgroups = np.zeros(4 * TILE, np.uint64)
    cgroups[TILE : TILE + 1000] = 7
    return tree(
        folder,
        known_words(),
        cgroups=cgroups.tolist(),
        files={
            "proc/zoneinfo": ZONES,
            "proc/iomem": f"00000000-{3 * TILE * 4096 - 1:08x} : System RAM\n",
            "proc/meminfo": "MemTotal: 49152 kB\nMemFree: 16384 kB\nSlab: 8192 kB\n",
        },
    )

"""From the page files to a map: the scan that live machines and raw files share.

Flags are read for every frame.  Map counts are read only where some frame is mapped
(KPF_MMAP: a frame without it has count 0 by `fs/proc/page.c`), cgroups only where a frame
can be charged, which on most machines spares most of the reading.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import NotReadableError
from memdesc.kernels.kpageflags import KPF
from memdesc.map.codebook import CodeBook
from memdesc.map.encode import CHUNK_PAGES, Encoder, Runs
from memdesc.map.extents import MemoryMap, ScanStats, Totals
from memdesc.map.facts import FactBook
from memdesc.map.machine import Machine
from memdesc.map.regions import Regions, regions_of
from memdesc.map.sinks import Columns, ExtentSink, TotalsSink
from memdesc.sources.kpage import PageFile, in_order, scratch, thread_count

__all__ = ["PageScan", "Progress"]

Progress = Callable[[int, int], None]
"""Called with (frames done, frames in all)."""

_STRIPE_CHUNKS = 8
"""Chunks per task: enough work that handing tasks to threads costs nothing."""

_NEVER_CHARGED = np.uint64(
    KPF.BUDDY | KPF.SLAB | KPF.RESERVED | KPF.NOPAGE | KPF.OFFLINE | KPF.ZERO_PAGE
)
_MAPPED = np.uint64(KPF.MMAP)
_BLOCK = 64
"""Frames per block when deciding what to read of the sparse files."""

_JOIN_GAP_BLOCKS = 2


@dataclass
class PageScan:
    """One scan of a set of page files.

    `flags` is required; `mapcounts` and `cgroups` are None where the source has none,
    and `unseen` says why.
    """

    machine: Machine
    flags: PageFile
    mapcounts: PageFile | None = None
    cgroups: PageFile | None = None
    unseen: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self.threads = self.threads or thread_count()
        self.regions: Regions = regions_of(self.machine)
        self.book = FactBook(self.machine.context)
        self.cgroup_codes = CodeBook("memory cgroups", limit=1 << 24)
        self.frames = self.flags.frames()
        self._read = {"mapcounts": 0, "cgroups": 0}
        self.encoder = Encoder(
            self.book,
            self.regions,
            section_pages=self.machine.section_pages,
            read_word=self.flags.word,
        )

    def totals(self) -> Totals:
        """Count every frame by region and fact; memory does not grow with the machine."""
        started = time.perf_counter()
        sink = TotalsSink(self.regions)

        def stripe(bounds: tuple[int, int]) -> tuple[list[dict[int, NDArray[np.float64]]], int]:
            return [sink.count(runs) for runs in self._runs(bounds, sparse=False)], bounds[1]

        for counted, pfn_end in in_order(self._stripes(), stripe, threads=self.threads):
            for part in counted:
                sink.add(part, pfn_end)
            self._tell(pfn_end)
        return sink.totals(self.machine, self.book.table(), self._stats(started))

    def map(self) -> MemoryMap:
        """Read every frame into extents."""
        started = time.perf_counter()
        sink = ExtentSink(self.regions, self.cgroup_codes)
        for runs in self.runs():
            sink.add(runs)
        return sink.map(self.machine, self.book.table(), self._stats(started), self.unseen)

    def columns(self) -> Iterator[Columns]:
        """Stream the extents of the map chunk by chunk, for a capture that never is whole."""
        sink = ExtentSink(self.regions, self.cgroup_codes)
        for runs in self.runs():
            yield sink.columns(runs)

    def runs(self) -> Iterator[Runs]:
        """Encoded chunks in frame order."""

        def stripe(bounds: tuple[int, int]) -> list[Runs]:
            return list(self._runs(bounds, sparse=True))

        for encoded in in_order(self._stripes(), stripe, threads=self.threads):
            yield from encoded
            if encoded:
                self._tell(encoded[-1].pfn_start + encoded[-1].nr_pages)

    def reread(self, result: MemoryMap, *, samples: int = 64, seed: int = 1) -> ScanStats:
        """Read a random sample of blocks again and count the frames that changed since.

        Returns `result.stats` with `frames_reread` and `frames_changed` filled in.
        """
        if not result.pfn_end:
            return result.stats
        chooser = random.Random(seed)
        changed = total = 0
        for _ in range(samples):
            start = chooser.randrange(result.pfn_end) & ~511
            end = min(start + 512, result.pfn_end)
            again = np.empty(end - start, np.uint64)
            self.flags.read_into(start, again)
            changed += int(np.count_nonzero(again != result.words(start, end)))
            total += end - start
        return dataclasses.replace(result.stats, frames_reread=total, frames_changed=changed)

    # --- helpers -------------------------------------------------------------------------

    def _stripes(self) -> Iterator[tuple[int, int]]:
        step = CHUNK_PAGES * _STRIPE_CHUNKS
        return ((pfn, min(pfn + step, self.frames)) for pfn in range(0, self.frames, step))

    def _runs(self, bounds: tuple[int, int], *, sparse: bool) -> Iterator[Runs]:
        buffers = scratch()
        for pfn in range(bounds[0], bounds[1], CHUNK_PAGES):
            size = min(CHUNK_PAGES, bounds[1] - pfn)
            words = buffers.flags[:size]
            self.flags.read_into(pfn, words)
            mapcounts = cgroups = None
            if sparse and self.mapcounts is not None:
                mapcounts = buffers.mapcounts[:size]
                mapcounts.fill(0)
                wanted = _blocks_with(words & _MAPPED != 0)
                self._sparse(self.mapcounts, "mapcounts", pfn, wanted, mapcounts)
            if sparse and self.cgroups is not None:
                cgroups = buffers.cgroups[:size]
                cgroups.fill(0)
                charged = (words & _NEVER_CHARGED == 0) & self._may_be_used(pfn, words)
                self._sparse(self.cgroups, "cgroups", pfn, _blocks_with(charged), cgroups)
                if self.machine.behaviour.cgroup_on_head_only:
                    _spread_from_heads(words, cgroups)
            yield self.encoder.encode(pfn, words, mapcounts, cgroups)

    def _may_be_used(self, pfn: int, words: NDArray[np.uint64]) -> NDArray[np.bool_] | bool:
        """False for whole sections that read 0: nothing there is charged to anybody."""
        section = self.machine.section_pages
        if words[0] or words[-1] or words.size < section or words.any():
            return True
        return np.zeros(words.size, np.bool_)

    def _sparse(
        self,
        file: PageFile,
        name: str,
        pfn: int,
        blocks: list[tuple[int, int]],
        into: NDArray[np.uint64],
    ) -> None:
        for low, high in blocks:
            high = min(high, into.size)
            file.read_into(pfn + low, into[low:high])
            self._read[name] += high - low

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self.frames)

    def _stats(self, started: float) -> ScanStats:
        return ScanStats(
            seconds=time.perf_counter() - started,
            threads=self.threads,
            mapcounts_read=self._read["mapcounts"],
            cgroups_read=self._read["cgroups"],
        )


def open_page_files(folder: Path, unseen: dict[str, str]) -> tuple[PageFile, list[PageFile | None]]:
    """Open kpageflags below `folder`, and kpagecount and kpagecgroup where they may be read.

    Raises NotReadableError only for kpageflags; the others are named in `unseen`.
    """
    flags = PageFile(folder / "kpageflags")
    others: list[PageFile | None] = []
    for name, column in (("kpagecount", "mapcounts"), ("kpagecgroup", "cgroups")):
        try:
            others.append(PageFile(folder / name))
        except NotReadableError as error:
            unseen[column] = str(error)
            others.append(None)
    return flags, others


def _blocks_with(wanted: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open offsets of the blocks that hold a wanted frame; near ones are joined."""
    if not wanted.any():
        return []
    padded = -wanted.size % _BLOCK
    if padded:
        wanted = np.concatenate([wanted, np.zeros(padded, np.bool_)])
    blocks = np.flatnonzero(wanted.reshape(-1, _BLOCK).any(axis=1))
    breaks = np.flatnonzero(np.diff(blocks) > _JOIN_GAP_BLOCKS)
    first = np.concatenate([blocks[:1], blocks[breaks + 1]])
    last = np.concatenate([blocks[breaks], blocks[-1:]])
    return [(int(a) * _BLOCK, (int(b) + 1) * _BLOCK) for a, b in zip(first, last, strict=True)]


def _spread_from_heads(words: NDArray[np.uint64], cgroups: NDArray[np.uint64]) -> None:
    """Give tails their head's cgroup, for kernels whose tails read 0."""
    tails = words & np.uint64(KPF.COMPOUND_TAIL) != 0
    if not tails.any():
        return
    position = np.arange(words.size)
    owner = np.maximum.accumulate(np.where(tails, 0, position))
    empty = np.flatnonzero(tails & (cgroups == 0))
    cgroups[empty] = cgroups[owner[empty]]

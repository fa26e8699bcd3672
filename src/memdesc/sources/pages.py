"""From the page files to a map: the scan that live machines and raw files share.

Flags are read for every frame.  Map counts are read only where some frame is mapped
(KPF_MMAP: a frame without it has count 0 by `fs/proc/page.c`), cgroups only where a frame
can be charged, which on most machines spares most of the reading.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import NotReadableError, QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.map.codebook import CodeBook
from memdesc.map.encode import Encoder, Runs, zero_sections
from memdesc.map.extents import MemoryMap, ScanStats, Totals
from memdesc.map.facts import FactBook, FactTable
from memdesc.map.machine import Machine
from memdesc.map.regions import Regions, regions_of
from memdesc.map.sinks import Columns, ExtentSink, TotalsSink
from memdesc.rules.classify import Backing
from memdesc.sources.kpage import PageFile, in_order, keep_heap, share_out, thread_count

__all__ = ["PageScan", "Progress"]

Progress = Callable[[int, int], None]
"""Called with (frames done, frames in all)."""

_Chunk = tuple[int, int]
"""Frames [start, end)."""

_SMALLEST_CHUNK, _LARGEST_CHUNK = 1 << 16, 1 << 18
"""Frames read at a time: 512 KiB to 2 MiB of words, which stay in the processor's cache until
they are encoded. While one thread reads a chunk another one runs Python, so it should be long."""

_CHUNKS_PER_THREAD = 32
"""At least so many, so that at the end no thread waits long for another."""

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
    chunk_pages: int = 0
    """Frames read at a time, at least a memory section; 0 for what is quickest."""

    def __post_init__(self) -> None:
        self.threads = self.threads or thread_count()
        self.regions: Regions = regions_of(self.machine)
        self.frames = self.flags.frames()
        self.chunk_pages = self.chunk_pages or _fair_chunk(self.frames, self.threads)
        self._buffers = threading.local()
        self._lock = threading.Lock()
        self._begin()
        keep_heap()

    @property
    def has_mapcounts(self) -> bool:
        return self.mapcounts is not None

    @property
    def has_cgroups(self) -> bool:
        return self.cgroups is not None

    def facts(self) -> FactTable:
        return self.book.table()

    def cgroup_inodes(self) -> NDArray[np.uint64]:
        return self.cgroup_codes.keys

    def totals(self) -> Totals:
        """Count every frame by region and fact; memory does not grow with the machine."""
        started = self._begin()
        sinks = [TotalsSink(self.regions)]

        def count(chunks: Iterator[_Chunk]) -> None:
            sink = TotalsSink(self.regions)
            sinks.append(sink)
            for chunk in chunks:
                sink.add(self.encoder.count(chunk[0], self._words(chunk)), chunk[1])

        def tell() -> None:
            self._tell(max(sink.pfn_end for sink in sinks))

        share_out(self._chunks(), count, threads=self.threads, meanwhile=tell)
        sink = sinks[0]
        for other in sinks[1:]:
            sink.merge(other)
        return sink.totals(self.machine, self.book.table(), self.stats(started))

    def map(self) -> MemoryMap:
        """Read every frame into extents."""
        started = self._begin()
        sink = ExtentSink(self.regions, self.book, self.cgroup_codes)
        for runs in self.runs():
            sink.add(runs)
        return sink.map(self.machine, self.book.table(), self.stats(started), self.unseen)

    def window(self, pfn: int) -> MemoryMap:
        """Read only the neighbourhood of `pfn`: its memory section, or its 1 GiB huge page.

        Enough to name the frame, its whole folio or slab, and a section that reads 0.
        Raises QuestionError when the file has no such frame.
        """
        if not 0 <= pfn < self.frames:
            raise QuestionError(
                f"frame {pfn:#x} is outside the map, which ends at {self.frames:#x}",
                hint="a physical address is written phys:0x..., a frame number 0x...",
            )
        started = self._begin()
        span = self.machine.section_pages
        if self.flags.word(pfn) & KPF.HUGE:
            span = max(span, 1 << 18)
        start = pfn & ~(span - 1)
        end = min(start + span, self.frames)
        sink = ExtentSink(self.regions, self.book, self.cgroup_codes)
        for chunk in self._chunks(start, end):
            sink.add(self._runs(chunk))
        return sink.map(self.machine, self.book.table(), self.stats(started), self.unseen)

    def columns(self) -> Iterator[Columns]:
        """Stream the extents of the map chunk by chunk, for a capture that never is whole."""
        self._begin()
        sink = ExtentSink(self.regions, self.book, self.cgroup_codes)
        for runs in self.runs():
            yield sink.columns(runs)

    def runs(self) -> Iterator[Runs]:
        """Encoded chunks in frame order."""
        for runs in in_order(self._chunks(), self._runs, threads=self.threads):
            yield runs
            self._tell(runs.pfn_start + runs.nr_pages)

    def reread(self, result: MemoryMap, *, samples: int = 64, seed: int = 1) -> ScanStats:
        """Read a random sample of blocks again and count the frames that changed since.

        Returns `result.stats` with `frames_reread` and `frames_changed` filled in.
        """
        if not len(result):
            return result.stats
        chooser = random.Random(seed)
        changed = total = 0
        for _ in range(samples):
            start = max(
                result.pfn_start, chooser.randrange(result.pfn_start, result.pfn_end) & ~511
            )
            end = min(start + 512, result.pfn_end)
            again = np.empty(end - start, np.uint64)
            self.flags.read_into(start, again)
            changed += int(np.count_nonzero(again != result.words(start, end)))
            total += end - start
        return dataclasses.replace(result.stats, frames_reread=total, frames_changed=changed)

    # --- helpers -------------------------------------------------------------------------

    def _begin(self) -> float:
        """Forget what an earlier pass met, and return the time."""
        self.book = FactBook(self.machine.context)
        self.cgroup_codes = CodeBook("memory cgroups", limit=1 << 24)
        self.encoder = Encoder(
            self.book,
            self.regions,
            section_pages=self.machine.section_pages,
            read_words=self.flags.read_into,
        )
        self._read = {"mapcounts": 0, "cgroups": 0}
        self._told = 0
        return time.perf_counter()

    def _chunks(self, start: int = 0, end: int | None = None) -> Iterator[_Chunk]:
        end = self.frames if end is None else end
        step = self.chunk_pages
        return ((low, min(low + step, end)) for low in range(start, end, step))

    def _words(self, chunk: _Chunk) -> NDArray[np.uint64]:
        """The kpageflags words of a chunk, valid until this thread's next one."""
        words = self._buffer("flags", chunk)
        self.flags.read_into(chunk[0], words)
        return words

    def _runs(self, chunk: _Chunk) -> Runs:
        pfn, words = chunk[0], self._words(chunk)
        mapcounts = cgroups = None
        if self.mapcounts is not None:
            mapcounts = self._buffer("mapcounts", chunk)
            self._sparse(self.mapcounts, "mapcounts", pfn, words & _MAPPED != 0, mapcounts)
        if self.cgroups is not None:
            cgroups = self._buffer("cgroups", chunk)
            self._sparse(self.cgroups, "cgroups", pfn, self._chargeable(pfn, words), cgroups)
            if self.machine.behaviour.cgroup_on_head_only:
                _spread_from_heads(words, cgroups, self._cgroup_before(pfn, words))
        return self.encoder.encode(pfn, words, mapcounts, cgroups)

    def _buffer(self, name: str, chunk: _Chunk) -> NDArray[np.uint64]:
        """This thread's own words for one file, used again for every chunk."""
        buffer: NDArray[np.uint64] | None = getattr(self._buffers, name, None)
        if buffer is None:
            buffer = np.empty(self.chunk_pages, np.uint64)
            setattr(self._buffers, name, buffer)
        return buffer[: chunk[1] - chunk[0]]

    def _chargeable(self, pfn: int, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which frames may be charged to a cgroup: not those that hold nothing."""
        section = self.machine.section_pages
        chargeable: NDArray[np.bool_] = words & _NEVER_CHARGED == 0
        for low in zero_sections(pfn, words, section):
            region = self.regions.of(pfn + low)
            if region.deferred_ok or region.backing is not Backing.RAM:
                chargeable[low : low + section] = False
        return chargeable

    def _cgroup_before(self, pfn: int, words: NDArray[np.uint64]) -> int:
        """The cgroup of the compound page that a chunk begins inside of; 0 for none."""
        head = self.encoder.head_before(pfn) if int(words[0]) & KPF.COMPOUND_TAIL else None
        return 0 if head is None or self.cgroups is None else self.cgroups.word(head[0])

    def _sparse(
        self,
        file: PageFile,
        name: str,
        pfn: int,
        wanted: NDArray[np.bool_],
        into: NDArray[np.uint64],
    ) -> None:
        """Fill `into` from `file` for the `wanted` frames, and with 0 elsewhere.

        A block is read whole; what it says of frames that nobody asked for is dropped, so that
        the answer does not depend on who lies next to whom (with CONFIG_NO_PAGE_MAPCOUNT a slab
        frame shows a false count).
        """
        into.fill(0)
        frames = 0
        for low, high in _blocks_with(wanted):
            block = into[low:high]
            file.read_into(pfn + low, block)
            np.multiply(block, wanted[low:high], out=block)
            frames += block.size
        with self._lock:
            self._read[name] += frames

    def _tell(self, done: int) -> None:
        if self.progress is not None and done > self._told:
            self._told = done
            self.progress(done, self.frames)

    def stats(self, started: float) -> ScanStats:
        """What was read since `started` (`time.perf_counter`)."""
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


def _fair_chunk(frames: int, threads: int) -> int:
    fair = frames // (threads * _CHUNKS_PER_THREAD)
    power_of_two = 1 << fair.bit_length() >> 1
    return min(max(_SMALLEST_CHUNK, power_of_two), _LARGEST_CHUNK)


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


def _spread_from_heads(words: NDArray[np.uint64], cgroups: NDArray[np.uint64], before: int) -> None:
    """Give tails their head's cgroup, for kernels whose tails read 0.

    `before` is the cgroup of tails whose head is not in `words`.
    """
    is_head = words & np.uint64(KPF.COMPOUND_HEAD) != 0
    is_tail = (words & np.uint64(KPF.COMPOUND_TAIL) != 0) & ~is_head
    if not is_tail.any():
        return
    owner = np.maximum.accumulate(np.where(is_tail, -1, np.arange(words.size)))
    empty = np.flatnonzero(is_tail & (cgroups == 0))
    owner = owner[empty]
    of_owner = np.where(is_head[owner], cgroups[owner], np.uint64(0))
    cgroups[empty] = np.where(owner < 0, np.uint64(before), of_owner)

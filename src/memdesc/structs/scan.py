"""From struct pages to a map: the scan that live machines and dumps share.

The counterpart of `memdesc.sources.pages.PageScan`: the same totals, map, window and runs,
with exact types where /proc shows unions, made from the memory map alone.  Memory stays
bounded whatever the size of the machine: a chunk of struct pages is read into the buffer of
a thread and turned into columns there.

    scan = StructScan(kernel, memmap, machine)
    scan.map()
"""

from __future__ import annotations

import bisect
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, QuestionError
from memdesc.kernels.page_state import SIG_DEVICE, SIG_HOLE, SIG_KNOWN, SIG_UNREADABLE
from memdesc.map.codebook import CodeBook
from memdesc.map.encode import Encoder, Runs
from memdesc.map.extents import MemoryMap, ScanStats, Totals
from memdesc.map.facts import FactTable
from memdesc.map.held import HeldSink
from memdesc.map.machine import Machine
from memdesc.map.regions import regions_of
from memdesc.map.sinks import Columns, ExtentSink, TotalsSink
from memdesc.map.threads import in_order, keep_heap, share_out, thread_count
from memdesc.rules.structpage import StructContext
from memdesc.structs.columns import StateReader
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import OwnedRanges, kind_code
from memdesc.structs.pointers import Pointers
from memdesc.structs.special import special_frames
from memdesc.structs.states import StateBook
from memdesc.structs.work import Chunk
from memdesc.types import MemoryType

__all__ = ["Progress", "StructScan"]

Progress = Callable[[int, int], None]
"""Called with (frames done, frames in all)."""

_Frames = tuple[int, int]
"""Frames [start, end)."""

_CHUNK_PAGES = 1 << 16
"""Frames read at a time: 4 MiB of struct pages. numpy hands the interpreter over in every call,
so with short columns two threads spend their time waiting for each other."""
_SALVAGE_PAGES = 512
"""Where a chunk cannot be read, it is read in pieces of so many frames: what a page of the
memory map's own page tables backs on memory that was plugged in (2 MiB)."""
_LARGEST_FOLIO = 1 << 18
_HOLE = SIG_KNOWN | SIG_HOLE
_REREAD_PAGES = 1 << 10
"""A block of the sample: as large as the largest free block, so that none is cut."""

_WALKS = {
    "vmalloc": MemoryType.VMALLOC,
    "stacks": MemoryType.KERNEL_STACK,
    "percpu": MemoryType.PERCPU,
    "pcp": MemoryType.FREE_PCP,
    "tables": MemoryType.PAGE_TABLE,
}
"""Name of a walk (`memdesc.structs.walk`) -> the kind it finds every frame of, if it was done
and met no broken link (`OwnedRanges.done`)."""


@dataclass
class StructScan:
    """One scan of a kernel's memory map."""

    kernel: Kernel
    memmap: MemMap
    machine: Machine
    owned: OwnedRanges | None = None
    """What the walks met; without them some kinds stay a union."""
    threads: int = 0
    owners: bool = False
    """Fill `MemoryMap.owners` as well."""
    references: bool = False
    """Fill `MemoryMap.references` as well."""
    cgroups: bool = True
    """Fill `MemoryMap.cgroups` where this kernel charges memory to cgroups."""
    progress: Progress | None = None
    chunk_pages: int = _CHUNK_PAGES
    """Frames read at a time: a power of two from 1024 on."""
    unseen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.chunk_pages & (self.chunk_pages - 1) or not (1024 <= self.chunk_pages <= 1 << 18):
            raise QuestionError(f"a chunk cannot have {self.chunk_pages} frames")
        self.threads = self.threads or thread_count()
        self.regions = regions_of(self.machine)
        offline = (*self.memmap.offline, *self.machine.offline)
        online = _without(self.memmap.sections, offline)
        ranges = sorted((*online, *offline))
        self._starts = [low for low, _ in ranges]
        self._ranges = ranges
        self._offline = frozenset(offline)
        self.frames = ranges[-1][1] if ranges else 0
        if self.cgroups and self.memmap.layout.memcg_data is None:
            self.cgroups = False
            self.unseen["cgroups"] = "this kernel charges no memory to cgroups"
        self.pointers = Pointers(self.kernel, self.memmap.layout)
        self._special = special_frames(self.kernel, self.memmap)
        self._context = self._known()
        self._buffers = threading.local()
        self._lock = threading.Lock()
        self._begin()
        keep_heap()

    @property
    def has_mapcounts(self) -> bool:
        return True

    @property
    def has_cgroups(self) -> bool:
        return self.cgroups

    def facts(self) -> FactTable:
        return self.book.table()

    def cgroup_inodes(self) -> NDArray[np.uint64]:
        return self.cgroup_codes.keys

    def totals(self) -> Totals:
        """Count every frame by region and fact, with `references` also by who holds it
        (`Totals.held`); memory does not grow with the machine."""
        started = self._begin()
        sinks = [TotalsSink(self.regions)]
        held = [self._held_sink()]

        def count(chunks: Iterator[_Frames]) -> None:
            sink, holders = TotalsSink(self.regions), self._held_sink()
            sinks.append(sink)
            held.append(holders)
            for low, high in chunks:
                if self._range_of(low) is None:
                    sink.add(self.encoder.count_same(low, high - low, _HOLE), high)
                    if self.references:
                        runs = self.encoder.encode_same(low, high - low, _HOLE)
                        holders.add(runs, self.book.table())
                    continue
                chunk = self._chunk((low, high), mapcounts=self.references)
                sink.add(self.encoder.count(low, chunk.signatures), high)
                if self.references:
                    runs = self.encoder.encode(low, chunk.signatures, references=chunk.references)
                    holders.add(runs, self.book.table())

        share_out(
            self._chunks(),
            count,
            threads=self.threads,
            meanwhile=lambda: self._tell(max(sink.pfn_end for sink in sinks)),
        )
        for other in sinks[1:]:
            sinks[0].merge(other)
        for one in held[1:]:
            held[0].merge(one)
        table = self.book.table()
        totals = sinks[0].totals(self.machine, table, self.stats(started))
        return replace(totals, held=held[0].pages(len(table)) if self.references else None)

    def map(self) -> MemoryMap:
        """Read every frame into extents."""
        started = self._begin()
        sink = ExtentSink(self.regions, self.book, self.cgroup_codes)
        for runs in self.runs():
            sink.add(runs)
        return self._map(sink, started)

    def window(self, pfn: int) -> MemoryMap:
        """Read only the neighbourhood of `pfn`: its memory section, or its 1 GiB huge page.

        Raises QuestionError when the memory map has no such frame.
        """
        if not 0 <= pfn < self.frames:
            raise QuestionError(
                f"frame {pfn:#x} is outside the map, which ends at {self.frames:#x}",
                hint="a physical address is written phys:0x..., a frame number 0x...",
            )
        span = self.memmap.section_pages
        if self._is_in_gigantic(pfn):
            span = max(span, _LARGEST_FOLIO)
        start = pfn & ~(span - 1)
        return self.part(start, min(start + span, self.frames))

    def part(self, pfn_start: int, pfn_end: int) -> MemoryMap:
        """Read frames [pfn_start, pfn_end); `pfn_start` is a multiple of 1024, or free blocks
        that began before it are not seen."""
        started = self._begin()
        sink = ExtentSink(self.regions, self.book, self.cgroup_codes)
        for chunk in self._chunks(pfn_start, pfn_end):
            sink.add(self._runs(chunk))
        return self._map(sink, started)

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

    def stats(self, started: float) -> ScanStats:
        """What was read since `started` (`time.perf_counter`)."""
        return ScanStats(
            seconds=time.perf_counter() - started,
            threads=self.threads,
            frames_torn=self._torn,
            frames_unreadable=self._unreadable,
        )

    def reread(self, result: MemoryMap, *, samples: int = 64, seed: int = 1) -> ScanStats:
        """Read a random sample of blocks again and count the frames that changed since.

        Returns `result.stats` with `frames_reread` and `frames_changed` filled in.
        """
        chooser = random.Random(seed)
        lowest = -(-result.pfn_start // _REREAD_PAGES)
        blocks = range(lowest, result.pfn_end // _REREAD_PAGES)
        changed = total = 0
        for _ in range(samples if blocks else 0):
            start = chooser.choice(blocks) * _REREAD_PAGES
            end = start + _REREAD_PAGES
            again = self.part(start, end).words(start, end)
            changed += int(np.count_nonzero(again != result.words(start, end)))
            total += again.size
        return replace(result.stats, frames_reread=total, frames_changed=changed)

    # --- helpers -------------------------------------------------------------------------

    def _held_sink(self) -> HeldSink:
        own = self.machine.behaviour.tails_show_own_flags
        return HeldSink(self.regions, tails_show_own_flags=own)

    def _known(self) -> StructContext:
        owned = self.owned
        kinds: list[MemoryType | None] = [None] * 64
        for kind in MemoryType:
            kinds[kind_code(kind)] = kind
        walked: frozenset[MemoryType] = frozenset()
        if owned is not None:
            walked = frozenset(kind for walk, kind in _WALKS.items() if walk in owned.done)
        return StructContext(
            self.machine.context,
            self.memmap.layout,
            kinds=tuple(kinds),
            walked=walked,
            is_live=self.kernel.is_live,
        )

    def _begin(self) -> float:
        """Forget what an earlier pass met, and return the time."""
        behaviour = self.machine.behaviour
        self.reader = StateReader(
            self.memmap,
            special=self._special,
            pointers=self.pointers,
            owned=self.owned,
            tails_show_own_flags=behaviour.tails_show_own_flags,
        )
        self.book = StateBook(self._context, self.reader.tails.words)
        self.cgroup_codes = CodeBook("memory cgroups", limit=1 << 24)
        self.encoder = Encoder(
            self.book,
            self.regions,
            section_pages=self.memmap.section_pages,
            read_words=lambda pfn, words: words.fill(0),
        )
        self._torn = self._unreadable = self._told = 0
        return time.perf_counter()

    def _map(self, sink: ExtentSink, started: float) -> MemoryMap:
        names = tuple(self.pointers.owner_names) if self.owners else ()
        table, stats = self.book.table(), self.stats(started)
        return sink.map(self.machine, table, stats, self.unseen, owner_names=names)

    def _chunks(self, start: int = 0, end: int | None = None) -> Iterator[_Frames]:
        """Chunks in frame order: of a section with a memory map, or a whole hole."""
        end = self.frames if end is None else end
        pfn = start
        while pfn < end:
            limit, step = end, self.chunk_pages
            index = self._range_of(pfn)
            if index is None:
                following = bisect.bisect_right(self._starts, pfn)
                if following < len(self._starts):
                    limit = min(end, self._starts[following])
                step = limit
            else:
                limit = min(end, self._ranges[index][1])
            high = min((pfn // step + 1) * step, limit)
            yield pfn, high
            pfn = high

    def _range_of(self, pfn: int) -> int | None:
        """Index of the range with a memory map that holds `pfn`."""
        index = bisect.bisect_right(self._starts, pfn) - 1
        return index if index >= 0 and pfn < self._ranges[index][1] else None

    def _chunk(self, frames: _Frames, *, mapcounts: bool = False, memcgs: bool = False) -> Chunk:
        """Frames that have a memory map."""
        low, high = frames
        index = self._range_of(low)
        if index is not None and self._ranges[index] in self._offline:
            return self._not_online(low, high)
        pages = self._buffer(high - low)
        unreadable = self._fill(low, pages)
        chunk = self.reader.read(
            low,
            pages,
            mapcounts=mapcounts,
            memcgs=memcgs,
            owners=self.owners and mapcounts,
            references=self.references and mapcounts,
        )
        for start, end in unreadable:
            chunk.signatures[start:end] = np.uint64(SIG_UNREADABLE | SIG_KNOWN)
        if chunk.torn or unreadable:
            with self._lock:
                self._torn += chunk.torn
                self._unreadable += sum(end - start for start, end in unreadable)
        return chunk

    def _not_online(self, low: int, high: int) -> Chunk:
        """Sections with a memory map that is not online: of a device, or set offline."""
        words = np.full(high - low, _HOLE, np.uint64)
        words[self._of_devices(low, high)] = SIG_KNOWN | SIG_DEVICE
        zero = np.zeros(high - low, np.uint64)
        nothing = np.full(high - low, -1, np.int8)
        return Chunk(low, words, zero, zero, zero, nothing)

    def _of_devices(self, low: int, high: int) -> NDArray[np.bool_]:
        """bool: which frames of a section that is not online are in ZONE_DEVICE.

        Their struct pages say so, where the zone's place in them is known: /proc/zoneinfo does
        not, as it tells the place of zones with present pages only
        (`mm/vmstat.c:zoneinfo_show_print` @6.12), which device memory has none of.
        """
        devices = np.zeros(high - low, np.bool_)
        for zone in self.machine.zones:
            if zone.name == "Device":
                devices[max(zone.pfn_start - low, 0) : max(zone.pfn_end - low, 0)] = True
        layout = self.memmap.layout
        if layout.device_zone is None or layout.zone_field is None:
            return devices
        pages = self._buffer(high - low)
        unreadable = self._fill(low, pages)
        place, width = layout.zone_field
        zones = pages.view(np.uint64)[:, layout.flags // 8] >> np.uint64(place)
        shown: NDArray[np.bool_] = zones & np.uint64((1 << width) - 1) == layout.device_zone
        for start, end in unreadable:
            shown[start:end] = devices[start:end]
        return shown

    def _fill(self, pfn: int, pages: NDArray[np.uint8]) -> list[_Frames]:
        """Read struct pages into `pages`; returns offsets of those that cannot be read."""
        try:
            self.memmap.read_pages_into(pfn, pages)
        except FaultError:
            return self._salvage(pfn, pages)
        return []

    def _salvage(self, pfn: int, pages: NDArray[np.uint8]) -> list[_Frames]:
        failed: list[_Frames] = []
        for start in range(0, len(pages), _SALVAGE_PAGES):
            piece = pages[start : start + _SALVAGE_PAGES]
            try:
                self.memmap.read_pages_into(pfn + start, piece)
            except FaultError:
                piece.fill(0)
                failed.append((start, start + len(piece)))
        return failed

    def _runs(self, frames: _Frames) -> Runs:
        if self._range_of(frames[0]) is None:
            return self._hole(*frames)
        chunk = self._chunk(frames, mapcounts=True, memcgs=self.cgroups)
        runs = self.encoder.encode(
            chunk.pfn_start,
            chunk.signatures,
            chunk.mapcounts,
            chunk.memcgs if self.cgroups else None,
            chunk.owners if self.owners else None,
            chunk.references if self.references else None,
        )
        if runs.cgroups is not None:
            runs = replace(runs, cgroups=self.pointers.cgroup_inodes(runs.cgroups))
        return runs

    def _hole(self, low: int, high: int) -> Runs:
        """Frames without a memory map, however many."""
        runs = self.encoder.encode_same(low, high - low, _HOLE)
        size = runs.starts.size
        return replace(
            runs,
            mapcounts=np.zeros(size, np.uint32),
            cgroups=np.zeros(size, np.uint64) if self.cgroups else None,
            owners=np.zeros(size, np.uint32) if self.owners else None,
            references=np.full(size, -1, np.int8) if self.references else None,
        )

    def _buffer(self, nr_pages: int) -> NDArray[np.uint8]:
        """This thread's own struct pages, used again for every chunk."""
        buffer: NDArray[np.uint8] | None = getattr(self._buffers, "pages", None)
        if buffer is None:
            buffer = np.empty((self.chunk_pages, self.memmap.page_size), np.uint8)
            self._buffers.pages = buffer
        return buffer[:nr_pages]

    def _is_in_gigantic(self, pfn: int) -> bool:
        """Whether `pfn` is part of a folio larger than a memory section."""
        if self._range_of(pfn) is None:
            return False
        start = pfn & ~(self.memmap.section_pages - 1)
        low = pfn & ~(_LARGEST_FOLIO - 1)
        for first in (low, start):
            if self._range_of(first) is None:
                continue
            try:
                pages = self.memmap.read_pages(first, 2)
            except FaultError:
                continue
            flags = int(pages.view(np.uint64)[0, self.memmap.layout.flags // 8])
            row, column = divmod(self.memmap.layout.folio_order, self.memmap.page_size)
            order = int(pages[row, column])
            if flags & self.memmap.layout.flag("head") and pfn - first >> min(order, 30) == 0:
                return 1 << order > self.memmap.section_pages
        return False

    def _tell(self, done: int) -> None:
        if self.progress is not None and done > self._told:
            self._told = done
            self.progress(done, self.frames)


def _without(ranges: Iterable[_Frames], holes: Iterable[_Frames]) -> list[_Frames]:
    """`ranges` less the frames of `holes`."""
    left = list(ranges)
    for low, high in holes:
        left = [
            piece
            for start, end in left
            for piece in ((start, min(end, low)), (max(start, high), end))
            if piece[0] < piece[1]
        ]
    return left

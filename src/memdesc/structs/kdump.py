"""Compressed kdump files: `makedumpfile -c`, `virsh dump --format kdump-zlib`, QEMU's own.

drgn's library for this format (libkdumpfile) wants a system name that QEMU leaves empty, and
maps the file into memory, so that a file that shrinks kills the process.  The format is
small, so it is read here, with `pread` only and nothing copied: drgn gets physical memory
page by page and does the rest.  Pages packed with LZO, snappy or zstd, which Python cannot
unpack, are left to libkdumpfile (`Packing.FOREIGN`).

Format: makedumpfile's IMPLEMENTATION file and diskdump_mod.h, QEMU's include/sysemu/dump.h.

    block 0          disk_dump_header: block size, sizes of the parts
    block 1          kdump_sub_header: where VMCOREINFO is, the number of frames
    then             two bitmaps, a bit per frame: exists; is in the dump
    then             24 bytes per frame in the dump: where its data is, how it is packed

*Flattened* (QEMU, `makedumpfile -F` through a pipe) is the same file as a series of writes
(offset, size, data), found through an index of them.
"""

from __future__ import annotations

import enum
import itertools
import os
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, FormatError, LayoutError, TruncatedError

__all__ = ["Flattened", "KdumpFile", "Packing"]

PAGE_SIZE = 4096
_SIGNATURES = (b"KDUMP   ", b"DISKDUMP")
_HEADER = struct.Struct("<8si390s6x2QIiiIIII")
_SUB_HEADER = struct.Struct("<QiiQQQQQQQQQQQ")
_DESC = np.dtype([("offset", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
_ONE_DESC = struct.Struct("<qIIQ")
_MOST_FRAMES = 1 << 32
"""16 TiB; a bitmap of 512 MiB."""

_ZLIB, _LZO, _SNAPPY, _INCOMPLETE, _ZSTD = 1, 2, 4, 8, 0x20
_FOREIGN = _LZO | _SNAPPY | _ZSTD
_CACHED_PAGES = 4096
_BATCH = 128
"""Pages that one thread unpacks at a time."""

_RUN_GAP = 1 << 16
"""Bytes between two pages' data that are read along rather than seeked over."""


class Packing(enum.Enum):
    """Whether the pages can be unpacked here."""

    OURS = "zlib or plain"
    FOREIGN = "LZO, snappy or zstd"


class KdumpFile:
    """Physical memory in a kdump file. Safe for several threads.

    Raises TruncatedError where the index of the pages is cut, FormatError where it
    contradicts itself, LayoutError for another architecture's page size.
    """

    def __init__(self, fd: int, path: Path, *, flattened: bool) -> None:
        self._path = path
        size = os.fstat(fd).st_size
        self._pread: Callable[[int, int], bytes] = lambda count, at: os.pread(fd, count, at)
        self.notes: list[str] = []
        if flattened:
            parts = Flattened(fd, path)
            self._pread, size = parts.pread, parts.size_bytes
            if parts.is_cut:
                self.notes.append(
                    f"{path} was cut: the last of its flattened records is missing, and with it "
                    "some of the memory"
                )
        self._read_headers(size)
        self._cache: dict[int, bytes] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self.packing: Packing = self._find_packing()

    # --- headers -------------------------------------------------------------------------

    def _read_headers(self, size: int) -> None:
        raw = self._part(0, _HEADER.size, "its header")
        (
            signature,
            revision,
            utsname,
            _,
            _,
            status,
            block,
            sub_blocks,
            bitmap_blocks,
            mapnr,
            *_,
        ) = _HEADER.unpack(raw)
        if signature not in _SIGNATURES:
            raise self._damaged(f"its signature is {signature!r}")
        if block != PAGE_SIZE:
            raise LayoutError(
                f"{self._path} has pages of {block} bytes; memdesc reads x86-64 kernels, whose "
                f"pages are {PAGE_SIZE}",
                path=self._path,
            )
        machine = utsname[65 * 4 : 65 * 5].partition(b"\0")[0].decode("ascii", "replace")
        if machine not in ("", "x86_64"):
            raise LayoutError(
                f"{self._path} is for {machine}; memdesc reads dumps of x86-64", path=self._path
            )
        self.names_system: bool = utsname[0] != 0
        """Whether the header says "Linux", as QEMU's does not; libkdumpfile wants it."""
        if status & _INCOMPLETE:
            self.notes.append(
                f"{self._path} is incomplete: makedumpfile ran out of space, and the frames that "
                "it did not write are unreadable"
            )
        if revision < 3:
            raise self._damaged(f"revision {revision} of the format carries no VMCOREINFO")
        raw = self._part(block, _SUB_HEADER.size, "its second header")
        (_, _, split, _, _, info_at, info_size, _, _, _, _, _, _, mapnr_64) = _SUB_HEADER.unpack(
            raw
        )
        if split:
            raise FormatError(
                f"{self._path} is one part of a split dump",
                hint="join the parts with `makedumpfile --reassemble`",
            )
        if revision >= 6:
            mapnr = mapnr_64
        if not 0 < mapnr <= _MOST_FRAMES or info_size > 1 << 20:
            raise self._damaged(f"{mapnr} frames, {info_size} bytes of VMCOREINFO")
        self.vmcoreinfo: bytes = (
            self._part(info_at, info_size, "VMCOREINFO") if info_at and info_size else b""
        )
        if sub_blocks < 1 or bitmap_blocks < 2 or bitmap_blocks * block > size:
            raise self._damaged(f"{sub_blocks} and {bitmap_blocks} blocks of header and bitmap")
        half = bitmap_blocks // 2 * block
        if half * 8 < mapnr:
            raise self._damaged(f"a bitmap of {half} bytes for {mapnr} frames")
        second = (1 + sub_blocks) * block + half
        self.nr_frames: int = int(mapnr)
        bitmap = self._part(second, (self.nr_frames + 63) // 64 * 8, "the bitmap of its frames")
        self._bits: NDArray[np.uint64] = np.frombuffer(bitmap, "<u8")
        counts = np.bitwise_count(self._bits)
        self._before: NDArray[np.uint64] = np.cumsum(counts, dtype=np.uint64) - counts
        self._descs_at = second + half

    def _find_packing(self) -> Packing:
        """From the flags of the first pages: makedumpfile packs all in one way."""
        count = min(1024, int(self._before[-1]) if self._before.size else 0)
        raw = self._pread(count * _DESC.itemsize, self._descs_at)
        descs = np.frombuffer(raw[: len(raw) // _DESC.itemsize * _DESC.itemsize], _DESC)
        return Packing.FOREIGN if np.any(descs["flags"] & _FOREIGN) else Packing.OURS

    # --- memory --------------------------------------------------------------------------

    def read(self, address: int, size_bytes: int) -> bytes:
        """Physical memory. Raises FaultError for what the dump does not hold."""
        first, last = address // PAGE_SIZE, (address + size_bytes + PAGE_SIZE - 1) // PAGE_SIZE
        pages = [self._cached(first)] if last - first == 1 else self._many(first, last)
        start = address - first * PAGE_SIZE
        return b"".join(pages)[start : start + size_bytes]

    def _cached(self, pfn: int) -> bytes:
        page = self._cache.get(pfn)
        if page is None:
            page = self._one(pfn)
            with self._lock:
                if len(self._cache) >= _CACHED_PAGES:
                    self._cache.clear()
                self._cache[pfn] = page
        return page

    def _one(self, pfn: int) -> bytes:
        """As `_many`, without what only pays for many: walks read single pages."""
        rank = self._rank(pfn)
        raw = self._pread(_DESC.itemsize, self._descs_at + _DESC.itemsize * rank)
        if len(raw) < _DESC.itemsize:
            raise FaultError("not in the dump: the file was cut", pfn << 12)
        offset, size, flags, _ = _ONE_DESC.unpack(raw)
        if size > PAGE_SIZE or offset < 0:
            raise FaultError("the dump's index of this page is damaged", pfn << 12)
        return _unpacked(self._pread(size, offset), size, flags, pfn)

    def _rank(self, pfn: int) -> int:
        """How many frames before this one are in the dump. Raises FaultError for one left out."""
        if pfn >= self.nr_frames:
            raise FaultError("beyond the memory of the dump", pfn << 12)
        word, bit = int(self._bits[pfn >> 6]), 1 << (pfn & 63)
        if not word & bit:
            raise FaultError("not in the dump: excluded when it was made", pfn << 12)
        return int(self._before[pfn >> 6]) + (word & (bit - 1)).bit_count()

    def _many(self, first: int, last: int) -> list[bytes]:
        pfns = np.arange(first, last)
        if last > self.nr_frames:
            raise FaultError("beyond the memory of the dump", max(first, self.nr_frames) << 12)
        words, masks = pfns >> 6, np.uint64(1) << (pfns & 63).astype(np.uint64)
        there = self._bits[words] & masks != 0
        if not there.all():
            missing = int(pfns[np.argmin(there)])
            raise FaultError("not in the dump: excluded when it was made", missing << 12)
        # Frames in a row that are all there have descriptors in a row.
        rank = self._rank(first)
        raw = self._pread(_DESC.itemsize * (last - first), self._descs_at + _DESC.itemsize * rank)
        if len(raw) < _DESC.itemsize * (last - first):
            raise FaultError("not in the dump: the file was cut", first << 12)
        descs = np.frombuffer(raw, _DESC)
        if np.any(descs["size"] > PAGE_SIZE) or np.any(descs["offset"] < 0):
            raise FaultError("the dump's index of this page is damaged", first << 12)
        batches = [descs[at : at + _BATCH] for at in range(0, descs.size, _BATCH)]
        starts = [first + at for at in range(0, descs.size, _BATCH)]
        if len(batches) == 1:
            return self._unpack(starts[0], batches[0])
        pages: list[bytes] = []
        for batch in self._threads().map(self._unpack, starts, batches):
            pages.extend(batch)
        return pages

    def _unpack(self, first: int, descs: NDArray[np.void]) -> list[bytes]:
        offsets, sizes = descs["offset"].tolist(), descs["size"].tolist()
        low, high = min(offsets), max(map(int.__add__, offsets, sizes))
        together = high - low <= sum(sizes) + _RUN_GAP
        block = self._pread(high - low, low) if together else b""
        pages = []
        for pfn, (offset, size, flags) in enumerate(
            zip(offsets, sizes, descs["flags"].tolist(), strict=True), first
        ):
            start = offset - low
            data = block[start : start + size] if together else self._pread(size, offset)
            pages.append(_unpacked(data, size, flags, pfn))
        return pages

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                workers = min(8, os.cpu_count() or 1)
                self._pool = ThreadPoolExecutor(workers, thread_name_prefix="kdump")
            return self._pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    # --- errors --------------------------------------------------------------------------

    def _part(self, at: int, size: int, what: str) -> bytes:
        raw = self._pread(size, at)
        if len(raw) < size:
            raise TruncatedError(
                f"{self._path} ends in {what}", path=self._path, hint="the copy is not complete"
            )
        return raw

    def _damaged(self, what: str) -> FormatError:
        return FormatError(
            f"{self._path} is a damaged kdump file: {what}",
            hint="the dump cannot be read; make it again if you can",
        )


def _unpacked(data: bytes, size: int, flags: int, pfn: int) -> bytes:
    if len(data) < size:
        raise FaultError("not in the dump: the file was cut", pfn << 12)
    try:
        page = zlib.decompress(data, bufsize=PAGE_SIZE) if flags & _ZLIB else data
    except zlib.error:
        raise FaultError("the dump's data of this page is damaged", pfn << 12) from None
    if len(page) != PAGE_SIZE or flags & _FOREIGN:
        raise FaultError("the dump's data of this page is damaged", pfn << 12)
    return page


class Flattened:
    """A flattened file as the file it stands for."""

    _MAGIC_BYTES = 4096
    _RECORD = struct.Struct(">qq")

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.is_cut = False
        records = self._index(fd, os.fstat(fd).st_size, path)
        if not records:
            raise TruncatedError(
                f"{path} ends in its flattened header", path=path, hint="the copy is not complete"
            )
        ordered = _without_overlaps(records)
        self._starts: NDArray[np.int64] = np.array([row[0] for row in ordered], np.int64)
        self._rows: Sequence[tuple[int, int, int]] = ordered
        self.size_bytes: int = ordered[-1][0] + ordered[-1][1]

    def _index(self, fd: int, end: int, path: Path) -> list[tuple[int, int, int]]:
        """(offset in the file it stands for, bytes, offset here), in order of writing."""
        records: list[tuple[int, int, int]] = []
        at = self._MAGIC_BYTES
        while True:
            raw = os.pread(fd, self._RECORD.size, at)
            if len(raw) < self._RECORD.size:
                self.is_cut = True
                return records
            offset, size = self._RECORD.unpack(raw)
            if offset == -1 and size == -1:
                return records
            at += self._RECORD.size
            if offset < 0 or size <= 0 or offset > 1 << 56 or size > 1 << 56:
                raise FormatError(
                    f"{path} is a damaged flattened file: a record of {size} bytes at {offset}",
                    hint="if it passed through a text-mode transfer, copy it again",
                )
            here = min(size, end - at)
            if here > 0:
                records.append((offset, here, at))
            if here < size:
                self.is_cut = True
                return records
            at += size

    def pread(self, count: int, at: int) -> bytes:
        """As os.pread on the file it stands for; what no record wrote below its end is 0."""
        end = min(at + count, self.size_bytes)
        pieces: list[bytes] = []
        index = max(int(np.searchsorted(self._starts, at, side="right")) - 1, 0)
        while at < end and index < len(self._rows):
            offset, size, here = self._rows[index]
            if offset > at:
                gap = min(offset, end) - at
                pieces.append(bytes(gap))
                at += gap
            elif at < offset + size:
                piece = os.pread(self._fd, min(end, offset + size) - at, here + at - offset)
                pieces.append(piece)
                if not piece:
                    break
                at += len(piece)
            else:
                index += 1
        return b"".join(pieces)


def _without_overlaps(records: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Sorted by offset; where two overlap, the later one counts, as it overwrote the other."""
    ordered = sorted(records)
    if all(offset + size <= after[0] for (offset, size, _), after in itertools.pairwise(ordered)):
        return ordered
    edges = np.unique(np.array([[o, o + s] for o, s, _ in records], np.int64))
    owner = np.full(edges.size, -1, np.int64)
    for index, (offset, size, _) in enumerate(records):
        first, last = np.searchsorted(edges, (offset, offset + size))
        owner[first:last] = index
    pieces: list[tuple[int, int, int]] = []
    for place in np.flatnonzero(owner[:-1] >= 0).tolist():
        low, high = int(edges[place]), int(edges[place + 1])
        offset, _, here = records[int(owner[place])]
        pieces.append((low, high - low, here + low - offset))
    return pieces

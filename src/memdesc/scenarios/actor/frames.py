"""Page frames by number: flags, map counts, and through /proc/kcore contents and reference counts.

A page's content and its folio's reference count are read at their physical and virtual addresses
in /proc/kcore, which takes no reference and marks nothing accessed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from . import calls
from .access import PAGE

__all__ = ["HWPOISON", "NOPAGE", "PFN_MASK", "ZERO_PAGE", "Frames", "drain", "runs", "words_at"]

PFN_MASK = (1 << 55) - 1
HWPOISON, NOPAGE, ZERO_PAGE = 1 << 19, 1 << 20, 1 << 24

_COMPOUND_HEAD, _COMPOUND_TAIL = 1 << 15, 1 << 16
_STRUCT_PAGE_BYTES, _REFCOUNT_AT = 64, 52
"""`struct page._refcount` of every x86-64 kernel with CONFIG_MEMCG; checked before it is used."""
_VMEMMAP = 0xFFFF_EA00_0000_0000
_KERNEL_TEXT = 0xFFFF_FFFF_8000_0000
_MAX_ORDER = 18
_MADV_COLD, _MADV_POPULATE_WRITE = 20, 23


class Frames:
    """/proc/kpageflags, kpagecount and, where the kernel has it, kcore: by frame number."""

    def __init__(self) -> None:
        self._flags = os.open("/proc/kpageflags", os.O_RDONLY)
        self._counts = os.open("/proc/kpagecount", os.O_RDONLY)
        self._kcore = _Kcore.open()
        self.has_refs = self._kcore is not None and (
            self._refs_are_right() or (self._kcore.find_vmemmap() and self._refs_are_right())
        )
        """Whether reference counts can be seen."""

    @property
    def has_content(self) -> bool:
        """Whether contents can be read by frame."""
        return self._kcore is not None

    def words(self, frames: Iterable[int]) -> dict[int, tuple[int, int]]:
        """Flags and map count per frame."""
        found: dict[int, tuple[int, int]] = {}
        for first, count in runs(frames):
            flags = words_at(self._flags, first, count)
            counts = words_at(self._counts, first, count)
            found.update(
                zip(range(first, first + count), zip(flags, counts, strict=True), strict=True)
            )
        return found

    def heads(self, flags: dict[int, int]) -> dict[int, tuple[int, int]]:
        """First frame of each frame's folio, and its flags; frames come with their flags."""
        found: dict[int, tuple[int, int]] = {}
        previous = (-1, -1, 0)
        for frame in sorted(flags):
            if not flags[frame] & _COMPOUND_TAIL:
                found[frame] = (frame, flags[frame])
            elif previous[0] == frame - 1:
                found[frame] = previous[1:]
            else:
                found[frame] = self._head(frame)
            previous = (frame, *found[frame])
        return found

    def refs(self, heads: dict[int, tuple[int, int]]) -> dict[int, int]:
        """Reference count of each frame's folio."""
        if self._kcore is None or not self.has_refs:
            return {}
        counts: dict[int, int] = {}
        for first, count in runs({head for head, _ in heads.values()}):
            data = self._kcore.struct_pages(first, count)
            for at in range(count):
                (counts[first + at],) = struct.unpack_from(
                    "<i", data, at * _STRUCT_PAGE_BYTES + _REFCOUNT_AT
                )
        return {frame: counts[head] for frame, (head, _) in heads.items()}

    def content(self, frame: int) -> bytes | None:
        """A frame's bytes; None where the kernel does not give them."""
        return None if self._kcore is None else self._kcore.page(frame)

    def _head(self, frame: int) -> tuple[int, int]:
        """First frame of a tail's folio: heads are aligned to their folio's size."""
        for order in range(1, _MAX_ORDER + 1):
            head = frame >> order << order
            if head != frame:
                (flags,) = words_at(self._flags, head, 1)
                if flags & _COMPOUND_HEAD:
                    return head, flags
        raise LookupError(f"frame {frame:#x} is a tail, but no head lies before it")

    def _refs_are_right(self) -> bool:
        """Whether a page of our own, mapped once, shows one reference, and two while in a pipe."""
        page = calls.mmap(PAGE)
        reader, writer = os.pipe()
        try:
            calls.madvise(page, PAGE, _MADV_POPULATE_WRITE)
            drain(page)
            frame = _own_frame(page)
            kcore = self._kcore
            assert kcore is not None

            def count() -> int:
                data = kcore.struct_pages(frame, 1)
                return int(struct.unpack_from("<i", data, _REFCOUNT_AT)[0])

            before = count()
            calls.call("vmsplice", writer, calls.iovec([(page, PAGE)]), 1, 0)
            return before == 1 and count() == 2
        finally:
            os.close(reader)
            os.close(writer)
            calls.munmap(page, PAGE)


def drain(page: int) -> None:
    """Empty this CPU's LRU batches by advice about a present page (`mm/madvise.c:madvise_cold`)."""
    calls.madvise(page, PAGE, _MADV_COLD)


# --- helpers -------------------------------------------------------------------------------------


class _Kcore:
    """/proc/kcore: the direct map by physical address, and the array of struct pages."""

    def __init__(self, fd: int, segments: list[tuple[int, int, int, int]]) -> None:
        self._fd = fd
        self._segments = segments  # (file offset, virtual address, physical address, bytes)
        self._vmemmap = _VMEMMAP

    @classmethod
    def open(cls) -> _Kcore | None:
        """None where the kernel has no such file or forbids it (lockdown)."""
        try:
            fd = os.open("/proc/kcore", os.O_RDONLY | os.O_CLOEXEC)
            header = os.pread(fd, 64, 0)
        except OSError:
            return None
        (place,), (count,) = (
            struct.unpack_from("<Q", header, 32),
            struct.unpack_from("<H", header, 56),
        )
        table = os.pread(fd, count * 56, place)
        segments = []
        for kind, _, offset, virtual, physical, size, _, _ in struct.iter_unpack(
            "<IIQQQQQQ", table
        ):
            if kind == 1:
                segments.append((offset, virtual, physical, size))
        return cls(fd, segments)

    def page(self, frame: int) -> bytes | None:
        """The content of a frame."""
        address = frame * PAGE
        for offset, virtual, physical, size in self._segments:
            # The kernel's own text has a physical address as well, high up.
            if virtual < _KERNEL_TEXT and physical <= address < physical + size:
                return os.pread(self._fd, PAGE, offset + address - physical)
        return None

    def struct_pages(self, frame: int, count: int) -> bytes:
        """`struct page` of some frames."""
        return self._at(self._vmemmap + frame * _STRUCT_PAGE_BYTES, count * _STRUCT_PAGE_BYTES)

    def _at(self, address: int, size: int) -> bytes:
        for offset, virtual, _, length in self._segments:
            if virtual <= address and address + size <= virtual + length:
                data = os.pread(self._fd, size, offset + address - virtual)
                if len(data) == size:
                    return data
        return bytes(size)

    def find_vmemmap(self) -> bool:
        """Learn where the array of struct pages begins on a kernel that places it at random."""
        with Path("/proc/kallsyms").open() as symbols:
            for line in symbols:
                if line.endswith(" vmemmap_base\n"):
                    word = self._at(int(line.split()[0], 16), 8)
                    self._vmemmap = int.from_bytes(word, "little")
                    return self._vmemmap != 0
        return False


def _own_frame(address: int) -> int:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        return words_at(fd, address // PAGE, 1)[0] & PFN_MASK
    finally:
        os.close(fd)


def words_at(fd: int, first: int, count: int) -> tuple[int, ...]:
    """Words of 64 bit, by index; what the file does not have reads as 0."""
    data = os.pread(fd, count * 8, first * 8)
    return struct.unpack(f"<{count}Q", data.ljust(count * 8, b"\0"))


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Consecutive numbers as (first, count)."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][0] + found[-1][1] == number:
            found[-1][1] += 1
        else:
            found.append([number, 1])
    return [(first, count) for first, count in found]

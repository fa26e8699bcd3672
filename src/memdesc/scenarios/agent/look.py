"""What /proc shows of processes, read without touching them.

The controller looks from outside: /proc/PID/pagemap and smaps fault nothing in.  A page's content
and its reference count come from /proc/kcore by physical address, which takes no reference and
marks nothing accessed (reading /proc/PID/mem does both: `mm/gup.c:get_user_pages_remote` with
FOLL_TOUCH).  Where a kernel has no /proc/kcore, contents come from /proc/PID/mem all the same,
only of pages that are present, and reference counts are not to be had.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fcntl import ioctl
from typing import Any

from . import calls
from .access import PAGE

__all__ = ["Frames", "Looked", "Observer", "Watched"]

PRESENT, SWAPPED, PFN_MASK = 1 << 63, 1 << 62, (1 << 55) - 1

_KPF_COMPOUND_HEAD, _KPF_COMPOUND_TAIL, _KPF_HUGE = 1 << 15, 1 << 16, 1 << 17
_KPF_NOPAGE, _KPF_HWPOISON, _KPF_ZERO_PAGE = 1 << 20, 1 << 19, 1 << 24

_STRUCT_PAGE_BYTES, _REFCOUNT_AT = 64, 52
"""`struct page._refcount` of every x86-64 kernel with CONFIG_MEMCG; checked before it is used."""
_MAX_ORDER = 18

_PAGEMAP_SCAN, _PAGE_IS_HUGE = 0xC0606610, 1 << 6
"""`include/uapi/linux/fs.h`: _IOWR('f', 16, struct pm_scan_arg); since 6.7."""
_PMD = 512 * PAGE
_PMD_FIELDS = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")

Row = tuple[int, int, int, int | None, int | None, bool | None, bool]
"""entry, flags, mapcount, refs, content, huge, aliased: as `RawPage` has them."""


@dataclass(frozen=True)
class Watched:
    """A named range of one process."""

    process: str
    name: str
    address: int
    pages: int


@dataclass
class Looked:
    """One look at everything."""

    pages: dict[str, dict[str, list[Row]]] = field(default_factory=dict)
    vmas: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


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
        for first, count in _runs(frames):
            flags = _words(self._flags, first, count)
            counts = _words(self._counts, first, count)
            found.update(
                zip(range(first, first + count), zip(flags, counts, strict=True), strict=True)
            )
        return found

    def refs(self, flags: dict[int, int]) -> dict[int, int]:
        """Reference count of each frame's folio; frames come with their flags."""
        if self._kcore is None or not self.has_refs:
            return {}
        heads = {frame: self._head(frame, word) for frame, word in flags.items()}
        counts: dict[int, int] = {}
        for first, count in _runs(set(heads.values())):
            data = self._kcore.struct_pages(first, count)
            for at in range(count):
                counts[first + at] = struct.unpack_from(
                    "<i", data, at * _STRUCT_PAGE_BYTES + _REFCOUNT_AT
                )[0]
        return {frame: counts[head] for frame, head in heads.items()}

    def content(self, frame: int) -> bytes | None:
        """A frame's bytes; None where the kernel does not give them."""
        return None if self._kcore is None else self._kcore.page(frame)

    def _head(self, frame: int, flags: int) -> int:
        """First frame of a folio: heads are aligned to their folio's size."""
        if not flags & _KPF_COMPOUND_TAIL:
            return frame
        for order in range(1, _MAX_ORDER + 1):
            head = frame >> order << order
            if head != frame and _words(self._flags, head, 1)[0] & _KPF_COMPOUND_HEAD:
                return head
        raise LookupError(f"frame {frame:#x} is a tail, but no head lies before it")

    def _refs_are_right(self) -> bool:
        """Whether a page of our own, mapped once, shows one reference, and two while in a pipe."""
        page = calls.mmap(PAGE)
        reader, writer = os.pipe()
        try:
            calls.madvise(page, PAGE, 23)  # MADV_POPULATE_WRITE
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


class Observer:
    """Looks at processes; remembers frames only during one look."""

    def __init__(self, arena: tuple[int, int], paths: Sequence[tuple[str, str]] = ()) -> None:
        self.frames = Frames()
        self._arena = arena
        self._paths = paths
        """Folder and how it is named instead: ("/mnt/t/", "tmpfs:")."""
        self._page = calls.mmap(PAGE)
        calls.madvise(self._page, PAGE, 23)
        self._scans_pagemap = True

    def settle(self) -> None:
        """Empty this CPU's LRU batches: MADV_COLD begins with `lru_add_drain`."""
        drain(self._page)

    def look(self, pids: dict[str, int], watched: Sequence[Watched]) -> Looked:
        """Look at all processes that live."""
        looked = Looked()
        entries: list[tuple[Watched, tuple[int, ...], list[bool | None]]] = []
        for process, pid in pids.items():
            looked.vmas[process] = vmas = self._vmas(pid)
            looked.pages[process] = {}
            fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
            try:
                for mine in watched:
                    if mine.process == process:
                        words = _words(fd, mine.address // PAGE, mine.pages)
                        entries.append((mine, words, self._huge(fd, mine, words, vmas)))
            finally:
                os.close(fd)
        used = {word & PFN_MASK for _, words, _ in entries for word in words if word & PRESENT}
        states = self.frames.words(used)
        refs = self.frames.refs({frame: flags for frame, (flags, _) in states.items()})
        contents: dict[int, tuple[int | None, bool]] = {}
        for mine, words, huge in entries:
            rows: list[Row] = []
            for at, word in enumerate(words):
                if not word & PRESENT:
                    rows.append((word, 0, 0, None, None, False, False))
                    continue
                frame = word & PFN_MASK
                flags, mapcount = states[frame]
                if frame not in contents:
                    address = mine.address + at * PAGE
                    contents[frame] = self._content(pids[mine.process], address, frame, flags)
                content, aliased = contents[frame]
                rows.append((word, flags, mapcount, refs.get(frame), content, huge[at], aliased))
            looked.pages[mine.process][mine.name] = rows
        return looked

    def _content(self, pid: int, address: int, frame: int, flags: int) -> tuple[int | None, bool]:
        """A page's first word, and whether its words differ."""
        if flags & _KPF_ZERO_PAGE:
            return 0, False
        if flags & (_KPF_HWPOISON | _KPF_NOPAGE):
            return None, False
        data = self.frames.content(frame)
        if data is None and not self.frames.has_content:
            data = _process_page(pid, address)
        if data is None or len(data) != PAGE:
            return None, False
        return int.from_bytes(data[:8], "little"), data != data[:8] * (PAGE // 8)

    def _huge(
        self, fd: int, mine: Watched, words: Sequence[int], vmas: list[dict[str, Any]]
    ) -> list[bool | None]:
        """Per page, whether a PMD maps it; None where the kernel does not tell."""
        if not any(word & PRESENT for word in words):
            return [False] * mine.pages
        if self._scans_pagemap:
            try:
                return _scanned_huge(fd, mine)
            except OSError:
                self._scans_pagemap = False
        return _huge_by_smaps(mine, words, vmas)

    def _vmas(self, pid: int) -> list[dict[str, Any]]:
        """Areas that lie in the arena, of smaps; reads no further than the arena's end."""
        first, end = self._arena
        found: list[dict[str, Any]] = []
        here: dict[str, Any] | None = None
        with open(f"/proc/{pid}/smaps", "rb", buffering=PAGE) as file:
            for line in file:
                head, _, rest = line.partition(b" ")
                if not head.endswith(b":"):
                    start, stop = (int(part, 16) for part in head.split(b"-"))
                    if start >= end:
                        break
                    here = self._vma(start, stop, rest) if start >= first else None
                    if here is not None:
                        found.append(here)
                elif here is not None:
                    name = head[:-1].decode()
                    if name == "VmFlags":
                        here["flags"] = rest.decode().split()
                    elif rest.endswith(b" kB\n"):
                        here["sizes"][name] = int(rest.split()[0])
        return found

    def _vma(self, start: int, stop: int, rest: bytes) -> dict[str, Any]:
        perms, offset, _, _, *path = rest.decode().rstrip("\n").split(" ", 4)
        name = path[0].strip() if path else ""
        # The inode's number stands before the padding of the name.
        name = name.partition(" ")[2].strip() if name.partition(" ")[0].isdecimal() else name
        for folder, shown in self._paths:
            if name.startswith(folder):
                name = shown + name.removeprefix(folder)
        return {"start": start, "end": stop, "perms": perms, "offset": int(offset, 16),
                "path": name, "flags": [], "sizes": {}}  # fmt: skip


def drain(page: int) -> None:
    """Empty this CPU's LRU batches by advice about a present page (`mm/madvise.c:madvise_cold`)."""
    calls.madvise(page, PAGE, 20)


# --- helpers -------------------------------------------------------------------------------------


class _Kcore:
    """/proc/kcore: the direct map by physical address, and the array of struct pages."""

    def __init__(self, fd: int, segments: list[tuple[int, int, int, int]]) -> None:
        self._fd = fd
        self._segments = segments  # (file offset, virtual address, physical address, bytes)
        self._vmemmap = 0xFFFF_EA00_0000_0000

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
            if virtual < 0xFFFF_FFFF_8000_0000 and physical <= address < physical + size:
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
        with open("/proc/kallsyms") as symbols:
            for line in symbols:
                if line.endswith(" vmemmap_base\n"):
                    word = self._at(int(line.split()[0], 16), 8)
                    self._vmemmap = int.from_bytes(word, "little")
                    return self._vmemmap != 0
        return False


def _own_frame(address: int) -> int:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        return _words(fd, address // PAGE, 1)[0] & PFN_MASK
    finally:
        os.close(fd)


def _words(fd: int, first: int, count: int) -> tuple[int, ...]:
    """Words of 64 bit, by index; what the file does not have reads as 0."""
    data = os.pread(fd, count * 8, first * 8)
    return struct.unpack(f"<{count}Q", data.ljust(count * 8, b"\0"))


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Consecutive numbers as (first, count)."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][0] + found[-1][1] == number:
            found[-1][1] += 1
        else:
            found.append([number, 1])
    return [(first, count) for first, count in found]


def _process_page(pid: int, address: int) -> bytes | None:
    """A present page through its process; it counts as accessed afterwards."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        return os.pread(fd, PAGE, address)
    except OSError:  # memory that the kernel itself may not read (memfd_secret, PFN mappings)
        return None
    finally:
        os.close(fd)


def _scanned_huge(fd: int, mine: Watched) -> list[bool | None]:
    """PAGEMAP_SCAN for PAGE_IS_HUGE."""
    room = 64
    huge: list[bool | None] = [False] * mine.pages
    start, end = mine.address, mine.address + mine.pages * PAGE
    regions = bytearray(24 * room)
    place = ctypes.addressof(ctypes.c_char.from_buffer(regions))
    while start < end:
        argument = bytearray(
            struct.pack(
                "<12Q", 96, 0, start, end, 0, place, room, 0, 0, _PAGE_IS_HUGE, 0, _PAGE_IS_HUGE
            )
        )
        count = ioctl(fd, _PAGEMAP_SCAN, argument)
        for at in range(count):
            first, last, _ = struct.unpack_from("<3Q", regions, at * 24)
            for page in range((first - mine.address) // PAGE, (last - mine.address) // PAGE):
                huge[page] = True
        (start,) = struct.unpack_from("<Q", argument, 32)
        if count < room:
            break
    return huge


def _huge_by_smaps(
    mine: Watched, words: Sequence[int], vmas: list[dict[str, Any]]
) -> list[bool | None]:
    """Where the sizes that smaps gives leave no choice."""
    huge: list[bool | None] = [False] * mine.pages
    for vma in vmas:
        first = max(vma["start"], mine.address)
        last = min(vma["end"], mine.address + mine.pages * PAGE)
        if first >= last:
            continue
        inside = range((first - mine.address) // PAGE, (last - mine.address) // PAGE)
        if "ht" in vma["flags"]:
            for page in inside:
                huge[page] = bool(words[page] & PRESENT)
            continue
        mapped = sum(vma["sizes"].get(name, 0) for name in _PMD_FIELDS) * 1024 // _PMD
        if not mapped:
            continue
        could = _whole_blocks(mine, words, inside)
        for block in could:
            for page in block:
                huge[page] = True if len(could) == mapped else None
    return huge


def _whole_blocks(mine: Watched, words: Sequence[int], inside: range) -> list[range]:
    """Aligned 2 MiB whose pages are all present, in order, in frames aligned alike."""
    found = []
    skip = -(mine.address // PAGE + inside.start) % 512
    for first in range(inside.start + skip, inside.stop - 511, 512):
        frame = words[first] & PFN_MASK
        block = range(first, first + 512)
        if frame % 512 == 0 and all(
            words[page] & PRESENT and words[page] & PFN_MASK == frame + page - first
            for page in block
        ):
            found.append(block)
    return found

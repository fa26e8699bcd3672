"""What /proc shows of processes, read without touching them.

The controller looks from outside: /proc/PID/pagemap and smaps fault nothing in.  A page's content
and its reference count come from /proc/kcore by physical address, which takes no reference and
marks nothing accessed (reading /proc/PID/mem does both: `mm/gup.c:get_user_pages_remote` with
FOLL_TOUCH).  Where a kernel has no /proc/kcore, contents come from /proc/PID/mem all the same,
only of pages that are present, and not if rows ask for what that changes (`leave_untouched`);
reference counts are not to be had.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path
from typing import Any

from . import calls
from .access import PAGE
from .frames import HWPOISON, NOPAGE, PFN_MASK, ZERO_PAGE, Frames, drain, words_at
from .verbs import RefusedError

__all__ = ["Looked", "Observer", "Watched", "huge_by_smaps"]

PRESENT = 1 << 63

_PAGEMAP_SCAN, _PAGE_IS_HUGE = 0xC0606610, 1 << 6
"""`include/uapi/linux/fs.h`: _IOWR('f', 16, struct pm_scan_arg); since 6.7."""
_PMD = 512 * PAGE
_PMD_FIELDS = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")

Row = tuple[int, int, int, int | None, int | None, bool | None, bool, int]
"""entry, flags, mapcount, refs, content, huge, aliased, head_flags: as `RawPage` has them."""


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
        self._touches = True

    def leave_untouched(self, *, contents: bool) -> None:
        """Never read contents in a way that counts as an access of the page.

        `contents`: they are asked for. Raises RefusedError where that cannot be.
        """
        self._touches = False
        if contents and not self.frames.has_content:
            raise RefusedError(
                "this kernel has no /proc/kcore: contents can only be read by accesses, "
                "which show in the flags that rows ask for"
            )

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
                        words = words_at(fd, mine.address // PAGE, mine.pages)
                        entries.append((mine, words, self._huge(fd, mine, words, vmas)))
            finally:
                os.close(fd)
        used = {word & PFN_MASK for _, words, _ in entries for word in words if word & PRESENT}
        states = self.frames.words(used)
        heads = self.frames.heads({frame: flags for frame, (flags, _) in states.items()})
        refs = self.frames.refs(heads)
        tails = {frame: flags for frame, (head, flags) in heads.items() if head != frame}
        contents: dict[int, tuple[int | None, bool]] = {}
        for mine, words, huge in entries:
            rows: list[Row] = []
            for at, word in enumerate(words):
                if not word & PRESENT:
                    rows.append((word, 0, 0, None, None, False, False, 0))
                    continue
                frame = word & PFN_MASK
                flags, mapcount = states[frame]
                if frame not in contents:
                    address = mine.address + at * PAGE
                    secret = _is_secret(looked.vmas[mine.process], address)
                    contents[frame] = (
                        (None, False)
                        if secret
                        else self._content(pids[mine.process], address, frame, flags)
                    )
                content, aliased = contents[frame]
                rows.append(
                    (
                        word,
                        flags,
                        mapcount,
                        refs.get(frame),
                        content,
                        huge[at],
                        aliased,
                        tails.get(frame, 0),
                    )
                )
            looked.pages[mine.process][mine.name] = rows
        return looked

    def remember(self, pid: int, address: int, pages: int) -> list[int]:
        """Frames of pages that are present. Raises OSError."""
        fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        try:
            words = words_at(fd, address // PAGE, pages)
        finally:
            os.close(fd)
        if not all(word & PRESENT for word in words):
            raise OSError(errno.EFAULT, "not present")
        return [word & PFN_MASK for word in words]

    def look_at_frames(self, numbers: Sequence[int]) -> list[Row]:
        """Frames as they are, whoever maps them: as pages, their entries only name them."""
        states = self.frames.words(set(numbers))
        heads = self.frames.heads({frame: flags for frame, (flags, _) in states.items()})
        refs = self.frames.refs(heads)
        rows: list[Row] = []
        for frame in numbers:
            flags, mapcount = states[frame]
            data = None if flags & (HWPOISON | NOPAGE) else self.frames.content(frame)
            word = None if data is None else int.from_bytes(data[:8], "little")
            aliased = data is not None and data != data[:8] * (PAGE // 8)
            rows.append(
                (PRESENT | frame, flags, mapcount, refs.get(frame), word, False, aliased, 0)
            )
        return rows

    def _content(self, pid: int, address: int, frame: int, flags: int) -> tuple[int | None, bool]:
        """A page's first word, and whether its words differ."""
        if flags & ZERO_PAGE:
            return 0, False
        if flags & (HWPOISON | NOPAGE):
            return None, False
        data = self.frames.content(frame)
        if data is None and not self.frames.has_content and self._touches:
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
        return huge_by_smaps(mine, words, vmas)

    def _vmas(self, pid: int) -> list[dict[str, Any]]:
        """Areas that lie in the arena, of smaps; reads no further than the arena's end."""
        first, end = self._arena
        found: list[dict[str, Any]] = []
        here: dict[str, Any] | None = None
        with Path(f"/proc/{pid}/smaps").open("rb", buffering=PAGE) as file:
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
        if name.startswith("socket:"):  # its number is nobody's business
            name = "socket"
        for folder, shown in self._paths:
            if name.startswith(folder):
                name = shown + name.removeprefix(folder)
        return {"start": start, "end": stop, "perms": perms, "offset": int(offset, 16),
                "path": name, "flags": [], "sizes": {}}  # fmt: skip


# --- helpers -------------------------------------------------------------------------------------


def _is_secret(vmas: list[dict[str, Any]], address: int) -> bool:
    """Whether a page is memfd_secret's: the direct map has none, so kcore would read as zeroes."""
    return any(
        vma["path"].startswith("/secretmem") for vma in vmas if vma["start"] <= address < vma["end"]
    )


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


def huge_by_smaps(
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

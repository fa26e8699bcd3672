"""The text files of one process: its areas, its names, its memory cgroup.

Every parser takes the file's bytes and is total.  A line of maps that is none is counted
and left out; a field of status that is missing stays unknown.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.map.attribution import NO_UID
from memdesc.types import PAGE_SIZE_BYTES

__all__ = ["Areas", "Status", "memory_cgroup", "parse_maps", "parse_status"]

_PAGE_MASK = np.uint64(PAGE_SIZE_BYTES - 1)
_FIELDS = 5
"""Spaces before the name: after the range, permissions, offset, device and inode."""


@dataclass(slots=True)
class Areas:
    """The VMAs of one process as columns of equal length, by rising address."""

    start: NDArray[np.uint64]
    end: NDArray[np.uint64]
    perms: NDArray[np.uint8]
    offset: NDArray[np.uint64]
    device: NDArray[np.uint32]
    inode: NDArray[np.uint64]
    name: Sequence[bytes]
    bad_lines: int = 0

    def __len__(self) -> int:
        return int(self.start.size)


def parse_maps(texts: Sequence[bytes]) -> list[Areas]:
    """Read /proc/PID/maps of several processes.

    Addresses and offsets in bytes, devices as major << 20 | minor. Left out and counted in
    `bad_lines`: what has another form, is not page aligned, or does not lie after the area
    before it.
    """
    # All lines at once: a loop over them costs more than the kernel takes to print them.
    text = b"".join(part if part.endswith(b"\n") or not part else part + b"\n" for part in texts)
    if not text:
        return [_nothing() for _ in texts]
    sizes = [len(part) + (not part.endswith(b"\n") and bool(part)) for part in texts]
    data = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    first_line = np.searchsorted(ends, np.cumsum([0, *sizes[:-1]]))
    lines = np.diff(first_line, append=ends.size)
    owner = np.repeat(np.arange(len(texts)), lines)

    spaces = _places(data, " ", starts, _FIELDS)
    dash = _places(data, "-", starts, 1)[:, 0]
    good = (dash < spaces[:, 0]) & (spaces[:, 3] < ends) & (spaces[:, 1] - spaces[:, 0] == 5)
    starts, ends, spaces, dash, owner = (
        column[good] for column in (starts, ends, spaces, dash, owner)
    )
    colon = np.minimum(_places(data, ":", spaces[:, 2], 1)[:, 0], spaces[:, 3])
    head_end = np.minimum(spaces[:, 4], ends)
    hexadecimal, good = _numbers(
        data,
        np.stack([starts, dash + 1, spaces[:, 1] + 1, spaces[:, 2] + 1, colon + 1]),
        np.stack([dash, spaces[:, 0], spaces[:, 2], colon, spaces[:, 3]]),
        16,
    )
    start, end, offset, major, minor = hexadecimal
    inode, good_inode = _numbers(data, spaces[:, 3] + 1, head_end, 10)
    perms, good_perms = _perms(data, spaces[:, 0] + 1)
    good = good.all(axis=0) & good_perms & good_inode
    good &= (start < end) & ((start | end) & _PAGE_MASK == 0)
    kept = np.flatnonzero(good)
    kept = kept[_rising(start[kept], end[kept], owner[kept])]

    device = ((major & np.uint64(0xFFF)) << np.uint64(20) | minor & np.uint64(0xFFFFF)).astype(
        np.uint32
    )
    bounds = zip((head_end[kept] + 1).tolist(), ends[kept].tolist(), strict=True)
    names = [text[low:high].lstrip(b" ") if low < high else b"" for low, high in bounds]
    cuts = np.searchsorted(owner[kept], np.arange(len(texts) + 1)).tolist()
    found: list[Areas] = []
    for index, (low, high) in enumerate(itertools.pairwise(cuts)):
        own = kept[low:high]
        found.append(
            Areas(
                start=start[own],
                end=end[own],
                perms=perms[own],
                offset=offset[own],
                device=device[own],
                inode=inode[own],
                name=names[low:high],
                bad_lines=int(lines[index]) - own.size,
            )
        )
    return found


def _nothing() -> Areas:
    wide, narrow = np.zeros(0, np.uint64), np.zeros(0, np.uint32)
    return Areas(wide, wide, np.zeros(0, np.uint8), wide, narrow, wide, ())


def _rising(
    start: NDArray[np.uint64], end: NDArray[np.uint64], owner: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which areas lie after all areas before them of the same process."""
    follows = np.ones(start.size, np.bool_)
    follows[1:] = (start[1:] >= end[:-1]) | (owner[1:] != owner[:-1])
    if follows.all():
        return follows
    last, of = np.uint64(0), -1  # damaged: one by one
    for index, (low, high, process) in enumerate(zip(start, end, owner, strict=True)):
        if process != of:
            last, of = np.uint64(0), process
        follows[index] = low >= last
        if low >= last:
            last = high
    return follows


def _places(
    data: NDArray[np.uint8], letter: str, starts: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """int64[starts, count]: where the next `count` of `letter` from each start on are."""
    found = np.flatnonzero(data == ord(letter))
    padded = np.concatenate([found, np.full(count, data.size, np.int64)])
    places: NDArray[np.int64] = padded[np.searchsorted(found, starts)[:, None] + np.arange(count)]
    return places


def _numbers(
    data: NDArray[np.uint8], low: NDArray[np.int64], high: NDArray[np.int64], base: int
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The numbers written at [low, high), and whether each is one that fits in 64 bits.

    `low` and `high` may have any shape; so have the results.
    """
    length = high - low
    longest = 16 if base == 16 else 19
    good = (length > 0) & (length <= longest)
    value = np.zeros(low.shape, np.uint64)
    scale = 1
    for place in range(min(int(length.max(initial=0)), longest)):
        inside = length > place
        digit = _DIGIT[data[np.maximum(high - 1 - place, 0)]]
        good &= (digit < base) | ~inside
        value += np.where(inside, digit, 0).astype(np.uint64) * np.uint64(scale)
        scale *= base
    return value, good


_DIGIT = np.full(256, 255, np.uint8)
_DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


_LETTERS = (("r", "-"), ("w", "-"), ("x", "-"), ("s", "p"))
"""Set and not set, in the order of the `PERM_*` bits."""


def _perms(
    data: NDArray[np.uint8], low: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """`PERM_*` bits of the four letters from `low` on, and whether they are such letters."""
    value = np.zeros(low.size, np.uint8)
    good = np.ones(low.size, np.bool_)
    for place, (on, off) in enumerate(_LETTERS):
        letter = data[low + place]
        good &= (letter == ord(on)) | (letter == ord(off))
        value |= (letter == ord(on)).astype(np.uint8) << np.uint8(place)
    return value, good


@dataclass(frozen=True, slots=True)
class Status:
    """What /proc/PID/status says of a process."""

    comm: str = ""
    ppid: int = 0
    uid: int = NO_UID
    zombie: bool = False


_FIELD = re.compile(rb"^(Name|State|PPid|Uid):\s*(\S.*)?$", re.MULTILINE)


def parse_status(text: bytes) -> Status:
    """Read /proc/PID/status; fields that are missing or garbled keep their defaults."""
    values = dict(_FIELD.findall(text))
    ppid = values.get(b"PPid", b"")
    uid = values.get(b"Uid", b"").split(b"\t")[0]
    return Status(
        comm=values.get(b"Name", b"").decode("utf-8", "replace"),
        ppid=int(ppid) & 0xFFFFFFFF if ppid.isdigit() and len(ppid) < 12 else 0,
        uid=int(uid) & 0xFFFFFFFF if uid.isdigit() and len(uid) < 12 else NO_UID,
        zombie=values.get(b"State", b"")[:1] in (b"Z", b"X"),
    )


def memory_cgroup(text: bytes) -> str:
    """The path of the memory controller in /proc/PID/cgroup: v1's line, else v2's; or ""."""
    unified = ""
    for line in text.decode("utf-8", "replace").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        if "memory" in parts[1].split(","):
            return parts[2]
        if parts[0] == "0" and not parts[1]:
            unified = parts[2]
    return unified

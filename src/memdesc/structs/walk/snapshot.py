"""Kernel memory for one walk: every page of it read at most once, many at a time.

A walk that followed one pointer per read would spend its time in system calls on a live
machine, and could see two states of one object.  A `Snapshot` keeps what was read, by
kernel page, and answers whole columns of addresses at once.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError
from memdesc.structs.kernel import Memory

__all__ = ["ManyReads", "Snapshot", "read_many"]

_PAGE = 4096
_PAIR = struct.Struct("<2Q")
_MOST_PAGES = 1 << 16
"""256 MiB: more is forgotten and read again."""
_SLICE = 4096
"""Pages fetched in one go."""


@runtime_checkable
class ManyReads(Protocol):
    """A `Memory` that reads many places in one go (BPF does, in one system call)."""

    def read_many(
        self, addresses: NDArray[np.uint64], size_bytes: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """As the function `read_many`."""


def read_many(
    memory: Memory, addresses: NDArray[np.uint64], size_bytes: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """`size_bytes` bytes at each address.

    Returns uint8[n, size_bytes] and bool[n], whether the place was readable; rows that were
    not are 0. Uses the memory's own `read_many` where it has one. Never raises FaultError.
    """
    if isinstance(memory, ManyReads):
        return memory.read_many(addresses, size_bytes)
    data = np.zeros((addresses.size, size_bytes), np.uint8)
    readable = np.zeros(addresses.size, np.bool_)
    for row, address in enumerate(addresses.tolist()):
        try:
            data[row] = np.frombuffer(memory.read(address, size_bytes), np.uint8)
            readable[row] = True
        except FaultError:
            pass
    return data, readable


class Snapshot:
    """A `Memory` that remembers. Not safe for several threads."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        # Asked once: a look at a protocol costs more than a read.
        self._read_many = (
            memory.read_many if isinstance(memory, ManyReads) else partial(read_many, memory)
        )
        self._pages: dict[int, bytes | None] = {}
        """Kernel page number -> its bytes; None: not readable."""

    def read(self, address: int, size_bytes: int) -> bytes:
        """As `Memory.read`."""
        first, last = address // _PAGE, (address + size_bytes - 1) // _PAGE
        start = address % _PAGE
        if first == last:
            return self._page(first, address)[start : start + size_bytes]
        whole = b"".join(self._page(number, address) for number in range(first, last + 1))
        return whole[start : start + size_bytes]

    def read_into(self, address: int, into: NDArray[np.uint8]) -> None:
        """As `Memory.read_into`; not remembered: what is large is read once."""
        self._memory.read_into(address, into)

    def u64(self, address: int) -> int:
        """The word at `address`. Raises FaultError."""
        page = self._pages.get(address // _PAGE)
        start = address % _PAGE
        if page is None or start > _PAGE - 8:
            return int.from_bytes(self.read(address, 8), "little")
        return int.from_bytes(page[start : start + 8], "little")

    def pair(self, address: int) -> tuple[int, int]:
        """The two words at `address`: a list_head. Raises FaultError."""
        page = self._pages.get(address >> 12)
        start = address & (_PAGE - 1)
        if page is None or start > _PAGE - 16:
            page, start = self.read(address, 16), 0
        first, second = _PAIR.unpack_from(page, start)
        return first, second

    def words(self, addresses: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """The 64-bit words at 8-byte-aligned `addresses`.

        Returns uint64[n] and bool[n], whether it was readable; 0 where it was not, and where
        the address is not aligned (no pointer of a kernel is).
        """
        numbers, where = np.unique(addresses // np.uint64(_PAGE), return_inverse=True)
        values = np.zeros(addresses.size, np.uint64)
        readable = addresses % np.uint64(8) == 0
        index = (addresses % np.uint64(_PAGE)).astype(np.int64) >> 3
        for start in range(0, numbers.size, _SLICE):
            wanted = numbers[start : start + _SLICE].tolist()
            self._fetch(wanted)
            pages = [self._pages[number] for number in wanted]
            blank = bytes(_PAGE)
            table = np.frombuffer(
                b"".join(blank if page is None else page for page in pages), np.uint64
            ).reshape(-1, _PAGE // 8)
            is_there = np.array([page is not None for page in pages], np.bool_)
            rows = np.flatnonzero((where >= start) & (where < start + len(wanted)))
            local = where[rows] - start
            values[rows] = table[local, index[rows]]
            readable[rows] &= is_there[local]
        values[~readable] = 0
        return values, readable

    def _page(self, number: int, address: int) -> bytes:
        page = self._pages.get(number, b"")
        if page == b"":
            if len(self._pages) >= _MOST_PAGES:
                self._pages.clear()
            try:
                page = self._memory.read(number * _PAGE, _PAGE)
            except FaultError:
                page = None
            self._pages[number] = page
        if page is None:
            raise FaultError(f"kernel address {address:#x} cannot be read", address)
        return page

    def _fetch(self, numbers: list[int]) -> None:
        missing = [number for number in numbers if number not in self._pages]
        if not missing:
            return
        if len(self._pages) + len(missing) > _MOST_PAGES:
            self._pages.clear()
            missing = numbers
        addresses = np.array(missing, np.uint64) * np.uint64(_PAGE)
        data, readable = self._read_many(addresses, _PAGE)
        raw = data.tobytes()
        for row, number in enumerate(missing):
            start = row * _PAGE
            self._pages[number] = raw[start : start + _PAGE] if readable[row] else None

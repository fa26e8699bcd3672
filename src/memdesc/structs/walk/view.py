"""What every walk starts from: a kernel, its memmap, and columns of struct members.

view = View.of(kernel, memmap)
areas = view.fields("vmap_area", addresses, "va_start", "va_end", "vm")
areas["va_start"][areas.readable]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, LayoutError
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import OwnedFrames
from memdesc.structs.walk.globals import find_global, per_cpu_offsets
from memdesc.structs.walk.snapshot import Snapshot

__all__ = ["Fields", "View", "Walked"]

_EVERYWHERE = "init_task"
"""A variable that every kernel has."""


@dataclass(frozen=True)
class Walked:
    """What a walk found: frames with their owners, and how much of its way was broken."""

    frames: tuple[OwnedFrames, ...]
    torn: int = 0
    """Links that led nowhere, or not back: a live machine moved, or the dump is damaged."""


@dataclass(frozen=True)
class Fields:
    """Members of many structs, as columns."""

    columns: Mapping[str, NDArray[np.uint64]]
    readable: NDArray[np.bool_]
    """bool[n]: all members could be read; where not, the columns hold 0."""

    def __getitem__(self, path: str) -> NDArray[np.uint64]:
        return self.columns[path]


@dataclass(frozen=True)
class View:
    """A kernel whose memory is remembered while a walk goes on."""

    kernel: Kernel
    """Its memory is `memory`."""
    memmap: MemMap
    memory: Snapshot
    _cpus: list[int] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, kernel: Kernel, memmap: MemMap) -> View:
        """Begin: nothing has been read."""
        memory = Snapshot(kernel.memory)
        return cls(replace(kernel, memory=memory), memmap, memory)

    def find_symbol(self, name: str) -> int | None:
        """The address of a symbol: of the table of symbols, or found through code where that
        has none of variables. None where neither tells it."""
        known = self.kernel.found_globals
        if name not in known:
            # A table without one variable has none, and to look for a name that is not there
            # takes longest.
            has_variables = name == _EVERYWHERE or self.find_symbol(_EVERYWHERE) is not None
            address = self.kernel.symbols.address_of(name) if has_variables else None
            known[name] = find_global(self, name) if address is None else address
        return known[name]

    def symbol(self, *names: str) -> int:
        """The address of the first of `names` that this kernel has. Raises LayoutError."""
        for name in names:
            address = self.find_symbol(name)
            if address is not None:
                return address
        raise LayoutError(f"the symbol {' or '.join(names)} of {self.kernel.release} is not known")

    def u64(self, address: int) -> int:
        """The word at `address`. Raises FaultError."""
        return self.memory.u64(address)

    def i32(self, address: int) -> int:
        """The signed 32-bit integer at `address`. Raises FaultError."""
        return int.from_bytes(self.memory.read(address, 4), "little", signed=True)

    def words(self, addresses: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """As `Snapshot.words`."""
        return self.memory.words(addresses)

    def fields(self, struct: str, addresses: NDArray[np.uint64], *paths: str) -> Fields:
        """The members `paths` of the `struct`s at `addresses` (uint64[n]).

        Integers and pointers of up to 64 bits that do not cross a word, bit fields too, all
        as unsigned. Raises LayoutError for a member that does not exist.
        """
        readable = np.ones(addresses.size, np.bool_)
        columns: dict[str, NDArray[np.uint64]] = {}
        for path in paths:
            member = self.kernel.member(struct, path)
            word, shift = divmod(member.offset_bits, 64)
            values, there = self.words(addresses + np.uint64(word * 8))
            if shift or member.size_bits < 64:
                mask = np.uint64((1 << member.size_bits) - 1)
                values = values >> np.uint64(shift) & mask
            columns[path] = values
            readable &= there
        return Fields(columns, readable)

    def texts(self, struct: str, addresses: NDArray[np.uint64], path: str) -> list[str]:
        """The char arrays at `path`, each up to its first NUL; "" where not readable."""
        member = self.kernel.member(struct, path)
        first, size = member.offset, member.size_bits // 8
        texts = []
        for address in addresses.tolist():
            try:
                raw = self.memory.read(address + first, size)
            except FaultError:
                raw = b""
            texts.append(raw.partition(b"\0")[0].decode("utf-8", "backslashreplace"))
        return texts

    def pointers(
        self, arrays: NDArray[np.uint64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.bool_]]:
        """The pointers in many arrays of pointers, one after the other.

        Returns the pointers (uint64[m]), the array that each comes from (int64[m]), and
        whether it was readable (bool[m]).
        """
        owner = np.repeat(np.arange(arrays.size), lengths)
        starts = np.cumsum(lengths) - lengths
        place = np.arange(owner.size) - starts[owner]
        values, readable = self.words(arrays[owner] + place.astype(np.uint64) * np.uint64(8))
        return values, owner, readable

    def offset(self, struct: str, path: str) -> np.uint64:
        """Byte offset of a member, ready for columns of addresses. Raises LayoutError."""
        return np.uint64(self.kernel.member(struct, path).offset)

    # --- CPUs ----------------------------------------------------------------------------

    def possible_cpus(self) -> list[int]:
        """The CPUs that could ever run (`__cpu_possible_mask`): each has per-CPU memory.

        Where that is not known, those that `__per_cpu_offset` has an entry for.
        """
        if self._cpus:
            return self._cpus
        mask = self.find_symbol("__cpu_possible_mask")
        if mask is None:
            self._cpus.extend(range(len(per_cpu_offsets(self, self.symbol("__per_cpu_offset")))))
        else:
            for word in range((self.kernel.size_of("cpumask") + 7) // 8):
                bits = self.u64(mask + word * 8)
                self._cpus.extend(word * 64 + bit for bit in range(64) if bits >> bit & 1)
        if not self._cpus:
            raise LayoutError(f"{self.kernel.name} has no possible CPU")
        return self._cpus

    def per_cpu(self, pointer: int) -> dict[int, int]:
        """Possible CPU -> where its copy of the per-CPU object at `pointer` lies."""
        table = self.symbol("__per_cpu_offset")
        return {
            cpu: (pointer + self.u64(table + cpu * 8)) & ((1 << 64) - 1)
            for cpu in self.possible_cpus()
        }

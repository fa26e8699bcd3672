"""A kernel whose memory can be read: memory, type information and symbols in one place.

A crash dump (`memdesc.structs.dump`) and a live machine (`memdesc.structs.bpf`) both become
a `Kernel`; whatever walks the kernel's structures asks a `Kernel` and does not know which.

    area = kernel.load("vmap_area", address)
    area["va_start"], area["va_end"]
    area.follow("vm")["caller"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, LayoutError
from memdesc.kernels.release import KernelRelease
from memdesc.kernels.type_info import Kind, Member, TypeInfo, place_of

__all__ = ["Kernel", "Memory", "Object", "Symbols"]

_LONGEST_STRING = 4096


class Memory(Protocol):
    """Reads a kernel's memory by kernel virtual address. Safe for several threads."""

    def read(self, address: int, size_bytes: int) -> bytes:
        """`size_bytes` bytes. Raises FaultError where any of them cannot be read."""

    def read_into(self, address: int, into: NDArray[np.uint8]) -> None:
        """Fill `into` (uint8, contiguous), for large reads. Raises FaultError as `read`;
        the content of `into` is undefined then."""


class Symbols(Protocol):
    """The kernel's symbols (kallsyms, VMCOREINFO or a vmlinux)."""

    def address_of(self, name: str) -> int | None:
        """The address of a symbol as it is loaded; None where it is not known."""

    def name_at(self, address: int) -> str | None:
        """The symbol that begins at `address`, or the last one before it ("kernel_clone" for a
        return address inside it); None outside the kernel and its modules."""


@dataclass
class Kernel:
    """One kernel. All walks over its structures begin here."""

    memory: Memory
    types: TypeInfo
    symbols: Symbols
    release: KernelRelease
    name: str
    """What was opened, for messages."""
    is_live: bool
    """Memory goes on changing while it is read: links may be torn."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Variables whose value is known without their address, by name (VMCOREINFO)."""
    notes: tuple[str, ...] = ()
    """What could not be checked, or is not visible, in sentences for the user."""
    _members: dict[tuple[str, str], Member | None] = field(default_factory=dict, repr=False)
    _sizes: dict[str, int] = field(default_factory=dict, repr=False)
    found_globals: dict[str, int | None] = field(default_factory=dict, repr=False)
    """Variables that walks asked for, also those that only `memdesc.structs.walk.globals` could
    find; None where nothing tells their place."""

    # --- layout --------------------------------------------------------------------------

    def find_member(self, struct: str, path: str) -> Member | None:
        """Where `path` lies in `struct`; None where this kernel has none. Remembered."""
        key = struct, path
        if key not in self._members:
            self._members[key] = place_of(self.types, struct, path)
        return self._members[key]

    def member(self, struct: str, path: str) -> Member:
        """As `find_member`. Raises LayoutError where this kernel has none."""
        found = self.find_member(struct, path)
        if found is None:
            raise LayoutError(
                f"struct {struct} of {self.release} has no member {path}",
                hint="this kernel's layout is not known to memdesc; docs/new-kernel.md says how "
                "to add it",
            )
        return found

    def has(self, struct: str, path: str) -> bool:
        """Whether `struct` has the member `path`."""
        return self.find_member(struct, path) is not None

    def size_of(self, struct: str) -> int:
        """Size of `struct` in bytes. Raises LayoutError where this kernel has none."""
        if struct not in self._sizes:
            found = self.types.find_struct(struct)
            if found is None:
                raise LayoutError(f"{self.release} has no struct {struct}")
            self._sizes[struct] = found.size_bytes
        return self._sizes[struct]

    # --- memory --------------------------------------------------------------------------

    def u64(self, address: int) -> int:
        """The 64-bit word at `address`, unsigned: a pointer, an unsigned long."""
        return int.from_bytes(self.memory.read(address, 8), "little")

    def u32(self, address: int) -> int:
        """The 32-bit word at `address`, unsigned."""
        return int.from_bytes(self.memory.read(address, 4), "little")

    def string(self, address: int, limit: int = 256) -> str:
        """The C string at `address`, cut at `limit` bytes. Raises FaultError."""
        limit = min(limit, _LONGEST_STRING)
        text = b""
        while len(text) < limit:
            # Up to the end of a page: the next one need not be there.
            step = min(64, limit - len(text), 4096 - (address + len(text)) % 4096)
            piece = self.memory.read(address + len(text), step)
            head, end, _ = piece.partition(b"\0")
            text += head
            if end:
                break
        return text.decode("utf-8", "backslashreplace")

    def symbol(self, name: str) -> int:
        """The address of a symbol. Raises LayoutError where it is not known."""
        address = self.symbols.address_of(name)
        if address is None:
            raise LayoutError(f"the symbol {name} of {self.release} is not known")
        return address

    def find_variable(self, name: str) -> int | None:
        """The value of a 64-bit variable; None where its symbol, or its memory, is not there."""
        address = self.symbols.address_of(name)
        if address is None:
            return None
        try:
            return self.u64(address)
        except FaultError:
            return None

    def load(self, struct: str, address: int) -> Object:
        """The `struct` at `address`, read once. Raises FaultError and LayoutError."""
        return Object(self, struct, address, self.memory.read(address, self.size_of(struct)))

    def list_entries(
        self, head: int, struct: str, member: str, *, limit: int = 1 << 20
    ) -> Iterator[Object]:
        """Walk a `struct list_head` at `head`; yields the structs whose `member` links them.

        Ends quietly at the head. Raises FaultError for a link that leads nowhere or a list
        that does not come back within `limit` entries (a loop, or a torn link on a live
        machine).
        """
        offset = self.member(struct, member).offset
        seen = 0
        link = self.u64(head)
        while link != head:
            if seen >= limit:
                raise FaultError(f"the list at {head:#x} does not end after {limit} entries", head)
            seen += 1
            entry = self.load(struct, link - offset)
            yield entry
            link = entry[f"{member}.next"]


@dataclass(frozen=True, slots=True)
class Object:
    """A struct of the kernel, as its bytes were when it was read."""

    kernel: Kernel
    struct: str
    address: int
    data: bytes

    def __getitem__(self, path: str) -> int:
        """The integer, enum or pointer at `path`, signed as its type. Raises LayoutError."""
        member = self.kernel.member(self.struct, path)
        if member.type.kind not in (Kind.INT, Kind.ENUM, Kind.POINTER):
            raise LayoutError(f"{self.struct}.{path} is a {member.type.kind.value}, no number")
        first = member.offset_bits // 8
        last = (member.offset_bits + member.size_bits + 7) // 8
        value = int.from_bytes(self.data[first:last], "little") >> member.offset_bits % 8
        value &= (1 << member.size_bits) - 1
        if member.type.is_signed and value >> (member.size_bits - 1):
            value -= 1 << member.size_bits
        return value

    def get(self, path: str) -> int | None:
        """As `[path]`; None where this kernel has no such member."""
        return self[path] if self.kernel.has(self.struct, path) else None

    def address_of(self, path: str) -> int:
        """The address of the member `path` itself: of an embedded struct, a list head."""
        return self.address + self.kernel.member(self.struct, path).offset

    def text(self, path: str) -> str:
        """The char array at `path`, up to its first NUL."""
        member = self.kernel.member(self.struct, path)
        raw = self.data[member.offset : member.offset + member.size_bits // 8]
        return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")

    def string(self, path: str) -> str:
        """The C string that the pointer at `path` leads to; "" for NULL."""
        return self.kernel.string(self[path]) if self[path] else ""

    def follow(self, path: str, struct: str = "") -> Object | None:
        """The struct that the pointer at `path` leads to; None for NULL.

        `struct` names it where type information does not (void *).
        """
        pointer = self[path]
        if not pointer:
            return None
        return self.kernel.load(struct or self.kernel.member(self.struct, path).type.name, pointer)

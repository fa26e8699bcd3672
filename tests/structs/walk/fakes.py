"""A few pages of a kernel's memory, written by hand, with types from a few lines of C."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from struct_worlds import DictTypes

from memdesc.errors import FaultError
from memdesc.kernels.layout import PageLayout
from memdesc.kernels.release import KernelRelease
from memdesc.kernels.type_info import Kind, Member, StructType, TypeRef
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.walk.view import View

DIRECT_MAP = 0xFFFF888000000000
VMEMMAP = 0xFFFFEA0000000000
NR_PAGES = 1 << 15

_SCALARS = {"u64": 8, "u32": 4, "u8": 1}


@dataclass
class Types:
    """`TypeInfo` from text: one line per struct, members in a row."""

    text: str
    enumerators: dict[str, int] = field(default_factory=dict)
    enums: dict[str, dict[str, int]] = field(default_factory=dict)
    origin: str = "text"

    def find_struct(self, name: str) -> StructType | None:
        found = re.search(rf"^\s*{name}: (.*)$", self.text, re.MULTILINE)
        if found is None:
            return None
        members: dict[str, Member] = {}
        offset = 0
        for part in found[1].split(", "):
            kind, member = part.split(" ")
            ref = self._ref(kind)
            align = min(8, ref.element.size_bytes if ref.element else ref.size_bytes)
            offset = -(-offset // align) * align
            members[member] = Member(member, offset * 8, ref.size_bytes * 8, ref)
            offset += ref.size_bytes
        return StructType(name, offset, members)

    def _ref(self, kind: str) -> TypeRef:
        base, _, count = kind.removesuffix("]").partition("[")
        if count:
            element = self._ref(base)
            number = int(count)
            size = element.size_bytes * number
            return TypeRef(Kind.ARRAY, size, nr_elements=number, element=element)
        if base in _SCALARS:
            return TypeRef(Kind.INT, _SCALARS[base], base)
        struct = self.find_struct(base)
        assert struct is not None, base
        return TypeRef(Kind.STRUCT, struct.size_bytes, base)

    def struct_of(self, ref: TypeRef) -> StructType:
        while ref.element is not None:
            ref = ref.element
        struct = self.find_struct(ref.name)
        assert struct is not None
        return struct

    def find_enumerator(self, name: str) -> int | None:
        return self.enumerators.get(name)

    def find_enum(self, name: str) -> dict[str, int] | None:
        return self.enums.get(name)


@dataclass
class Memory:
    """Pages that were written to can be read; all else is a fault."""

    pages: dict[int, bytearray] = field(default_factory=dict)
    nr_reads: int = 0

    def write(self, address: int, *words: int) -> None:
        for index, word in enumerate(words):
            self.write_bytes(address + index * 8, (word & (1 << 64) - 1).to_bytes(8, "little"))

    def write_bytes(self, address: int, data: bytes) -> None:
        for at, byte in enumerate(data, address):
            self.pages.setdefault(at >> 12, bytearray(4096))[at & 4095] = byte

    def read(self, address: int, size_bytes: int) -> bytes:
        self.nr_reads += 1
        found = bytearray()
        while len(found) < size_bytes:
            at = address + len(found)
            page = self.pages.get(at >> 12)
            if page is None:
                raise FaultError(f"{at:#x} is not there", at)
            found += page[at & 4095 : (at & 4095) + size_bytes - len(found)]
        return bytes(found)

    def read_into(self, address: int, into: NDArray[np.uint8]) -> None:
        into[:] = np.frombuffer(self.read(address, into.size), np.uint8)


@dataclass
class Symbols:
    """`Symbols` from a dictionary."""

    addresses: dict[str, int]

    def address_of(self, name: str) -> int | None:
        return self.addresses.get(name)

    def name_at(self, address: int) -> str | None:
        before = [item for item in self.addresses.items() if item[1] <= address < item[1] + 4096]
        return max(before, key=lambda item: item[1])[0] if before else None


def fake_view(types: Types, memory: Memory, symbols: dict[str, int]) -> View:
    """A view of a machine of 128 MiB. `init_task` is known, as where variables have symbols."""
    kernel = Kernel(
        memory,
        types,
        Symbols({"init_task": 0xFFFFFFFF82000000, **symbols}),
        KernelRelease.parse("6.12.0"),
        "a fake kernel",
        is_live=False,
    )
    layout = PageLayout.probe(DictTypes.of("6.12"))
    return View.of(kernel, MemMap(kernel, layout, VMEMMAP, ((0, NR_PAGES),)))

"""A writer of BTF sections, and one small kernel's worth of types written with it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


@dataclass
class BtfWriter:
    """Each method adds a type and returns its number."""

    first: int = 1
    """Number of the first type: a module's continue after its kernel's."""
    names: bytearray = field(default_factory=lambda: bytearray(b"\0"))
    names_before: int = 0
    """Bytes of the base's names."""
    records: list[bytes] = field(default_factory=list)

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.names += text.encode() + b"\0"
        return self.names_before + len(self.names) - len(text) - 1

    def add(
        self,
        kind: int,
        name: str,
        last: int,
        tail: bytes = b"",
        *,
        vlen: int = 0,
        flag: bool = False,
    ) -> int:
        info = kind << 24 | vlen | flag << 31
        self.records.append(struct.pack("<III", self.name(name), info, last) + tail)
        return self.first + len(self.records) - 1

    def integer(
        self, name: str, size: int, *, signed: bool = False, bits: int = 0, shift: int = 0
    ) -> int:
        return self.add(
            1, name, size, struct.pack("<I", signed << 24 | shift << 16 | (bits or size * 8))
        )

    def pointer(self, to: int) -> int:
        return self.add(2, "", to)

    def array(self, element: int, count: int) -> int:
        return self.add(3, "", 0, struct.pack("<III", element, element, count))

    def struct(
        self,
        name: str,
        size: int,
        *members: tuple[str, int, int] | tuple[str, int, int, int],
        union: bool = False,
    ) -> int:
        """Members are (name, type, offset in bits[, bits of a bit field])."""
        has_bits = any(len(member) == 4 for member in members)
        tail = b"".join(
            struct.pack("<III", self.name(m[0]), m[1], m[2] | (m[3] << 24 if len(m) == 4 else 0))
            for m in members
        )
        return self.add(5 if union else 4, name, size, tail, vlen=len(members), flag=has_bits)

    def enum(self, name: str, *rows: tuple[str, int], signed: bool = False) -> int:
        tail = b"".join(struct.pack("<II", self.name(n), v & 0xFFFFFFFF) for n, v in rows)
        return self.add(6, name, 4, tail, vlen=len(rows), flag=signed)

    def enum64(self, name: str, *rows: tuple[str, int], signed: bool = False) -> int:
        tail = b"".join(
            struct.pack("<III", self.name(n), v & 0xFFFFFFFF, v >> 32 & 0xFFFFFFFF) for n, v in rows
        )
        return self.add(19, name, 8, tail, vlen=len(rows), flag=signed)

    def declaration(self, name: str, *, union: bool = False) -> int:
        return self.add(7, name, 0, flag=union)

    def typedef(self, name: str, to: int) -> int:
        return self.add(8, name, to)

    def volatile(self, to: int) -> int:
        return self.add(9, "", to)

    def const(self, to: int) -> int:
        return self.add(10, "", to)

    def prototype(self, returns: int, *parameters: tuple[str, int]) -> int:
        tail = b"".join(struct.pack("<II", self.name(n), t) for n, t in parameters)
        return self.add(13, "", returns, tail, vlen=len(parameters))

    def function(self, name: str, prototype: int) -> int:
        return self.add(12, name, prototype, vlen=1)

    def variable(self, name: str, kind: int) -> int:
        return self.add(14, name, kind, struct.pack("<I", 1))

    def section(self, name: str, *rows: tuple[int, int, int]) -> int:
        tail = b"".join(struct.pack("<III", *row) for row in rows)
        return self.add(15, name, 0, tail, vlen=len(rows))

    def data(self) -> bytes:
        types = b"".join(self.records)
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.names)
        )
        return header + types + bytes(self.names)


def small_kernel() -> BtfWriter:
    """struct page and its company, with one of everything that real BTF has."""
    btf = BtfWriter()
    ulong = btf.integer("long unsigned int", 8)
    s32 = btf.integer("int", 4, signed=True)
    char = btf.integer("char", 1)
    flag = btf.add(1, "_Bool", 1, struct.pack("<I", 4 << 24 | 8))
    btf.add(16, "double", 8)

    list_head = btf.first + len(btf.records) + 1
    to_list = btf.pointer(list_head)
    assert btf.struct("list_head", 16, ("next", to_list, 0), ("prev", to_list, 64)) == list_head

    counter = btf.struct("", 4, ("counter", s32, 0))
    atomic = btf.typedef("atomic_t", counter)
    space = btf.declaration("address_space")
    to_space = btf.pointer(btf.const(space))

    lists = btf.struct("", 16, ("lru", list_head, 0), ("buddy_list", list_head, 0), union=True)
    arm = btf.struct("", 32, ("", lists, 0), ("mapping", to_space, 128), ("index", ulong, 192))
    tail = btf.struct("", 8, ("compound_head", ulong, 0))
    either = btf.struct("", 32, ("", arm, 0), ("", tail, 0), union=True)
    btf.struct(
        "page",
        64,
        ("flags", btf.volatile(btf.typedef("page_flags_t", ulong)), 0),
        ("", either, 64),
        ("_mapcount", atomic, 320),
        ("_refcount", btf.add(18, "user", atomic), 416),
    )
    btf.struct("address_space", 16, ("host", btf.pointer(0), 0), ("nrpages", ulong, 64))

    table = btf.array(btf.array(list_head, 3), 2)
    btf.struct("zone", 112, ("free", table, 0), ("name", btf.array(char, 16), 96 * 8))
    btf.struct("slab", 8, ("inuse", s32, 0, 16), ("objects", s32, 16, 15), ("frozen", flag, 31, 1))
    old = btf.integer("unsigned int", 4, bits=3, shift=0)
    btf.struct("old_bits", 4, ("low", old, 0), ("high", old, 3))
    btf.struct("twice", 8, ("first", ulong, 0))
    btf.struct("twice", 16, ("second", ulong, 64))
    btf.struct("tree", 8, ("root", btf.pointer(btf.declaration("node")), 0))
    btf.struct("name_of_open", 8, ("length", ulong, 0), ("text", btf.array(char, 0), 64))

    btf.enum("zone_type", ("ZONE_DMA", 0), ("ZONE_NORMAL", 2))
    btf.enum("", ("PG_locked", 0), ("PG_lru", 5))
    btf.enum("error", ("E_AGAIN", -11), signed=True)
    btf.enum64("wide", ("W_TOP", 1 << 63), ("W_ONE", 1))

    callback = btf.prototype(0, ("page", btf.pointer(lists)), ("", 0))
    btf.function("free_page", callback)
    runqueues = btf.variable("runqueues", list_head)
    btf.section(".data..percpu", (runqueues, 0, 16))
    btf.add(17, "kfunc", callback, struct.pack("<i", -1))
    return btf

"""A kernel of 1 MiB, written by hand: page tables, symbols, types, a task and a module.

    tiny = TinyKernel(kernel_offset=0x1a000000)
    path.write_bytes(tiny.elf())             # or .kdump(), .kdump(flattened=True)

Everything that opening a dump touches is there and nothing else, so that a test can damage
exactly one thing and needs no QEMU.  The layout is nobody's: only names are the kernel's.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

PAGE = 4096
MEMORY_BYTES = 1 << 20
IMAGE = 0xFFFF_FFFF_8100_0000
"""Where the image is linked; it begins at physical 0."""

DIRECT_MAP, VMEMMAP = 0xFFFF_8880_0000_0000, 0xFFFF_EA00_0000_0000
MODULES = 0xFFFF_FFFF_C000_0000
RELEASE = "6.12.99-tiny"
BUILD_ID = "0123456789abcdef0123456789abcdef01234567"
BANNER = b"Linux version 6.12.99-tiny (by hand)\n"
UNBACKED = DIRECT_MAP + (1 << 30)
"""A kernel address that nothing maps."""


@dataclass
class TinyKernel:
    """The kernel's memory, and how to write it as a dump."""

    kernel_offset: int = 0
    with_btf: bool = True
    with_kallsyms: bool = True
    memory: bytearray = field(default_factory=lambda: bytearray(MEMORY_BYTES))
    symbols: dict[str, int] = field(default_factory=dict)
    vmcoreinfo: dict[str, str] = field(default_factory=dict)
    btf: bytes = b""

    def __post_init__(self) -> None:
        self._next = PAGE
        self._names = {"_stext": self.address(0)}
        self._page_tables()
        self._kernel_data()
        self.vmcoreinfo |= {
            "OSRELEASE": RELEASE,
            "BUILD-ID": BUILD_ID,
            "PAGESIZE": "4096",
            "OFFSET(uts_namespace.name)": "0",
            "NUMBER(phys_base)": str(-0x1000000 - self.kernel_offset),
            "NUMBER(pgtable_l5_enabled)": "0",
            "SIZE(page)": "64",
            "KERNELOFFSET": f"{self.kernel_offset:x}",
        }
        for name, address in self.symbols.items():
            self.vmcoreinfo[f"SYMBOL({name})"] = f"{address:x}"

    # --- building ------------------------------------------------------------------------

    def address(self, physical: int) -> int:
        """Where the image shows `physical`."""
        return IMAGE + self.kernel_offset + physical

    def physical(self, address: int) -> int:
        """Inverse of `address`."""
        return address - IMAGE - self.kernel_offset

    def place(self, data: bytes, name: str = "", *, align: int = 16) -> int:
        """Put `data` into memory; its address, which becomes the symbol `name`."""
        at = -(-self._next // align) * align
        self.memory[at : at + len(data)] = data
        self._next = at + len(data)
        if self._next > MEMORY_BYTES:
            raise MemoryError("the tiny kernel has 1 MiB")
        if name:
            self._names[name] = self.address(at)
        return self.address(at)

    def write(self, address: int, data: bytes) -> None:
        """Overwrite memory at an address of the image."""
        at = self.physical(address)
        self.memory[at : at + len(data)] = data

    def map(self, virtual: int, physical: int, size: int) -> None:
        """Enter pages into the page tables."""
        for offset in range(0, size, PAGE):
            table = self.physical(self.symbols["swapper_pg_dir"])
            for level in (39, 30, 21):
                at = table + (virtual + offset >> level & 511) * 8
                (entry,) = struct.unpack_from("<Q", self.memory, at)
                if not entry:
                    below = self.physical(self.place(bytes(PAGE), align=PAGE))
                    entry = below | 0x63
                    struct.pack_into("<Q", self.memory, at, entry)
                table = entry & ~0xFFF
            at = table + (virtual + offset >> 12 & 511) * 8
            struct.pack_into("<Q", self.memory, at, (physical + offset) | 0x63)

    def _page_tables(self) -> None:
        self.symbols["swapper_pg_dir"] = self.place(bytes(PAGE), "swapper_pg_dir", align=PAGE)
        self.map(self.address(0), 0, MEMORY_BYTES)
        self.map(DIRECT_MAP, 0, MEMORY_BYTES)
        pages = self.place(bytes(range(256)) * 64, align=PAGE)
        self.map(VMEMMAP, self.physical(pages), 256 * 64)

    def _kernel_data(self) -> None:
        names = ("Linux", "tiny", RELEASE, "#1", "x86_64")
        utsname = b"".join(name.encode().ljust(65, b"\0") for name in names)
        self.symbols["init_uts_ns"] = self.place(utsname, "init_uts_ns")
        self.place(BANNER + b"\0", "linux_banner")
        self.place(bytes(8) + b"swapper/0".ljust(16, b"\0"), "init_task")
        self._module()
        if self.with_btf:
            self.btf = tiny_btf()
            start = self.place(self.btf, "__start_BTF")
            self._names["__stop_BTF"] = start + len(self.btf)
        self._names["kernel_clone"] = self.address(0x400)
        self._names["_end"] = self.address(MEMORY_BYTES)
        if self.with_kallsyms:
            self._kallsyms()

    def _module(self) -> None:
        """struct module at the list head's `next`; its code is mapped nowhere, only named."""
        names = b"\0helper_init\0helper_work\0"
        rows = [(0, 0), (1, MODULES), (names.index(b"helper_work"), MODULES + 0x100)]
        symtab = b"".join(
            struct.pack("<IBBHQQ", name, 2, 0, 1 if address else 0, address, 0)
            for name, address in rows
        )
        table = struct.pack("<QQQ", self.place(symtab), len(rows), self.place(names))
        kallsyms = self.place(table)
        head = self.place(bytes(16), "modules")
        module = self.place(
            struct.pack("<QQ", head, head)
            + b"helper".ljust(56, b"\0")
            + struct.pack("<QQI4x", kallsyms, MODULES, 0x1000)
        )
        self.write(head, struct.pack("<QQ", module, module))

    def _kallsyms(self) -> None:
        """The tables of `scripts/kallsyms.c`, with one token for each character."""
        rows = sorted(self._names.items(), key=lambda row: row[1])
        names = b"".join(bytes([len(name) + 1]) + b"T" + name.encode() for name, _ in rows)
        tokens = b"".join(bytes([code, 0]) for code in range(256))
        index = struct.pack("<256H", *range(0, 512, 2))
        base = self.address(0)
        offsets = [address - base for _, address in rows]
        for name, data in {
            "kallsyms_num_syms": struct.pack("<I", len(rows)),
            "kallsyms_names": names,
            "kallsyms_token_table": tokens,
            "kallsyms_token_index": index,
            # Negative ones count from the base (CONFIG_KALLSYMS_ABSOLUTE_PERCPU).
            "kallsyms_offsets": struct.pack(f"<{len(rows)}i", *(-1 - each for each in offsets)),
            "kallsyms_relative_base": struct.pack("<Q", base),
        }.items():
            self.symbols[name] = self.place(data)

    # --- writing -------------------------------------------------------------------------

    def info(self, changes: Mapping[str, str | None] | None = None) -> bytes:
        """VMCOREINFO as text; `changes` replaces values, None removes them."""
        merged = {**self.vmcoreinfo, **(changes or {})}
        lines = [f"{key}={value}\n" for key, value in merged.items() if value is not None]
        return "".join(lines).encode()

    def elf(
        self,
        *,
        info: bytes | None = None,
        machine: int = 62,
        kind: int = 4,
        note_name: bytes = b"VMCOREINFO",
    ) -> bytes:
        """An ELF core: one note, one segment of memory by physical address."""
        info = self.info() if info is None else info
        note = _note(note_name, info)
        at = 64 + 2 * 56
        memory_at = -(-(at + len(note)) // PAGE) * PAGE
        header = b"\x7fELF\x02\x01\x01" + bytes(9)
        header += struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
        header += struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(note), len(note), 4)
        size = len(self.memory)
        header += struct.pack("<IIQQQQQQ", 1, 7, memory_at, 0, 0, size, size, 0)
        return (header + note).ljust(memory_at, b"\0") + bytes(self.memory)

    def kdump(
        self,
        *,
        info: bytes | None = None,
        flattened: bool = False,
        system: bytes = b"",
        machine: bytes = b"x86_64",
        excluded: Callable[[int], bool] = lambda pfn: False,
        flags: int = 1,
    ) -> bytes:
        """A kdump file as QEMU (`system` empty) or makedumpfile ("Linux") writes it."""
        info = self.info() if info is None else info
        frames = len(self.memory) // PAGE
        fields = (system, system, RELEASE.encode() if system else b"", system, machine, b"")
        utsname = b"".join(field.ljust(65, b"\0") for field in fields)
        header = struct.pack("<8si390s6x2Q", b"KDUMP   ", 6, utsname, 0, 0)
        header += struct.pack("<IiiIIIIIII", 1, PAGE, 1, 2, frames, 0, 0, 0, 0, 1)
        note = _note(b"VMCOREINFO", info)
        info_at, note_at = PAGE + 512 + note.index(info) if info else 0, PAGE + 512
        places = (info_at, len(info), note_at, len(note))
        sub = struct.pack("<QiiQQQQQQQQQQQ", 0, 0, 0, 0, 0, *places, *[0] * 4, frames)
        first = sum(1 << pfn for pfn in range(frames)).to_bytes(PAGE, "little")
        there = [pfn for pfn in range(frames) if not excluded(pfn)]
        second = sum(1 << pfn for pfn in there).to_bytes(PAGE, "little")
        data_at = 4 * PAGE + 24 * len(there)
        descs, data = b"", b""
        for pfn in there:
            page = bytes(self.memory[pfn * PAGE : (pfn + 1) * PAGE])
            packed = zlib.compress(page, 1) if flags & 1 else page
            kept = flags if len(packed) < PAGE else flags & ~1
            packed = packed if len(packed) < PAGE else page
            descs += struct.pack("<qIIQ", data_at + len(data), len(packed), kept, 0)
            data += packed
        whole = header.ljust(PAGE, b"\0") + sub.ljust(512, b"\0") + note
        whole = whole.ljust(2 * PAGE, b"\0") + first + second + descs + data
        return _flattened(whole) if flattened else whole


def _note(name: bytes, content: bytes) -> bytes:
    padded = name + b"\0" + bytes(-(len(name) + 1) % 4)
    return (
        struct.pack("<III", len(name) + 1, len(content), 0)
        + padded
        + content
        + bytes(-len(content) % 4)
    )


def _flattened(whole: bytes) -> bytes:
    """As a series of writes, out of order, the header written twice (the first time wrong)."""
    pieces = [(at, whole[at : at + 10_000]) for at in range(0, len(whole), 10_000)]
    pieces = [(0, b"\xff" * 500), *reversed(pieces)]
    head = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    body = b"".join(struct.pack(">qq", at, len(data)) + data for at, data in pieces)
    return head.ljust(PAGE, b"\0") + body + struct.pack(">qq", -1, -1)


def tiny_btf(page_bytes: int = 64) -> bytes:
    """BTF of the structs above: page, task_struct, list_head, module and its symbol table."""
    strings, types = bytearray(b"\0"), bytearray()
    count = 0

    def text(name: str) -> int:
        if not name:
            return 0
        strings.extend(name.encode() + b"\0")
        return len(strings) - len(name) - 1

    def add(kind: int, name: str, size_or_type: int, vlen: int = 0, extra: bytes = b"") -> int:
        nonlocal count
        types.extend(struct.pack("<III", text(name), kind << 24 | vlen, size_or_type) + extra)
        count += 1
        return count

    def struct_(name: str, size: int, members: list[tuple[str, int, int]]) -> int:
        rows = b"".join(struct.pack("<III", text(m), t, at * 8) for m, t, at in members)
        return add(4, name, size, len(members), rows)

    ulong = add(1, "long unsigned int", 8, 0, struct.pack("<I", 64))
    uint = add(1, "unsigned int", 4, 0, struct.pack("<I", 32))
    char = add(1, "char", 1, 0, struct.pack("<I", 1 << 24 | 8))
    pointer = add(2, "", 0)
    comm = add(3, "", 0, 0, struct.pack("<III", char, uint, 16))
    name = add(3, "", 0, 0, struct.pack("<III", char, uint, 56))
    links = struct_("list_head", 16, [("next", pointer, 0), ("prev", pointer, 8)])
    struct_("page", page_bytes, [("flags", ulong, 0)])
    struct_("task_struct", 24, [("stack", pointer, 0), ("comm", comm, 8)])
    table = struct_(
        "mod_kallsyms",
        24,
        [("symtab", pointer, 0), ("num_symtab", uint, 8), ("strtab", pointer, 16)],
    )
    to_table = add(2, "", table)
    layout = struct_("module_layout", 16, [("base", pointer, 0), ("size", uint, 8)])
    struct_(
        "module",
        96,
        [
            ("list", links, 0),
            ("name", name, 16),
            ("kallsyms", to_table, 72),
            ("core_layout", layout, 80),
        ],
    )
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + bytes(types) + bytes(strings)

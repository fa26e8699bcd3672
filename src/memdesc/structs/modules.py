"""The symbols of loaded modules, from the tables that the kernel keeps of them.

A module's ELF symbol table stays in memory (CONFIG_KALLSYMS, `kernel/module/kallsyms.c`):
the tables are read as they are, and a name is cut out only when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, LayoutError
from memdesc.structs.kernel import Kernel, Object

__all__ = ["ModuleSymbols"]

_SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)
_MOST_SYMBOLS = 1 << 20
_MOST_MODULES = 1 << 16
_LONGEST_NAME = 512
"""KSYM_NAME_LEN since 6.1."""

_MOST_RANGES = 16
"""Above MOD_MEM_NUM_TYPES (7 in 7.2)."""


@dataclass
class ModuleSymbols:
    """Symbols of all loaded modules: `Symbols`, for addresses inside a module only."""

    starts: NDArray[np.uint64]
    """Where the parts of the modules begin, rising."""
    ends: NDArray[np.uint64]
    addresses: NDArray[np.uint64]
    """Of every symbol, rising."""
    names: NDArray[np.uint32]
    """Offset of its name in `text`."""
    text: bytes
    unreadable: int = 0
    """Modules whose tables led nowhere."""
    _by_name: dict[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, kernel: Kernel) -> ModuleSymbols:
        """Read the tables of every module. Raises LayoutError where this kernel has no
        modules or its struct module is unknown."""
        head = kernel.symbol("modules")
        ranges: list[tuple[int, int]] = []
        tables: list[tuple[NDArray[np.uint64], NDArray[np.uint32]]] = []
        text, length, unreadable = [b""], 0, 0
        try:
            for module in kernel.list_entries(head, "module", "list", limit=_MOST_MODULES):
                try:
                    addresses, names, strings = _table_of(kernel, module)
                except FaultError:
                    unreadable += 1
                    continue
                ranges.extend(_ranges_of(kernel, module))
                tables.append((addresses, names + np.uint32(length)))
                text.append(strings)
                length += len(strings)
        except FaultError:
            unreadable += 1
        ranges.sort()
        addresses = np.concatenate([np.empty(0, np.uint64), *(table[0] for table in tables)])
        names = np.concatenate([np.empty(0, np.uint32), *(table[1] for table in tables)])
        order = np.argsort(addresses, kind="stable")
        return cls(
            starts=np.array([low for low, _ in ranges], np.uint64),
            ends=np.array([high for _, high in ranges], np.uint64),
            addresses=addresses[order],
            names=names[order],
            text=b"".join(text),
            unreadable=unreadable,
        )

    def address_of(self, name: str) -> int | None:
        if not self._by_name and self.addresses.size:
            for address, at in zip(
                self.addresses.tolist(), self.names.tolist(), strict=True
            ):  # Of several of one name the first.
                self._by_name.setdefault(self._name(at), address)
        return self._by_name.get(name)

    def name_at(self, address: int) -> str | None:
        if not 0 <= address < 1 << 64:
            return None
        part = int(np.searchsorted(self.starts, np.uint64(address), side="right")) - 1
        if part < 0 or address >= int(self.ends[part]):
            return None
        index = int(np.searchsorted(self.addresses, np.uint64(address), side="right")) - 1
        if index < 0 or self.addresses[index] < self.starts[part]:
            return None
        return self._name(int(self.names[index]))

    def _name(self, at: int) -> str:
        return self.text[at : self.text.index(b"\0", at)].decode("utf-8", "backslashreplace")


def _table_of(
    kernel: Kernel, module: Object
) -> tuple[NDArray[np.uint64], NDArray[np.uint32], bytes]:
    """(addresses, offsets of the names, names) of one module. Raises FaultError."""
    table = module.follow("kallsyms", "mod_kallsyms")
    if table is None:
        return np.empty(0, np.uint64), np.empty(0, np.uint32), b"\0"
    count = table["num_symtab"]
    if count > _MOST_SYMBOLS:
        raise FaultError(f"a module of {count} symbols", table.address)
    raw = kernel.memory.read(table["symtab"], count * _SYMBOL.itemsize)
    rows = np.frombuffer(raw, _SYMBOL)
    # Undefined symbols are other modules'; mapping symbols and sections have no name.
    rows = rows[(rows["section"] != 0) & (rows["name"] != 0) & (rows["value"] != 0)]
    if not rows.size:
        return np.empty(0, np.uint64), np.empty(0, np.uint32), b"\0"
    last = int(rows["name"].max())
    if last > _MOST_SYMBOLS * _LONGEST_NAME:
        raise FaultError("a module's names lie far outside", table.address)
    strings = kernel.memory.read(table["strtab"], last)
    tail = kernel.string(table["strtab"] + last, _LONGEST_NAME)
    return (
        rows["value"].astype(np.uint64),
        rows["name"].astype(np.uint32),
        strings + tail.encode("utf-8", "replace") + b"\0",
    )


def _ranges_of(kernel: Kernel, module: Object) -> list[tuple[int, int]]:
    """[start, end) of the module's parts: `mem[]` since 6.4, core_layout before."""
    if kernel.has("module", "mem[0].base"):
        places = [f"mem[{part}]" for part in range(_MOST_RANGES)]
        places = [place for place in places if kernel.has("module", f"{place}.base")]
    elif kernel.has("module", "core_layout.base"):
        places = ["core_layout"]
    else:
        raise LayoutError(f"struct module of {kernel.release} does not say where a module lies")
    parts = [(module[f"{place}.base"], module[f"{place}.size"]) for place in places]
    return [(base, base + size) for base, size in parts if base and size]

"""A kernel's symbols: from /proc/kallsyms, or from the kernel's own compressed tables.

The tables lie in every kernel's read-only data and so in every dump; VMCOREINFO says where
since 6.0.  They hold the kernel's symbols and not those of modules.  /proc/kallsyms has both,
unless kernel.kptr_restrict hides the addresses.

Sources: `kernel/kallsyms.c` (kallsyms_expand_symbol, get_symbol_offset, kallsyms_sym_address,
s_show) and `scripts/kallsyms.c` (write_src) @6.12; what is said of other releases was decoded
from dumps of 6.1, 6.12 and 7.2 and compared with their /proc/kallsyms.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, FormatError, LayoutError, NotReadableError, SourceError
from memdesc.structs.kernel import Memory

__all__ = ["TABLES", "LiveSymbols", "SymbolTable", "kallsyms_from_memory", "read_kallsyms"]

TABLES = (
    "kallsyms_num_syms",
    "kallsyms_names",
    "kallsyms_token_table",
    "kallsyms_token_index",
    "kallsyms_offsets",
)
"""Symbols whose addresses `kallsyms_from_memory` needs; VMCOREINFO gives them as SYMBOL(...)."""

_KERNEL_START = 0xFFFFFFFF80000000
"""The kernel's image and its modules: `__START_KERNEL_map` of x86-64. What is below is a
per-CPU offset or an absolute value, no address."""

_LONGEST_CODE = 1 << 20
"""Bytes behind a symbol that still count as its own; a gap between modules is larger."""

_MOST_SYMBOLS = 1 << 22
_PIECE_BYTES = 1 << 18
_PAGE_BYTES = 4096
_LARGEST_TABLE = 1 << 27
"""Bytes; the largest kernels have 3 MB of names, which are 8 MB when expanded."""
_NEWLINE, _SPACE, _TAB = b"\n \t"
_END, _NOTHING = 256, 257
"""Tokens of our own: the end of a name, and the second byte of a long length."""


class SymbolTable:
    """Symbols in the order of their source; implements `Symbols`."""

    def __init__(
        self,
        addresses: NDArray[np.uint64],
        text: bytes,
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
    ) -> None:
        """Name i is text[starts[i]:ends[i]] and is followed by a newline or a tab; its kind,
        nm's letter, stands one byte before the name or before the space in front of it."""
        self.addresses = addresses
        self._text = text
        self._starts = starts
        self._ends = ends
        self._order: NDArray[np.int64] | None = None
        self._sorted: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return int(self.addresses.size)

    def name(self, index: int) -> str:
        """The name of symbol `index`."""
        return self._text[int(self._starts[index]) : int(self._ends[index])].decode(
            "ascii", "backslashreplace"
        )

    def kind(self, index: int) -> str:
        """The letter of `nm`: "T" for code that is global, "d" for data that is not."""
        start = int(self._starts[index])
        at = start - 2 if self._text[start - 1] == _SPACE else start - 1
        return chr(self._text[at])

    def address_of(self, name: str) -> int | None:
        """As `Symbols.address_of`; of several symbols of one name the first, which is what
        the kernel's own lookup comes to for a name of one module."""
        wanted = name.encode()
        at = -1
        while wanted and (at := self._text.find(wanted, at + 1)) >= 0:
            index = int(np.searchsorted(self._starts, at))
            if (
                index < len(self)
                and self._starts[index] == at
                and self._ends[index] == at + len(wanted)
            ):
                return int(self.addresses[index])
        return None

    def name_at(self, address: int) -> str | None:
        """As `Symbols.name_at`. Of several symbols at one address the first, as the kernel
        prints it; None more than 1 MiB behind the last symbol."""
        if self._sorted is None or self._order is None:
            self._order = np.argsort(self.addresses, kind="stable")
            self._sorted = self.addresses[self._order]
        if not _KERNEL_START <= address < 1 << 64:
            return None
        last = int(np.searchsorted(self._sorted, np.uint64(address), side="right")) - 1
        if last < 0:
            return None
        found = self._sorted[last]
        if found < _KERNEL_START or address - int(found) > _LONGEST_CODE:
            return None
        first = int(np.searchsorted(self._sorted, found))
        return self.name(int(self._order[first]))


class LiveSymbols:
    """The running kernel's symbols from /proc/kallsyms; implements `Symbols`.

    The file is read when a symbol is asked for that is not among `others` (0.1 s: the kernel
    prints it). Where it hides the addresses, `tables` gives them, if anything does.
    """

    def __init__(
        self,
        path: Path = Path("/proc/kallsyms"),
        *,
        others: Mapping[str, int] | None = None,
        tables: Callable[[], SymbolTable] | None = None,
    ) -> None:
        """`others` are known beside the file, from VMCOREINFO for example: kernels without
        CONFIG_KALLSYMS_ALL list hardly anything but code."""
        self.path = path
        self.others = dict(others or {})
        self._tables = tables
        self._table: SymbolTable | None = None
        self._unseen: str | None = None
        self._lock = threading.Lock()

    def prefetch(self) -> None:
        """Begin to read in another thread: whoever asks first then waits for less."""
        threading.Thread(target=lambda: self.table, name="kallsyms", daemon=True).start()

    @property
    def table(self) -> SymbolTable | None:
        """Every symbol that is listed; None where `unseen` says why there is none."""
        with self._lock:
            if self._unseen is None:
                self._unseen = self._read()
        return self._table

    @property
    def unseen(self) -> str:
        """Why no symbols are listed; "" where they are."""
        _ = self.table
        return self._unseen or ""

    def address_of(self, name: str) -> int | None:
        if name in self.others:
            return self.others[name]
        return None if self.table is None else self.table.address_of(name)

    def name_at(self, address: int) -> str | None:
        return None if self.table is None else self.table.name_at(address)

    def _read(self) -> str:
        try:
            self._table = read_kallsyms(self.path)
        except (NotReadableError, FormatError) as error:
            if self._tables is None:
                return str(error)
            try:
                self._table = self._tables()
            except SourceError as second:
                return f"{error}; {second}"
        return ""


def kallsyms_from_memory(memory: Memory, addresses: Mapping[str, int]) -> SymbolTable:
    """Decode the kernel's own symbol tables.

    `addresses` are those of `TABLES`, and of kallsyms_relative_base where the kernel has it
    (or kallsyms_addresses instead of kallsyms_offsets). 200,000 symbols take 0.15 s.

    Raises LayoutError where an address is missing, FaultError where a table cannot be read,
    FormatError where it is damaged.
    """
    missing = [
        name
        for name in TABLES
        if name not in addresses and not (name == TABLES[-1] and "kallsyms_addresses" in addresses)
    ]
    if missing:
        raise LayoutError(
            f"where the kernel keeps its symbols is not known: no {', '.join(missing)}",
            hint="kernels before 6.0 do not say it; give a vmlinux with --vmlinux",
        )
    count = int.from_bytes(memory.read(addresses["kallsyms_num_syms"], 4), "little")
    if not 0 < count <= _MOST_SYMBOLS:
        raise FormatError(f"the kernel would have {count} symbols: its symbol tables are damaged")
    tokens, records, last = _records(memory, addresses, count)
    text, places = _expand(tokens, _tokens(memory, addresses))
    # A record has become a newline (our own), the kind and the name.
    begins = places[records] + 2
    ends = np.append(begins[1:] - 2, places[last])
    if (ends <= begins).any():
        raise FormatError("the kernel's symbol tables are damaged: a symbol has no name")
    return SymbolTable(_addresses(memory, addresses, count), text, begins, ends)


# --- /proc/kallsyms ----------------------------------------------------------------------


def read_kallsyms(path: Path) -> SymbolTable:
    """Read /proc/kallsyms, or a copy of it: lines of "ffffffff81000000 T _stext", a module's
    with a tab and the module's name behind.

    Raises NotReadableError where the file cannot be read or all addresses in it are 0,
    FormatError for any other line.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise NotReadableError(
            f"{path} cannot be read: {error.strerror}", path=path, hint="run it as root"
        ) from None
    if not text.endswith(b"\n"):
        text += b"\n"
    data = np.frombuffer(text, np.uint8)
    line_ends = np.flatnonzero(data == _NEWLINE)
    begins = np.append(0, line_ends[:-1] + 1)
    starts = begins + 19
    if (line_ends <= starts).any() or (data[starts - 1] != _SPACE).any():
        raise FormatError(f"{path} has a line that is not an address, a kind and a name")
    values = np.zeros(begins.size, np.uint64)
    for place in range(16):
        digit = data[begins + place]
        values <<= np.uint64(4)
        values |= np.where(digit >= ord("a"), digit - (ord("a") - 10), digit & 15)
    if not values.any():
        raise NotReadableError(
            f"{path} shows no addresses: they are hidden from this user",
            path=path,
            hint="kernel.kptr_restrict=2 hides them from everybody, 1 from those without "
            "CAP_SYSLOG",
        )
    tabs = np.flatnonzero(data == _TAB)
    ends = line_ends.copy()
    ends[np.searchsorted(line_ends, tabs)] = tabs
    return SymbolTable(values, text, starts, ends)


# --- the kernel's tables -----------------------------------------------------------------


class _Growing:
    """Bytes from `address` on, of a table whose length is found while it is read."""

    def __init__(self, memory: Memory, address: int) -> None:
        self.memory = memory
        self.address = address
        self.raw = bytearray()

    def grow(self, size_bytes: int = _PIECE_BYTES) -> None:
        """Read up to `size_bytes` more. Raises FaultError where there is nothing, FormatError
        where it is more than any kernel has."""
        at = self.address + len(self.raw)
        if len(self.raw) > _LARGEST_TABLE:
            raise FormatError(f"the symbol table at {self.address:#x} does not end: it is damaged")
        try:
            self.raw += self.memory.read(at, size_bytes)
        except FaultError:
            # The last table may end in the last page that there is.
            self.raw += self.memory.read(at, _PAGE_BYTES - at % _PAGE_BYTES)


def _records(
    memory: Memory, addresses: Mapping[str, int], count: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64], int]:
    """kallsyms_names as tokens, where each record begins in it, and where the last one ends.

    A record is a length and as many tokens; a length of more than 127 has two bytes, seven
    bits each, the lower ones first (since 6.1; before, no length was so large).
    """
    table = _Growing(memory, addresses["kallsyms_names"])
    raw = table.raw
    starts: list[int] = []
    long: list[int] = []
    at = 0
    while len(starts) < count:
        try:
            for _ in range(count - len(starts)):
                length = raw[at]
                if length > 127:
                    length = (length & 127 | raw[at + 1] << 7) + 1
                    long.append(at + 1)
                starts.append(at)
                at += length + 1
        except IndexError:
            table.grow()
    while len(raw) < at:
        table.grow()
    tokens = np.frombuffer(bytes(raw[:at]), np.uint8).astype(np.uint16)
    tokens = np.append(tokens, np.uint16(_END))
    places = np.array(starts, np.int64)
    tokens[places] = _END
    tokens[np.array(long, np.int64)] = _NOTHING
    return tokens, places, at


def _tokens(memory: Memory, addresses: Mapping[str, int]) -> list[bytes]:
    """What each byte of a record stands for, and our own two."""
    index = np.frombuffer(memory.read(addresses["kallsyms_token_index"], 512), np.uint16)
    if index[0] or (np.diff(index.astype(np.int64)) <= 0).any():
        raise FormatError("kallsyms_token_index does not rise: the symbol tables are damaged")
    table = _Growing(memory, addresses["kallsyms_token_table"])
    while len(table.raw) <= index[-1] or 0 not in table.raw[index[-1] :]:
        table.grow(_PAGE_BYTES)
    texts = [bytes(table.raw[start:]).partition(b"\0")[0] for start in index.tolist()]
    return [*texts, b"\n", b""]


def _expand(tokens: NDArray[np.uint16], texts: list[bytes]) -> tuple[bytes, NDArray[np.int64]]:
    """The text that tokens stand for, and where in it each token's part begins."""
    sizes = np.array([len(text) for text in texts], np.int32)
    first = np.cumsum(sizes, dtype=np.int32) - sizes
    lengths = sizes[tokens]
    ends = np.cumsum(lengths, dtype=np.int64)
    before = ends - lengths
    if int(ends[-1]) > _LARGEST_TABLE:
        raise FormatError("the kernel's symbols would take too much memory: they are damaged")
    taken = np.arange(int(ends[-1]), dtype=np.int32)
    taken += np.repeat(first[tokens] - before.astype(np.int32), lengths)
    return np.frombuffer(b"".join(texts), np.uint8)[taken].tobytes(), before


def _addresses(memory: Memory, addresses: Mapping[str, int], count: int) -> NDArray[np.uint64]:
    """The addresses, in one of the four ways in which kernels keep them."""
    whole = addresses.get("kallsyms_addresses")
    if whole is not None:
        return np.frombuffer(memory.read(whole, 8 * count), np.uint64)
    place = addresses["kallsyms_offsets"]
    offsets = np.frombuffer(memory.read(place, 4 * count), np.int32)
    if "kallsyms_relative_base" not in addresses:
        # Each is relative to its own place (7.2).
        own = np.uint64(place) + np.arange(count, dtype=np.uint64) * np.uint64(4)
        return own + offsets.astype(np.int64).view(np.uint64)
    base = np.uint64(int.from_bytes(memory.read(addresses["kallsyms_relative_base"], 8), "little"))
    unsigned = base + offsets.view(np.uint32).astype(np.uint64)
    negative = offsets < 0
    if np.count_nonzero(negative) * 2 < count:
        return unsigned
    # CONFIG_KALLSYMS_ABSOLUTE_PERCPU (gone in 6.15): a kernel's image is smaller than 2 GiB, so
    # negative offsets are no larger ones; they count from the base downwards, less one, and
    # those that are not negative are values of their own, such as per-CPU offsets.
    below = base - np.uint64(1) + (-offsets.astype(np.int64)).view(np.uint64)
    return np.where(negative, below, offsets.astype(np.int64).view(np.uint64))

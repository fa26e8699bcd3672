"""The records of a BTF section, as they are: kinds, names, references by number.

BTF (include/uapi/linux/btf.h, Documentation/bpf/btf.rst) is the compact type information
that a kernel carries for BPF.  A section is a header, a row of records and a heap of names;
record 1 is the first, and 0 stands for `void`.  The records differ in length, so one pass
finds where each begins (0.05 s for the 127,000 of a distribution's kernel); everything else
is decoded when it is asked for.

`memdesc.structs.btf` answers questions from it, `memdesc.drgn_types` hands it to drgn.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FormatError

__all__ = ["BtfKind", "BtfRecords", "RawEnumerator", "RawMember", "RawVariable"]

MAGIC = b"\x9f\xeb"
"""BTF_MAGIC 0xeB9F as it stands in a little-endian section."""


class BtfKind(enum.IntEnum):
    """BTF_KIND_*."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


@dataclass(frozen=True, slots=True)
class RawMember:
    """A member of a struct or union."""

    name: str
    type_id: int
    offset_bits: int
    bit_field_bits: int
    """0 where it is no bit field (or one in the old encoding, where the integer tells)."""


@dataclass(frozen=True, slots=True)
class RawEnumerator:
    """A name and its value, signed as the enum is."""

    name: str
    value: int


@dataclass(frozen=True, slots=True)
class RawVariable:
    """A variable of a DATASEC: for the kernel, a per-CPU variable."""

    name: str
    type_id: int
    offset: int
    size_bytes: int


_HEADER = struct.Struct("<HBBIIIII")
_LARGEST = 1 << 28
"""Bytes. Real sections have 3 to 10 MB."""

_WORDS_FIXED = {"INT": 1, "ARRAY": 3, "VAR": 1, "DECL_TAG": 1}
_WORDS_EACH = {
    "STRUCT": 3,
    "UNION": 3,
    "ENUM": 2,
    "FUNC_PROTO": 2,
    "DATASEC": 3,
    "ENUM64": 3,
}
_FIXED = [3 + _WORDS_FIXED.get(kind.name, 0) for kind in BtfKind]
_EACH = [_WORDS_EACH.get(kind.name, 0) for kind in BtfKind]
_TYPE_KINDS = frozenset(
    {
        BtfKind.INT,
        BtfKind.STRUCT,
        BtfKind.UNION,
        BtfKind.ENUM,
        BtfKind.FWD,
        BtfKind.TYPEDEF,
        BtfKind.FLOAT,
        BtfKind.ENUM64,
    }
)
_OBJECT_KINDS = frozenset({BtfKind.FUNC, BtfKind.VAR})


class BtfRecords:
    """A BTF section, or the split section of a module on top of its kernel's.

    Numbers of types ("ids") run from 1 to `nr_types`; a module's continue after its base's.
    Every method raises FormatError for an id, an offset or a count that leads outside.
    """

    def __init__(self, data: bytes, base: BtfRecords | None = None) -> None:
        """Raises FormatError for what is no little-endian BTF, or is damaged."""
        types, names = _sections(data, has_base=base is not None)
        own: NDArray[np.uint32] = np.frombuffer(types, "<u4").astype(np.uint32, copy=False)
        self._names: bytes = names if base is None else base._names + names
        self._words: NDArray[np.uint32] = (
            own if base is None else np.concatenate([base._words, own])
        )
        # An item of a memoryview is a plain int, in a third of an array item's time.
        self._at = memoryview(self._words.data)
        self._offsets: list[int] = [0] if base is None else list(base._offsets)
        self._find_records(0 if base is None else base._words.size)
        self._starts = np.array(self._offsets[1:], np.int64)
        self.kinds: NDArray[np.uint8] = np.zeros(len(self._offsets), np.uint8)
        """uint8[nr_types + 1]: the BtfKind of each id."""
        self.kinds[1:] = self._words[self._starts + 1] >> 24 & 31
        if self._starts.size and int(self._words[self._starts].max()) >= len(self._names):
            raise FormatError("BTF is damaged: a type's name lies outside the section")

    def _find_records(self, position: int) -> None:
        """The only pass over the section: where each record begins, in words."""
        words, append, end = self._at, self._offsets.append, len(self._at)
        try:
            while position < end:
                append(position)
                info = words[position + 1]
                kind = info >> 24 & 31
                position += _FIXED[kind] + _EACH[kind] * (info & 0xFFFF)
        except IndexError:
            raise FormatError(
                f"BTF is damaged: type {len(self._offsets) - 1} is cut off or of an unknown kind",
                hint="memdesc knows the kinds 1 to 19 (ENUM64)",
            ) from None
        if position != end:
            raise FormatError("BTF is damaged: its last type is cut off")

    @property
    def nr_types(self) -> int:
        return len(self._offsets) - 1

    # --- one record ----------------------------------------------------------------------

    def kind(self, type_id: int) -> BtfKind:
        self._check(type_id)
        return BtfKind(int(self.kinds[type_id]))

    def name(self, type_id: int) -> str:
        """The name; "" for an anonymous type and for void."""
        if type_id == 0:
            return ""
        self._check(type_id)
        return self._name(self._at[self._offsets[type_id]])

    def size(self, type_id: int) -> int:
        """Bytes, of an integer, float, enum, struct or union."""
        return self._at[self._record(type_id) + 2]

    def target(self, type_id: int) -> int:
        """The id that a pointer, typedef, qualifier, function or variable refers to; for a
        FUNC_PROTO, the id of what it returns."""
        return self._at[self._record(type_id) + 2]

    def flag(self, type_id: int) -> bool:
        """kind_flag: bit fields in a struct, a signed enum, FWD of a union."""
        return bool(self._at[self._record(type_id) + 1] >> 31)

    def integer(self, type_id: int) -> tuple[int, int, int]:
        """(encoding, bits, offset of the bits) of an INT; encoding 1 signed, 2 char, 4 bool."""
        word = self._at[self._record(type_id) + 3]
        return word >> 24 & 0xF, word & 0xFF, word >> 16 & 0xFF

    def array(self, type_id: int) -> tuple[int, int]:
        """(id of the element, number of elements) of an ARRAY."""
        record = self._record(type_id)
        return self._at[record + 3], self._at[record + 5]

    def members(self, type_id: int) -> list[RawMember]:
        """Of a STRUCT or UNION, in order."""
        has_bit_fields = self.flag(type_id)
        result = []
        for name, target, offset in self._triples(type_id):
            bits = 0
            if has_bit_fields:
                bits, offset = offset >> 24, offset & 0xFFFFFF
            result.append(RawMember(self._name(name), target, offset, bits))
        return result

    def enumerators(self, type_id: int) -> list[RawEnumerator]:
        """Of an ENUM or ENUM64, in order."""
        is_signed = self.flag(type_id)
        if self.kind(type_id) is BtfKind.ENUM64:
            rows = [(n, low | high << 32) for n, low, high in self._triples(type_id)]
            bits = 64
        else:
            rows, bits = self._pairs(type_id), 32
        return [
            RawEnumerator(
                self._name(name), value - (1 << bits) if is_signed and value >> bits - 1 else value
            )
            for name, value in rows
        ]

    def parameters(self, type_id: int) -> list[tuple[str, int]]:
        """(name, id) of a FUNC_PROTO's parameters; a last ("", 0) means variable ones."""
        return [(self._name(name), target) for name, target in self._pairs(type_id)]

    def variables(self, type_id: int) -> list[RawVariable]:
        """Of a DATASEC. Raises FormatError where an entry is no variable."""
        result = []
        for variable, offset, size in self._triples(type_id):
            if self.kind(variable) is not BtfKind.VAR:
                raise FormatError(f"BTF is damaged: type {variable} should be a variable")
            result.append(RawVariable(self.name(variable), self.target(variable), offset, size))
        return result

    # --- by name -------------------------------------------------------------------------

    def types_named(self, name: str) -> list[int]:
        """Ids of the structs, unions, enums, typedefs, integers, floats and forward
        declarations of this name, ascending."""
        return self._types_by_name.get(name.encode(), [])

    def objects_named(self, name: str) -> list[int]:
        """Ids of the functions and variables of this name, ascending."""
        return self._objects_by_name.get(name.encode(), [])

    def all_of(self, *kinds: BtfKind) -> list[int]:
        """Ids of every type of these kinds, ascending."""
        found: list[int] = np.flatnonzero(np.isin(self.kinds, kinds)).tolist()
        return found

    @cached_property
    def _types_by_name(self) -> dict[bytes, list[int]]:
        return self._index(_TYPE_KINDS)

    @cached_property
    def _objects_by_name(self) -> dict[bytes, list[int]]:
        return self._index(_OBJECT_KINDS)

    @cached_property
    def enumerator_ids(self) -> dict[bytes, tuple[int, int]]:
        """Name of every enumerator -> (id of its enum, its place in it); the lowest id wins."""
        names, found = self._names, dict[bytes, tuple[int, int]]()
        limit = len(names)
        for type_id in self.all_of(BtfKind.ENUM, BtfKind.ENUM64):
            start = self._offsets[type_id]
            step = _EACH[int(self.kinds[type_id])]
            count = self._at[start + 1] & 0xFFFF
            for place, word in enumerate(range(start + 3, start + 3 + step * count, step)):
                low = self._at[word]
                if low >= limit:
                    raise FormatError("BTF is damaged: an enumerator's name lies outside")
                found.setdefault(names[low : names.index(b"\0", low)], (type_id, place))
        return found

    def _index(self, kinds: frozenset[BtfKind]) -> dict[bytes, list[int]]:
        names, index = self._names, dict[bytes, list[int]]()
        ids = self.all_of(*kinds)
        offsets = self._words[self._starts[np.array(ids, np.int64) - 1]].tolist()
        for type_id, low in zip(ids, offsets, strict=True):
            if low:
                index.setdefault(names[low : names.index(b"\0", low)], []).append(type_id)
        return index

    # --- helpers -------------------------------------------------------------------------

    def _check(self, type_id: int) -> None:
        if not 0 <= type_id < len(self._offsets):
            raise FormatError(
                f"BTF is damaged: it refers to type {type_id} of {self.nr_types}",
                hint="the BTF of a module needs the BTF of exactly its kernel as base",
            )

    def _record(self, type_id: int) -> int:
        if type_id == 0:
            raise FormatError("BTF is damaged: void is used where a type must be")
        self._check(type_id)
        return self._offsets[type_id]

    def _name(self, offset: int) -> str:
        if offset >= len(self._names):
            raise FormatError("BTF is damaged: a name lies outside the section")
        raw = self._names[offset : self._names.index(b"\0", offset)]
        return raw.decode("utf-8", "backslashreplace")

    def _triples(self, type_id: int) -> list[tuple[int, int, int]]:
        start = self._record(type_id)
        count = self._at[start + 1] & 0xFFFF
        words = self._at[start + 3 : start + 3 + 3 * count].tolist()
        return list(zip(words[0::3], words[1::3], words[2::3], strict=True))

    def _pairs(self, type_id: int) -> list[tuple[int, int]]:
        start = self._record(type_id)
        count = self._at[start + 1] & 0xFFFF
        words = self._at[start + 3 : start + 3 + 2 * count].tolist()
        return list(zip(words[0::2], words[1::2], strict=True))


def _sections(data: bytes, *, has_base: bool) -> tuple[bytes, bytes]:
    """The type records and the names. Raises FormatError."""
    if len(data) < _HEADER.size or data[:2] != MAGIC:
        hint = "this BTF is big endian" if data[:2] == MAGIC[::-1] else ""
        raise FormatError("not a little-endian BTF section", hint=hint)
    if len(data) > _LARGEST:
        raise FormatError(f"a BTF section of {len(data)} bytes is larger than any real one")
    _, version, _, header, type_at, type_size, name_at, name_size = _HEADER.unpack_from(data)
    if version != 1:
        raise FormatError(f"BTF of version {version}; memdesc knows version 1")
    type_at, name_at = header + type_at, header + name_at
    if (
        header < _HEADER.size
        or type_size % 4
        or type_at + type_size > len(data)
        or name_at + name_size > len(data)
    ):
        raise FormatError("BTF is damaged: its sections lie outside the data")
    names = data[name_at : name_at + name_size]
    # The heap of a split section may begin with a name; only a base has the empty one at 0.
    if names[-1:] != b"\0" or (names[:1] != b"\0" and not has_base):
        raise FormatError("BTF is damaged: its names do not begin and end with NUL")
    return data[type_at : type_at + type_size], names

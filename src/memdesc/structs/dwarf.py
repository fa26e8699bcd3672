"""DWARF of a vmlinux as a `TypeInfo`, read through drgn.

The same answers as BTF gives (`memdesc.structs.btf`), for whoever has a debug package and
for kernels built without BTF; only an array of two dimensions, which older pahole writes to
BTF as one, is an array of arrays here.  Only what is asked for is read: drgn indexes the names and
parses a type when it is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import drgn
from drgn import TypeKind

from memdesc.errors import FormatError
from memdesc.kernels.type_info import Kind, Member, StructType, TypeRef

if TYPE_CHECKING:
    from drgn import Program, Type

__all__ = ["DwarfTypes"]

_COMPOUND = (TypeKind.STRUCT, TypeKind.UNION)
_KINDS = {
    TypeKind.VOID: Kind.VOID,
    TypeKind.INT: Kind.INT,
    TypeKind.BOOL: Kind.INT,
    TypeKind.FLOAT: Kind.FLOAT,
    TypeKind.ENUM: Kind.ENUM,
    TypeKind.POINTER: Kind.POINTER,
    TypeKind.STRUCT: Kind.STRUCT,
    TypeKind.UNION: Kind.UNION,
    TypeKind.ARRAY: Kind.ARRAY,
    TypeKind.FUNCTION: Kind.FUNCTION,
}
_AS_GCC = {
    "long": "long int",
    "long long": "long long int",
    "short": "short int",
    "unsigned long": "long unsigned int",
    "unsigned long long": "long long unsigned int",
    "unsigned short": "short unsigned int",
}
"""drgn writes the names of integers as C programmers do; BTF has them as the compiler's."""


class DwarfTypes:
    """The types of a drgn Program with debug information loaded. A `TypeInfo`."""

    def __init__(self, prog: Program, origin: str) -> None:
        self._prog = prog
        self._origin = origin
        self._types: list[Type] = [prog.void_type()]
        self._structs: dict[str, StructType | None] = {}
        self._enums: dict[str, Mapping[str, int] | None] = {}
        self._enumerators: dict[str, int | None] = {}

    @property
    def origin(self) -> str:
        return self._origin

    def find_struct(self, name: str) -> StructType | None:
        if name not in self._structs:
            found = self._find((f"struct {name}", f"union {name}", name), _COMPOUND)
            self._structs[name] = None if found is None else self._struct(found)
        return self._structs[name]

    def struct_of(self, ref: TypeRef) -> StructType:
        while ref.kind is Kind.ARRAY and ref.element is not None:
            ref = ref.element
        if ref.kind not in (Kind.STRUCT, Kind.UNION):
            raise FormatError(f"{ref.name or ref.kind.value} is neither a struct nor a union")
        return self._struct(self._types[ref.type_id])

    def find_enumerator(self, name: str) -> int | None:
        if name not in self._enumerators:
            try:
                value = self._prog.constant(name)
            except LookupError:
                self._enumerators[name] = None
            else:
                # A macro or a constant variable has this name as well: not what was asked for.
                is_enum = _plain(value.type_).kind is TypeKind.ENUM
                self._enumerators[name] = int(value.value_()) if is_enum else None
        return self._enumerators[name]

    def find_enum(self, name: str) -> Mapping[str, int] | None:
        if name not in self._enums:
            found = self._find((f"enum {name}",), (TypeKind.ENUM,))
            self._enums[name] = (
                None
                if found is None
                else {each.name: each.value for each in found.enumerators or ()}
            )
        return self._enums[name]

    # --- helpers -------------------------------------------------------------------------

    def _find(self, names: tuple[str, ...], kinds: tuple[TypeKind, ...]) -> Type | None:
        for name in names:
            try:
                found = _plain(self._prog.type(name))
            except (LookupError, SyntaxError, ValueError):
                continue
            if found.kind in kinds and found.is_complete():
                return found
        return None

    def _struct(self, type_: Type) -> StructType:
        if not type_.is_complete():
            # Declared where the member is, defined in another file.
            found = self._find((f"struct {type_.tag}", f"union {type_.tag}"), _COMPOUND)
            if found is None:
                raise FormatError(f"struct {type_.tag} is declared without a body")
            type_ = found
        members: dict[str, Member] = {}
        for member in self._flattened(type_, 0):
            members.setdefault(member.name, member)
        return StructType(type_.tag or "", _size(type_), members)

    def _flattened(self, type_: Type, base_bits: int) -> Iterator[Member]:
        for member in type_.members or ():
            inner = _plain(member.type)
            offset_bits = base_bits + member.bit_offset
            if member.name is None:
                if inner.kind in _COMPOUND:
                    yield from self._flattened(inner, offset_bits)
                continue
            size_bits = member.bit_field_size
            if size_bits is None:
                size_bits = _size(inner) * 8
            yield Member(member.name, offset_bits, size_bits, self._ref(member.type))

    def _ref(self, type_: Type) -> TypeRef:
        type_, alias = _resolved(type_)
        kind = _KINDS.get(type_.kind, Kind.VOID)
        size = _size(type_)
        if kind in (Kind.INT, Kind.FLOAT):
            signed = type_.kind is TypeKind.INT and type_.is_signed
            return TypeRef(kind, size, _AS_GCC.get(type_.name, type_.name), is_signed=signed)
        if kind is Kind.ENUM:
            signed = type_.is_complete() and _is_signed(type_)
            return TypeRef(
                kind, size, type_.tag or alias, is_signed=signed, type_id=self._id(type_)
            )
        if kind is Kind.POINTER:
            return TypeRef(kind, size, _name(type_.type))
        if kind in (Kind.STRUCT, Kind.UNION):
            return TypeRef(kind, size, type_.tag or alias, type_id=self._id(type_))
        if kind is Kind.ARRAY:
            element, count = self._ref(type_.type), type_.length or 0
            return TypeRef(kind, size, nr_elements=count, element=element, type_id=self._id(type_))
        return TypeRef(kind, size)

    def _id(self, type_: Type) -> int:
        self._types.append(type_)
        return len(self._types) - 1


def _resolved(type_: Type) -> tuple[Type, str]:
    """What a typedef stands for, and the name of the last one on the way (qualifiers are no
    types of their own in drgn)."""
    alias = ""
    while type_.kind is TypeKind.TYPEDEF:
        type_, alias = type_.type, type_.name
    return type_, alias


def _plain(type_: Type) -> Type:
    return _resolved(type_)[0]


def _size(type_: Type) -> int:
    if type_.kind is TypeKind.FUNCTION:  # 1 to drgn, as GCC has it; nothing to BTF.
        return 0
    try:
        size: int = drgn.sizeof(type_)
    except TypeError:  # void, an array without a length, a declaration
        return 0
    return size


def _is_signed(type_: Type) -> bool:
    inner = type_.type
    return inner is not None and _plain(inner).is_signed


def _name(type_: Type) -> str:
    """Tag or name of what a pointer leads to, as BTF gives it."""
    plain, alias = _resolved(type_)
    if plain.kind in (*_COMPOUND, TypeKind.ENUM):
        tag: str = plain.tag or alias
        return tag
    if plain.kind in (TypeKind.INT, TypeKind.BOOL, TypeKind.FLOAT):
        name: str = plain.name
        return _AS_GCC.get(name, name)
    return ""

"""drgn types made from BTF, one at a time and only when drgn asks.

drgn takes the members of a struct as callables, so a struct is built without the structs it
points to; that is what makes this quick, and what ends the cycles of a kernel's types.
"""

from __future__ import annotations

from collections.abc import Callable

from drgn import (
    Object,
    Program,
    Qualifiers,
    Type,
    TypeEnumerator,
    TypeKind,
    TypeKindSet,
    TypeMember,
    TypeParameter,
)

from memdesc.errors import FormatError
from memdesc.structs.btf_records import BtfKind, BtfRecords, RawMember

__all__ = ["DrgnTypes"]

_KIND = {
    BtfKind.STRUCT: TypeKind.STRUCT,
    BtfKind.UNION: TypeKind.UNION,
    BtfKind.ENUM: TypeKind.ENUM,
    BtfKind.ENUM64: TypeKind.ENUM,
    BtfKind.TYPEDEF: TypeKind.TYPEDEF,
    BtfKind.FLOAT: TypeKind.FLOAT,
}
_QUALIFIER = {
    BtfKind.CONST: Qualifiers.CONST,
    BtfKind.VOLATILE: Qualifiers.VOLATILE,
    BtfKind.RESTRICT: Qualifiers.RESTRICT,
}
_ENUM_INTEGER = {
    (4, False): "unsigned int",
    (4, True): "int",
    (8, False): "unsigned long",
    (8, True): "long",
}
_SIGNED, _BOOL = 1, 4
_DEEPEST = 64
"""Types built eagerly inside one another (typedef, pointer, array). More is a cycle."""


class DrgnTypes:
    """The types of one BTF section in one drgn program. Callable: a drgn type finder."""

    def __init__(self, prog: Program, records: BtfRecords) -> None:
        self.prog = prog
        self.records = records
        self._built: dict[int, Type] = {}
        self._depth = 0

    def __call__(
        self, prog: Program, kinds: TypeKindSet, name: str, filename: str | None
    ) -> Type | None:
        """The first type of this name and of one of these kinds; None where there is none, or
        where a file is asked for: BTF does not know who declared a type."""
        if filename:
            return None
        for type_id in self.records.types_named(name):
            kind = self._kind(type_id)
            if kind is not None and kind in kinds:
                return self.type(type_id)
        return None

    def type(self, type_id: int) -> Type:
        """The drgn type of a BTF id; the same object every time. Raises FormatError."""
        found = self._built.get(type_id)
        if found is None:
            if self._depth >= _DEEPEST:
                raise FormatError("BTF is damaged: a type contains itself")
            self._depth += 1
            try:
                found = self._built[type_id] = self._build(type_id)
            finally:
                self._depth -= 1
        return found

    def enumerator(self, name: str) -> Object | None:
        """The constant of this name, with its enum as type; None where there is none."""
        found = self.records.enumerator_ids.get(name.encode())
        if found is None:
            return None
        type_id, place = found
        return Object(self.prog, self.type(type_id), self.records.enumerators(type_id)[place].value)

    def variable(self, name: str) -> Type | None:
        """The type of a variable that BTF records (the kernel's per-CPU ones)."""
        return self._object(name, BtfKind.VAR)

    def function(self, name: str) -> Type | None:
        """The type of a function."""
        return self._object(name, BtfKind.FUNC)

    # --- helpers -------------------------------------------------------------------------

    def _object(self, name: str, kind: BtfKind) -> Type | None:
        for type_id in self.records.objects_named(name):
            if self.records.kind(type_id) is kind:
                return self.type(self.records.target(type_id))
        return None

    def _kind(self, type_id: int) -> TypeKind | None:
        kind = self.records.kind(type_id)
        if kind is BtfKind.INT:
            is_bool = self.records.integer(type_id)[0] & _BOOL
            return TypeKind.BOOL if is_bool else TypeKind.INT
        return _KIND.get(kind)

    def _build(self, type_id: int) -> Type:
        prog, records = self.prog, self.records
        kind = records.kind(type_id)
        name = records.name(type_id)
        match kind:
            case BtfKind.VOID:
                return prog.void_type()
            case BtfKind.INT:
                encoding, _, _ = records.integer(type_id)
                if encoding & _BOOL:
                    return prog.bool_type(name, records.size(type_id))
                return prog.int_type(name, records.size(type_id), bool(encoding & _SIGNED))
            case BtfKind.FLOAT:
                return prog.float_type(name, records.size(type_id))
            case BtfKind.PTR:
                return prog.pointer_type(self.type(records.target(type_id)))
            case BtfKind.ARRAY:
                element, count = records.array(type_id)
                return prog.array_type(self.type(element), count)
            case BtfKind.STRUCT | BtfKind.UNION:
                make = prog.struct_type if kind is BtfKind.STRUCT else prog.union_type
                return make(name or None, records.size(type_id), self._members(type_id))
            case BtfKind.FWD:
                return self._declared(type_id, name)
            case BtfKind.ENUM | BtfKind.ENUM64:
                return self._enum(type_id, name)
            case BtfKind.TYPEDEF:
                return prog.typedef_type(name, self.type(records.target(type_id)))
            case BtfKind.CONST | BtfKind.VOLATILE | BtfKind.RESTRICT:
                target = self.type(records.target(type_id))
                return target.qualified(target.qualifiers | _QUALIFIER[kind])
            case BtfKind.TYPE_TAG:
                return self.type(records.target(type_id))
            case BtfKind.FUNC_PROTO:
                return self._function(type_id)
            case _:
                raise FormatError(f"BTF is damaged: a {kind.name} where a type must be")

    def _members(self, type_id: int) -> list[TypeMember]:
        rows = self.records.members(type_id)
        return [
            TypeMember(self._member(row, row is rows[-1]), row.name or None, row.offset_bits)
            for row in rows
        ]

    def _member(self, row: RawMember, is_last: bool) -> Callable[[], Object | Type]:
        def build() -> Object | Type:
            kind = self.type(row.type_id)
            if row.bit_field_bits:
                return Object(self.prog, kind, bit_field_size=row.bit_field_bits)
            if is_last and kind.kind is TypeKind.ARRAY and kind.length == 0:
                # BTF writes `x[]` as `x[0]`; at the end of a struct it is the former.
                return self.prog.array_type(kind.type)
            return kind

        return build

    def _declared(self, type_id: int, name: str) -> Type:
        """A struct without a body: the complete one of the tag if there is any."""
        is_union = self.records.flag(type_id)
        wanted = BtfKind.UNION if is_union else BtfKind.STRUCT
        for other in self.records.types_named(name):
            if self.records.kind(other) is wanted:
                return self.type(other)
        return self.prog.union_type(name) if is_union else self.prog.struct_type(name)

    def _enum(self, type_id: int, name: str) -> Type:
        rows = self.records.enumerators(type_id)
        if not rows:
            return self.prog.enum_type(name or None)
        size, signed = self.records.size(type_id), self.records.flag(type_id)
        integer = _ENUM_INTEGER.get((size, signed), f"{'' if signed else 'u'}int{size * 8}_t")
        return self.prog.enum_type(
            name or None,
            self.prog.int_type(integer, size, signed),
            [TypeEnumerator(row.name, row.value) for row in rows],
        )

    def _function(self, type_id: int) -> Type:
        rows = self.records.parameters(type_id)
        is_variadic = bool(rows) and rows[-1] == ("", 0)
        return self.prog.function_type(
            self.type(self.records.target(type_id)),
            [
                TypeParameter(self._parameter(target), name or None)
                for name, target in (rows[:-1] if is_variadic else rows)
            ],
            is_variadic,
        )

    def _parameter(self, type_id: int) -> Callable[[], Type]:
        return lambda: self.type(type_id)

"""A kernel's structs from BTF, the type information that every distribution's kernel carries.

    types = BtfTypes.open("/sys/kernel/btf/vmlinux")
    types.find_struct("page").members["lru"].offset

Structs are decoded when they are asked for.  Where a kernel has several types of one name
(pahole keeps both when two files of the kernel define a tag differently), the complete one
with the lowest number wins, which is libbpf's choice as well (btf__find_by_name_kind);
`find_structs` returns them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from memdesc.errors import FormatError, NotReadableError
from memdesc.kernels.type_info import Kind, Member, StructType, TypeRef
from memdesc.structs.btf_records import BtfKind, BtfRecords, RawMember

__all__ = ["LIVE_BTF", "BtfTypes"]

LIVE_BTF = Path("/sys/kernel/btf/vmlinux")
"""The running kernel's own (CONFIG_DEBUG_INFO_BTF); readable by everybody."""

_STRUCTS = (BtfKind.STRUCT, BtfKind.UNION)
_ENUMS = (BtfKind.ENUM, BtfKind.ENUM64)
_TRANSPARENT = (
    BtfKind.TYPEDEF,
    BtfKind.VOLATILE,
    BtfKind.CONST,
    BtfKind.RESTRICT,
    BtfKind.TYPE_TAG,
)
_DEEPEST = 32
"""Typedefs in a row, structs inside structs, dimensions of an array (libbpf's
MAX_RESOLVE_DEPTH). More is a cycle."""

_MOST_MEMBERS = 1 << 16
_LARGEST_TYPE = 1 << 32
"""Bytes (BTF keeps the sizes of structs in 32 bits)."""


class BtfTypes:
    """Type information of one kernel. Implements `memdesc.kernels.type_info.TypeInfo`.

    Of a pointer, an enum or a struct, `TypeRef.name` is the tag, or the typedef's name where
    the tag is missing ("pgd_t"). A bit field has its own `size_bits`.
    """

    def __init__(self, data: bytes, origin: str = "BTF", *, base: BtfTypes | None = None) -> None:
        """`data` is a BTF section; with `base`, the split BTF of a module of that kernel.

        Raises FormatError for what is no BTF, big endian, or damaged.
        """
        self.records: BtfRecords = BtfRecords(data, None if base is None else base.records)
        self._origin = origin
        self._structs: dict[int, StructType] = {}

    @classmethod
    def open(cls, path: Path | str = LIVE_BTF) -> BtfTypes:
        """The BTF in a bare file, such as the running kernel's.

        Raises NotReadableError and FormatError. `memdesc.structs.elf.btf_of_file` also finds
        it inside a vmlinux or a bzImage.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise NotReadableError(
                f"{path} cannot be read: {error.strerror}",
                path=path,
                hint="a kernel has it with CONFIG_DEBUG_INFO_BTF=y",
            ) from None
        return cls(data, f"BTF of {path}")

    @property
    def origin(self) -> str:
        return self._origin

    # --- TypeInfo ------------------------------------------------------------------------

    def find_struct(self, name: str) -> StructType | None:
        """The complete struct or union with this tag, or the one that a typedef of this name
        stands for; None where there is none. Raises FormatError for damaged BTF."""
        ids = self._struct_ids(name)
        return self._struct(ids[0]) if ids else None

    def find_structs(self, name: str) -> list[StructType]:
        """Every struct or union that `find_struct` could mean, the one it takes first."""
        return [self._struct(type_id) for type_id in self._struct_ids(name)]

    def struct_of(self, ref: TypeRef) -> StructType:
        """As `TypeInfo.struct_of`. A declaration without a body leads to the complete struct of
        its tag. Raises FormatError for what is no struct, or one without a body anywhere."""
        while ref.kind is Kind.ARRAY and ref.element is not None:
            ref = ref.element
        if ref.kind not in (Kind.STRUCT, Kind.UNION):
            raise FormatError(f"{ref.name or ref.kind.value} is neither struct nor union")
        if self.records.kind(ref.type_id) in _STRUCTS:
            return self._struct(ref.type_id)
        complete = self.find_struct(ref.name) if ref.name else None
        if complete is None:
            raise FormatError(f"struct {ref.name} is declared without a body")
        return complete

    def find_enumerator(self, name: str) -> int | None:
        found = self.records.enumerator_ids.get(name.encode())
        if found is None:
            return None
        type_id, place = found
        return self.records.enumerators(type_id)[place].value

    def find_enum(self, name: str) -> Mapping[str, int] | None:
        for type_id in self.records.types_named(name):
            resolved, _ = self._resolve(type_id)
            if self.records.kind(resolved) in _ENUMS:
                return {row.name: row.value for row in self.records.enumerators(resolved)}
        return None

    # --- beyond it -----------------------------------------------------------------------

    def find_variable(self, name: str) -> TypeRef | None:
        """The type of a variable; kernels record their per-CPU ones ("runqueues")."""
        for type_id in self.records.objects_named(name):
            if self.records.kind(type_id) is BtfKind.VAR:
                return self._ref(self.records.target(type_id))
        return None

    # --- helpers -------------------------------------------------------------------------

    def _struct_ids(self, name: str) -> list[int]:
        """Tags before typedefs, each in ascending order."""
        tags, typedefs = [], []
        for type_id in self.records.types_named(name):
            kind = self.records.kind(type_id)
            if kind in _STRUCTS:
                tags.append(type_id)
            elif kind is BtfKind.TYPEDEF:
                target, _ = self._resolve(type_id)
                if self.records.kind(target) in _STRUCTS:
                    typedefs.append(target)
        return tags + typedefs

    def _struct(self, type_id: int) -> StructType:
        if type_id not in self._structs:
            members: dict[str, Member] = {}
            self._flatten(type_id, 0, members, [_MOST_MEMBERS], _DEEPEST)
            records = self.records
            self._structs[type_id] = StructType(
                records.name(type_id), records.size(type_id), members
            )
        return self._structs[type_id]

    def _flatten(
        self, type_id: int, base_bits: int, into: dict[str, Member], left: list[int], depth: int
    ) -> None:
        """Add the members of `type_id`, those of anonymous structs and unions in place."""
        for raw in self.records.members(type_id):
            left[0] -= 1
            if not depth or left[0] < 0:
                raise FormatError("BTF is damaged: a struct contains itself")
            if not raw.name:
                inner, _ = self._resolve(raw.type_id)
                if self.records.kind(inner) in _STRUCTS:
                    self._flatten(inner, base_bits + raw.offset_bits, into, left, depth - 1)
                continue  # Anonymous and no struct: padding, which has no name to ask for.
            into.setdefault(raw.name, self._member(raw, base_bits))

    def _member(self, raw: RawMember, base_bits: int) -> Member:
        ref = self._ref(raw.type_id)
        offset = base_bits + raw.offset_bits
        size = raw.bit_field_bits or ref.size_bytes * 8
        resolved = self._resolve(raw.type_id)[0] if ref.kind is Kind.INT else 0
        if resolved and not raw.bit_field_bits:
            # Before kind_flag (pahole < 1.13) the integer itself was the bit field.
            _, bits, shift = self.records.integer(resolved)
            if 0 < bits < size:
                offset, size = offset + shift, bits
        return Member(raw.name, offset, size, ref)

    def _resolve(self, type_id: int) -> tuple[int, str]:
        """The id behind typedefs and qualifiers, and the last typedef's name on the way."""
        name = ""
        for _ in range(_DEEPEST):
            kind = self.records.kind(type_id)
            if kind not in _TRANSPARENT:
                return type_id, name
            if kind is BtfKind.TYPEDEF:
                name = self.records.name(type_id)
            type_id = self.records.target(type_id)
        raise FormatError("BTF is damaged: a typedef leads to itself")

    def _ref(self, type_id: int, depth: int = _DEEPEST) -> TypeRef:
        if not depth:
            raise FormatError("BTF is damaged: an array contains itself")
        records = self.records
        type_id, alias = self._resolve(type_id)
        kind = records.kind(type_id)
        name = records.name(type_id) or alias
        match kind:
            case BtfKind.VOID:
                return TypeRef(Kind.VOID, 0)
            case BtfKind.INT:
                signed = bool(records.integer(type_id)[0] & 1)
                return TypeRef(Kind.INT, self._size(type_id), name, signed)
            case BtfKind.FLOAT:
                return TypeRef(Kind.FLOAT, self._size(type_id), name)
            case BtfKind.ENUM | BtfKind.ENUM64:
                size, signed = self._size(type_id), records.flag(type_id)
                return TypeRef(Kind.ENUM, size, name, signed, type_id)
            case BtfKind.STRUCT:
                return TypeRef(Kind.STRUCT, self._size(type_id), name, False, type_id)
            case BtfKind.UNION:
                return TypeRef(Kind.UNION, self._size(type_id), name, False, type_id)
            case BtfKind.FWD:
                of = Kind.UNION if records.flag(type_id) else Kind.STRUCT
                return TypeRef(of, 0, name, False, type_id)
            case BtfKind.PTR:
                return TypeRef(Kind.POINTER, 8, self._pointee(type_id))
            case BtfKind.ARRAY:
                element_id, count = records.array(type_id)
                element = self._ref(element_id, depth - 1)
                size = element.size_bytes * count
                if size >= _LARGEST_TYPE:
                    raise FormatError("BTF is damaged: an array of more than 4 GiB")
                return TypeRef(Kind.ARRAY, size, "", False, type_id, count, element)
            case BtfKind.FUNC_PROTO:
                return TypeRef(Kind.FUNCTION, 0)
            case _:
                raise FormatError(f"BTF is damaged: a member of kind {kind.name}")

    def _pointee(self, pointer_id: int) -> str:
        target, alias = self._resolve(self.records.target(pointer_id))
        if self.records.kind(target) in (BtfKind.PTR, BtfKind.ARRAY, BtfKind.FUNC_PROTO):
            return ""
        return self.records.name(target) or alias

    def _size(self, type_id: int) -> int:
        return self.records.size(type_id)

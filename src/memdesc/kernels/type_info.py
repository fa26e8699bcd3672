"""What type information says about a kernel's structs, whoever it comes from.

BTF (`memdesc.structs.btf`) and DWARF (through drgn) both answer as a `TypeInfo`: struct by
name, member by name with its place, enumerator by name with its value.  Layouts are probed
through it (`memdesc.kernels.layout`): a member is there or it is not, and no release is
compared.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from memdesc.errors import FormatError

__all__ = ["Kind", "Member", "StructType", "TypeInfo", "TypeRef", "place_of"]


class Kind(enum.Enum):
    """The kinds of C type that a member can have; typedefs and qualifiers are resolved."""

    VOID = "void"
    INT = "int"
    FLOAT = "float"
    ENUM = "enum"
    POINTER = "pointer"
    STRUCT = "struct"
    UNION = "union"
    ARRAY = "array"
    FUNCTION = "function"


@dataclass(frozen=True, slots=True)
class TypeRef:
    """The type of a member."""

    kind: Kind
    size_bytes: int
    name: str = ""
    """Tag of a struct, union or enum; name of an integer; of a pointer, the tag or name of what
    it points to; "" where that is anonymous."""
    is_signed: bool = False
    type_id: int = 0
    """The provider's own number of the struct, union, enum or array."""
    nr_elements: int = 0
    """Of an array."""
    element: TypeRef | None = None
    """Of an array."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member lies. Members of anonymous structs and unions count as the outer one's."""

    name: str
    offset_bits: int
    size_bits: int
    type: TypeRef

    @property
    def offset(self) -> int:
        """Bytes from the start of the struct. Raises FormatError for a bit field."""
        if self.offset_bits % 8:
            raise FormatError(f"{self.name} is a bit field and has no byte offset")
        return self.offset_bits // 8


@dataclass(frozen=True, slots=True)
class StructType:
    """A struct or union."""

    name: str
    size_bytes: int
    members: Mapping[str, Member]
    """By name, flattened through anonymous structs and unions; named ones stay nested."""


class TypeInfo(Protocol):
    """A kernel's type information."""

    @property
    def origin(self) -> str:
        """Where it comes from, in words: "BTF of /sys/kernel/btf/vmlinux"."""

    def find_struct(self, name: str) -> StructType | None:
        """The complete struct or union with this tag, or the one that a typedef of this name
        stands for; None where there is none."""

    def struct_of(self, ref: TypeRef) -> StructType:
        """The struct or union of a member's type, or of an array's elements.

        Raises FormatError for a type that is neither.
        """

    def find_enumerator(self, name: str) -> int | None:
        """The value of an enumerator, anonymous enums included; None where there is none."""

    def find_enum(self, name: str) -> Mapping[str, int] | None:
        """Every enumerator of the enum with this tag, in order of declaration."""


def place_of(types: TypeInfo, struct: str, path: str) -> Member | None:
    """The member at `path` ("flags.f", "free_area[2].nr_free") of `struct`, from its start.

    None where the struct or any part of the path does not exist: that is how a layout is
    probed. An index beyond the array is None as well.
    """
    current = types.find_struct(struct)
    offset_bits = 0
    member: Member | None = None
    for part in path.split("."):
        if current is None:
            return None
        name, _, rest = part.partition("[")
        member = current.members.get(name)
        if member is None:
            return None
        offset_bits += member.offset_bits
        ref = member.type
        while rest:
            index, _, rest = rest.partition("]")
            rest = rest.removeprefix("[")
            if ref.element is None or int(index) >= ref.nr_elements:
                return None
            offset_bits += int(index) * ref.element.size_bytes * 8
            ref = ref.element
            member = Member(name, 0, ref.size_bytes * 8, ref)
        current = types.struct_of(ref) if ref.kind in (Kind.STRUCT, Kind.UNION) else None
    assert member is not None
    return Member(path, offset_bits, member.size_bits, member.type)

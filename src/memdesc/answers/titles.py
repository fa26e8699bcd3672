"""Names for people: what a type is called on the screen."""

from __future__ import annotations

from memdesc.kernels.type_table import TYPE_TABLE
from memdesc.types import TypeSet

__all__ = ["title_of"]


def title_of(types: TypeSet) -> str:
    """The type's title, or the union's own name."""
    kind = types.only
    if kind is not None:
        return TYPE_TABLE[kind].title
    label = types.label
    if " or " in label and "," not in label and len(types) <= 3:
        return " or ".join(TYPE_TABLE[kind].title for kind in types)
    return label

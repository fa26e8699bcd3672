"""Names for people: what a type is called on the screen."""

from __future__ import annotations

from memdesc.kernels.type_titles import TITLES
from memdesc.types import TypeSet

__all__ = ["title_of"]


def title_of(types: TypeSet) -> str:
    """The type's title, or the union's own name."""
    return types.family or " or ".join(TITLES[kind] for kind in types)

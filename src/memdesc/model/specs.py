"""The descriptors of the memdesc plan that are allocated on their own, and their sizes.

The plan gives some sizes field by field, its authors estimated others, and some are "to be
decided": those are assumptions of ours, and say so (`Basis.ASSUMED`).

Sources: the kernelnewbies pages Memdescs, Memdescs/Path and FolioAlloc; replies to the mail
State Of The Page (Aug 2022); linux-mm threads on ptdesc (Jun 2023) and zsmalloc (Aug 2024).

>>> FOLIO_SMALL.size_bytes, FOLIO_SMALL.basis.value
(80, 'planned')
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

__all__ = [
    "ACCTMEM",
    "BUMP",
    "DESCRIPTORS",
    "FOLIO_LARGE",
    "FOLIO_SMALL",
    "HWPOISON",
    "KSM",
    "MGDESC",
    "MOVABLE",
    "PCPUDESC",
    "PTDESC",
    "SLAB",
    "ZPDESC",
    "Basis",
    "DescriptorSpec",
]


class Basis(enum.Enum):
    """How a size is known."""

    PLANNED = "planned"
    """The plan gives it, field by field or as a bound."""
    ESTIMATED = "estimated"
    """An author of the plan estimated it."""
    ASSUMED = "assumed"
    """The plan says "to be decided", or names the descriptor and no size: ours."""


@dataclass(frozen=True, slots=True)
class DescriptorSpec:
    """One kind of descriptor that is allocated on its own, from a slab cache of its own.

    Sizes are multiples of 16: the low four bits of a pointer to it hold the type.
    """

    name: str
    size_bytes: int
    basis: Basis
    source: str
    note: str = ""

    def __str__(self) -> str:
        return self.name


_REPLY_2022 = "replies to State Of The Page, Aug 2022"
_PATH = "Memdescs/Path wiki"

FOLIO_SMALL: Final = DescriptorSpec(
    "folio",
    80,
    Basis.PLANNED,
    _PATH,
    "of one frame: flags, lru, mapping, index, private, counts, order, pfn, memcg; "
    "struct anon_folio is taken to be as large",
)
FOLIO_LARGE: Final = DescriptorSpec(
    "large folio",
    96,
    Basis.ESTIMATED,
    f"{_REPLY_2022}; FolioAlloc wiki",
    "of two frames and more: 88 bytes estimated, rounded to 16; "
    "what hugetlb keeps in its third page is taken to fit",
)
SLAB: Final = DescriptorSpec(
    "slab", 64, Basis.PLANNED, _REPLY_2022, "56 bytes and a pointer to the page"
)
PTDESC: Final = DescriptorSpec(
    "ptdesc", 64, Basis.PLANNED, "linux-mm, Jun 2023", "at most 64; later free to grow"
)
ZPDESC: Final = DescriptorSpec("zpdesc", 32, Basis.PLANNED, "linux-mm, zsmalloc, Aug 2024")
KSM: Final = DescriptorSpec(
    "ksm", 80, Basis.ASSUMED, "Memdescs wiki (to be decided)", "as a folio of one frame"
)
BUMP: Final = DescriptorSpec(
    "bump",
    48,
    Basis.ASSUMED,
    "Memdescs wiki (to be decided)",
    "as struct netmem_desc today (include/net/netmem.h @7.2)",
)
PCPUDESC: Final = DescriptorSpec(
    "pcpudesc",
    16,
    Basis.ASSUMED,
    "Memdescs wiki (to be decided)",
    "one per frame, with the chunk's address",
)
ACCTMEM: Final = DescriptorSpec(
    "acctmem",
    16,
    Basis.ASSUMED,
    "Memdescs wiki (fields not known)",
    "the cgroup that is charged, and the order",
)
MGDESC: Final = DescriptorSpec(
    "mgdesc",
    32,
    Basis.ASSUMED,
    "Memdescs wiki (fields not known)",
    "flags, a list, a reference count and a map count",
)
MOVABLE: Final = DescriptorSpec(
    "movable",
    32,
    Basis.ASSUMED,
    "Memdescs wiki (to be decided)",
    "operations, a list and a lock",
)
HWPOISON: Final = DescriptorSpec(
    "hwpoison",
    16,
    Basis.ASSUMED,
    "Memdescs wiki (to be decided)",
    "one per bad frame, with the word that it replaces",
)

DESCRIPTORS: Final = (
    FOLIO_SMALL,
    FOLIO_LARGE,
    SLAB,
    PTDESC,
    ZPDESC,
    KSM,
    BUMP,
    PCPUDESC,
    ACCTMEM,
    MGDESC,
    MOVABLE,
    HWPOISON,
)
"""Every descriptor of the plan that is allocated on its own."""

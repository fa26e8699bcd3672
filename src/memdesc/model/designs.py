"""The designs that describe memory: how many bytes per frame, and which descriptors beside?

Five designs, as data: `struct page` of 2021 with its unions; the same 64 bytes under the
overlays of today (`struct folio`, `struct slab`, `struct ptdesc`); and the three steps of
the memdesc plan, in which a page shrinks to 32, 16 and 8 bytes and what is allocated as
one has one descriptor, an object of a slab cache.

Costs are counted per allocation: a folio, a slab, a table. `Design.descriptors` says which
descriptors an allocation of a type can have; where the plan leaves that open, there are
several (None stands for "no descriptor, the word in the page says it all"). What the plan
has not decided yet is an assumption, and says so (`Basis.ASSUMED`).

Sources: `include/linux/mm_types.h` and `mm/slab.h` of 5.15 (from 5.10, 6.1 and the patches
between), 6.1, 6.12 and 7.2; the kernelnewbies pages Memdescs, Memdescs/Path and FolioAlloc;
the mails State Of The Page (Aug 2022, Jan 2025) and of 26 May 2026 (linux-kernel).

>>> MEMDESC_8.descriptor(MemoryType.FILE, order=0).size_bytes
80
>>> MEMDESC_8.descriptor(MemoryType.DRIVER, order=3) is None
True
>>> [spec and spec.name for spec in MEMDESC_8.descriptors(MemoryType.DRIVER_MAPPED, 0)]
[None, 'mgdesc']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias

from memdesc.errors import QuestionError
from memdesc.model.specs import (
    ACCTMEM,
    BUMP,
    DESCRIPTORS,
    FOLIO_LARGE,
    FOLIO_SMALL,
    HWPOISON,
    KSM,
    MGDESC,
    MOVABLE,
    PCPUDESC,
    PTDESC,
    SLAB,
    ZPDESC,
    Basis,
    DescriptorSpec,
)
from memdesc.plan import NEWEST
from memdesc.types import DEVICE, MemoryType

__all__ = [
    "ACCTMEM",
    "BUMP",
    "DESCRIPTORS",
    "DESIGNS",
    "FOLIO_LARGE",
    "FOLIO_SMALL",
    "HWPOISON",
    "KSM",
    "MEMDESC_8",
    "MGDESC",
    "MOVABLE",
    "OVERLAYS",
    "PAGE_16",
    "PAGE_32",
    "PCPUDESC",
    "PTDESC",
    "SLAB",
    "STRUCT_PAGE",
    "ZPDESC",
    "Alternatives",
    "Assumption",
    "Basis",
    "DescriptorSpec",
    "Design",
    "Overlay",
    "Placement",
    "design_of",
]


Alternatives: TypeAlias = tuple[DescriptorSpec | None, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """Which descriptors one allocation of a memory type can have; None is "none".

    One entry is certain; several are what the plan leaves open.
    """

    single: Alternatives
    """For an allocation of one frame."""
    large: Alternatives
    """For one of two frames and more."""
    charged: Alternatives
    """Where the allocation is charged to a memory cgroup."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """What the plan leaves open and we took to be so."""

    text: str
    kinds: tuple[MemoryType, ...]
    """Types whose cost depends on it."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """A structure that lies over `struct page` today."""

    name: str
    size_bytes: int
    since: str
    """Release that brought it."""


@dataclass(frozen=True, slots=True)
class Design:
    """One way to describe memory."""

    id: str
    title: str
    bytes_per_frame: int
    date: str
    """When it was, or was planned."""
    source: str
    revision: str = ""
    """Revision of the memdesc plan (`memdesc.plan.REVISIONS`), "" for what was released."""
    placements: Mapping[MemoryType, Placement] = field(default_factory=dict, repr=False)
    """What is missing here has no descriptor."""
    overlays: tuple[Overlay, ...] = ()
    vmemmap_pages_kept: int | None = None
    """Pages of the memory map that stay for one HugeTLB page when the kernel frees the rest
    (HugeTLB vmemmap optimisation); None where the design is not assumed to free any."""
    assumptions: tuple[Assumption, ...] = ()
    """What is taken to be so beside the sizes of `DescriptorSpec`."""

    @property
    def allocates(self) -> bool:
        """Whether descriptors are objects of their own, and not part of the memory map."""
        return bool(self.placements)

    @property
    def specs(self) -> tuple[DescriptorSpec, ...]:
        """Every descriptor that the design can allocate, in the order of `DESCRIPTORS`."""
        used = {
            spec
            for place in self.placements.values()
            for spec in (*place.single, *place.large, *place.charged)
        }
        return tuple(spec for spec in DESCRIPTORS if spec in used)

    def descriptors(
        self, kind: MemoryType, order: int, *, charged: bool | None = False
    ) -> Alternatives:
        """What an allocation of 2^`order` frames of `kind` can have; each once.

        `charged` says whether a memory cgroup is charged for it; None: not known.
        """
        place = self.placements.get(kind)
        if place is None:
            return (None,)
        plain = place.large if order else place.single
        if charged is None:
            return tuple(dict.fromkeys((*plain, *place.charged)))
        if charged and place.charged:
            return place.charged
        return plain

    def descriptor(
        self, kind: MemoryType, order: int, *, charged: bool = False
    ) -> DescriptorSpec | None:
        """The descriptor of an allocation; where the plan leaves it open, the first named.

        The one that a machine of this design allocates. None: the word alone describes it.
        """
        return self.descriptors(kind, order, charged=charged)[0]


_PATH = "Memdescs/Path wiki"


# --- what describes which type -----------------------------------------------------------

_T = MemoryType
_FOLIOS = (
    *(_T.ANON, _T.FILE, _T.SHMEM, _T.SWAP_CACHE, _T.KSM, _T.HUGETLB),
    *(_T.SECRETMEM, _T.GUEST_MEMFD),
)
_BARE = (
    *(_T.LARGE_KMALLOC, _T.VMALLOC, _T.KERNEL_STACK, _T.DRIVER, _T.EXACT_ALLOC),
    *(_T.RAM_DISK, _T.ACCOUNTED),
)


def _place(
    single: DescriptorSpec | Alternatives | None,
    large: DescriptorSpec | Alternatives | None = (),
    charged: DescriptorSpec | Alternatives | None = (),
) -> Placement:
    def several(value: DescriptorSpec | Alternatives | None) -> Alternatives:
        return value if isinstance(value, tuple) else (value,)

    return Placement(several(single), several(large) or several(single), several(charged))


def _separate() -> dict[MemoryType, Placement]:
    """What every step of the plan allocates on its own, from the 32-byte page on."""
    places = {kind: _place(FOLIO_SMALL, FOLIO_LARGE) for kind in _FOLIOS}
    places[_T.SLAB] = _place(SLAB)
    places[_T.PAGE_TABLE] = _place(PTDESC)
    places[_T.ZSMALLOC] = _place(ZPDESC)
    places[_T.NET_POOL] = _place(BUMP)
    places[_T.PAGE_FRAG] = _place((None, BUMP))
    # ZONE_DEVICE has no place in any revision; today it is a folio with a pgmap.
    for kind in DEVICE:
        places[kind] = _place((None, FOLIO_SMALL), (None, FOLIO_LARGE))
    return places


def _managed() -> dict[MemoryType, Placement]:
    """Once the page has no reference count, a mapped driver page may need one elsewhere."""
    return {**_separate(), _T.DRIVER_MAPPED: _place((None, MGDESC))}


def _memdesc() -> dict[MemoryType, Placement]:
    places = _separate()
    for kind in _BARE:
        places[kind] = _place(None, charged=ACCTMEM)
    places[_T.PAGE_FRAG] = _place((None, BUMP), charged=(ACCTMEM, BUMP))
    places[_T.DRIVER_MAPPED] = _place((None, MGDESC), charged=(ACCTMEM, MGDESC))
    places[_T.ACCOUNTED] = _place(ACCTMEM)
    places[_T.KSM] = _place(KSM)
    places[_T.PERCPU] = _place(PCPUDESC)
    places[_T.MOVABLE_OPS] = _place(MOVABLE)
    places[_T.BALLOON] = _place((MOVABLE, None))
    places[_T.POISONED] = _place(HWPOISON)
    return places


# --- the designs -------------------------------------------------------------------------

STRUCT_PAGE: Final = Design(
    "2021",
    "struct page, 2021",
    64,
    "5.15, Oct 2021",
    "include/linux/mm_types.h @5.10 and @6.1, and the patches between",
    vmemmap_pages_kept=2,  # mm/hugetlb_vmemmap.c:RESERVE_VMEMMAP_NR, until 5.17 (believed)
)

OVERLAYS: Final = Design(
    "today",
    "struct page, today",
    64,
    "6.1 to 7.2, Dec 2022 to 2026",
    "type information of 6.1, 6.12 and 7.2",
    overlays=(
        Overlay("struct folio", 256, "5.16"),
        Overlay("struct slab", 64, "5.17"),
        Overlay("struct ptdesc", 64, "6.6"),
        Overlay("struct zpdesc", 56, "6.14"),
        Overlay("struct netmem_desc", 48, "6.17"),
    ),
    vmemmap_pages_kept=1,
)

_FREE_FITS = Assumption(
    "free blocks need nothing beside the memory map: buddy state fits the page",
    (_T.FREE, _T.DEFERRED),
)
_NO_HVO = Assumption(
    "the smaller pages free no memory map of huge pages (HugeTLB vmemmap optimisation)",
    (_T.HUGETLB,),
)
_DEVICE_OPEN = Assumption(
    "ZONE_DEVICE has no place in the plan: no descriptor, or a folio", tuple(DEVICE)
)
_NO_PLACE = Assumption(
    "free pages on per-CPU lists and unaccepted memory have no place in the plan: no descriptor",
    (_T.FREE_PCP, _T.UNACCEPTED),
)
_KEPT = (_T.DRIVER, _T.VMALLOC, _T.PERCPU, _T.ACCOUNTED, _T.MOVABLE_OPS, _T.BALLOON, _T.POISONED)

PAGE_32: Final = Design(
    "32",
    "32-byte page",
    32,
    "Jan to Mar 2025",
    f"{_PATH}; mails of 8 Jan and 17 Mar 2025",
    revision="R5",
    placements=MappingProxyType(_separate()),
    assumptions=(
        _FREE_FITS,
        _NO_HVO,
        _DEVICE_OPEN,
        Assumption(
            "the page keeps counts and private: driver, per-CPU, charged, movable and poisoned "
            "pages need no descriptor",
            _KEPT,
        ),
    ),
)

PAGE_16: Final = Design(
    "16",
    "16-byte page",
    16,
    "2025",
    _PATH,
    revision="R5",
    placements=MappingProxyType(_managed()),
    assumptions=(
        _FREE_FITS,
        _NO_HVO,
        _DEVICE_OPEN,
        Assumption(
            "the page keeps private: per-CPU, charged, movable and poisoned pages need no "
            "descriptor",
            _KEPT,
        ),
    ),
)

MEMDESC_8: Final = Design(
    "8",
    "8-byte memdesc",
    8,
    "26 May 2026",
    NEWEST.source,
    revision=NEWEST.id,
    placements=MappingProxyType(_memdesc()),
    assumptions=(_FREE_FITS, _NO_HVO, _DEVICE_OPEN, _NO_PLACE),
)

DESIGNS: Final[Mapping[str, Design]] = MappingProxyType(
    {one.id: one for one in (STRUCT_PAGE, OVERLAYS, PAGE_32, PAGE_16, MEMDESC_8)}
)
"""Every design by its id, from the largest memory map to the smallest."""


def design_of(name: str) -> Design:
    """The design with that id. Raises QuestionError for another name."""
    found = DESIGNS.get(name)
    if found is None:
        raise QuestionError(f"no design {name!r}", hint="designs: " + ", ".join(DESIGNS))
    return found

"""The memdesc plan as data: which type numbers did each revision give, and to what?

Six published states of the plan are known, R1 (2021) to R6 (the newest).  Where the
copy of a revision that was read has a gap, the gap is a named value (`TypeStatus`)
and not a guess.  `PLAN_TYPE` says where R6 puts each memory type of memdesc.

Sources: the Memdescs and Memdescs/Path pages of the kernelnewbies wiki, the mails
"State Of The Page" (11 Aug 2022), of 25 Oct 2021 (linux-mm) and 26 May 2026.
Dates of R3 to R6 are not known, only their order.

>>> NEWEST.types[5].name
'Slab'
>>> REVISIONS["R5"].types[9].status.value
'not recovered'
>>> str(PLAN_TYPE[MemoryType.LARGE_KMALLOC])
'0:6 or 11'
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from memdesc.types import MemoryType

__all__ = [
    "MISC_SUBTYPES",
    "NEWEST",
    "PLAN_TYPE",
    "REVISIONS",
    "Holds",
    "InPlan",
    "MiscSubtype",
    "NotInPlan",
    "PlanCode",
    "PlanKind",
    "PlanPlace",
    "PlanType",
    "Revision",
    "TypeStatus",
    "WhyNotInPlan",
]


class PlanKind(enum.IntEnum):
    """The type field (bits 0-3) in revision R6. 14 and 15 are unassigned."""

    MISC = 0
    BUDDY = 1
    FILE = 2
    ANON = 3
    KSM = 4
    SLAB = 5
    BUMP = 6
    MOVABLE = 7
    PAGE_TABLE = 8
    HWPOISON = 9
    PERCPU = 10
    ACCTMEM = 11
    ZPDESC = 12
    MANAGED = 13


class TypeStatus(enum.Enum):
    """How much is known about one value of the type field in one revision."""

    NAMED = "named"
    LABEL_LOST = "label lost"
    """The copy that was read has a blank label; a descriptor may still be named."""
    UNASSIGNED = "unassigned"
    NOT_RECOVERED = "not recovered"
    """The revision may well assign it; the copy that was read does not show it."""
    BUDDY_ALIAS = "alias of Buddy"
    """R5 stores a list pointer here, whose low four bits can be 0, 4, 8 or 12."""


class Holds(enum.Enum):
    """What the other 60 bits hold."""

    INLINE = "inline fields"
    POINTER = "pointer to a descriptor"
    EMBEDDED = "embedded data"
    LIST_POINTER = "list pointer"
    NOT_KNOWN = "not known"


@dataclass(frozen=True, slots=True)
class PlanType:
    """One value of the type field in one revision.

    `descriptor` is the structure the word points to, "" where the plan names none.
    """

    value: int
    name: str
    descriptor: str = ""
    holds: Holds = Holds.POINTER
    status: TypeStatus = TypeStatus.NAMED
    note: str = ""


@dataclass(frozen=True, slots=True)
class MiscSubtype:
    """A subtype of type 0 (bits 4-10)."""

    value: int
    name: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Revision:
    """One published state of the plan's type table.

    `types` has 16 entries, or none where the revision gave names without numbers
    (`names`).  `date` is as exact as it is known.
    """

    id: str
    title: str
    date: str
    source: str
    types: tuple[PlanType, ...] = ()
    names: tuple[str, ...] = ()
    misc_subtypes: tuple[MiscSubtype, ...] = ()
    misc_layout_known: bool = False
    note: str = ""

    @property
    def is_numbered(self) -> bool:
        """False for the early revisions, which name types without numbers."""
        return bool(self.types)


class WhyNotInPlan(enum.Enum):
    """Why a memory type has no number in R6."""

    NOT_PLACED = "not placed"
    """The plan names the type and leaves it without a place."""
    NOT_DECIDED = "not decided"
    """The plan asks the question and gives no answer."""
    NONE_GIVEN = "none given"
    """The plan does not mention the type."""
    NO_WORD = "no word"
    """There is no entry in the memory map that could hold a word."""


@dataclass(frozen=True, slots=True)
class PlanCode:
    """A type of R6, with the subtype where the type is Misc."""

    kind: PlanKind
    subtype: int | None = None

    def __str__(self) -> str:
        if self.subtype is None:
            return str(self.kind.value)
        return f"{self.kind.value}:{self.subtype}"


@dataclass(frozen=True, slots=True)
class InPlan:
    """The type has one or more places. `condition` says when which; `derived`: we concluded it."""

    codes: tuple[PlanCode, ...]
    condition: str = ""
    derived: bool = False

    def __str__(self) -> str:
        return " or ".join(str(code) for code in self.codes)


@dataclass(frozen=True, slots=True)
class NotInPlan:
    """The type has no number, and why."""

    why: WhyNotInPlan
    reason: str

    def __str__(self) -> str:
        return self.why.value


PlanPlace: TypeAlias = InPlan | NotInPlan


# The revisions


def _unassigned(*values: int) -> tuple[PlanType, ...]:
    return tuple(
        PlanType(value, "unassigned", holds=Holds.NOT_KNOWN, status=TypeStatus.UNASSIGNED)
        for value in values
    )


def _not_recovered(value: int) -> PlanType:
    return PlanType(value, "not recovered", holds=Holds.NOT_KNOWN, status=TypeStatus.NOT_RECOVERED)


def _buddy_alias(value: int) -> PlanType:
    return PlanType(
        value,
        "Buddy",
        holds=Holds.LIST_POINTER,
        status=TypeStatus.BUDDY_ALIAS,
        note="list pointers are 4- or 8-byte aligned, so their low bits take this value too",
    )


_SUBTYPES: Final = (
    MiscSubtype(0, "reserved", "what PageReserved marks today"),
    MiscSubtype(1, "zero page", "of PTE or PMD size"),
    MiscSubtype(2, "unknown", "probably a device driver's"),
    MiscSubtype(3, "vmalloc"),
    MiscSubtype(4, "guard"),
    MiscSubtype(5, "offline"),
    MiscSubtype(6, "kmalloc_large", "R6: unless charged, then acctmem (type 11)"),
    MiscSubtype(7, "exact", "from alloc_pages_exact"),
    MiscSubtype(8, "brd", "RAM disk"),
)

MISC_SUBTYPES: Mapping[int, MiscSubtype] = MappingProxyType({sub.value: sub for sub in _SUBTYPES})
"""Subtypes of type 0; 9 to 127 are unassigned. The same in R4 and R6."""

_R1 = Revision(
    "R1",
    "first sketch, names only",
    "25 Oct 2021",
    "mail to linux-mm, 25 Oct 2021",
    names=("buddy", "slab", "folio", "anonmem", "filemem", "pgtable", "vmalloc"),
    note="perhaps separate ids for free and for allocated buddy pages",
)

_R2 = Revision(
    "R2",
    "State Of The Page, names only",
    "11 Aug 2022",
    "mail State Of The Page, 11 Aug 2022",
    names=(
        "Undescribed",
        "Slab",
        "Anon Folio",
        "File Folio",
        "Buddy",
        "Page Table",
        "Vmalloc",
        "Net Pool",
        "Zsmalloc",
        "Z3Fold",
        "Mappable",
    ),
    note="Undescribed has 2^28 subtypes: Unmappable, Reserved, HWPoison, Offline, Guard",
)

_R3 = Revision(
    "R3",
    "wiki, early",
    "not known; before R4",
    "Memdescs wiki, early revision",
    types=(
        PlanType(0, "None, Reserved, Guard...", holds=Holds.INLINE),
        PlanType(1, "File", "struct folio"),
        PlanType(2, "Anon", "struct anon_folio"),
        PlanType(3, "KSM", "struct ksm"),
        PlanType(4, "Slab"),
        PlanType(5, "Free", "struct buddy"),
        PlanType(6, "Movable"),
        PlanType(7, "VmallocMappable"),
        PlanType(8, "label lost", holds=Holds.NOT_KNOWN, status=TypeStatus.LABEL_LOST),
        PlanType(9, "PageTable", "struct ptdesc"),
        PlanType(10, "NetPool"),
        PlanType(11, "HWPoison"),
        *_unassigned(12, 13, 14, 15),
    ),
)

_R4 = Revision(
    "R4",
    "wiki, middle",
    "not known; before R6",
    "Memdescs wiki, middle revision",
    types=(
        PlanType(0, "Misc", holds=Holds.INLINE),
        PlanType(1, "Buddy", "struct buddy", Holds.EMBEDDED),
        PlanType(2, "File", "struct folio"),
        PlanType(3, "Anon", "struct anon_folio"),
        PlanType(4, "KSM", note="descriptor to be decided"),
        PlanType(5, "Slab", "struct slab"),
        PlanType(6, "Movable", note="descriptor to be decided"),
        PlanType(7, "PageTable", "struct ptdesc"),
        PlanType(8, "NetPool", note="descriptor to be decided"),
        PlanType(9, "HWPoison", note="descriptor to be decided"),
        PlanType(10, "PerCPU", "struct pcpudesc", note="to be decided"),
        *_unassigned(11, 12, 13, 14, 15),
    ),
    misc_subtypes=_SUBTYPES,
    note="the subtype field (bits 4-10) is as in R6; the rest of a Misc word is not stated",
)

_R5 = Revision(
    "R5",
    "the 32-byte stage on the way",
    "2025",
    "Memdescs/Path wiki",
    types=(
        PlanType(0, "Buddy", holds=Holds.LIST_POINTER, note="the buddy_list pointer"),
        PlanType(1, "Misc", holds=Holds.INLINE),
        PlanType(2, "File", "struct folio"),
        PlanType(3, "Anon", "struct folio"),
        _buddy_alias(4),
        _not_recovered(5),
        _not_recovered(6),
        _not_recovered(7),
        _buddy_alias(8),
        _not_recovered(9),
        _not_recovered(10),
        _not_recovered(11),
        _buddy_alias(12),
        _not_recovered(13),
        _not_recovered(14),
        _not_recovered(15),
    ),
    note="the word lies over buddy_list.next, so a pointer's low bits must read as Buddy",
)

_R6 = Revision(
    "R6",
    "wiki, newest known",
    "not known; agrees with a mail of 26 May 2026",
    "Memdescs wiki, newest revision; M. Wilcox on linux-kernel, 26 May 2026",
    types=(
        PlanType(0, "Misc", holds=Holds.INLINE),
        PlanType(1, "Buddy", holds=Holds.EMBEDDED, note="one or two words of embedded data"),
        PlanType(2, "File", "struct folio"),
        PlanType(3, "Anon", "struct anon_folio"),
        PlanType(4, "KSM", "struct ksm", note="to be decided"),
        PlanType(5, "Slab", "struct slab"),
        PlanType(6, "Bump", "struct bump", note="page_pool; to be decided"),
        PlanType(7, "Movable", "struct movable", note="to be decided"),
        PlanType(
            8,
            "PageTable",
            "struct ptdesc",
            status=TypeStatus.LABEL_LOST,
            note="named here after the structure it points to",
        ),
        PlanType(9, "HWPoison", "struct hwpoison", note="to be decided"),
        PlanType(10, "PerCPU", "struct pcpudesc", note="to be decided"),
        PlanType(
            11,
            "accounted memory",
            "struct acctmem",
            status=TypeStatus.LABEL_LOST,
            note="named here after the structure it points to",
        ),
        PlanType(12, "ZPDesc", "struct zpdesc"),
        PlanType(13, "Managed", "struct mgdesc"),
        *_unassigned(14, 15),
    ),
    misc_subtypes=_SUBTYPES,
    misc_layout_known=True,
)

REVISIONS: Mapping[str, Revision] = MappingProxyType(
    {revision.id: revision for revision in (_R1, _R2, _R3, _R4, _R5, _R6)}
)
"""Every known revision, oldest first."""

NEWEST: Final = _R6


def _at(kind: PlanKind, *others: PlanKind, condition: str = "", derived: bool = False) -> InPlan:
    return InPlan(tuple(PlanCode(k) for k in (kind, *others)), condition, derived)


def _misc(subtype: int, *others: PlanKind, condition: str = "", derived: bool = False) -> InPlan:
    codes = (PlanCode(PlanKind.MISC, subtype), *(PlanCode(kind) for kind in others))
    return InPlan(codes, condition, derived)


_DEVICE = NotInPlan(
    WhyNotInPlan.NOT_PLACED,
    "no revision assigns ZONE_DEVICE a type; the 2021 list calls it a disaster area",
)
_IF_CHARGED = "the second if it is charged to a memory cgroup"

PLAN_TYPE: Mapping[MemoryType, PlanPlace] = MappingProxyType(
    {
        MemoryType.FREE: _at(PlanKind.BUDDY),
        MemoryType.FREE_PCP: NotInPlan(
            WhyNotInPlan.NOT_DECIDED, "asked in August 2022 (also for per-CPU lists?), left open"
        ),
        MemoryType.DEFERRED: _misc(
            0,
            condition="a map that was only zeroed reads as Misc, reserved, order 0",
            derived=True,
        ),
        MemoryType.RESERVED: _misc(0),
        MemoryType.ZERO: _misc(1),
        MemoryType.HUGE_ZERO: _misc(1),
        MemoryType.ANON: _at(PlanKind.ANON),
        MemoryType.FILE: _at(PlanKind.FILE),
        MemoryType.SHMEM: _at(PlanKind.FILE),
        MemoryType.SWAP_CACHE: _at(
            PlanKind.ANON, PlanKind.FILE, condition="anonymous folio, or shmem folio"
        ),
        MemoryType.KSM: _at(PlanKind.KSM),
        MemoryType.HUGETLB: _at(
            PlanKind.FILE,
            PlanKind.ANON,
            condition="it is a folio: of a file, or anonymous",
            derived=True,
        ),
        MemoryType.SLAB: _at(PlanKind.SLAB),
        MemoryType.LARGE_KMALLOC: _misc(6, PlanKind.ACCTMEM, condition=_IF_CHARGED),
        MemoryType.PAGE_TABLE: _at(PlanKind.PAGE_TABLE),
        MemoryType.VMALLOC: _misc(3, PlanKind.ACCTMEM, condition=_IF_CHARGED),
        MemoryType.KERNEL_STACK: _misc(3, PlanKind.ACCTMEM, condition=_IF_CHARGED, derived=True),
        MemoryType.PERCPU: _at(PlanKind.PERCPU),
        MemoryType.NET_POOL: _at(PlanKind.BUMP),
        MemoryType.PAGE_FRAG: InPlan(
            (PlanCode(PlanKind.BUMP), PlanCode(PlanKind.MISC, 2)),
            "the plan does not say which",
            derived=True,
        ),
        MemoryType.ZSMALLOC: _at(PlanKind.ZPDESC),
        MemoryType.BALLOON: InPlan(
            (PlanCode(PlanKind.MOVABLE), PlanCode(PlanKind.MISC, 5)),
            "movable balloon pages, or offline without a way to move",
        ),
        MemoryType.OFFLINE: _misc(5),
        MemoryType.MOVABLE_OPS: _at(PlanKind.MOVABLE),
        MemoryType.DEVICE_PRIVATE: _DEVICE,
        MemoryType.DEVICE_COHERENT: _DEVICE,
        MemoryType.FS_DAX: _DEVICE,
        MemoryType.DEVICE_DAX: _DEVICE,
        MemoryType.PCI_P2PDMA: _DEVICE,
        MemoryType.POISONED: _at(PlanKind.HWPOISON),
        MemoryType.GUARD: _misc(4),
        MemoryType.UNACCEPTED: NotInPlan(
            WhyNotInPlan.NONE_GIVEN, "no revision mentions unaccepted memory"
        ),
        MemoryType.SECRETMEM: _at(PlanKind.FILE),
        MemoryType.GUEST_MEMFD: _at(PlanKind.FILE),
        MemoryType.DRIVER: _misc(2, condition="bit 11 (may be mapped to users) clear"),
        MemoryType.DRIVER_MAPPED: _misc(
            2,
            PlanKind.MANAGED,
            condition="bit 11 set; the second if it needs a refcount or a list",
        ),
        MemoryType.EXACT_ALLOC: _misc(7),
        MemoryType.RAM_DISK: _misc(8),
        MemoryType.ACCOUNTED: _at(PlanKind.ACCTMEM),
        MemoryType.HOLE: NotInPlan(
            WhyNotInPlan.NO_WORD, "no online struct page, so nothing holds a word"
        ),
    }
)
"""The place of every memory type in R6."""

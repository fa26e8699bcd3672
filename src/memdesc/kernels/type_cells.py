"""The shape of one row of the type table: what does a memory type allow?

Every fact is a `Cell`: a value that programs can ask, a text for people, the source it
was read in, and how certain it is.  The rows are in `type_rows_user` (memory of
processes) and `type_rows_kernel` (everything else), the table in `type_table`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

from memdesc.kernels.page_types import PageType
from memdesc.plan import PlanPlace
from memdesc.types import Certainty

__all__ = [
    "Answer",
    "Cell",
    "Dirtying",
    "MovedBy",
    "TypeFacts",
    "UserMapping",
    "Verdict",
    "cell_names",
    "depends",
    "no",
    "not_stated",
    "yes",
]

_V = TypeVar("_V", covariant=True)


@dataclass(frozen=True, slots=True)
class Cell(Generic[_V]):
    """One fact. `source` is a kernel file:function @ version, or a document."""

    value: _V
    text: str
    source: str
    certainty: Certainty = Certainty.EXACT
    """INFERRED where no single place states it and it follows from the code read."""


class Answer(enum.Enum):
    """Yes or no, where the kernel has such an answer."""

    YES = "yes"
    NO = "no"
    DEPENDS = "depends"
    """The text says on what."""
    NOT_STATED = "not stated"
    """The sources that were read do not say."""


class UserMapping(enum.Enum):
    """How the memory can appear in a process's page table."""

    NEVER = "never"
    ANON_RMAP = "anonymous"
    """Counted and found through the anon_vma."""
    FILE_RMAP = "file"
    """Counted and found through the file's i_mmap tree."""
    KSM_RMAP = "merged"
    """Counted and found through KSM's stable tree, read-only."""
    INSERTED = "inserted"
    """vm_insert_page: a normal entry, counted, without a reverse map."""
    PFN_ONLY = "PFN only"
    """A special entry: not counted by anybody."""
    ZERO_ENTRY = "zero page entry"
    """A special read-only entry that is not counted."""
    NON_PRESENT = "non-present entry"
    """A swap-like entry; a touch by the CPU faults."""
    DEVICE_ENTRY = "device entry"
    """A normal, counted entry that leads to device memory."""


class Dirtying(enum.Enum):
    """Whom set_page_dirty tells."""

    FILE_SYSTEM = "file system"
    """The mapping's dirty_folio call."""
    AS_BASE = "as its base type"
    FLAG_ONLY = "flag only"
    """PG_dirty is set and nobody is told."""
    MUST_NOT = "must not"
    """The flag word means something else here; a caller that does it has a bug."""


class MovedBy(enum.Enum):
    """The mechanism that can move the content to another frame."""

    LRU = "LRU migration"
    MOVABLE_OPS = "movable_ops"
    HUGETLB = "hugetlb migration"
    MIGRATE_VMA = "migrate_vma"
    """Device memory: moved by its driver, not by compaction."""
    NOTHING = "nothing to move"
    NEVER = "never"


class Verdict(enum.Enum):
    """What memory_failure() reports, in the kernel's words in lower case."""

    RECOVERED = "recovered"
    DELAYED = "delayed"
    FAILED = "failed"
    IGNORED = "ignored"
    NO_VERDICT = "no verdict"
    """An error number, and no line with a verdict."""
    NO_SUCH_TYPE = "no such type"
    """This kernel does not have the type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeFacts:
    """Everything the table says about one type. `title` and `description` are for people."""

    title: str
    description: str
    owner: Cell[str]
    descriptor: Cell[str]
    page_type: Cell[tuple[PageType, ...]]
    plan: Cell[PlanPlace]
    refcounted: Cell[Answer]
    mapcount: Cell[Answer]
    pinnable: Cell[Answer]
    on_lru: Cell[Answer]
    charged: Cell[Answer]
    user_mapping: Cell[tuple[UserMapping, ...]]
    gup: Cell[Answer]
    dirtying: Cell[Dirtying]
    movable: Cell[MovedBy]
    failure_7_2: Cell[tuple[Verdict, ...]]
    failure_6_12: Cell[tuple[Verdict, ...]]
    failure_6_1: Cell[tuple[Verdict, ...]]
    shown: Cell[str]

    def cells(self) -> dict[str, Cell[object]]:
        """Return the cells by field name, in the order of the class."""
        return {name: getattr(self, name) for name in cell_names()}


def cell_names() -> tuple[str, ...]:
    """Return the names of the fields that are cells, in order."""
    return tuple(f.name for f in fields(TypeFacts) if f.name not in ("title", "description"))


def yes(text: str, source: str, certainty: Certainty = Certainty.EXACT) -> Cell[Answer]:
    """Build a cell that answers yes."""
    return Cell(Answer.YES, text, source, certainty)


def no(text: str, source: str, certainty: Certainty = Certainty.EXACT) -> Cell[Answer]:
    """Build a cell that answers no."""
    return Cell(Answer.NO, text, source, certainty)


def depends(text: str, source: str, certainty: Certainty = Certainty.EXACT) -> Cell[Answer]:
    """Build a cell whose text says when yes and when no."""
    return Cell(Answer.DEPENDS, text, source, certainty)


def not_stated(text: str = "the sources that were read do not say") -> Cell[Answer]:
    """Build a cell that admits a gap."""
    return Cell(Answer.NOT_STATED, text, "none found in 6.1.192, 6.12.117, 7.2.13")

"""What a rule is asked about: one kind of frame on one kernel, and columns of them.

A rule is a function of a `Subject` (what is known of a frame) and a `Knowledge` (what is
known of its kernel).  A machine has millions of frames and a few hundred distinct subjects,
so `ask` calls the rule once for each of those; a page is a column of one.

What a source cannot see is None. A rule then answers with every possibility that is left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.memory_failure import FailureBehaviour, failure_behaviour
from memdesc.kernels.release import Behaviour
from memdesc.types import Certainty, MemoryType, TypeSet

__all__ = [
    "Answers",
    "Asker",
    "Knowledge",
    "Rule",
    "Ruling",
    "Subject",
    "Subjects",
    "ask",
    "is_memory_only_file",
    "merged",
]

_A = TypeVar("_A")


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known about the kernel beside the frame itself."""

    behaviour: Behaviour
    sysctls: Mapping[str, int] = field(default_factory=dict)
    """Settings that change answers, by the name under /proc/sys ("vm.enable_soft_offline"); a
    missing one is not known."""
    hugetlb_reserved: int | None = None
    """HugePages_Rsvd of /proc/meminfo: huge pages promised to somebody."""

    @property
    def failure(self) -> FailureBehaviour:
        return failure_behaviour(self.behaviour.release)

    def sysctl(self, name: str, default: int) -> int:
        """A setting, or the kernel's default where it is not known."""
        return self.sysctls.get(name, default)


@dataclass(frozen=True, slots=True)
class Subject:
    """One frame, or any number of equal ones."""

    kind: MemoryType
    flags: KPF
    """The kpageflags word; of a tail on kernels that show its own flags, its head's."""
    order: int | None = None
    """log2 of the frames of its folio or compound page; None where not visible."""
    extra_references: bool | None = None
    """References beyond mappings, the caches and private data: pins, pipes, io_uring; None
    where the source has no reference counts."""
    zone: str = ""
    file_system: str | None = None
    """Of page cache: "ext4", "bdev" (a block device itself); None where not visible. Who sees it
    sees buffers too: `extra_references` then includes those of its blocks."""

    @property
    def is_large(self) -> bool:
        """Whether it is part of a folio of several frames."""
        return bool(self.flags & (KPF.COMPOUND_HEAD | KPF.COMPOUND_TAIL | KPF.THP)) or bool(
            self.order
        )

    def has(self, flag: KPF) -> bool:
        return bool(self.flags & flag)


def is_memory_only_file(subject: Subject) -> bool:
    """Whether it is a dirty page of a file that lies in memory alone: ramfs, or a root
    file system unpacked from an initramfs.

    Such files are unevictable without being mlocked, and their file system neither writes
    back, nor migrates, nor drops a dirty page (`fs/ramfs/file-mmu.c:ram_aops` @6.1, @6.12,
    @7.2; shmem has operations of its own).
    """
    return (
        subject.kind is MemoryType.FILE
        and subject.has(KPF.DIRTY)
        and subject.has(KPF.UNEVICTABLE)
        and not subject.has(KPF.MLOCKED)
    )


@dataclass(frozen=True, slots=True)
class Ruling(Generic[_A]):
    """A rule's answer: every outcome that is possible, and how sure that is."""

    outcomes: tuple[_A, ...]
    """Distinct, the likeliest first; one where the rule is certain."""
    certainty: Certainty
    source: str

    @property
    def only(self) -> _A | None:
        """The outcome, where there is one."""
        return self.outcomes[0] if len(self.outcomes) == 1 else None


Rule = Callable[[Subject, Knowledge], Ruling[_A]]


@dataclass(frozen=True)
class Subjects:
    """n frames or runs of frames as columns. None means: not visible from the source."""

    types: NDArray[np.uint64]
    """uint64[n]: `TypeSet.mask`."""
    flags: NDArray[np.uint64]
    """uint64[n]: as `Subject.flags`."""
    orders: NDArray[np.int8] | None = None
    """int8[n]; -1 where not visible."""
    extra_references: NDArray[np.int8] | None = None
    """int8[n]: 0 no, 1 yes, -1 not visible."""


@dataclass(frozen=True)
class Answers(Generic[_A]):
    """A ruling per row: `rulings[codes[i]]` is row i's."""

    codes: NDArray[np.int64]
    rulings: tuple[Ruling[_A], ...]

    def __getitem__(self, row: int) -> Ruling[_A]:
        return self.rulings[int(self.codes[row])]


def ask(rule: Rule[_A], subjects: Subjects, kernel: Knowledge) -> Answers[_A]:
    """Ask `rule` about every row, once per distinct subject.

    For a union of types the ruling holds the outcomes of every member, and is INFERRED at
    best, since nobody knows which applies.
    """
    rows = subjects.types.size
    columns = [subjects.types, subjects.flags & np.uint64(_ASKED)]
    for column in (subjects.orders, subjects.extra_references):
        wide = np.full(rows, -1, np.int64) if column is None else column.astype(np.int64)
        columns.append(wide.view(np.uint64))
    table = np.stack(columns, axis=1)
    # One view per row, so that unique compares rows as wholes.
    keys = np.ascontiguousarray(table).view([("", np.uint64)] * table.shape[1]).ravel()
    distinct, codes = np.unique(keys, return_inverse=True)
    rulings = tuple(_rule_one(rule, [int(part) for part in key], kernel) for key in distinct)
    return Answers(codes.reshape(-1).astype(np.int64), rulings)


class Asker(Generic[_A]):
    """`ask` for the extents of a map, tens of millions of them: a table of facts is asked
    about once, and extents are looked up in it.

    One may be asked again and again, about one part of a map after the other, by any thread.
    """

    def __init__(
        self,
        rule: Rule[_A],
        types: NDArray[np.uint64],
        flags: NDArray[np.uint64],
        kernel: Knowledge,
    ) -> None:
        """`types` and `flags`: uint64[f], the facts by their code."""
        self._rule, self._kernel = rule, kernel
        self._types, self._flags = types, flags & np.uint64(_ASKED)
        self._code_of_key = np.full(types.size * _CELLS, -1, np.int16)
        self._code_of_subject: dict[tuple[int, ...], int] = {}
        self._rulings: list[Ruling[_A]] = []
        self._lock = threading.Lock()

    @property
    def rulings(self) -> tuple[Ruling[_A], ...]:
        """Every ruling given so far, by its code."""
        return tuple(self._rulings)

    def codes(
        self,
        facts: NDArray[np.uint16],
        orders: NDArray[np.int8] | None = None,
        extra_references: NDArray[np.int8] | None = None,
    ) -> NDArray[np.int16]:
        """int16[n]: index into `rulings`; columns as in `Subjects`, of n rows."""
        keys = facts.astype(np.int32) * np.int32(_CELLS)
        if orders is not None:
            keys += (orders.astype(np.int32) + np.int32(1)) * np.int32(3)
        if extra_references is not None:
            keys += extra_references.astype(np.int32) + np.int32(1)
        found: NDArray[np.int16] = self._code_of_key[keys]
        if found.size and int(found.min()) < 0:
            with self._lock:
                for key in np.unique(keys[found < 0]).tolist():
                    self._code_of_key[key] = self._code_for(key)
            found = self._code_of_key[keys]
        return found

    def _code_for(self, key: int) -> int:
        fact, rest = divmod(key, _CELLS)
        order, extra = divmod(rest, 3)
        parts = (int(self._types[fact]), int(self._flags[fact]), order - 1, extra - 1)
        if parts not in self._code_of_subject:
            words = [part & _MINUS_ONE for part in parts]
            self._code_of_subject[parts] = len(self._rulings)
            self._rulings.append(_rule_one(self._rule, words, self._kernel))
        return self._code_of_subject[parts]


def merged(answers: Sequence[Ruling[_A]]) -> Ruling[_A]:
    """The ruling for a union, from those of its members (at least one)."""
    if len(answers) == 1:
        return answers[0]
    outcomes = tuple(dict.fromkeys(one for answer in answers for one in answer.outcomes))
    sources = "; ".join(dict.fromkeys(answer.source for answer in answers))
    certainty = Certainty.INFERRED if len(outcomes) == 1 else Certainty.NOT_VISIBLE
    return Ruling(outcomes, certainty, sources)


# --- helpers -----------------------------------------------------------------------------

_IGNORED = KPF.IDLE | KPF.ARCH | KPF.ARCH_2 | KPF.ARCH_3 | KPF.SOFTDIRTY | KPF.UNCACHED
_ASKED = (1 << 64) - 1 & ~_IGNORED.value
_MINUS_ONE = (1 << 64) - 1
_CELLS = 32 * 3
"""Subjects of one fact: orders from -1 to 30, and references -1, 0 and 1."""


def _rule_one(rule: Rule[_A], key: list[int], kernel: Knowledge) -> Ruling[_A]:
    mask, flags, order, extra = key
    known = KPF(flags & _known_bits())
    answers = [
        rule(
            Subject(
                kind,
                known,
                None if order == _MINUS_ONE else order,
                None if extra == _MINUS_ONE else bool(extra),
            ),
            kernel,
        )
        for kind in TypeSet(mask)
    ]
    return merged(answers)


def _known_bits() -> int:
    bits = 0
    for flag in KPF:
        bits |= flag.value
    return bits

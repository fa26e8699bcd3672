"""Can this frame be moved? By what, and if not, what stands in the way.

Two askers. *Compaction* walks the memory map to put free frames together, and takes only
what it may isolate.  *Offlining* (a memory block, or a contiguous allocation) empties a
whole range, so it also moves huge pages, drains the per-CPU lists and waits.

Sources: `mm/compaction.c:isolate_migratepages_block`, `mm/migrate.c:migrate_folio_unmap`,
`mm/memory_hotplug.c:do_migrate_range` @6.1, @6.12, @7.2.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from memdesc.kernels.allocator import PAGEBLOCK_ORDER
from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.migration import move_behaviour
from memdesc.kernels.type_cells import MovedBy
from memdesc.rules.subject import Knowledge, Ruling, Subject, is_memory_only_file
from memdesc.types import Certainty, MemoryType

__all__ = ["MoveOutcome", "MovedBy", "Obstacle", "Purpose", "by_compaction", "by_offlining"]

T = MemoryType


class Purpose(enum.Enum):
    """Who wants the frame to move."""

    COMPACTION = "compaction"
    OFFLINING = "offlining"


class Obstacle(enum.Enum):
    """What stands in the way."""

    NONE = "nothing"
    KIND = "this kind of memory never moves"
    REFERENCES = "somebody holds a reference: a pin, a pipe, io_uring, a driver"
    WRITEBACK = "it is being written back"
    NO_OPERATION = "its file lies in memory alone (ramfs), which cannot migrate a dirty page"
    MLOCKED = "mlocked, and vm.compact_unevictable_allowed is 0"
    INACCESSIBLE = "its mapping forbids migration"
    TOO_LARGE = "a folio of that size is left alone by compaction"
    HUGETLB = "compaction leaves huge pages where they are"
    NO_MOVABLE_OPS = "its owner offers no way to move it"
    DEVICE = "device memory: its driver moves it, and nobody else"
    NOT_ON_LRU = "not on an LRU list just now: isolated, or in a per-CPU batch"


@dataclass(frozen=True, slots=True)
class MoveOutcome:
    """One answer."""

    moves: bool
    """True as well where there is nothing to move."""
    by: MovedBy
    obstacle: Obstacle
    passing: bool = False
    """Only for a moment: the obstacle goes away by itself (writeback, a batch)."""


def by_compaction(subject: Subject, kernel: Knowledge) -> Ruling[MoveOutcome]:
    """Whether compaction (compact_memory, kcompactd, a huge page fault) moves it."""
    return _movable(subject, kernel, Purpose.COMPACTION)


def by_offlining(subject: Subject, kernel: Knowledge) -> Ruling[MoveOutcome]:
    """Whether offlining its memory block moves it away, or frees it."""
    return _movable(subject, kernel, Purpose.OFFLINING)


# --- the decision ------------------------------------------------------------------------

_SOURCE = "mm/compaction.c:isolate_migratepages_block @6.1, @6.12, @7.2; mm/migrate.c"
_OFFLINE_SOURCE = "mm/memory_hotplug.c:offline_pages, do_migrate_range @6.1, @6.12, @7.2"

_NOTHING = MoveOutcome(True, MovedBy.NOTHING, Obstacle.NONE)
_BY_LRU = MoveOutcome(True, MovedBy.LRU, Obstacle.NONE)
_HELD = MoveOutcome(False, MovedBy.LRU, Obstacle.REFERENCES)
_EMPTY = frozenset([T.FREE, T.FREE_PCP, T.HOLE, T.DEFERRED, T.UNACCEPTED])
_BY_DRIVER = frozenset([T.DEVICE_PRIVATE, T.DEVICE_COHERENT])
_LRU = frozenset([T.ANON, T.KSM, T.SWAP_CACHE, T.FILE, T.SHMEM])


def _movable(subject: Subject, kernel: Knowledge, purpose: Purpose) -> Ruling[MoveOutcome]:
    kind = subject.kind
    if kind in _EMPTY or (kind is T.POISONED and purpose is Purpose.OFFLINING):
        # Offlining passes over poisoned frames (mm/memory_hotplug.c:do_migrate_range).
        return _ruling(_NOTHING, purpose)
    if kind is T.HUGETLB:
        return _hugetlb(subject, purpose)
    if kind in _LRU:
        return _lru(subject, kernel, purpose)
    if kind in (T.SECRETMEM, T.GUEST_MEMFD):
        return _ruling(_not(MovedBy.NEVER, Obstacle.INACCESSIBLE), purpose)
    if kind in (T.ZSMALLOC, T.MOVABLE_OPS):
        return _ruling(MoveOutcome(True, MovedBy.MOVABLE_OPS, Obstacle.NONE), purpose)
    if kind in _BY_DRIVER:
        return _ruling(_not(MovedBy.MIGRATE_VMA, Obstacle.DEVICE), purpose)
    if kind is T.BALLOON:
        return _balloon(subject, kernel, purpose)
    if kind is T.OFFLINE and purpose is Purpose.OFFLINING:
        # The driver that keeps it lets it go (a memory notifier, MEM_GOING_OFFLINE).
        return Ruling(
            (_NOTHING, _not(MovedBy.NEVER, Obstacle.KIND)), Certainty.NOT_VISIBLE, _SOURCE
        )
    return _ruling(_not(MovedBy.NEVER, Obstacle.KIND), purpose)


def _lru(subject: Subject, kernel: Knowledge, purpose: Purpose) -> Ruling[MoveOutcome]:
    compacting = purpose is Purpose.COMPACTION
    if compacting and subject.is_large:
        behaviour = move_behaviour(kernel.behaviour.release)
        if behaviour.compaction_skips_compound or (subject.order or 0) >= PAGEBLOCK_ORDER:
            return _ruling(_not(MovedBy.LRU, Obstacle.TOO_LARGE), purpose)
    takes_unevictable = kernel.sysctl("vm.compact_unevictable_allowed", 1)
    if compacting and subject.has(KPF.UNEVICTABLE) and not takes_unevictable:
        return _ruling(_not(MovedBy.LRU, Obstacle.MLOCKED), purpose)
    if is_memory_only_file(subject):
        return _ruling(_not(MovedBy.LRU, Obstacle.NO_OPERATION), purpose)
    if subject.has(KPF.WRITEBACK):
        return _ruling(MoveOutcome(False, MovedBy.LRU, Obstacle.WRITEBACK, passing=True), purpose)
    if subject.extra_references:
        return _ruling(_HELD, purpose)
    if not subject.has(KPF.LRU):
        waiting = MoveOutcome(False, MovedBy.LRU, Obstacle.NOT_ON_LRU, passing=True)
        # Offlining drains the batches and tries again.
        found = [waiting] if compacting else [_BY_LRU, waiting]
        if subject.extra_references is None:
            found.append(_HELD)
        if len(found) == 1:
            return _ruling(waiting, purpose)
        return Ruling(tuple(found), Certainty.INFERRED, _source(purpose))
    if subject.extra_references is None:
        return Ruling((_BY_LRU, _HELD), Certainty.NOT_VISIBLE, _source(purpose))
    return _ruling(_BY_LRU, purpose)


def _hugetlb(subject: Subject, purpose: Purpose) -> Ruling[MoveOutcome]:
    if purpose is Purpose.COMPACTION:
        return _ruling(_not(MovedBy.HUGETLB, Obstacle.HUGETLB), purpose)
    moved = MoveOutcome(True, MovedBy.HUGETLB, Obstacle.NONE)
    if subject.extra_references is None:
        held = _not(MovedBy.HUGETLB, Obstacle.REFERENCES)
        return Ruling((moved, held), Certainty.NOT_VISIBLE, _OFFLINE_SOURCE)
    return _ruling(
        _not(MovedBy.HUGETLB, Obstacle.REFERENCES) if subject.extra_references else moved, purpose
    )


def _balloon(subject: Subject, kernel: Knowledge, purpose: Purpose) -> Ruling[MoveOutcome]:
    moved = MoveOutcome(True, MovedBy.MOVABLE_OPS, Obstacle.NONE)
    stuck = _not(MovedBy.MOVABLE_OPS, Obstacle.NO_MOVABLE_OPS)
    if kernel.behaviour.balloon_movable_shows_uptodate:
        return _ruling(moved if subject.has(KPF.UPTODATE) else stuck, purpose)
    return Ruling((moved, stuck), Certainty.NOT_VISIBLE, _source(purpose))


# --- helpers -----------------------------------------------------------------------------


def _not(by: MovedBy, obstacle: Obstacle) -> MoveOutcome:
    return MoveOutcome(False, by, obstacle)


def _source(purpose: Purpose) -> str:
    return _SOURCE if purpose is Purpose.COMPACTION else _OFFLINE_SOURCE


def _ruling(outcome: MoveOutcome, purpose: Purpose) -> Ruling[MoveOutcome]:
    return Ruling((outcome,), Certainty.EXACT, _source(purpose))

"""What happens when this frame fails? The kernel's verdict, and what it means for people.

Two ways to lose a frame. *Hard*: memory_failure(), after a machine check or a write to
hard_offline_page. *Soft*: soft_offline_page(), which moves the content away first and never
kills.  An injected failure damages nothing, a real one does: a poisoned page table is
"ignored" when it is injected, and whoever walks it on broken memory takes the machine down.
So every outcome says both.

Sources: `mm/memory-failure.c` @6.1, @6.12, @7.2 and injections into running kernels; the
differences between releases are data in `memdesc.kernels.memory_failure`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.type_cells import Verdict as FailureVerdict
from memdesc.rules.subject import Knowledge, Ruling, Subject, is_memory_only_file
from memdesc.types import Certainty, MemoryType

__all__ = [
    "Consequence",
    "FailureVerdict",
    "HardOutcome",
    "SoftOutcome",
    "hard_failure",
    "soft_offline",
]

T = MemoryType


class Consequence(enum.Enum):
    """What an outcome means for what runs on the machine, from harmless to fatal."""

    NOTHING_LOST = "nothing is lost"
    """Free memory, or content that can be read again."""
    CONTENT_LOST = "content is lost; later readers get an error"
    """A file or a shared object that nobody has mapped."""
    KILLED_ON_TOUCH = "its processes get SIGBUS when they touch it"
    KILLED_NOW = "its processes get SIGBUS at once"
    """With early kill."""
    UNHANDLED = "not handled; the kernel goes on using the frame"
    MACHINE_LOST = "the machine is likely lost when the kernel reads it"

    @property
    def severity(self) -> int:
        """0 for harmless, rising."""
        return list(Consequence).index(self)


@dataclass(frozen=True, slots=True)
class HardOutcome:
    """One result of memory_failure()."""

    verdict: FailureVerdict
    message: str
    """What the kernel's log calls the frame: "free buddy page"; "" where it logs nothing."""
    errno: str
    """What a write to hard_offline_page returns: "ok" or the error's name."""
    injected: Consequence
    """When the failure is simulated: the memory itself is sound."""
    on_hardware: Consequence
    """When the memory is really bad."""
    reason: str

    @property
    def flag_stays(self) -> bool:
        """Whether the frame shows HWPOISON afterwards. Always, even where nothing was done:
        the flag is set first (`mm/memory-failure.c:memory_failure`)."""
        return self.errno != "ENXIO"


@dataclass(frozen=True, slots=True)
class SoftOutcome:
    """One result of soft_offline_page(). It never kills and keeps the content."""

    errno: str
    """ "ok" or the error's name, as a write to soft_offline_page returns it."""
    reason: str


def hard_failure(subject: Subject, kernel: Knowledge) -> Ruling[HardOutcome]:
    """What memory_failure() does with `subject`.

    With `extra_references` unknown, outcomes that depend on it are all named.
    """
    kind = subject.kind
    if kind in _FREE:
        return _exact(_free())
    if kind is T.POISONED or subject.has(KPF.HWPOISON):
        return _exact(_again(kernel))
    if kind in _NO_STRUCT_PAGE:
        return _missing(kernel)
    if kind in _DEVICE:
        return _device(kind)
    if kind is T.HUGETLB:
        return _hugetlb(subject, kernel)
    if kind in (T.SECRETMEM, T.GUEST_MEMFD) or is_memory_only_file(subject):
        return _cannot_be_dropped(subject, kernel)
    if kind is T.KSM and not kernel.failure.ksm_is_handled:
        return _exact(_KSM_6_1)
    if kind in _LRU_KINDS:
        return _lru(subject, kernel)
    return _exact(_kernel_owned(kind, kernel))


def soft_offline(subject: Subject, kernel: Knowledge) -> Ruling[SoftOutcome]:
    """What soft_offline_page() does with `subject`."""
    kind = subject.kind
    if kind in _NO_STRUCT_PAGE or kind in _DEVICE:
        error = "ENXIO" if kind is T.HOLE else "EIO"
        return _soft(SoftOutcome(error, "no online System RAM"))
    if kernel.failure.soft_offline_switch and not kernel.sysctl("vm.enable_soft_offline", 1):
        return _soft(SoftOutcome("EOPNOTSUPP", "vm.enable_soft_offline is 0"))
    if kind is T.POISONED or subject.has(KPF.HWPOISON):
        return _soft(SoftOutcome("ok", "it is marked already: nothing to do"))
    if kind in _FREE:
        return _soft(SoftOutcome("ok", "free: taken out of the free lists"))
    if kind in (T.SECRETMEM, T.GUEST_MEMFD):
        return _soft(SoftOutcome("EBUSY", "its mapping does not allow migration"))
    if kind is T.BALLOON:
        return _soft(_MOVED if _balloon_moves(subject, kernel) else _STUCK)
    if kind is T.ZSMALLOC:
        return _soft(_MOVED)
    if kind is T.MOVABLE_OPS:
        return Ruling((_MOVED, _DRIVER_BUSY), Certainty.INFERRED, _SOFT_SOURCE)
    if kind in _LRU_KINDS or kind is T.HUGETLB:
        return _soft_movable(subject, kernel)
    return _soft(_STUCK)


# --- hard, by kind -----------------------------------------------------------------------

_SOURCE = "mm/memory-failure.c:memory_failure @6.1, @6.12, @7.2"
_SOFT_SOURCE = "mm/memory-failure.c:soft_offline_page @6.1, @6.12, @7.2"

_FREE = frozenset([T.FREE, T.FREE_PCP])
_NO_STRUCT_PAGE = frozenset([T.HOLE])
_DEVICE = frozenset(
    [T.DEVICE_PRIVATE, T.DEVICE_COHERENT, T.FS_DAX, T.DEVICE_DAX, T.PCI_P2PDMA]
)  # fmt: skip
_LRU_KINDS = frozenset([T.ANON, T.KSM, T.SWAP_CACHE, T.FILE, T.SHMEM])
_NEVER_DROPPED_DIRTY = frozenset(["bdev", "ramfs", "rootfs"])
"""Files without `error_remove_folio`: a page is only invalidated, which a dirty one never is
(`mm/memory-failure.c:truncate_error_folio` @6.12, `block/fops.c:def_blk_aops`)."""
_HARMLESS_TO_READ = frozenset([T.BALLOON, T.OFFLINE, T.GUARD, T.UNACCEPTED, T.DEFERRED])
"""Frames that the kernel holds and does not read."""


def _free() -> HardOutcome:
    return HardOutcome(
        FailureVerdict.RECOVERED,
        "free buddy page",
        "ok",
        Consequence.NOTHING_LOST,
        Consequence.NOTHING_LOST,
        "free: taken out of the free lists; per-CPU lists are drained first",
    )


def _again(kernel: Knowledge) -> HardOutcome:
    logs = kernel.failure.repeats_verdict
    return HardOutcome(
        FailureVerdict.FAILED if logs else FailureVerdict.NO_VERDICT,
        "already poisoned page" if logs else "",
        "EHWPOISON",
        Consequence.UNHANDLED,
        Consequence.UNHANDLED,
        "marked already; whatever the first failure did stands",
    )


def _missing(kernel: Knowledge) -> Ruling[HardOutcome]:
    reason = "no memory of the kernel's lies here"
    nothing = Consequence.NOTHING_LOST
    if not kernel.failure.missing_page_is_ignored:
        return _exact(HardOutcome(FailureVerdict.NO_VERDICT, "", "ENXIO", nothing, nothing, reason))
    message = "non struct page pfn"
    ignored = HardOutcome(FailureVerdict.IGNORED, message, "EBUSY", nothing, nothing, reason)
    registered = HardOutcome(
        FailureVerdict.RECOVERED,
        message,
        "ok",
        Consequence.KILLED_NOW,
        Consequence.KILLED_NOW,
        "memory of a driver that registered the range: every process that maps it is signalled",
    )
    return Ruling((ignored, registered), Certainty.NOT_VISIBLE, _SOURCE)


def _kernel_owned(kind: MemoryType, kernel: Knowledge) -> HardOutcome:
    harmless = kind in _HARMLESS_TO_READ
    return HardOutcome(
        FailureVerdict.IGNORED,
        kernel.failure.unhandlable_message,
        "EBUSY",
        Consequence.UNHANDLED,
        Consequence.NOTHING_LOST if harmless else Consequence.MACHINE_LOST,
        "neither on an LRU list nor free: the kernel cannot take it away from its owner",
    )


_KSM_6_1 = HardOutcome(
    FailureVerdict.IGNORED,
    "unmapping failed page",
    "EBUSY",
    Consequence.UNHANDLED,
    Consequence.KILLED_ON_TOUCH,
    "this kernel cannot unmap merged pages: they stay mapped and readable",
)


def _device(kind: MemoryType) -> Ruling[HardOutcome]:
    if kind in (T.DEVICE_PRIVATE, T.DEVICE_COHERENT):
        return _inferred(
            HardOutcome(
                FailureVerdict.FAILED,
                "dax page",
                "ENXIO",
                Consequence.UNHANDLED,
                Consequence.UNHANDLED,
                "device memory: its driver has to handle it",
            )
        )
    return _inferred(
        HardOutcome(
            FailureVerdict.RECOVERED,
            "dax page",
            "ok",
            Consequence.KILLED_NOW,
            Consequence.KILLED_NOW,
            "DAX: every process that maps it is signalled at once",
        )
    )


def _hugetlb(subject: Subject, kernel: Knowledge) -> Ruling[HardOutcome]:
    if _is_in_pool(subject):
        recovered = HardOutcome(
            FailureVerdict.RECOVERED,
            "free huge page",
            "ok",
            Consequence.NOTHING_LOST,
            Consequence.NOTHING_LOST,
            "free in its pool: dissolved, and only the bad frame is lost",
        )
        stuck = HardOutcome(
            FailureVerdict.FAILED,
            "free huge page",
            "EBUSY",
            Consequence.UNHANDLED,
            Consequence.NOTHING_LOST,
            "every free huge page is reserved: it cannot be dissolved",
        )
        if kernel.hugetlb_reserved == 0:
            return _exact(recovered)
        return Ruling((recovered, stuck), Certainty.INFERRED, _SOURCE)
    recovered = HardOutcome(
        FailureVerdict.RECOVERED,
        "huge page",
        "ok",
        _killed(subject, kernel),
        _killed(subject, kernel),
        "the whole huge page is unmapped; its processes lose all of it",
    )
    held = HardOutcome(
        FailureVerdict.FAILED,
        "huge page",
        "EBUSY",
        _killed(subject, kernel),
        _killed(subject, kernel),
        "still referenced after it was unmapped",
    )
    return _by_references(subject, recovered, held)


def _cannot_be_dropped(subject: Subject, kernel: Knowledge) -> Ruling[HardOutcome]:
    return Ruling(
        (
            HardOutcome(
                FailureVerdict.FAILED,
                "dirty unevictable LRU page",
                "EBUSY",
                _killed(subject, kernel),
                _killed(subject, kernel),
                "unmapped, and its mapping cannot drop the page",
            ),
        ),
        Certainty.EXACT if subject.kind is T.SECRETMEM else Certainty.INFERRED,
        _SOURCE,
    )


def _lru(subject: Subject, kernel: Knowledge) -> Ruling[HardOutcome]:
    """Memory of processes: taken off its LRU list, unmapped, and dropped if that is possible."""
    whole = [*_once_unmapped(subject, kernel)]
    if subject.is_large:
        # Only a folio that nobody else holds can be split into single frames.
        unsplit = _unsplit(subject, kernel)
        blocked = _split_is_blocked(subject)
        if blocked:
            return _exact(unsplit)
        if blocked is None:
            whole.append(unsplit)
    return Ruling(
        tuple(dict.fromkeys(whole)),
        Certainty.EXACT if len(whole) == 1 else Certainty.NOT_VISIBLE,
        _SOURCE,
    )


def _split_is_blocked(subject: Subject) -> bool | None:
    """Whether a large folio cannot be split; None where that is not visible.

    A dirty file folio with buffers keeps them (seen with ext4 on 7.2: mm/huge_memory.c fails
    in filemap_release_folio).
    """
    if subject.extra_references:
        return True
    if subject.kind is T.FILE and subject.has(KPF.PRIVATE):
        if subject.has(KPF.DIRTY) or subject.has(KPF.WRITEBACK):
            return True
        # Clean buffers that nobody holds are taken off.
        return None if _buffers_are_open(subject) or subject.extra_references is None else False
    if subject.has(KPF.WRITEBACK):
        return True
    return None if subject.extra_references is None else False


def _unsplit(subject: Subject, kernel: Knowledge) -> HardOutcome:
    failed = kernel.failure.unsplit_is_failed
    return HardOutcome(
        FailureVerdict.FAILED if failed else FailureVerdict.IGNORED,
        "unsplit thp",
        "EHWPOISON" if failed else "EBUSY",
        Consequence.UNHANDLED,
        _killed(subject, kernel) if subject.has(KPF.MMAP) else Consequence.CONTENT_LOST,
        "a large folio that somebody holds cannot be split; it stays mapped",
    )


def _once_unmapped(subject: Subject, kernel: Knowledge) -> list[HardOutcome]:
    """What happens to a single frame, by the state table of memory_failure()."""
    kind, dirty = subject.kind, subject.has(KPF.DIRTY)
    mapped = subject.has(KPF.MMAP)
    if kind is T.SWAP_CACHE:
        clean = HardOutcome(
            FailureVerdict.RECOVERED,
            "clean swapcache page",
            "ok",
            Consequence.NOTHING_LOST,
            Consequence.NOTHING_LOST,
            "dropped: the same content lies in the swap area",
        )
        late = HardOutcome(
            FailureVerdict.DELAYED,
            "dirty swapcache page",
            "ok",
            Consequence.KILLED_ON_TOUCH,
            Consequence.KILLED_ON_TOUCH,
            "kept in the swap cache until somebody needs it, who then gets SIGBUS",
        )
        # The processor may have marked a mapping dirty; unmapping then dirties the page.
        usual = [late] if dirty else [clean, late] if mapped else [clean]
        held = [_still_held(out.message) for out in usual]
        if subject.extra_references is None:
            return [*usual, *held]
        return held if subject.extra_references else usual
    lost = _killed(subject, kernel)
    if kind in (T.ANON, T.KSM):
        # A process's page is dirty as soon as it was written; a lazily freed one need not be.
        reason = "unmapped, and its processes lose the content"
        state = "clean" if not subject.has(KPF.SWAPBACKED) or not mapped else "dirty"
        return [
            HardOutcome(
                FailureVerdict.RECOVERED, f"{state} LRU page", "ok", lost, lost, reason
            )
        ]  # fmt: skip
    return _cache(subject, kernel, lost)


def _cache(subject: Subject, kernel: Knowledge, lost: Consequence) -> list[HardOutcome]:
    """Page cache of a file system or of shmem."""
    dirty = subject.has(KPF.DIRTY)
    is_shmem = subject.kind is T.SHMEM
    place = "unevictable " if subject.has(KPF.UNEVICTABLE) and not subject.has(KPF.MLOCKED) else ""
    message = f"{'dirty' if dirty or is_shmem else 'clean'} {place}LRU page"
    if is_shmem:
        reason = "unmapped; the bad page stays in the file, whose readers get an error"
        gone = lost
    elif dirty:
        reason = "dropped before it was written back: what was new in it is lost"
        gone = lost
    else:
        reason = "dropped from the cache; the next reader gets it from the file again"
        gone = Consequence.NOTHING_LOST
    recovered = HardOutcome(FailureVerdict.RECOVERED, message, "ok", gone, gone, reason)
    held = _still_held(message)
    if dirty and subject.file_system in _NEVER_DROPPED_DIRTY:
        return [held]
    if subject.extra_references is None or _buffers_are_open(subject):
        return [recovered, held]
    return [held] if subject.extra_references else [recovered]


def _still_held(message: str) -> HardOutcome:
    """Unmapped and dropped, and somebody still has a reference (has_extra_refcount)."""
    return HardOutcome(
        FailureVerdict.FAILED,
        message,
        "EBUSY",
        Consequence.UNHANDLED,
        Consequence.CONTENT_LOST,
        "still referenced by somebody else: a pipe, a pin, a buffer",
    )


# --- soft --------------------------------------------------------------------------------

_MOVED = SoftOutcome("ok", "its content is moved to another frame")
_DROPPED = SoftOutcome("ok", "clean cache: dropped, and read again when needed")
_STUCK = SoftOutcome("EIO", "not a page that can be moved; no flag is set")
_DRIVER_BUSY = SoftOutcome("EBUSY", "its driver did not move it")
_DISSOLVED = SoftOutcome("ok", "free in its pool: dissolved, and only this frame is taken out")
_PROMISED = SoftOutcome("EBUSY", "every free huge page is reserved: it cannot be dissolved")


def _balloon_moves(subject: Subject, kernel: Knowledge) -> bool:
    """Whether the balloon's driver offers to move its pages, as virtio's does.

    Where the flags do not show that, a type that is certainly a balloon is one by this very
    offer (`memdesc.rules.structpage`).
    """
    return not kernel.behaviour.balloon_movable_shows_uptodate or subject.has(KPF.UPTODATE)


def _soft_movable(subject: Subject, kernel: Knowledge) -> Ruling[SoftOutcome]:
    if subject.kind is T.HUGETLB and _is_in_pool(subject):
        if kernel.hugetlb_reserved == 0:
            return _soft(_DISSOLVED)
        return Ruling((_DISSOLVED, _PROMISED), Certainty.INFERRED, _SOFT_SOURCE)
    clean_cache = subject.kind is T.FILE and not subject.has(KPF.DIRTY)
    good = _DROPPED if clean_cache and not subject.has(KPF.MMAP) else _MOVED
    held = SoftOutcome("EBUSY", "somebody else holds a reference: it cannot be moved")
    if subject.is_large and subject.kind is not T.HUGETLB:
        blocked = _split_is_blocked(subject)
        unsplit = SoftOutcome("EBUSY", "a large folio that cannot be split is not moved")
        if blocked is None:
            return Ruling((good, unsplit), Certainty.NOT_VISIBLE, _SOFT_SOURCE)
        return _soft(unsplit if blocked else good)
    if subject.extra_references is None or _buffers_are_open(subject):
        return Ruling((good, held), Certainty.NOT_VISIBLE, _SOFT_SOURCE)
    return _soft(held if subject.extra_references else good)


# --- helpers -----------------------------------------------------------------------------


def _is_in_pool(subject: Subject) -> bool:
    """Whether a huge page is free in its pool: nobody maps it, and it carries no content."""
    return not subject.has(KPF.MMAP) and not _is_file_or_anon(subject)


def _buffers_are_open(subject: Subject) -> bool:
    """Whether a page has private data of which the source does not know who holds it.

    Who uses a block of a page counts on the buffer and not on the page (fs/buffer.c).
    """
    return (
        subject.kind is T.FILE
        and subject.has(KPF.PRIVATE)
        and subject.file_system is None
        and not subject.extra_references
    )


def _is_file_or_anon(subject: Subject) -> bool:
    """Whether a huge page is in use: a free one carries no content flag."""
    return subject.has(KPF.ANON) or subject.has(KPF.UPTODATE) or subject.has(KPF.DIRTY)


def _killed(subject: Subject, kernel: Knowledge) -> Consequence:
    """What losing the content does to those who map it."""
    if not subject.has(KPF.MMAP):
        return Consequence.CONTENT_LOST
    early = kernel.sysctl("vm.memory_failure_early_kill", 0)
    return Consequence.KILLED_NOW if early else Consequence.KILLED_ON_TOUCH


def _by_references(subject: Subject, free: HardOutcome, held: HardOutcome) -> Ruling[HardOutcome]:
    if subject.extra_references is None:
        return Ruling((free, held), Certainty.NOT_VISIBLE, _SOURCE)
    return _exact(held if subject.extra_references else free)


def _exact(outcome: HardOutcome) -> Ruling[HardOutcome]:
    return Ruling((outcome,), Certainty.EXACT, _SOURCE)


def _inferred(outcome: HardOutcome) -> Ruling[HardOutcome]:
    return Ruling((outcome,), Certainty.INFERRED, _SOURCE)


def _soft(outcome: SoftOutcome) -> Ruling[SoftOutcome]:
    return Ruling((outcome,), Certainty.EXACT, _SOFT_SOURCE)

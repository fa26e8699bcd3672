"""Do the numbers add up? The ledger against /proc/meminfo, line by line.

The kernel keeps counters; the map counts frames.  Where they differ there is a reason,
and the reason is part of the answer: a per-CPU list, a mapping that is only partly there,
memory the counter was never meant to see.  Counters are read before and after the scan,
so what moved meanwhile is known and not guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.ledger import ledger as ledger_of
from memdesc.kernels.kpageflags import KPF
from memdesc.map.extents import MemoryMap, Totals
from memdesc.map.machine import Machine
from memdesc.rules.classify import Backing
from memdesc.types import PAGE_SIZE_BYTES, MemoryType, TypeSet

__all__ = ["Line", "Reconciliation", "reconcile"]

T = MemoryType
Status = Literal["agrees", "explained", "differs", "not visible"]

_DRIFT_PAGES_PER_CPU = 125
"""vmstat counters are per CPU and folded at a threshold of at most 125 frames
(mm/vmstat.c:calculate_normal_threshold @7.2)."""


@dataclass(frozen=True, slots=True)
class Line:
    """One counter beside what the ledger says. Sizes in bytes."""

    counter: str
    counter_bytes: int | None
    """The mean of the counter before and after the scan; None where it was not read."""
    moved_bytes: int
    """How far the counter moved during the scan."""
    ledger_bytes: int | None
    """What the map counts; None where its frames are not visible as a type."""
    ledger_bytes_max: int | None
    """Upper bound where honest unions may belong to the counter; else `ledger_bytes`."""
    status: Status
    explanation: str
    tolerance_bytes: int = 0
    """How far the two may lie apart and still agree: what the counter moved during the scan,
    and the drift of per-CPU counters."""

    @property
    def difference_bytes(self) -> int | None:
        """Ledger minus counter; 0 where the counter lies between the bounds."""
        if self.counter_bytes is None or self.ledger_bytes is None:
            return None
        high = self.ledger_bytes if self.ledger_bytes_max is None else self.ledger_bytes_max
        if self.counter_bytes < self.ledger_bytes:
            return self.ledger_bytes - self.counter_bytes
        return min(0, high - self.counter_bytes)

    def to_json(self) -> dict[str, Any]:
        return {
            "counter": self.counter,
            "counter_bytes": self.counter_bytes,
            "moved_bytes": self.moved_bytes,
            "ledger_bytes": self.ledger_bytes,
            "ledger_bytes_max": self.ledger_bytes_max,
            "difference_bytes": self.difference_bytes,
            "tolerance_bytes": self.tolerance_bytes,
            "status": self.status,
            "explanation": self.explanation,
        }


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Every line, in the order of /proc/meminfo."""

    lines: tuple[Line, ...]

    @property
    def differing(self) -> tuple[Line, ...]:
        """Lines that no explanation covers: the check that `memdesc ledger` exits 1 on."""
        return tuple(line for line in self.lines if line.status == "differs")

    def to_json(self) -> list[dict[str, Any]]:
        return [line.to_json() for line in self.lines]


def reconcile(source: Totals | MemoryMap) -> Reconciliation:
    """Compare the ledger of `source` with its machine's counters.

    A line agrees when the difference is within what the counter moved during the scan plus
    the drift of per-CPU counters. It is explained when the reason is known: by its nature, or
    because at least as much was allocated and freed while the map was read. Empty where the
    source has no /proc/meminfo.
    """
    book = _Book(source)
    if not book.before:
        return Reconciliation(())
    return Reconciliation(tuple(line for build in _LINES if (line := build(book)) is not None))


# --- helpers -----------------------------------------------------------------------------


class _Book:
    """Counts frames of a map by flags and types, and looks counters up."""

    def __init__(self, source: Totals | MemoryMap) -> None:
        self.map = source if isinstance(source, MemoryMap) else None
        totals = source.totals if isinstance(source, MemoryMap) else source
        self.machine = totals.machine
        self.before = self.machine.before.meminfo
        self.after = self.machine.after.meminfo or self.before
        ram = [region.backing is not Backing.HOLE for region in totals.regions.all]
        self.table = totals.table
        present = ledger_of(totals)
        self.present_bytes = present.frames_present * PAGE_SIZE_BYTES
        self.pages: NDArray[np.int64] = totals.pages[np.array(ram, np.bool_)].sum(axis=0)
        self.has_mapcounts = self.map is not None and self.map.mapcounts is not None
        self.churn_bytes = _churn_bytes(self.machine)
        self.drift_bytes = _DRIFT_PAGES_PER_CPU * self.machine.nr_cpus * PAGE_SIZE_BYTES

    def counter(self, *names: str) -> tuple[int | None, int]:
        """(mean, movement) of the sum of counters; None where one is missing."""
        if any(name not in self.before for name in names):
            return None, 0
        first = sum(self.before[name] for name in names)
        last = sum(self.after.get(name, self.before[name]) for name in names)
        return (first + last) // 2, abs(last - first)

    def vmstat_bytes(self, name: str) -> int | None:
        """A frame counter of /proc/vmstat in bytes, mean of before and after."""
        first = self.machine.before.vmstat.get(name)
        if first is None:
            return None
        last = self.machine.after.vmstat.get(name, first)
        return (first + last) // 2 * PAGE_SIZE_BYTES

    def bytes_of(
        self, *kinds: MemoryType, having: int = 0, lacking: int = 0, mapped: bool = False
    ) -> int:
        """Bytes of frames that are certainly one of `kinds`, by flags and map count."""
        chosen = self.table.within(TypeSet.of(*kinds))
        return self._sum(chosen, having, lacking, mapped)

    def bytes_maybe(self, *kinds: MemoryType, having: int = 0) -> int:
        """Bytes of frames whose honest union has one of `kinds` among others."""
        wanted = np.uint64(TypeSet.of(*kinds).mask)
        chosen = ((self.table.types & wanted) != 0) & ~self.table.within(TypeSet.of(*kinds))
        return self._sum(chosen, having, 0, False)

    def _sum(self, chosen: NDArray[np.bool_], having: int, lacking: int, mapped: bool) -> int:
        flags = self.table.flags
        if having:
            chosen = chosen & ((flags & np.uint64(having)) == np.uint64(having))
        if lacking:
            chosen = chosen & ((flags & np.uint64(lacking)) == 0)
        if mapped and self.map is not None and self.map.mapcounts is not None:
            rows = chosen[self.map.facts] & (self.map.mapcounts > 0)
            return int(self.map.nr_pages[rows].sum()) * PAGE_SIZE_BYTES
        if mapped:
            chosen = chosen & ((flags & np.uint64(KPF.MMAP)) != 0)
        return int(self.pages[: chosen.size][chosen].sum()) * PAGE_SIZE_BYTES

    def line(
        self,
        counter: str | tuple[str, ...],
        ledger: int | None,
        explanation: str,
        *,
        most: int | None = None,
        slack: int = 0,
        explained: bool = False,
        drifts: bool = True,
    ) -> Line | None:
        """Build a line; None where this kernel has no such counter."""
        names = (counter,) if isinstance(counter, str) else counter
        value, moved = self.counter(*names)
        if value is None:
            return None
        title = " + ".join(names)
        if ledger is None:
            return Line(title, value, moved, None, None, "not visible", explanation)
        high = ledger if most is None else max(most, ledger)
        tolerance = moved + slack + (self.drift_bytes if drifts else 0)
        line = Line(title, value, moved, ledger, high, "agrees", explanation, tolerance)
        difference = abs(line.difference_bytes or 0)
        if difference <= tolerance:
            return line
        if not explained and difference <= tolerance + self.churn_bytes:
            explained = True
            explanation += (
                f"; {_mib(self.churn_bytes)} were allocated or freed while the map was read"
            )
        status: Status = "explained" if explained else "differs"
        return dataclasses.replace(line, status=status, explanation=explanation)


def _present(book: _Book) -> Line | None:
    """The ledger's own sum against the zones: no counter drifts here, so it must be equal."""
    present = book.machine.frames_present
    if present is None:
        return None
    return _judged(
        "present (zoneinfo)",
        present * PAGE_SIZE_BYTES,
        book.present_bytes,
        "frames that System RAM backs, against the present pages of all zones",
        tolerance=0,
    )


def _mem_total(book: _Book) -> Line | None:
    managed = sum(zone.managed for zone in book.machine.zones) * PAGE_SIZE_BYTES
    value, _moved = book.counter("MemTotal")
    if value is None or not managed:
        return None
    deferred = book.bytes_of(T.DEFERRED)
    return _judged(
        "MemTotal",
        value,
        managed,
        "managed pages of all zones: present ones without what was reserved at boot (kernel "
        "image, memmap, firmware)"
        + ("; uninitialised frames are in MemTotal and not yet managed" if deferred else ""),
        tolerance=book.drift_bytes,
        most=managed + deferred,
    )


def _mem_free(book: _Book) -> Line | None:
    free = book.bytes_of(T.FREE)
    deferred = book.bytes_of(T.DEFERRED)
    if not deferred:
        return book.line(
            "MemFree",
            free,
            "frames in the buddy lists; free frames on per-CPU lists are in neither, and memory "
            "not accepted yet is in the counter only",
            most=free + (book.counter("Unaccepted")[0] or 0),
        )
    total, _moved = book.counter("MemFree")
    buddy = book.vmstat_bytes("nr_free_pages")
    if total is None or buddy is None:
        return book.line("MemFree", free, "buddy lists", most=free + deferred)
    counted = min(deferred, max(0, total - buddy))
    kept = deferred - counted
    return book.line(
        "MemFree",
        free + counted,
        f"buddy lists {_mib(free)}, and {_mib(counted)} whose struct pages are not initialised "
        f"yet (MemFree minus nr_free_pages); {_mib(kept)} of the uninitialised frames are boot "
        "reservations and not free",
    )


def _cached(book: _Book) -> Line | None:
    swap = ("SwapCached",) if "SwapCached" in book.before else ()
    low = book.bytes_of(T.FILE, T.SHMEM, T.SWAP_CACHE, T.SECRETMEM, T.GUEST_MEMFD)
    return book.line(
        ("Buffers", "Cached", *swap),
        low,
        "page cache of files, block devices and shmem, and the swap cache; frames that may be "
        "page cache not yet on the LRU widen the bound",
        most=low + book.bytes_maybe(T.FILE),
    )


def _anon(book: _Book) -> Line | None:
    swapped = book.bytes_of(T.SWAP_CACHE, having=KPF.ANON | KPF.MMAP, mapped=True)
    return book.line(
        "AnonPages",
        book.bytes_of(T.ANON, T.KSM, having=KPF.MMAP, mapped=True) + swapped,
        "anonymous memory that is mapped, KSM and its swap cache"
        + ("" if book.has_mapcounts else f"; {_WHOLE_FOLIOS}"),
        slack=0 if book.has_mapcounts else _slack(book, "AnonPages", 0.02),
    )


_WHOLE_FOLIOS = "without map counts a folio counts whole when any part of it is mapped"


def _mapped(book: _Book) -> Line | None:
    kinds = (T.FILE, T.SHMEM, T.RESERVED, T.SECRETMEM, T.GUEST_MEMFD)
    low = book.bytes_of(*kinds, mapped=True)
    high = low + book.bytes_maybe(T.DRIVER_MAPPED, T.FILE, having=KPF.MMAP)
    if book.has_mapcounts:
        text = "file, shmem, vdso and driver frames with a map count above 0"
        return book.line("Mapped", low, text, most=high)
    # Folios that are only partly mapped make this an upper bound.
    return book.line(
        "Mapped", 0, f"file, shmem, vdso and driver frames; {_WHOLE_FOLIOS}", most=high
    )


def _shmem(book: _Book) -> Line | None:
    return book.line(
        "Shmem",
        book.bytes_of(T.SHMEM),
        "tmpfs, memfd, shared anonymous and SysV memory",
        most=book.bytes_of(T.SHMEM) + book.bytes_of(T.SWAP_CACHE, lacking=KPF.ANON),
    )


def _slab(book: _Book) -> Line | None:
    slab = book.bytes_of(T.SLAB)
    compound = int(
        book.pages[: len(book.table)][
            (book.table.types & np.uint64(T.LARGE_KMALLOC.bit)) != 0
        ].sum()
    )
    return book.line(
        "Slab",
        slab,
        "the counter adds large kmalloc, which looks like any kernel compound page; "
        f"its frames are among {_mib(compound * PAGE_SIZE_BYTES)} of those",
        most=slab + compound * PAGE_SIZE_BYTES,
    )


def _page_tables(book: _Book) -> Line | None:
    return book.line(
        "PageTables",
        book.bytes_of(T.PAGE_TABLE),
        "page tables that a constructor marked, which are the ones the kernel counts",
        slack=_slack(book, "PageTables", 0.02),
    )


def _unmarked(name: str, what: str) -> Callable[[_Book], Line | None]:
    def build(book: _Book) -> Line | None:
        return book.line(
            name, None, f"{what}: no flag marks it; its frames are in the kernel's unmarked part"
        )

    return build


def _hugetlb(book: _Book) -> Line | None:
    low = book.bytes_of(T.HUGETLB)
    return book.line(
        "Hugetlb",
        low,
        "hugetlb pools of every size; of a poisoned huge page every frame shows the mark",
        most=low + book.bytes_maybe(T.HUGETLB),
        drifts=False,
    )


def _poisoned(book: _Book) -> Line | None:
    low = book.bytes_of(T.POISONED)
    value, _moved = book.counter("HardwareCorrupted")
    return book.line(
        "HardwareCorrupted",
        low,
        "frames with a recorded memory error; the counter keeps errors whose frame was unplugged "
        "or whose mark was lost",
        most=low + book.bytes_maybe(T.POISONED),
        explained=value is not None and value > low,
        drifts=False,
    )


def _mlocked(book: _Book) -> Line | None:
    mask = (book.table.flags & np.uint64(KPF.MLOCKED)) != 0
    frames = int(book.pages[: mask.size][mask].sum())
    return book.line(
        "Mlocked",
        frames * PAGE_SIZE_BYTES,
        "frames with MLOCKED; on kernels before 6.10 tails do not show it",
        slack=_slack(book, "Mlocked", 0.02),
        explained=book.machine.behaviour.tails_show_own_flags,
    )


def _kernel_rest(book: _Book) -> Line | None:
    """Kernel memory that only counters know, against the frames that nothing marks."""
    names = tuple(n for n in ("VmallocUsed", "Percpu") if n in book.before)
    if not names:
        return None
    wanted = TypeSet.of(T.VMALLOC).mask
    mask = (book.table.types & np.uint64(wanted)) != 0
    unmarked = int(book.pages[: mask.size][mask].sum()) * PAGE_SIZE_BYTES
    pcp = sum(zone.pcp for zone in book.machine.zones) * PAGE_SIZE_BYTES
    return book.line(
        names,
        0,
        f"vmalloc (kernel stacks as well) and per-CPU memory lie in the unmarked frames, with "
        f"per-CPU free lists ({_mib(pcp)} by zoneinfo), drivers and the network",
        most=unmarked,
    )


_LINES: tuple[Callable[[_Book], Line | None], ...] = (
    _present,
    _mem_total,
    _mem_free,
    _cached,
    _anon,
    _mapped,
    _shmem,
    _slab,
    _page_tables,
    _unmarked("SecPageTables", "page tables of virtual machines and IOMMUs"),
    _unmarked("KernelStack", "kernel stacks are vmalloc memory"),
    _kernel_rest,
    _hugetlb,
    _mlocked,
    _poisoned,
)


def _judged(
    title: str,
    counter: int,
    ledger: int,
    explanation: str,
    *,
    tolerance: int,
    most: int | None = None,
) -> Line:
    """A line whose tolerance is given: it agrees within that, or differs."""
    line = Line(title, counter, 0, ledger, most or ledger, "agrees", explanation, tolerance)
    if abs(line.difference_bytes or 0) > tolerance:
        return dataclasses.replace(line, status="differs")
    return line


def _churn_bytes(machine: Machine) -> int:
    """Bytes that the page allocator handed out or took back during the scan, the larger."""
    before, after = machine.before.vmstat, machine.after.vmstat
    allocated = sum(
        after.get(name, count) - count
        for name, count in before.items()
        if name.startswith("pgalloc_")
    )
    freed = after.get("pgfree", 0) - before.get("pgfree", 0) if after else 0
    return max(allocated, freed, 0) * PAGE_SIZE_BYTES


def _slack(book: _Book, name: str, share: float) -> int:
    value, _moved = book.counter(name)
    return int((value or 0) * share)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"

"""Do the numbers add up? The ledger against /proc/meminfo, line by line.

The kernel keeps counters; the map counts frames.  Where they differ there is a reason,
and the reason is part of the answer: a per-CPU list, a mapping that is only partly there,
memory the counter was never meant to see.  Counters are read before and after the scan,
so what moved meanwhile is known and not guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from memdesc.answers.counting import Book, Line, judged
from memdesc.answers.words import size
from memdesc.kernels.kpageflags import KPF
from memdesc.map.extents import MemoryMap, Totals
from memdesc.types import PAGE_SIZE_BYTES, MemoryType

__all__ = ["Line", "Reconciliation", "reconcile"]

T = MemoryType


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
    book = Book(source)
    if not book.before:
        return Reconciliation(())
    return Reconciliation(tuple(line for build in _LINES if (line := build(book)) is not None))


# --- helpers -----------------------------------------------------------------------------


def _present(book: Book) -> Line | None:
    """The ledger's own sum against the zones: no counter drifts here, so it must be equal."""
    present = book.machine.frames_present
    if present is None:
        return None
    return judged(
        "present (zoneinfo)",
        present * PAGE_SIZE_BYTES,
        book.present_bytes,
        "frames that System RAM backs, against the present pages of all zones",
        tolerance=0,
    )


def _mem_total(book: Book) -> Line | None:
    managed = sum(zone.managed for zone in book.machine.zones) * PAGE_SIZE_BYTES
    value, _moved = book.counter("MemTotal")
    if value is None or not managed:
        return None
    deferred = book.bytes_of(T.DEFERRED)
    return judged(
        "MemTotal",
        value,
        managed,
        "managed pages of all zones: present ones without what was reserved at boot (kernel "
        "image, memmap, firmware)"
        + ("; uninitialised frames are in MemTotal and not yet managed" if deferred else ""),
        tolerance=book.drift_bytes,
        most=managed + deferred,
    )


def _mem_free(book: Book) -> Line | None:
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
        f"buddy lists {size(free)}, and {size(counted)} whose struct pages are not initialised "
        f"yet (MemFree minus nr_free_pages); {size(kept)} of the uninitialised frames are boot "
        "reservations and not free",
    )


def _cached(book: Book) -> Line | None:
    swap = ("SwapCached",) if "SwapCached" in book.before else ()
    low = book.bytes_of(T.FILE, T.SHMEM, T.SWAP_CACHE, T.SECRETMEM, T.GUEST_MEMFD)
    return book.line(
        ("Buffers", "Cached", *swap),
        low,
        "page cache of files, block devices and shmem, and the swap cache; frames that may be "
        "page cache not yet on the LRU widen the bound",
        most=low + book.bytes_maybe(T.FILE),
    )


def _anon(book: Book) -> Line | None:
    swapped = book.bytes_of(T.SWAP_CACHE, having=KPF.ANON | KPF.MMAP, mapped=True)
    return book.line(
        "AnonPages",
        book.bytes_of(T.ANON, T.KSM, having=KPF.MMAP, mapped=True) + swapped,
        "anonymous memory that is mapped, KSM and its swap cache"
        + ("" if book.has_mapcounts else f"; {_WHOLE_FOLIOS}"),
        slack=0 if book.has_mapcounts else book.share_of("AnonPages", 0.02),
    )


_WHOLE_FOLIOS = "without map counts a folio counts whole when any part of it is mapped"


def _mapped(book: Book) -> Line | None:
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


def _shmem(book: Book) -> Line | None:
    return book.line(
        "Shmem",
        book.bytes_of(T.SHMEM),
        "tmpfs, memfd, shared anonymous and SysV memory",
        most=book.bytes_of(T.SHMEM) + book.bytes_of(T.SWAP_CACHE, lacking=KPF.ANON),
    )


def _slab(book: Book) -> Line | None:
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
        f"its frames are among {size(compound * PAGE_SIZE_BYTES)} of those",
        most=slab + compound * PAGE_SIZE_BYTES,
    )


def _page_tables(book: Book) -> Line | None:
    # A dump names the tables of every level; what no constructor marked is not in the counter.
    return book.line(
        "PageTables",
        book.bytes_of(T.PAGE_TABLE, having=KPF.PGTABLE),
        "page tables that a constructor marked, which are the ones the kernel counts",
        slack=book.share_of("PageTables", 0.02),
        most=book.bytes_of(T.PAGE_TABLE),
    )


def _unmarked(name: str, what: str) -> Callable[[Book], Line | None]:
    def build(book: Book) -> Line | None:
        return book.line(
            name, None, f"{what}: no flag marks it; its frames are in the kernel's unmarked part"
        )

    return build


def _hugetlb(book: Book) -> Line | None:
    low = book.bytes_of(T.HUGETLB)
    return book.line(
        "Hugetlb",
        low,
        "hugetlb pools of every size; of a poisoned huge page every frame shows the mark",
        most=low + book.bytes_maybe(T.HUGETLB),
        drifts=False,
    )


def _poisoned(book: Book) -> Line | None:
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


def _mlocked(book: Book) -> Line | None:
    mask = (book.table.flags & np.uint64(KPF.MLOCKED)) != 0
    frames = int(book.pages[: mask.size][mask].sum())
    return book.line(
        "Mlocked",
        frames * PAGE_SIZE_BYTES,
        "frames with MLOCKED; on kernels before 6.10 tails do not show it",
        slack=book.share_of("Mlocked", 0.02),
        explained=book.machine.behaviour.tails_show_own_flags,
    )


def _kernel_stack(book: Book) -> Line | None:
    """Stacks of tasks, where struct pages tell them."""
    if "KernelStack" not in book.before:
        return None
    certain, possible = _between(book, T.KERNEL_STACK)
    if not certain:
        return _unmarked("KernelStack", "kernel stacks are vmalloc memory")(book)
    return book.line(
        ("KernelStack",),
        certain,
        "the counter leaves out stacks that are kept for the next fork, and those of the boot "
        "processors' idle tasks count as reserved",
        most=possible,
    )


def _vmalloc(book: Book) -> Line | None:
    """vmalloc memory: exact from struct pages, among the unmarked frames from /proc."""
    if "VmallocUsed" not in book.before:
        return None
    certain, possible = _between(book, T.VMALLOC, T.KERNEL_STACK)
    pcp = sum(zone.pcp for zone in book.machine.zones) * PAGE_SIZE_BYTES
    return book.line(
        ("VmallocUsed",),
        certain,
        "vmalloc, kernel stacks among it; from /proc it lies in the unmarked frames, with "
        f"per-CPU free lists ({size(pcp)} by zoneinfo), drivers and the network",
        most=possible,
    )


def _percpu(book: Book) -> Line | None:
    """Per-CPU memory, whose first chunk is boot memory."""
    if "Percpu" not in book.before:
        return None
    certain, possible = _between(book, T.PERCPU)
    reserved, _ = _between(book, T.RESERVED)
    return book.line(
        ("Percpu",),
        certain,
        "the first chunk of per-CPU memory is boot memory and counts as reserved; from /proc "
        "the others lie in the unmarked frames",
        most=possible + reserved,
    )


def _between(book: Book, *kinds: MemoryType) -> tuple[int, int]:
    """Bytes of frames that certainly are one of `kinds`, and of those that can be."""
    certain = book.bytes_of(*kinds)
    return certain, certain + book.bytes_maybe(*kinds)


_LINES: tuple[Callable[[Book], Line | None], ...] = (
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
    _kernel_stack,
    _vmalloc,
    _percpu,
    _hugetlb,
    _mlocked,
    _poisoned,
)

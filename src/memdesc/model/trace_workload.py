"""A real trace as a workload: what its allocations would have cost under each design.

`memdesc.model.compare` runs rows that name a kind of memory, an order and a handle.  A trace
knows requests and addresses; the kind comes from the gfp flags that each kind of caller passes:

    __GFP_MOVABLE                                   folios: file with __GFP_WRITE, else anon
    __GFP_ACCOUNT, __GFP_ZERO, __GFP_COMP, order 0  page tables (GFP_PGTABLE_USER)
    __GFP_NOWARN, __GFP_NORETRY, __GFP_COMP         slabs: left out, the model makes its own
    everything else                                 a driver's, or bare pages

Only what the trace sees allocated is in it; frees of what was there before are left out.

Sources: `mm/slub.c:allocate_slab`, `include/linux/gfp_types.h`, `include/asm-generic/pgalloc.h`
@6.12.
"""

from __future__ import annotations

from typing import Final

from memdesc.kernels.allocator import MAX_ORDER
from memdesc.kernels.gfp import GFP
from memdesc.model.described import KIND_CODES
from memdesc.model.operations import ALLOC, FREE, KMEM_ALLOC, KMEM_FREE
from memdesc.model.workloads import CacheWish, Row, Workload
from memdesc.traces.events import Event, Trace
from memdesc.types import MemoryType

__all__ = ["kind_of", "trace_workload"]

_LARGEST_KMALLOC: Final = 8192
"""Above, kmalloc goes to the page allocator, which has its own event
(`include/linux/slab.h:KMALLOC_MAX_CACHE_SIZE` @6.12)."""
_SLAB: Final = GFP.NOWARN | GFP.NORETRY | GFP.COMP
_TABLE: Final = GFP.ACCOUNT | GFP.ZERO | GFP.COMP
_EVENTS: Final = (
    Event.PAGE_ALLOC, Event.PAGE_FREE, Event.KMALLOC, Event.KFREE, Event.CACHE_ALLOC,
    Event.CACHE_FREE,
)  # fmt: skip


def trace_workload(trace: Trace) -> Workload:
    """The pages and objects of a trace as rows for `memdesc.model.compare.compare`."""
    writer = _Writer(_cache_names(trace), trace.texts)
    rows = trace.of(*_EVENTS)
    columns = (
        trace.columns[name][rows].tolist()
        for name in (
            "event", "cpu", "pfn", "order", "gfp_flags", "ptr", "bytes_req", "bytes_alloc", "text",
        )
    )  # fmt: skip
    for event, cpu, pfn, order, gfp, ptr, wanted, given, text in zip(*columns, strict=True):
        if event == Event.PAGE_ALLOC:
            writer.page(pfn, order, gfp, cpu)
        elif event == Event.PAGE_FREE:
            writer.free_page(pfn, order, cpu)
        elif event == Event.KMALLOC:
            if ptr and given <= _LARGEST_KMALLOC:
                writer.object(ptr, f"kmalloc-{given}", given, cpu)
        elif event == Event.CACHE_ALLOC:
            if ptr:
                writer.object(ptr, writer.name_at(ptr, wanted, text), wanted, cpu)
        else:
            writer.free_object(ptr, cpu)
    return Workload("trace", "a recorded trace", writer.rows, writer.handles, tuple(writer.caches))


def kind_of(gfp: int, order: int) -> MemoryType | None:
    """What a request is for, by its flags; None for a slab."""
    if gfp & GFP.MOVABLE:
        return MemoryType.FILE if gfp & GFP.WRITE else MemoryType.ANON
    if gfp & _SLAB == _SLAB:
        return None
    if not order and gfp & _TABLE == _TABLE and not gfp & GFP.ZONE_HIGHMEM:
        return MemoryType.PAGE_TABLE
    return MemoryType.DRIVER


# --- helpers -----------------------------------------------------------------------------


def _cache_names(trace: Trace) -> dict[tuple[int, int], str]:
    """(address, size asked for) -> name of the cache, where a free tells of it.

    kmem_cache_alloc has no name before 7.2.
    """
    sizes: dict[int, int] = {}
    found: dict[tuple[int, int], str] = {}
    rows = trace.of(Event.CACHE_ALLOC, Event.CACHE_FREE)
    columns = (trace.columns[name][rows].tolist() for name in ("event", "ptr", "bytes_req", "text"))
    for event, ptr, size, text in zip(*columns, strict=True):
        if event == Event.CACHE_ALLOC:
            sizes[ptr] = size
        elif ptr in sizes:
            found[ptr, sizes.pop(ptr)] = trace.texts[text]
    return found


class _Writer:
    def __init__(self, names: dict[tuple[int, int], str], texts: tuple[str, ...]) -> None:
        self.rows: list[Row] = []
        self.handles = 0
        self.caches: list[CacheWish] = []
        self._names, self._texts = names, texts
        self._numbers: dict[str, int] = {}
        self._pages: dict[int, int] = {}
        """Frame -> handle of the block that holds it."""
        self._left: dict[int, int] = {}
        """Handle -> frames of it that are not freed yet."""
        self._objects: dict[int, int] = {}

    def page(self, pfn: int, order: int, gfp: int, cpu: int) -> None:
        kind = kind_of(gfp, order)
        if pfn < 0 or order > MAX_ORDER or kind is None:
            return
        handle = self._handle()
        self.rows.append((ALLOC, KIND_CODES[kind], order, cpu, handle, 0))
        for each in range(pfn, pfn + (1 << order)):
            self._pages[each] = handle
        self._left[handle] = 1 << order

    def free_page(self, pfn: int, order: int, cpu: int) -> None:
        """A block may be freed piece by piece, after it was split: it goes with the last one."""
        for each in range(pfn, pfn + (1 << min(order, MAX_ORDER))):
            if each not in self._pages:
                continue
            handle = self._pages.pop(each)
            self._left[handle] -= 1
            if not self._left[handle]:
                self.rows.append((FREE, 0, 0, cpu, handle, 0))

    def object(self, ptr: int, name: str, size: int, cpu: int) -> None:
        handle = self._handle()
        self.rows.append((KMEM_ALLOC, self._cache(name, size), 0, cpu, handle, 0))
        self._objects[ptr] = handle

    def free_object(self, ptr: int, cpu: int) -> None:
        handle = self._objects.pop(ptr, None)
        if handle is not None:
            self.rows.append((KMEM_FREE, 0, 0, cpu, handle, 0))

    def name_at(self, ptr: int, size: int, text: int) -> str:
        return self._texts[text] or self._names.get((ptr, size), f"size-{size}")

    def _cache(self, name: str, size: int) -> int:
        """The number of a cache; the same name with another size is another one."""
        key = f"{name}:{size}"
        if key not in self._numbers:
            self._numbers[key] = len(self.caches)
            taken = {wish.name for wish in self.caches}
            self.caches.append(CacheWish(name if name not in taken else key, max(8, size)))
        return self._numbers[key]

    def _handle(self) -> int:
        self.handles += 1
        return self.handles - 1

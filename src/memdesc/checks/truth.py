"""What every frame of a dump really is: the map that the others are judged by.

The struct pages and the walks of a dump name nearly every frame alone (`DumpSource`).  What
they leave open is settled here where the kernel's own books prove it:

    a kind that a counter finds all of among the frames already named is none of the others
    (pages of zsmalloc, large kmalloc);
    a kind that nothing in the machine could have made is absent (no RAM disk without its
    driver, no network buffer in a process that never mapped a TCP socket);
    a frame that a waiting packet leads to belongs to it.

What no book settles stays open and is shown as such, with the reason (`Truth.open_rows`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.checks.refine import named, narrowed
from memdesc.errors import FaultError, LayoutError
from memdesc.map.extents import MemoryMap
from memdesc.sources.structs import DumpSource
from memdesc.structs.kernel import Kernel
from memdesc.structs.torn import Torn
from memdesc.structs.vmas import maple_entries
from memdesc.structs.walk.freelists import zones_in
from memdesc.structs.walk.packets import packet_frames
from memdesc.structs.walk.tasks import find_tasks
from memdesc.structs.walk.view import View
from memdesc.types import KERNEL_COMPOUND, KERNEL_MAPPED, MemoryType, TypeSet

__all__ = ["OpenRow", "Proof", "Truth", "truth_of"]

T = MemoryType

_MOST_MODULES = 1 << 12


@dataclass(frozen=True, slots=True)
class Proof:
    """Something that the kernel's books settled."""

    kinds: TypeSet
    """What was settled: these are, or are not, among the frames that were open."""
    frames: int
    """How many frames it made narrower."""
    text: str


@dataclass(frozen=True, slots=True)
class OpenRow:
    """Frames whose truth is still several types."""

    types: TypeSet
    frames: int
    why: str


@dataclass(frozen=True)
class Truth:
    """The exact map, and how it became exact."""

    map: MemoryMap
    """With owners."""
    proofs: tuple[Proof, ...]

    @property
    def frames_open(self) -> int:
        """Frames with more than one type left."""
        return sum(row.frames for row in self.open_rows())

    def open_rows(self) -> list[OpenRow]:
        """What is open, most frames first, with the reason of the rule that left it so."""
        table = self.map.table
        pages = np.bincount(self.map.facts, self.map.nr_pages, len(table)).astype(np.int64)
        found: dict[tuple[int, str], int] = {}
        for code in np.flatnonzero(pages).tolist():
            fact = table[code]
            if not fact.types.is_certain:
                key = fact.types.mask, fact.rule.text
                found[key] = found.get(key, 0) + int(pages[code])
        rows = [OpenRow(TypeSet(mask), frames, why) for (mask, why), frames in found.items()]
        return sorted(rows, key=lambda row: (-row.frames, row.types.mask))


def truth_of(source: DumpSource) -> Truth:
    """The exact map of a dump. Raises what reading it raises."""
    books = _Books(source)
    result = source.map(owners=True)
    proofs: list[Proof] = []
    for settle in (_zsmalloc, _ram_disk, _mapped, _packets, _large_kmalloc):
        before = result
        try:
            result, text, kinds = settle(books, before)
        except (FaultError, LayoutError):
            continue  # Nothing is proved by books that cannot be read.
        if text and (frames := _changed(before, result)):
            proofs.append(Proof(kinds, frames, text))
    return Truth(result, tuple(proofs))


# --- the books ---------------------------------------------------------------------------

_Settled = tuple[MemoryMap, str, TypeSet]


class _Books:
    """What the proofs ask of one dump, read when it is asked for."""

    def __init__(self, source: DumpSource) -> None:
        self.source = source
        self.kernel: Kernel = source.kernel

    def counter(self, enum: str, name: str) -> int | None:
        """A counter of pages with what waits on the CPUs to be added (`vm_stat_diff`), which
        /proc/vmstat leaves out; None where this kernel has none of that name."""
        items = self.kernel.types.find_enum(enum)
        if items is None or name not in items:
            return None
        index = items[name]
        symbol, struct, diff, pointers = _COUNTERS[enum]
        view = View.of(self.kernel, self.source.memmap)
        total = _signed(view.u64(view.symbol(symbol) + index * 8), 64)
        place = self.kernel.member(struct, diff).offset + index
        for pointer in pointers(view):
            for address in view.per_cpu(pointer).values():
                total += _signed(view.memory.read(address + place, 1)[0], 8)
        return total

    def modules(self) -> Iterator[str]:
        """Names of the loaded modules."""
        head = self.kernel.symbol("modules")
        for module in self.kernel.list_entries(head, "module", "list", limit=_MOST_MODULES):
            yield module.text("name")

    def vm_ops(self) -> set[int]:
        """The `vm_ops` of every mapping of every process. Raises FaultError, LayoutError."""
        found: set[int] = set()
        torn = Torn()
        place = self.kernel.member("vm_area_struct", "vm_ops").offset
        tree = self.kernel.member("mm_struct", "mm_mt").offset
        tasks = find_tasks(self.kernel, self.source.memmap).tasks
        for mm in {task.mm for task in tasks if task.mm}:
            for vma in maple_entries(self.kernel, mm + tree, torn):
                found.add(self.kernel.u64(vma + place))
        if torn.count:
            raise FaultError(f"{torn.count} broken links among the mappings of processes", 0)
        return found


def _of_nodes(view: View) -> set[int]:
    path = "per_cpu_nodestats"
    nodes = {zone.object["zone_pgdat"] for zone in zones_in(view)}
    return {view.kernel.load("pglist_data", node)[path] for node in nodes}


def _of_zones(view: View) -> set[int]:
    return {zone.object["per_cpu_zonestats"] for zone in zones_in(view)}


_COUNTERS = {
    "node_stat_item": ("vm_node_stat", "per_cpu_nodestat", "vm_node_stat_diff", _of_nodes),
    "zone_stat_item": ("vm_zone_stat", "per_cpu_zonestat", "vm_stat_diff", _of_zones),
}
"""Enum of counters -> their sums, and the struct of each CPU with what is not yet in them
(`mm/vmstat.c:__mod_node_page_state`)."""


def _zsmalloc(books: _Books, result: MemoryMap) -> _Settled:
    """Every page of zsmalloc is among those that are named, if the counter says as many."""
    kinds = TypeSet.of(T.ZSMALLOC)
    counted = books.counter("zone_stat_item", "NR_ZSPAGES")
    if counted is None or _frames_of(result, T.ZSMALLOC) != counted:
        return result, "", kinds
    text = "every page that nr_zspages counts is among those that are marked as zsmalloc's"
    return narrowed(result, kinds), text, kinds


def _ram_disk(books: _Books, result: MemoryMap) -> _Settled:
    kinds = TypeSet.of(T.RAM_DISK)
    has_driver = books.kernel.symbols.address_of("brd_devices") is not None
    if has_driver or "brd" in set(books.modules()):
        return result, "", kinds
    return narrowed(result, kinds), "the driver of RAM disks (brd) is not loaded", kinds


def _mapped(books: _Books, result: MemoryMap) -> _Settled:
    """Only a mapped TCP socket puts network buffers into a process
    (`net/ipv4/tcp.c:tcp_zerocopy_receive`)."""
    kinds = TypeSet.of(T.PAGE_FRAG, T.NET_POOL)
    operations = books.kernel.symbols.address_of("tcp_vm_ops")
    if operations is None or operations in books.vm_ops():
        return result, "", kinds
    text = "no process maps a TCP socket, so none maps a network buffer"
    return narrowed(result, kinds, within=KERNEL_MAPPED), text, kinds


def _packets(books: _Books, result: MemoryMap) -> _Settled:
    """Blocks that a packet waits in: charged to a cgroup, or cut from a page_frag cache."""
    kinds = TypeSet.of(T.PAGE_FRAG, T.ACCOUNTED)
    heads = result.pfn_starts[_certainly(result, T.SLAB)[result.facts]].astype(np.int64)
    view = View.of(books.kernel, books.source.memmap)
    pfns = packet_frames(view, _all_frames(result, heads))
    result = named(result, pfns, TypeSet.of(T.ACCOUNTED))
    result = named(result, pfns, TypeSet.of(T.PAGE_FRAG))
    return result, "a packet that waits in a socket leads to them", kinds


def _large_kmalloc(books: _Books, result: MemoryMap) -> _Settled:
    """The slab counters count large kmallocs as well (`mm/slub.c:___kmalloc_large_node`)."""
    kinds = TypeSet.of(T.LARGE_KMALLOC)
    both = [
        books.counter("node_stat_item", name)
        for name in ("NR_SLAB_RECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE_B")
    ]
    if None in both:
        return result, "", kinds
    counted = sum(count or 0 for count in both) - _frames_of(result, T.SLAB)
    known = _frames_of(result, T.LARGE_KMALLOC)
    masks = result.table.types
    maybe = (masks & np.uint64(T.LARGE_KMALLOC.bit) != 0) & (masks & (masks - np.uint64(1)) != 0)
    candidates = int(result.nr_pages[maybe[result.facts]].sum())
    if counted == known:
        text = "all that the slab counters count is slabs and large kmallocs that are marked"
        return narrowed(result, kinds), text, kinds
    if counted == known + candidates:
        text = "the slab counters count exactly these frames besides the slabs"
        others = KERNEL_COMPOUND | TypeSet.of(T.PAGE_TABLE)
        only = TypeSet(others.mask & ~kinds.mask)
        return narrowed(result, only, within=others, holding=kinds), text, kinds
    return result, "", kinds


# --- helpers -----------------------------------------------------------------------------


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _certainly(result: MemoryMap, kind: MemoryType) -> NDArray[np.bool_]:
    """bool[facts]: which facts are certainly of `kind`."""
    is_kind: NDArray[np.bool_] = result.table.types == np.uint64(kind.bit)
    return is_kind


def _frames_of(result: MemoryMap, kind: MemoryType) -> int:
    return int(result.nr_pages[_certainly(result, kind)[result.facts]].sum())


def _all_frames(result: MemoryMap, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every frame of the extents that begin at `starts`."""
    index = np.searchsorted(result.pfn_starts.astype(np.int64), starts)
    lengths = result.nr_pages[index]
    before = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + np.arange(int(lengths.sum())) - before


def _changed(before: MemoryMap, after: MemoryMap) -> int:
    """Frames whose types differ between two maps of the same frames."""
    starts = np.union1d(before.pfn_starts, after.pfn_starts).astype(np.int64)
    sizes = np.diff(starts, append=before.pfn_end)
    masks = []
    for result in (before, after):
        keys = starts.astype(result.pfn_starts.dtype)
        at = np.searchsorted(result.pfn_starts, keys, side="right") - 1
        masks.append(result.table.types[result.facts[at]])
    return int(sizes[masks[0] != masks[1]].sum())


def without_owners(result: MemoryMap) -> MemoryMap:
    """The map alone, for keeping: without owners, map counts and cgroups."""
    return dataclasses.replace(
        result, owners=None, owner_names=(), mapcounts=None, cgroups=None, references=None
    )

"""Per-CPU memory: the frames of every chunk, by CPU.

A chunk has one unit per possible CPU, at `base_addr + pcpu_unit_offsets[cpu]`; `populated`
says which pages of a unit have frames.  All chunks hang in the lists `pcpu_chunk_lists`; the
first one comes from memblock and also holds the kernel's static per-CPU variables
(`mm/percpu.c`, `mm/percpu-vm.c`).  Frames are found by the kernel's page tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import OwnedFrames
from memdesc.structs.walk.pagetables import frames_at, kernel_tables
from memdesc.structs.walk.view import View, Walked
from memdesc.types import PAGE_SIZE_BYTES, MemoryType

__all__ = ["Chunk", "chunks_in", "find_chunks", "percpu_frames", "walk_percpu"]

_MASK = (1 << 64) - 1
_MOST_SLOTS = 64
_MOST_CHUNKS = 1 << 16
_MOST_UNIT_PAGES = 1 << 18


@dataclass(frozen=True)
class Chunk:
    """One struct pcpu_chunk."""

    address: int
    base_addr: int
    populated: NDArray[np.bool_]
    """bool[nr_pages]: which pages of each unit have frames."""
    nr_populated: int
    """As the kernel counts them."""
    is_immutable: bool
    """Has no pages of its own to give or take: made of memory from boot."""


def find_chunks(kernel: Kernel, memmap: MemMap) -> tuple[list[Chunk], int]:
    """Every chunk, and the number of torn links. Raises LayoutError."""
    return chunks_in(View.of(kernel, memmap))


def walk_percpu(kernel: Kernel, memmap: MemMap) -> Walked:
    """The frames of every populated page of every possible CPU's units ("cpu 0"), with the
    chunk's address. Raises LayoutError where symbols or layouts are not known."""
    return percpu_frames(View.of(kernel, memmap))


def percpu_frames(view: View) -> Walked:
    """As `walk_percpu`, with what `view` has already read."""
    chunks, torn = chunks_in(view)
    tables = kernel_tables(view)
    offsets = _unit_offsets(view)
    addresses: list[NDArray[np.uint64]] = []
    owners: list[NDArray[np.uint64]] = []
    cpus: list[NDArray[np.uint32]] = []
    for chunk in (*chunks, *_static(view, chunks)):
        pages = np.flatnonzero(chunk.populated).astype(np.uint64) * np.uint64(PAGE_SIZE_BYTES)
        for code, offset in enumerate(offsets.values()):
            start = (chunk.base_addr + offset) & _MASK
            addresses.append(np.uint64(start) + pages)
            owners.append(np.full(pages.size, chunk.address, np.uint64))
            cpus.append(np.full(pages.size, code, np.uint32))
    places = np.concatenate([np.zeros(0, np.uint64), *addresses])
    pfns = frames_at(view, tables, places)
    is_there = pfns >= 0
    torn += int((~is_there).sum())
    found = OwnedFrames(
        MemoryType.PERCPU,
        pfns[is_there],
        np.concatenate([np.zeros(0, np.uint32), *cpus])[is_there],
        np.concatenate([np.zeros(0, np.uint64), *owners])[is_there],
        [f"cpu {cpu}" for cpu in offsets],
    )
    return Walked((found,), torn)


def chunks_in(view: View) -> tuple[list[Chunk], int]:
    """As `find_chunks`, with what `view` has already read."""
    lists = view.u64(view.symbol("pcpu_chunk_lists", "pcpu_slot"))
    nr_slots = view.find_symbol("pcpu_nr_slots")
    count = _MOST_SLOTS if nr_slots is None else min(max(view.i32(nr_slots), 0), _MOST_SLOTS)
    link = view.kernel.member("pcpu_chunk", "list").offset
    addresses: dict[int, None] = {}
    torn = 0
    for head in range(lists, lists + count * 16, 16):
        if nr_slots is None and not _is_list(view, head):
            break  # The lists end here: their number is not known.
        torn += _follow(view, head, link, addresses)
    for name in ("pcpu_reserved_chunk", "pcpu_first_chunk"):
        symbol = view.find_symbol(name)
        if symbol is not None and (chunk := view.u64(symbol)):
            addresses.setdefault(chunk)
    chunks = []
    for address in addresses:
        try:
            chunks.append(_chunk(view, address))
        except FaultError:
            torn += 1
    return chunks, torn


# --- helpers -----------------------------------------------------------------------------


def _follow(view: View, head: int, link: int, into: dict[int, None]) -> int:
    """Add the chunks of one list; returns 1 where it is torn."""
    before, at = head, 0
    try:
        at = view.u64(head)
        while at != head:
            if view.u64(at + 8) != before or len(into) > _MOST_CHUNKS:
                return 1
            into.setdefault(at - link)
            before, at = at, view.u64(at)
    except FaultError:
        return 1
    return 0


def _is_list(view: View, head: int) -> bool:
    try:
        return view.u64(view.u64(head) + 8) == head and view.u64(view.u64(head + 8)) == head
    except FaultError:
        return False


def _chunk(view: View, address: int) -> Chunk:
    chunk = view.kernel.load("pcpu_chunk", address)
    nr_pages = chunk["nr_pages"]
    if not 0 < nr_pages <= _MOST_UNIT_PAGES:
        raise FaultError(f"the per-CPU chunk at {address:#x} claims {nr_pages} pages", address)
    bitmap = view.memory.read(chunk.address_of("populated"), (nr_pages + 63) // 64 * 8)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return Chunk(
        address,
        chunk["base_addr"],
        bits[:nr_pages].astype(np.bool_),
        chunk["nr_populated"],
        bool(chunk["immutable"]),
    )


def _unit_offsets(view: View) -> dict[int, int]:
    """Possible CPU -> where its unit lies in each chunk."""
    symbol = view.find_symbol("pcpu_unit_offsets")
    if symbol is not None:
        table = view.u64(symbol)
        return {cpu: view.u64(table + cpu * 8) for cpu in view.possible_cpus()}
    # __per_cpu_offset[cpu] = pcpu_base_addr - __per_cpu_start + pcpu_unit_offsets[cpu], and the
    # lowest unit lies at the base (arch/x86/kernel/setup_percpu.c:setup_per_cpu_areas).
    offsets = view.per_cpu(0)
    return {cpu: offset - min(offsets.values()) for cpu, offset in offsets.items()}


def _static(view: View, chunks: list[Chunk]) -> list[Chunk]:
    """The kernel's static per-CPU variables: what lies before the first chunk's own pages, as
    if it were a chunk, with no address."""
    symbol = view.find_symbol("pcpu_base_addr")
    if symbol is None:
        return []
    base = view.u64(symbol)
    after = [chunk.base_addr for chunk in chunks if chunk.is_immutable and chunk.base_addr >= base]
    if not after:
        return []
    nr_pages = (min(after) - base) // PAGE_SIZE_BYTES
    return [Chunk(0, base, np.ones(min(nr_pages, _MOST_UNIT_PAGES), np.bool_), nr_pages, True)]

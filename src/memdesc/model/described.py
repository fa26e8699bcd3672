"""A machine whose memory is described by a design: every frame leads to its descriptor.

    machine = DescribedMachine(Layout.pc(1 << 30), MEMDESC_8)
    pfn = machine.alloc(MemoryType.FILE, order=2)
    machine.metadata().descriptor_bytes

The page allocator is `machine.pages`, the slab allocator `machine.slabs`.  The memory map of
the design takes its frames at boot; descriptors are objects of slab caches of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.kernels.allocator import AllocatorRules
from memdesc.kernels.gfp import GFP
from memdesc.kernels.slub import slub_rules
from memdesc.model.cache_types import Cache
from memdesc.model.compiled import array, compiled, pointers
from memdesc.model.descriptors import BUSY, references
from memdesc.model.designs import (
    BUMP,
    FOLIO_LARGE,
    FOLIO_SMALL,
    KSM,
    MEMDESC_8,
    MGDESC,
    MOVABLE,
    SLAB,
    DescriptorSpec,
    Design,
)
from memdesc.model.frame_words import read_word
from memdesc.model.machine import Machine
from memdesc.model.operations import ALLOC, FREE, GET, PUT
from memdesc.model.slab_caches import SlabAllocator
from memdesc.model.slab_frames import plain_word
from memdesc.model.slab_state import (
    FREE_WORD,
    G_DESCRIPTOR_ALLOCS,
    G_DESCRIPTOR_BYTES,
    G_DESCRIPTOR_BYTES_PEAK,
    G_DESCRIPTOR_FRAMES,
    G_DESCRIPTOR_FRAMES_PEAK,
    G_DESCRIPTOR_FREES,
    G_DESCRIPTORS,
    G_DESCRIPTORS_PEAK,
    G_FAILED_DESCRIPTORS,
    G_FAILED_PAGES,
    G_FRAME_BYTES,
    G_MEMMAP,
    G_SEPARATE,
    G_SLAB_CACHE,
    K_COUNTED,
    K_GFP,
    K_LARGE,
    K_MAPPABLE,
    K_SMALL,
    K_SUBTYPE,
    K_TAG,
    KIND_FIELDS,
    NONE,
    SlabState,
)
from memdesc.model.state import State
from memdesc.model.zones import Layout
from memdesc.plan import PLAN_TYPE, InPlan, PlanKind
from memdesc.types import PAGE_SIZE_BYTES, MemoryType, Pfn
from memdesc.word import encode_misc

__all__ = ["ALLOCATED", "KIND_CODES", "VMEMMAP", "DescribedMachine", "Metadata"]

VMEMMAP: Final = 0xFFFF_EA00_0000_0000
"""Kernel address of the memory map's first entry (without KASLR)."""

KIND_CODES: Final[Mapping[MemoryType, int]] = MappingProxyType(
    {kind: code for code, kind in enumerate(MemoryType)}
)
"""Code of each type in the model's columns."""

_T = MemoryType
ALLOCATED: Final[Mapping[MemoryType, GFP]] = MappingProxyType(
    {
        **dict.fromkeys(
            (_T.ANON, _T.FILE, _T.SHMEM, _T.SWAP_CACHE, _T.KSM, _T.HUGETLB, _T.BALLOON),
            GFP.HIGHUSER_MOVABLE,
        ),
        **dict.fromkeys((_T.ZSMALLOC, _T.MOVABLE_OPS), GFP.HIGHUSER_MOVABLE),
        **dict.fromkeys((_T.SECRETMEM, _T.GUEST_MEMFD), GFP.HIGHUSER),
        **dict.fromkeys((_T.NET_POOL, _T.PAGE_FRAG), GFP.ATOMIC | GFP.NOWARN),
        **dict.fromkeys(
            (
                *(_T.PAGE_TABLE, _T.LARGE_KMALLOC, _T.VMALLOC, _T.KERNEL_STACK, _T.PERCPU),
                *(_T.DRIVER, _T.DRIVER_MAPPED, _T.EXACT_ALLOC, _T.RAM_DISK, _T.ACCOUNTED),
                _T.HUGE_ZERO,
            ),
            GFP.KERNEL,
        ),
    }
)
"""What `alloc` can allocate, and the request it makes. Slabs come from the slab allocator."""

_COUNTED: Final = (FOLIO_SMALL, FOLIO_LARGE, KSM, BUMP, MGDESC, MOVABLE)
"""Descriptors with a reference count (Memdescs wiki); slabs and page tables have none."""
_MAPPABLE: Final = (_T.DRIVER_MAPPED,)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What describing memory takes on a machine at one moment, in bytes.

    `descriptor_bytes` are the descriptors themselves; their slabs hold `slab_bytes`, of which
    `unused_bytes` are free objects and `waste_bytes` what no object can use.
    """

    memmap_bytes: int
    descriptors: int
    descriptor_bytes: int
    slab_bytes: int
    unused_bytes: int
    waste_bytes: int

    @property
    def total_bytes(self) -> int:
        """Memory map and descriptors, each without what is left over around it."""
        return self.memmap_bytes + self.descriptor_bytes

    @property
    def taken_bytes(self) -> int:
        """Memory map and whole slabs: what nobody else can use."""
        return self.memmap_bytes + self.slab_bytes


class DescribedMachine:
    """A machine under one design. `kernel`, `cpus`, `log_rows`: as of `Machine`."""

    def __init__(
        self,
        layout: Layout,
        design: Design = MEMDESC_8,
        kernel: str | AllocatorRules = "6.12",
        cpus: int = 2,
        *,
        log_rows: int = 0,
    ) -> None:
        self.design = design
        self.pages = Machine(layout, kernel, cpus, design.bytes_per_frame, log_rows=log_rows)
        self.slabs = SlabAllocator(self.pages, slub_rules(self.pages.rules.release))
        self.descriptor_caches: dict[DescriptorSpec, Cache] = {}
        cell = array(self.slabs.state.cell)
        cell[G_MEMMAP] = VMEMMAP - (1 << 64)
        cell[G_FRAME_BYTES] = design.bytes_per_frame
        cell[G_SEPARATE] = int(design.allocates)
        if design.allocates:
            self._create_descriptor_caches()
        self._fill_kinds()
        self._write_boot_words()

    # --- operations ----------------------------------------------------------------------

    def alloc(
        self, kind: MemoryType, order: int = 0, *, cpu: int = 0, owner: int = 0
    ) -> Pfn | None:
        """Allocate and describe 2^order frames; the first one, or None without memory.

        Raises QuestionError for a type that is not allocated this way, such as slabs.
        """
        if kind not in ALLOCATED:
            raise QuestionError(
                f"{kind.value} memory is not allocated by itself",
                hint="slabs come from machine.slabs; others: "
                + ", ".join(each.value for each in ALLOCATED),
            )
        if not 0 <= order <= self.pages.rules.max_order:
            raise QuestionError(f"no block has order {order}")
        pfn = self.slabs.step(ALLOC, kind=KIND_CODES[kind], order=order, cpu=cpu, arg=owner)
        return None if pfn < 0 else Pfn(pfn)

    def free(self, pfn: int, *, cpu: int = 0) -> None:
        """Free an allocation that nobody else refers to, by its first frame.

        Raises QuestionError where none begins there, and while references are held.
        """
        result = self.slabs.step(FREE, cpu=cpu, value=pfn)
        if result == BUSY:
            raise QuestionError(f"references to {pfn:#x} are held", hint="put them first")
        if result < 0:
            raise QuestionError(f"no allocation begins at frame {pfn:#x}")

    def split(self, pfn: int, new_order: int = 0, *, cpu: int = 0) -> bool:
        """Make an allocation several of 2^new_order frames, each described by itself.

        False, and nothing changed, without memory for the descriptors. Raises QuestionError where
        no larger allocation begins, and while references beside its own are held.
        """
        from memdesc.model.split import split

        return split(self, pfn, new_order, cpu=cpu)

    def get(self, pfn: int, *, cpu: int = 0) -> int | None:
        """Look a frame up and take a reference to what describes it (5.6 of the plan's rules).

        Returns what to give to `put`: the descriptor's physical address, or in the 64-byte
        designs the head's frame number; None where there is nothing to hold.
        """
        self._frame(pfn)
        found = self.slabs.step(GET, cpu=cpu, value=pfn)
        return None if found < 0 else found

    def put(self, reference: int, *, cpu: int = 0) -> int:
        """Give a reference back; the last one frees. Returns the references that are left."""
        return self.slabs.step(PUT, cpu=cpu, value=reference)

    # --- what it looks like --------------------------------------------------------------

    def word(self, pfn: int) -> int:
        """The memdesc word of a frame, as of revision R6. 0 for a frame that does not exist.

        Raises QuestionError in the 64-byte designs, whose frames have none.
        """
        self._frame(pfn)
        if not self.design.allocates:
            raise QuestionError(
                f"frames have no memdesc word in {self.design.title}",
                hint="memdesc.model.pages shows their struct pages",
            )
        return int(_read_word(self.slabs.state, pfn)) & ((1 << 64) - 1)

    def words(self) -> NDArray[np.uint64]:
        """uint64[frames]: the words of all frames (64-byte designs: the model's own marks)."""
        return (array(self.slabs.state.word) ^ FREE_WORD).view(np.uint64)

    def refcount(self, pfn: int) -> int | None:
        """References to what describes a frame; None where it has no count."""
        self._frame(pfn)
        count = int(_references(self.pages.state, self.slabs.state, pfn))
        return None if count < 0 else count

    def metadata(self) -> Metadata:
        """What describing memory takes now."""
        return self._metadata(G_DESCRIPTORS, G_DESCRIPTOR_BYTES, G_DESCRIPTOR_FRAMES, now=True)

    def peak(self) -> Metadata:
        """The most of each number so far; the peaks need not be of one moment.

        Unused and waste are not kept apart at the peak: `unused_bytes` is 0 and `waste_bytes`
        the difference of the two peaks.
        """
        return self._metadata(
            G_DESCRIPTORS_PEAK, G_DESCRIPTOR_BYTES_PEAK, G_DESCRIPTOR_FRAMES_PEAK, now=False
        )

    @property
    def frames_present(self) -> int:
        """Frames that the memory map describes."""
        return sum(zone.frames_present for zone in self.pages.layout.zones)

    @property
    def descriptor_allocs(self) -> int:
        return int(self.slabs.state.cell[G_DESCRIPTOR_ALLOCS])

    @property
    def descriptor_frees(self) -> int:
        return int(self.slabs.state.cell[G_DESCRIPTOR_FREES])

    @property
    def failures(self) -> dict[str, int]:
        """Allocations that failed, by what could not be had."""
        cell = self.slabs.state.cell
        return {
            "frames": int(cell[G_FAILED_PAGES]),
            "descriptors": int(cell[G_FAILED_DESCRIPTORS]),
        }

    # --- helpers -------------------------------------------------------------------------

    def _frame(self, pfn: int) -> None:
        if not 0 <= pfn < array(self.slabs.state.word).size:
            raise QuestionError(f"there is no frame {pfn:#x}")

    def _metadata(self, count: int, size: int, frames: int, *, now: bool) -> Metadata:
        cell = array(self.slabs.state.cell)
        slab_bytes = int(cell[frames]) * PAGE_SIZE_BYTES
        used = int(cell[size])
        unused = 0
        if now:
            for spec, cache in self.descriptor_caches.items():
                row = self.slabs.statistics(cache)
                objects = self.slabs.objects(cache)
                unused += (objects - row.objects_in_use) * spec.size_bytes
        return Metadata(
            memmap_bytes=self.frames_present * self.design.bytes_per_frame,
            descriptors=int(cell[count]),
            descriptor_bytes=used,
            slab_bytes=slab_bytes,
            unused_bytes=unused,
            waste_bytes=slab_bytes - used - unused,
        )

    def _create_descriptor_caches(self) -> None:
        for spec in self.design.specs:
            self.descriptor_caches[spec] = self.slabs.create(
                f"memdesc {spec.name}",
                spec.size_bytes,
                align=16,
                typesafe=True,
                placed_pointer=True,
                descriptor=True,
            )
        slab_cache = self.descriptor_caches[SLAB].number
        array(self.slabs.state.cell)[G_SLAB_CACHE] = slab_cache

    def _fill_kinds(self) -> None:
        rows = array(self.slabs.state.kind).reshape(-1, KIND_FIELDS)
        for kind, gfp in ALLOCATED.items():
            row = rows[KIND_CODES[kind]]
            single, large = (self.design.descriptor(kind, order) for order in (0, 1))
            row[K_SMALL], row[K_LARGE] = (
                self.descriptor_caches[spec].number if spec else NONE for spec in (single, large)
            )
            row[K_TAG], row[K_SUBTYPE] = _place_in_plan(kind, described=single is not None)
            row[K_MAPPABLE] = int(kind in _MAPPABLE)
            row[K_GFP] = int(gfp)
            row[K_COUNTED] = int(single in _COUNTED)

    def _write_boot_words(self) -> None:
        """Reserved frames read Misc, reserved, with their node and zone; holes read 0."""
        word = array(self.slabs.state.word)
        plain = plain_word(KIND_CODES[MemoryType.RESERVED], 0)
        end = 0
        for zone in sorted(self.pages.layout.zones, key=lambda each: each.pfn_start):
            value = plain
            if self.design.allocates:
                value = encode_misc(0, node=zone.node, zone=zone.type)
            for start, stop in zone.ranges:
                word[end:start] = FREE_WORD  # a hole: its word is 0
                end = stop
            for start, stop in zone.reserved:
                word[start:stop] = _signed(value) ^ FREE_WORD
        word[end:] = FREE_WORD


def _place_in_plan(kind: MemoryType, *, described: bool) -> tuple[int, int]:
    """(type, subtype) of revision R6 that words of a kind carry.

    Where the plan names several places, that which fits having a descriptor or none.
    """
    place = PLAN_TYPE[kind]
    if not isinstance(place, InPlan):
        raise QuestionError(f"{kind.value} memory has no place in the plan")
    fitting = [code for code in place.codes if (code.kind is not PlanKind.MISC) == described]
    code = (fitting or place.codes)[0]
    return int(code.kind), code.subtype or 0


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


@compiled
def _read_word(slabs: SlabState, pfn: int) -> int:
    return read_word(pointers(slabs), pfn)


@compiled
def _references(state: State, slabs: SlabState, pfn: int) -> int:
    return references(pointers(state), pointers(slabs), pfn)

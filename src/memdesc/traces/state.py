"""The page allocator at one moment: every free list in its order, and the zones' numbers.

It is what a replay starts from and what it is judged by.  It comes from a crash dump
(`memdesc.structs.walk.allocator`), which has all of it, or from page flags, which have the free
blocks and nothing of their order or of the CPUs' lists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FormatError
from memdesc.kernels.allocator import MAX_ORDER, PAGEBLOCK_ORDER

__all__ = ["AllocatorState", "Blocks", "CpuList", "ZoneState", "blocks_of_runs", "state_of_free"]

NO_MIGRATETYPE = 255
_MOST_FRAMES = 1 << 32
"""16 TiB: frames are stored in 32 bits."""

_COLUMNS = {
    "pfn": "int64", "order": "uint8", "migratetype": "uint8", "zone": "uint8", "cpu": "uint16",
}  # fmt: skip


@dataclass
class Blocks:
    """Blocks on lists, list after list, each from its head on."""

    pfn: NDArray[np.int64]
    order: NDArray[np.uint8]
    migratetype: NDArray[np.uint8]
    """Of the list; 255 where it is not known."""
    zone: NDArray[np.uint8]
    """Index into `AllocatorState.zones`."""
    cpu: NDArray[np.uint16]
    """Whose list; 0 for the free lists, which are nobody's."""

    def __len__(self) -> int:
        return int(self.pfn.size)

    @property
    def nr_pages(self) -> int:
        """Frames in all blocks."""
        return int((1 << self.order.astype(np.int64)).sum())

    def frames(self) -> NDArray[np.int64]:
        """int64[n]: every frame of every block, block after block."""
        size = 1 << self.order.astype(np.int64)
        first = np.cumsum(size) - size
        return np.repeat(self.pfn - first, size) + np.arange(int(size.sum()))

    @classmethod
    def of(cls, rows: list[tuple[int, int, int, int, int]]) -> Blocks:
        """From rows (pfn, order, migratetype, zone, cpu)."""
        table = np.array(rows, np.int64).reshape(-1, len(_COLUMNS))
        return cls(*(table[:, index].astype(kind) for index, kind in enumerate(_COLUMNS.values())))


@dataclass(frozen=True)
class CpuList:
    """The numbers of one `struct per_cpu_pages`; a member that the kernel has not is -1."""

    cpu: int
    count: int
    high: int = -1
    high_min: int = -1
    high_max: int = -1
    batch: int = -1
    alloc_factor: int = -1
    free_count: int = -1
    """free_factor on 6.1, another measure of frees in a row."""
    flags: int = -1


@dataclass(frozen=True)
class ZoneState:
    """A zone. Counts are in frames."""

    node: int
    name: str
    index: int
    """In the node: 0 is DMA on x86-64."""
    pfn_start: int
    spanned: int
    present: int
    managed: int
    free: int
    """NR_FREE_PAGES, with what waits on the CPUs to be added left out."""
    watermarks: tuple[int, ...] = ()
    """min, low, high, promo: without the boost."""
    watermark_boost: int = 0
    lowmem_reserve: tuple[int, ...] = ()
    reserved_highatomic: int = 0
    flags: tuple[str, ...] = ()
    """Names of the bits that are set: "BOOSTED_WATERMARK", "RECLAIM_ACTIVE", "BELOW_HIGH"."""
    cpus: tuple[CpuList, ...] = ()

    @property
    def pfn_end(self) -> int:
        return self.pfn_start + self.spanned


@dataclass
class AllocatorState:
    """Everything that decides what the page allocator does next."""

    release: str
    pfn_end: int
    zones: tuple[ZoneState, ...]
    free: Blocks
    pcp: Blocks
    pageblocks: NDArray[np.uint8]
    """Migratetype of each pageblock from frame 0 on; 255 where there is none."""
    migratetypes: tuple[str, ...] = ()
    """Names by number, as /proc/pagetypeinfo has them."""
    exact: bool = True
    """Whether lists are in the kernel's order and the CPUs' lists are known."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Text files of the same moment, by name: "buddyinfo", "pagetypeinfo", "zoneinfo"."""

    def free_by_order(self, *, migratetype: int | None = None) -> NDArray[np.int64]:
        """int64[11]: free blocks of each order, of one migratetype or all."""
        chosen = slice(None) if migratetype is None else self.free.migratetype == migratetype
        return np.bincount(self.free.order[chosen], minlength=MAX_ORDER + 1)

    def is_free(self) -> NDArray[np.bool_]:
        """bool[pfn_end]: frames in free blocks."""
        return self._mask(self.free)

    def is_on_cpus(self) -> NDArray[np.bool_]:
        """bool[pfn_end]: frames on CPUs' lists."""
        return self._mask(self.pcp)

    def _mask(self, blocks: Blocks) -> NDArray[np.bool_]:
        mask = np.zeros(self.pfn_end, np.bool_)
        mask[blocks.frames()] = True
        return mask

    # --- storing -------------------------------------------------------------------------

    def to_arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """Arrays that `from_arrays` reads back; every name begins with `prefix`."""
        about = {
            "release": self.release,
            "pfn_end": self.pfn_end,
            "zones": [
                {**vars(zone), "cpus": [vars(item) for item in zone.cpus]} for zone in self.zones
            ],
            "migratetypes": self.migratetypes,
            "exact": self.exact,
            "files": dict(self.files),
        }
        arrays: dict[str, NDArray[Any]] = {
            f"{prefix}about": np.frombuffer(json.dumps(about).encode(), np.uint8),
            f"{prefix}pageblocks": self.pageblocks,
        }
        for name, blocks in (("free", self.free), ("pcp", self.pcp)):
            for column, kind in _COLUMNS.items():
                values = getattr(blocks, column)
                if column == "pfn":
                    values, kind = values.astype(np.uint32), "uint32"
                arrays[f"{prefix}{name}_{column}"] = values.astype(kind)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str) -> AllocatorState:
        """Raises FormatError where an array is missing or makes no sense."""
        try:
            about = json.loads(arrays[f"{prefix}about"].tobytes())
            zones = tuple(_zone(zone) for zone in about["zones"])
            state = cls(
                release=str(about["release"]),
                pfn_end=int(about["pfn_end"]),
                zones=zones,
                free=_blocks(arrays, f"{prefix}free_"),
                pcp=_blocks(arrays, f"{prefix}pcp_"),
                pageblocks=arrays[f"{prefix}pageblocks"],
                migratetypes=tuple(about["migratetypes"]),
                exact=bool(about["exact"]),
                files=dict(about["files"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise FormatError(f"a stored allocator state is damaged: {error!r}"[:300]) from error
        if not 0 <= state.pfn_end <= _MOST_FRAMES or state.pageblocks.dtype != np.uint8:
            raise FormatError("a stored allocator state is damaged: frames that cannot be")
        for blocks in (state.free, state.pcp):
            end = blocks.pfn + (1 << blocks.order.astype(np.int64))
            sound = (
                bool((blocks.order <= MAX_ORDER).all())
                and bool((end <= state.pfn_end).all())
                and bool((blocks.pfn & ((1 << blocks.order.astype(np.int64)) - 1) == 0).all())
                and bool((blocks.zone < max(1, len(zones))).all())
                and np.unique(blocks.frames()).size == blocks.nr_pages
            )
            if not sound:
                raise FormatError("a stored allocator state is damaged: blocks that cannot be")
        return state


def state_of_free(
    is_free: NDArray[np.bool_],
    zones: Sequence[ZoneState],
    release: str = "",
    pageblocks: NDArray[np.uint8] | None = None,
) -> AllocatorState:
    """The state that page flags show: which frames are in free blocks, and no more.

    The blocks are the largest aligned ones within each zone, by address; their migratetype is
    that of `pageblocks` where given. The CPUs' lists are empty, and the state is not exact.
    """
    parts = []
    for index, zone in enumerate(zones):
        mask = is_free[zone.pfn_start : zone.pfn_end]
        edges = np.diff(mask.astype(np.int8), prepend=0, append=0)
        starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        pfn, order = blocks_of_runs(starts + zone.pfn_start, ends + zone.pfn_start)
        parts.append((pfn, order, np.full(pfn.size, index, np.uint8)))
    pfn = np.concatenate([part[0] for part in parts]) if parts else np.zeros(0, np.int64)
    order = np.concatenate([part[1] for part in parts]) if parts else np.zeros(0, np.uint8)
    zone_of = np.concatenate([part[2] for part in parts]) if parts else np.zeros(0, np.uint8)
    if pageblocks is None:
        nr_blocks = -(-is_free.size >> PAGEBLOCK_ORDER)
        pageblocks = np.full(nr_blocks, NO_MIGRATETYPE, np.uint8)
    return AllocatorState(
        release=release,
        pfn_end=is_free.size,
        zones=tuple(zones),
        free=Blocks(
            pfn, order, pageblocks[pfn >> PAGEBLOCK_ORDER], zone_of, np.zeros(pfn.size, np.uint16)
        ),
        pcp=Blocks.of([]),
        pageblocks=pageblocks,
        exact=False,
    )


def blocks_of_runs(
    starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Cut runs of free frames [start, end) into the blocks that the buddy system keeps them in.

    Free buddies are always merged, so the blocks are the largest aligned ones; the exceptions
    are neighbours that may not merge (pageblocks of HIGHATOMIC or ISOLATE beside others).
    Returns (pfn, order) by address.
    """
    pfns: list[NDArray[np.int64]] = []
    orders: list[NDArray[np.uint8]] = []
    at, end = starts.astype(np.int64), ends.astype(np.int64)
    while at.size:
        low = np.where(at == 0, MAX_ORDER, _exponent(at & -at))
        fits = _exponent(end - at)
        order = np.minimum(np.minimum(low, fits), MAX_ORDER)
        pfns.append(at)
        orders.append(order.astype(np.uint8))
        at = at + (1 << order)
        left = at < end
        at, end = at[left], end[left]
    if not pfns:
        return np.zeros(0, np.int64), np.zeros(0, np.uint8)
    pfn, order = np.concatenate(pfns), np.concatenate(orders)
    by_frame = np.argsort(pfn, kind="stable")
    return pfn[by_frame], order[by_frame]


# --- helpers -----------------------------------------------------------------------------


def _zone(value: dict[str, Any]) -> ZoneState:
    fields: dict[str, Any] = {
        key: tuple(item) if isinstance(item, list) else item for key, item in value.items()
    }
    fields["cpus"] = tuple(CpuList(**item) for item in value["cpus"])
    zone = ZoneState(**fields)
    numbers = [
        item
        for part in (vars(zone), *map(vars, zone.cpus))
        for key, value in part.items()
        if key not in ("name", "flags", "cpus")
        for item in (value if isinstance(value, tuple) else (value,))
    ]
    texts = (zone.name, *zone.flags)
    if not all(type(item) is int and -(1 << 52) < item < 1 << 52 for item in numbers):
        raise ValueError("a zone's number is none")
    if not all(type(text) is str for text in texts) or zone.pfn_start < 0 or zone.spanned < 0:
        raise ValueError("a zone makes no sense")
    return zone


def _blocks(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Blocks:
    columns = {name: arrays[prefix + name].astype(kind) for name, kind in _COLUMNS.items()}
    if len({column.shape for column in columns.values()}) != 1 or columns["pfn"].ndim != 1:
        raise ValueError(f"columns of {prefix} differ in length")
    return Blocks(**columns)


def _exponent(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exponent of the largest power of two that is not larger; values are positive."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1

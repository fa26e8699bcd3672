"""Which frames to make fail: a sample in which every kind of frame of the guest has a place.

Frames with the same flag word, the same types from both sources, planted as the same kind
and owned by the same sort of owner are one stratum.  Every stratum gives at least one frame,
and large ones more; as the size of each is kept, results can be weighted back to the whole
guest.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memdesc.checks.planted import frames_of
from memdesc.checks.sweep_rows import Frame, ProcFacts, StructFacts
from memdesc.descriptors import Descriptor, FileFolio, Folio, MappedDriverPage, NotVisible
from memdesc.errors import FaultError, LayoutError
from memdesc.kernels.kpageflags import KPF
from memdesc.map.describe import MapDescriber
from memdesc.map.extents import MemoryMap
from memdesc.sources.structs import DumpSource
from memdesc.structs.buffers import Buffers, BufferState
from memdesc.structs.describe_folio import FolioPages
from memdesc.types import MemoryType, Pfn

__all__ = ["Stratum", "draw", "facts_of", "strata_of"]

_WHICH = re.compile(r"\b\d+\b.*")
"""What tells one owner of many alike from the others: "stack of task 113 (webserver)"."""


@dataclass(frozen=True)
class Stratum:
    """Frames that are alike in everything that is known."""

    number: int
    kind: str
    owner: str
    frames: NDArray[np.int64]


def strata_of(proc: MemoryMap, structs: MemoryMap, tree: Path) -> list[Stratum]:
    """Every frame of both maps, in strata; `tree` has planted.json and the page tables.

    `structs` must have owners. Slabs are one owner, whatever their cache: what the kernel does
    with a slab does not depend on it.
    """
    end = min(proc.pfn_end, structs.pfn_end)
    kinds, planted = _planted(tree, end)
    names, owners = _owners(structs, end)
    columns = [
        _per_frame(proc, proc.table.flags[proc.facts], end),
        _per_frame(proc, proc.table.types[proc.facts], end),
        _per_frame(structs, structs.table.types[structs.facts], end),
        planted.astype(np.uint64),
        owners.astype(np.uint64),
    ]
    table = np.ascontiguousarray(np.stack(columns, axis=1))
    keys = table.view([("", np.uint64)] * len(columns)).ravel()
    _, codes = np.unique(keys, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    return [
        Stratum(number, kinds[int(planted[group[0]])], names[int(owners[group[0]])], group)
        for number, group in enumerate(groups)
    ]


def draw(strata: list[Stratum], nr_frames: int, seed: int = 1) -> list[tuple[int, Stratum, int]]:
    """At least `nr_frames` frames: (frame, its stratum, frames drawn from that stratum).

    One of each stratum first, the others by the square root of the strata's sizes.
    """
    chance = random.Random(seed)
    wanted = dict.fromkeys(range(len(strata)), 1)
    left = nr_frames - len(strata)
    weights = [stratum.frames.size**0.5 for stratum in strata]
    while left > 0 and any(wanted[at] < strata[at].frames.size for at in wanted):
        # The stratum that is furthest behind its share comes next.
        open_ = [at for at in wanted if wanted[at] < strata[at].frames.size]
        at = max(open_, key=lambda at: (weights[at] / wanted[at], -at))
        wanted[at] += 1
        left -= 1
    drawn = []
    for at, stratum in enumerate(strata):
        for frame in chance.sample(stratum.frames.tolist(), wanted[at]):
            drawn.append((frame, stratum, wanted[at]))
    chance.shuffle(drawn)
    return drawn


def facts_of(
    drawn: list[tuple[int, Stratum, int]], proc: MemoryMap, structs: MemoryMap, source: DumpSource
) -> list[Frame]:
    """What both sources know of each frame that was drawn."""
    describer = source.describer(structs)
    buffers = Buffers(source.kernel, source.memmap)
    lookups = [MapDescriber(proc), MapDescriber(structs)]
    frames = []
    for number, stratum, sampled in drawn:
        pfn = Pfn(number)
        own = [result.extent(result.index_of(pfn)) for result in (proc, structs)]
        heads = [lookup.head_extent(pfn).fact.flags for lookup in lookups]
        found = describer.descriptor_of(pfn)
        counts: tuple[int | None, int | None, int | None] = (None, None, None)
        if isinstance(found, Folio | MappedDriverPage):
            counts = (_seen(found.refcount), _seen(found.mapcount), _seen(found.pins))
        refcount, mapcount, pins = counts
        frames.append(
            Frame(
                number,
                stratum.kind,
                stratum.number,
                int(stratum.frames.size),
                sampled,
                ProcFacts(own[0].fact.types, own[0].fact.flags, heads[0], own[0].mapcount),
                StructFacts(
                    own[1].fact.types,
                    own[1].fact.flags,
                    heads[1],
                    found.pages.nr_pages,
                    refcount,
                    mapcount,
                    pins,
                    _buffers_of(buffers, source, found, heads[1]),
                    stratum.owner,
                ),
                {},
            )
        )
    return frames


# --- helpers -----------------------------------------------------------------------------


def _seen(fact: int | NotVisible) -> int | None:
    return fact if isinstance(fact, int) else None


def _buffers_of(
    buffers: Buffers, source: DumpSource, found: Descriptor, head_flags: int
) -> BufferState | None:
    """The buffers of a file's folio; None where it has none, or none that can be read."""
    if not isinstance(found, FileFolio) or not head_flags & KPF.PRIVATE:
        return None
    folio = FolioPages(source.memmap, found.pages)
    try:
        return buffers.of(folio.private, folio.address)
    except (FaultError, LayoutError):
        return None


def _per_frame(result: MemoryMap, column: NDArray[np.uint64], end: int) -> NDArray[np.uint64]:
    """A column of extents as one of frames [0, end)."""
    return np.repeat(column, result.nr_pages)[:end]


def _planted(tree: Path, end: int) -> tuple[list[str], NDArray[np.int64]]:
    """Names of planted kinds, and per frame an index into them; 0 for nothing of ours."""
    names, codes = [""], np.zeros(end, np.int64)
    for row in json.loads((tree / "planted.json").read_text()):
        if "missing" in row:
            continue
        if row["kind"] not in names:
            names.append(row["kind"])
        pfns = frames_of(tree, row)
        codes[pfns[pfns < end]] = names.index(row["kind"])
    return names, codes


def _owners(structs: MemoryMap, end: int) -> tuple[list[str], NDArray[np.int64]]:
    """Sorts of owners, and per frame an index into them."""
    if structs.owners is None:
        return [""], np.zeros(end, np.int64)
    slab = structs.table.types[structs.facts] == np.uint64(MemoryType.SLAB.bit)
    names = [_WHICH.sub("N", name) for name in structs.owner_names]
    distinct = list(dict.fromkeys(["", *names]))
    sort = np.array([distinct.index(name) for name in names], np.int64)
    codes = np.where(slab, 0, sort[structs.owners])
    return distinct, np.repeat(codes, structs.nr_pages)[:end]

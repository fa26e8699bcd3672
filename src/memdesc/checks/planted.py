"""Memory that a program planted in the guest, judged: the truth that no dump is asked for.

A planted region was made by a known call (mmap, memfd_create, io_uring_setup ...), and the
page tables that were recorded with it say which frames it got.  So these rows judge every
source, the dump's own among them, by what was asked of the kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.checks.score import Outcome, outcome_of
from memdesc.map.extents import MemoryMap
from memdesc.types import MemoryType, TypeSet

__all__ = ["PLANTED", "PlantedScore", "frames_of", "score_planted"]

T = MemoryType

PLANTED: Mapping[str, MemoryType] = MappingProxyType(
    {
        "anon": T.ANON,
        "anon_forked": T.ANON,
        "anon_mlocked": T.ANON,
        "anon_mthp": T.ANON,
        "anon_prot_none": T.ANON,
        "anon_sparse": T.ANON,
        "anon_thp": T.ANON,
        "anon_uffd_wp": T.ANON,
        "bpf_array_mapped": T.VMALLOC,
        "ext4_in_pipe": T.FILE,
        "ext4_mapped_dirty": T.FILE,
        "ext4_mapped_read": T.FILE,
        "ext4_mapped_written": T.FILE,
        "ext4_mlocked": T.FILE,
        "ext4_unmapped_dirty": T.FILE,
        "ext4_unmapped_read": T.FILE,
        "file_private_written": T.ANON,
        "huge_zero_page": T.HUGE_ZERO,
        "hugetlb_anon": T.HUGETLB,
        "hugetlb_memfd": T.HUGETLB,
        "hwpoison_anon": T.POISONED,
        "hwpoison_file": T.POISONED,
        "hwpoison_free": T.POISONED,
        "io_uring_fixed": T.ANON,
        "io_uring_ring": T.DRIVER_MAPPED,
        "ksm": T.KSM,
        "madv_free": T.ANON,
        "memfd": T.SHMEM,
        "packet_ring": T.DRIVER_MAPPED,
        "perf_ring": T.DRIVER_MAPPED,
        "secretmem": T.SECRETMEM,
        "shared_anon": T.SHMEM,
        "swap_cache": T.SWAP_CACHE,
        "sysv_shm": T.SHMEM,
        "thp_forked": T.ANON,
        "thp_partial_mapped": T.ANON,
        "thp_partial_unmapped": T.ANON,
        "thp_pte_mapped": T.ANON,
        "tmpfs_huge": T.SHMEM,
        "tmpfs_mapped": T.SHMEM,
        "tmpfs_unmapped": T.SHMEM,
        "vdso": T.RESERVED,
        "vmspliced": T.ANON,
        "vmspliced_unmapped": T.ANON,
        "zero_page": T.ZERO,
    }
)
"""What each planted kind is. Kinds that are not here have no frame (guard pages, swapped out
memory), or frames of several types (the kernel image, vvar)."""

_FRAME_MASK = (1 << 55) - 1
_PRESENT = 1 << 63


@dataclass
class PlantedScore:
    """How one source judged the frames of one planted kind."""

    kind: str
    truth: TypeSet
    frames: Counter[Outcome] = field(default_factory=Counter)
    named: Counter[TypeSet] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "type": self.truth.json,
            "frames": self.frames.total(),
            **{outcome.value: self.frames[outcome] for outcome in Outcome},
            "named": [
                {"type": kinds.json, "frames": frames} for kinds, frames in self.named.most_common()
            ],
        }


def frames_of(tree: Path, row: Mapping[str, Any]) -> NDArray[np.int64]:
    """The frames of a planted region (a row of planted.json), as the recorded page tables say.

    Empty where nothing of it was in memory. Raises OSError for a tree without them.
    """
    if "pfn_start" in row:
        return np.arange(row["pfn_start"], row["pfn_start"] + row["nr_pages"])
    with (tree / f"proc/{row['pid']}/pagemap").open("rb") as file:
        file.seek(row["address"] // 4096 * 8)
        raw = file.read(row["nr_pages"] * 8)
    words = np.frombuffer(raw[: len(raw) // 8 * 8], np.uint64)
    present = words[words & np.uint64(_PRESENT) != 0]
    frames: NDArray[np.int64] = (present & np.uint64(_FRAME_MASK)).astype(np.int64)
    return frames


def score_planted(
    judged: MemoryMap,
    tree: Path,
    rows: list[dict[str, Any]],
    *,
    recorded: MemoryMap | None = None,
) -> Iterator[PlantedScore]:
    """Judge the frames of each planted kind, by kind; kinds without a frame are left out.

    A frame that several processes map is one frame. A map of a later moment is judged with
    `recorded`, one of the moment of `tree`: only frames that show the same flag word in both.
    """
    regions: dict[str, list[NDArray[np.int64]]] = {}
    for row in rows:
        if row["kind"] in PLANTED and "missing" not in row:
            regions.setdefault(row["kind"], []).append(frames_of(tree, row))
    starts = judged.pfn_starts.astype(np.int64)
    for kind in sorted(regions):
        pfns = np.unique(np.concatenate(regions[kind]))
        pfns = pfns[(pfns >= judged.pfn_start) & (pfns < judged.pfn_end)]
        if not pfns.size:
            continue
        score = PlantedScore(kind, TypeSet.of(PLANTED[kind]))
        facts = judged.facts[np.searchsorted(starts, pfns, side="right") - 1]
        if recorded is not None:
            now = judged.table.flags[facts]
            then = np.array([int(recorded.words(pfn, pfn + 1)[0]) for pfn in pfns.tolist()])
            facts = facts[now == then.astype(np.uint64)]
            if not facts.size:
                continue
        codes, counts = np.unique(facts, return_counts=True)
        for code, frames in zip(codes.tolist(), counts.tolist(), strict=True):
            fact = judged.table[code]
            score.frames[outcome_of(fact, score.truth)] += frames
            score.named[fact.types] += frames
        yield score

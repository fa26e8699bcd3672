"""Memory of a known kind, planted in guests: its struct pages name that kind and no other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structs.real_dumps import RealDump, real_dump

from memdesc.map.extents import MemoryMap
from memdesc.structs.dump import open_dump
from memdesc.structs.machine import machine_of
from memdesc.structs.memmap import MemMap
from memdesc.structs.scan import StructScan
from memdesc.structs.walk import walk_owned
from memdesc.types import MemoryType

T = MemoryType

KINDS: Mapping[str, MemoryType] = {
    **dict.fromkeys(
        [
            "anon",
            "anon_mlocked",
            "anon_prot_none",
            "anon_sparse",
            "anon_thp",
            "anon_mthp",
            "thp_pte_mapped",
            "thp_partial_mapped",
            "thp_partial_unmapped",
            "madv_free",
            "anon_forked",
            "thp_forked",
            "file_private_written",
            "io_uring_fixed",
            "vmspliced",
            "vmspliced_unmapped",
            "anon_uffd_wp",
        ],
        T.ANON,
    ),
    **dict.fromkeys(
        ["sysv_shm", "memfd", "shared_anon", "tmpfs_mapped", "tmpfs_unmapped", "tmpfs_huge"],
        T.SHMEM,
    ),
    **dict.fromkeys(
        [
            "ext4_mapped_written",
            "ext4_mapped_dirty",
            "ext4_unmapped_dirty",
            "ext4_mlocked",
            "ext4_mapped_read",
            "ext4_in_pipe",
            "ext4_unmapped_read",
        ],
        T.FILE,
    ),
    **dict.fromkeys(["hwpoison_anon", "hwpoison_file", "hwpoison_free"], T.POISONED),
    "hugetlb_anon": T.HUGETLB,
    "hugetlb_memfd": T.HUGETLB,
    "huge_zero_page": T.HUGE_ZERO,
    "zero_page": T.ZERO,
    "ksm": T.KSM,
    "swap_cache": T.SWAP_CACHE,
    "secretmem": T.SECRETMEM,
    "vdso": T.RESERVED,
}
"""What was planted (`memdesc.vm.workload`) -> the only type its frames may have."""

MAPPED_BY_DRIVERS = ("io_uring_ring", "packet_ring", "perf_ring", "vvar")
"""Nothing in a struct page tells a ring from a page fragment that is mapped."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(series, marks=pytest.mark.vm) for series in ("6.1", "6.12", "7.2")],
)
def dump(request: pytest.FixtureRequest) -> RealDump:
    return real_dump(request, request.param)


@pytest.fixture(scope="module")
def result(dump: RealDump) -> MemoryMap:
    kernel = open_dump(dump.elf, dump.vmlinux)
    memmap = MemMap.find(kernel)
    owned = walk_owned(kernel, memmap)
    return StructScan(kernel, memmap, machine_of(kernel, memmap), owned=owned).map()


def planted(tree: Path) -> Iterator[tuple[str, list[int]]]:
    """(kind, its frames) of everything that the guest planted and that is in memory."""
    rows: list[dict[str, Any]] = json.loads((tree / "planted.json").read_text())
    for row in rows:
        if "pfn_start" in row:
            yield row["kind"], list(range(row["pfn_start"], row["pfn_start"] + row["nr_pages"]))
        elif "pid" in row:
            with (tree / "proc" / str(row["pid"]) / "pagemap").open("rb") as file:
                file.seek(row["address"] // 4096 * 8)
                words = np.frombuffer(file.read(row["nr_pages"] * 8), np.uint64)
            present = words[words >> np.uint64(63) != 0] & np.uint64((1 << 55) - 1)
            yield row["kind"], present[present != 0].tolist()


def test_what_was_planted_has_its_type_and_no_other(dump: RealDump, result: MemoryMap) -> None:
    wrong: list[str] = []
    frames: Counter[str] = Counter()
    for kind, pfns in planted(dump.elf.parent / "tree"):
        seen = Counter(result.extent(result.index_of(pfn)).fact.types for pfn in pfns)
        frames[kind] += len(pfns)
        if kind in MAPPED_BY_DRIVERS:
            wrong += [f"{kind}: {types}" for types in seen if T.DRIVER_MAPPED not in types]
        elif kind in KINDS:
            wrong += [f"{kind}: {types}" for types in seen if types.only is not KINDS[kind]]
    assert not wrong
    assert sum(frames[kind] > 0 for kind in KINDS) >= 30, frames


def test_nothing_is_torn_or_unreadable_in_a_guest_that_stood_still(result: MemoryMap) -> None:
    assert (result.stats.frames_torn, result.stats.frames_unreadable) == (0, 0)


def test_free_frames_are_those_of_the_free_lists(result: MemoryMap) -> None:
    """Blocks of the allocator make up NR_FREE_PAGES, and per-CPU lists their own counts."""
    pages: Counter[MemoryType | None] = Counter()
    for code, frames in enumerate(result.totals.pages.sum(axis=0).tolist()):
        pages[result.table[code].types.only] += frames
    assert pages[T.FREE] == result.machine.before.vmstat["nr_free_pages"]
    assert pages[T.FREE_PCP] == sum(zone.pcp for zone in result.machine.zones)

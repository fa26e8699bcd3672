"""What the walks over a dump find, beside what the same kernel counted: to the frame.

The counters are those of the recorded /proc, which the guest's own kernel wrote; the dump is of
the same moment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from memdesc.checks.runs import Label, Walk
from memdesc.map.extents import MemoryMap
from memdesc.sources.procfs import parse_meminfo, parse_vmstat
from memdesc.sources.structs import DumpSource
from memdesc.structs.walk.freelists import FreeBlocks, walk_free_blocks, walk_pcp
from memdesc.structs.walk.percpu import walk_percpu
from memdesc.structs.walk.slab import find_caches
from memdesc.structs.walk.stacks import walk_stacks
from memdesc.structs.walk.vmap import walk_vmap
from memdesc.types import PAGE_SIZE_BYTES, MemoryType, TypeSet

__all__ = ["label_rows", "walk_rows"]

T = MemoryType

_EXAMPLES = 4


def walk_rows(source: DumpSource, truth: MemoryMap, tree: Path) -> Iterator[Walk]:
    """Every comparison that the recorded files allow."""
    kernel, memmap = source.kernel, source.memmap
    proc = tree / "proc"
    meminfo = parse_meminfo((proc / "meminfo").read_text())
    vmstat = parse_vmstat((proc / "vmstat").read_text())

    def pages(name: str) -> int:
        return meminfo.get(name, 0) // PAGE_SIZE_BYTES

    def typed(*kinds: MemoryType) -> int:
        return _frames(truth, kinds)

    zones = source.machine.frames_present or 0
    present = sum(
        int(count)
        for count in re.findall(r"^ +present +(\d+)", (proc / "zoneinfo").read_text(), re.M)
    )
    yield Walk("present frames", zones, present, "frames", "zoneinfo: present")
    yield from _free(walk_free_blocks(kernel, memmap), proc, pages("MemFree"))
    waiting = sum(found.nr_pages for found in walk_pcp(kernel, memmap).frames)
    # /proc/zoneinfo was read a moment earlier, and every process takes frames off these lists.
    listed = sum(zone.pcp for zone in source.machine.zones)
    yield Walk("per-CPU free lists", waiting, listed, "frames", "per_cpu_pages.count in the dump")
    yield from _slabs(source, truth, proc, pages("Slab"))
    yield Walk(
        "page tables with a constructor",
        _by_rule(truth, "struct-table"),
        pages("PageTables"),
        "frames",
        "meminfo: PageTables",
    )
    vmapped = walk_stacks(kernel, memmap).frames[0]
    stacks = vmapped.nr_pages
    yield Walk("kernel stacks", stacks, pages("KernelStack"), "frames", "meminfo: KernelStack")
    per_cpu = sum(found.nr_pages for found in walk_percpu(kernel, memmap).frames)
    yield Walk("per-CPU memory", per_cpu, pages("Percpu"), "frames", "meminfo: Percpu")
    areas = sum(found.nr_pages for found in walk_vmap(kernel, memmap).frames)
    yield Walk(
        "vmalloc, with stacks", areas, pages("VmallocUsed"), "frames", "meminfo: VmallocUsed"
    )
    yield Walk("hugetlb", typed(T.HUGETLB), pages("Hugetlb"), "frames", "meminfo: Hugetlb")
    yield Walk("shmem", typed(T.SHMEM), pages("Shmem"), "frames", "meminfo: Shmem")
    zspages = vmstat.get("nr_zspages", 0)
    yield Walk("zsmalloc", typed(T.ZSMALLOC), zspages, "frames", "vmstat: nr_zspages")
    yield Walk(
        "poisoned",
        typed(T.POISONED),
        pages("HardwareCorrupted"),
        "frames",
        "meminfo: HardwareCorrupted",
    )
    counted = json.loads((tree / "counted.json").read_text())
    balloon = sum(row["bytes"] for row in counted if row["kind"] == "balloon") // PAGE_SIZE_BYTES
    yield Walk("balloon", typed(T.BALLOON), balloon, "frames", "asked for by the host")
    pipes = sum(row["bytes"] for row in counted if row["kind"] == "pipe_data") // PAGE_SIZE_BYTES
    accounted = typed(T.ACCOUNTED)
    yield Walk(
        "data in pipes, at least", min(accounted, pipes), pipes, "frames", "written by the workload"
    )


def label_rows(source: DumpSource, truth: MemoryMap) -> Iterator[Label]:
    """How many frames of each type have an owner's name."""
    assert truth.owners is not None
    for kind in MemoryType:
        is_kind = (truth.table.types == np.uint64(kind.bit))[truth.facts]
        frames = int(truth.nr_pages[is_kind].sum())
        if not frames:
            continue
        if kind is T.FREE:
            yield _free_label(walk_free_blocks(source.kernel, source.memmap), frames)
            continue
        owners = truth.owners[is_kind]
        sizes = truth.nr_pages[is_kind]
        pages = np.bincount(owners, sizes, len(truth.owner_names)).astype(np.int64)
        labelled = int(pages[1:].sum())
        order = [
            code for code in np.argsort(-pages, kind="stable").tolist() if code and pages[code]
        ]
        names = tuple(f"{truth.owner_names[code]}: {pages[code]}" for code in order[:_EXAMPLES])
        if labelled:
            yield Label(TypeSet.of(kind), frames, labelled, len(order), names)


# --- helpers -----------------------------------------------------------------------------


def _frames(truth: MemoryMap, kinds: tuple[MemoryType, ...]) -> int:
    masks = [kind.bit for kind in kinds]
    return int(truth.nr_pages[np.isin(truth.table.types, masks)[truth.facts]].sum())


def _by_rule(truth: MemoryMap, rule: str) -> int:
    mine = np.array([name == rule for name in truth.table.rules], np.bool_)
    return int(truth.nr_pages[mine[truth.facts]].sum())


def _free(blocks: FreeBlocks, proc: Path, mem_free: int) -> Iterator[Walk]:
    told: dict[int, int] = {}
    for line in (proc / "buddyinfo").read_text().splitlines():
        for order, count in enumerate(line.split()[4:]):
            told[order] = told.get(order, 0) + int(count)
    orders, counts = np.unique(blocks.order, return_counts=True)
    walked = dict(zip(orders.tolist(), counts.tolist(), strict=True))
    for order in sorted(told):
        yield Walk(
            f"free blocks of order {order}",
            walked.get(order, 0),
            told[order],
            "blocks",
            "buddyinfo",
        )
    yield Walk("free frames", blocks.nr_pages, mem_free, "frames", "meminfo: MemFree")


def _slabs(source: DumpSource, truth: MemoryMap, proc: Path, slab: int) -> Iterator[Walk]:
    caches, _ = find_caches(source.kernel, source.memmap)
    told = {line.split()[0]: line.split() for line in (proc / "slabinfo").read_text().splitlines()}
    same = sum(
        cache.name in told
        and (cache.nr_slabs, cache.nr_objects)
        == (int(told[cache.name][14]), int(told[cache.name][2]))
        for cache in caches
    )
    yield Walk("slab caches with equal counts", same, len(told) - 2, "caches", "slabinfo")
    frames = _frames(truth, (T.SLAB, T.LARGE_KMALLOC))
    yield Walk("slabs and large kmalloc", frames, slab, "frames", "meminfo: Slab")


def _free_label(blocks: FreeBlocks, frames: int) -> Label:
    sizes = np.int64(1) << blocks.order.astype(np.int64)
    keys = blocks.migratetype.astype(np.int64) * 64 + blocks.order
    distinct, where = np.unique(keys, return_inverse=True)
    pages = np.bincount(where, sizes).astype(np.int64)
    order = np.argsort(-pages, kind="stable").tolist()[:_EXAMPLES]
    names = tuple(
        f"order {distinct[at] % 64} {blocks.names[distinct[at] // 64]}: {pages[at]}" for at in order
    )
    return Label(TypeSet.of(T.FREE), frames, int(pages.sum()), distinct.size, names)

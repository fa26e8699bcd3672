"""Every walk over dumps of real kernels, against what the same kernels said in /proc."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from structs.real_dumps import real_dump

from memdesc.kernels.kpageflags import KPF
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import OwnedRanges, kind_code
from memdesc.structs.walk import walk_owned
from memdesc.structs.walk.freelists import (
    migratetype_names,
    migratetypes_of,
    walk_free_blocks,
    walk_pcp,
)
from memdesc.structs.walk.globals import VARIABLES, find_global
from memdesc.structs.walk.percpu import walk_percpu
from memdesc.structs.walk.slab import find_caches, slabs_at
from memdesc.structs.walk.stacks import walk_stacks
from memdesc.structs.walk.tasks import find_tasks
from memdesc.structs.walk.view import View
from memdesc.structs.walk.vmap import find_areas, walk_vmap
from memdesc.types import MemoryType

pytest.importorskip("drgn", reason="drgn reads dumps: pip install 'memdesc[dump]'")


@dataclass(frozen=True)
class Stopped:
    """A kernel that was stopped, and its /proc of the same moment."""

    kernel: Kernel
    memmap: MemMap
    proc: Path

    def kib(self, name: str) -> int:
        """A line of /proc/meminfo."""
        found = re.search(rf"^{name}:\s+(\d+) kB", (self.proc / "meminfo").read_text(), re.M)
        assert found is not None
        return int(found[1])

    def lines(self, name: str) -> list[list[str]]:
        return [line.split() for line in (self.proc / name).read_text().splitlines()]


@pytest.fixture(scope="module", params=["6.1", "6.12", "7.2"])
def stopped(request: pytest.FixtureRequest) -> Stopped:
    from memdesc.structs.dump import open_dump

    dump = real_dump(request, request.param)
    kernel = open_dump(dump.elf)
    return Stopped(kernel, MemMap.find(kernel), dump.elf.parent / "tree/proc")


def test_vmalloc_areas_are_those_of_vmallocinfo(stopped: Stopped):
    areas = find_areas(stopped.kernel, stopped.memmap)
    mine = Counter(
        (areas.callers[row], int(areas.va_end[row] - areas.va_start[row]), int(areas.nr_pages[row]))
        for row in range(len(areas))
    )
    told: Counter[tuple[str, int, int]] = Counter()
    for line in (stopped.proc / "vmallocinfo").read_text().splitlines():
        if "unpurged" in line:
            continue  # Given back already; only the addresses wait.
        _, size, caller, *_ = line.split()
        pages = re.search(r"pages=(\d+)", line)
        told[caller.partition("+")[0], int(size), int(pages[1]) if pages else 0] += 1
    assert mine == told
    assert areas.torn == 0


def test_frames_of_vmalloc_are_those_of_meminfo(stopped: Stopped):
    walked = walk_vmap(stopped.kernel, stopped.memmap)
    assert sum(frames.nr_pages for frames in walked.frames) * 4 == stopped.kib("VmallocUsed")
    assert walked.torn == 0


def test_stacks_are_those_of_meminfo_and_the_idle_task_of_the_image(stopped: Stopped):
    walked = walk_stacks(stopped.kernel, stopped.memmap)
    vmapped, *plain = walked.frames
    # /proc/meminfo does not count the first task's stack: it was never made.
    assert vmapped.nr_pages * 4 == stopped.kib("KernelStack")
    assert [frames.names for frames in plain] == [("stack of task 0 (swapper/0)",)]
    assert walked.torn == 0


def test_every_process_of_proc_is_a_task_with_its_name(stopped: Stopped):
    names = {task.pid: task.comm for task in find_tasks(stopped.kernel, stopped.memmap).tasks}
    told = {int(each.parent.name): each.read_text() for each in stopped.proc.glob("[0-9]*/comm")}
    assert told
    assert {pid: names.get(pid) for pid in told} == {
        pid: name.strip() for pid, name in told.items()
    }


def test_per_cpu_memory_is_that_of_meminfo(stopped: Stopped):
    walked = walk_percpu(stopped.kernel, stopped.memmap)
    pfns = walked.frames[0].pfns
    assert np.unique(pfns).size == pfns.size
    assert pfns.size * 4 == stopped.kib("Percpu")
    assert walked.torn == 0


def test_free_lists_are_those_of_buddyinfo_and_pagetypeinfo(stopped: Stopped):
    blocks = walk_free_blocks(stopped.kernel, stopped.memmap)
    assert blocks.torn == 0
    assert [count for count in blocks.counts if count.nr_walked != count.nr_free] == []
    zones: dict[str, list[str]] = {}
    for count in blocks.counts:
        zones.setdefault(count.zone, []).append(str(count.nr_walked))
    assert zones == {line[3]: line[4:] for line in stopped.lines("buddyinfo")}

    per_type = Counter(zip(blocks.migratetype.tolist(), blocks.order.tolist(), strict=True))
    told: Counter[tuple[int, int]] = Counter()
    text = (stopped.proc / "pagetypeinfo").read_text()
    for name, counts in re.findall(r"^Node.*, type\s+(\w+)((?:\s+\d+)+) *$", text, re.M):
        for order, number in enumerate(counts.split()):
            told[blocks.names.index(name), order] += int(number)
    assert per_type == told


def test_the_bitmap_of_pageblocks_agrees_with_the_lists(stopped: Stopped):
    blocks = walk_free_blocks(stopped.kernel, stopped.memmap)
    quick = migratetypes_of(stopped.kernel, stopped.memmap, blocks.pfn)
    assert np.array_equal(quick, blocks.migratetype)
    assert "Movable" in migratetype_names(stopped.kernel)


def test_free_blocks_are_the_frames_that_the_kernel_flags_as_free(stopped: Stopped):
    blocks = walk_free_blocks(stopped.kernel, stopped.memmap)
    words = np.fromfile(stopped.proc / "kpageflags", np.uint64)
    spans = zip(blocks.pfn.tolist(), blocks.order.tolist(), strict=True)
    mine = np.concatenate([np.arange(pfn, pfn + (1 << order)) for pfn, order in spans])
    told = np.flatnonzero(words & np.uint64(KPF.BUDDY))
    assert np.array_equal(mine, told)


def test_per_cpu_lists_have_as_many_frames_as_zoneinfo_says(stopped: Stopped):
    walked = walk_pcp(stopped.kernel, stopped.memmap)
    counts = re.findall(r"^\s+count:\s+(\d+)", (stopped.proc / "zoneinfo").read_text(), re.M)
    # The files are read just before the dump: a few pages may come or go meanwhile.
    for frames, count in zip(walked.frames, map(int, counts), strict=True):
        assert abs(frames.nr_pages - count) <= _MOVED, (frames.nr_pages, count)
    assert walked.torn == 0
    words = np.fromfile(stopped.proc / "kpageflags", np.uint64)
    for frames in walked.frames:
        used = words[frames.pfns] & np.uint64(KPF.LRU | KPF.SLAB | KPF.BUDDY)
        assert np.count_nonzero(used) <= _MOVED


def test_slab_caches_and_slabs_are_those_of_slabinfo(stopped: Stopped):
    caches, torn = find_caches(stopped.kernel, stopped.memmap)
    assert torn == 0
    told = {line[0]: line for line in stopped.lines("slabinfo")[2:]}
    assert {
        cache.name: (cache.size_bytes, cache.objects_per_slab, 1 << cache.order) for cache in caches
    } == {name: (int(line[3]), int(line[4]), int(line[5])) for name, line in told.items()}
    moved = 0
    for cache in caches:
        slabs, objects = int(told[cache.name][14]), int(told[cache.name][2])
        if (cache.nr_slabs, cache.nr_objects) != (slabs, objects):
            moved += abs(cache.nr_slabs - slabs)
            assert cache.nr_slabs != slabs, cache.name
    assert moved <= _MOVED

    # And from the other side: from the struct pages up.
    totals = slabs_at(stopped.kernel, stopped.memmap, _slab_heads(stopped.proc)).totals(caches)
    assert {name: (total.nr_slabs, total.nr_objects) for name, total in totals.items()} == {
        cache.name: (cache.nr_slabs, cache.nr_objects) for cache in caches if cache.nr_slabs
    }
    for name, total in totals.items():
        # slabinfo counts what waits on a CPU's partial slabs as active.
        if total.nr_objects == int(told[name][2]):
            assert total.nr_unused >= int(told[name][2]) - int(told[name][1])


def test_owned_ranges_do_not_overlap_and_hold_all_that_was_walked(stopped: Stopped):
    owned = walk_owned(stopped.kernel, stopped.memmap)
    assert owned.torn == {}
    assert owned.unseen == {}
    assert np.all(owned.pfn_start[1:] >= (owned.pfn_start + owned.nr_pages)[:-1])
    # Stacks are vmalloc areas too: together they are all that vmalloc has.
    frames = _frames(owned, MemoryType.VMALLOC) + _frames(owned, MemoryType.KERNEL_STACK)
    image_stack = 4
    assert (frames - image_stack) * 4 == stopped.kib("VmallocUsed")


def test_variables_are_found_through_the_code_that_uses_them(stopped: Stopped):
    kernel = dataclasses.replace(
        stopped.kernel, symbols=_FunctionsOnly(stopped.kernel), found_globals={}
    )
    view = View.of(kernel, stopped.memmap)
    found = {name: view.find_symbol(name) for name in VARIABLES}
    real = {name: stopped.kernel.symbols.address_of(name) for name in VARIABLES}
    wrong = {name for name, address in found.items() if address not in (None, real[name])}
    assert wrong == set()
    assert find_global(view, "jiffies") is None
    # Enough of them for every walk to begin.
    owned = walk_owned(kernel, stopped.memmap)
    whole = walk_owned(stopped.kernel, stopped.memmap)
    assert owned.unseen == {}
    for kind in (MemoryType.VMALLOC, MemoryType.FREE_PCP):
        assert _frames(owned, kind) == _frames(whole, kind)


@pytest.mark.parametrize("seed", range(4))
def test_walks_over_damaged_memory_end_and_say_what_was_broken(stopped: Stopped, seed: int):
    damaged = dataclasses.replace(
        stopped.kernel, memory=_Damaged(stopped.kernel, stopped.memmap, seed)
    )
    owned = walk_owned(damaged, stopped.memmap)
    assert sum(owned.torn.values()) + len(owned.unseen) > 0
    ends = owned.pfn_start + owned.nr_pages
    assert np.all(owned.pfn_start >= 0)
    assert np.all(ends <= stopped.memmap.pfn_end)


# --- helpers -------------------------------------------------------------------------------

_MOVED = 8
"""Pages, or slabs, that may change hands between the last file of /proc and the dump."""


class _FunctionsOnly:
    """The symbols of a kernel without CONFIG_KALLSYMS_ALL."""

    def __init__(self, kernel: Kernel) -> None:
        self.name_at = kernel.symbols.name_at
        self._kernel = kernel
        low, high = kernel.symbol("_stext"), kernel.symbol("_etext")
        self._code = range(low, high)

    def address_of(self, name: str) -> int | None:
        address = self._kernel.symbols.address_of(name)
        return address if address is not None and address in self._code else None


class _Damaged:
    """The memory of a kernel in which one word of 64 holds something else: a pointer to a
    random struct page, to a word elsewhere in its own page, or to nowhere."""

    def __init__(self, kernel: Kernel, memmap: MemMap, seed: int) -> None:
        self._memory = kernel.memory
        self._low, self._nr = memmap.vmemmap, memmap.pfn_end
        self._seed = seed

    def read(self, address: int, size_bytes: int) -> bytes:
        raw = self._memory.read(address, size_bytes)
        if address % 4096 or size_bytes != 4096 or address >= 0xFFFFFFFF80000000:
            return raw
        random = np.random.default_rng([self._seed, address >> 12])
        words = np.frombuffer(raw, np.uint64).copy()
        hit = random.integers(0, words.size, words.size // 64)
        kind = random.integers(0, 3, hit.size)
        words[hit] = np.choose(
            kind,
            [
                np.uint64(self._low) + random.integers(0, self._nr, hit.size, np.uint64) * 64 + 8,
                np.uint64(address) + random.integers(0, 512, hit.size, np.uint64) * 8,
                random.integers(0, 1 << 63, hit.size, np.uint64),
            ],
        )
        return words.tobytes()

    def read_into(self, address: int, into: NDArray[np.uint8]) -> None:
        self._memory.read_into(address, into)


def _frames(owned: OwnedRanges, kind: MemoryType) -> int:
    return int(owned.nr_pages[owned.kinds == kind_code(kind)].sum())


def _slab_heads(proc: Path) -> NDArray[np.int64]:
    """The first frame of each slab, from the kernel's own flags. The head flag of a slab of
    one frame is not there; tails are marked."""
    words = np.fromfile(proc / "kpageflags", np.uint64)
    is_slab = words & np.uint64(KPF.SLAB) != 0
    is_tail = words & np.uint64(KPF.COMPOUND_TAIL) != 0
    return np.flatnonzero(is_slab & ~is_tail)

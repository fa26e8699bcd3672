"""The walks on this machine, which goes on working meanwhile."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from memdesc.structs.kernel import Kernel
from memdesc.structs.live import open_live_kernel, why_not
from memdesc.structs.memmap import MemMap
from memdesc.structs.walk import walk_owned
from memdesc.structs.walk.percpu import walk_percpu
from memdesc.structs.walk.slab import find_caches
from memdesc.structs.walk.stacks import walk_stacks
from memdesc.structs.walk.tasks import find_tasks
from memdesc.structs.walk.vmap import walk_vmap

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def live() -> tuple[Kernel, MemMap]:
    if reason := why_not():
        pytest.skip(f"kernel memory is not readable: {reason}")
    kernel = open_live_kernel()
    return kernel, MemMap.find(kernel)


def meminfo(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_totals_lie_between_two_readings_of_meminfo(live: tuple[Kernel, MemMap]):
    for name, walk in (("VmallocUsed", walk_vmap), ("KernelStack", walk_stacks)):
        before = meminfo(name)
        walked = sum(frames.nr_pages for frames in walk(*live).frames) * 4
        after = meminfo(name)
        # What comes and goes within milliseconds, and the CPUs' kept stacks.
        assert min(before, after) - 512 <= walked <= max(before, after) + 512


def test_per_cpu_memory_is_that_of_meminfo(live: tuple[Kernel, MemMap]):
    walked = walk_percpu(*live)
    frames = np.unique(walked.frames[0].pfns).size
    # /proc/meminfo counts units that no CPU has, too.
    assert frames * 4 <= meminfo("Percpu") + 256
    assert frames * 4 * 2 >= meminfo("Percpu")


def test_this_process_is_a_task(live: tuple[Kernel, MemMap]):
    comm = Path("/proc/self/comm").read_text().strip()
    assert comm in {task.comm for task in find_tasks(*live).tasks}


def test_every_slab_cache_of_slabinfo_is_found(live: tuple[Kernel, MemMap]):
    try:
        text = Path("/proc/slabinfo").read_text()
    except OSError as error:
        pytest.skip(f"/proc/slabinfo cannot be read: {error}")
    caches, _ = find_caches(*live)
    told = {line.split()[0] for line in text.splitlines()[2:]}
    assert len(told ^ {cache.name for cache in caches}) <= len(told) // 50


def test_all_walks_can_be_done_here(live: tuple[Kernel, MemMap]):
    owned = walk_owned(*live)
    assert owned.unseen == {}
    assert len(owned) > 0

"""Random steps: whatever is shared, merged, swapped or given back, contents stay."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from memdesc.mm.areas.madvise import madvise
from memdesc.mm.areas.mmap import exit_process, mmap
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.ksm.ksm import scan, stop_and_unmerge
from memdesc.mm.reclaim.shrink_lruvec import shrink_lists
from memdesc.mm.reclaim.swapfile import swapoff, swapon

AT = 0x10000
PAGES = 12
STEPS = 120


class Steps:
    """A machine and what every page of every process must hold."""

    def __init__(self, series: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.kernel = Kernel(series, memory_bytes=64 << 20)
        swapon(self.kernel)
        self.kernel.set_knob("ksm_max_sharing", "3")
        self.kernel.set_knob("ksm_zero_pages", str(seed % 2))
        self.kernel.set_knob("ksm_smart_scan", str(int(seed % 3 == 0)))
        mmap(self.kernel, self.kernel.process("p0").mm, AT, PAGES)
        self.wanted = {"p0": [0] * PAGES}
        self.forks = 0

    def step(self) -> None:
        process = self.kernel.processes[self.random.choice(sorted(self.wanted))]
        first = self.random.randrange(PAGES)
        end = self.random.randrange(first, PAGES) + 1
        wanted = self.wanted[process.name]
        kernel = self.kernel
        advise: Callable[[str], None] = lambda advice: madvise(  # noqa: E731
            kernel, process, AT + first, AT + end, advice
        )
        match self.random.choice(_KINDS):
            case "write" | "free" as kind:
                # Of clean pages, MADV_FREE does not ask who else maps them: only when alone.
                if kind == "free" and len(self.wanted) == 1:
                    advise("free")
                    kernel.drain()
                for page in range(first, end):
                    wanted[page] = self.random.randrange(4)
                    kernel.write(process, AT + page, wanted[page])
            case "read":
                found = [kernel.read(process, AT + page) for page in range(first, end)]
                assert found == wanted[first:end]
            case "fork" if len(self.wanted) < 5:
                self.forks += 1
                fork(kernel, process, f"p{self.forks}")
                self.wanted[f"p{self.forks}"] = list(wanted)
            case "exit" if len(self.wanted) > 1:
                exit_process(kernel, process)
                del self.wanted[process.name]
            case "dontneed":
                advise("dontneed")
                wanted[first:end] = [0] * (end - first)
            case "scan":
                scan(kernel)
            case "shrink":
                shrink_lists(kernel, anon=self.random.randrange(40))
            case "swapoff" if self.random.random() < 0.3:
                swapoff(kernel)
                kernel.drain()
                check(kernel)
                swapon(kernel)
            case "run2" if self.random.random() < 0.3:
                stop_and_unmerge(kernel)
            case "pageout" | "willneed" | "mergeable" | "unmergeable" as advice:
                advise(advice)
        kernel.drain()
        check(kernel)
        counted = kernel.counters()
        counted.pop("ksm.general_profit", None)  # what ksmd keeps may cost more than it gains
        assert min(counted.values()) >= 0


_KINDS = (
    "write", "write", "read", "fork", "exit", "pageout", "pageout", "scan", "scan", "willneed",
    "dontneed", "shrink", "mergeable", "unmergeable", "swapoff", "free", "run2",
)  # fmt: skip


@pytest.mark.parametrize("series", ["6.1", "6.12", "7.2"])
@pytest.mark.parametrize("seed", [2, 3, 15])
def test_random_steps(series: str, seed: int) -> None:
    steps = Steps(series, seed)
    for _ in range(STEPS):
        steps.step()
    kernel = steps.kernel
    for name, wanted in steps.wanted.items():
        process = kernel.processes[name]
        assert [kernel.read(process, AT + page) for page in range(PAGES)] == wanted
    for name in sorted(steps.wanted):
        exit_process(kernel, kernel.processes[name])
    kernel.drain()
    check(kernel)
    assert kernel.swap is not None
    assert not kernel.swap.counts
    assert not kernel.swap.cache

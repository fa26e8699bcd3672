"""Large folios below 2 MiB: slots of swap, splits around a page, khugepaged, and their counters."""

from __future__ import annotations

import random

import pytest

from memdesc.mm import entries as e
from memdesc.mm.areas.madvise import madvise
from memdesc.mm.areas.mmap import exit_process, mmap
from memdesc.mm.check import check
from memdesc.mm.huge.khugepaged import khugepaged_pass
from memdesc.mm.huge.large_folio import split_folio
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Process
from memdesc.mm.reclaim.swap_slots import SWAP_PAGES, Slots
from memdesc.mm.reclaim.swapfile import swapoff, swapon
from memdesc.model.check_slab import check_described
from memdesc.model.designs import MEMDESC_8

AT = 0x10000
HUGE = 512


def machine(release: str, **knobs: str) -> tuple[Kernel, Process]:
    """An area of 2 MiB that wants large folios."""
    kernel = Kernel(release, memory_bytes=64 << 20, design=MEMDESC_8)
    for name, value in knobs.items():
        kernel.set_knob(name, value)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, HUGE)
    madvise(kernel, process, AT, AT + HUGE, "hugepage")
    return kernel, process


def orders(kernel: Kernel, process: Process) -> dict[int, int]:
    """Order of each folio that is mapped -> how many there are."""
    entries = (process.mm.tables.entry(vpn) for vpn in range(AT, AT + HUGE))
    heads = {kernel.head(e.pfn_of(entry)) for entry in entries if e.is_present(entry)}
    found: dict[int, int] = {}
    for head in heads:
        found[kernel.order_of(head)] = found.get(kernel.order_of(head), 0) + 1
    return found


def is_sound(kernel: Kernel) -> None:
    check(kernel)
    check_described(kernel.machine)


@pytest.mark.parametrize("behind_header", [False, True])
def test_slots_are_aligned_and_never_given_twice(behind_header: bool) -> None:
    rng = random.Random(3)
    slots = Slots(behind_header)
    held: list[range] = []
    taken: set[int] = {0}
    for _ in range(4000):
        order = rng.choice((0, 0, 0, 2, 4, 9))
        if held and rng.random() < 0.45:
            for slot in held.pop(rng.randrange(len(held))):
                slots.release(slot)
                taken.remove(slot)
        elif (first := slots.alloc(order)) is not None:
            mine = range(first, first + (1 << order))
            assert first % (1 << order) == 0
            assert taken.isdisjoint(mine)
            assert mine[-1] <= SWAP_PAGES
            taken.update(mine)
            held.append(mine)
    for piece in held:
        for slot in piece:
            slots.release(slot)
    everything = [slots.alloc(0) for _ in range(SWAP_PAGES)]
    assert len(set(everything)) == SWAP_PAGES
    assert None not in everything
    assert slots.alloc(0) is None


@pytest.mark.parametrize("pages", [100, 511, 600, 1024])
def test_all_slots_of_a_small_device_can_be_had(pages: int) -> None:
    slots = Slots(pages=pages)
    assert {slots.alloc(0) for _ in range(pages)} == set(range(1, pages + 1))
    assert slots.alloc(0) is None


@pytest.mark.parametrize(("release", "swpin"), [("6.12", None), ("7.2", 32)])
def test_a_large_folio_goes_out_and_comes_back_whole(release: str, swpin: int | None) -> None:
    kernel, process = machine(release, thp_64k="madvise")
    for page in range(HUGE):
        kernel.write(process, AT + page, page + 1)
    assert orders(kernel, process) == {4: 32}
    swapon(kernel)
    madvise(kernel, process, AT, AT + HUGE, "pageout")
    assert orders(kernel, process) == {}
    assert [kernel.read(process, AT + page) for page in range(HUGE)] == list(range(1, HUGE + 1))
    assert orders(kernel, process) == {4: 32}
    counters = kernel.counters()
    assert counters["thp.64kB.swpout"] == counters["thp.64kB.nr_anon"] == 32
    assert counters.get("thp.64kB.swpin") == swpin
    is_sound(kernel)
    swapoff(kernel)
    exit_process(kernel, process)
    is_sound(kernel)


@pytest.mark.parametrize("page", [0, 5, 255, 511])
def test_a_split_around_a_page_keeps_the_rest_large(page: int) -> None:
    kernel, process = machine("7.2", thp="madvise")
    for at in range(HUGE):
        kernel.write(process, AT + at, at + 1)
    head = e.pfn_of(process.mm.tables.entry(AT))
    assert not split_folio(kernel, head + page, evenly=False)
    # There are no anonymous folios of two pages: the last four become small ones.
    assert orders(kernel, process) == {0: 4, **dict.fromkeys(range(2, 9), 1)}
    assert [kernel.read(process, AT + at) for at in range(HUGE)] == list(range(1, HUGE + 1))
    assert kernel.counters()["thp.2048kB.split"] == 1
    is_sound(kernel)


@pytest.mark.parametrize(
    ("none", "found"),
    [("0", {0: 4, 2: 3, 4: 1}), ("300", {0: 4, 2: 3, 4: 1}), ("511", {4: 4})],
)
def test_khugepaged_takes_the_largest_size_that_is_full(none: str, found: dict[int, int]) -> None:
    kernel, process = machine("7.2")
    for page in (*range(16), *range(20, 30), *range(32, 36), 40, 70):
        kernel.write(process, AT + page, page + 1)
    for name, value in {"thp_16k": "madvise", "thp_64k": "madvise", "max_ptes_none": none}.items():
        kernel.set_knob(name, value)
    madvise(kernel, process, AT, AT + HUGE, "hugepage")
    khugepaged_pass(kernel)
    assert orders(kernel, process) == found
    assert [kernel.read(process, AT + page) for page in (0, 29, 40, 70)] == [1, 30, 41, 71]
    is_sound(kernel)

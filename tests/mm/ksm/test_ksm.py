"""KSM: how many pages are left of equal ones, and that contents never change by merging."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import exit_process, mmap, munmap
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.ksm.ksm import ksm_madvise, scan, stop_and_unmerge
from memdesc.mm.process import Errno, Process
from memdesc.mm.rmap import mappings_of

AT = 0x10000
SERIES = ("6.1", "6.12", "7.2")


def mergeable(series: str, contents: list[int], max_sharing: int = 256) -> tuple[Kernel, Process]:
    kernel = Kernel(series, memory_bytes=64 << 20)
    kernel.set_knob("ksm_max_sharing", str(max_sharing))
    process = kernel.process("p")
    vma = mmap(kernel, process.mm, AT, len(contents))
    for page, content in enumerate(contents):
        kernel.write(process, AT + page, content)
    vma.flags = ksm_madvise(kernel, process.mm, vma, AT, AT + len(contents), "mergeable")
    return kernel, process


def frames(process: Process, pages: int) -> list[int]:
    return [e.pfn_of(process.mm.tables.entry(AT + page)) for page in range(pages)]


@pytest.mark.parametrize("most", [2, 3, 5])
@pytest.mark.parametrize("pages", range(1, 13))
def test_counts_of_equal_pages(pages: int, most: int) -> None:
    """n equal pages with at most m to a frame: a single one that is left over cannot merge."""
    kernel, process = mergeable("6.12", [7] * pages, most)
    for _ in range(3):
        scan(kernel)
        check(kernel)
    whole, left = divmod(pages, most)
    shared = whole + (left > 1)
    sharing = whole * (most - 1) + (left - 1 if left > 1 else 0)
    found = kernel.counters()
    assert (found["ksm.pages_shared"], found["ksm.pages_sharing"]) == (shared, sharing)
    assert len(set(frames(process, pages))) == shared + (left == 1)
    assert found["ksm.pages_unshared"] == (left == 1)


@pytest.mark.parametrize("series", SERIES)
def test_contents_survive_merging_writing_forking_and_unmerging(series: str) -> None:
    kernel, parent = mergeable(series, [1, 1, 2, 1, 2, 3])
    scan(kernel)
    scan(kernel)
    check(kernel)
    assert len(set(frames(parent, 6))) == 3
    child = fork(kernel, parent, "c")
    kernel.write(child, AT, 2)
    for _ in range(3):
        scan(kernel)
        check(kernel)
    assert [kernel.read(parent, AT + page) for page in range(6)] == [1, 1, 2, 1, 2, 3]
    assert [kernel.read(child, AT + page) for page in range(6)] == [2, 1, 2, 1, 2, 3]
    assert frames(child, 1) == frames(parent, 3)[2:]
    stop_and_unmerge(kernel)
    check(kernel)
    every = frames(parent, 5) + frames(child, 5)
    assert len(set(every)) == 10
    assert not any(kernel.flags(pfn) & KPF.KSM for pfn in every)
    assert [kernel.read(child, AT + page) for page in range(6)] == [2, 1, 2, 1, 2, 3]
    exit_process(kernel, child)
    exit_process(kernel, parent)
    scan(kernel)
    assert not kernel.ksm.slots


@pytest.mark.parametrize("series", SERIES)
def test_every_mapping_of_a_merged_page_is_found(series: str) -> None:
    kernel, parent = mergeable(series, [5, 5, 5])
    scan(kernel)
    scan(kernel)
    child = fork(kernel, parent, "c")
    munmap(kernel, parent.mm, AT + 1, AT + 2)
    pfn = frames(parent, 1)[0]
    expected = {(parent.mm, AT), (parent.mm, AT + 2)}
    expected |= {(child.mm, AT + page) for page in range(3)}
    for _ in range(2):
        found = [(mm, vpn) for mm, _, vpn in mappings_of(kernel, pfn)]
        assert set(found) == expected
        assert len(found) == len(expected) == kernel.mapcount(pfn)
        # Then ksmd has notes of the child's pages as well, which lead to the same places.
        scan(kernel)


@pytest.mark.parametrize("series", SERIES)
def test_settings_of_the_tree_wait_until_it_is_empty(series: str) -> None:
    kernel, process = mergeable(series, [7] * 4)
    scan(kernel)
    scan(kernel)
    with pytest.raises(Errno, match="EBUSY"):
        kernel.set_knob("ksm_max_sharing", "3")
    assert kernel.knobs["ksm_max_sharing"] == "256"
    munmap(kernel, process.mm, AT, AT + 4)
    with pytest.raises(Errno, match="EBUSY"):
        kernel.set_knob("ksm_max_sharing", "3")
    scan(kernel)
    kernel.set_knob("ksm_max_sharing", "3")
    with pytest.raises(Errno, match="EINVAL"):
        kernel.set_knob("ksm_max_sharing", "1")


def test_pruning_prefers_the_fullest_page() -> None:
    """Two shared pages with room: the first of the chain, or the one with more sharers."""
    for prune, expected in (("4000000", 1), ("0", 2)):
        kernel, process = mergeable("6.12", [7] * 8 + [1], 4)
        scan(kernel)
        scan(kernel)
        kernel.write(process, AT, 2)
        kernel.write(process, AT + 4, 3)
        kernel.write(process, AT + 5, 4)
        kernel.set_knob("ksm_prune", prune)
        kernel.write(process, AT + 8, 7)
        scan(kernel)
        scan(kernel)
        chain = kernel.ksm.stable[7]
        sharers = sorted(len(node.items) for node in chain.nodes)
        assert sharers == ([3, 3] if expected == 1 else [2, 4]), (prune, sharers)
        check(kernel)

"""The slab allocator: where objects come from, and when slabs go back."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from memdesc.errors import QuestionError
from memdesc.kernels.slub import slub_rules
from memdesc.model.check_slab import check_slabs
from memdesc.model.machine import Machine
from memdesc.model.slab_caches import SlabAllocator
from memdesc.model.slab_state import ON_CPU, ON_CPU_PARTIAL, ON_NODE, R_IN_USE, R_PFN, R_PLACE
from memdesc.model.zones import Layout

KERNELS = ("6.1", "6.12", "7.2")


def allocator(kernel: str = "6.12", cpus: int = 2, nodes: int = 1) -> SlabAllocator:
    machine = Machine(Layout.pc((32 << 20) * 8 * nodes, nodes=nodes), kernel, cpus)
    return SlabAllocator(machine, slub_rules(machine.rules.release))


def take(slabs: SlabAllocator, count: int, cpu: int = 0) -> list[int]:
    cache = slabs.caches[0]
    found = [slabs.alloc(cache, cpu) for _ in range(count)]
    assert None not in found
    return [address for address in found if address is not None]


def test_objects_come_in_ascending_order_and_the_last_freed_comes_first() -> None:
    slabs = allocator()
    slabs.create("filp", 184, hwcache_align=True)
    first = take(slabs, 21)
    assert first == [first[0] + 192 * i for i in range(21)]
    slabs.free(first[4])
    slabs.free(first[9])
    # The CPU's slab was full and is no longer the CPU's own list: both come back by the slab.
    assert take(slabs, 2) == [first[9], first[4]]
    assert slabs.statistics(slabs.caches[0]).slabs == 1
    assert take(slabs, 1)[0] >> 12 != first[0] >> 12


def test_caches_that_the_kernel_would_merge_share_their_slabs() -> None:
    slabs = allocator()
    one = slabs.create("anon_vma_chain", 64)
    other = slabs.create("jbd2_inode", 60)
    apart = slabs.create("dentry", 64, reclaim_account=True)
    made = slabs.create("with_constructor", 56, constructor=True)
    assert other.merged_into == "anon_vma_chain"
    assert len({one.number, apart.number, made.number}) == 3
    a, b = slabs.alloc(one), slabs.alloc(other)
    assert a is not None
    assert b == a + 64
    assert [line.name for line in slabs.slabinfo()] == [
        "anon_vma_chain",
        "dentry",
        "with_constructor",
    ]
    with pytest.raises(QuestionError, match="merged into"):
        slabs.destroy(one)
    slabs.destroy(other)
    with pytest.raises(QuestionError, match="in use"):
        slabs.destroy(one)
    slabs.free(a)
    slabs.free(b)
    slabs.destroy(one)
    assert slabs.create("anon_vma_chain", 64).number == one.number


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_an_empty_slab_goes_back_when_the_node_has_enough_partial_ones(kernel: str) -> None:
    """min_partial is 5 for this size; the CPU keeps up to 12 slabs (120 * 2 objects by 21)."""
    slabs = allocator(kernel)
    cache = slabs.create("dentry", 192)
    addresses = take(slabs, 21 * 40)
    assert slabs.statistics(cache).slabs == 40
    for address in addresses[:-21]:  # all slabs but the CPU's become empty
        slabs.free(address, cpu=1)
    left = slabs.statistics(cache)
    # What is on CPU 1's partial list stays, up to the limit, and five on the node.
    assert left.slabs - 1 <= 12 + 5
    assert left.slabs_freed == 40 - left.slabs > 20
    assert slabs.shrink(cache) == 1
    assert slabs.statistics(cache).slabs_freed == 39
    assert not check_slabs(slabs)


def places(slabs: SlabAllocator) -> dict[int, int]:
    """How many slabs are where (R_PLACE)."""
    return dict(Counter(slabs.records()[:, R_PLACE].tolist()))


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_partial_slabs_move_between_cpu_and_node_in_lots(kernel: str) -> None:
    """192 bytes: 12 slabs on a CPU's partial list; more than half of that are taken at once."""
    slabs = allocator(kernel)
    cache = slabs.create("dentry", 192)
    addresses = take(slabs, 21 * 20)
    for slab in range(12):
        slabs.free(addresses[21 * slab], cpu=1)
    assert places(slabs)[ON_CPU_PARTIAL] == 12
    assert ON_NODE not in places(slabs)
    slabs.free(addresses[21 * 12], cpu=1)  # one too many: all twelve go to the node
    assert (places(slabs)[ON_CPU_PARTIAL], places(slabs)[ON_NODE]) == (1, 12)
    slabs.shrink(cache)
    assert places(slabs)[ON_NODE] == 13
    take(slabs, 1)  # one to use, and seven for the CPU's partial list
    found = places(slabs)
    assert (found[ON_CPU], found[ON_CPU_PARTIAL], found[ON_NODE]) == (1, 7, 13 - 8)
    assert not check_slabs(slabs)


def test_sheaves_keep_what_a_cpu_frees_and_the_barn_takes_ten() -> None:
    """7.2: 60 objects a sheaf; main, spare and ten full ones in the barn hold 720."""
    slabs = allocator("7.2")
    cache = slabs.create("dentry", 192)
    addresses = take(slabs, 2000)
    made = slabs.statistics(cache).slabs
    for address in addresses:
        slabs.free(address)
    line = slabs.slabinfo()[0]
    # Objects in sheaves look active to slabinfo.
    assert 660 <= line.active_objs <= 720
    assert slabs.statistics(cache).slabs_freed > (2000 - 720 - 5 * 21) // 21 // 2
    again = take(slabs, 600)
    assert slabs.statistics(cache).slabs_made == made
    assert not check_slabs(slabs)
    for address in again:
        slabs.free(address)
    assert slabs.shrink(cache) == 0


def test_shrinking_brings_the_fullest_slabs_to_the_front() -> None:
    slabs = allocator()
    cache = slabs.create("dentry", 192)
    addresses = take(slabs, 21 * 4)
    for slab, keep in enumerate((3, 20, 11)):
        for address in addresses[21 * slab + keep : 21 * (slab + 1)]:
            slabs.free(address, cpu=1)
    assert slabs.shrink(cache) == 4
    slabs.free(take(slabs, 1)[0])  # the first partial slab becomes the CPU's
    records = {row[R_PFN]: row[R_IN_USE] for row in slabs.records().tolist()}
    fullest = take(slabs, 1)[0] >> 12
    assert fullest == addresses[21] >> 12
    assert records[addresses[0] >> 12] == 3


def test_without_large_blocks_a_slab_takes_the_least_order() -> None:
    slabs = allocator()
    cache = slabs.create("task_struct", 4096)
    assert cache.slab == (3, 8)
    slabs.machine.fail_after(1)
    assert slabs.alloc(cache) is not None
    info = slabs.slabinfo()[0]
    assert (info.num_objs, info.num_slabs) == (1, 1)
    slabs.machine.fail_after(0)
    assert slabs.alloc(cache) is not None
    assert slabs.slabinfo()[0].num_objs == 1 + 8
    assert not check_slabs(slabs)


@pytest.mark.parametrize("wrong", [0, 8, -4096, 1 << 50])
def test_only_an_object_in_use_can_be_freed(wrong: int) -> None:
    slabs = allocator()
    slabs.create("dentry", 192)
    address = take(slabs, 1)[0]
    with pytest.raises(QuestionError, match="no object in use"):
        slabs.free(address + wrong if wrong else 0)
    slabs.free(address)
    with pytest.raises(QuestionError, match="no object in use"):
        slabs.free(address)


def test_names_cpus_and_caches_that_do_not_exist_are_refused() -> None:
    slabs = allocator()
    cache = slabs.create("dentry", 192)
    with pytest.raises(QuestionError, match="exists"):
        slabs.create("dentry", 64)
    with pytest.raises(QuestionError, match="no CPU 2"):
        slabs.alloc(cache, cpu=2)
    with pytest.raises(QuestionError, match="no cache"):
        slabs.cache("inode")
    with pytest.raises(QuestionError, match="no cache"):
        allocator().alloc(cache)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("nodes", [1, 2])
def test_random_traffic_leaves_nothing_behind(kernel: str, nodes: int) -> None:
    slabs = allocator(kernel, cpus=4, nodes=nodes)
    caches = [*slabs.create_kmalloc().values(), slabs.create("inode", 600, constructor=True)]
    chance = random.Random(7)
    live: list[int] = []
    for step in range(4000):
        # A tide: more come than go, then more go than come.
        if chance.random() < (0.7 if step % 1000 < 500 else 0.3) or not live:
            address = slabs.alloc(chance.choice(caches), chance.randrange(4))
            assert address is not None
            live.append(address)
        else:
            slabs.free(live.pop(chance.randrange(len(live))), chance.randrange(4))
        if step % 400 == 0:
            assert not check_slabs(slabs)
    assert len(set(live)) == len(live)
    for address in live:
        slabs.free(address)
    for cache in caches:
        assert slabs.shrink(cache) == 0
    assert not check_slabs(slabs)

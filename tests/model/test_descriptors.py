"""Frames and their descriptors: words, failure half-way, the end of the recursion."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.errors import QuestionError
from memdesc.model.check_slab import check_described, problems_of
from memdesc.model.compiled import COMPILED, array
from memdesc.model.cost import Mix, cost, in_slabs
from memdesc.model.described import ALLOCATED, KIND_CODES, DescribedMachine
from memdesc.model.designs import (
    DESIGNS,
    FOLIO_SMALL,
    MEMDESC_8,
    OVERLAYS,
    PAGE_16,
    PAGE_32,
    SLAB,
    STRUCT_PAGE,
    Design,
)
from memdesc.model.frame_words import misc_word
from memdesc.model.slab_state import (
    FREE_WORD,
    R_CACHE,
    R_NEXT,
    R_ORDER,
    R_PLACE,
    R_SELF,
    RECORD_FIELDS,
    S_REFS,
    S_VALUE,
    SLOT_FIELDS,
)
from memdesc.model.state import G_CPU_NODE, G_FRAMES, V_FAIL_AFTER
from memdesc.model.zones import Layout
from memdesc.types import MemoryType
from memdesc.word import MiscWord, PointerWord, decode, encode_misc, encode_pointer

KERNELS = ("6.1", "6.12", "7.2")
SEPARATE = (PAGE_32, PAGE_16, MEMDESC_8)
EVERY = [(design, kernel) for design in DESIGNS.values() for kernel in KERNELS]
NAMES = [f"{design.id}-{kernel}" for design, kernel in EVERY]


def machine(
    design: Design = MEMDESC_8, kernel: str = "6.12", *, mib: int = 32, nodes: int = 1
) -> DescribedMachine:
    return DescribedMachine(Layout.pc(mib << 20, nodes=nodes), design, kernel)


# --- words -------------------------------------------------------------------------------


@given(
    st.integers(0, 127), st.integers(0, 63), st.booleans(), st.integers(0, 1023), st.integers(0, 7)
)
def test_words_without_a_descriptor_are_those_of_the_plan(
    subtype: int, order: int, mappable: bool, node: int, zone: int
) -> None:
    ours = misc_word(subtype, order, int(mappable), node, zone) & ((1 << 64) - 1)
    assert ours == encode_misc(subtype, order=order, user_mappable=mappable, node=node, zone=zone)


@pytest.mark.parametrize("kind", sorted(ALLOCATED, key=lambda kind: kind.value))
@pytest.mark.parametrize("order", [0, 2])
def test_every_frame_of_an_allocation_holds_the_word_of_its_type(
    kind: MemoryType, order: int
) -> None:
    described = machine()
    pfn = described.alloc(kind, order)
    assert pfn is not None
    words = {described.word(each) for each in range(pfn, pfn + (1 << order))}
    assert len(words) == 1
    word = decode(words.pop())
    spec = MEMDESC_8.descriptor(kind, order)
    if spec is None:
        assert isinstance(word, MiscWord)
        assert (word.order, word.node, word.zone) == (order, 0, 1)  # DMA32
        assert word.user_mappable == (kind is MemoryType.DRIVER_MAPPED)
    else:
        assert isinstance(word, PointerWord)
        # The object lies in a slab whose own word leads to a slab descriptor.
        slab = decode(described.word((word.pointer - 0xFFFF_8880_0000_0000) >> 12))
        assert isinstance(slab, PointerWord)
        assert slab.plan_type.name == "Slab"
        assert described.descriptor_caches[spec].name == f"memdesc {spec.name}"
        assert described.word(pfn) == encode_pointer(word.plan_type.value, word.pointer)
    check_described(described)


def test_frames_that_nobody_allocated_have_words_too() -> None:
    described = machine()
    assert decode(described.word(0)) == MiscWord(0)
    free = described.alloc(MemoryType.ANON)
    assert free is not None
    described.free(free)
    assert described.word(free) == FREE_WORD
    with pytest.raises(QuestionError, match="no frame"):
        described.word(1 << 30)
    with pytest.raises(QuestionError, match="no memdesc word"):
        machine(OVERLAYS).word(0)


def test_a_frame_takes_at_most_twenty_bytes_of_the_model() -> None:
    """What grows with use (slabs, their objects) is beside."""
    described = machine(mib=512)
    frames = described.pages.state.params[G_FRAMES]
    fixed = sum(array(column).nbytes for column in described.pages.state)
    assert (fixed + array(described.slabs.state.word).nbytes) / frames <= 20


# --- the recursion -----------------------------------------------------------------------


def test_the_first_folio_takes_two_slabs_and_the_recursion_ends_there() -> None:
    """folio -> its slab -> the slab's descriptor -> a slab that describes itself."""
    described = machine()
    assert described.alloc(MemoryType.FILE) is not None
    rows = described.slabs.records().tolist()
    assert [row[R_SELF] for row in rows] == [0, 1]
    # One folio, and two slab descriptors: of the folio's slab and of their own.
    assert described.metadata().descriptors == 3
    assert described.slabs.statistics(described.descriptor_caches[SLAB]).objects_in_use == 2


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_slab_in_which_only_its_own_descriptor_is_in_use_goes_back(kernel: str) -> None:
    described = machine(kernel=kernel)
    before = described.pages.counters()["nr_free_pages"]
    pfns = [described.alloc(MemoryType.ANON) for _ in range(3000)]
    cache = described.descriptor_caches[SLAB]
    for pfn in pfns:
        assert pfn is not None
        described.free(pfn)
    for each in described.descriptor_caches.values():
        described.slabs.shrink(each)
    assert described.slabs.shrink(cache) == 0
    assert described.metadata().descriptors == 0
    described.pages.drain()
    assert described.pages.counters()["nr_free_pages"] == before
    check_described(described)


def sum_of_pcp(described: DescribedMachine) -> int:
    return sum(len(blocks) for blocks in described.pages.percpu_lists().values())


# --- failure -----------------------------------------------------------------------------


@pytest.mark.parametrize(("design", "kernel"), EVERY, ids=NAMES)
def test_memory_may_run_out_at_any_allocation(design: Design, kernel: str) -> None:
    """The n-th page allocation fails, for every n: what was half done is undone."""
    n = 0
    failed = {"frames": 0, "descriptors": 0}
    while True:
        n += 1
        described = machine(design, kernel, mib=24)
        kmalloc = described.slabs.create("kmalloc-1k", 1024)
        described.pages.fail_after(n)
        lost = 0
        for kind, order in ((MemoryType.FILE, 0), (MemoryType.ANON, 2), (MemoryType.PAGE_TABLE, 0)):
            before = held(described)
            if described.alloc(kind, order) is None:
                lost += 1
                assert held(described) == before
        if described.slabs.alloc(kmalloc) is None:
            lost += 1
        check_described(described)
        for cause, count in described.failures.items():
            failed[cause] += count
        if described.pages.state.params[V_FAIL_AFTER] != 0:
            break
        assert lost <= 1
    assert failed["frames"] == 3
    # Both slabs of each of three descriptors, but for the shared slab of slab descriptors.
    assert failed["descriptors"] == (4 if design.allocates else 0)


def held(described: DescribedMachine) -> int:
    """Descriptors in use but those of slabs."""
    return sum(
        described.slabs.statistics(cache).objects_in_use
        for spec, cache in described.descriptor_caches.items()
        if spec is not SLAB
    )


def test_a_full_machine_fails_for_want_of_a_descriptor() -> None:
    described = machine(mib=24)
    while described.alloc(MemoryType.ANON) is not None:
        pass
    assert sum(described.failures.values()) == 1
    check_described(described)
    free = described.pages.counters()["nr_free_pages"]
    # Freeing allocates nothing, however full it is.
    described.pages.fail_after(1)
    for pfn in heads(described)[:200]:
        described.free(pfn)
    assert described.pages.state.params[V_FAIL_AFTER] == 1
    assert described.pages.counters()["nr_free_pages"] + sum_of_pcp(described) >= free
    check_described(described)


def heads(described: DescribedMachine) -> list[int]:
    words = described.words()
    return np.flatnonzero(words & np.uint64(15) == 3).tolist()


# --- what cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS.values(), ids=list(DESIGNS))
def test_only_what_begins_there_and_nobody_holds_can_be_freed(design: Design) -> None:
    described = machine(design)
    pfn = described.alloc(MemoryType.FILE, 2)
    assert pfn is not None
    for wrong in (pfn + 1, 0, -1, 1 << 40):
        with pytest.raises(QuestionError):
            described.free(wrong)
    reference = described.get(pfn + 3)
    assert reference is not None
    assert described.refcount(pfn) == 2
    with pytest.raises(QuestionError, match="references"):
        described.free(pfn)
    assert described.put(reference) == 1
    assert described.put(reference) == 0
    with pytest.raises(QuestionError, match="no allocation"):
        described.free(pfn)
    check_described(described)


def test_slabs_and_free_memory_are_not_allocated_as_such() -> None:
    for kind in (MemoryType.SLAB, MemoryType.FREE, MemoryType.HOLE):
        with pytest.raises(QuestionError, match="not allocated by itself"):
            machine().alloc(kind)
    with pytest.raises(QuestionError, match="no block has order"):
        machine().alloc(MemoryType.FILE, 11)


def test_page_tables_and_slabs_cannot_be_held() -> None:
    described = machine()
    table = described.alloc(MemoryType.PAGE_TABLE)
    cache = described.slabs.create("dentry", 192)
    address = described.slabs.alloc(cache)
    driver = described.alloc(MemoryType.DRIVER)
    assert table is not None
    assert address is not None
    assert driver is not None
    assert described.get(table) is described.get(address >> 12) is described.get(driver) is None
    assert described.refcount(table) is None


# --- designs -----------------------------------------------------------------------------


def traffic(described: DescribedMachine, steps: int = 1500) -> list[int]:
    """A fixed mixture on any design; the frames it gets, in order."""
    chance = random.Random(11)
    found: list[int] = []
    live: list[int] = []
    kinds = sorted(ALLOCATED, key=lambda kind: kind.value)
    cache = described.slabs.create("dentry", 192, reclaim_account=True)
    for _ in range(steps):
        draw = chance.random()
        if draw < 0.55 or not live:
            order = chance.choice((0, 0, 0, 1, 2, 4))
            pfn = described.alloc(chance.choice(kinds), order, cpu=chance.randrange(2), owner=7)
            found.append(-1 if pfn is None else pfn)
            if pfn is not None:
                live.append(pfn)
        elif draw < 0.9:
            described.free(live.pop(chance.randrange(len(live))), cpu=chance.randrange(2))
        else:
            found.append(described.slabs.alloc(cache, chance.randrange(2)) or -1)
    return found


@pytest.mark.parametrize("kernel", KERNELS)
def test_struct_page_of_2021_and_of_today_give_the_same_addresses(kernel: str) -> None:
    then, now = machine(STRUCT_PAGE, kernel), machine(OVERLAYS, kernel)
    assert traffic(then) == traffic(now)
    for name, column in then.pages.state._asdict().items():
        assert (array(column) == array(now.pages.state._asdict()[name])).all(), name


@pytest.mark.parametrize("design", DESIGNS.values(), ids=list(DESIGNS))
@pytest.mark.parametrize("kernel", KERNELS)
def test_descriptors_take_exactly_what_the_cost_of_the_mix_says(
    design: Design, kernel: str
) -> None:
    """The slabs of descriptors are slabs of the mix, too."""
    certain = [k for k in ALLOCATED if all(len(MEMDESC_8.descriptors(k, n)) == 1 for n in (0, 1))]
    described = loaded(design, kernel, certain)
    metadata = described.metadata()
    expected = cost(design, mix_of_loaded(described, certain))
    assert expected.is_exact
    assert metadata.descriptor_bytes == expected.descriptor_bytes[0]
    assert metadata.descriptors == expected.descriptors[0]
    assert metadata.memmap_bytes == described.frames_present * design.bytes_per_frame
    # Where the plan leaves a descriptor open, the machine chose one end of the range.
    everything = loaded(design, kernel, list(ALLOCATED))
    low, high = cost(design, mix_of_loaded(everything, list(ALLOCATED))).descriptor_bytes
    assert low <= everything.metadata().descriptor_bytes <= high
    assert metadata.slab_bytes == (
        metadata.descriptor_bytes + metadata.unused_bytes + metadata.waste_bytes
    )


LOAD = {0: 60, 1: 5, 3: 2}
"""Allocations of each type, by order."""


def loaded(design: Design, kernel: str, kinds: list[MemoryType]) -> DescribedMachine:
    described = machine(design, kernel, mib=64)
    for kind in kinds:
        for order, count in LOAD.items():
            for _ in range(count):
                assert described.alloc(kind, order) is not None
    return described


def mix_of_loaded(described: DescribedMachine, kinds: list[MemoryType]) -> Mix:
    mix = {(kind, order): count for kind in kinds for order, count in LOAD.items()}
    for row in described.slabs.records().tolist():
        key = (MemoryType.SLAB, row[R_ORDER])
        mix[key] = mix.get(key, 0) + 1
    return Mix.of(mix)


@pytest.mark.parametrize("folios", [1, 51, 52, 51 * 63 - 1, 51 * 64])
def test_full_slabs_take_as_many_frames_as_the_cost_says(folios: int) -> None:
    described = machine(mib=64)
    for _ in range(folios):
        assert described.alloc(MemoryType.FILE) is not None

    def geometry(size_bytes: int) -> tuple[int, int]:
        for cache in described.descriptor_caches.values():
            if cache.object_bytes == size_bytes:
                return cache.slab
        raise AssertionError(size_bytes)

    expected = in_slabs({FOLIO_SMALL: folios}, geometry)
    metadata = described.metadata()
    assert metadata.slab_bytes == expected.size_bytes
    assert metadata.descriptors == folios + expected.slab_descriptors


# --- check() finds what is wrong -----------------------------------------------------------


def prepared() -> DescribedMachine:
    described = machine()
    for _ in range(60):
        described.alloc(MemoryType.FILE)
    described.alloc(MemoryType.DRIVER, 2)
    check_described(described)
    return described


def test_check_sees_every_kind_of_damage() -> None:
    def slot_of_folio(described: DescribedMachine) -> int:
        return int(np.flatnonzero(array(described.slabs.state.slot)[S_REFS::SLOT_FIELDS] == 1)[0])

    def word(described: DescribedMachine) -> None:
        array(described.slabs.state.word)[heads_of(described)[3]] ^= 16

    def shared(described: DescribedMachine) -> None:
        words, heads = array(described.slabs.state.word), heads_of(described)
        words[heads[0]] = words[heads[1]]

    def leak(described: DescribedMachine) -> None:
        array(described.slabs.state.word)[heads_of(described)[0]] = FREE_WORD ^ (2 << 4)

    def other_frame(described: DescribedMachine) -> None:
        array(described.slabs.state.slot)[slot_of_folio(described) * SLOT_FIELDS + S_VALUE] += 1

    def freed(described: DescribedMachine) -> None:
        array(described.slabs.state.slot)[slot_of_folio(described) * SLOT_FIELDS + S_REFS] = 0

    def other_cache(described: DescribedMachine) -> None:
        array(described.slabs.state.record)[R_CACHE] += 1

    def lost_slab(described: DescribedMachine) -> None:
        array(described.slabs.state.record)[R_PLACE] += 1

    def cycle(described: DescribedMachine) -> None:
        array(described.slabs.state.record)[RECORD_FIELDS + R_SELF] = 0

    def free_frame(described: DescribedMachine) -> None:
        array(described.slabs.state.word)[heads_of(described)[0]] = 0

    def tail(described: DescribedMachine) -> None:
        words = described.words() & np.uint64(0x7FF)
        driver = int(np.flatnonzero(words == 2 << 4)[1])
        array(described.slabs.state.word)[driver] ^= 1 << 12

    def record(described: DescribedMachine) -> None:
        array(described.slabs.state.record)[R_NEXT] = 1
        array(described.slabs.state.record)[R_PLACE] = 4

    for damage in (
        *(word, shared, leak, other_frame, freed, other_cache),
        *(lost_slab, cycle, free_frame, tail, record),
    ):
        described = prepared()
        damage(described)
        assert problems_of(described), damage.__name__


def heads_of(described: DescribedMachine) -> list[int]:
    return np.flatnonzero(described.words() & np.uint64(15) == 2).tolist()


# --- compiled and not ----------------------------------------------------------------------


def fingerprint() -> str:
    """Of all columns after the same traffic on every design and kernel."""
    whole = hashlib.sha256()
    for design, kernel in EVERY:
        described = machine(design, kernel, mib=24)
        whole.update(np.array(traffic(described, 600)).tobytes())
        states = (described.pages.state, described.slabs.state)
        for name, column in (item for state in states for item in state._asdict().items()):
            # What lies behind the last record or slot was never written.
            whole.update(name.encode() + array(column).tobytes())
    return whole.hexdigest()


@pytest.mark.skipif(
    not COMPILED, reason="compares with compiled code: unset MEMDESC_MODEL_COMPILED"
)
def test_plain_python_does_the_same_as_compiled_code() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_descriptors as t; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(t.fingerprint())", str(Path(__file__).parent)],
        env={**os.environ, "MEMDESC_MODEL_COMPILED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == fingerprint()


def test_cpus_know_their_nodes() -> None:
    """Descriptors of a node's memory come from that node's CPU."""
    described = DescribedMachine(Layout.pc(512 << 20, nodes=2), MEMDESC_8, "6.12", 2)
    assert described.pages.state.params[G_CPU_NODE + 1] == 1
    pfn = described.alloc(MemoryType.ANON, cpu=1)
    assert pfn is not None
    assert pfn >= (256 << 20) >> 12
    word = decode(described.word(pfn))
    assert isinstance(word, PointerWord)
    assert word.pointer - 0xFFFF_8880_0000_0000 >= 256 << 20
    assert KIND_CODES[MemoryType.ANON] == list(MemoryType).index(MemoryType.ANON)

"""Any operations in any order, on any design and kernel: every invariant holds after each."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from memdesc.errors import QuestionError
from memdesc.model.cache_types import Cache
from memdesc.model.check_slab import check_described
from memdesc.model.compiled import array
from memdesc.model.described import ALLOCATED, DescribedMachine
from memdesc.model.designs import DESIGNS
from memdesc.model.slab_state import G_READERS
from memdesc.model.zones import Layout
from memdesc.types import MemoryType

CPUS = st.integers(0, 1)
SIZES = st.sampled_from([8, 64, 96, 192, 600, 1024, 4096])


class Operations(RuleBasedStateMachine):
    allocations = Bundle("allocations")
    objects = Bundle("objects")
    references = Bundle("references")
    caches = Bundle("caches")

    @initialize(
        design=st.sampled_from(list(DESIGNS.values())),
        kernel=st.sampled_from(["6.1", "6.12", "7.2"]),
    )
    def boot(self, design: object, kernel: str) -> None:
        self.machine = DescribedMachine(Layout.pc(20 << 20), design, kernel)  # type: ignore[arg-type]
        self.live: dict[int, int] = {}
        """Frame -> references of ours, the allocation's own included."""
        self.readers = []

    @rule(
        target=allocations,
        kind=st.sampled_from(sorted(ALLOCATED, key=lambda kind: kind.value)),
        order=st.sampled_from([0, 0, 0, 1, 2, 9]),
        cpu=CPUS,
        count=st.sampled_from([1, 1, 60]),
    )
    def allocate(self, kind: MemoryType, order: int, cpu: int, count: int) -> list[int]:
        found = [self.machine.alloc(kind, order, cpu=cpu) for _ in range(count)]
        for pfn in found:
            if pfn is not None:
                assert pfn not in self.live
                self.live[pfn] = 1
        return [pfn for pfn in found if pfn is not None]

    @rule(pfns=allocations, cpu=CPUS)
    def free(self, pfns: list[int], cpu: int) -> None:
        for pfn in pfns:
            if self.live.get(pfn) == 1:
                self.machine.free(pfn, cpu=cpu)
                del self.live[pfn]
            else:
                with pytest.raises(QuestionError):
                    self.machine.free(pfn, cpu=cpu)
        pfns.clear()

    @rule(target=references, pfns=allocations)
    def hold(self, pfns: list[int]) -> list[tuple[int, int]]:
        found = []
        for pfn in pfns[:2]:
            reference = self.machine.get(pfn) if pfn in self.live else None
            if reference is not None:
                self.live[pfn] += 1
                found.append((pfn, reference))
                assert self.machine.refcount(pfn) == self.live[pfn]
        return found

    @rule(references=references)
    def drop(self, references: list[tuple[int, int]]) -> None:
        for pfn, reference in references:
            self.live[pfn] -= 1
            assert self.machine.put(reference) == self.live[pfn]
            if not self.live[pfn]:
                del self.live[pfn]
        references.clear()

    @rule(target=caches, size=SIZES, reclaim=st.booleans(), alone=st.booleans())
    def create_cache(self, size: int, reclaim: bool, alone: bool) -> Cache:
        name = f"cache-{len(self.machine.slabs.caches)}-{size}"
        while any(cache.name == name for cache in self.machine.slabs.caches):
            name += "+"
        return self.machine.slabs.create(name, size, reclaim_account=reclaim, typesafe=alone)

    @rule(target=objects, cache=caches, cpu=CPUS, count=st.sampled_from([1, 30]))
    def allocate_objects(self, cache: Cache, cpu: int, count: int) -> list[int]:
        if cache not in self.machine.slabs.caches:
            return []
        found = [self.machine.slabs.alloc(cache, cpu) for _ in range(count)]
        return [address for address in found if address is not None]

    @rule(addresses=objects, cpu=CPUS)
    def free_objects(self, addresses: list[int], cpu: int) -> None:
        for address in addresses:
            self.machine.slabs.free(address, cpu)
        addresses.clear()

    @rule(cache=caches)
    def shrink(self, cache: Cache) -> None:
        if cache in self.machine.slabs.caches:
            self.machine.slabs.shrink(cache)

    @rule(cache=caches)
    def destroy(self, cache: Cache) -> None:
        if cache in self.machine.slabs.caches:
            try:
                self.machine.slabs.destroy(cache)
            except QuestionError:
                assert cache in self.machine.slabs.caches

    @rule()
    def shrink_descriptors(self) -> None:
        for cache in self.machine.descriptor_caches.values():
            self.machine.slabs.shrink(cache)

    @rule(number=st.integers(1, 4))
    def fail_soon(self, number: int) -> None:
        self.machine.pages.fail_after(number)

    @rule()
    def begin_reading(self) -> None:
        section = self.machine.slabs.reading()
        section.__enter__()
        self.readers.append(section)

    @rule()
    def end_reading(self) -> None:
        if self.readers:
            self.readers.pop().__exit__(None, None, None)

    def teardown(self) -> None:
        # A section left to the garbage collector ends after the machine it writes to is gone.
        for section in getattr(self, "readers", []):
            section.__exit__(None, None, None)

    @invariant()
    def all_is_well(self) -> None:
        if hasattr(self, "machine"):
            check_described(self.machine)
            assert array(self.machine.slabs.state.cell)[G_READERS] == len(self.readers)
            for pfn, count in self.live.items():
                assert self.machine.refcount(pfn) in (count, None)


TestOperations = Operations.TestCase
TestOperations.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)

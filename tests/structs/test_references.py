"""Who is held, from struct pages written by hand: single frames, large folios, and tails."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from struct_worlds import ANON, FILE, KSM, RELEASES, World

from memdesc.answers.failure import failure
from memdesc.map.extents import MemoryMap
from memdesc.map.facts import Fact, FactTable
from memdesc.map.held import held_of
from memdesc.map.machine import Machine
from memdesc.structs.scan import StructScan
from memdesc.types import MemoryType

SERIES = list(RELEASES)
USER = ("uptodate", "lru", "swapbacked")
CACHE = ("uptodate", "lru")


def scanned(world: World) -> MemoryMap:
    machine = Machine(release=world.kernel.release)
    result = StructScan(world.kernel, world.memmap, machine, references=True).map()
    result.check()
    return result


def references(result: MemoryMap, *pfns: int) -> list[int]:
    assert result.references is not None
    return [int(result.references[result.index_of(pfn)]) for pfn in pfns]


@pytest.mark.parametrize("series", SERIES)
def test_single_frames(series: str) -> None:
    world = World(series, nr_pages=4096)
    world.page(0, *USER, mapping=ANON, refcount=1, mapcount=1)
    world.page(1, *USER, mapping=ANON, refcount=2, mapcount=1)
    world.page(2, *USER, mapping=KSM, refcount=7, mapcount=7)
    world.page(3, *CACHE, mapping=FILE, refcount=1)
    world.page(4, *CACHE, mapping=FILE, refcount=2)
    world.page(5, *CACHE, "private", mapping=FILE, refcount=2)
    world.page(6, *CACHE, "private", mapping=FILE, refcount=4, mapcount=1)
    world.page(7, "uptodate", "swapbacked", mapping=ANON, refcount=2, mapcount=1)  # in a batch
    world.page(8, *USER, "owner_priv_1", mapping=ANON, refcount=2, mapcount=1)  # swap cache
    world.page(9, kind="table")
    world.page(10)
    found = references(scanned(world), *range(11))
    assert found == [0, 1, 0, 0, 1, 0, 1, 0, 0, -1, -1]


def test_only_when_asked() -> None:
    world = World("7.2", nr_pages=4096)
    world.page(0, *USER, mapping=ANON, refcount=2, mapcount=1)
    scan = StructScan(world.kernel, world.memmap, Machine(release=world.kernel.release))
    assert scan.map().references is None


def test_they_cut_extents() -> None:
    world = World("7.2", nr_pages=4096)
    for pfn in range(64):
        world.page(pfn, *USER, mapping=ANON, refcount=1 + (pfn == 20), mapcount=1)
    result = scanned(world)
    assert references(result, 19, 20, 21) == [0, 1, 0]
    assert np.count_nonzero(result.references == 1) == 1


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize(("mappings", "extra"), [(1, 0), (2, 0), (1, 1)])
def test_large_folios_and_their_tails(series: str, mappings: int, extra: int) -> None:
    """Anonymous memory counts its mappings alone, the page cache every frame as well."""
    world = World(series, nr_pages=4096)
    world.compound(512, *USER, order=9, rmappable=True, mappings=mappings, mapping=ANON)
    world.put(512, "refcount", mappings + extra, 4)
    world.compound(1024, *CACHE, order=4, rmappable=True, mapping=FILE)
    world.put(1024, "refcount", 16 + extra, 4)
    result = scanned(world)
    assert references(result, 512, 513, 1023) == [extra] * 3
    assert references(result, 1024, 1039) == [extra] * 2


@pytest.mark.parametrize("series", SERIES)
def test_totals_tell_it_too(series: str) -> None:
    """Without extents: the same frames by who holds them, and the same answer."""
    world = World(series, nr_pages=4096)
    for pfn in range(64):
        world.page(pfn, *CACHE, mapping=FILE, refcount=1 + (pfn >= 40))
    world.compound(512, *USER, order=9, rmappable=True, mappings=1, mapping=ANON)
    world.page(2000, kind="table")
    machine = Machine(release=world.kernel.release)
    scan = StructScan(world.kernel, world.memmap, machine, references=True, threads=2)
    result, totals = scan.map(), scan.totals()
    held = held_of(result)
    assert held is not None
    assert totals.held is not None
    assert by_fact(held, result.table) == by_fact(totals.held, totals.table)
    assert totals.held.sum() == totals.pages.sum() == 4096
    assert failure(totals).to_json() == failure(result).to_json()
    assert StructScan(world.kernel, world.memmap, machine).totals().held is None
    cache = {
        tuple(out.verdict.value for out in row.hard.outcomes): row.frames
        for row in failure(totals).rows
        if row.types.only is MemoryType.FILE
    }
    assert cache == {("recovered",): 40, ("failed",): 24}


def by_fact(held: NDArray[np.int64], table: FactTable) -> dict[tuple[int, Fact], int]:
    """Frames by reference and fact, whatever the codes of the facts."""
    sums = held.sum(axis=1)
    return {
        (reference - 1, table[fact]): int(sums[reference, fact])
        for reference, fact in np.argwhere(sums).tolist()
    }

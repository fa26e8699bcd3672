"""Who uses memory: small trees with known answers, and the kernel's own sums."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import held
import planting
import pytest
import worlds
from fake_proc import SWAP, Area, add_process, present

from memdesc.answers.usage import Usage
from memdesc.answers.who import (
    ZeroUse,
    charged_by_mapped,
    mappers,
    process_by_vma,
    sizes_by_file,
    sizes_by_process,
)
from memdesc.errors import NotReadableError, QuestionError
from memdesc.sources.processes import read_processes
from memdesc.sources.source import ProcSource
from memdesc.types import PAGE_SIZE_BYTES, MemoryType, Pfn, PfnRange, TypeSet

BASE = 0x55D_0000_0000 >> 12
K = PAGE_SIZE_BYTES
ANON = 0x5828  # UPTODATE LRU MMAP ANON SWAPBACKED
FILE = 0x828
SHMEM = 0x4838
ZERO = 0x101000000
HUGETLB = 0x20818
BUDDY = 0x400
# Frames:     0     1     2     3     4      5     6        7      8
WORDS = [BUDDY, ANON, ANON, FILE, FILE, SHMEM, ZERO, HUGETLB, BUDDY]
COUNTS = [0, 1, 3, 2, 3, 2, 0, 1, 0]
CGROUPS = [0, 7, 7, 7, 8, 8, 0, 0, 0]


@pytest.fixture
def usage(tmp_path: Path) -> Usage:
    """Two processes: /web maps anon 1, 2, file 3, 4, shmem 5; /db maps anon 2, file 3 and 4."""
    source = worlds.tree(tmp_path, WORDS, mapcounts=COUNTS, cgroups=CGROUPS)
    add_process(
        tmp_path,
        10,
        [
            Area(BASE, [*present(1, 2, 6), SWAP | 9 << 5], "[heap]"),
            Area(BASE + 50, present(3, 4, file=True), "/lib/c", "r-xp", 0x3000, 77),
            Area(BASE + 60, present(5, file=True), "/memfd:x (deleted)", "rw-s", 0, 5),
            Area(BASE + 70, present(7, file=True), "/hugepages/x", "rw-s", 0, 6),
            Area(BASE + 80, [0], "[vvar]", "r--p"),
        ],
        comm="server",
        cgroup="/web",
    )
    add_process(
        tmp_path,
        20,
        [
            Area(BASE, [*present(3, 4, file=True), *present(2)], "/lib/c", "rw-p", 0x3000, 77),
            Area(BASE + 9, present(5, file=True), "/memfd:x (deleted)", "rw-s", 0, 5),
        ],
        cgroup="/db",
    )
    return Usage.of(source.map(), source.attribution())


def test_who_maps_a_frame(usage: Usage) -> None:
    answer = mappers(usage.map, usage.attribution, 4)
    assert answer.types.only is MemoryType.FILE
    assert [(row.process.pid, row.address >> 12) for row in answer.mappers] == [
        (10, BASE + 51),
        (20, BASE + 1),
    ]
    assert answer.mappers[0].file_offset == 0x4000
    assert (answer.mapcount, answer.unread) == (3, 1)
    assert mappers(usage.map, usage.attribution, 8).mappers == ()
    with pytest.raises(QuestionError):
        mappers(usage.map, usage.attribution, 9)
    assert json.loads(json.dumps(answer.to_json()))["rows"][0]["name"] == "/lib/c"


def test_the_page_of_zeroes_is_shared_and_its_places_are_counted(
    usage: Usage, tmp_path: Path
) -> None:
    """/web shows frame 6; where such mappings are left out, the place that was asked about is
    there all the same."""
    kept = mappers(usage.map, usage.attribution, 6)
    assert kept.zero == ZeroUse(processes=1, pages=1)
    assert [row.address >> 12 for row in kept.mappers] == [BASE + 2]
    left_out = read_processes(tmp_path, zero=[PfnRange(Pfn(6), Pfn(7))])
    asked = (10, (BASE + 2 << 12) + 5)
    plain = mappers(usage.map, left_out, 6)
    assert (plain.zero, plain.mappers) == (kept.zero, ())
    assert mappers(usage.map, left_out, 6, at=asked).mappers == kept.mappers
    assert mappers(usage.map, usage.attribution, 6, at=asked).mappers == kept.mappers
    assert mappers(usage.map, left_out, 6, at=(99, asked[1])).mappers == ()
    assert mappers(usage.map, usage.attribution, 4, at=asked).zero is None


def test_sizes_by_process(usage: Usage) -> None:
    answer = sizes_by_process(usage)
    server, other = answer.of(10), answer.of(20)
    assert server.sizes.rss_bytes == 5 * K  # anon 1, 2, file 3, 4, shmem 5
    assert server.sizes.pss_bytes == K + 4 * (K // 2)
    assert server.sizes.uss_bytes == K
    assert server.sizes.unread_bytes == 2 * K  # frames 2 and 4 have a third mapping
    assert (server.swap_bytes, server.zero_bytes, server.hugetlb_bytes) == (K, K, K)
    assert server.no_pfn_bytes == K
    assert {share.types.json: share.rss_bytes for share in server.sizes.types} == {
        "anon": 2 * K,
        "file": 2 * K,
        "shmem": K,
    }
    assert other.sizes.rss_bytes == 4 * K
    assert [row["pid"] for row in answer.rows()] == [10, 20]
    json.dumps(answer.to_json())
    with pytest.raises(QuestionError):
        answer.of(99)


def test_sizes_by_file(usage: Usage) -> None:
    library, shared = sizes_by_file(usage).files
    assert (library.name, library.inode, library.processes) == ("/lib/c", 77, 2)
    assert library.resident_bytes == 2 * K
    assert library.rss_bytes == 4 * K
    assert library.pss_bytes == 2 * K
    assert library.copied_bytes == K
    assert (shared.name, shared.resident_bytes, shared.rss_bytes) == (
        "/memfd:x (deleted)",
        K,
        2 * K,
    )
    json.dumps(sizes_by_file(usage).to_json())


def test_process_by_vma(usage: Usage) -> None:
    answer = process_by_vma(usage, 10)
    heap, library, *_ = answer.vmas
    assert heap.vma.name == "[heap]"
    assert (heap.sizes.rss_bytes, heap.swap_bytes, heap.zero_bytes) == (2 * K, K, K)
    assert library.sizes.types[0].types == TypeSet.of(MemoryType.FILE)
    total = sum(row.sizes.rss_bytes for row in answer.vmas)
    assert total == sizes_by_process(usage).of(10).sizes.rss_bytes
    json.dumps(answer.to_json())
    with pytest.raises(QuestionError):
        process_by_vma(usage, 30)


def test_charged_by_mapped(usage: Usage) -> None:
    answer = charged_by_mapped(usage)
    cells = {(row.charged, row.mapped_by): row.frames for row in answer.cells}
    assert cells == {
        ("/web", "/web"): 3,
        ("/web", "/db"): 2,
        ("/db", "/web"): 2,
        ("/db", "/db"): 2,
        ("", "/web"): 1,  # the hugetlb frame
    }
    foreign = {(row.charged, row.mapped_by) for row in answer.cells if row.is_foreign}
    assert foreign == {("/web", "/db"), ("/db", "/web")}
    json.dumps(answer.to_json())
    blind = dataclasses.replace(usage, map=dataclasses.replace(usage.map, cgroups=None))
    with pytest.raises(QuestionError):
        charged_by_mapped(blind)


def test_charged_and_mapped_by_nobody(tmp_path: Path) -> None:
    source = worlds.tree(tmp_path, [FILE, FILE], cgroups=[7, 7])
    add_process(tmp_path, 10, [Area(BASE, present(1, file=True), "/x", inode=1)])
    answer = charged_by_mapped(Usage.of(source.map(), source.attribution()))
    assert {(row.mapped_by, row.frames) for row in answer.cells} == {("/web", 1), (None, 1)}


def test_a_special_entry_of_a_driver_is_not_resident(tmp_path: Path) -> None:
    source = worlds.tree(tmp_path, [0, 0, ANON])
    areas = [Area(BASE, present(1), "/dev/x", "rw-s", 0, 9), Area(BASE + 1, present(2))]
    add_process(tmp_path, 10, areas)
    row = sizes_by_process(Usage.of(source.map(), source.attribution())).of(10)
    assert (row.sizes.rss_bytes, row.special_bytes) == (K, K)


def test_memory_that_the_map_does_not_know_yet(tmp_path: Path) -> None:
    """A frame that was free when the map was read, and one beyond its end, count."""
    source = worlds.tree(tmp_path, [BUDDY, BUDDY])
    add_process(tmp_path, 10, [Area(BASE, present(1, 2, 3))])
    answer = sizes_by_process(Usage.of(source.map(), source.attribution()))
    assert answer.of(10).sizes.rss_bytes == 3 * K
    assert any("free in the map" in note for note in answer.notes)


def test_nobody_maps_anything(tmp_path: Path) -> None:
    source = worlds.tree(tmp_path, WORDS, cgroups=CGROUPS)
    usage = Usage.of(source.map(), source.attribution())
    assert sizes_by_process(usage).processes == ()
    assert sizes_by_file(usage).files == ()
    assert all(row.mapped_by is None for row in charged_by_mapped(usage).cells)


# --- this machine ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live() -> ProcSource:
    try:
        return ProcSource()
    except NotReadableError as error:
        pytest.skip(f"{error}; {error.hint}")


@pytest.mark.live
def test_children_have_the_sizes_that_the_kernel_says(live: ProcSource, tmp_path: Path) -> None:
    """Rss exactly; Pss to the rounding where every mapper was read and held still."""
    try:
        with held.workload(tmp_path) as pids:
            usage = Usage.of(live.map(), read_processes())
            sums = {pid: held.rollup(pid) for pid in pids}
    except planting.CannotPlant as reason:
        pytest.skip(str(reason))
    answer = sizes_by_process(usage)
    for pid, kind in zip(pids, held.KINDS, strict=True):
        row, kernel = answer.of(pid), sums[pid]
        assert row.sizes.rss_bytes == kernel["Rss"], kind
        assert row.swap_bytes == kernel["Swap"], kind
        by_vma = process_by_vma(usage, pid)
        assert sum(vma.sizes.rss_bytes for vma in by_vma.vmas) == kernel["Rss"], kind
        # Anonymous and shared memory is the family's own. Libraries are not: other
        # programs come and go while this runs.
        shares = {share.types.json: share for share in row.sizes.types if share.types.is_certain}
        assert 0 <= shares["anon"].pss_bytes - kernel["Pss_Anon"] < 1024, kind
        assert shares["anon"].uss_bytes <= shares["anon"].pss_bytes
        if kernel["Pss_Shmem"]:
            assert 0 <= shares["shmem"].pss_bytes - kernel["Pss_Shmem"] < 1024, kind
        if kind == "huge":
            assert shares["anon"].uss_bytes >= 2 << 20
        if kind == "anonymous":
            assert row.zero_bytes >= 16 * K
        for vma in by_vma.vmas:
            if vma.vma.name.endswith("/data.bin"):
                assert vma.sizes.rss_bytes == 64 * K
                assert vma.sizes.pss_bytes == K + 63 * K // 2  # one page is a private copy


@pytest.mark.live
def test_our_map_count_is_the_kernels_for_memory_that_children_share(
    live: ProcSource, tmp_path: Path
) -> None:
    with held.workload(tmp_path) as pids:
        attribution = read_processes()
        usage = Usage.of(live.map(), attribution)
        own = {attribution.process_index(pid) for pid in pids}
        checked = 0
        for entry, process in enumerate(usage.process_of_entry.tolist()):
            piece = int(usage.piece_of_entry[entry])
            extent = int(usage.extent[piece])
            types = usage.types[int(usage.type_of_piece[piece])]
            if process not in own or types.only is not MemoryType.SHMEM:
                continue
            assert usage.map.mapcounts is not None
            ours = int(usage.inverse.mapcount[int(usage.segment[piece])])
            assert ours == int(usage.map.mapcounts[extent])
            checked += 1
    assert checked


@pytest.mark.live
def test_the_file_of_a_frame_is_named(live: ProcSource, tmp_path: Path) -> None:
    data = tmp_path / "named.bin"
    data.write_bytes(b"x" * 8 * K)

    def hold() -> object:
        area = planting.mmap.mmap(os.open(data, os.O_RDONLY), 0, prot=1)
        return area, area[:: planting.PAGE]

    with held.child(hold) as pid:
        attribution = read_processes()
        found = [
            index
            for index in range(len(attribution.vmas))
            if attribution.vmas.names[int(attribution.vmas.name[index])] == str(data)
        ]
        run = attribution.mappings.vma.tolist().index(found[0])
        pfn = int(attribution.mappings.pfn_start[run])
        answer = mappers(live.map(), attribution, pfn)
        rows = [row for row in answer.mappers if row.process.pid == pid]
        assert rows[0].vma.name == str(data)
        assert rows[0].vma.inode == data.stat().st_ino
        assert answer.types.only is MemoryType.FILE
        files = sizes_by_file(Usage.of(live.map(), attribution)).files
        assert next(row for row in files if row.name == str(data)).resident_bytes == 8 * K

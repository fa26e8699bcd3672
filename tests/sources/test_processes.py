"""Reading processes: copied trees of every shape, this machine, and processes that end."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from pathlib import Path

import fake_proc
import held
import numpy as np
import planting
import pytest
from fake_proc import Area, add_process, present
from hypothesis import given
from hypothesis import strategies as st

from memdesc.errors import NotReadableError, QuestionError
from memdesc.map.attribution import Attribution
from memdesc.sources import pagemap, special
from memdesc.sources.proc_files import ProcessFiles
from memdesc.sources.processes import read_processes
from memdesc.sources.vmas import memory_cgroup, parse_maps, parse_status
from memdesc.types import Pfn, PfnRange

BASE = 0x55D_0000_0000 >> 12


def mapped(found: Attribution) -> dict[int, dict[int, int]]:
    """pid -> virtual page -> frame."""
    pages: dict[int, dict[int, int]] = {int(pid): {} for pid in found.processes.pid}
    mappings = found.mappings
    for index in range(len(mappings)):
        vma = found.vma(int(mappings.vma[index]))
        own = pages[found.process(vma.process).pid]
        for offset in range(int(mappings.nr_pages[index])):
            own[int(mappings.page[index]) + offset] = int(mappings.pfn_start[index]) + offset
    return pages


# --- copied trees ------------------------------------------------------------------------


def test_a_process_with_nothing_but_the_vsyscall_page(tmp_path: Path) -> None:
    line = "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]"
    add_process(tmp_path, 42, [], maps=line + "\n", pages=1)
    found = read_processes(tmp_path)
    assert (len(found.vmas), len(found.mappings)) == (1, 0)


def test_runs_end_where_frames_or_areas_end(tmp_path: Path) -> None:
    areas = [
        Area(BASE, present(10, 11, 12, 20), "/bin/x", "r-xp", 0x2000, 77),
        Area(BASE + 4, present(21, 22)),
        Area(BASE + 100, [0, *present(5, 6), 0, *present(7)], "[heap]"),
    ]
    add_process(tmp_path, 42, areas, comm="a b", cgroup="/db")
    found = read_processes(tmp_path)
    found.check()
    mappings = found.mappings
    assert mappings.pfn_start.tolist() == [10, 20, 21, 5, 7]
    assert mappings.nr_pages.tolist() == [3, 1, 2, 2, 1]
    assert mappings.vma.tolist() == [0, 0, 1, 2, 2]
    assert mappings.page.tolist() == [BASE, BASE + 3, BASE + 4, BASE + 101, BASE + 104]
    process, vma = found.process(0), found.vma(0)
    assert (process.pid, process.ppid, process.uid) == (42, 1, 1000)
    assert (process.comm, process.cgroup) == ("a b", "/db")
    assert (vma.name, vma.perms, vma.offset, vma.inode) == ("/bin/x", "r-xp", 0x2000, 77)
    assert vma.device == 0xFE << 20 | 1
    assert found.report.read == found.report.seen == 1
    assert found.report.is_complete


def test_a_border_of_file_and_anonymous_memory_cuts_a_run(tmp_path: Path) -> None:
    entries = [*present(10, 11, file=True), *present(12, 13)]
    add_process(tmp_path, 1, [Area(BASE, entries)])
    mappings = read_processes(tmp_path).mappings
    assert mappings.file.tolist() == [1, 0]
    assert mappings.pfn_start.tolist() == [10, 12]


def test_entries_without_a_frame_are_counted_by_kind(tmp_path: Path) -> None:
    swap = fake_proc.SWAP
    entries = [
        *[swap | 5 << 5 | 2] * 3,  # slot 5 of area 2
        swap | fake_proc.GUARD | 4 << 5 | 31,
        swap | 4 << 5 | 31,  # a guard marker before 6.15: no bit 58
        swap | 2 << 5 | 31,  # a poison marker
        *[swap | 1234 << 5 | 24] * 2,  # hwpoison on 7.2
        swap | 9 << 5 | 26,  # migration
        *present(3),
    ]
    add_process(tmp_path, 7, [Area(BASE, entries)])
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("7.2.13\n")
    options = ("MEMORY_FAILURE", "MIGRATION", "DEVICE_PRIVATE")
    (tmp_path / "config").write_text("".join(f"CONFIG_{name}=y\n" for name in options))
    vmas = read_processes(tmp_path).vmas
    assert vmas.swapped.tolist() == [3]
    assert vmas.guard.tolist() == [2]
    assert vmas.hwpoison.tolist() == [2]
    assert vmas.special.tolist() == [2]
    # Without the configuration the numbers from 21 on can mean several things.
    (tmp_path / "config").unlink()
    vmas = read_processes(tmp_path).vmas
    assert vmas.hwpoison.tolist() == [0]
    assert vmas.special.tolist() == [4]


def test_zero_pages_are_counted_and_not_mapped(tmp_path: Path) -> None:
    entries = [*present(99, 99, 99), *present(5), *present(99)]
    add_process(tmp_path, 7, [Area(BASE, present(99)), Area(BASE + 1, entries)])
    found = read_processes(tmp_path, zero=[PfnRange(Pfn(99), Pfn(100))])
    assert found.mappings.pfn_start.tolist() == [5]
    assert found.vmas.zero.tolist() == [1, 4]


def test_blank_areas_are_inferred_from_their_names(tmp_path: Path) -> None:
    areas = [
        Area(BASE, [0, 0], "[vvar]"),
        Area(BASE + 2, present(3), "[vvar_vclock]"),  # 7.2 maps it with frames
        Area(BASE + 3, [0], "/dev/dri/card0", "rw-s"),
        Area(BASE + 4, [0], "/dev/zero (deleted)", "rw-s"),
        Area(BASE + 5, [0], "/dev/shm/x", "rw-s"),
    ]
    folder = add_process(tmp_path, 7, areas)
    with (folder / "maps").open("a") as file:
        file.write("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsyscall]\n")
    vmas = read_processes(tmp_path).vmas
    assert vmas.no_pfn.tolist() == [2, 0, 1, 0, 0, 1]


def test_garbage_in_maps_is_left_out_and_counted(tmp_path: Path) -> None:
    good = Area(BASE, present(3), "/x y  z")
    lines = [
        "",
        "garbage",
        "1000-2000",
        "1000-2000 rw-p",
        "zzzz-2000 rw-p 00000000 00:00 0",
        "1000-2000 rwQp 00000000 00:00 0",
        "1001-3000 rw-p 00000000 00:00 0",
        "3000-2000 rw-p 00000000 00:00 0",
        "1000-11111111111111111 rw-p 00000000 00:00 0",
        "1000-2000 rw-p 00000000 0000 0",
        "1000-2000 rw-p 00000000 00:00 99999999999999999999",
        "\x00\xff",
    ]
    text = "\n".join(lines) + "\n" + good.line + good.line
    add_process(tmp_path, 7, [good], maps=text)
    found = read_processes(tmp_path)
    found.check()
    assert [found.vma(index).name for index in range(len(found.vmas))] == ["/x y  z"]
    assert found.mappings.pfn_start.tolist() == [3]
    assert found.report.bad_lines == len(lines) + 1
    assert not found.report.is_complete


def test_a_truncated_pagemap_keeps_what_is_there(tmp_path: Path) -> None:
    areas = [Area(BASE, present(3, 4, 5)), Area(BASE + 3, present(6)), Area(BASE + 999, present(7))]
    add_process(tmp_path, 7, areas, pages=BASE + 2)
    add_process(tmp_path, 8, [Area(BASE, present(9))])
    found = read_processes(tmp_path)
    assert mapped(found) == {7: {BASE: 3, BASE + 1: 4}, 8: {BASE: 9}}
    assert found.report.truncated == 1
    assert found.report.problems[0][0] == 7


def test_five_thousand_areas_of_one_process(tmp_path: Path) -> None:
    pages = list(itertools.accumulate([1 + index % 7 for index in range(5000)], initial=BASE))
    areas = [
        Area(page, present(*range(10 * page, 10 * page + 1 + page % 2)), f"/lib/{page % 50}")
        for page in [2 * page for page in pages[:-1]]
    ]
    add_process(tmp_path, 7, areas)
    found = read_processes(tmp_path)
    found.check()
    assert len(found.vmas) == 5000
    expected = {
        area.page + index: entry & ~fake_proc.PRESENT
        for area in areas
        for index, entry in enumerate(area.entries)
    }
    assert mapped(found) == {7: expected}


def test_processes_that_are_empty_or_incomplete(tmp_path: Path) -> None:
    add_process(tmp_path, 2, [], comm="kthreadd")
    add_process(tmp_path, 3, [], status="Name:\tz\nState:\tZ (zombie)\n")
    (add_process(tmp_path, 4, [Area(BASE, present(3))]) / "pagemap").unlink()
    (add_process(tmp_path, 5, [Area(BASE, present(3))]) / "cgroup").unlink()
    add_process(tmp_path, 6, [Area(BASE, present(3))], status="garbage")
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/9999").mkdir()
    found = read_processes(tmp_path)
    assert found.processes.pid.tolist() == [5, 6]
    assert found.processes.cgroup == ["", "/web"]
    assert found.process(1).uid is None
    report = found.report
    assert (report.kernel_threads, report.zombies, report.vanished) == (1, 1, 2)
    with pytest.raises(QuestionError):
        found.process_index(4)


def test_no_tree_at_all(tmp_path: Path) -> None:
    with pytest.raises(NotReadableError) as caught:
        read_processes(tmp_path)
    assert caught.value.hint
    (tmp_path / "proc").mkdir()
    assert len(read_processes(tmp_path).processes) == 0


def test_hidden_frames_are_an_error_with_a_hint(tmp_path: Path) -> None:
    for pid in (7, 8):
        add_process(tmp_path, pid, [Area(BASE, present(0, 0))])
    with pytest.raises(NotReadableError) as caught:
        read_processes(tmp_path)
    assert "CAP_SYS_ADMIN" in caught.value.hint


@pytest.mark.parametrize("block", [pagemap.BLOCK_ENTRIES, 64])
def test_a_huge_sparse_area_is_not_read_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(pagemap, "BLOCK_ENTRIES", block)
    monkeypatch.setattr(pagemap, "_FIRST_BLOCK", min(block, 32))
    size = 1 << 28  # a terabyte of address space
    places = {0: 5, 1: 6, 4096: 9, 100_000_000: 11, size - 1: 12}
    folder = add_process(tmp_path, 7, [])
    start = BASE << 12
    (folder / "maps").write_text(f"{start:x}-{start + (size << 12):x} rw-p 0 00:00 0 \n")
    with (folder / "pagemap").open("wb") as file:
        for place, frame in places.items():
            file.seek((BASE + place) * 8)
            file.write(present(frame)[0].to_bytes(8, "little"))
    found = read_processes(tmp_path)
    assert mapped(found) == {7: {BASE + place: frame for place, frame in places.items()}}
    assert found.report.entries_read < 1_000_000
    assert found.report.entries_read + found.report.pages_skipped == size


ENTRY = st.one_of(
    st.just(0),
    st.integers(1, 40).map(lambda frame: fake_proc.PRESENT | frame),
    st.integers(1, 40).map(lambda frame: fake_proc.PRESENT | fake_proc.FILE | frame),
    st.just(fake_proc.SWAP | 7 << 5),
)
AREAS = st.lists(
    st.tuples(st.integers(0, 300), st.lists(ENTRY, min_size=1, max_size=40)), max_size=8
)


@given(st.lists(AREAS, min_size=1, max_size=4), st.sampled_from([16, 64, 1 << 15]))
def test_equals_the_entries_one_by_one(
    tmp_path_factory: pytest.TempPathFactory,
    processes: list[list[tuple[int, list[int]]]],
    block: int,
) -> None:
    root = tmp_path_factory.mktemp("proc")
    expected: dict[int, dict[int, int]] = {}
    swapped = 0
    for pid, shape in enumerate(processes, 1):
        page, areas = BASE, []
        for gap, entries in shape:
            page += gap
            areas.append(Area(page, entries))
            page += len(entries)
        add_process(root, pid, areas)
        if areas:
            expected[pid] = {
                area.page + index: entry & 0xFFFF
                for area in areas
                for index, entry in enumerate(area.entries)
                if entry & fake_proc.PRESENT
            }
            swapped += sum(entry & fake_proc.SWAP != 0 for a in areas for entry in a.entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pagemap, "BLOCK_ENTRIES", block)
        patch.setattr("memdesc.sources.processes.BLOCK_ENTRIES", block)
        found = read_processes(root, threads=2)
    found.check()
    assert mapped(found) == expected
    assert int(found.vmas.swapped.sum()) == swapped


# --- text files --------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_parse_maps_is_total(texts: list[bytes]) -> None:
    for areas, text in zip(parse_maps(texts), texts, strict=True):
        lines = text.count(b"\n") + bool(text and not text.endswith(b"\n"))
        assert areas.bad_lines + len(areas) == lines


def test_parse_maps_reads_this_process_as_a_loop_would() -> None:
    text = Path("/proc/self/maps").read_bytes()
    [areas] = parse_maps([text])
    for index, line in enumerate(text.decode().splitlines()):
        bounds, _, offset, _, inode, *rest = line.split(None, 5)
        start, end = (int(word, 16) for word in bounds.split("-"))
        assert (areas.start[index], areas.end[index]) == (start, end)
        assert (areas.offset[index], areas.inode[index]) == (int(offset, 16), int(inode))
        assert areas.name[index].decode() == (rest[0] if rest else "")
    assert not areas.bad_lines


def test_memory_cgroup_prefers_the_v1_controller() -> None:
    assert memory_cgroup(b"5:cpu,memory:/a:b\n0::/unified\n") == "/a:b"
    assert memory_cgroup(b"5:cpu:/x\n0::/unified\n") == "/unified"
    assert memory_cgroup(b"garbage\n") == ""


@given(st.binary(max_size=300))
def test_parse_status_is_total(text: bytes) -> None:
    status = parse_status(text)
    assert 0 <= status.ppid < 1 << 32
    assert 0 <= status.uid < 1 << 32


# --- faults ------------------------------------------------------------------------------


class Faulty(ProcessFiles):
    """Fails the n-th read of a pagemap of one process."""

    def __init__(self, root: Path, pid: int, number: int, error: int | None) -> None:
        super().__init__(root)
        self.victim, self.left, self.error = pid, number, error
        self.fds: dict[int, int] = {}

    def open(self, pid: int) -> int:
        fd = super().open(pid)
        self.fds[fd] = pid
        return fd

    def preadv(self, fd: int, view: memoryview, offset: int) -> int:
        if self.fds[fd] == self.victim:
            self.left -= 1
            if self.left < 0:
                if self.error is None:
                    return 0
                raise OSError(self.error, os.strerror(self.error))
        return super().preadv(fd, view, offset)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_read_that_fails_takes_out_one_process_only(
    tmp_path: Path, number: int, threads: int
) -> None:
    for pid in (7, 8, 9):
        areas = [Area(BASE + 5000 * index, present(pid * 10 + index)) for index in range(4)]
        add_process(tmp_path, pid, areas)
    files = Faulty(tmp_path, 8, number, errno.ESRCH)
    found = read_processes(tmp_path, files=files, threads=threads)
    found.check()
    assert found.processes.pid.tolist() == [7, 9]
    assert sorted(mapped(found)[9].values()) == [90, 91, 92, 93]
    assert found.report.vanished == 1
    files = Faulty(tmp_path, 8, number, errno.EIO)
    found = read_processes(tmp_path, files=files, threads=threads)
    assert found.report.truncated == 1
    assert found.report.problems == ((8, "pagemap: Input/output error"),)
    assert len(mapped(found)[8]) == number


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    for pid in range(1, 60):
        add_process(tmp_path, pid, [Area(BASE, present(pid))])
    before = open_files()
    read_processes(tmp_path)

    def stop(done: int, _total: int) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_processes(tmp_path, progress=stop)
    assert open_files() == before


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    for pid in (1, 2, 3):
        add_process(tmp_path, pid, [Area(BASE, present(pid))])
    seen: list[tuple[int, int]] = []
    read_processes(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


# --- this machine ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live() -> None:
    try:
        special.own_zero_page()
    except NotReadableError as error:
        pytest.skip(f"{error}; {error.hint}")


@pytest.mark.live
@pytest.mark.usefixtures("live")
def test_children_are_read_as_their_pagemap_says(tmp_path: Path) -> None:
    with held.workload(tmp_path) as pids:
        found = read_processes(pids=pids)
        found.check()
        assert found.processes.pid.tolist() == sorted(pids)
        assert len(set(found.processes.ppid.tolist())) == 1
        pages = mapped(found)
        zero = special.own_zero_page()[0].pfn_start
        for index, pid in enumerate(found.processes.pid.tolist()):
            expected: dict[int, int] = {}
            with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as file:
                for row in np.flatnonzero(found.vmas.process == index).tolist():
                    vma = found.vma(row)
                    if vma.start >> 63 or vma.nr_pages > 1 << 19:
                        continue
                    data = os.pread(file.fileno(), vma.nr_pages * 8, vma.start >> 9)
                    for number, entry in enumerate(np.frombuffer(data, np.uint64).tolist()):
                        frame = entry & (1 << 55) - 1
                        if entry >> 63 and frame != zero:
                            expected[(vma.start >> 12) + number] = frame
            own = {page: frame for page, frame in pages[pid].items() if page in expected}
            assert own == expected
            # The large sparse area was left out above: it holds five pages.
            assert len(pages[pid]) - len(expected) in (0, 5)
        assert int(found.vmas.zero.sum()) >= 16


@pytest.mark.live
@pytest.mark.usefixtures("live")
def test_a_sparse_area_is_skipped_by_the_kernel() -> None:
    def hold() -> object:
        area = held.sparse_area(1 << 24)
        area[12345 * planting.PAGE] = 1
        return area

    with held.child(hold) as pid:
        found = read_processes(pids=[pid])
        if not found.report.pages_skipped:
            pytest.skip("this kernel has no PAGEMAP_SCAN (since 6.7)")
        assert found.report.entries_read < 1 << 20
        large = [i for i in range(len(found.vmas)) if found.vma(i).nr_pages >= 1 << 24]
        assert found.mappings.vma.tolist().count(large[0]) == 1


@pytest.mark.live
@pytest.mark.usefixtures("live")
def test_guard_pages_of_a_child_are_counted() -> None:
    def hold() -> object:
        area = planting.anonymous(8)
        planting.madvise(planting.address_of(area), len(area), 102)
        return area

    try:
        with held.child(hold) as pid:
            assert int(read_processes(pids=[pid]).vmas.guard.sum()) == 8
    except planting.CannotPlant:
        pytest.skip("this kernel has no MADV_GUARD_INSTALL (since 6.13)")


@pytest.mark.live
@pytest.mark.usefixtures("live")
def test_processes_that_come_and_go_while_we_read() -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            pid = os.posix_spawn("/bin/sleep", ["sleep", "0.003"], {})
            os.waitpid(pid, 0)

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            found = read_processes()
            found.check()
            report = found.report
            gone = report.vanished + report.kernel_threads + report.zombies
            assert report.read + gone + report.refused == report.seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.live
@pytest.mark.usefixtures("live")
def test_every_process_of_this_machine() -> None:
    found = read_processes()
    found.check()
    assert os.getpid() in found.processes.pid
    own = found.process(found.process_index(os.getpid()))
    assert own.comm == Path("/proc/self/comm").read_text().strip()
    assert own.uid == os.getuid()

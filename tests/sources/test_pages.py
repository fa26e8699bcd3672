"""The scan: which frames it reads of which file, and that it loses none."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from worlds import tree, write_words

from memdesc.errors import NotReadableError, QuestionError, TruncatedError
from memdesc.kernels.kpageflags import KPF, word_of
from memdesc.kernels.release import KernelRelease
from memdesc.map.machine import Machine
from memdesc.map.sinks import ExtentSink
from memdesc.sources.kpage import PageFile
from memdesc.sources.pages import PageScan, _blocks_with, _fair_chunk
from memdesc.sources.source import ProcSource

FREE, SLAB, NOPAGE = word_of(["BUDDY"]), word_of(["SLAB"]), word_of(["NOPAGE"])
ANON = word_of(["UPTODATE", "LRU", "MMAP", "ANON", "SWAPBACKED"])
FILE = word_of(["UPTODATE", "LRU", "REFERENCED"])
KINDS = [FREE, FREE, SLAB, NOPAGE, ANON, FILE, 0]
SECTION = 256


def random_world(
    seed: int, frames: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Words, map counts and cgroups as a kernel would show them together."""
    random = np.random.default_rng(seed)
    lengths = random.geometric(0.01, frames)
    words = np.repeat(random.choice(np.array(KINDS, np.uint64), frames), lengths)[:frames]
    counts = random.integers(1, 5, frames, np.uint64)
    counts[words & np.uint64(KPF.MMAP) == 0] = 0
    cgroups = random.integers(0, 4, frames, np.uint64) * np.uint64(1 << 33)
    for kind in (FREE, SLAB, NOPAGE):
        cgroups[words == kind] = 0
    for low in range(0, frames - SECTION + 1, SECTION):
        if not words[low : low + SECTION].any():
            cgroups[low : low + SECTION] = 0
    return words, counts, cgroups


def scan_of(
    folder: Path,
    words: NDArray[np.uint64],
    counts: NDArray[np.uint64] | None = None,
    cgroups: NDArray[np.uint64] | None = None,
    *,
    release: str = "7.2.13",
    threads: int = 2,
    chunk_pages: int = SECTION,
) -> PageScan:
    files = [
        None if column is None else PageFile(write_words(folder / name, column))
        for name, column in (("flags", words), ("counts", counts), ("cgroups", cgroups))
    ]
    assert files[0] is not None
    machine = Machine(release=KernelRelease.parse(release), section_pages=SECTION)
    return PageScan(machine, files[0], files[1], files[2], threads=threads, chunk_pages=chunk_pages)


# --- counts and cgroups only where frames are used ---------------------------------------


@given(seed=st.integers(0, 10_000), chunks=st.sampled_from([1, 2, 16]))
@settings(max_examples=30, deadline=None)
def test_what_is_read_of_counts_and_cgroups_is_all_there_is(seed: int, chunks: int) -> None:
    frames = 3000
    words, counts, cgroups = random_world(seed, frames)
    with TemporaryDirectory() as folder:
        scan = scan_of(Path(folder), words, counts, cgroups, chunk_pages=chunks * SECTION)
        result = scan.map()
    assert result.mapcounts is not None
    assert result.cgroups is not None
    assert np.array_equal(result.words(0, frames), words)
    lengths = result.nr_pages
    assert np.array_equal(np.repeat(result.mapcounts, lengths), counts)
    assert np.array_equal(np.repeat(result.cgroup_inodes[result.cgroups], lengths), cgroups)


def test_nothing_is_read_where_nothing_is_used(tmp_path: Path) -> None:
    """One used block among free, slab, absent and uninitialised memory."""
    words = np.full(64 * SECTION, FREE, np.uint64)
    words[SECTION : 9 * SECTION] = 0
    words[10 * SECTION :] = SLAB
    words[20 * SECTION : 21 * SECTION] = NOPAGE
    words[40 * SECTION + 70] = ANON
    counts = (words == ANON).astype(np.uint64)
    result = scan_of(tmp_path, words, counts, counts * np.uint64(9)).map()
    assert result.stats.mapcounts_read == 64
    assert result.stats.cgroups_read == 64
    extent = result.extent(result.index_of(40 * SECTION + 70))
    assert (extent.pages.nr_pages, extent.mapcount, extent.cgroup) == (1, 1, 9)


def test_totals_read_flags_only(tmp_path: Path) -> None:
    words, counts, cgroups = random_world(1, 3000)
    stats = scan_of(tmp_path, words, counts, cgroups).totals().stats
    assert (stats.mapcounts_read, stats.cgroups_read) == (0, 0)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200)), max_size=20))
def test_blocks_hold_every_wanted_frame_and_little_else(runs: list[tuple[bool, int]]) -> None:
    wanted = np.array([value for value, length in runs for _ in range(length)], np.bool_)
    blocks = _blocks_with(wanted)
    covered = np.zeros(wanted.size, np.bool_)
    for low, high in blocks:
        assert low % 64 == high % 64 == 0
        assert wanted[low : low + 64].any()
        assert wanted[high - 64 : high].any()
        covered[low:high] = True
    assert not (wanted & ~covered).any()
    for (_, end), (start, _) in pairwise(blocks):
        assert start - end >= 2 * 64, "near blocks are one read"


def test_tails_get_the_cgroup_of_a_head_in_another_chunk(tmp_path: Path) -> None:
    head, tail = word_of(["LRU", "HEAD"]), word_of(["TAIL"])
    words = np.array([head] + [tail] * 1023, np.uint64)
    cgroups = np.array([77] + [0] * 1023, np.uint64)
    result = scan_of(tmp_path, words, None, cgroups, release="6.1").map()
    assert [(e.pages.nr_pages, e.cgroup) for e in result.extents()] == [(1, 77), (1023, 77)]


# --- every frame once --------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 255, 256, 257, 5000, 40_000])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_chunks_share_out_every_frame_once(tmp_path: Path, frames: int, threads: int) -> None:
    scan = scan_of(tmp_path, np.zeros(frames, np.uint64), threads=threads)
    chunks = [(runs.pfn_start, runs.pfn_start + runs.nr_pages) for runs in scan.runs()]
    assert chunks[0][0] == 0
    assert chunks[-1][1] == frames
    assert all(left[1] == right[0] for left, right in pairwise(chunks))
    assert all(low % SECTION == 0 for low, _ in chunks)


@pytest.mark.parametrize("frames", [0, 1, 1 << 16, 6_553_600, 1 << 28, 1 << 40])
@pytest.mark.parametrize("threads", [1, 2, 16])
def test_a_chunk_holds_whole_sections_and_leaves_work_for_all(frames: int, threads: int) -> None:
    chunk = _fair_chunk(frames, threads)
    assert chunk % Machine().section_pages == 0
    assert chunk.bit_count() == 1
    assert chunk <= 1 << 18
    assert chunk == 1 << 16 or frames // chunk >= threads * 32


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_progress_rises_to_the_end(tmp_path: Path, threads: int) -> None:
    words, _, _ = random_world(2, 20_000)
    for method in (PageScan.totals, PageScan.map):
        told: list[tuple[int, int]] = []
        scan = scan_of(tmp_path, words, threads=threads)
        scan.progress = lambda done, total, told=told: told.append((done, total))
        method(scan)
        assert told == sorted(set(told))
        assert told[-1] == (20_000, 20_000)


def test_threads_do_not_show_in_the_result(tmp_path: Path) -> None:
    """Every code, not only what it stands for: the same words give the same capture."""
    words, counts, cgroups = random_world(5, 60_000)
    words[::7] += np.arange(words[::7].size, dtype=np.uint64) % np.uint64(300) << np.uint64(50)
    one = scan_of(tmp_path, words, counts, cgroups, threads=1).map()
    for _ in range(5):
        two = scan_of(tmp_path, words, counts, cgroups, threads=3).map()
        for name in ("pfn_starts", "facts", "mapcounts", "cgroups", "cgroup_inodes"):
            assert np.array_equal(getattr(one, name), getattr(two, name)), name
        assert np.array_equal(one.table.flags, two.table.flags)
        assert one.table.rules == two.table.rules


def test_a_scan_can_be_asked_again(tmp_path: Path) -> None:
    words, counts, cgroups = random_world(6, 5000)
    scan = scan_of(tmp_path, words, counts, cgroups)
    first, totals, window, again = scan.map(), scan.totals(), scan.window(300), scan.map()
    assert np.array_equal(first.facts, again.facts)
    assert np.array_equal(first.table.flags, again.table.flags)
    assert first.stats.mapcounts_read == again.stats.mapcounts_read
    for result in (first, window, again):
        result.check()
    by_word = {
        int(totals.table.flags[code]): int(pages)
        for code, pages in enumerate(totals.pages.sum(axis=0))
        if pages
    }
    assert by_word == dict(zip(*map(np.ndarray.tolist, np.unique_counts(words)), strict=True))


def test_columns_are_the_map_in_pieces(tmp_path: Path) -> None:
    words, counts, cgroups = random_world(3, 20_000)
    result = scan_of(tmp_path, words, counts, cgroups, threads=1).map()
    pieces = list(scan_of(tmp_path, words, counts, cgroups, threads=1).columns())
    assert len(pieces) > 10
    for name in ("pfn_starts", "facts", "mapcounts", "cgroups"):
        joined = np.concatenate([getattr(piece, name) for piece in pieces])
        whole = getattr(result, name)
        assert joined.dtype == whole.dtype
        assert np.array_equal(joined, whole), name


def test_an_extent_does_not_end_with_its_chunk(tmp_path: Path) -> None:
    result = scan_of(tmp_path, np.full(10 * SECTION, ANON, np.uint64)).map()
    assert len(result) == 1


def test_frames_above_16_tib_have_wide_numbers(tmp_path: Path) -> None:
    """Only the columns of a chunk that ends above 2**32 are wide."""
    scan = scan_of(tmp_path, np.zeros(SECTION, np.uint64))
    runs = scan.encoder.encode((1 << 32) - SECTION, np.full(SECTION, ANON, np.uint64))
    above = scan.encoder.encode(1 << 32, np.full(SECTION, FILE, np.uint64))
    sink = ExtentSink(scan.regions, scan.book, scan.cgroup_codes)
    sink.add(runs)
    sink.add(above)
    result = sink.map(scan.machine, scan.book.table(), scan.stats(0), {})
    assert result.pfn_starts.tolist() == [(1 << 32) - SECTION, 1 << 32]
    result.check()


# --- a window ----------------------------------------------------------------------------


@pytest.mark.parametrize("pfn", [0, 255, 256, 1000, 2999])
def test_a_window_is_a_part_of_the_map(tmp_path: Path, pfn: int) -> None:
    words, counts, cgroups = random_world(4, 3000)
    whole = scan_of(tmp_path, words, counts, cgroups).map()
    part = scan_of(tmp_path, words, counts, cgroups).window(pfn)
    part.check()
    assert part.pfn_start <= pfn < part.pfn_end <= part.pfn_start + SECTION
    here, there = part.extent(part.index_of(pfn)), whole.extent(whole.index_of(pfn))
    assert (here.fact, here.mapcount, here.cgroup) == (there.fact, there.mapcount, there.cgroup)


@pytest.mark.parametrize("pfn", [-1, 3000])
def test_a_window_outside_is_a_question_error(tmp_path: Path, pfn: int) -> None:
    words, _, _ = random_world(4, 3000)
    with pytest.raises(QuestionError, match="is outside the map"):
        scan_of(tmp_path, words).window(pfn)


# --- what goes wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["flags", "counts", "cgroups"])
def test_a_file_that_shrinks_during_the_scan(tmp_path: Path, threads: int, name: str) -> None:
    words = np.full(40 * SECTION, ANON, np.uint64)
    ones = np.ones(words.size, np.uint64)
    scan = scan_of(tmp_path, words, ones, ones, threads=threads)
    os.truncate(tmp_path / name, 30 * SECTION * 8)
    with pytest.raises(TruncatedError, match=f"{name} ended at frame"):
        scan.map()
    if name == "flags":
        with pytest.raises(TruncatedError, match="flags ended at frame"):
            scan.totals()


def test_only_flags_are_required(tmp_path: Path) -> None:
    tree(tmp_path, [ANON] * 8)
    for name in ("kpagecount", "kpagecgroup"):
        (tmp_path / "proc" / name).unlink()
    result = ProcSource(tmp_path).map()
    assert result.mapcounts is None
    assert result.cgroups is None
    assert {"mapcounts", "cgroups"} <= set(result.unseen)
    (tmp_path / "proc/kpageflags").unlink()
    with pytest.raises(NotReadableError):
        ProcSource(tmp_path)


# --- the live machine --------------------------------------------------------------------


@pytest.mark.live
def test_the_live_machine_is_read_whole() -> None:
    if not os.access("/proc/kpageflags", os.R_OK):
        pytest.skip("/proc/kpageflags is readable by root only")
    source = ProcSource()
    scan = source.scan()
    result = scan.map()
    result.check()
    assert result.pfn_end == scan.frames == source.totals().frames
    again = scan.reread(result)
    assert again.frames_reread > 0
    assert again.frames_changed < again.frames_reread

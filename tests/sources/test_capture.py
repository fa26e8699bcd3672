"""A capture is the map again: same extents, same machine, in files that anybody can query."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captures import assert_equal_maps, attribution, manifest, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memdesc.cli import main
from memdesc.errors import CaptureError, MemdescError, QuestionError, SourceError
from memdesc.kernels.pagemap import Present
from memdesc.map.extents import MemoryMap, Totals
from memdesc.map.facts import FactTable
from memdesc.map.machine import Counters, Machine, Zone
from memdesc.map.sinks import Columns
from memdesc.rules.procedure import RULES
from memdesc.sources import bundled, staging
from memdesc.sources import capture as module_capture
from memdesc.sources.capture import Capture
from memdesc.sources.capture_write import write_capture, write_map
from memdesc.sources.open import open_source
from memdesc.sources.pages import PageScan
from memdesc.sources.signals import unwinding
from memdesc.sources.source import RawSource, Source
from memdesc.types import MemoryType, Pid, TypeSet, VirtAddr


def hidden(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


# --- round trips -------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 511, 3000, 200_000])
def test_a_streamed_capture_is_the_map(tmp_path: Path, frames: int) -> None:
    source = world(tmp_path / "world", frames)
    expected = source.scan().map()
    info = write_capture(tmp_path / "capture", source.scan(), names=True)
    capture = Capture(tmp_path / "capture")
    assert_equal_maps(expected, capture.map())
    assert (info.pfn_end, info.extents, info.facts) == (frames, len(expected), len(expected.table))
    assert capture.info == info
    assert np.array_equal(capture.totals().pages, expected.totals.pages)
    assert capture.info.scan.threads == source.scan().threads
    capture.verify()


def test_a_map_in_memory_is_written_the_same(tmp_path: Path) -> None:
    source = world(tmp_path / "world")
    expected = source.map()
    write_map(tmp_path / "capture", expected, names=True)
    result = Capture(tmp_path / "capture").map()
    assert_equal_maps(expected, result)
    assert result.stats == expected.stats


def test_columns_that_were_not_visible_stay_so(tmp_path: Path) -> None:
    flags = tmp_path / "flags"
    np.array([0x400, 0x400, 0x868, 0], np.uint64).tofile(flags)
    source = RawSource(flags)
    write_capture(tmp_path / "capture", source.scan())
    result = Capture(tmp_path / "capture").map()
    assert_equal_maps(source.map(), result, names=False)
    assert result.mapcounts is None
    assert "kpagecount" in result.unseen["mapcounts"]
    assert manifest(tmp_path / "capture")["visible"]["columns"] == ["pfn_start", "nr_pages", "fact"]


def test_an_empty_machine(tmp_path: Path) -> None:
    (tmp_path / "flags").write_bytes(b"")
    empty = MemoryMap(
        Machine(), FactTable(*(np.zeros(0, np.uint64),) * 2, ()), np.zeros(0, np.uint32),
        np.zeros(0, np.uint16), 0,
    )  # fmt: skip
    write_map(tmp_path / "capture", empty, names=True)
    assert_equal_maps(empty, Capture(tmp_path / "capture").map())
    assert Capture(tmp_path / "capture").totals().frames == 0


def test_counters_are_read_after_the_scan(tmp_path: Path) -> None:
    source = world(tmp_path / "world")
    after = Counters({"MemFree": 4096}, {"nr_free_pages": 1})
    write_capture(tmp_path / "capture", source.scan(), after=lambda: after)
    assert Capture(tmp_path / "capture").machine.after == after


def test_the_attribution_comes_back(tmp_path: Path) -> None:
    source = world(tmp_path / "world")
    who = attribution()
    write_capture(tmp_path / "capture", source.scan(), attribution=who, names=True)
    capture = Capture(tmp_path / "capture")
    again = capture.attribution()
    for table, columns in who.to_tables().items():
        for name, values in columns.items():
            assert list(again.to_tables()[table][name]) == list(values), (table, name)
    assert again.report == who.report
    entry = capture.pagemap(Pid(5), VirtAddr((256 + 3) << 12))
    assert isinstance(entry.target, Present)
    assert (entry.target.pfn, entry.target.file) == (33, True)
    with pytest.raises(QuestionError, match="holds no frame"):
        capture.pagemap(Pid(5), VirtAddr(0))
    with pytest.raises(QuestionError, match="process 77"):
        capture.pagemap(Pid(77), VirtAddr(0))


def test_without_processes_it_says_so(tmp_path: Path) -> None:
    write_capture(tmp_path / "capture", world(tmp_path / "world").scan())
    with pytest.raises(QuestionError, match="who maps") as caught:
        Capture(tmp_path / "capture").attribution()
    assert caught.value.hint


def test_a_window_is_that_part_of_the_map(tmp_path: Path) -> None:
    source = world(tmp_path / "world", 600_000)
    write_capture(tmp_path / "capture", source.scan())
    capture = Capture(tmp_path / "capture")
    whole = capture.map()
    for pfn in (0, 262_143, 262_144, 599_999):
        window = capture.window(pfn)
        window.check()
        assert window.pfn_start <= pfn < window.pfn_end
        assert np.array_equal(
            window.words(window.pfn_start, window.pfn_end),
            whole.words(window.pfn_start, window.pfn_end),
        )
        mine, other = window.extent(window.index_of(pfn)), whole.extent(whole.index_of(pfn))
        assert (mine.fact, mine.mapcount, mine.cgroup) == (
            other.fact, other.mapcount, other.cgroup,
        )  # fmt: skip
    with pytest.raises(QuestionError, match="outside"):
        capture.window(600_000)


def test_a_capture_is_a_source(tmp_path: Path) -> None:
    write_capture(tmp_path / "capture", world(tmp_path / "world").scan())
    source: Source = Capture(tmp_path / "capture")
    told: list[tuple[int, int]] = []
    source.totals(lambda done, total: told.append((done, total)))
    assert told[-1] == (3000, 3000)
    assert source.name == str(tmp_path / "capture")


def test_new_borders_cut_old_extents(tmp_path: Path) -> None:
    """A capture made by a version that knew fewer borders than this one."""
    table = FactTable(
        np.zeros(1, np.uint64), np.array([MemoryType.FREE.bit], np.uint64), ("buddy",)
    )
    zones = tuple(
        Zone(0, name, start, 10, 10, 10, 0, 0) for name, start in (("DMA", 0), ("Normal", 10))
    )
    whole = MemoryMap(
        Machine(zones=zones), table, np.zeros(1, np.uint32), np.zeros(1, np.uint16), 30
    )
    write_map(tmp_path / "capture", whole, names=True)
    capture = Capture(tmp_path / "capture")
    assert capture.map().pfn_starts.tolist() == [0, 10, 20]
    assert capture.totals().pages[:, 0].tolist() == [10, 10, 10]


names = st.sampled_from(sorted(RULES))
kinds = st.builds(TypeSet.from_iterable, st.sets(st.sampled_from(MemoryType), min_size=1))


@st.composite
def maps(draw: st.DrawFn) -> MemoryMap:
    """Any map: any facts, counts and cgroups, up to the largest frame numbers."""
    facts = draw(st.lists(st.tuples(st.integers(0, 2**64 - 1), kinds, names), min_size=1))
    sizes = draw(st.lists(st.integers(1, 2**40), max_size=50))
    count = len(sizes)
    ends = np.cumsum([0, *sizes])
    wide = int(ends[-1]) > 0xFFFFFFFF
    inodes = draw(st.lists(st.integers(1, 2**64 - 1), max_size=4))

    def column(limit: int, dtype: type) -> Any:
        return np.array(
            draw(st.lists(st.integers(0, limit), min_size=count, max_size=count)), dtype
        )

    return MemoryMap(
        machine=Machine(hostname=draw(st.text(st.characters(exclude_categories=["Cs"])))),
        table=FactTable(
            np.array([f[0] for f in facts], np.uint64),
            np.array([f[1].mask for f in facts], np.uint64),
            tuple(f[2] for f in facts),
        ),
        pfn_starts=ends[:-1].astype(np.uint64 if wide else np.uint32),
        facts=column(len(facts) - 1, np.uint16),
        pfn_end=int(ends[-1]),
        mapcounts=column(2**32 - 1, np.uint32) if draw(st.booleans()) else None,
        cgroups=column(len(inodes), np.uint32) if draw(st.booleans()) else None,
        cgroup_inodes=np.array([0, *inodes], np.uint64),
    )


@given(result=maps())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_map_round_trips(result: MemoryMap, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "capture"
    write_map(path, result, names=True)
    assert_equal_maps(result, Capture(path).map())


def test_a_window_is_no_capture(tmp_path: Path) -> None:
    window = world(tmp_path / "world", 40_000).window(39_000)
    assert window.pfn_start
    with pytest.raises(QuestionError, match="window"):
        write_map(tmp_path / "capture", window)


# --- writing whole or not at all ---------------------------------------------------------


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        write_capture(tmp_path / "capture", world(tmp_path / "world").scan())
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "capture").stat().st_mode) == 0o700
    for entry in (tmp_path / "capture").iterdir():
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600, entry.name


def test_it_replaces_only_when_told_to(tmp_path: Path) -> None:
    source = world(tmp_path / "world")
    write_capture(tmp_path / "capture", source.scan())
    with pytest.raises(CaptureError, match="already exists") as caught:
        write_capture(tmp_path / "capture", source.scan())
    assert "--force" in caught.value.hint
    write_capture(tmp_path / "capture", world(tmp_path / "other", 100).scan(), force=True)
    assert Capture(tmp_path / "capture").info.pfn_end == 100
    assert not hidden(tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling", "capture and more"])
def test_it_replaces_nothing_but_a_capture(tmp_path: Path, kind: str) -> None:
    source = world(tmp_path / "world", 10)
    target = tmp_path / "capture"
    match kind:
        case "file":
            target.write_text("precious")
        case "folder":
            target.mkdir()
            (target / "thesis.tex").write_text("precious")
        case "link":
            write_capture(tmp_path / "real", source.scan())
            target.symlink_to(tmp_path / "real")
        case "dangling":
            target.symlink_to(tmp_path / "nowhere")
        case _:
            write_capture(target, source.scan())
            (target / "notes.txt").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CaptureError, match="is no capture"):
        write_capture(target, source.scan(), force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_may_be_filled_with_force(tmp_path: Path) -> None:
    (tmp_path / "capture").mkdir()
    write_capture(tmp_path / "capture", world(tmp_path / "world").scan(), force=True)
    Capture(tmp_path / "capture").verify()


def test_the_folder_around_it_must_exist(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="No such file") as caught:
        write_capture(tmp_path / "missing/capture", world(tmp_path / "world").scan())
    assert "folder" in caught.value.hint


Failing = Callable[[], None]


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, fail: Failing) -> list[int]:
    """Make the `number`-th write of a capture call `fail`; return the count of writes."""
    calls = [0]
    real = staging._write

    def write(fd: int, data: memoryview) -> int:
        calls[0] += 1
        if calls[0] == number:
            fail()
        return real(fd, data[: max(1, len(data) // 2)])  # short writes happen too

    monkeypatch.setattr(staging, "_write", write)
    return calls


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("fail", "expected"), [(full_disk, CaptureError), (ctrl_c, KeyboardInterrupt)]
)
def test_a_failing_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Failing, expected: type[BaseException]
) -> None:
    source = world(tmp_path / "world", 500)
    old = write_capture(tmp_path / "old", source.scan())
    calls = fail_at(monkeypatch, -1, fail)
    write_capture(tmp_path / "counted", source.scan(), attribution=attribution())
    assert calls[0] > 50
    before = sorted(tmp_path.iterdir())
    for number in range(1, calls[0] + 1):
        with monkeypatch.context() as patch:
            fail_at(patch, number, fail)
            for target, force in (("new", False), ("old", True)):
                if number % 7 and target == "new":
                    continue
                patch.undo()
                fail_at(patch, number, fail)
                with pytest.raises(expected) as caught:
                    write_capture(
                        tmp_path / target, source.scan(), attribution=attribution(), force=force
                    )
                if isinstance(caught.value, CaptureError):
                    assert "No space left" in str(caught.value)
                    assert "free some space" in caught.value.hint
                assert sorted(tmp_path.iterdir()) == before
    assert Capture(tmp_path / "old").info == old
    Capture(tmp_path / "old").verify()


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir", "open"])
def test_other_failing_calls_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    source = world(tmp_path / "world", 500)
    old = write_capture(tmp_path / "old", source.scan())
    scan = source.scan()
    before = sorted(tmp_path.iterdir())

    real_open = os.open

    def fail(*args: Any, **kwargs: Any) -> Any:
        if call == "open" and not args[1] & os.O_CREAT:
            return real_open(*args, **kwargs)
        return full_disk()

    owner = Path if call in ("rename", "mkdir") else os
    with monkeypatch.context() as patch:
        patch.setattr(owner, call, fail)
        with pytest.raises(CaptureError, match="No space left"):
            write_capture(tmp_path / "old", scan, force=True)
    assert sorted(tmp_path.iterdir()) == before
    assert Capture(tmp_path / "old").info == old


def test_a_signal_right_after_the_directory_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = world(tmp_path / "world", 500)
    before = sorted(tmp_path.iterdir())
    real = Path.mkdir

    def mkdir(self: Path, mode: int = 0o777) -> None:
        real(self, mode)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(KeyboardInterrupt):
        write_capture(tmp_path / "capture", source.scan())
    assert sorted(tmp_path.iterdir()) == before


def test_the_old_capture_returns_when_the_last_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = world(tmp_path / "world", 500)
    old = write_capture(tmp_path / "old", source.scan())
    real = Path.rename
    calls = [0]

    def rename(self: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        write_capture(tmp_path / "old", source.scan(), force=True)
    assert Capture(tmp_path / "old").info == old
    assert not hidden(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("odd"), MemoryError()])
def test_an_error_of_the_source_comes_out_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    source = world(tmp_path / "world", 300_000)
    real = PageScan.columns

    def columns(self: PageScan) -> Iterator[Columns]:
        yield next(real(self))
        raise error

    monkeypatch.setattr(PageScan, "columns", columns)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(type(error)) as caught:
        write_capture(tmp_path / "capture", source.scan())
    assert caught.value is error
    assert sorted(tmp_path.iterdir()) == before


# --- signals, and what killed processes leave --------------------------------------------

_SLOW = """
import sys, time
from pathlib import Path
from memdesc.sources.staging import Staging
with Staging(Path(sys.argv[1])) as staging:
    staging.write("manifest.json", b"{}")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(tmp_path / "capture")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert len(hidden(tmp_path)) == 1
        child.send_signal(number)
        assert child.wait(30) == -number
    assert not list(tmp_path.iterdir())


def test_the_command_ends_cleanly_when_terminated(tmp_path: Path) -> None:
    flags = tmp_path / "flags"
    np.random.default_rng(1).choice(np.array([0x400, 0x868, 0x80], np.uint64), 1 << 23).tofile(
        flags
    )
    words = ["capture", "--source", str(flags), "--output", str(tmp_path / "capture")]
    command = f"import sys; from memdesc.cli import main; sys.exit(main({words!r}))"
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        end = time.monotonic() + 60
        while not hidden(tmp_path) and child.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
        child.terminate()
        _out, err = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGTERM
    assert b"Traceback" not in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["flags"]


def test_signals_are_as_before_afterwards(tmp_path: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    write_capture(tmp_path / "capture", world(tmp_path / "world", 500).scan())
    assert [signal.getsignal(number) for number in numbers] == before


_HELD = """
import os, signal
from memdesc.sources.signals import held, unwinding
with unwinding():
    with held():
        os.kill(os.getpid(), signal.SIGTERM)
        print("to the end of the block")
    print("and no further")
"""


def test_a_signal_waits_while_it_is_held() -> None:
    done = subprocess.run(
        [sys.executable, "-uc", _HELD], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "to the end of the block\n")


def test_a_signal_that_somebody_handles_is_left_alone() -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    try:
        with unwinding():
            os.kill(os.getpid(), signal.SIGTERM)
        assert told == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(tmp_path / "capture")], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        source = world(tmp_path / "world", 500)
        write_capture(tmp_path / "capture", source.scan())
        assert len(hidden(tmp_path)) == 1, "its process lives"
        (left,) = [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]
        os.utime(left, (0, 0))
        write_capture(tmp_path / "capture", source.scan(), force=True)
        assert left.exists(), "it is old, but its process holds the lock"
        child.kill()
    write_capture(tmp_path / "other", source.scan())
    assert left.exists(), "it belongs to another capture"
    write_capture(tmp_path / "capture", source.scan(), force=True)
    assert not hidden(tmp_path)


def test_only_what_a_capture_left_is_removed(tmp_path: Path) -> None:
    dead = dead_process()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "manifest.json").write_text("mine")
    link = tmp_path / f".capture.{dead}-aaaaaaaa.partial"
    link.symlink_to(precious)
    foreign = tmp_path / f".capture.{dead}-bbbbbbbb.partial"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    file = tmp_path / f".capture.{dead}-cccccccc.partial"
    file.write_text("mine")
    alive = tmp_path / f".capture.{os.getppid()}-dddddddd.partial"
    alive.mkdir()
    old = tmp_path / f".capture.{os.getppid()}-eeeeeeee.partial"
    old.mkdir()
    os.utime(old, (0, 0))
    stale = tmp_path / f".capture.{dead}-ffffffff.partial"
    stale.mkdir()
    (stale / "extents.parquet").symlink_to(precious / "manifest.json")
    write_capture(tmp_path / "capture", world(tmp_path / "world", 500).scan())
    assert (precious / "manifest.json").read_text() == "mine"
    assert {entry for entry in tmp_path.iterdir() if entry.name.startswith(".")} == {
        link, foreign, file, alive,
    }  # fmt: skip


# --- the summary -------------------------------------------------------------------------


def test_a_summary_is_the_whole_map_where_that_is_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_capture(tmp_path / "capture", world(tmp_path / "world").scan())
    whole = Capture(tmp_path / "capture").summary()
    assert isinstance(whole, MemoryMap)
    assert whole.cgroups is not None
    monkeypatch.setattr(module_capture, "_MAX_SUMMARY_EXTENTS", 10)
    counted = Capture(tmp_path / "capture").summary()
    assert isinstance(counted, Totals)
    assert np.array_equal(counted.pages, whole.totals.pages)


# --- what --source names -----------------------------------------------------------------


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "tree/proc/kpageflags").mkdir(parents=True)
    for spec, words, hint in (
        ("", "names nothing", "bundled:NAME"),
        (str(tmp_path / "empty"), "is empty", "64-bit word"),
        (str(tmp_path / "missing"), "No such file", "bundled:NAME"),
        ("tree:", "names no directory", "kpagecount"),
        (f"tree:{tmp_path}", "kpageflags", "zoneinfo"),
        (f"tree:{tmp_path / 'missing'}", "no such directory", "proc/kpageflags"),
        (f"tree:{tmp_path / 'tree'}", "is a directory", "proc/kpageflags"),
    ):
        with pytest.raises(MemdescError, match=words) as caught:
            open_source(spec)
        assert hint in caught.value.hint, spec
    assert main(["--source", ""]) == 2
    assert main(["--source", str(tmp_path / "empty")]) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_says_so(tmp_path: Path) -> None:
    flags = tmp_path / "flags"
    np.array([0x400], np.uint64).tofile(flags)
    write_capture(tmp_path / "capture", RawSource(flags).scan())
    flags.chmod(0o600)
    os.seteuid(65534)
    try:
        for path in (flags, tmp_path / "capture"):
            with pytest.raises(SourceError, match="Permission denied") as caught:
                open_source(str(path))
            assert "root" in caught.value.hint
            assert "directory with" not in caught.value.hint
    finally:
        os.seteuid(0)


# --- plain tables ------------------------------------------------------------------------


def by_type(result: MemoryMap) -> dict[str, int]:
    sums: dict[str, int] = {}
    for code, pages in enumerate(result.totals.pages.sum(axis=0).tolist()):
        name = "|".join(TypeSet(int(result.table.types[code])).names)
        sums[name] = sums.get(name, 0) + pages * 4096
    return {name: size for name, size in sums.items() if size}


def test_duckdb_reads_bytes_by_type(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed: pip install duckdb")
    source = world(tmp_path / "world", 100_000)
    write_capture(tmp_path / "capture", source.scan())
    rows = duckdb.sql(
        f"""
        SELECT type, sum(nr_pages) * 4096 AS size_bytes
        FROM '{tmp_path}/capture/extents.parquet' JOIN '{tmp_path}/capture/facts.parquet'
        USING (fact) GROUP BY type
        """
    ).fetchall()
    assert {name: int(size) for name, size in rows} == by_type(source.map())


def test_polars_reads_bytes_by_type(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed: pip install polars")
    source = world(tmp_path / "world", 100_000)
    write_capture(tmp_path / "capture", source.scan())
    extents = polars.scan_parquet(tmp_path / "capture/extents.parquet")
    facts = polars.scan_parquet(tmp_path / "capture/facts.parquet")
    frame = (
        extents.join(facts, on="fact")
        .group_by("type")
        .agg(size_bytes=polars.col("nr_pages").sum() * 4096)
        .collect()
    )
    assert dict(frame.iter_rows()) == by_type(source.map())


def test_tables_are_small(tmp_path: Path) -> None:
    """Two bytes for each extent is already more than the format needs."""
    source = world(tmp_path / "world", 300_000)
    info = write_capture(tmp_path / "capture", source.scan())
    size = (tmp_path / "capture/extents.parquet").stat().st_size
    assert size < info.extents * 3
    assert info.size_bytes == sum(
        entry.stat().st_size
        for entry in (tmp_path / "capture").iterdir()
        if entry.name != "manifest.json"
    )


# --- bundled -----------------------------------------------------------------------------


def test_bundled_captures_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    assert bundled.bundled_names() == []
    write_capture(tmp_path / "debian-0.1", world(tmp_path / "world").scan())
    (tmp_path / "empty").mkdir()
    assert bundled.bundled_names() == ["debian-0.1"]
    assert bundled.open_bundled("debian-0.1").name == "bundled:debian-0.1"
    for name in ("", "..", "../debian-0.1", "empty", "debian-9", "/"):
        with pytest.raises(QuestionError, match="no bundled capture") as caught:
            bundled.open_bundled(name)
        assert "debian-0.1" in caught.value.hint


@pytest.mark.parametrize("name", bundled.bundled_names())
def test_what_ships_is_whole(name: str) -> None:
    capture = bundled.open_bundled(name)
    capture.verify()
    assert not capture.info.redaction.is_redacted
    assert capture.info.size_bytes < 1 << 20
    assert json.dumps(capture.machine.to_json())

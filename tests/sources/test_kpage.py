"""Page files and the threads that read them: everything that a read can do."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import write_words

from memdesc.errors import NotReadableError, TruncatedError
from memdesc.sources.kpage import PageFile, in_order, share_out, thread_count

WORDS = np.arange(1, 101, dtype=np.uint64)


def open_files() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


@pytest.fixture
def file(tmp_path: Path) -> PageFile:
    return PageFile(write_words(tmp_path / "words", WORDS))


def patched_reads(
    monkeypatch: pytest.MonkeyPatch, at_call: int, then: Callable[[list[memoryview], int], int]
) -> list[int]:
    """Let the n-th `preadv` do something else; returns the offsets of all calls."""
    real = os.preadv
    offsets: list[int] = []

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        offsets.append(offset)
        if len(offsets) == at_call:
            return then(buffers, offset)
        # Never more than 20 words: 100 words take five calls.
        return real(fd, [buffers[0][:160]], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return offsets


# --- opening -----------------------------------------------------------------------------


def test_a_missing_file_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(NotReadableError, match=r"cannot open .*nothing: No such file") as caught:
        PageFile(tmp_path / "nothing")
    assert caught.value.path == str(tmp_path / "nothing")
    assert "--source" in caught.value.hint


@pytest.mark.parametrize("call", ["open", "pread"])
def test_a_closed_door_says_who_has_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    path = write_words(tmp_path / "words", WORDS)
    before = open_files()
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(NotReadableError, match="Operation not permitted") as caught:
        PageFile(path)
    monkeypatch.undo()
    assert "root" in caught.value.hint
    assert open_files() == before, "nothing stays open"


def test_a_kernel_without_the_file_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "open", missing)
    with pytest.raises(NotReadableError) as caught:
        PageFile(Path("/proc/kpagecgroup"))
    assert "CONFIG_MEMCG" in caught.value.hint


def test_a_file_that_nobody_holds_is_closed(tmp_path: Path) -> None:
    before = open_files()
    for _ in range(3):
        assert PageFile(write_words(tmp_path / "words", WORDS)).word(1) == 2
    assert open_files() == before


def test_closing_twice_is_fine(file: PageFile) -> None:
    with file:
        assert file.word(0) == 1
    file.close()
    assert file.fd == -1


# --- length ------------------------------------------------------------------------------


def test_frames_of_a_regular_file(file: PageFile) -> None:
    assert file.frames() == 100


@pytest.mark.parametrize("extra", range(1, 8))
def test_a_file_that_ends_in_the_middle_of_a_word(tmp_path: Path, extra: int) -> None:
    path = tmp_path / "odd"
    path.write_bytes(bytes(80 + extra))
    with pytest.raises(TruncatedError, match=f"{80 + extra} bytes is no multiple of 8") as caught:
        PageFile(path).frames()
    assert caught.value.hint


@pytest.mark.parametrize(
    "frames", [0, 1, 2, 1000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 6_553_600, (1 << 33) + 5]
)
def test_the_end_of_a_file_without_a_size_is_found(
    file: PageFile, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    """As /proc/kpageflags: st_size is 0, and a read beyond the end gives nothing."""
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result((0o100400, *[0] * 9)))
    monkeypatch.setattr(os, "pread", lambda _, size, at: bytes(size if at < frames * 8 else 0))
    assert file.frames() == frames


# --- reading -----------------------------------------------------------------------------


@given(low=st.integers(0, 99), size=st.integers(0, 100))
def test_any_stretch_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, low: int, size: int
) -> None:
    into = np.zeros(min(size, 100 - low), np.uint64)
    path = tmp_path_factory.getbasetemp() / "stretch"
    if not path.exists():
        write_words(path, WORDS)
    with PageFile(path) as file:
        file.read_into(low, into)
    assert np.array_equal(into, WORDS[low : low + size])


@pytest.mark.parametrize("at_call", range(1, 6))
@pytest.mark.parametrize("size_bytes", [1, 7, 8, 9, 100])
def test_a_short_read_is_continued(
    file: PageFile, monkeypatch: pytest.MonkeyPatch, at_call: int, size_bytes: int
) -> None:
    real = os.preadv
    offsets = patched_reads(
        monkeypatch, at_call, lambda to, at: real(file.fd, [to[0][:size_bytes]], at)
    )
    into = np.zeros(100, np.uint64)
    file.read_into(0, into)
    assert np.array_equal(into, WORDS)
    assert offsets[at_call - 1] == (at_call - 1) * 160


@pytest.mark.parametrize("at_call", range(1, 6))
def test_an_io_error_names_the_frame(
    file: PageFile, monkeypatch: pytest.MonkeyPatch, at_call: int
) -> None:
    def fail(_: list[memoryview], __: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    patched_reads(monkeypatch, at_call, fail)
    frame = (at_call - 1) * 20
    with pytest.raises(NotReadableError, match=f"at frame {frame:#x}: Input/output error"):
        file.read_into(0, np.zeros(100, np.uint64))


@pytest.mark.parametrize("at_call", range(1, 6))
def test_a_file_that_shrinks_is_truncated(
    file: PageFile, monkeypatch: pytest.MonkeyPatch, at_call: int
) -> None:
    patched_reads(monkeypatch, at_call, lambda _, __: 0)
    done = (at_call - 1) * 20
    with pytest.raises(
        TruncatedError, match=f"ended at frame {done:#x}, {100 - done} frames early"
    ) as caught:
        file.read_into(0, np.zeros(100, np.uint64))
    assert "unplugged" in caught.value.hint


def test_a_word_beyond_the_end(file: PageFile) -> None:
    assert file.word(99) == 100
    with pytest.raises(TruncatedError):
        file.word(100)


# --- threads -----------------------------------------------------------------------------


def scan_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("memdesc")]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_results_come_in_order(threads: int) -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.002 if number % 5 == 0 else 0)
        return number * number

    assert list(in_order(iter(range(60)), slow_first, threads=threads)) == [
        number * number for number in range(60)
    ]
    assert not scan_threads()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_few_results_wait(threads: int) -> None:
    """Items are taken as they are needed, not all at once."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_order(items(), lambda number: number, threads=threads)
    for expected in range(20):
        assert next(results) == expected
        assert len(taken) <= expected + 1 + threads * 3
    results.close()  # type: ignore[attr-defined]
    assert not scan_threads()


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("error", [ValueError("odd"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("where", [0, 1, 17, 39])
def test_the_first_error_in_order_is_raised(threads: int, error: BaseException, where: int) -> None:
    later = RuntimeError("comes later in order, even if it happens first")

    def work(number: int) -> int:
        if number == where:
            time.sleep(0.001)
            raise error
        if number > where:
            raise later
        return number

    results: list[int] = []
    with pytest.raises(type(error)) as caught:
        results.extend(in_order(iter(range(40)), work, threads=threads))
    assert caught.value is error
    assert not scan_threads()


@pytest.mark.parametrize("threads", [2, 4])
def test_an_interrupt_while_waiting_stops_the_threads(threads: int) -> None:
    """Ctrl-C arrives in the thread that waits: what was not begun is not begun any more."""
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.002)
        return number

    results = in_order(iter(range(1000)), work, threads=threads)
    assert next(results) == 0
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
    assert not scan_threads()
    assert len(begun) <= 1 + threads * 3


def test_an_error_of_the_items_stops_the_threads() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("no more items")

    with pytest.raises(OSError, match="no more items"):
        list(in_order(items(), lambda number: number, threads=3))
    assert not scan_threads()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_item_is_taken_once(threads: int) -> None:
    taken: list[int] = []
    calls: list[str] = []

    def work(items: Iterator[int]) -> None:
        for item in items:
            time.sleep(0.0005)
            taken.append(item)

    def meanwhile() -> None:
        calls.append(threading.current_thread().name)

    # A generator: two threads in it at once would be an error.
    share_out((number for number in range(300)), work, threads=threads, meanwhile=meanwhile)
    assert sorted(taken) == list(range(300))
    assert set(calls) == {threading.current_thread().name}
    calls.clear()
    share_out(iter([]), work, threads=threads, meanwhile=meanwhile)
    assert calls, "at the end in any case"
    assert not scan_threads()


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("error", [ValueError("odd"), KeyboardInterrupt(), MemoryError()])
def test_an_error_stops_all_that_share(threads: int, error: BaseException) -> None:
    taken: list[int] = []

    def work(items: Iterator[int]) -> None:
        for item in items:
            taken.append(item)
            if item == 20:
                raise error
            time.sleep(0.0005)

    with pytest.raises(type(error)) as caught:
        share_out(iter(range(10_000)), work, threads=threads)
    assert caught.value is error
    assert len(taken) < 1000
    assert not scan_threads()


def test_an_interrupt_meanwhile_stops_all_that_share() -> None:
    taken: list[int] = []

    def work(items: Iterator[int]) -> None:
        for item in items:
            taken.append(item)
            time.sleep(0.0005)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        share_out(iter(range(100_000)), work, threads=2, meanwhile=interrupt)
    assert len(taken) < 10_000
    assert not scan_threads()


def test_as_many_threads_as_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, threads in ((1, 1), (2, 2), (64, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=processors: set(range(n)))
        assert thread_count() == threads

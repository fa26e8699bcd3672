"""Ask a guest's kernel to move pages, and note what it did: which pages it tried, which moved.

Probes on the kernel's own migration functions tell both exactly, whatever happened to the
frames afterwards (`mm/migrate.c:folio_migrate_flags` is called once for each folio that moved,
`mm/rmap.c:try_to_migrate` and the migrate_folio functions for each that was tried, @6.1, @6.12,
@7.2).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from memdesc.vm.guard import only_in_guest
from memdesc.vm.workload import calls
from memdesc.vm.workload.calls import HUGE, PAGE

__all__ = [
    "TRACE_FILE",
    "check_numbers",
    "compact",
    "huge_pages",
    "offline",
    "transparent",
    "watch",
]

TRACE_FILE = "/run/moves.trace"
"""Where the trace of the last `compact` or `offline` lies."""

_TRACING = Path("/sys/kernel/tracing")
_PROBES = (
    "p:memdesc/unmap try_to_migrate old=%di:x64",
    "p:memdesc/plain migrate_folio old=%dx:x64",
    "p:memdesc/cache filemap_migrate_folio old=%dx:x64",
    "p:memdesc/buffer buffer_migrate_folio old=%dx:x64",
    "p:memdesc/norefs buffer_migrate_folio_norefs old=%dx:x64",
    "p:memdesc/huge migrate_huge_page_move_mapping old=%dx:x64",
    "p:memdesc/moved folio_migrate_flags new=%di:x64 old=%si:x64",
)
_SYSLOG_READ_ALL, _SYSLOG_CLEAR = 3, 5
_libc = ctypes.CDLL(None, use_errno=True)


@only_in_guest("trace the kernel")
def watch(buffer_kb: int = 8192) -> None:
    """Set the probes up; the ring takes its memory now."""
    calls.mount("tracefs", str(_TRACING), "tracefs")
    (_TRACING / "tracing_on").write_text("0")
    (_TRACING / "buffer_size_kb").write_text(str(buffer_kb))
    # What comes first is kept: later a block's held pages are tried again and again.
    (_TRACING / "options/overwrite").write_text("0")
    # Appending is a matter of the flag: this file cannot seek, which Python's "a" would do.
    fd = os.open(_TRACING / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    for probe in _PROBES:
        os.write(fd, probe.encode() + b"\n")
    os.close(fd)
    (_TRACING / "events/memdesc/enable").write_text("1")


@only_in_guest("compact memory")
def compact(times: int = 1) -> dict[str, Any]:
    """Write to compact_memory; counters of the kernel, and the trace in TRACE_FILE."""
    before = _vmstat()
    began = time.monotonic()
    (_TRACING / "tracing_on").write_text("1")
    for _ in range(times):
        Path("/proc/sys/vm/compact_memory").write_text("1")
    (_TRACING / "tracing_on").write_text("0")
    return {"seconds": time.monotonic() - began, **_result(before)}


@only_in_guest("take memory offline")
def offline(block: int, seconds: int = 5) -> dict[str, Any]:
    """Take a memory block offline; errno (0: done, EINTR: the kernel was still trying)."""
    before = _vmstat()
    _libc.klogctl(_SYSLOG_CLEAR, None, 0)

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, give_up)
    path = Path(f"/sys/devices/system/memory/memory{block}/state")
    error = 0
    (_TRACING / "tracing_on").write_text("1")
    fd = os.open(path, os.O_WRONLY)
    signal.alarm(seconds)
    try:
        os.write(fd, b"offline")
    except OSError as failed:
        error = failed.errno or -1  # a TimeoutError of ours has none
    finally:
        signal.alarm(0)
        os.close(fd)
        (_TRACING / "tracing_on").write_text("0")
    log = ctypes.create_string_buffer(1 << 18)
    size = _libc.klogctl(_SYSLOG_READ_ALL, log, len(log))
    text = log.raw[: max(0, size)].decode(errors="replace")
    state = path.read_text().strip()
    return {"errno": error, "state": state, "log": text, **_result(before)}


@only_in_guest("allocate huge pages")
def huge_pages(*, compact_first: bool = False) -> dict[str, Any]:
    """Ask for hugetlb pages until there are no more, and go on asking for a while.

    After a compaction in vain the kernel defers the next ones (`mm/compaction.c:
    defer_compaction` @6.1): it then refuses up to 64 times without trying.  With
    `compact_first`, all memory is compacted before, and again when it has no more.
    """
    before = _vmstat()
    path = Path("/proc/sys/vm/nr_hugepages")
    counting = _Counting(compact_first, _PATIENCE)
    while counting.goes_on():
        path.write_text(str(1 << 20))
        counting.have(int(path.read_text()))
    return {**counting.result(), "vmstat": _difference(before), "buddyinfo": _buddyinfo()}


@only_in_guest("allocate huge pages")
def transparent(*, compact_first: bool = False, effort: bool = True) -> dict[str, Any]:
    """Populate transparent huge pages one by one, and go on as `huge_pages` does.

    Without `effort` a fault takes what is free, and neither compacts nor reclaims.
    """
    settings = Path("/sys/kernel/mm/transparent_hugepage")
    if not effort:
        (settings / "defrag").write_text("never")
    # Else a fault that gets no huge page compacts again for each of the smaller folios.
    for smaller in settings.glob("hugepages-*kB/enabled"):
        if smaller.parent.name != "hugepages-2048kB":
            smaller.write_text("never")
    before = _vmstat()
    counting = _Counting(compact_first, _PATIENCE if effort else _PAUSE_AFTER)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            # Who asks is killed first, and does not wait for its own program to be read again.
            Path("/proc/self/oom_score_adj").write_text("1000")
            _libc.mlockall(_MCL_CURRENT | _MCL_ONFAULT)
            _populate(counting, writing)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        lines = pipe.read().splitlines()
    # Who asks for the last page may be killed for it, which ends the asking as well.
    killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
    result: dict[str, Any] = json.loads(lines[-1])
    return {**result, "killed": killed, "vmstat": _difference(before), "buddyinfo": _buddyinfo()}


def _populate(counting: _Counting, pipe: int) -> None:
    """Ask for one huge page after the other; what has been got so far goes to the pipe."""
    span = 4 << 30
    start = calls.aligned(span, HUGE)
    calls.madvise(start, span, calls.MADV_HUGEPAGE)
    got: list[int] = []
    for address in range(start, start + span, HUGE):
        if not counting.goes_on():
            break
        calls.madvise(address, HUGE, _MADV_POPULATE_WRITE)
        if _is_huge(address):
            got.append(address)
            # A huge page that is split gives back its pages of zeros (@6.12), so there are none.
            ctypes.memset(address, 1, HUGE)
        else:
            # Where base pages were once, there is a page table, and no huge page again.
            calls.munmap(address, HUGE)
        counting.have(len(got))
        os.write(pipe, json.dumps(counting.result()).encode() + b"\n")
    kept = sum(_is_huge(address) for address in got)
    os.write(pipe, json.dumps({**counting.result(), "kept": kept}).encode() + b"\n")


def _is_huge(address: int) -> bool:
    """Whether 2 MiB of this process lie in one aligned block of memory."""
    frames = np.array(calls.page_frames(address, HUGE // PAGE))
    return bool(frames[0] and frames[0] % (HUGE // PAGE) == 0 and np.all(np.diff(frames) == 1))


class _Counting:
    """Huge pages after each attempt; it goes on until many in a row were in vain."""

    def __init__(self, compacts: bool, patience: int) -> None:
        self.compacts, self.patience = compacts, patience
        self._compact()
        self.counts: list[list[float]] = []
        self.began = self.grew = time.monotonic()
        self.in_vain = self.most = 0

    def have(self, count: int) -> None:
        now = time.monotonic()
        if count > self.most:
            self.most, self.in_vain, self.grew = count, 0, now
            self.counts = [*self.counts[-19:], [count, round(now - self.began, 1)]]
            return
        self.in_vain += 1
        if self.in_vain % _PAUSE_AFTER == 0:
            # Blocks that compaction skipped are looked at again once kswapd has slept.
            time.sleep(_PAUSE_SECONDS)
            self._compact()

    def _compact(self) -> None:
        if self.compacts:
            Path("/proc/sys/vm/compact_memory").write_text("1")

    def goes_on(self) -> bool:
        now = time.monotonic()
        if now - self.began > _LIMIT_SECONDS:
            return False
        return self.in_vain < self.patience and now - self.grew < _PATIENCE_SECONDS

    def result(self) -> dict[str, Any]:
        attempts = {"in_vain": self.in_vain, "seconds": round(time.monotonic() - self.began, 1)}
        return {"huge_pages": self.most, "growth": self.counts, **attempts}


@only_in_guest("read another process's memory")
def check_numbers(pid: int, address: int, pages: int, step: int = 5) -> dict[str, int]:
    """Whether the pages that are left in a filler's region still hold their numbers."""
    wrong = 0
    with Path(f"/proc/{pid}/pagemap").open("rb") as file:
        file.seek(address // PAGE * 8)
        words = np.frombuffer(file.read(pages * 8), np.uint64)
    present = np.flatnonzero(words >> np.uint64(63))[::step]
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    for page in present.tolist():
        number = struct.unpack("<Q", os.pread(fd, 8, address + page * PAGE))[0]
        wrong += number != page + 1
    os.close(fd)
    return {"seen": present.size, "wrong": wrong}


# --- helpers -----------------------------------------------------------------------------

_MADV_POPULATE_WRITE = 23
_MCL_CURRENT, _MCL_ONFAULT = 1, 4
_PATIENCE = 130
_PATIENCE_SECONDS = 8.0
_LIMIT_SECONDS = 60.0
_PAUSE_AFTER, _PAUSE_SECONDS = 16, 0.25
_COUNTED = ("compact_", "pgmigrate_", "drop_", "pgsteal_", "pgscan_", "htlb_", "thp_fault", "oom")


def _vmstat() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return {name: int(value) for name, value in lines}


def _difference(before: dict[str, int]) -> dict[str, int]:
    after = _vmstat()
    return {
        name: after[name] - value
        for name, value in before.items()
        if name.startswith(_COUNTED) and after[name] != value
    }


def _buddyinfo() -> str:
    return Path("/proc/buddyinfo").read_text()


def _result(before: dict[str, int]) -> dict[str, Any]:
    trace = (_TRACING / "trace").read_bytes()
    Path(TRACE_FILE).write_bytes(trace)
    lost = 0
    for line in (_TRACING / "per_cpu/cpu0/stats").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name in ("overrun", "dropped events"):
            lost += int(value)
    return {"vmstat": _difference(before), "lost": lost, "buddyinfo": _buddyinfo()}

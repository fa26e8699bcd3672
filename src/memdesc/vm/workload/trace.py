"""Record the page allocator at work: its events, and all of memory before and after.

Tracing is on for longer than the recording: a marker is written into the trace right after
the page files were read, and the guest holds still there, so that the host can dump the very
moment.  Between the two markers nothing is missing, the copies' own allocations included.

The ring buffer is memory too, so it gets its size first, and every path is gone once before it
counts.  Sources: `Documentation/trace/ftrace.rst`, `events/kmem/*/format`.
"""

from __future__ import annotations

import gc
import os
import py_compile
import socket
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memdesc.vm.guard import only_in_guest
from memdesc.vm.port import hold
from memdesc.vm.workload import calls, copying

__all__ = ["EVENTS", "WORKLOADS", "record"]

EVENTS = (
    "mm_page_alloc", "mm_page_free", "mm_page_free_batched", "mm_page_alloc_zone_locked",
    "mm_page_pcpu_drain", "mm_page_alloc_extfrag", "kmalloc", "kfree", "kmem_cache_alloc",
    "kmem_cache_free",
)  # fmt: skip
"""Of the group kmem: what is recorded."""

_TRACING = Path("/sys/kernel/tracing")
_SETTINGS = {
    "/proc/sys/vm/dirty_writeback_centisecs": "0",
    "/proc/sys/vm/dirty_expire_centisecs": "8640000",
    "/proc/sys/vm/compaction_proactiveness": "0",
    "/proc/sys/kernel/kptr_restrict": "0",
    "/sys/kernel/mm/transparent_hugepage/enabled": "madvise",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs": "3600000",
}
_FILES = (
    "meminfo", "vmstat", "slabinfo", "zoneinfo", "pagetypeinfo", "buddyinfo", "cmdline", "iomem",
    "sys/kernel/osrelease", "kpagecount", "kpageflags",
)  # fmt: skip
"""What is copied before and after; the page flags last, next to the marker."""
_WORK = "/data/traced"  # on ext4
_HUGE = 2 << 20
_STEP_FILES = ("buddyinfo", "pagetypeinfo")


class _Tracing:
    """The guest's ring buffer and its switches."""

    def __init__(self, buffer_kb: int) -> None:
        self.write("tracing_on", "0")
        self.write("buffer_size_kb", str(buffer_kb))
        for name in EVENTS:
            self.write(f"events/kmem/{name}/enable", "1")
        self._marker = os.open(_TRACING / "trace_marker", os.O_WRONLY)

    def write(self, name: str, value: str) -> None:
        (_TRACING / name).write_text(value)

    def mark(self, text: str) -> None:
        """Write a marker, an event of its own, into the trace."""
        os.write(self._marker, text.encode())

    def keep(self, archive: tarfile.TarFile) -> dict[str, int]:
        """Add the buffers, their statistics and formats; lost events by kind."""
        lost: dict[str, int] = {}
        names = ["header_page", "header_event", "ftrace/print/format"]
        names += [f"kmem/{name}/format" for name in EVENTS]
        for name in names:
            content = (_TRACING / "events" / name).read_bytes()
            copying.add(archive, f"trace/events/{name}", content)
        for name in ("trace_clock", "buffer_size_kb"):
            copying.add(archive, f"trace/{name}", (_TRACING / name).read_bytes())
        for cpu in sorted((_TRACING / "per_cpu").iterdir()):
            stats = (cpu / "stats").read_text()
            copying.add(archive, f"trace/per_cpu/{cpu.name}/stats", stats.encode())
            for line in stats.splitlines():
                key, _, value = line.partition(":")
                if key in ("overrun", "commit overrun", "dropped events"):
                    lost[key] = lost.get(key, 0) + int(value)
            raw = _pages(cpu / "trace_pipe_raw")
            copying.add(archive, f"trace/per_cpu/{cpu.name}/trace_pipe_raw", raw)
        return lost


def _pages(path: Path) -> bytes:
    """All sub-buffers of a CPU; a read gives one whole page."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    parts: list[bytes] = []
    try:
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
    return b"".join(parts)


@only_in_guest("change settings and trace the kernel")
def record(path: str, workload: str, buffer_kb: int) -> dict[str, Any]:
    """Trace `workload`, one of `WORKLOADS`, and write what was seen as a tar archive to `path`.

    Holds at "before" and "after", right after the page files were read.  Returns the events
    that the ring buffer lost, by kind: all 0, or the recording is no good.
    """
    for name, value in _SETTINGS.items():
        if Path(name).exists():
            Path(name).write_text(value)
    calls.mount("tracefs", str(_TRACING), "tracefs")
    Path(_WORK).mkdir()
    gc.disable()
    tracing = _Tracing(buffer_kb)
    before, after, steps = copying.Arena(), copying.Arena(), copying.Arena()
    copied: list[str] = []

    def step(name: str) -> None:
        """A moment within the workload: what the lists hold, between two markers."""
        place = f"{len(copied)}-{name}"
        tracing.mark(f"reading {place}")
        for file in _STEP_FILES:
            steps.read(f"steps/{place}/{file}", f"/proc/{file}")
        tracing.mark(f"step {place}")
        copied.append(name)

    def warm() -> None:
        for arena, name in ((before, "before"), (after, "after")):
            _copy(arena, name)
        for _ in range(3):
            step("warm")
        tracing.mark("warm")

    tracing.write("tracing_on", "1")
    warm()
    time.sleep(1)  # grace periods, deferred work
    warm()
    tracing.write("tracing_on", "0")
    tracing.write("trace", "\n")  # forget all that
    copied.clear()
    steps.clear()
    tracing.write("tracing_on", "1")
    time.sleep(0.2)
    _copy(before, "before")
    tracing.mark("before")
    hold("before")
    tracing.mark("begin")
    WORKLOADS[workload](step)
    tracing.mark("end")
    _copy(after, "after")
    tracing.mark("after")
    hold("after")
    tracing.mark("held")
    tracing.write("tracing_on", "0")
    with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for arena in (before, after, steps):
            arena.write_to(archive)
        lost = tracing.keep(archive)
        copying.add(archive, "kallsyms", Path("/proc/kallsyms").read_bytes())
    return {"lost": lost}


def _copy(arena: copying.Arena, name: str) -> None:
    arena.clear()
    for file in _FILES:
        # A page file in one go; /proc/sys gives nothing to those who ask for so much.
        piece = 4 << 20 if file in copying.PAGE_FILES else 64 << 10
        arena.read(f"{name}/proc/{file}", f"/proc/{file}", piece)


# --- workloads ---------------------------------------------------------------------------

Step = Callable[[str], None]


def _compile(step: Step) -> None:
    """Python compiles itself on ext4, beside many small files and short processes."""
    sources = sorted(Path(os.__file__).parent.glob("*.py"))[:70]
    for source in sources:
        target = Path(_WORK, source.name)
        target.write_bytes(source.read_bytes()[: 24 << 10])
        try:
            py_compile.compile(str(target), doraise=True)
        except (py_compile.PyCompileError, ValueError):
            pass  # it was cut short
    for number in range(300):
        target = Path(_WORK, f"small-{number}")
        target.write_bytes(bytes(700 + number * 37 % 9000))
        if number % 3 == 0:
            target.unlink()
    for number in range(25):
        _child(_touch, 50 + number * 10)
    for _ in range(4):
        _child(os.execv, "/usr/bin/python3", ["python3", "-S", "-c", "import json"])
    fd = os.open(_WORK, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _churn(step: Step) -> None:
    """Anonymous memory comes and goes, small and huge, beside pipes, sockets and forks."""
    regions: list[tuple[int, int]] = []
    for number in range(40):
        size = (64 + number * 53 % 700) * calls.PAGE
        address = calls.mmap(size)
        calls.write_pages(address, size // calls.PAGE)
        regions.append((address, size))
        if number % 3 == 2:  # from the middle
            address, size = regions.pop(len(regions) // 2)
            calls.munmap(address, size)
    huge = calls.aligned(8 * _HUGE, _HUGE)
    calls.madvise(huge, 8 * _HUGE, calls.MADV_HUGEPAGE)
    calls.write_pages(huge, 8 * 512, step=128)
    calls.madvise(huge + 2 * _HUGE, _HUGE, calls.MADV_DONTNEED)
    calls.munmap(huge + 3 * _HUGE + 64 * calls.PAGE, 3 * _HUGE)  # splits a huge page
    pipes = [os.pipe() for _ in range(48)]
    for _, writing in pipes:
        os.write(writing, bytes(60_000))
    pairs = [socket.socketpair() for _ in range(24)]
    for one, other in pairs:
        one.setblocking(False)
        one.send(bytes(30_000))
        other.recv(4000)
    for number in range(20):
        _child(_touch, 300 + number * 20)
    for reading, writing in pipes[::2]:
        os.close(reading)
        os.close(writing)
    for one, other in pairs[::2]:
        one.close()
        other.close()
    memory = os.memfd_create("traced")
    os.truncate(memory, 6 << 20)
    for at in range(0, 6 << 20, 1 << 20):
        os.pwrite(memory, bytes(700_000), at)
    os.truncate(memory, 2 << 20)
    _keep.append((pipes, pairs, memory, regions))


def _steps(step: Step) -> None:
    """Sequences that user space can force, with the free lists copied after each."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    region = 0
    size = 3000 * calls.PAGE
    step("start")
    pool.write_text("12")
    step("hugetlb-grown")
    pool.write_text("4")
    step("hugetlb-shrunk")
    region = calls.mmap(size)
    calls.write_pages(region, size // calls.PAGE)
    step("touched")
    calls.munmap(region, size)
    step("unmapped")
    files = [os.open(f"{_WORK}/{number}", os.O_CREAT | os.O_RDWR) for number in range(900)]
    step("files")
    for fd in files:
        os.close(fd)
    step("files-closed")
    pipes = [os.pipe() for _ in range(400)]
    step("pipes")
    for _, writing in pipes:
        os.write(writing, bytes(16_000))
    step("pipes-filled")
    for reading, writing in pipes:
        os.close(reading)
        os.close(writing)
    step("pipes-closed")


WORKLOADS: dict[str, Callable[[Step], None]] = {
    "compile": _compile,
    "churn": _churn,
    "steps": _steps,
}

_keep: list[Any] = []
"""What a workload leaves in use until the memory after it was seen."""


def _child(play: Callable[..., Any], *args: Any) -> None:
    """A process that plays and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            play(*args)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _touch(pages: int) -> None:
    calls.write_pages(calls.mmap(pages * calls.PAGE), pages)

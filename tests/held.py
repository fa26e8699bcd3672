"""Child processes that hold memory still, for tests that compare with the kernel's sums.

Run as a program, it forks a family that shares memory, so that none of it is shared with
the test itself, which never holds still.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import planting

_NOHUGEPAGE = 15
_NORESERVE = 0x4000
KINDS = ("anonymous", "sharing", "sharing", "files", "files", "huge", "sparse")


@contextmanager
def child(hold: Callable[[], object]) -> Iterator[int]:
    """Fork a child that calls `hold` and then waits; yields its pid once it holds still."""
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            kept = hold()
            os.write(told, b"x")
            signal.pause()
            code = len(str(kept)) & 0
        finally:
            os._exit(code)
    os.close(told)
    try:
        if os.read(ready, 1) != b"x":
            raise planting.CannotPlant("the child could not set its memory up")
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def sparse_area(pages: int) -> mmap.mmap:
    """Address space without huge pages, of which no page is present."""
    area = planting.anonymous(pages, flags=mmap.MAP_PRIVATE | _NORESERVE)
    area.madvise(_NOHUGEPAGE)
    return area


@contextmanager
def workload(folder: Path) -> Iterator[list[int]]:
    """Children with the memory of `KINDS`, in that order; yields their pids."""
    command = [sys.executable, "-S", __file__, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as family:
        assert family.stdin is not None
        assert family.stdout is not None
        line = family.stdout.readline().split()
        try:
            if len(line) != len(KINDS):
                raise planting.CannotPlant("the children could not set their memory up")
            yield [int(word) for word in line]
        finally:
            family.stdin.close()
            family.wait()


def rollup(pid: int) -> dict[str, int]:
    """/proc/PID/smaps_rollup in bytes, by field."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def _touched(area: mmap.mmap) -> mmap.mmap:
    for offset in range(0, len(area), planting.PAGE):
        area[offset] = 1
    return area


def _family(folder: Path) -> None:
    data = folder / "data.bin"
    data.write_bytes(os.urandom(64) * 4096)
    shared = mmap.mmap(-1, 64 * planting.PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    before_fork = _touched(planting.anonymous(32))

    def anonymous() -> object:
        area = planting.anonymous(300)
        area.madvise(_NOHUGEPAGE)
        zero = planting.anonymous(16)
        return _touched(area), zero, zero[:: planting.PAGE]

    def sharing() -> object:
        return _touched(shared), before_fork[:: planting.PAGE]

    def files() -> object:
        stack = ExitStack()
        area = mmap.mmap(os.open(data, os.O_RDONLY), 0, flags=mmap.MAP_PRIVATE, prot=3)
        kept = area[:: planting.PAGE]
        area[0] = 1
        return area, kept, stack.enter_context(planting.memfd()), stack

    def huge() -> object:
        stack = ExitStack()
        return stack.enter_context(planting.transparent_huge_page()), stack

    def sparse() -> object:
        area = sparse_area(1 << 20)
        for page in (0, 5000, 5001, 400_000, (1 << 20) - 1):
            area[page * planting.PAGE] = 1
        return area

    holds = {hold.__name__: hold for hold in (anonymous, sharing, files, huge, sparse)}
    with ExitStack() as stack:
        pids = [stack.enter_context(child(holds[kind])) for kind in KINDS]
        print(*pids, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _family(Path(sys.argv[1]))

"""Run a command and say what it took: wall time, processor time, and the most memory it held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_LAUNCHER = """
import json, os, sys, time
begin = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ,
                     file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
_, status, usage = os.wait4(pid, 0)
wall = time.perf_counter() - begin
print(json.dumps([wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss,
                  os.waitstatus_to_exitcode(status)]))
"""
"""A process inherits the largest size of the one that started it, so a small one starts it."""


@dataclass(frozen=True, slots=True)
class Took:
    """What one run of a command took."""

    wall_s: float
    cpu_s: float
    rss_mib: float = 0.0


def run(command: Sequence[str | Path], *, good: Sequence[int] = (0, 1)) -> Took:
    """Run `command` with its output thrown away. Raises CalledProcessError for other codes.

    1 is good: memdesc says so that a check found something.
    """
    launcher = [sys.executable, "-S", "-E", "-c", _LAUNCHER, *map(str, command)]
    done = subprocess.run(launcher, capture_output=True, text=True, check=True)
    wall, cpu, rss, code = json.loads(done.stdout)
    if code not in good:
        raise subprocess.CalledProcessError(
            code, [str(part) for part in command], None, done.stderr
        )
    return Took(wall, cpu, rss / 1024)


@contextmanager
def others(share: list[float]) -> Iterator[None]:
    """Append the share of one processor's time that went to anybody but us meanwhile."""
    busy, own, wall = _busy(), _own(), _now()
    yield
    passed = max(_now() - wall, 1e-9)
    share.append(max(0.0, (_busy() - busy) - (_own() - own)) / passed)


def _busy() -> float:
    """Seconds that all processors together were not idle."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle, iowait = fields[3], fields[4]
    return (sum(fields) - idle - iowait) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _now() -> float:
    return os.times().elapsed

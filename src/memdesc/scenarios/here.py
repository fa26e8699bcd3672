"""What this machine's settings do to a scenario that was written for the quiet ones of guests.

`here` changes no setting, and two of them show in nearly every mapping of a file: how many pages a
read fault maps (`fault_around`) and how many are read ahead.  Whether they are why a scenario fails
is asked of the model: it runs once more, with the settings as they are here.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

from memdesc.kernels.pagemap import PM
from memdesc.kernels.processes import is_modelled
from memdesc.scenarios.run import Run, run_scenario

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["explaining_knob", "fault_around", "read_ahead"]

_PAGES = 512


def explaining_knob(run: Run, settings: Mapping[str, str] | None = None) -> str:
    """The settings that make a run here fail where it fails, as "knob fault_around 4096"; "" where
    they do not: then the kernel does something else than the scenario says.

    `settings`: those that are in force, by name; measured if not given.
    """
    from memdesc.mm.kernel import KNOBS
    from memdesc.scenarios.model_run import ModelRunner

    if run.holds or not is_modelled(run.release):
        return ""
    if settings is None:
        settings = {"fault_around": str(fault_around()), "read_ahead": str(read_ahead())}
    loud = {name: value for name, value in settings.items() if value != KNOBS[name]}
    if not loud:
        return ""
    runner = ModelRunner(str(run.release))
    quiet = _failed(run_scenario(runner, run.scenario))
    # One of them where that is enough, else all.
    for names in [*([name] for name in loud), list(loud)]:
        runner.settings = {name: loud[name] for name in names}
        by_settings = _failed(run_scenario(runner, run.scenario)) - quiet
        if _failed(run) and _failed(run) <= by_settings:
            return " and ".join(f"knob {name} {KNOBS[name]}" for name in names)
    return ""


def fault_around() -> int:
    """Bytes that a read fault maps around its page, found out by one: the setting itself is in
    debugfs, which is seldom mounted."""
    fd = os.memfd_create("memdesc")
    try:
        os.write(fd, b"\1" * mmap.PAGESIZE * _PAGES)
        with mmap.mmap(fd, mmap.PAGESIZE * _PAGES) as area:
            assert area[mmap.PAGESIZE * (_PAGES // 2)] == 1
            first = ctypes.c_char.from_buffer(area)
            at = ctypes.addressof(first) // mmap.PAGESIZE * 8
            del first
            with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
                entries = os.pread(file.fileno(), 8 * _PAGES, at)
    finally:
        os.close(fd)
    words = memoryview(entries).cast("Q")
    return mmap.PAGESIZE * sum(bool(word & PM.PRESENT) for word in words)


def read_ahead() -> int:
    """Kilobytes that are read ahead of files in the home folder; 0 where they have no device."""
    device = Path.home().stat().st_dev
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return int(path.read_text()) if path.exists() else 0


# --- helpers -----------------------------------------------------------------------------


def _failed(run: Run) -> set[int]:
    """Lines that do not hold."""
    return {problem.line for problem in run.problems}

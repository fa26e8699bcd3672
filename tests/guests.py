"""Fixtures with real kernels: a booted guest, and a recording with its dump.

Both are made once per session, and only where this machine can; a guest is as it was after
its boot whenever a test begins. Tests that use them are
marked `vm`; without QEMU they are skipped with one line that says what is missing.

    def test_it(guest: Guest) -> None:                    # once for each kernel
    def test_it(recording: Recording) -> None:            # once for each kernel
    def test_it(recorded: Callable[[str], Recording]) -> None: recorded("6.12")

A recording is kept in the cache until the rig itself (memdesc.vm), Python or the kernel's
package changes: its tree and dump do not depend on the rest of memdesc. What does (the
live source inside a guest) is tested with `guest`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import memdesc.vm
from memdesc.errors import VmError
from memdesc.vm.guest import Guest
from memdesc.vm.host import cache_folder, install_hint, locked, missing_tools
from memdesc.vm.kernels import SERIES, Kernel, fetch
from memdesc.vm.record import Recording, record
from memdesc.vm.root_disk import digest_of, python_key

KERNELS = tuple(SERIES)


@cache
def kernel_or_skip(name: str) -> Kernel:
    """The kernel of a series, or why this machine cannot boot it."""
    missing = missing_tools()
    if missing:
        pytest.skip(f"no {', '.join(tool.name for tool in missing)}: {install_hint(missing)}")
    try:
        return fetch(name)
    except VmError as error:
        pytest.skip(f"kernel {name} cannot be fetched: {error}")


@pytest.fixture(scope="session", params=KERNELS)
def booted(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A booted guest of each kernel, as the tests before left it: use `guest`."""
    with Guest(kernel_or_skip(request.param)) as running:
        running.savevm("booted")
        yield running


@pytest.fixture
def guest(booted: Guest) -> Guest:
    """A guest of each kernel, just booted; numpy and memdesc are imported in its init."""
    booted.loadvm("booted")
    return booted


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Recording]:
    """The recording of a series, made now or kept from an earlier session."""
    return _recorded


@pytest.fixture(scope="session", params=KERNELS)
def recording(request: pytest.FixtureRequest) -> Recording:
    """A recording of each kernel."""
    return _recorded(request.param)


@cache
def _recorded(name: str) -> Recording:
    kernel = kernel_or_skip(name)
    source = sorted(Path(memdesc.vm.__file__).parent.rglob("*.py"))
    folder = cache_folder() / "recordings"
    mine = folder / f"{name}-{digest_of(source, python_key(), kernel.package)}"
    with locked(folder / f"{name}.lock"):
        if not mine.exists():
            for old in folder.glob(f"{name}-*"):
                shutil.rmtree(old)
            record(kernel, mine)
    return Recording(mine)

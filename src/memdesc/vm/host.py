"""What this machine must offer for a guest: programs, and a place to keep what was built."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from memdesc.errors import VmError

__all__ = [
    "TOOLS",
    "Tool",
    "cache_folder",
    "find_tool",
    "install_hint",
    "locked",
    "missing_tools",
    "run_tool",
]


@dataclass(frozen=True)
class Tool:
    """A program that the rig runs, and the Debian package that has it."""

    name: str
    package: str
    why: str


TOOLS: tuple[Tool, ...] = (
    Tool("qemu-system-x86_64", "qemu-system-x86", "runs the guests"),
    Tool("busybox", "busybox-static", "the first program of a guest"),
    Tool("mkfs.ext4", "e2fsprogs", "makes the guest's root disk"),
    Tool("ldd", "libc-bin", "finds the libraries of the Python that goes into the guest"),
    Tool("strip", "binutils", "makes them small"),
    Tool("apt-get", "apt", "fetches kernels"),
    Tool("apt-cache", "apt", "finds kernels"),
    Tool("dpkg", "dpkg", "unpacks kernels"),
    Tool("depmod", "kmod", "finds what a kernel module needs"),
    Tool("zstd", "zstd", "unpacks kernels since 6.12"),
    Tool("lz4", "lz4", "unpacks older kernels"),
)
"""Every program that is needed, in the order in which they are looked for."""

_PLACES = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Not in everybody's PATH, and mkfs.ext4 and depmod live there."""


def find_tool(name: str) -> str:
    """The path of one of `TOOLS`. Raises VmError where it is not installed."""
    path = _search(name)
    if path is None:
        tool = next(tool for tool in TOOLS if tool.name == name)
        raise VmError(
            f"{name} is not installed on this machine ({tool.why})", hint=install_hint([tool])
        )
    return path


def missing_tools() -> list[Tool]:
    """Those of `TOOLS` that this machine lacks."""
    return [tool for tool in TOOLS if _search(tool.name) is None]


def install_hint(tools: Sequence[Tool]) -> str:
    """How to get these programs."""
    return "apt install " + " ".join(dict.fromkeys(tool.package for tool in tools))


def run_tool(command: Sequence[str], *, cwd: Path | None = None) -> str:
    """Run a program of `TOOLS` or its sibling and return what it printed.

    Raises VmError with its last line of complaint when it fails.
    """
    name = command[0]
    path = find_tool(name) if any(tool.name == name for tool in TOOLS) else name
    try:
        done = subprocess.run(  # noqa: S603 - our own words, no shell
            [path, *command[1:]], cwd=cwd, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise VmError(f"{name} is not installed on this machine") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise VmError(f"{name} failed: {said[-1] if said else f'exit status {done.returncode}'}")
    return done.stdout.decode(errors="replace")


def cache_folder() -> Path:
    """Where kernels and disks are kept: $XDG_CACHE_HOME/memdesc/vm, made if it is not there."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base).absolute() / "memdesc" / "vm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`: two processes never build the same thing at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _search(name: str) -> str | None:
    found = shutil.which(name)
    if found is None:
        found = shutil.which(name, path=os.pathsep.join(_PLACES))
    if found is not None and name == "busybox" and not _is_static(Path(found)):
        return None
    return found


def _is_static(program: Path) -> bool:
    """Whether an ELF program needs no dynamic loader: the guest has none that early."""
    with program.open("rb") as file:
        return b"/ld-linux" not in file.read(4096)

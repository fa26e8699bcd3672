"""The root disk of a guest: the running Python, numpy, and memdesc itself, on ext4.

The standard library is trimmed and stripped, and its programs' libraries come along, so that
the guest needs nothing of this machine.  What changes seldom (Python and packages) is staged
in one folder of the cache; memdesc's own source is added to it for each image.  Images are
named by the hash of all that goes into them; the newest few are kept.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.util
import platform
import py_compile
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import memdesc
from memdesc.errors import VmError
from memdesc.vm.host import cache_folder, find_tool, locked, run_tool

__all__ = ["DATA_FILES", "builder_key", "digest_of", "python_key", "write_root_disk"]

DATA_FILES = {
    "static.bin": 4 << 20,
    "shared.db": 2 << 20,
    "cold.bin": 2 << 20,
    "archive.bin": 1 << 20,
}
"""Files of /data that the workload reads, and their sizes in bytes."""

_PACKAGES = ("numpy", "arro3", "rich")
"""What memdesc imports inside a guest; those that are installed here go in."""

_FREE_BYTES = 48 << 20
"""Room on the disk for what programs write."""

_IMAGES_KEPT = 3

_SKIPPED = {
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages",
    "dist-packages", "pydoc_data", "distutils", "unittest", "sqlite3", "venv", "f2py", "include",
}  # fmt: skip

_SKIPPED_OF_MEMDESC = ("__pycache__", "captures", "report", "*.html")


def write_root_disk() -> Path:
    """The root disk image for this Python and this memdesc, built unless the cache has it.

    Raises VmError where a program that builds it is missing.
    """
    path = cache_folder() / f"root-{builder_key()}.img"
    with locked(cache_folder() / "root.lock"):
        if not path.exists():
            staging = _staged()
            _copy_memdesc(staging / "opt" / "memdesc")
            partial = path.with_suffix(".partial")
            _make_ext4(staging, partial)
            partial.rename(path)
            images = sorted(cache_folder().glob("root-*.img"), key=lambda p: p.stat().st_mtime)
            for old in images[:-_IMAGES_KEPT]:
                old.unlink()
        path.touch()
    return path


def builder_key() -> str:
    """A hash of all that decides what a guest holds: Python, packages, memdesc's source."""
    return digest_of(_memdesc_files(), python_key(), memdesc.__version__)


def digest_of(files: Iterable[Path], *words: str) -> str:
    """A short hash of some words and of the content of some files."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


# --- Python ------------------------------------------------------------------------------


def python_key() -> str:
    """A hash of the interpreter, the packages and this module."""
    words = [platform.python_version(), sys.executable, str(DATA_FILES)]
    for name in _PACKAGES:
        words += [name, *(f"{p}@{p.stat().st_mtime_ns}" for p in _package_folders(name))]
    return digest_of([Path(__file__)], *words)


def _staged() -> Path:
    """The folder that holds all of the root disk but memdesc."""
    staging = cache_folder() / f"root-{python_key()}"
    if (staging / ".complete").exists():
        return staging
    for old in cache_folder().glob("root-*"):
        if old.is_dir():
            shutil.rmtree(old)
    for folder in ("proc", "sys", "dev", "run", "tmp", "huge", "data", "mnt", "usr/bin", "opt"):
        (staging / folder).mkdir(parents=True)
    (staging / "usr/lib").mkdir()
    (staging / "bin").symlink_to("usr/bin")
    (staging / "lib").symlink_to("usr/lib")
    (staging / "lib64").symlink_to("usr/lib")
    _copy_python(staging)
    for name, size in DATA_FILES.items():
        (staging / "data" / name).write_bytes(random.Random(name).randbytes(size))
    (staging / ".complete").touch()
    return staging


def _copy_python(staging: Path) -> None:
    """This interpreter as /usr/bin/python3, its library, packages, and what they link to."""
    interpreter = Path(sys.executable).resolve()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    target = staging / "usr" / "bin" / version
    shutil.copy2(interpreter, target)
    (target.parent / "python3").symlink_to(version)
    library = staging / "usr" / "lib" / version
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=_unwanted)
    binaries = [target, *library.rglob("*.so")]
    for binary in [interpreter, *library.rglob("*.so")]:
        binaries += _copy_libraries(binary, staging)
    for binary in binaries:
        binary.chmod(0o755)
        command = [find_tool("strip"), "--strip-unneeded", str(binary)]
        subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    for name in _PACKAGES:
        for folder in _package_folders(name):
            # Not stripped: tools that build wheels lay their libraries out in ways strip breaks.
            # Not in site-packages: Debian's own Python does not look there.
            place = staging / "opt" / "packages" / folder.name
            shutil.copytree(folder, place, ignore=_unwanted, dirs_exist_ok=True)
            for binary in [p for p in place.rglob("*.so*") if ".libs" not in str(folder)]:
                _copy_libraries(binary, staging)


def _package_folders(name: str) -> list[Path]:
    """Where a package is installed here, with the libraries its wheel brought along."""
    spec = importlib.util.find_spec(name)
    folders = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    return folders + [path for f in folders if (path := f.parent / f"{name}.libs").is_dir()]


def _unwanted(folder: str, names: list[str]) -> set[str]:
    """Members of a library folder that the guest does not need."""
    skipped = {name for name in names if name in _SKIPPED or name.startswith("config-")}
    skipped |= {name for name in names if ".opt-" in name or name.endswith((".a", ".exe", ".pyi"))}
    if folder.endswith("lib-dynload"):
        unused = ("_test", "_ctypes_test", "xx", "_codecs_", "_tkinter")
        skipped |= {name for name in names if name.startswith(unused)}
    return skipped


def _copy_libraries(binary: Path, staging: Path) -> list[Path]:
    """Copy the shared libraries of a binary to /usr/lib; returns those that are new."""
    command = [find_tool("ldd"), str(binary)]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603
    copied = []
    for line in listing.splitlines():
        source = next((Path(word) for word in line.split() if word.startswith("/")), None)
        if source is None or ".libs" in str(source):
            continue
        target = staging / "usr" / "lib" / source.name
        if not target.exists():
            shutil.copy2(source.resolve(), target)
            copied.append(target)
    return copied


# --- memdesc -----------------------------------------------------------------------------


def _memdesc_files() -> list[Path]:
    """Source files of memdesc that go into the guest, in a fixed order."""
    root = Path(memdesc.__file__).parent
    left_out = {"captures", "report", "__pycache__"}
    files = (p for p in root.rglob("*") if p.is_file())
    return sorted(p for p in files if not left_out & set(p.relative_to(root).parts))


def _copy_memdesc(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    ignore = shutil.ignore_patterns(*_SKIPPED_OF_MEMDESC)
    shutil.copytree(Path(memdesc.__file__).parent, target, ignore=ignore)
    # Compiled here: the guest would take seconds for it under emulation.
    compileall.compile_dir(
        target,
        quiet=2,
        stripdir=str(target.parents[1]),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def _make_ext4(staging: Path, path: Path) -> None:
    """An ext4 image of a folder, the same for the same content but for its times."""
    used = sum(max(p.lstat().st_size, 1024) for p in staging.rglob("*"))
    with path.open("wb") as disk:
        disk.truncate(-(-(used * 5 // 4 + _FREE_BYTES) >> 20) << 20)
    identity = "6d656d64-6573-4063-8000-000000000001"
    extended = f"hash_seed={identity},root_owner=0:0,lazy_itable_init=0"
    words = ["-q", "-F", "-U", identity, "-E", extended, "-d", str(staging), str(path)]
    try:
        run_tool(["mkfs.ext4", *words])
    except VmError:
        path.unlink()
        raise

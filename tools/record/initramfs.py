"""Build what a guest boots from: a small initramfs and an ext4 root disk.

The initramfs holds busybox and the kernel modules, nothing else: it loads the modules, mounts the
root disk and hands over.  The root disk holds this machine's Python (trimmed, stripped, with the
libraries it links to), the guest package and a few data files.  Program text is therefore ordinary
ext4 page cache in the guest, as on a server, and not tmpfs as it would be in an initramfs.
"""

from __future__ import annotations

import lzma
import random
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from .kernels import Kernel, RecordError, run

# Modules the guest needs where they are not built in, without their dependencies.
MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "zram", "virtio_balloon")

ROOT_DISK_MB = 192
DATA_FILES = {
    "static.bin": 4 << 20,
    "shared.db": 2 << 20,
    "cold.bin": 2 << 20,
    "archive.bin": 1 << 20,
}

_SKIPPED = {
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages",
    "dist-packages", "pydoc_data", "distutils", "unittest", "sqlite3", "asyncio", "venv",
}  # fmt: skip

_INIT = """#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module || echo "insmod $module failed"; done
mount -t ext4 -o noatime,commit=900 /dev/vda /root || exec reboot -f
for place in proc sys dev; do mount --move /$place /root/$place; done
export PYTHONHOME=/usr PYTHONPATH=/opt PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1
exec switch_root /root /usr/bin/python3 -m guest
"""

_BUSYBOX_LINKS = ("sh", "mount", "insmod", "switch_root", "reboot", "echo")


# -- initramfs ---------------------------------------------------------------------------------


def write_initramfs(kernel: Kernel, path: Path) -> None:
    """Write an uncompressed newc archive (the guest would decompress it under emulation)."""
    with path.open("wb") as archive:
        for number, (name, mode, content) in enumerate(_initramfs_entries(kernel), 1):
            archive.write(_cpio_entry(name, mode, content, number))
        archive.write(_cpio_entry("TRAILER!!!", 0, b"", 0))


def _initramfs_entries(kernel: Kernel) -> Iterator[tuple[str, int, bytes]]:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RecordError("busybox (static) is not installed on this machine")
    for folder in ("bin", "dev", "proc", "sys", "root", "modules"):
        yield folder, stat.S_IFDIR | 0o755, b""
    yield "init", stat.S_IFREG | 0o755, _INIT.encode()
    yield "bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes()
    for name in _BUSYBOX_LINKS:
        yield f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox"
    for position, module in enumerate(module_files(kernel.modules, MODULES)):
        name = module.name.removesuffix(".xz").replace(".ko", "")
        yield f"modules/{position:02}-{name}", stat.S_IFREG | 0o644, _module_bytes(module)


def module_files(modules: Path, names: Iterable[str]) -> list[Path]:
    """Files of the modules and of all they depend on, in load order; built-in ones have none."""
    lines = (line.split(":") for line in (modules / "modules.dep").read_text().splitlines())
    depends = {name: rest.split() for name, rest in lines}
    by_name = {Path(name).name.split(".")[0].replace("-", "_"): name for name in depends}
    ordered: dict[str, None] = {}
    for wanted in names:
        name = by_name.get(wanted)
        if name is not None:
            # modules.dep lists the dependencies in reverse load order.
            ordered.update(dict.fromkeys([*reversed(depends[name]), name]))
    return [modules / name for name in ordered]


def _module_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _cpio_entry(name: str, mode: int, content: bytes, inode: int) -> bytes:
    """One member of a newc archive; owner and time are 0, so equal input gives equal bytes."""
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


# -- root disk ---------------------------------------------------------------------------------


def write_root_disk(path: Path, staging: Path) -> None:
    """Build the ext4 root disk in ``path``, using ``staging`` for its tree."""
    shutil.rmtree(staging, ignore_errors=True)
    for folder in (
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "huge",
        "data",
        "mnt",
        "usr/bin",
        "usr/lib",
        "opt",
    ):
        (staging / folder).mkdir(parents=True)
    (staging / "bin").symlink_to("usr/bin")
    (staging / "lib").symlink_to("usr/lib")
    (staging / "lib64").symlink_to("usr/lib")
    _copy_python(staging)
    shutil.copytree(
        Path(__file__).parent / "guest",
        staging / "opt" / "guest",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name, size in DATA_FILES.items():
        (staging / "data" / name).write_bytes(random.Random(name).randbytes(size))
    partial = path.with_suffix(".partial")
    with partial.open("wb") as disk:
        disk.truncate(ROOT_DISK_MB << 20)
    identity = "6d656d64-6573-4063-8000-000000000001"
    options = [
        "-q",
        "-F",
        "-U",
        identity,
        "-E",
        f"hash_seed={identity},root_owner=0:0,lazy_itable_init=0",
    ]
    run(["mkfs.ext4", *options, "-d", str(staging), str(partial)])
    partial.rename(path)


def _copy_python(staging: Path) -> None:
    """This interpreter as /usr/bin/python3, its trimmed library and everything it links to."""
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
        subprocess.run(["strip", "--strip-unneeded", str(binary)], capture_output=True, check=False)


def _unwanted(folder: str, names: list[str]) -> set[str]:
    """Members of a library folder that the guest does not need."""
    skipped = {name for name in names if name in _SKIPPED or name.startswith("config-")}
    skipped |= {name for name in names if ".opt-" in name or name.endswith((".a", ".exe"))}
    if folder.endswith("lib-dynload"):
        skipped |= {
            name
            for name in names
            if name.startswith(("_test", "_ctypes_test", "xx", "_codecs_", "_tkinter"))
        }
    return skipped


def _copy_libraries(binary: Path, staging: Path) -> list[Path]:
    """Copy the shared libraries of a binary to /usr/lib; returns those that are new."""
    listing = subprocess.run(
        ["ldd", str(binary)], capture_output=True, text=True, check=False
    ).stdout
    copied = []
    for line in listing.splitlines():
        source = next((Path(word) for word in line.split() if word.startswith("/")), None)
        if source is None:
            continue
        target = staging / "usr" / "lib" / source.name
        if not target.exists():
            shutil.copy2(source.resolve(), target)
            copied.append(target)
    return copied

"""The initramfs of a guest: busybox and kernel modules, nothing else.

It loads the modules, mounts the root disk and hands over to the init (`vm.init`).  Program
text is therefore ordinary ext4 page cache in the guest, as on a server, and not tmpfs as it
would be in an initramfs that held the programs.
"""

from __future__ import annotations

import lzma
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from memdesc.vm.host import cache_folder, find_tool, locked
from memdesc.vm.kernels import Kernel
from memdesc.vm.root_disk import digest_of

__all__ = ["MODULES", "module_files", "write_initramfs"]

MODULES = (
    "virtio_pci", "virtio_blk", "virtio_console", "virtio_balloon", "crc32c_generic", "ext4",
    "zram", "qemu_fw_cfg",
)  # fmt: skip
"""Modules that the guest needs where they are not built in, without their dependencies.

qemu_fw_cfg tells QEMU where the kernel's VMCOREINFO is, without which nobody opens a dump.
"""

_INIT = """#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
if grep -q memdesc.trial=1 /proc/cmdline; then echo "memdesc: the trial boot works"; reboot -f; fi
for module in /modules/*; do insmod $module || echo "insmod $module failed"; done
mount -t ext4 -o noatime,commit=900 /dev/vda /root || exec reboot -f
for place in proc sys dev; do mount --move /$place /root/$place; done
export PYTHONHOME=/usr PYTHONPATH=/opt:/opt/packages PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1
export OPENBLAS_NUM_THREADS=1
exec switch_root /root /usr/bin/python3 -m memdesc.vm.init
"""

_BUSYBOX_LINKS = ("sh", "mount", "insmod", "switch_root", "reboot", "grep")


def write_initramfs(kernel: Kernel) -> Path:
    """The initramfs of a kernel, built unless the cache has it.

    An uncompressed newc archive: the guest would decompress it under emulation.  Raises
    VmError where busybox or a file of the kernel is missing.
    """
    busybox = find_tool("busybox")
    key = digest_of([Path(__file__), Path(busybox)], kernel.package)
    path = cache_folder() / f"initramfs-{kernel.series}-{key}"
    with locked(cache_folder() / "initramfs.lock"):
        if not path.exists():
            for old in cache_folder().glob(f"initramfs-{kernel.series}-*"):
                old.unlink()
            partial = path.with_suffix(".partial")
            with partial.open("wb") as archive:
                for number, (name, mode, content) in enumerate(_entries(kernel, busybox), 1):
                    archive.write(_cpio_entry(name, mode, content, number))
                archive.write(_cpio_entry("TRAILER!!!", 0, b"", 0))
            partial.rename(path)
    return path


def _entries(kernel: Kernel, busybox: str) -> Iterator[tuple[str, int, bytes]]:
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

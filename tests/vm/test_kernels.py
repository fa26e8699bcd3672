"""Kernels from packages: the ELF file inside a boot image, modules, and what is kept."""

from __future__ import annotations

import gzip
import json
import lzma
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from memdesc.errors import VmError
from memdesc.vm import host, kernels
from memdesc.vm.boot_image import unpack_elf
from memdesc.vm.initramfs import module_files

KERNEL = b"\x7fELF" + bytes(range(256)) * 100


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "memdesc" / "vm"


def packed(how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(KERNEL)
    if how == "xz":
        return lzma.compress(KERNEL)
    if shutil.which(how) is None:
        pytest.skip(f"{how} is not installed: apt install {how}")
    words = [how, "-c", *(["-l"] if how == "lz4" else [])]
    return subprocess.run(words, input=KERNEL, capture_output=True, check=True).stdout


@pytest.mark.parametrize("how", ["gzip", "xz", "zstd", "lz4"])
def test_the_kernel_is_found_inside_a_boot_image(how: str) -> None:
    """After the decompressor, and after bytes that only look like a stream; more follows."""
    decoys = b"\x1f\x8b\x08 no stream \x28\xb5\x2f\xfd nor this "
    assert unpack_elf(b"MZ" * 500 + decoys + packed(how) + b"\0trailer" * 20) == KERNEL


def test_an_image_without_a_kernel_is_refused() -> None:
    with pytest.raises(VmError, match="no compressed ELF kernel"):
        unpack_elf(b"MZ" * 500 + gzip.compress(b"not a kernel"))


def test_modules_come_in_load_order_and_once(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "fs/ext4/ext4.ko.xz: lib/crc16.ko.xz fs/jbd2/jbd2.ko.xz\n"
        "fs/jbd2/jbd2.ko.xz:\nlib/crc16.ko.xz:\n"
        "drivers/block/zram/zram.ko.xz: mm/zsmalloc.ko.xz lib/crc16.ko.xz\nmm/zsmalloc.ko.xz:\n"
        "mm/hwpoison-inject.ko.xz:\n"
    )
    wanted = ("ext4", "virtio_blk", "zram", "hwpoison_inject")  # virtio_blk is built in
    names = [path.name.split(".")[0] for path in module_files(tmp_path, wanted)]
    assert names == ["jbd2", "crc16", "ext4", "zsmalloc", "zram", "hwpoison-inject"]


def test_an_unknown_kernel_is_refused_with_the_known_ones() -> None:
    with pytest.raises(VmError, match=r"'5\.15'") as refused:
        kernels.fetch("5.15")
    assert all(name in refused.value.hint for name in kernels.SERIES)


def test_a_kernel_is_kept_only_while_all_of_it_is_there(empty_cache: Path) -> None:
    assert kernels.cached("6.1") is None
    root = empty_cache / "kernels" / "linux-image-6.1.0-1-amd64"
    modules = root / "lib/modules/6.1.0-1-amd64"
    modules.mkdir(parents=True)
    parts = [root / "vmlinux", root / "config", modules / "modules.dep"]
    for part in parts:
        part.touch()
    value = {
        **{"series": "6.1", "release": "6.1.0-1-amd64", "package": "linux-image 6.1.1"},
        **{"config": "config", "modules": "lib/modules/6.1.0-1-amd64"},
    }
    (root / "kernel.json").write_text(json.dumps(value))
    kernel = kernels.cached("6.1")
    assert kernel is not None
    assert kernel.modules == modules
    assert kernels.cached("6.12") is None
    parts[2].unlink()
    assert kernels.cached("6.1") is None


def test_without_a_program_the_error_says_which_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(host, "_PLACES", ("/nowhere",))
    assert host.missing_tools() == list(host.TOOLS)
    with pytest.raises(VmError, match="qemu-system-x86_64 is not installed") as lacking:
        host.find_tool("qemu-system-x86_64")
    assert lacking.value.hint == "apt install qemu-system-x86"


def test_a_busybox_that_needs_a_loader_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamic = tmp_path / "busybox"
    dynamic.write_bytes(b"\x7fELF" + b"\0" * 60 + b"/lib64/ld-linux-x86-64.so.2\0")
    dynamic.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "busybox" in {tool.name for tool in host.missing_tools()}


def test_every_series_is_one_that_the_rules_know() -> None:
    from memdesc.kernels.release import KernelRelease

    for series in kernels.SERIES.values():
        assert not KernelRelease.parse(series.name).beyond_what_was_read
        assert re.fullmatch(r"linux-image(-[\d.]+)?(-cloud)?-amd64", series.meta_package)

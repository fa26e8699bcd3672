"""What is taken from a kernel image: a vmlinux, the bzImage around it, a bare BTF file."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_btf import small_kernel

from memdesc.errors import FormatError, NotReadableError
from memdesc.structs.elf import ElfImage, btf_of_file, build_id_of, vmlinux_symbols

BTF = small_kernel().data()
BUILD_ID = bytes.fromhex("eb4fbcd037e7253717950bf2b93bd5566f47c56f")
STRIPPED = {".BTF": BTF}


def vmlinux(sections: dict[str, bytes], *, machine: int = 62, endian: int = 1) -> bytes:
    """An ELF image with these sections."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
    contents = {**sections, ".shstrtab": names}
    order = list(contents)
    body, table = b"", bytes(64)
    for name, content in contents.items():
        link = order.index(".strtab") + 1 if name == ".symtab" else 0
        at = names.index(b"\0" + name.encode() + b"\0") + 1
        table += struct.pack(
            "<IIQQQQIIQQ", at, 1, 0, 0, 64 + len(body), len(content), link, 0, 1, 0
        )
        body += content
    ident = b"\x7fELF" + bytes([2, endian, 1]) + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH",
        2, machine, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(contents) + 1, len(contents),
    )  # fmt: skip
    return header + body + table


def build_id_note() -> bytes:
    other = struct.pack("<III", 4, 8, 0x100) + b"Xen\0" + bytes(8)
    return other + struct.pack("<III", 4, 20, 3) + b"GNU\0" + BUILD_ID


def symbol_table(*rows: tuple[str, int]) -> dict[str, bytes]:
    names, table = b"\0", bytes(24)
    for name, address in rows:
        table += struct.pack("<IBBHQQ", len(names), 1, 0, 1, address, 8)
        names += name.encode() + b"\0"
    return {".symtab": table, ".strtab": names}


def bz_image(payload: bytes) -> bytes:
    """A boot image of two sectors of setup code with `payload` 32 bytes into the kernel."""
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 32, len(payload))
    return bytes(setup) + bytes(32) + payload


def by_program(name: str, *options: str) -> Callable[[bytes], bytes]:
    def pack(data: bytes) -> bytes:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt install {name}")
        return subprocess.run([name, *options], input=data, capture_output=True, check=True).stdout

    return pack


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": by_program("zstd", "-c"),
    "lz4": by_program("lz4", "-lc"),
}


def written(folder: Path, data: bytes) -> Path:
    path = folder / "image"
    path.write_bytes(data)
    return path


def test_a_vmlinux_gives_types_build_id_and_symbols(tmp_path: Path) -> None:
    symbols = symbol_table(("init_task", 0xFFFFFFFF82A1AA40), ("_stext", 0xFFFFFFFF81000000))
    path = written(tmp_path, vmlinux({".notes": build_id_note(), **STRIPPED, **symbols}))
    types = btf_of_file(path)
    assert types.find_struct("page") is not None
    assert str(path) in types.origin
    assert build_id_of(path) == BUILD_ID.hex()
    assert vmlinux_symbols(path) == {
        "init_task": 0xFFFFFFFF82A1AA40,
        "_stext": 0xFFFFFFFF81000000,
    }


def test_a_stripped_vmlinux_has_no_symbols(tmp_path: Path) -> None:
    path = written(tmp_path, vmlinux(STRIPPED))
    assert vmlinux_symbols(path) == {}
    assert build_id_of(path) is None


def test_a_bare_section_will_do(tmp_path: Path) -> None:
    assert btf_of_file(written(tmp_path, BTF)).find_struct("zone") is not None


@pytest.mark.parametrize("packer", PACKERS)
def test_a_boot_image_is_unpacked(tmp_path: Path, packer: str) -> None:
    image = vmlinux(STRIPPED)
    size = b"" if packer == "gzip" else struct.pack("<I", len(image))
    path = written(tmp_path, bz_image(PACKERS[packer](image) + size))
    assert btf_of_file(path).find_struct("page") is not None


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, bz_image(b"\x28\xb5\x2f\xfd" + bytes(60)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FormatError, match="zstd, which is not installed") as caught:
        btf_of_file(path)
    assert "install the package zstd" in caught.value.hint


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no kernel image"),
        (b"#!/bin/sh\n", "no kernel image"),
        (vmlinux({".text": b"\x90"}), "no .BTF section"),
        (vmlinux(STRIPPED, machine=183), "another processor"),
        (vmlinux(STRIPPED, endian=2), "another processor"),
        (vmlinux(STRIPPED)[:-100], "cut off"),
        (bz_image(gzip.compress(b"no ELF at all")), "no ELF image"),
        (bz_image(gzip.compress(vmlinux(STRIPPED)))[:-20], "cut off"),
        (bz_image(b"\xfd7zXZ\0" + bytes(80)), "damaged"),
        (bz_image(b"unknown packing"), "does not know"),
    ],
    ids=[
        "empty", "script", "no BTF", "arm64", "big endian", "cut ELF", "no ELF inside",
        "cut payload", "damaged payload", "unknown payload",
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, data: bytes, says: str
) -> None:
    with pytest.raises(FormatError, match=says):
        btf_of_file(written(tmp_path, data))


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(NotReadableError, match="cannot be read"):
            btf_of_file(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_image_is_an_error_or_an_answer_never_more(data: st.DataObject) -> None:
    raw = bytearray(
        vmlinux({".notes": build_id_note(), ".BTF": b"x" * 40, **symbol_table(("init_task", 1))})
    )
    places = [*range(64), *range(len(raw) - 6 * 64, len(raw)), *range(64, 140)]
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.sampled_from(places))] = data.draw(st.integers(0, 255))
    for ask in (ElfImage.build_id, ElfImage.symbols, lambda image: image.content(".BTF")):
        try:
            ask(ElfImage(bytes(raw), "image"))
        except FormatError:
            pass

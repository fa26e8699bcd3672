"""QEMU's flattened kdump becomes an ordinary file that names its kernel."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from memdesc.errors import VmError
from memdesc.vm.kdump import unflatten


def flattened(*pieces: tuple[int, bytes], end: bool = True) -> bytes:
    data = b"makedumpfile".ljust(4096, b"\0")
    for offset, content in pieces:
        data += struct.pack(">qq", offset, len(content)) + content
    return data + (struct.pack(">qq", -1, -1) if end else b"")


def test_pieces_land_at_their_places_and_the_kernel_is_named(tmp_path: Path) -> None:
    flat, out = tmp_path / "flat", tmp_path / "out"
    header = b"KDUMP   " + struct.pack("<i", 6) + bytes(6 * 65)
    flat.write_bytes(flattened((8192, b"page"), (0, header), (8194, b"GE")))
    unflatten(flat, out, release="6.12.117", version="#1 Debian")
    content = out.read_bytes()
    assert content[:8] == b"KDUMP   "
    assert content[8192:] == b"paGE"
    fields = [content[12 + 65 * i :][:65].rstrip(b"\0") for i in range(5)]
    assert fields == [b"Linux", b"memdesc-guest", b"6.12.117", b"#1 Debian", b"x86_64"]


@pytest.mark.parametrize(
    "damaged",
    [
        b"KDUMP   ordinary",
        flattened((0, b"x"), end=False),
        flattened((0, b"x" * 100))[:4150],
    ],
    ids=["another format", "no end", "cut"],
)
def test_what_is_damaged_is_refused(damaged: bytes, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.write_bytes(damaged)
    with pytest.raises(VmError, match=r"flattened|ends early"):
        unflatten(flat, tmp_path / "out", release="6.1", version="#1")

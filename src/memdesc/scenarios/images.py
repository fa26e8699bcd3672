"""The file systems of scenarios as bytes of their devices: small, empty, the same every time.

ext4 comes from `mkfs.ext4`; xfs and FAT are written here, so that nobody needs their tools.
"""

from __future__ import annotations

import base64
import functools
import struct
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from memdesc.scenarios.xfs_image import XFS_BYTES, XFS_DATA, xfs_pieces
from memdesc.vm.host import run_tool

__all__ = ["IMAGES", "MODULES", "packed"]

_BLOCK: Final = 4096
_EXT4_BYTES: Final = 16 << 20
_EXT4_IDENTITY: Final = "6d656d64-6573-4063-8000-000000000002"
_FAT_BYTES: Final = 16 << 20
_FAT_ROOT_ENTRIES: Final = 512


def packed(data: bytes) -> str:
    """Bytes as they are sent: base64 of zlib."""
    return base64.b64encode(zlib.compress(data)).decode()


# --- helpers -----------------------------------------------------------------------------


def _image(size: int, pieces: Mapping[int, bytes], data: list[list[int]]) -> dict[str, Any]:
    """What the actor is sent: the size, what is not zero, and where files come to have their data,
    as [first byte, bytes]."""
    return {
        "bytes": size,
        "pieces": [[at, packed(piece)] for at, piece in pieces.items()],
        "data": data,
    }


def _ext4() -> dict[str, Any]:
    data, piece = _ext4_bytes(), 1 << 16
    parts = {at: data[at : at + piece] for at in range(0, len(data), piece)}
    return _image(
        len(data), {at: part for at, part in parts.items() if part.strip(b"\0")}, _ext4_data()
    )


def _ext4_data() -> list[list[int]]:
    """The blocks that are free.

    There is one group of blocks; its descriptor, behind the superblock, names the block of the
    bitmap (`fs/ext4/ext4.h:struct ext4_group_desc`).
    """
    data = _ext4_bytes()
    bitmap = int.from_bytes(data[_BLOCK : _BLOCK + 4], "little") * _BLOCK
    areas: list[list[int]] = []
    for block in range(_EXT4_BYTES // _BLOCK):
        if data[bitmap + block // 8] >> block % 8 & 1:
            continue
        at = block * _BLOCK
        if areas and sum(areas[-1]) == at:
            areas[-1][1] += _BLOCK
        else:
            areas.append([at, _BLOCK])
    return areas


def _xfs() -> dict[str, Any]:
    return _image(XFS_BYTES, xfs_pieces(), [list(XFS_DATA)])


def _fat() -> dict[str, Any]:
    """FAT with entries of 16 bits: one copy of the table, sectors and clusters of a page.

    `include/uapi/linux/msdos_fs.h:struct fat_boot_sector`.
    """
    sectors = _FAT_BYTES // _BLOCK
    table = -(-sectors * 2 // _BLOCK)
    boot = struct.pack(
        "<3s8sHBHBHHBHHHIIBBBI11s8s",
        b"\xeb\x3c\x90", b"MEMDESC ", _BLOCK, 1, 1, 1, _FAT_ROOT_ENTRIES, sectors, 0xF8, table,
        32, 64, 0, 0, 0x80, 0, 0x29, 0x6D656D64, b"NO NAME    ", b"FAT16   ",
    )  # fmt: skip
    boot = boot.ljust(510, b"\0") + b"\x55\xaa"
    first = (1 + table) * _BLOCK + _FAT_ROOT_ENTRIES * 32
    pieces = {0: boot, _BLOCK: b"\xf8\xff\xff\xff"}
    return _image(_FAT_BYTES, pieces, [[first, _FAT_BYTES - first]])


@functools.cache
def _ext4_bytes() -> bytes:
    options = f"hash_seed={_EXT4_IDENTITY},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
    words = ["-q", "-F", "-b", str(_BLOCK), "-N", "128", "-m", "0", "-U", _EXT4_IDENTITY]
    with tempfile.TemporaryDirectory(prefix="memdesc-ext4-") as folder:
        image = Path(folder) / "image"
        with image.open("wb") as file:
            file.truncate(_EXT4_BYTES)
        run_tool(["mkfs.ext4", *words, "-E", options, str(image)])
        return image.read_bytes()


IMAGES: Final[Mapping[str, Callable[[], dict[str, Any]]]] = MappingProxyType(
    {"ext4": _ext4, "xfs": _xfs, "vfat": _fat}
)
"""File system -> what makes its image."""
MODULES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"ext4": (), "xfs": ("xfs",), "vfat": ("nls_cp437", "nls_ascii", "vfat")}
)
"""File system -> modules that a guest does not have already."""

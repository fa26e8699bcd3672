"""An empty xfs as the bytes of its device, made without `mkfs.xfs`.

`fs/xfs/libxfs/xfs_format.h @6.1` to `@7.2`: version 5 of the format, the one with checksums.  There
is one allocation group: headers, three trees with a root each, one chunk of inodes (the root
folder and the two of the realtime section, which has no device), the log, and free space.  The log
is all zeroes, which the kernel takes as a new one (`fs/xfs/xfs_log_recover.c:xlog_find_zeroed`).

>>> sum(len(data) for data in xfs_pieces().values()) < 1 << 17
True
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["XFS_BYTES", "XFS_DATA", "crc32c", "xfs_pieces"]

_BLOCK, _SECTOR, _INODE = 4096, 4096, 512
"""zram has sectors of a page."""
_BLOCKS: Final = 16384
XFS_BYTES: Final = _BLOCKS * _BLOCK
"""One allocation group may not be smaller than 16 MiB (XFS_MIN_AG_BYTES)."""
_UUID: Final = bytes.fromhex("6d656d6465736340638000000000000a")
_NONE32: Final = 0xFFFFFFFF
_NONE64: Final = 0xFFFFFFFFFFFFFFFF

_BY_BLOCK, _BY_COUNT, _INODE_TREE, _CHUNK = 4, 5, 6, 8
"""Behind four sectors of headers: where the roots of the trees lie, and the chunk of inodes."""
_INODES: Final = 64
_LOG: Final = _CHUNK + _INODES * _INODE // _BLOCK
_LOG_BLOCKS: Final = 4096
_FREE: Final = _LOG + _LOG_BLOCKS
"""Where free space begins; block 7 is never used."""
_FREE_BLOCKS: Final = _BLOCKS - _FREE
XFS_DATA: Final = (_FREE * _BLOCK, _FREE_BLOCKS * _BLOCK)
"""Where files come to have their data: first byte, bytes."""
_ROOT: Final = _CHUNK * _BLOCK // _INODE
"""Number of the root folder's inode; the realtime bitmap and summary are the next."""
_USED: Final = 3
_DIRECTORY, _REGULAR = 0o040755, 0o100000
_LOCAL, _EXTENTS = 1, 2


@functools.cache
def xfs_pieces() -> Mapping[int, bytes]:
    """Offset on the device -> bytes, of all that is not zero."""
    head = b"".join(
        part.ljust(_SECTOR, b"\0") for part in (_super(), _free_space(), _inodes(), _free_list())
    )
    record = struct.pack(">II", _FREE, _FREE_BLOCKS)
    unused = (1 << _INODES) - (1 << _USED)
    chunk = struct.pack(">IIQ", _ROOT, _INODES - _USED, unused)
    blocks = {
        0: head,
        _BY_BLOCK: _tree(b"AB3B", _BY_BLOCK, record),
        _BY_COUNT: _tree(b"AB3C", _BY_COUNT, record),
        _INODE_TREE: _tree(b"IAB3", _INODE_TREE, chunk),
        _CHUNK: b"".join(_inode(_ROOT + at) for at in range(_INODES)),
    }
    return MappingProxyType({at * _BLOCK: data for at, data in blocks.items()})


def crc32c(data: bytes) -> int:
    """The checksum of everything in the format.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    value = _NONE32
    table = _crc_table()
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ _NONE32


# --- helpers -----------------------------------------------------------------------------


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _sealed(data: bytes, at: int, size: int) -> bytes:
    """`data` filled up to `size` bytes, with its checksum, which is little endian, at `at`."""
    whole = bytearray(data.ljust(size, b"\0"))
    whole[at : at + 4] = bytes(4)
    whole[at : at + 4] = crc32c(bytes(whole)).to_bytes(4, "little")
    return bytes(whole)


def _super() -> bytes:
    """struct xfs_dsb"""
    features2 = 0x02 | 0x08 | 0x80 | 0x100  # lazy counters, attr2, 32-bit project ids, checksums
    # Version 5 with: nlink, aligned inodes, log version 2, large sectors, extent flags, directories
    # version 2, more features.
    version = 0x8000 | 0x2000 | 0x1000 | 0x0800 | 0x0400 | 0x0080 | 0x0020 | 5
    data = b"XFSB" + struct.pack(
        ">IQQQ16sQQQQIIIIIHHHH12s8B4Q",
        _BLOCK, _BLOCKS, 0, 0, _UUID, _LOG, _ROOT, _ROOT + 1, _ROOT + 2,
        1, _BLOCKS, 1, 0, _LOG_BLOCKS, version, _SECTOR, _INODE, _BLOCK // _INODE, b"",
        12, 12, 9, 3, 14, 0, 0, 25, _INODES, _INODES - _USED, _FREE_BLOCKS, 0,
    )  # fmt: skip
    data += struct.pack(
        ">QQHBBIIIBBHIIIIIIIIIQQ16s",
        _NONE64, _NONE64, 0, 0, 0, 4, 0, 0, 0, 12, _SECTOR, _SECTOR, features2, features2,
        0, 0, 1, 0, 0, 0, _NONE64, 0, bytes(16),
    )  # fmt: skip
    return _sealed(data, 224, _SECTOR)


def _free_space() -> bytes:
    """struct xfs_agf"""
    data = b"XAGF" + struct.pack(
        ">15I16s",
        1, 0, _BLOCKS, _BY_BLOCK, _BY_COUNT, 0, 1, 1, 0, 1, 0, 0, _FREE_BLOCKS, _FREE_BLOCKS, 0,
        _UUID,
    )  # fmt: skip
    return _sealed(data, 216, _SECTOR)


def _inodes() -> bytes:
    """struct xfs_agi"""
    data = b"XAGI" + struct.pack(
        ">9I", 1, 0, _BLOCKS, _INODES, _INODE_TREE, 1, _INODES - _USED, _ROOT, _NONE32
    )
    data += struct.pack(">I", _NONE32) * 64 + _UUID
    return _sealed(data, 312, _SECTOR)


def _free_list() -> bytes:
    """struct xfs_agfl: it is filled when the first block is allocated."""
    data = b"XAFL" + struct.pack(">I16sQI", 0, _UUID, 0, 0)
    return _sealed(data.ljust(_SECTOR, b"\xff"), 32, _SECTOR)


def _tree(magic: bytes, block: int, record: bytes) -> bytes:
    """A root that is a leaf, with one record: struct xfs_btree_block"""
    data = magic + struct.pack(
        ">HHIIQQ16sII", 0, 1, _NONE32, _NONE32, block * _BLOCK // 512, 0, _UUID, 0, 0
    )
    return _sealed(data + record, 52, _BLOCK)


def _inode(number: int) -> bytes:
    """struct xfs_dinode: the root folder, which is empty, two empty files, and free ones."""
    is_root, used = number == _ROOT, number < _ROOT + _USED
    mode = (_DIRECTORY if is_root else _REGULAR) if used else 0
    kind = _LOCAL if is_root else _EXTENTS
    inside = struct.pack(">BBI", 0, 0, _ROOT) if is_root else b""  # struct xfs_dir2_sf_hdr
    data = b"IN" + struct.pack(
        ">HBBHIIIHH8s3QQQIIHBBIHHI",
        mode, 3, kind if used else 0, 0, 0, 0, (2 if is_root else 1) * used, 0, 0, b"",
        0, 0, 0, len(inside), 0, 0, 0, 0, 0, _EXTENTS if used else 0, 0, 0, 0, 0,
    )  # fmt: skip
    data += struct.pack(">IIQQQI12sQQ16s", _NONE32, 0, 0, 0, 0, 0, b"", 0, number, _UUID)
    return _sealed(data + inside, 100, _INODE)

"""The images of file systems: what a kernel checks before it mounts one."""

from __future__ import annotations

import base64
import struct
import zlib

import pytest

from memdesc.scenarios.images import IMAGES, MODULES
from memdesc.scenarios.xfs_image import XFS_BYTES, XFS_DATA, crc32c, xfs_pieces

BLOCK = 4096
CHECKSUMS = {b"XFSB": 224, b"XAGF": 216, b"XAGI": 312, b"XAFL": 32}
TREES = {b"AB3B": 52, b"AB3C": 52, b"IAB3": 52}


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_nothing_that_describes_a_file_system_lies_where_data_goes(name: str) -> None:
    image = IMAGES[name]()
    data = [(first, first + length) for first, length in image["data"]]
    assert sum(end - first for first, end in data) > image["bytes"] // 2
    assert all(first % BLOCK == 0 and end <= image["bytes"] for first, end in data)
    for at, piece in image["pieces"]:
        content = zlib.decompress(base64.b64decode(piece))
        for page in range(at, at + len(content), BLOCK):
            if any(first <= page < end for first, end in data):
                assert not content[page - at : page - at + BLOCK].strip(b"\0")
    assert name in MODULES


def test_every_block_of_xfs_has_its_checksum() -> None:
    found = []
    for at, piece in xfs_pieces().items():
        for first in range(0, len(piece), BLOCK):
            block = piece[first : first + BLOCK]
            magic = block[:4]
            places = {**CHECKSUMS, **TREES}
            if magic in places:
                found.append(magic)
                check(block, places[magic])
            else:
                for inode in range(0, BLOCK, 512):
                    one = block[inode : inode + 512]
                    assert one[:2] == b"IN"
                    check(one, 100)
                    number = struct.unpack_from(">Q", one, 152)[0]
                    assert number == (at + first + inode) // 512
    assert sorted(found) == sorted([*CHECKSUMS, *TREES])


def test_the_free_space_of_xfs_is_all_that_nothing_else_has() -> None:
    pieces = xfs_pieces()
    first, count = struct.unpack_from(">II", pieces[4 * BLOCK], 56)
    assert (first * BLOCK, count * BLOCK) == XFS_DATA
    assert (first + count) * BLOCK == XFS_BYTES
    assert struct.unpack_from(">Q", pieces[0], 144)[0] == count  # sb_fdblocks
    log, blocks = (
        struct.unpack_from(">Q", pieces[0], 48)[0],
        struct.unpack_from(">I", pieces[0], 96)[0],
    )
    assert log + blocks == first
    assert max(pieces) < log * BLOCK


def check(block: bytes, at: int) -> None:
    """The checksum at `at`, little endian, of the block with zeroes in its place."""
    plain = block[:at] + bytes(4) + block[at + 4 :]
    assert int.from_bytes(block[at : at + 4], "little") == crc32c(plain)

"""The ELF kernel inside a boot image.

QEMU enters an ELF kernel directly through its PVH note: faster than the decompressor of the
image, and with fixed addresses (no KASLR, 4-level page tables).
"""

from __future__ import annotations

import lzma
import subprocess
import zlib

from memdesc.errors import VmError
from memdesc.vm.host import find_tool

__all__ = ["unpack_elf"]

_ELF = b"\x7fELF"


def unpack_elf(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage.

    Every place that looks like the start of a compressed stream is tried until one
    decompresses to an ELF file.  What follows the stream in the image is not part of it and
    is ignored.  Raises VmError where there is none.
    """
    formats = (
        (b"\x28\xb5\x2f\xfd", _zstd),
        (b"\xfd7zXZ\x00", _xz),
        (b"\x02\x21\x4c\x18", _lz4),
        (b"\x1f\x8b\x08", _gzip),
    )
    for magic, unpack in formats:
        start = image.find(magic)
        while start >= 0:
            content = unpack(image[start:])
            if content.startswith(_ELF):
                return content
            start = image.find(magic, start + 1)
    raise VmError("the boot image holds no compressed ELF kernel")


def _external(name: str, data: bytes) -> bytes:
    """Output of a decompressor that complains about what follows its stream."""
    command = [find_tool(name), "-dc"]
    return subprocess.run(command, input=data, capture_output=True, check=False).stdout  # noqa: S603


def _zstd(data: bytes) -> bytes:
    return _external("zstd", data)


def _lz4(data: bytes) -> bytes:
    return _external("lz4", data)


def _xz(data: bytes) -> bytes:
    try:
        return lzma.LZMADecompressor().decompress(data)
    except lzma.LZMAError:
        return b""


def _gzip(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(data)
    except zlib.error:
        return b""

"""Steps that ask the kernel about pages in place: PAGEMAP_SCAN, and move_pages(2) without nodes."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from fcntl import ioctl
from typing import TYPE_CHECKING, Any

from . import calls
from .access import PAGE
from .verbs import span, verb

if TYPE_CHECKING:
    from .process import Process

__all__: list[str] = []

_PAGEMAP_SCAN = 0xC0606610
_CATEGORIES = (
    "wpallowed", "written", "file", "present", "swapped", "pfnzero", "huge", "soft_dirty", "guard",
)  # fmt: skip
"""PAGE_IS_* by bit (`include/uapi/linux/fs.h`)."""
_SOFT_DIRTY, _GUARD, _WRITTEN = 1 << 7, 1 << 8, 1 << 1
_ALL = (1 << 9) - 1 & ~_SOFT_DIRTY
_WP_MATCHING, _CHECK_WPASYNC = 1, 2
_MPOL_MF_MOVE = 2


@verb("scan_pages")
def scan_pages(process: Process, args: dict[str, Any]) -> list[str]:
    address, length = span(args["range"])
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        try:
            found = _scan(fd, address, length, _ALL, protect=args["protect"])
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # A kernel that knows no guards refuses to be asked for them.
            found = _scan(fd, address, length, _ALL & ~_GUARD, protect=args["protect"])
    finally:
        os.close(fd)
    return [_words(found.get(page, 0)) for page in range(length // PAGE)]


@verb("nodes")
def nodes(process: Process, args: dict[str, Any]) -> list[str]:
    address, length = span(args["range"])
    count = length // PAGE
    pages = struct.pack(f"<{count}Q", *range(address, address + length, PAGE))
    status = ctypes.create_string_buffer(4 * count)
    calls.call("move_pages", 0, count, pages, None, status, _MPOL_MF_MOVE)
    codes = struct.unpack(f"<{count}i", status.raw)
    return [str(code) if code >= 0 else "-" + errno.errorcode[-code] for code in codes]


# --- helpers -------------------------------------------------------------------------------------


def _scan(fd: int, address: int, length: int, wanted: int, *, protect: bool) -> dict[int, int]:
    """Categories by page; pages of none are left out."""
    room = length // PAGE
    regions = bytearray(24 * room)
    place = ctypes.addressof(ctypes.c_char.from_buffer(regions))
    flags = _WP_MATCHING | _CHECK_WPASYNC if protect else 0
    required, some = (_WRITTEN, 0) if protect else (0, wanted)
    argument = bytearray(
        struct.pack(
            "<12Q", 96, flags, address, address + length, 0, place, room, 0, 0, required, some,
            wanted,
        )
    )  # fmt: skip
    count = ioctl(fd, _PAGEMAP_SCAN, argument)
    found = {}
    for at in range(count):
        first, last, categories = struct.unpack_from("<3Q", regions, at * 24)
        for page in range((first - address) // PAGE, (last - address) // PAGE):
            found[page] = categories
    return found


def _words(categories: int) -> str:
    names = [name for bit, name in enumerate(_CATEGORIES) if categories >> bit & 1]
    return "+".join(names) or "none"

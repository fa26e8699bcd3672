"""The PAGEMAP_SCAN ioctl (since 6.7): which pages of a range are of some kind?

Numbers and layouts only; `memdesc.sources.pagemap` makes the call.  The kernel skips
VM_PFNMAP areas (`pagemap_scan_test_walk`).

Sources: `include/uapi/linux/fs.h`, `fs/proc/task_mmu.c:pagemap_page_category` of
6.12.117 and 7.2.13.

>>> hex(PAGEMAP_SCAN)
'0xc0606610'
>>> matches(PageCategory.PRESENT, mask=PageCategory.PRESENT)
True
"""

from __future__ import annotations

import enum
import itertools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

from memdesc.errors import FormatError

__all__ = [
    "CATEGORY_MEANINGS",
    "PAGEMAP_SCAN",
    "PM_SCAN_CHECK_WPASYNC",
    "PM_SCAN_WP_MATCHING",
    "PageCategory",
    "PageRegion",
    "ScanArg",
    "matches",
]

PAGEMAP_SCAN: Final = 0xC0606610
"""_IOWR('f', 16, struct pm_scan_arg), 96 bytes."""
PM_SCAN_WP_MATCHING: Final = 1
"""Write-protect what matches."""
PM_SCAN_CHECK_WPASYNC: Final = 2
"""Give up at a page that is not registered for asynchronous write protection."""


class PageCategory(enum.IntFlag):
    """What PAGEMAP_SCAN tells about a page (`fs/proc/task_mmu.c:pagemap_page_category`)."""

    WPALLOWED = 1 << 0
    WRITTEN = 1 << 1
    """Not write-protected by userfaultfd; in 7.2 true for empty entries too."""
    FILE = 1 << 2
    PRESENT = 1 << 3
    SWAPPED = 1 << 4
    """Any entry that is neither present nor empty."""
    PFNZERO = 1 << 5
    HUGE = 1 << 6
    SOFT_DIRTY = 1 << 7
    GUARD = 1 << 8
    """In 7.2, not in 6.12."""


CATEGORY_MEANINGS: Mapping[PageCategory, str] = MappingProxyType(
    {
        PageCategory.WPALLOWED: "the area is in asynchronous write-protect mode",
        PageCategory.WRITTEN: "written since it was write-protected",
        PageCategory.FILE: "a present page that is not anonymous",
        PageCategory.PRESENT: "a page is there",
        PageCategory.SWAPPED: "an entry that is not present and not empty",
        PageCategory.PFNZERO: "the zero page",
        PageCategory.HUGE: "mapped by a PMD, or hugetlb",
        PageCategory.SOFT_DIRTY: "soft-dirty",
        PageCategory.GUARD: "a guard region",
    }
)

_SCAN_ARG: Final = struct.Struct("<12Q")
_REGION: Final = struct.Struct("<3Q")


@dataclass(frozen=True, slots=True)
class ScanArg:
    """struct pm_scan_arg: twelve u64. Addresses in bytes, `start` page aligned."""

    start: int
    end: int
    vec: int
    vec_len: int
    flags: int = 0
    max_pages: int = 0
    category_inverted: int = 0
    category_mask: int = 0
    category_anyof_mask: int = 0
    return_mask: int = 0
    walk_end: int = 0
    """Written by the kernel: where the walk stopped."""

    SIZE_BYTES = _SCAN_ARG.size

    def pack(self) -> bytes:
        """Return the 96 bytes that the ioctl takes."""
        return _SCAN_ARG.pack(
            _SCAN_ARG.size,
            self.flags,
            self.start,
            self.end,
            self.walk_end,
            self.vec,
            self.vec_len,
            self.max_pages,
            self.category_inverted,
            self.category_mask,
            self.category_anyof_mask,
            self.return_mask,
        )

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Self:
        """Inverse of `pack`, to read `walk_end` after the call."""
        if len(data) != _SCAN_ARG.size:
            raise FormatError(f"pm_scan_arg has {_SCAN_ARG.size} bytes, not {len(data)}")
        values = _SCAN_ARG.unpack(data)
        if values[0] != _SCAN_ARG.size:
            raise FormatError(f"pm_scan_arg says {values[0]} bytes, not {_SCAN_ARG.size}")
        (flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, returned) = (
            values[1:]
        )
        return cls(
            start=start,
            end=end,
            vec=vec,
            vec_len=vec_len,
            flags=flags,
            max_pages=max_pages,
            category_inverted=inverted,
            category_mask=mask,
            category_anyof_mask=anyof,
            return_mask=returned,
            walk_end=walk_end,
        )


@dataclass(frozen=True, slots=True)
class PageRegion:
    """struct page_region: what the kernel returns for a run of pages (24 bytes)."""

    start: int
    end: int
    categories: PageCategory

    SIZE_BYTES = _REGION.size

    @classmethod
    def unpack_all(cls, data: bytes | bytearray, count: int) -> list[Self]:
        """Read the first `count` regions. Raises FormatError when `data` is shorter."""
        if len(data) < count * _REGION.size:
            raise FormatError(f"{len(data)} bytes do not hold {count} regions")
        return [
            cls(start, end, PageCategory(categories))
            for start, end, categories in itertools.islice(
                _REGION.iter_unpack(bytes(data[: count * _REGION.size])), count
            )
        ]


def matches(categories: int, *, inverted: int = 0, mask: int = 0, anyof: int = 0) -> bool:
    """Return whether PAGEMAP_SCAN selects a page of these categories.

    Derived from the documentation: all of `mask`, and at least one of `anyof` unless
    that is 0, after flipping the bits of `inverted`.
    """
    seen = categories ^ inverted
    return seen & mask == mask and (anyof == 0 or seen & anyof != 0)

"""File systems, by what the memory of their files depends on.

`fs/ramfs/file-mmu.c, fs/ext4/inode.c, fs/fat/inode.c, fs/xfs/xfs_aops.c, mm/shmem.c,
mm/secretmem.c, fs/hugetlbfs/inode.c @6.12`: the operations of their address spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from memdesc.kernels.kpageflags import KPF
from memdesc.types import MemoryType

__all__ = [
    "BY_NAME",
    "EXT4",
    "HUGETLBFS",
    "RAMFS",
    "SECRETMEM",
    "SHMEM",
    "TMPFS",
    "VFAT",
    "XFS",
    "FileSystem",
]

_UPTODATE: Final = int(KPF.UPTODATE)


@dataclass(frozen=True, slots=True)
class FileSystem:
    """What the memory of a file depends on."""

    name: str
    """As `kernels/dirtying.py` names it."""
    kind: MemoryType
    """What its folios are."""
    new_flags: int
    """Flags of a folio that just came into the page cache."""
    has_device: bool
    """`inode_to_bdi()` can write back: dirty tags, readahead, fadvise."""
    tracks_writes: bool
    """Has `page_mkwrite`: a shared mapping is told of the first write (vma_wants_writenotify)."""
    maps_around: bool = True
    """Has `map_pages`: read faults map neighbours (do_fault_around)."""
    buffers: bool = False
    """Folios that are written have buffer heads (PRIVATE); those that were read as a whole are
    marked MAPPEDTODISK (OWNER_2). Without: iomap, which keeps its state for large folios only."""


SHMEM: Final = FileSystem("shmem", MemoryType.SHMEM, _UPTODATE | int(KPF.SWAPBACKED), False, False)
"""Files of the kernel's own tmpfs: memfd and shared anonymous memory."""
TMPFS: Final = FileSystem("tmpfs", MemoryType.SHMEM, _UPTODATE | int(KPF.SWAPBACKED), False, False)
RAMFS: Final = FileSystem("ramfs", MemoryType.FILE, _UPTODATE | int(KPF.UNEVICTABLE), False, True)
"""Nothing but page cache, which must not go: mapping_set_unevictable()."""
EXT4: Final = FileSystem("ext4", MemoryType.FILE, _UPTODATE, True, True, buffers=True)
VFAT: Final = FileSystem("vfat", MemoryType.FILE, _UPTODATE, True, True, buffers=True)
XFS: Final = FileSystem("xfs", MemoryType.FILE, _UPTODATE, True, True)
SECRETMEM: Final = FileSystem(
    "secretmem", MemoryType.SECRETMEM, _UPTODATE | int(KPF.UNEVICTABLE), False, False,
    maps_around=False,
)  # fmt: skip
HUGETLBFS: Final = FileSystem(
    "hugetlbfs", MemoryType.HUGETLB, _UPTODATE | int(KPF.HUGE), False, False, maps_around=False
)

BY_NAME: Final[Mapping[str, FileSystem]] = MappingProxyType(
    {fs.name: fs for fs in (TMPFS, RAMFS, EXT4, XFS, VFAT)}
)
"""Those on which files have names."""

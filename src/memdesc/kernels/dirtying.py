"""Which callback each file system's address space has for "this folio was dirtied".

`address_space_operations.dirty_folio` by file system type, for 6.1, 6.12 and 7.2. Sources:
the `*_aops` tables of `fs/` in 6.1.192, 6.12.117 and 7.2.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from memdesc.kernels.release import KernelRelease

__all__ = ["dirty_callback"]

_NEW: Mapping[str, str] = MappingProxyType(
    {
        "ext4": "ext4_dirty_folio",
        "xfs": "iomap_dirty_folio",
        "gfs2": "iomap_dirty_folio",
        "zonefs": "iomap_dirty_folio",
        "exfat": "iomap_dirty_folio",
        "ntfs3": "iomap_dirty_folio",
        "fuse": "iomap_dirty_folio",
        "btrfs": "btrfs_data_dirty_folio",
        "nfs": "filemap_dirty_folio",
        "nfs4": "filemap_dirty_folio",
        "hostfs": "filemap_dirty_folio",
        "vboxsf": "filemap_dirty_folio",
        "orangefs": "filemap_dirty_folio",
        "afs": "netfs_dirty_folio",
        "9p": "netfs_dirty_folio",
        "cifs": "netfs_dirty_folio",
        "smb3": "netfs_dirty_folio",
        "ceph": "ceph_dirty_folio",
        "f2fs": "f2fs_dirty_data_folio",
        **dict.fromkeys(
            (
                *("ext2", "vfat", "msdos", "minix", "udf", "ufs", "hfs", "hfsplus", "affs"),
                *("bfs", "ecryptfs", "ocfs2", "hpfs", "jfs", "bdev"),
            ),
            "block_dirty_folio",
        ),
        **dict.fromkeys(
            ("ramfs", "tmpfs", "devtmpfs", "rootfs", "hugetlbfs", "secretmem", "aio"),
            "noop_dirty_folio",
        ),
    }
)
_OLDER: Mapping[str, str] = MappingProxyType(
    {
        "exfat": "block_dirty_folio",
        "ntfs3": "block_dirty_folio",
        "fuse": "filemap_dirty_folio",
        "btrfs": "filemap_dirty_folio",
    }
)
"""Where 6.12 and 6.1 differ from 7.2."""
_OLDEST: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("xfs", "gfs2", "zonefs"), "filemap_dirty_folio")
)
"""Where 6.1 differs from 6.12 as well."""


def dirty_callback(file_system: str, release: KernelRelease) -> str | None:
    """The name of the callback; None for a file system that is not in the table."""
    version: tuple[int, int] = (release.major, release.minor) if release.is_known else (7, 2)
    tables = [_NEW]
    if version < (7, 0):
        tables.insert(0, _OLDER)
    if version < (6, 2):
        tables.insert(0, _OLDEST)
    for table in tables:
        if file_system in table:
            return table[file_system]
    return None

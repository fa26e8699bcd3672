"""Names of files: `fs/namei.c:vfs_unlink, vfs_rename, vfs_tmpfile @6.12`.

A name is a link from a folder; a file whose last name and last user are gone is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.mm.files.ext4 import ext4_alloc_da_blocks
from memdesc.mm.files.file_systems import VFAT
from memdesc.mm.files.inode import AddressSpace, FileSystem, iput, new_inode
from memdesc.mm.files.super import want_write
from memdesc.mm.process import Errno

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["rename", "tmpfile", "unlink"]


def tmpfile(kernel: Kernel, fs: FileSystem) -> AddressSpace:
    """O_TMPFILE: a file that never had a name; it is shown by its inode's number. Raises Errno."""
    if fs is VFAT:
        raise Errno("EOPNOTSUPP")
    want_write(kernel, fs.name)
    kernel.say("vfs_tmpfile: a file without a name")
    return new_inode(kernel, fs, f"{fs.name}:#1 (deleted)")


def unlink(kernel: Kernel, where: str, path: str) -> None:
    """unlink(2): the file lives on while it is open or mapped. Raises Errno."""
    if f"{where}:{path}" not in kernel.names:
        raise Errno("ENOENT")
    want_write(kernel, where)
    _drop_name(kernel, f"{where}:{path}")


def rename(kernel: Kernel, where: str, path: str, to: str) -> None:
    """rename(2) in a folder: pages stay as they are, and mappings show the new name.

    Raises Errno.
    """
    old, new = f"{where}:{path}", f"{where}:{to}"
    if old not in kernel.names:
        raise Errno("ENOENT")
    want_write(kernel, where)
    if old == new:
        return
    if new in kernel.names:
        ext4_alloc_da_blocks(kernel, kernel.names[old])
        _drop_name(kernel, new)
        kernel.say("vfs_rename: the file that had the name loses it")
    inode: AddressSpace = kernel.names.pop(old)
    kernel.names[new] = inode
    inode.path = new


# --- helpers -----------------------------------------------------------------------------


def _drop_name(kernel: Kernel, shown: str) -> None:
    inode: AddressSpace = kernel.names.pop(shown)
    inode.links -= 1
    inode.path += " (deleted)"
    iput(kernel, inode)

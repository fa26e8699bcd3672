"""The path of a file from its inode: what a page-cache folio's `mapping->host` is called.

A folio knows its inode and no name.  The name is in a dentry that is cached for the inode
(`inode.i_dentry`), the rest of the path in the mounts of its file system (`fs/namespace.c`).
A file can have several names and several mounts: one is chosen, the init process' mounts
before others.  An inode whose names the kernel has forgotten has no path.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Final

from memdesc.errors import FaultError, LayoutError
from memdesc.fact import NotVisible
from memdesc.structs.kernel import Kernel, Object
from memdesc.structs.paths import Paths

__all__ = ["InodePaths"]

_MOST_MOUNTS: Final = 4096
_MOST_NAMES: Final = 64
"""Hard links looked at; the first one in the dentry cache is as good as any."""
_DEEPEST: Final = 512
_FIRST_ERROR: Final = (1 << 64) - 4095
"""Pointers from here up are errors (`include/linux/err.h`: MAX_ERRNO): the namespace of a
mount that the kernel made for itself (`fs/mount.h`: MNT_NS_INTERNAL)."""


class InodePaths:
    """Paths of one kernel's inodes."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._paths = Paths(kernel)

    def path_of(self, inode: int) -> str | NotVisible:
        """The path of the inode at this address; " (deleted)" where its name is gone.

        Raises FaultError and LayoutError.
        """
        kernel = self._kernel
        node = kernel.load("inode", inode)
        block = node.follow("i_sb")
        if block is None:
            raise FaultError("an inode has no file system", inode)
        kind = block.follow("s_type")
        if kind is not None and kind.string("name") == "bdev":
            return self._block_device(inode)
        dentry = next(self._names(node), None)
        if dentry is None:
            return NotVisible("no name of it is in the kernel's cache of names")
        return self._paths.text_of(self._mount_of(block, dentry), dentry)

    # --- helpers -------------------------------------------------------------------------

    def _block_device(self, inode: int) -> str:
        """As devtmpfs names it: "/dev/vda"."""
        offset = self._kernel.member("bdev_inode", "vfs_inode").offset
        device = self._kernel.load("bdev_inode", inode - offset)
        return "/dev/" + device.string("bdev.bd_device.kobj.name")

    def _names(self, inode: Object) -> Iterator[int]:
        """Addresses of the dentries of an inode: of a name in use before a deleted one."""
        kernel = self._kernel
        path = "d_u.d_alias" if kernel.has("dentry", "d_u.d_alias") else "d_alias"
        offset = kernel.member("dentry", path).offset
        deleted = []
        link = inode["i_dentry.first"]
        for _ in range(_MOST_NAMES):
            if not link:
                break
            dentry = kernel.load("dentry", link - offset)
            if dentry["d_inode"] != inode.address:
                raise FaultError("a name leads to another inode", dentry.address)
            if dentry["d_hash.pprev"]:
                yield dentry.address
            else:
                deleted.append(dentry.address)
            link = dentry[f"{path}.next"]
        yield from deleted

    def _mount_of(self, block: Object, dentry: int) -> int:
        """Address of a vfsmount that shows this dentry; 0 where none does."""
        above = self._ancestors(dentry)
        offset = self._kernel.member("mount", "mnt").offset
        best, best_rank = 0, -1
        for mount in self._mounts(block):
            if mount["mnt.mnt_root"] not in above:
                continue
            space = mount["mnt_ns"]
            rank = 2 if space == self._first_space else int(0 < space < _FIRST_ERROR)
            if rank > best_rank:
                best, best_rank = mount.address + offset, rank
        return best

    def _ancestors(self, dentry: int) -> set[int]:
        """The dentry and the directories above it."""
        offset = self._kernel.member("dentry", "d_parent").offset
        found: set[int] = set()
        while dentry not in found:
            found.add(dentry)
            if len(found) > _DEEPEST:
                raise FaultError("a path of directories does not end", dentry)
            dentry = self._kernel.u64(dentry + offset)
        return found

    def _mounts(self, block: Object) -> Iterator[Object]:
        """The mounts of a file system: a list up to 6.12, a chain later (`fs/mount.h`)."""
        kernel = self._kernel
        if kernel.has("mount", "mnt_instance"):
            head = block.address_of("s_mounts")
            yield from kernel.list_entries(head, "mount", "mnt_instance", limit=_MOST_MOUNTS)
            return
        link = block["s_mounts"]
        for _ in range(_MOST_MOUNTS):
            if not link:
                return
            mount = kernel.load("mount", link)
            yield mount
            link = mount["mnt_next_for_sb"]
        raise FaultError("the mounts of a file system do not end", block.address)

    @cached_property
    def _first_space(self) -> int:
        """Address of the first mount namespace; -1 where its symbol is not known."""
        try:
            proxy = self._kernel.symbol("init_nsproxy")
            return self._kernel.load("nsproxy", proxy)["mnt_ns"]
        except (LayoutError, FaultError):
            return -1

"""The path of an open file, as /proc/PID/maps prints it.

A dentry knows its name and its parent, a mount knows where it is mounted; a path is put
together from the end.  Files of the kernel's own, never mounted file systems have names that
are no paths ("anon_inode:[io_uring]", "/memfd:cache (deleted)").

Sources: `fs/d_path.c:prepend_path,d_path,simple_dname`, `fs/anon_inodes.c`, `net/socket.c`,
`fs/pipe.c`, `drivers/dma-buf/dma-buf.c` (their d_dname) @6.1, @6.12, @7.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from memdesc.errors import FaultError
from memdesc.kernels.pagemap_words import ProcRules
from memdesc.structs.kernel import Kernel, Object

__all__ = ["FileName", "Paths", "kernfs_path"]

_DEEPEST = 512
"""Directories and mounts in one path. PATH_MAX is 4096 bytes, "/a" takes two; mounts add few."""
_LONGEST_NAME = 256
"""NAME_MAX, with the end of the string."""


@dataclass(frozen=True, slots=True)
class FileName:
    """What a line of /proc/PID/maps says of a file."""

    path: str
    device: int
    """Major << 20 | minor of the file system (`super_block.s_dev`)."""
    inode: int


class Paths:
    """Paths of one kernel's files below one process' root. Remembers files and directories."""

    def __init__(self, kernel: Kernel, root: tuple[int, int] | None = None) -> None:
        """`root` is (address of the vfsmount, address of the dentry) where paths begin; None:
        at the top of the mount tree."""
        self._kernel = kernel
        self._root = root
        has_backing = kernel.has("backing_file", "user_path")
        self._backing = ProcRules.of(kernel.release).fmode_backing if has_backing else 0
        self._files: dict[int, FileName | FaultError] = {}
        self._folders: dict[tuple[int, int], str] = {}

    def name_of(self, file: int) -> FileName:
        """The name of the struct file at `file`. Raises FaultError."""
        if file not in self._files:
            try:
                self._files[file] = self._name(file)
            except FaultError as error:
                self._files[file] = error
        found = self._files[file]
        if isinstance(found, FaultError):
            raise FaultError(str(found), found.address)
        return found

    def text_of(self, mount: int, dentry: int) -> str:
        """The path of the dentry at `dentry` below the vfsmount at `mount` (0: below the root of
        its file system), as for a file that is opened there. Raises FaultError."""
        entry = self._kernel.load("dentry", dentry)
        inode = entry.follow("d_inode")
        return self._text(entry, mount, 0 if inode is None else inode["i_ino"])

    def _name(self, file: int) -> FileName:
        kernel = self._kernel
        entry = kernel.load("file", file)
        mount, dentry, inode = entry["f_path.mnt"], entry["f_path.dentry"], entry["f_inode"]
        if self._backing and entry["f_mode"] & self._backing:
            path = kernel.load("backing_file", file - kernel.member("backing_file", "file").offset)
            mount, dentry = path["user_path.mnt"], path["user_path.dentry"]
            inode = kernel.load("dentry", dentry)["d_inode"]
        if not dentry or not inode:
            raise FaultError(f"the file at {file:#x} has no name", file)
        node = kernel.load("inode", inode)
        block = kernel.load("super_block", node["i_sb"])
        text = self._text(kernel.load("dentry", dentry), mount, node["i_ino"])
        return FileName(text, block["s_dev"], node["i_ino"])

    def _text(self, dentry: Object, mount: int, inode: int) -> str:
        kernel = self._kernel
        is_root = dentry["d_parent"] == dentry.address
        top = kernel.load("vfsmount", mount)["mnt_root"] if mount else 0
        operations = dentry.follow("d_op")
        if (
            operations is not None
            and operations["d_dname"]
            and not (is_root and dentry.address == top)
        ):
            return self._pseudo(dentry, inode)
        path = self._path(mount, dentry)
        # d_unlinked(): not in the dentry cache's hash any more.
        return path + (" (deleted)" if not is_root and not dentry["d_hash.pprev"] else "")

    def _pseudo(self, dentry: Object, inode: int) -> str:
        """What the file system's own d_dname() prints."""
        block = dentry.follow("d_sb")
        kind = block.follow("s_type") if block is not None else None
        name = self._own_name(dentry)
        match kind.string("name") if kind is not None else "":
            case "anon_inodefs":
                return f"anon_inode:{name}"
            case "sockfs":
                return f"socket:[{inode}]"
            case "pipefs":
                return f"pipe:[{inode}]"
            case "nsfs":
                return f"{name}:[{inode}]"
            case "dmabuf":
                return f"/{name}:"
            case _:
                return f"/{name} (deleted)"

    def _path(self, mount: int, dentry: Object) -> str:
        """The names from the root down to `dentry`."""
        names: list[str] = []
        address, above = dentry.address, ""
        trail: list[tuple[int, int]] = []
        for _ in range(_DEEPEST):
            if (mount, address) == self._root:
                break
            known = self._folders.get((mount, address))
            if known is not None:
                above = known
                break
            if address != dentry.address:
                dentry = self._kernel.load("dentry", address)
            parent = dentry["d_parent"]
            holder = self._mount(mount)
            if holder is not None and address == holder["mnt.mnt_root"]:
                if holder["mnt_parent"] == holder.address:
                    break  # the top of the mount tree
                address = holder["mnt_mountpoint"]
                mount = holder["mnt_parent"] + self._mount_offset
                continue
            if parent == address:
                break  # not reachable from the root
            trail.append((mount, address))
            names.append(self._own_name(dentry))
            address = parent
        else:
            raise FaultError(f"the path of the dentry at {dentry.address:#x} has no end", address)
        path = above
        for place, name in zip(reversed(trail), reversed(names), strict=True):
            path = f"{path}/{name}"
            self._folders[place] = path
        return path or "/"

    @property
    def _mount_offset(self) -> int:
        return self._kernel.member("mount", "mnt").offset

    def _mount(self, vfsmount: int) -> Object | None:
        if not vfsmount:
            return None
        return self._kernel.load("mount", vfsmount - self._mount_offset)

    def _own_name(self, dentry: Object) -> str:
        return self._kernel.string(dentry["d_name.name"], _LONGEST_NAME)


def kernfs_path(kernel: Kernel, node: int) -> str:
    """The path of a kernfs node below its root, as cgroups print it: "/" for the root itself.

    Raises FaultError for a link that leads nowhere or a chain without end.
    Source: `fs/kernfs/dir.c:kernfs_path_from_node` (`parent` is `__parent` from 6.15 on).
    """
    up = "parent" if kernel.has("kernfs_node", "parent") else "__parent"
    names: list[str] = []
    for _ in range(_DEEPEST):
        entry = kernel.load("kernfs_node", node)
        node = entry[up]
        if not node:
            return "/" + "/".join(reversed(names))
        names.append(entry.string("name"))
    raise FaultError(f"the path of the kernfs node at {node:#x} has no end", node)

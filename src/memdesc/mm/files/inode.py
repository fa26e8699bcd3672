"""Files as processes see them: file systems, inodes with their page cache, and open files.

An `AddressSpace` is an inode together with its `i_data`: the pages that are cached, the areas that
map it, and for a file system with a device what its blocks hold. An `OpenFile` is one open file
description, which descriptors of several processes and areas refer to
(`include/linux/fs.h:struct address_space, struct file @6.12`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.files.file_systems import (
    BY_NAME,
    EXT4,
    HUGETLBFS,
    SECRETMEM,
    SHMEM,
    TMPFS,
    FileSystem,
)
from memdesc.mm.files.memfd import Seal, check_mmap
from memdesc.mm.files.wb_err import sample_errors
from memdesc.mm.process import Errno, Mm, Process
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.areas.mempolicy import Policy
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.reclaim.workingset import Shadow

__all__ = [
    "EXT4",
    "HUGETLBFS",
    "PAGE_SIZE_BYTES",
    "PARTLY",
    "SECRETMEM",
    "SHMEM",
    "TMPFS",
    "AddressSpace",
    "FileSystem",
    "OpenFile",
    "close_file",
    "dup_file",
    "flags_of_file",
    "iput",
    "may_write",
    "memfd_create",
    "memfd_secret",
    "new_inode",
    "open_file",
    "shmem_zero_setup",
]

PARTLY: Final = 1 << 30
"""Added to a content: the page begins so, and ends in zeroes."""


@dataclass(slots=True, eq=False)
class AddressSpace:
    """An inode and its page cache. `number` is what folios name."""

    number: int
    fs: FileSystem = SHMEM
    path: str = ""
    """As /proc/PID/maps shows it."""
    size: int = 0
    """i_size, in bytes."""
    pages: dict[int, int] = field(default_factory=dict)
    """i_pages: index -> frame, for every page of every folio."""
    swapped: dict[int, int] = field(default_factory=dict)
    """Index -> swap slot, of shmem pages that are swapped out."""
    lost: set[int] = field(default_factory=set)
    """Indexes of shmem pages that swap could not give back: entries of the page cache that stand
    for an error from then on."""
    lost_twice: int = 0
    """How many of those were thrown away: the inode's number of swapped pages (`info->swapped`) was
    lowered for each when it was lost, and again then (`mm/shmem.c:shmem_undo_range`)."""
    swap_orders: dict[int, int] = field(default_factory=dict)
    """Index -> order, of shmem pages that were swapped out as a large folio and are still one
    entry of the page cache."""
    shadows: dict[int, Shadow] = field(default_factory=dict)
    """Index -> what is remembered of a page that was reclaimed."""
    fallocend: int = 0
    """End of what fallocate(2) reserved, in pages: a split keeps pages up to there."""
    blocks: dict[int, int] = field(default_factory=dict)
    """Index -> content on the device, where a block is allocated and written."""
    vmas: list[tuple[Mm, Vma]] = field(default_factory=list)
    """i_mmap: areas that map it."""
    links: int = 0
    """Names in a folder."""
    disk_size: int = 0
    """Of xfs: the size that the inode on disk has."""
    journalled: bool = False
    """Of ext4: EXT4_INODE_JOURNAL_DATA, its data goes through the journal."""
    emptied: bool = False
    """EXT4_STATE_DA_ALLOC_CLOSE: truncated to nothing since it was closed last."""
    opens: int = 0
    """Open file descriptions."""
    writers: int = 0
    """i_writecount: those of them, opened by name, that may write."""
    wb_err: int = 0
    """Errors of write-back (`mm.errseq`)."""
    as_errors: set[str] = field(default_factory=set)
    """AS_EIO, AS_ENOSPC: "EIO", "ENOSPC"."""
    owner: int | None = None
    """Who alone may open it; None: everybody, as with memory files."""
    unevictable: bool = False
    """AS_UNEVICTABLE: its pages must not go, by SHM_LOCK (of whole file systems: `new_flags`)."""
    reserved: int = 0
    """Pages that are promised as a whole (shmem_acct_size); 0: each as it comes."""
    policies: dict[int, Policy] = field(default_factory=dict)
    """Index -> memory policy, of shmem (`struct shared_policy`)."""
    seals: Seal | None = None
    """What it promises never to let happen (`mm.memfd`); None: not a file that can."""

    @property
    def pages_in_size(self) -> int:
        """Pages that begin before the end of the file."""
        return -(-self.size // PAGE_SIZE_BYTES)

    @property
    def is_shmem(self) -> bool:
        """shmem_mapping()."""
        return self.fs in (SHMEM, TMPFS)


@dataclass(slots=True, eq=False)
class OpenFile:
    """One open file description (`struct file`)."""

    mapping: AddressSpace
    readonly: bool = False
    direct: bool = False
    sync: bool = False
    append: bool = False
    random: bool = False
    """FMODE_RANDOM: POSIX_FADV_RANDOM."""
    noreuse: bool = False
    """FMODE_NOREUSE: POSIX_FADV_NOREUSE."""
    holders: int = 1
    """f_count: descriptors and areas."""
    counted: bool = False
    """FMODE_WRITER: counted in `writers` of its inode."""
    ra: dict[str, int] = field(default_factory=dict)
    """struct file_ra_state."""
    wb_err: int = 0
    """f_wb_err: up to which error of the inode it was told."""
    sb_err: int = 0
    """f_sb_err: the same of the file system's errors."""

    @property
    def path(self) -> str:
        """As /proc/PID/maps shows it."""
        return self.mapping.path

    @property
    def has_close(self) -> bool:
        """vm_ops->close: its areas are counted by who made them, so none may vanish in a merge."""
        return self.mapping.fs is HUGETLBFS

    def mapped(self, mm: Mm, vma: Vma) -> None:
        """An area maps it: vma_link_file()."""
        self.holders += 1
        self.mapping.vmas.append((mm, vma))

    def unmapped(self, kernel: Kernel, mm: Mm, vma: Vma) -> None:
        """An area is gone: unlink_file_vma(), fput()."""
        self.mapping.vmas.remove((mm, vma))
        if self.mapping.fs is HUGETLBFS:
            from memdesc.mm.hugetlb.hugetlb_pool import area_gone

            area_gone(kernel, vma)
        self.closed(kernel)

    def shared(self) -> None:
        """Another descriptor refers to it: dup(), fork."""
        self.holders += 1

    def closed(self, kernel: Kernel) -> None:
        """fput(): the last one closes the file."""
        self.holders -= 1
        if self.holders == 0:
            if self.mapping.emptied:
                from memdesc.mm.files.ext4 import ext4_alloc_da_blocks

                self.mapping.emptied = False
                ext4_alloc_da_blocks(kernel, self.mapping)
            self.mapping.opens -= 1
            self.mapping.writers -= self.counted
            iput(kernel, self.mapping)


def new_inode(kernel: Kernel, fs: FileSystem, path: str, *, links: int = 0) -> AddressSpace:
    """An empty file without pages."""
    made = kernel.new_mapping(AddressSpace)
    made.fs, made.path, made.links = fs, path, links
    if fs is TMPFS:
        made.seals = Seal.SEAL
    return made


def memfd_create(
    kernel: Kernel, process: Process, name: str,
    *, fs: FileSystem = SHMEM, seals: Seal = Seal.SEAL,
) -> OpenFile:  # fmt: skip
    """memfd_create(2): a file in memory without a name in any folder."""
    inode = new_inode(kernel, fs, f"/memfd:{name} (deleted)")
    inode.seals = seals
    return _install(process, name, _open(inode))


def memfd_secret(kernel: Kernel, process: Process, name: str) -> OpenFile:
    """memfd_secret(2), of a kernel that was told to have it (`secretmem.enable`) or is 6.5."""
    return _install(process, name, _open(new_inode(kernel, SECRETMEM, "/secretmem (deleted)")))


def shmem_zero_setup(kernel: Kernel, pages: int) -> OpenFile:
    """The file behind MAP_SHARED | MAP_ANONYMOUS. The caller maps it and closes it."""
    inode = new_inode(kernel, SHMEM, "/dev/zero (deleted)")
    inode.size = pages * PAGE_SIZE_BYTES
    return _open(inode)


def flags_of_file(kernel: Kernel, file: OpenFile, flags: VM) -> VM:
    """do_mmap() with a file: what an area may become. Raises Errno.

    A file that is open for reading only never gets a shared writable mapping, not even by
    mprotect: the area is MAYSHARE, but not SHARED (`mm/mmap.c:do_mmap @6.12`).
    """
    if flags & VM.SHARED and file.readonly:
        if flags & VM.WRITE:
            raise Errno("EACCES")
        flags &= ~(VM.SHARED | VM.MAYWRITE)
    flags = check_mmap(kernel, file.mapping, flags)
    if file.mapping.fs is SECRETMEM:
        if not flags & VM.SHARED:
            raise Errno("EINVAL")
        # Its file system is mounted noexec. VM_LOCKED, which secretmem_mmap sets, does not last.
        flags = (flags | VM.DONTDUMP) & ~VM.MAYEXEC
    return flags


def open_file(
    kernel: Kernel, process: Process, name: str, where: str, path: str,
    *, create: bool = False, truncate: bool = False, tmpfile: bool = False, **flags: bool,
) -> OpenFile:  # fmt: skip
    """open(2) of `path` on a file system by name; `flags`: readonly, direct, sync, append."""
    from memdesc.mm.files.namei import tmpfile as vfs_tmpfile
    from memdesc.mm.files.super import want_write

    fs = BY_NAME[where]
    shown = f"{where}:{path}"
    inode = vfs_tmpfile(kernel, fs) if tmpfile else kernel.names.get(shown)
    if inode is None and not create:
        raise Errno("ENOENT")
    if inode is None or truncate or (not flags.get("readonly") and fs.name in kernel.disk.readonly):
        want_write(kernel, where)
    if inode is None:
        inode = kernel.names[shown] = new_inode(kernel, fs, shown, links=1)
        inode.owner = process.mm.limits.uid
    if not may_write(process.mm, inode):
        raise Errno("EACCES")
    if flags.get("direct") and not can_odirect(kernel, inode):
        raise Errno("EINVAL")
    made = _open(inode)
    sample_errors(kernel, made)
    for flag, value in flags.items():
        setattr(made, flag, value)
    made.counted = not made.readonly
    inode.writers += made.counted
    if truncate:
        from memdesc.mm.files.truncate import set_size

        set_size(kernel, inode, 0)
    return _install(process, name, made)


def can_odirect(kernel: Kernel, inode: AddressSpace) -> bool:
    """FMODE_CAN_ODIRECT: what lies on a device, and tmpfs since 6.6; not memory files, which nobody
    opened by name (`mm/shmem.c:shmem_file_open` sets it)."""
    return inode.fs.has_device or (inode.fs is TMPFS and kernel.rules.tmpfs_takes_direct)


def may_write(mm: Mm, inode: AddressSpace) -> bool:
    """inode_owner_or_capable(), or file_permission() with MAY_WRITE."""
    return mm.limits.capable or inode.owner in (None, mm.limits.uid)


def close_file(kernel: Kernel, process: Process, name: str) -> None:
    """close(2)."""
    process.files.take(name).closed(kernel)


def dup_file(process: Process, name: str, old: str) -> None:
    """dup(2): the same open file description."""
    process.files[name] = process.files[old]
    process.files[name].shared()


def iput(kernel: Kernel, inode: AddressSpace) -> None:
    """iput_final(): a file without name and user is gone, with its pages."""
    if inode.opens or inode.links:
        return
    from memdesc.mm.files.truncate import truncate_inode_pages

    assert not inode.vmas
    truncate_inode_pages(kernel, inode, 0)
    kernel.forget_mapping(inode.number)


# --- helpers -----------------------------------------------------------------------------


def _open(inode: AddressSpace) -> OpenFile:
    inode.opens += 1
    return OpenFile(inode)


def _install(process: Process, name: str, file: OpenFile) -> OpenFile:
    process.files[name] = file
    return file

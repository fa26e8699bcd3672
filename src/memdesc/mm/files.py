"""Files as processes see them: file systems, inodes with their page cache, and open files.

An `AddressSpace` is an inode together with its `i_data`: the pages that are cached, the areas that
map it, and for a file system with a device what its blocks hold. An `OpenFile` is one open file
description, which descriptors of several processes and areas refer to
(`include/linux/fs.h:struct address_space, struct file @6.12`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.process import Errno, Mm, Process
from memdesc.mm.vma import VM, Vma
from memdesc.mm.wb_err import sample_errors
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "EXT4",
    "HUGETLBFS",
    "PAGE_BYTES",
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
    "memfd_create",
    "memfd_secret",
    "new_inode",
    "open_file",
    "shmem_zero_setup",
    "unlink",
]

PAGE_BYTES: Final = 4096
PARTLY: Final = 1 << 30
"""Added to a content: the page begins so, and ends in zeroes."""


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


SHMEM: Final = FileSystem(
    "shmem", MemoryType.SHMEM, int(KPF.UPTODATE | KPF.SWAPBACKED), False, False
)
"""Files of the kernel's own tmpfs: memfd and shared anonymous memory."""
TMPFS: Final = FileSystem(
    "tmpfs", MemoryType.SHMEM, int(KPF.UPTODATE | KPF.SWAPBACKED), False, False
)
EXT4: Final = FileSystem("ext4", MemoryType.FILE, int(KPF.UPTODATE), True, True)
SECRETMEM: Final = FileSystem(
    "secretmem", MemoryType.SECRETMEM, int(KPF.UPTODATE | KPF.UNEVICTABLE), False, False,
    maps_around=False,
)  # fmt: skip
HUGETLBFS: Final = FileSystem(
    "hugetlbfs", MemoryType.HUGETLB, int(KPF.UPTODATE | KPF.HUGE), False, False, maps_around=False
)


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
    blocks: dict[int, int] = field(default_factory=dict)
    """Index -> content on the device, where a block is allocated and written."""
    vmas: list[tuple[Mm, Vma]] = field(default_factory=list)
    """i_mmap: areas that map it."""
    links: int = 0
    """Names in a folder."""
    opens: int = 0
    """Open file descriptions."""
    wb_err: int = 0
    """Errors of write-back (`mm.errseq`)."""
    as_errors: set[str] = field(default_factory=set)
    """AS_EIO, AS_ENOSPC: "EIO", "ENOSPC"."""

    @property
    def pages_in_size(self) -> int:
        """Pages that begin before the end of the file."""
        return -(-self.size // PAGE_BYTES)

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
    holders: int = 1
    """f_count: descriptors and areas."""
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

    def mapped(self, mm: Mm, vma: Vma) -> None:
        """An area maps it: vma_link_file()."""
        self.holders += 1
        self.mapping.vmas.append((mm, vma))

    def unmapped(self, kernel: Kernel, mm: Mm, vma: Vma) -> None:
        """An area is gone: unlink_file_vma(), fput()."""
        self.mapping.vmas.remove((mm, vma))
        if self.mapping.fs is HUGETLBFS:
            from memdesc.mm.hugetlb import area_gone

            area_gone(kernel, mm, vma)
        self.closed(kernel)

    def shared(self) -> None:
        """Another descriptor refers to it: dup(), fork."""
        self.holders += 1

    def closed(self, kernel: Kernel) -> None:
        """fput(): the last one closes the file."""
        self.holders -= 1
        if self.holders == 0:
            self.mapping.opens -= 1
            _iput(kernel, self.mapping)


def new_inode(kernel: Kernel, fs: FileSystem, path: str, *, links: int = 0) -> AddressSpace:
    """An empty file without pages."""
    made = kernel.new_mapping(AddressSpace)
    made.fs, made.path, made.links = fs, path, links
    return made


def memfd_create(
    kernel: Kernel, process: Process, name: str, *, fs: FileSystem = SHMEM
) -> OpenFile:
    """memfd_create(2): a file in memory without a name in any folder."""
    return _install(process, name, _open(new_inode(kernel, fs, f"/memfd:{name} (deleted)")))


def memfd_secret(kernel: Kernel, process: Process, name: str) -> OpenFile:
    """memfd_secret(2), of a kernel that was told to have it (`secretmem.enable`) or is 6.5."""
    return _install(process, name, _open(new_inode(kernel, SECRETMEM, "/secretmem (deleted)")))


def shmem_zero_setup(kernel: Kernel, pages: int) -> OpenFile:
    """The file behind MAP_SHARED | MAP_ANONYMOUS. The caller maps it and closes it."""
    inode = new_inode(kernel, SHMEM, "/dev/zero (deleted)")
    inode.size = pages * PAGE_BYTES
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
    if file.mapping.fs is SECRETMEM:
        if not flags & VM.SHARED:
            raise Errno("EINVAL")
        # Its file system is mounted noexec. VM_LOCKED, which secretmem_mmap sets, does not last.
        flags = (flags | VM.DONTDUMP) & ~VM.MAYEXEC
    return flags


def open_file(
    kernel: Kernel, process: Process, name: str, where: str, path: str,
    *, create: bool = False, truncate: bool = False, **flags: bool,
) -> OpenFile:  # fmt: skip
    """open(2) of `path` on a file system by name; `flags`: readonly, direct, sync, append."""
    fs = {"tmpfs": TMPFS, "ext4": EXT4}[where]
    shown = f"{where}:{path}"
    inode = kernel.names.get(shown)
    if inode is None:
        if not create:
            raise Errno("ENOENT")
        inode = kernel.names[shown] = new_inode(kernel, fs, shown, links=1)
    made = _open(inode)
    sample_errors(kernel, made)
    for flag, value in flags.items():
        setattr(made, flag, value)
    if truncate:
        from memdesc.mm.truncate import set_size

        set_size(kernel, inode, 0)
    return _install(process, name, made)


def close_file(kernel: Kernel, process: Process, name: str) -> None:
    """close(2)."""
    process.files.pop(name).closed(kernel)


def dup_file(process: Process, name: str, old: str) -> None:
    """dup(2): the same open file description."""
    process.files[name] = process.files[old]
    process.files[name].shared()


def unlink(kernel: Kernel, where: str, path: str) -> None:
    """unlink(2): the file lives on while it is open or mapped. Raises Errno."""
    inode = kernel.names.pop(f"{where}:{path}", None)
    if inode is None:
        raise Errno("ENOENT")
    inode.links -= 1
    inode.path += " (deleted)"
    _iput(kernel, inode)


# --- helpers -----------------------------------------------------------------------------


def _open(inode: AddressSpace) -> OpenFile:
    inode.opens += 1
    return OpenFile(inode)


def _install(process: Process, name: str, file: OpenFile) -> OpenFile:
    process.files[name] = file
    return file


def _iput(kernel: Kernel, inode: AddressSpace) -> None:
    """iput_final(): a file without name and user is gone, with its pages."""
    if inode.opens or inode.links:
        return
    from memdesc.mm.truncate import truncate_inode_pages

    assert not inode.vmas
    truncate_inode_pages(kernel, inode, 0)
    kernel.forget_mapping(inode.number)

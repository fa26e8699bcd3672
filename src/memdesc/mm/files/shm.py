"""System V shared memory: segments that have a number instead of a name, and outlive processes.

`ipc/shm.c:newseg, do_shmat, ksys_shmdt, shm_open, shm_close, shmctl_do_lock, do_shm_rmid @6.12`.
A segment is a file of the kernel's own tmpfs that the segment itself keeps open, so its content
stays when nobody has it mapped.  Each shmat(2) opens the file once more, with operations of its
own: `open` and `close` count the areas, and the last one to go takes along a segment that was
removed before.  As areas are counted, none of them may vanish in a merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.accounting import check_commit
from memdesc.mm.areas.mlock_batch import evictable
from memdesc.mm.areas.mmap import mmap, munmap
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.files.inode import SHMEM, OpenFile, new_inode
from memdesc.mm.process import Errno, Mm
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["Segment", "shm_rmid", "shmat", "shmctl_lock", "shmdt", "shmget"]

_PATH = "/SYSV00000000 (deleted)"
"""As /proc/PID/maps shows a segment of IPC_PRIVATE."""


@dataclass(slots=True, eq=False)
class Segment:
    """A segment (`struct shmid_kernel`)."""

    file: OpenFile
    """shm_file: what keeps the content while nobody is attached."""
    removed: bool = False
    """SHM_DEST: it goes with the last area."""
    gone: bool = False

    @property
    def attached(self) -> int:
        """shm_nattch: areas, of which one shmat() has several once they were split."""
        return len(self.file.mapping.vmas)

    def destroy(self, kernel: Kernel) -> None:
        """shm_destroy(): the content goes."""
        self.gone = True
        kernel.say("shm_destroy: removed, and nobody is attached any more")
        self.file.closed(kernel)


@dataclass(slots=True, eq=False)
class _Attached(OpenFile):
    """The file of one shmat(), with the operations of `shm_vm_ops`."""

    segment: Segment | None = None

    @property
    def has_close(self) -> bool:
        """shm_close()."""
        return True

    def unmapped(self, kernel: Kernel, mm: Mm, vma: Vma) -> None:
        """shm_close(): the last area takes a removed segment along."""
        OpenFile.unmapped(self, kernel, mm, vma)
        assert self.segment is not None
        if self.segment.removed and not self.segment.attached:
            self.segment.destroy(kernel)


def shmget(kernel: Kernel, pages: int) -> Segment:
    """shmget(2) with IPC_PRIVATE: a new segment of zeroes. Raises Errno."""
    if not pages:
        raise Errno("EINVAL")
    check_commit(kernel, pages)
    inode = new_inode(kernel, SHMEM, _PATH)
    inode.size, inode.reserved, inode.opens = pages * PAGE_SIZE_BYTES, pages, 1
    return Segment(OpenFile(inode))


def shmat(kernel: Kernel, mm: Mm, segment: Segment, vpn: int, *, readonly: bool = False) -> None:
    """shmat(2) at an address, where nothing may be. Raises Errno."""
    inode = segment.file.mapping
    pages = inode.pages_in_size
    if segment.gone or mm.vmas.overlapping(vpn, vpn + pages):
        raise Errno("EINVAL")
    inode.opens += 1
    file = _Attached(inode, readonly=readonly, segment=segment)
    prot = VM.READ if readonly else VM.READ | VM.WRITE
    try:
        mmap(kernel, mm, vpn, pages, prot=prot, flags=VM.SHARED, file=file, pgoff=0)
    finally:
        file.closed(kernel)


def shmdt(kernel: Kernel, mm: Mm, vpn: int) -> None:
    """shmdt(2): all areas that are left of one shmat() at an address. Raises Errno.

    The first is found by where it would lie, so it may be gone, as long as another one is there.
    """
    first = next(
        (vma for vma in mm.vmas if isinstance(vma.file, _Attached) and _fits(vma, vpn)), None
    )
    if first is None:
        raise Errno("EINVAL")
    assert first.file is not None
    end = vpn + first.file.mapping.pages_in_size
    for vma in mm.vmas.overlapping(vpn, end):
        if vma.file is first.file and _fits(vma, vpn) and vma.vpn_end <= end:
            munmap(kernel, mm, vma.vpn_start, vma.vpn_end)
    kernel.say("ksys_shmdt: every area of that attachment")


def shm_rmid(kernel: Kernel, segment: Segment) -> None:
    """IPC_RMID: it goes at once, or with the last area. Raises Errno."""
    if segment.gone:
        raise Errno("EINVAL")
    segment.removed = True
    if not segment.attached:
        segment.destroy(kernel)


def shmctl_lock(kernel: Kernel, segment: Segment, *, lock: bool) -> None:
    """SHM_LOCK: its pages stay in memory once they are there; SHM_UNLOCK. Raises Errno.

    Pages that are there stay on their lists, until reclaim comes upon them: only
    `shmem_unlock_mapping` looks at every page.
    """
    if segment.gone:
        raise Errno("EINVAL")
    inode = segment.file.mapping
    was, inode.unevictable = inode.unevictable, lock
    if lock or not was:
        return
    for head in {kernel.head(pfn) for pfn in inode.pages.values()}:
        if kernel.flags(head) & KPF.UNEVICTABLE and evictable(kernel, head):
            kernel.relist(head, clear_flags=int(KPF.UNEVICTABLE))
            kernel.say("check_move_unevictable_folios: back to the inactive list")


# --- helpers -----------------------------------------------------------------------------


def _fits(vma: Vma, vpn: int) -> bool:
    """Whether an area lies where the segment's page would be if it began at an address."""
    return vma.vpn_start - vpn == vma.pgoff

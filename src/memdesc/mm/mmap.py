"""mmap, munmap and the end of an address space (`mm/mmap.c`, `mm/vma.c @6.12`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.mm.process import Errno, Mm, Process
from memdesc.mm.rmap import anon_vma_clone, unlink_anon_vmas
from memdesc.mm.vma import VM, Vma
from memdesc.mm.zap import zap_range

if TYPE_CHECKING:
    from memdesc.mm.filemap import OpenFile
    from memdesc.mm.kernel import Kernel

__all__ = ["exit_process", "mmap", "munmap", "split_at"]

_NONE = VM(0)
_MAY = VM.MAYREAD | VM.MAYWRITE | VM.MAYEXEC


def mmap(
    kernel: Kernel,
    mm: Mm,
    vpn: int,
    pages: int,
    *,
    prot: VM = VM.READ | VM.WRITE,
    flags: VM = _NONE,
    file: OpenFile | None = None,
    pgoff: int | None = None,
) -> Vma:
    """Map pages at a fixed address where nothing is mapped. Raises Errno.

    `flags`: more flags of the area, as SHARED, LOCKED, NORESERVE. `pgoff`: first page of the file.
    """
    if pages <= 0:
        raise Errno("EINVAL")
    if mm.vmas.overlapping(vpn, vpn + pages):
        raise Errno("EEXIST")
    may = _MAY | (VM.MAYSHARE if flags & VM.SHARED else VM(0))
    offset = vpn if pgoff is None else pgoff
    if _is_accountable(prot | flags):
        flags |= VM.ACCOUNT
    vma = Vma(vpn, vpn + pages, prot | flags | may | VM.SOFTDIRTY | mm.def_flags, offset, file)
    mm.vmas.insert(vma)
    if file is not None:
        file.mapped(mm, vma)
    return vma


def split_at(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> tuple[Vma, Vma]:
    """__split_vma(): two areas, the one before and the one from an address inside on."""
    assert vma.vpn_start < vpn < vma.vpn_end
    from memdesc.mm.huge_memory import split_pmd_at

    split_pmd_at(kernel, mm, vma, vpn)
    end = vma.vpn_end
    mm.vmas.resize(vma, vma.vpn_start, vpn)
    rest = Vma(vpn, end, vma.flags, vma.pgoff + vma.pages, vma.file, name=vma.name)
    mm.vmas.insert(rest)
    anon_vma_clone(mm, rest, vma)
    if vma.file is not None:
        vma.file.mapped(mm, rest)
    return vma, rest


def cut(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int) -> list[Vma]:
    """Areas that lie wholly in a range, after splitting those that cross its ends."""
    for at in (vpn_start, vpn_end):
        vma = mm.vmas.find(at)
        if vma is not None and vma.vpn_start < at:
            split_at(kernel, mm, vma, at)
    return mm.vmas.overlapping(vpn_start, vpn_end)


def munmap(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int) -> None:
    """Unmap a range; what is not mapped does not matter. Raises Errno."""
    if vpn_end <= vpn_start:
        raise Errno("EINVAL")
    _unmap(kernel, mm, cut(kernel, mm, vpn_start, vpn_end))


def exit_process(kernel: Kernel, process: Process) -> None:
    """exit_mmap(), and the files are closed."""
    mm = process.mm
    _unmap(kernel, mm, list(mm.vmas))
    mm.tables.free_all()
    for file in process.files.values():
        file.closed(kernel)
    process.files = {}
    process.alive = False
    del kernel.processes[process.name]


# --- helpers -----------------------------------------------------------------------------


def _is_accountable(flags: VM) -> bool:
    """accountable_mapping(): private, writable, not hugetlb, and somebody wants it counted."""
    wanted = VM.NORESERVE | VM.SHARED | VM.WRITE | VM.HUGETLB
    return flags & wanted == VM.WRITE


def _unmap(kernel: Kernel, mm: Mm, areas: list[Vma]) -> None:
    if kernel.rules.unmap_drains:
        kernel.drain()
    for vma in areas:
        zap_range(kernel, mm, vma, vma.vpn_start, vma.vpn_end)
    for vma in areas:
        mm.vmas.remove(vma)
        unlink_anon_vmas(kernel, mm, vma)
        if vma.file is not None:
            vma.file.unmapped(kernel, mm, vma)
    for vma in areas:
        before, after = mm.vmas.before(vma.vpn_start), mm.vmas.after(vma.vpn_end)
        mm.tables.free_range(
            vma.vpn_start, vma.vpn_end,
            before.vpn_end if before else 0, after.vpn_start if after else 0,
        )  # fmt: skip

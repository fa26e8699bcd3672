"""remap_file_pages(2): other pages of a file at the same place.

`mm/mmap.c:remap_file_pages @6.12`.  Once it changed entries inside one area; since 4.0 the kernel
does with a mapping over the old one what it says, so that areas become several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.mm.areas.mmap import mmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.process import Errno, Mm

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["remap_file_pages"]

_KEPT = VM.SHARED | VM.LOCKED


def remap_file_pages(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, pgoff: int) -> None:
    """Map pages of the file from `pgoff` on over a range of a shared mapping. Raises Errno."""
    vma = mm.vmas.find(vpn_start)
    if vma is None or not vma.flags & VM.SHARED or vma.file is None:
        raise Errno("EINVAL")
    vpn = vpn_start
    for other in mm.vmas.overlapping(vpn_start, vpn_end):
        alike = other.file is vma.file and other.flags == vma.flags
        if other is not vma and (other.vpn_start > vpn or not alike):
            break
        vpn = other.vpn_end
    if vpn < vpn_end:
        kernel.say("remap_file_pages: not all of it is mapped alike")
        raise Errno("EINVAL")
    kernel.say("remap_file_pages: a mapping over the old one")
    file = vma.file
    file.shared()  # get_file(): what is unmapped may be its last user
    try:
        mmap(
            kernel, mm, vpn_start, vpn_end - vpn_start,
            prot=vma.flags & (VM.READ | VM.WRITE | VM.EXEC), flags=vma.flags & _KEPT, file=file,
            pgoff=pgoff, fixed=True, populate=True,
        )  # fmt: skip
    finally:
        file.closed(kernel)

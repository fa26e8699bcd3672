"""A file system as a whole: read-only, frozen, full.

`fs/super.c:reconfigure_super, freeze_super, thaw_super; fs/namespace.c:sb_prepare_remount_readonly,
mnt_want_write; fs/ext4/balloc.c:ext4_claim_free_clusters @6.12`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.errors import MemdescError
from memdesc.kernels.kpageflags import KPF
from memdesc.mm.files.file_systems import BY_NAME
from memdesc.mm.files.folio_writeback import wait_for_disk
from memdesc.mm.files.page_cache import file_mappings
from memdesc.mm.process import Errno

if TYPE_CHECKING:
    from memdesc.mm.files.inode import AddressSpace
    from memdesc.mm.kernel import Kernel

__all__ = ["claim_blocks", "fill", "freeze", "has_block_left", "remount", "thaw", "want_write"]


def remount(kernel: Kernel, name: str, *, readonly: bool) -> None:
    """mount(2) with MS_REMOUNT. Raises Errno.

    Read-only only if nobody may write to a file there, and no file waits for its end to be removed:
    a mapping keeps the file open that it was made from.
    """
    if name in kernel.disk.frozen:
        raise Errno("EBUSY")
    if readonly and name not in kernel.disk.readonly:
        for mapping in _mappings(kernel, name):
            if mapping.writers:
                kernel.say("sb_prepare_remount_readonly: a file is open for writing")
                raise Errno("EBUSY")
            if not mapping.links:
                kernel.say("sb_prepare_remount_readonly: a file without a name is still in use")
                raise Errno("EBUSY")
        _sync(kernel, name)
        kernel.disk.readonly.add(name)
    elif not readonly:
        kernel.disk.readonly.discard(name)


def freeze(kernel: Kernel, name: str) -> None:
    """FIFREEZE: nothing begins to write, and what is dirty is written. Raises Errno."""
    if name in kernel.disk.frozen:
        raise Errno("EBUSY")
    _sync(kernel, name)
    kernel.disk.frozen.add(name)
    kernel.say("freeze_super: written back, so that the next store must ask, and will wait")


def thaw(kernel: Kernel, name: str) -> None:
    """FITHAW. Raises Errno."""
    if name not in kernel.disk.frozen:
        raise Errno("EINVAL")
    kernel.disk.frozen.remove(name)


def want_write(kernel: Kernel, name: str) -> None:
    """mnt_want_write(), sb_start_write(), sb_start_pagefault(). Raises Errno."""
    if name in kernel.disk.readonly:
        raise Errno("EROFS")
    if name in kernel.disk.frozen:
        raise MemdescError(
            f"{name} is frozen: whoever writes to it waits until it is thawed",
            hint="put `filesystem " + name + " thawed` before this step",
        )


def fill(kernel: Kernel, name: str, pages: int) -> None:
    """From now on so many blocks are left for new data."""
    kernel.disk.left[name] = (pages, _used(kernel, name))


def claim_blocks(kernel: Kernel, mapping: AddressSpace, first: int, end: int) -> None:
    """Blocks for pages that are going to be dirty, now or when they are written. Raises Errno."""
    left = _left(kernel, mapping.fs.name)
    if left is None:
        return
    wanted = 0
    for index in range(first, end):
        pfn = mapping.pages.get(index)
        dirty = pfn is not None and kernel.flags(pfn) & KPF.DIRTY
        wanted += index not in mapping.blocks and not dirty
    if wanted > left:
        kernel.say("ext4_claim_free_clusters: no block is left")
        raise Errno("ENOSPC")


def has_block_left(kernel: Kernel, name: str) -> bool:
    """Whether a file system has room for any new data."""
    left = _left(kernel, name)
    return left is None or left > 0


# --- helpers -----------------------------------------------------------------------------


def _mappings(kernel: Kernel, name: str) -> list[AddressSpace]:
    return [mapping for mapping in file_mappings(kernel) if mapping.fs is BY_NAME[name]]


def _sync(kernel: Kernel, name: str) -> None:
    from memdesc.mm.files.writeback import filemap_fdatawrite

    wait_for_disk(kernel, "the file system")
    for mapping in _mappings(kernel, name):
        filemap_fdatawrite(kernel, mapping)


def _used(kernel: Kernel, name: str) -> int:
    """Blocks that hold data, or are promised to dirty pages."""
    return sum(
        len(mapping.blocks)
        + sum(
            index not in mapping.blocks and bool(kernel.flags(pfn) & KPF.DIRTY)
            for index, pfn in mapping.pages.items()
        )
        for mapping in _mappings(kernel, name)
    )


def _left(kernel: Kernel, name: str) -> int | None:
    """Blocks for new data since `fill`; None: more than anybody will use."""
    filled = kernel.disk.left.get(name)
    if filled is None:
        return None
    left, used = filled
    return left - _used(kernel, name) + used

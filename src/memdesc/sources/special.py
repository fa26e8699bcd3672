"""What is special about some pagemap entries: the zero page, swap, markers, blank areas."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import NotReadableError
from memdesc.kernels.pagemap import PM, EntryKind, SwapConfig, decode_entry
from memdesc.kernels.release import KernelRelease
from memdesc.sources.runs import Part, sample_entry
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES, Pfn, PfnRange

__all__ = ["HIDDEN_HINT", "looks_blank", "own_zero_page", "pages_by_kind"]

HIDDEN_HINT = "run as root (CAP_SYS_ADMIN): frame numbers of pagemap are blanked for everybody else"


def own_zero_page() -> tuple[PfnRange, ...]:
    """The zero page's frame: map a page, read it without ever writing, look where it is.

    Raises NotReadableError when the frame is hidden from us.
    """
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ()
    with mmap.mmap(-1, PAGE_SIZE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        touched = np.frombuffer(memory, np.uint8)
        page = (touched.__array_interface__["data"][0] + int(touched[0])) >> PAGE_SHIFT
        del touched
        entry = int.from_bytes(os.pread(fd, 8, page * 8), "little")
    os.close(fd)
    if not entry & PM.PRESENT:
        return ()
    pfn = int(entry & PM.FRAME)
    if not pfn:
        raise NotReadableError(
            "pagemap shows no frame numbers", path="/proc/self/pagemap", hint=HIDDEN_HINT
        )
    # A kernel that gave us memory of our own instead has set one of these.
    return () if entry & (PM.EXCLUSIVE | PM.FILE) else (PfnRange(Pfn(pfn), Pfn(pfn + 1)),)


def pages_by_kind(
    parts: Sequence[Part], numbering: Callable[[], tuple[KernelRelease, SwapConfig | None]]
) -> dict[str, NDArray[np.uint64]]:
    """Pages per VMA that have an entry but no frame, and zero pages, by the name of the column.

    `numbering` is asked, when it is needed, for what numbers special entries.
    """
    found: dict[str, list[tuple[NDArray[np.uint32], NDArray[np.uint32]]]] = {
        name: [] for name in ("swapped", "guard", "hwpoison", "special")
    }
    rows = np.concatenate([part.absent for part in parts]) if parts else _NO_ROWS
    if rows.size:
        release, config = numbering()
        for sample in np.unique(rows[:, 1]).tolist():
            kind = decode_entry(sample_entry(sample), release, config).kind
            these = rows[rows[:, 1] == sample]
            guard = sample_entry(sample) & PM.GUARD or (kind is EntryKind.MARKER and sample & 0x80)
            name = "guard" if guard else _COLUMN_OF.get(kind, "special")
            found[name].append((these[:, 0], these[:, 2]))
    result = {name: _summed(pairs) for name, pairs in found.items()}
    result["zero"] = _summed([(part.zero, part.zero_pages) for part in parts if part.zero.size])
    return result


_COLUMN_OF = {EntryKind.SWAP: "swapped", EntryKind.HWPOISON: "hwpoison"}
_NO_ROWS = np.zeros((0, 3), np.uint32)


def _summed(pairs: Sequence[tuple[NDArray[np.uint32], NDArray[np.uint32]]]) -> NDArray[np.uint64]:
    if not pairs:
        return np.zeros(0, np.uint64)
    index = np.concatenate([pair[0] for pair in pairs])
    pages = np.concatenate([pair[1] for pair in pairs])
    return np.bincount(index, weights=pages).astype(np.uint64)


def looks_blank(name: str) -> bool:
    """Whether a VMA of this name may be VM_PFNMAP: the kernel's own areas, and devices."""
    if name.startswith(("[vvar", "[vsyscall", "anon_inode:")):
        return True
    return name.startswith("/dev/") and not name.startswith(
        ("/dev/shm/", "/dev/zero", "/dev/hugepages/")  # noqa: S108
    )

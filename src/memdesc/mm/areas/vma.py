"""Virtual memory areas, and the set of them that an address space has.

Addresses are virtual page numbers, ranges half-open.  Which areas may merge and how one is
split: `mm/vma.c @6.12` (`mm/mmap.c @6.1`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntFlag
from typing import TYPE_CHECKING

from memdesc.kernels.masks import mask

if TYPE_CHECKING:
    from memdesc.mm.areas.mempolicy import Policy
    from memdesc.mm.files.filemap import OpenFile
    from memdesc.mm.hugetlb.hugetlb_pool import HugetlbResv
    from memdesc.mm.rmap import AnonVma
    from memdesc.mm.userfault.userfaultfd import UserfaultfdCtx

__all__ = ["VM", "VM_ACCESS", "VM_PKEY", "VM_SPECIAL", "VM_UFFD", "Vma", "VmaSet"]


@mask
class VM(IntFlag):
    """Flags of an area, by the kernel's names without `VM_` (`include/linux/mm.h @6.12`)."""

    READ = 0x1
    WRITE = 0x2
    EXEC = 0x4
    SHARED = 0x8
    MAYREAD = 0x10
    MAYWRITE = 0x20
    MAYEXEC = 0x40
    MAYSHARE = 0x80
    GROWSDOWN = 0x100
    PFNMAP = 0x400
    LOCKED = 0x2000
    IO = 0x4000
    SEQ_READ = 0x8000
    RAND_READ = 0x10000
    DONTCOPY = 0x20000
    DONTEXPAND = 0x40000
    LOCKONFAULT = 0x80000
    ACCOUNT = 0x100000
    NORESERVE = 0x200000
    HUGETLB = 0x400000
    SYNC = 0x800000
    PAT = 0x1000000
    WIPEONFORK = 0x2000000
    DONTDUMP = 0x4000000
    SOFTDIRTY = 0x8000000
    MIXEDMAP = 0x10000000
    HUGEPAGE = 0x20000000
    NOHUGEPAGE = 0x40000000
    MERGEABLE = 0x80000000
    PKEY_BIT0 = 1 << 32
    PKEY_BIT1 = 1 << 33
    PKEY_BIT2 = 1 << 34
    PKEY_BIT3 = 1 << 35
    MAYBE_GUARD = 1 << 36
    UFFD_WP = 1 << 37
    UFFD_MISSING = 1 << 38
    UFFD_MINOR = 1 << 39
    DROPPABLE = 1 << 40
    SEALED = 1 << 42


VM_ACCESS = VM.READ | VM.WRITE | VM.EXEC
"""VM_ACCESS_FLAGS: what a process may do in the area."""

VM_UFFD = VM.UFFD_MISSING | VM.UFFD_WP | VM.UFFD_MINOR
"""__VM_UFFD_FLAGS: what userfaultfd wants to know of an area; any of them: it is armed."""

VM_PKEY = VM.PKEY_BIT0 | VM.PKEY_BIT1 | VM.PKEY_BIT2 | VM.PKEY_BIT3
"""The area's protection key."""

VM_SPECIAL = VM.IO | VM.DONTEXPAND | VM.PFNMAP | VM.MIXEDMAP
"""Areas of drivers: never merged, locked or collapsed (`include/linux/mm.h`)."""


@dataclass(slots=True, eq=False)
class Vma:
    """One area. Compared by identity."""

    vpn_start: int
    vpn_end: int
    flags: VM
    pgoff: int
    """Offset of its first page in the file, in pages; of anonymous memory the virtual page number
    at which it was made."""
    file: OpenFile | None = None
    anon_vma: AnonVma | None = None
    chain: list[AnonVma] = field(default_factory=list)
    """anon_vma_chain: every anon_vma in which this area's pages may be."""
    name: str = ""
    """PR_SET_VMA_ANON_NAME."""
    uffd: UserfaultfdCtx | None = None
    """vm_userfaultfd_ctx: with which userfaultfd it is registered."""
    resv: HugetlbResv | None = None
    """vm_private_data of a private hugetlb area: what it has reserved."""
    policy: Policy | None = None
    """vm_policy: from which nodes its memory comes."""
    swap_readahead: tuple[int, int, int] = (0, 0, 4)
    """swap_readahead_info: page of the last fault on swap, its window, and good guesses since."""

    @property
    def pages(self) -> int:
        """How many pages it covers."""
        return self.vpn_end - self.vpn_start

    def copy(self, vpn_start: int, vpn_end: int, pgoff: int) -> Vma:
        """vm_area_dup() for other addresses, without links to pages."""
        return Vma(
            vpn_start, vpn_end, self.flags, pgoff, self.file, name=self.name, uffd=self.uffd,
            policy=self.policy, resv=self.resv, swap_readahead=self.swap_readahead,
        )  # fmt: skip

    @property
    def is_cow(self) -> bool:
        """is_cow_mapping(): private, and may be written."""
        return self.flags & (VM.SHARED | VM.MAYWRITE) == VM.MAYWRITE

    @property
    def is_anonymous(self) -> bool:
        """vma_is_anonymous(): no file behind it (shared anonymous memory has one)."""
        return self.file is None

    def index_of(self, vpn: int) -> int:
        """linear_page_index(): offset in the mapping of the page at an address."""
        return vpn - self.vpn_start + self.pgoff

    def vpn_of(self, index: int) -> int | None:
        """vma_address(): where a page of the mapping would be; None outside."""
        vpn = index - self.pgoff + self.vpn_start
        return vpn if self.vpn_start <= vpn < self.vpn_end else None


class VmaSet:
    """The areas of an address space, ascending."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._areas: list[Vma] = []

    def __iter__(self) -> Iterator[Vma]:
        return iter(tuple(self._areas))

    def __len__(self) -> int:
        return len(self._areas)

    def find(self, vpn: int) -> Vma | None:
        """vma_lookup(): the area that holds an address."""
        at = bisect_right(self._starts, vpn) - 1
        if at >= 0 and vpn < self._areas[at].vpn_end:
            return self._areas[at]
        return None

    def overlapping(self, vpn_start: int, vpn_end: int) -> list[Vma]:
        """Areas of which a part lies in the range, ascending."""
        at = max(0, bisect_right(self._starts, vpn_start) - 1)
        found = []
        while at < len(self._areas) and self._areas[at].vpn_start < vpn_end:
            if self._areas[at].vpn_end > vpn_start:
                found.append(self._areas[at])
            at += 1
        return found

    def before(self, vpn: int) -> Vma | None:
        """The last area that ends at or before an address."""
        at = bisect_right(self._starts, vpn) - 1
        if at >= 0 and self._areas[at].vpn_end > vpn:
            at -= 1
        return self._areas[at] if at >= 0 else None

    def after(self, vpn: int) -> Vma | None:
        """The first area that begins at or after an address."""
        at = bisect_right(self._starts, vpn - 1)
        return self._areas[at] if at < len(self._areas) else None

    def insert(self, vma: Vma) -> None:
        """Add an area that overlaps none."""
        at = bisect_right(self._starts, vma.vpn_start)
        self._starts.insert(at, vma.vpn_start)
        self._areas.insert(at, vma)

    def remove(self, vma: Vma) -> None:
        """Take an area out."""
        at = self._index(vma)
        del self._areas[at], self._starts[at]

    def resize(self, vma: Vma, vpn_start: int, vpn_end: int) -> None:
        """Give an area other bounds; its `pgoff` follows its start."""
        at = self._index(vma)
        vma.pgoff += vpn_start - vma.vpn_start
        vma.vpn_start, vma.vpn_end = vpn_start, vpn_end
        self._starts[at] = vpn_start

    def _index(self, vma: Vma) -> int:
        at = bisect_left(self._starts, vma.vpn_start)
        assert self._areas[at] is vma
        return at

    def check(self) -> None:
        """Ascending, not empty, not overlapping."""
        end = 0
        for start, vma in zip(self._starts, self._areas, strict=True):
            assert start == vma.vpn_start < vma.vpn_end, vma
            assert end <= start, vma
            end = vma.vpn_end

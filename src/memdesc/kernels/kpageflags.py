"""The words of /proc/kpageflags: bit numbers, names, and their meaning per kernel.

Stable bits (0 to 26) are ABI: `include/uapi/linux/kernel-page-flags.h`, the same
numbers from 5.10 to 7.3.  Bits 32 and up are for kernel hackers:
`include/linux/kernel-page-flags.h`.

>>> flag_names(0x400005828)
['UPTODATE', 'LRU', 'MMAP', 'ANON', 'SWAPBACKED', 'OWNER_2']
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntFlag
from types import MappingProxyType

from memdesc.errors import FormatError
from memdesc.kernels.masks import mask
from memdesc.kernels.release import UNKNOWN_RELEASE, KernelRelease

__all__ = ["BITS", "KPF", "FlagBit", "bits_of", "flag_names", "word_of"]


@mask
class KPF(IntFlag):
    """Masks of the /proc/kpageflags word, by the kernel's names without `KPF_`."""

    LOCKED = 1 << 0
    ERROR = 1 << 1
    REFERENCED = 1 << 2
    UPTODATE = 1 << 3
    DIRTY = 1 << 4
    LRU = 1 << 5
    ACTIVE = 1 << 6
    SLAB = 1 << 7
    WRITEBACK = 1 << 8
    RECLAIM = 1 << 9
    BUDDY = 1 << 10
    MMAP = 1 << 11
    ANON = 1 << 12
    SWAPCACHE = 1 << 13
    SWAPBACKED = 1 << 14
    COMPOUND_HEAD = 1 << 15
    COMPOUND_TAIL = 1 << 16
    HUGE = 1 << 17
    UNEVICTABLE = 1 << 18
    HWPOISON = 1 << 19
    NOPAGE = 1 << 20
    KSM = 1 << 21
    THP = 1 << 22
    OFFLINE = 1 << 23
    ZERO_PAGE = 1 << 24
    IDLE = 1 << 25
    PGTABLE = 1 << 26
    RESERVED = 1 << 32
    MLOCKED = 1 << 33
    OWNER_2 = 1 << 34
    PRIVATE = 1 << 35
    PRIVATE_2 = 1 << 36
    OWNER_PRIVATE = 1 << 37
    ARCH = 1 << 38
    UNCACHED = 1 << 39
    SOFTDIRTY = 1 << 40
    ARCH_2 = 1 << 41
    ARCH_3 = 1 << 42


@dataclass(frozen=True, slots=True)
class FlagBit:
    """One bit: its number, the kernel's name, what it says, and where that is written."""

    bit: int
    name: str
    meaning: str
    source: str = "fs/proc/page.c:stable_page_flags @6.1, @6.12, @7.2"


_MEANINGS: dict[KPF, str] = {
    KPF.LOCKED: "the folio is locked (for I/O, truncation, migration)",
    KPF.ERROR: "an I/O error was seen (6.1 and before; always 0 from 6.12)",
    KPF.REFERENCED: "accessed lately; on PGTABLE from 6.17: a kernel page table",
    KPF.UPTODATE: "content is valid; on BUDDY: the block was reported to the hypervisor",
    KPF.DIRTY: "must be written back before it can be dropped",
    KPF.LRU: "on a reclaim list",
    KPF.ACTIVE: "on an active list; on SLAB: from emergency reserves",
    KPF.SLAB: "belongs to a slab (head and tails)",
    KPF.WRITEBACK: "is being written back now",
    KPF.RECLAIM: "to be reclaimed after writeback, or readahead marker",
    KPF.BUDDY: "free, in the page allocator's lists (every frame of the block)",
    KPF.MMAP: "some frame of this folio is mapped into a process",
    KPF.ANON: "anonymous memory",
    KPF.SWAPCACHE: "has a slot in the swap cache",
    KPF.SWAPBACKED: "goes to swap: anonymous memory or shmem",
    KPF.COMPOUND_HEAD: "first frame of a compound page",
    KPF.COMPOUND_TAIL: "a later frame of a compound page",
    KPF.HUGE: "hugetlb folio",
    KPF.UNEVICTABLE: "may not be reclaimed (mlock, ramfs, secretmem)",
    KPF.HWPOISON: "taken out of use after a memory error",
    KPF.NOPAGE: "no online struct page: a hole, device memory or an offline section",
    KPF.KSM: "merged by KSM (on 6.10 to 6.12: set on every anonymous page)",
    KPF.THP: "a large folio (6.1: a transparent huge page), or the huge zero folio",
    KPF.OFFLINE: "logically offline: balloon, virtio-mem",
    KPF.ZERO_PAGE: "the shared zero page, or the huge zero folio",
    KPF.IDLE: "not accessed since idle tracking marked it",
    KPF.PGTABLE: "a page table",
    KPF.RESERVED: "kernel image, boot memory or firmware",
    KPF.MLOCKED: "locked in memory with mlock",
    KPF.OWNER_2: "on anonymous memory: exclusive to one process; on files: mapped to disk",
    KPF.PRIVATE: "has private data of its owner (buffers, zspage)",
    KPF.PRIVATE_2: "owned by a second user (fscache)",
    KPF.OWNER_PRIVATE: "for its owner: swap cache, file system check, Xen",
    KPF.ARCH: "architecture's own",
    KPF.UNCACHED: "mapped uncached (name gone after 6.1)",
    KPF.SOFTDIRTY: "never set by the kernel; tools fill it from pagemap",
    KPF.ARCH_2: "architecture's own",
    KPF.ARCH_3: "architecture's own",
}

BITS: Mapping[KPF, FlagBit] = MappingProxyType(
    {flag: FlagBit(flag.bit_length() - 1, str(flag.name), text) for flag, text in _MEANINGS.items()}
)
"""Every bit that a kernel from 5.10 to 7.3 can set."""

_NAME_BY_BIT: dict[int, str] = {info.bit: info.name for info in BITS.values()}


def bits_of(release: KernelRelease = UNKNOWN_RELEASE) -> Mapping[int, str]:
    """Return bit number -> name as `release` names them.

    Bit 34 is MAPPEDTODISK in kernels before the bit was renamed (read in 6.1,
    gone in 6.12); everything else keeps its name.
    """
    if release.is_known and (release.major, release.minor) < (6, 12):
        return MappingProxyType({**_NAME_BY_BIT, 34: "MAPPEDTODISK"})
    return MappingProxyType(_NAME_BY_BIT)


def flag_names(word: int, release: KernelRelease = UNKNOWN_RELEASE) -> list[str]:
    """Name the bits of `word`, lowest first; a bit without a name is "bit27" and so on."""
    return list(_names(int(word), release))


def word_of(names: Iterable[str]) -> int:
    """Inverse of `flag_names`. Raises FormatError for an unknown name."""
    word = 0
    for name in names:
        upper = name.strip().upper().removeprefix("KPF_")
        upper = {"MAPPEDTODISK": "OWNER_2", "HEAD": "COMPOUND_HEAD", "TAIL": "COMPOUND_TAIL"}.get(
            upper, upper
        )
        if upper not in KPF.__members__:
            raise FormatError(
                f"unknown page flag: {name.strip()[:40]!r}",
                hint="the flags are listed by `memdesc doctor --flags`",
            )
        word |= KPF[upper].value
    return word


@functools.lru_cache(4096)
def _names(word: int, release: KernelRelease) -> tuple[str, ...]:
    """A machine shows some hundred different words."""
    names = bits_of(release)
    bits = (bit for bit in range(word.bit_length()) if word >> bit & 1)
    return tuple(names.get(bit, f"bit{bit}") for bit in bits)

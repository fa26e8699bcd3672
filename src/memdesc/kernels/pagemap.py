"""The entries of /proc/PID/pagemap: what does one virtual page hold?

One little-endian u64 per virtual page.  A present page shows its frame; a page that
is not present shows a swap entry, and a swap entry is not always swap: hwpoison,
migration, device memory and markers borrow the numbers above the real swap areas.
Which number means what depends on the release and on three options, so `decode_entry`
says `SpecialEntry` with all candidates where it cannot be certain.

The PAGEMAP_SCAN ioctl is in `memdesc.kernels.pagemap_scan`; its names are here too.

Sources: `fs/proc/task_mmu.c`, `include/linux/swap.h`, `include/linux/swapops.h` of 6.1.192,
6.12.117, 7.2.13; entries seen on 6.18.44 guests.

>>> decode_entry(0x440000000000009F, KernelRelease.parse("6.18.44")).target
Marker(uffd_wp=False, poisoned=False, guard=True)
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from memdesc.errors import FormatError
from memdesc.fact import Fact, NotVisible
from memdesc.kernels.masks import mask
from memdesc.kernels.pagemap_scan import (
    PAGEMAP_SCAN,
    PM_SCAN_CHECK_WPASYNC,
    PM_SCAN_WP_MATCHING,
    PageCategory,
    PageRegion,
    ScanArg,
    matches,
)
from memdesc.kernels.release import UNKNOWN_RELEASE, KernelRelease
from memdesc.types import Pfn

__all__ = [
    "PAGEMAP_SCAN",
    "PM",
    "PM_SCAN_CHECK_WPASYNC",
    "PM_SCAN_WP_MATCHING",
    "DeviceEntry",
    "Empty",
    "EntryKind",
    "Hidden",
    "Hwpoison",
    "Marker",
    "Migration",
    "PageCategory",
    "PageRegion",
    "PagemapEntry",
    "Present",
    "ScanArg",
    "SpecialEntry",
    "SwapConfig",
    "SwapMeaning",
    "SwapSlot",
    "Target",
    "decode_entry",
    "matches",
    "swap_meanings",
]


@mask
class PM(enum.IntFlag):
    """Masks of one entry. The low 55 bits are a frame number or a swap entry."""

    FRAME = (1 << 55) - 1
    SWAP_TYPE = 0x1F
    SOFT_DIRTY = 1 << 55
    EXCLUSIVE = 1 << 56
    """A map count of 1, which is not PG_anon_exclusive."""
    UFFD_WP = 1 << 57
    """Since 5.13."""
    GUARD = 1 << 58
    """Since 6.15."""
    FILE = 1 << 61
    """File page or shared memory; also the vdso, and the huge zero page."""
    SWAP = 1 << 62
    """Any entry that is not present and not empty."""
    PRESENT = 1 << 63


# Plain integers: `raw & PM.FRAME` would be an instance of PM.
_FRAME: Final = PM.FRAME.value
_SWAP_TYPE: Final = PM.SWAP_TYPE.value
_SWAP_OFFSET_SHIFT: Final = 5
_SWAP_TYPES: Final = 32

_HIDDEN: Final = NotVisible("frame numbers and swap entries need CAP_SYS_ADMIN")


class EntryKind(enum.Enum):
    """What an entry holds. The value is the name used in JSON."""

    EMPTY = "empty"
    PRESENT = "present"
    SWAP = "swap"
    HWPOISON = "hwpoison"
    MIGRATION = "migration"
    DEVICE_PRIVATE = "device_private"
    DEVICE_EXCLUSIVE = "device_exclusive"
    MARKER = "marker"
    SWAPIN_ERROR = "swapin_error"
    SPECIAL = "special"
    HIDDEN = "hidden"


@dataclass(frozen=True, slots=True)
class SwapMeaning:
    """What one swap type number stands for. `access` is "read", "write", ... or ""."""

    kind: EntryKind
    access: str = ""


@dataclass(frozen=True, slots=True)
class SwapConfig:
    """The three options that take numbers from the real swap areas."""

    memory_failure: bool = True
    migration: bool = True
    device_private: bool = True


@dataclass(frozen=True, slots=True)
class Empty:
    """Nothing there, or a page of a VM_PFNMAP area: the kernel does not walk those."""


@dataclass(frozen=True, slots=True)
class Present:
    """A page is there. `file` is false for anonymous pages, the zero page and special PTEs."""

    pfn: Fact[Pfn]
    exclusive: bool
    file: bool


@dataclass(frozen=True, slots=True)
class SwapSlot:
    """Swapped out: number of the swap area, and slot in pages."""

    area: int
    offset: int


@dataclass(frozen=True, slots=True)
class Hwpoison:
    """The page was lost to a memory error; touching it gives SIGBUS."""

    pfn: Pfn


@dataclass(frozen=True, slots=True)
class Migration:
    """The page is being moved right now. `access`: read, read-exclusive or write."""

    pfn: Pfn
    access: str


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """The page is on a device, or lent to one (`exclusive`). `access` may be ""."""

    pfn: Pfn
    exclusive: bool
    access: str


@dataclass(frozen=True, slots=True)
class Marker:
    """No page, but a note in the page table."""

    uffd_wp: bool
    poisoned: bool
    guard: bool


@dataclass(frozen=True, slots=True)
class SpecialEntry:
    """Not present, and the type number has several meanings or none that is known."""

    swap_type: int
    offset: int
    candidates: tuple[SwapMeaning, ...]


@dataclass(frozen=True, slots=True)
class Hidden:
    """Not present, and the reader may not see of which kind."""

    why: NotVisible


Target: TypeAlias = (
    Empty | Present | SwapSlot | Hwpoison | Migration | DeviceEntry | Marker | SpecialEntry | Hidden
)


@dataclass(frozen=True, slots=True)
class PagemapEntry:
    """One decoded entry. `soft_dirty` may come from the whole area, not from the page."""

    raw: int
    soft_dirty: bool
    uffd_wp: bool
    target: Target

    @property
    def kind(self) -> EntryKind:
        """The kind of what the entry holds."""
        match self.target:
            case Empty():
                return EntryKind.EMPTY
            case Present():
                return EntryKind.PRESENT
            case SwapSlot():
                return EntryKind.SWAP
            case Hwpoison():
                return EntryKind.HWPOISON
            case Migration():
                return EntryKind.MIGRATION
            case DeviceEntry():
                lent = self.target.exclusive
                return EntryKind.DEVICE_EXCLUSIVE if lent else EntryKind.DEVICE_PRIVATE
            case Marker():
                return EntryKind.MARKER
            case SpecialEntry():
                kinds = {meaning.kind for meaning in self.target.candidates}
                return kinds.pop() if len(kinds) == 1 else EntryKind.SPECIAL
            case Hidden():
                return EntryKind.HIDDEN
            case _:
                assert_never(self.target)


def decode_entry(
    raw: int,
    release: KernelRelease = UNKNOWN_RELEASE,
    config: SwapConfig | None = None,
) -> PagemapEntry:
    """Decode one entry. `config` None means that the kernel's options are not known.

    Exact for presence and flags; frames and kinds need CAP_SYS_ADMIN, kinds also the
    release and the options.  Raises FormatError for a number that is no u64.
    """
    if not 0 <= raw < 1 << 64:
        raise FormatError(f"{raw:#x} is not a 64-bit entry")
    if raw & PM.PRESENT:
        number = raw & _FRAME
        # Frame 0 is never mapped into a process on x86: the field was blanked.
        pfn: Fact[Pfn] = Pfn(number) if number else _HIDDEN
        target: Target = Present(pfn, bool(raw & PM.EXCLUSIVE), bool(raw & PM.FILE))
    elif raw & PM.SWAP:
        target = _not_present(raw, release, config)
    else:
        target = Empty()
    return PagemapEntry(raw, bool(raw & PM.SOFT_DIRTY), bool(raw & PM.UFFD_WP), target)


def _not_present(raw: int, release: KernelRelease, config: SwapConfig | None) -> Target:
    swap_type = raw & _SWAP_TYPE
    offset = (raw & _FRAME) >> _SWAP_OFFSET_SHIFT
    if raw & PM.GUARD:
        # This bit needs no privilege and no knowledge of the release.
        return Marker(bool(offset & 1), bool(offset & 2), guard=True)
    if not raw & _FRAME:
        # Slot 0 of area 0 is the swap header, so an all-zero field was blanked.
        return Hidden(_HIDDEN)
    meanings = swap_meanings(swap_type, release, config)
    kinds = {meaning.kind for meaning in meanings}
    if len(kinds) != 1:
        return SpecialEntry(swap_type, offset, meanings)
    # Releases can agree on the kind and differ on the access; then the access is left out.
    access = meanings[0].access if len(meanings) == 1 else ""
    kind = meanings[0].kind
    if kind is EntryKind.SWAP:
        return SwapSlot(swap_type, offset)
    if kind is EntryKind.HWPOISON:
        return Hwpoison(Pfn(offset))
    if kind is EntryKind.MIGRATION:
        return Migration(Pfn(offset), access)
    if kind in (EntryKind.DEVICE_PRIVATE, EntryKind.DEVICE_EXCLUSIVE):
        return DeviceEntry(Pfn(offset), kind is EntryKind.DEVICE_EXCLUSIVE, access)
    if kind is EntryKind.MARKER:
        return Marker(bool(offset & 1), bool(offset & 2), bool(offset & 4))
    return SpecialEntry(swap_type, offset, meanings)


def swap_meanings(
    swap_type: int,
    release: KernelRelease = UNKNOWN_RELEASE,
    config: SwapConfig | None = None,
) -> tuple[SwapMeaning, ...]:
    """Return every meaning that `swap_type` can have: one where it is certain.

    A release between two that were read gets the meanings of both.  Before 6.1 and
    without a release every layout that was read is a candidate; after 7.3 the two newest.
    """
    if not 0 <= swap_type < _SWAP_TYPES:
        raise FormatError(f"swap type {swap_type} does not fit into 5 bits")
    configs = [config] if config is not None else _EVERY_CONFIG
    found = {
        _meaning(layout, swap_type, option): None
        for layout in _layouts(release)
        for option in configs
    }
    return tuple(found)


# Meanings from number 31 downwards, in blocks that an option switches off as a whole.
_Block: TypeAlias = tuple[str, tuple[SwapMeaning, ...]]

_MARKER: Final = SwapMeaning(EntryKind.MARKER)
_MIGRATION: Final[_Block] = (
    "migration",
    (
        SwapMeaning(EntryKind.MIGRATION, "write"),
        SwapMeaning(EntryKind.MIGRATION, "read-exclusive"),
        SwapMeaning(EntryKind.MIGRATION, "read"),
    ),
)
_HWPOISON: Final[_Block] = ("memory_failure", (SwapMeaning(EntryKind.HWPOISON),))
_DEVICE_FOUR: Final[_Block] = (
    "device_private",
    (
        SwapMeaning(EntryKind.DEVICE_EXCLUSIVE, "read"),
        SwapMeaning(EntryKind.DEVICE_EXCLUSIVE, "write"),
        SwapMeaning(EntryKind.DEVICE_PRIVATE, "read"),
        SwapMeaning(EntryKind.DEVICE_PRIVATE, "write"),
    ),
)
_DEVICE_THREE: Final[_Block] = (
    "device_private",
    (
        SwapMeaning(EntryKind.DEVICE_EXCLUSIVE),
        SwapMeaning(EntryKind.DEVICE_PRIVATE, "read"),
        SwapMeaning(EntryKind.DEVICE_PRIVATE, "write"),
    ),
)

_LAYOUT_6_1: Final[tuple[_Block, ...]] = (
    ("", (SwapMeaning(EntryKind.SWAPIN_ERROR), _MARKER)),
    _DEVICE_FOUR,
    _MIGRATION,
    _HWPOISON,
)
_LAYOUT_6_12: Final[tuple[_Block, ...]] = (("", (_MARKER,)), _DEVICE_FOUR, _MIGRATION, _HWPOISON)
_LAYOUT_7_2: Final[tuple[_Block, ...]] = (("", (_MARKER,)), _DEVICE_THREE, _MIGRATION, _HWPOISON)

_EVERY_CONFIG: Final = [
    SwapConfig(*options) for options in itertools.product((True, False), repeat=3)
]


def _layouts(release: KernelRelease) -> tuple[tuple[_Block, ...], ...]:
    version = (release.major, release.minor)
    if version == (6, 1):
        return (_LAYOUT_6_1,)
    if version == (6, 12):
        return (_LAYOUT_6_12,)
    if (7, 2) <= version <= (7, 3):
        return (_LAYOUT_7_2,)
    if (6, 2) <= version < (6, 12):
        return (_LAYOUT_6_1, _LAYOUT_6_12)
    if version > (6, 12):
        return (_LAYOUT_6_12, _LAYOUT_7_2)
    return (_LAYOUT_6_1, _LAYOUT_6_12, _LAYOUT_7_2)


def _meaning(layout: tuple[_Block, ...], swap_type: int, config: SwapConfig) -> SwapMeaning:
    number = _SWAP_TYPES - 1
    enabled = {
        "": True,
        "migration": config.migration,
        "memory_failure": config.memory_failure,
        "device_private": config.device_private,
    }
    for option, meanings in layout:
        if not enabled[option]:
            continue
        for meaning in meanings:
            if number == swap_type:
                return meaning
            number -= 1
    return SwapMeaning(EntryKind.SWAP)

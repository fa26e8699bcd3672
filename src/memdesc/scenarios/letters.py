"""The letter that stands for a page: one function, for the model and for every kernel.

>>> area = RawVma(0x1000, 0x2000, "rw-p", 0, "", (), {})
>>> letter_of(RawPage(PM.PRESENT | 0x1234, 0x400005828), KernelRelease(7, 2), area=area)
'A'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.pagemap import PM, EntryKind, SwapConfig, decode_entry
from memdesc.kernels.processes import process_rules
from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.scenarios.raw import RawPage, RawVma

__all__ = ["LETTERS", "kind_of", "letter_of"]

LETTERS: Final[Mapping[str, str]] = {
    "-": "no mapping",
    ".": "nothing present",
    "z": "zero page",
    "Z": "huge zero page",
    "A": "anonymous, exclusive to one process",
    "a": "anonymous, not exclusive",
    "H": "anonymous, exclusive, in a large folio mapped by one PMD",
    "h": "anonymous, not exclusive, in a large folio mapped by one PMD",
    "L": "anonymous, exclusive, in a large folio mapped by PTEs",
    "l": "anonymous, not exclusive, in a large folio mapped by PTEs",
    "K": "merged by KSM",
    "F": "file, clean",
    "D": "file, dirty",
    "S": "shared memory, clean",
    "T": "shared memory, dirty",
    "U": "hugetlb, anonymous and exclusive",
    "u": "hugetlb, other",
    "s": "swapped out",
    "w": "mapped, and in the swap cache",
    "!": "lost to a memory error",
    "g": "guard",
    "m": "another marker, or on its way to another frame",
    "d": "mapped without a struct page (VM_PFNMAP)",
    "k": "a page of the kernel",
}
"""What is drawn for a page, and what it means."""


def letter_of(
    page: RawPage,
    release: KernelRelease,
    *,
    area: RawVma | None,
    head: RawPage | None = None,
    merged: bool = False,
) -> str:
    """The letter of a page in `area` (None: nothing is mapped there).

    `head` is the first page of its folio where that is known: kernels before 6.10 show tails
    without most of its flags. `merged` says that smaps counts every page of the area that could
    be KSM's as KSM's: kernels of 6.10 to 6.12 set the KSM flag on all anonymous memory.

    On 6.12 and 7.2 every page of a large folio shows the first one's exclusive mark; 6.1 shows
    each its own, and of a folio that is mapped by a PMD only the first has one.
    """
    if area is None:
        return "-"
    if not page.entry & PM.PRESENT:
        return _absent(page.entry, release, area)
    behaviour = behaviour_of(release)
    flags = page.flags
    if head is not None and flags & KPF.COMPOUND_TAIL and behaviour.tails_show_own_flags:
        own = 0 if page.huge or flags & KPF.HUGE else KPF.OWNER_2.value
        flags = (flags & own) | (head.flags & ~own)
    if flags & KPF.ZERO_PAGE:
        return "Z" if flags & KPF.THP else "z"
    exclusive = bool(flags & KPF.OWNER_2)
    if flags & KPF.HUGE:
        return "U" if flags & KPF.ANON and exclusive else "u"
    if flags & KPF.ANON:
        if flags & KPF.SWAPCACHE and flags & KPF.SWAPBACKED:
            return "w"
        if merged and not exclusive and not flags & KPF.THP:
            return "K"
        if flags & KPF.KSM and not behaviour.ksm_bit_on_all_anon:
            return "K"
        kind = ("H" if page.huge else "L") if flags & KPF.THP else "A"
        return kind if exclusive else kind.lower()
    if flags & KPF.SWAPBACKED:
        return "T" if flags & KPF.DIRTY else "S"
    if page.entry & PM.FILE and flags & (KPF.UPTODATE | KPF.LRU | KPF.DIRTY):
        return "D" if flags & KPF.DIRTY else "F"
    return "k"


def kind_of(entry: int, release: KernelRelease) -> EntryKind:
    """What an entry that is not present is, with the options of Debian's builds: they decide
    which numbers are swap areas and which are not."""
    config = SwapConfig(device_private=process_rules(release).device_private)
    return decode_entry(entry, release, config).kind


# --- helpers -----------------------------------------------------------------------------


def _absent(entry: int, release: KernelRelease, area: RawVma) -> str:
    if not entry & (PM.SWAP | PM.GUARD):
        # The kernel does not walk VM_PFNMAP areas: their entries read 0.
        return "d" if "pf" in area.flags else "."
    if entry & PM.GUARD:
        return "g"
    return {EntryKind.SWAP: "s", EntryKind.HWPOISON: "!"}.get(kind_of(entry, release), "m")

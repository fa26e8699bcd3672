"""What can be seen of processes after a step, in one form for the model and for real kernels.

Both sides give the kernel's own words (`Seen`): entries of /proc/PID/pagemap, words of
/proc/kpageflags and /proc/kpagecount, fields of smaps. `observe` turns them into an `Observation`,
in which a frame's number is only an identity and flags that come and go by themselves are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from memdesc.kernels.kpageflags import KPF, flag_names
from memdesc.kernels.pagemap import PM, EntryKind, decode_entry
from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.scenarios.places import PAGE, Placement

__all__ = [
    "LETTERS",
    "SMAPS_FIELDS",
    "VOLATILE",
    "Area",
    "Observation",
    "PageState",
    "RawPage",
    "RawVma",
    "Seen",
    "letter_of",
    "observe",
]

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

VOLATILE: Final = KPF.ACTIVE | KPF.REFERENCED | KPF.IDLE | KPF.RECLAIM | KPF.LOCKED
"""Flags that come and go by themselves: compared only where a scenario asks for them."""

SMAPS_FIELDS: Final = (
    "Rss",
    "Pss",
    "Shared_Clean",
    "Shared_Dirty",
    "Private_Clean",
    "Private_Dirty",
    "Anonymous",
    "KSM",
    "LazyFree",
    "AnonHugePages",
    "ShmemPmdMapped",
    "FilePmdMapped",
    "Shared_Hugetlb",
    "Private_Hugetlb",
    "Swap",
    "SwapPss",
    "Locked",
)
"""What is compared of smaps. Left out are Referenced (accessed bits, which the processor and
aging set) and what follows from the area alone (Size, page sizes, THPeligible)."""


@dataclass(frozen=True, slots=True)
class RawPage:
    """One virtual page in the kernel's words."""

    entry: int
    """/proc/PID/pagemap."""
    flags: int = 0
    """/proc/kpageflags of the frame; 0 where none is present."""
    mapcount: int = 0
    """/proc/kpagecount."""
    refs: int | None = None
    """The folio's reference count, where it can be seen."""
    content: int | None = None
    """First word of the page; None where nothing is present or it could not be read."""
    huge: bool | None = None
    """Mapped by a PMD; None where this cannot be seen."""
    aliased: bool = False
    """The page's words are not all the same."""


@dataclass(frozen=True, slots=True)
class RawVma:
    """One virtual memory area, of /proc/PID/smaps."""

    start: int
    end: int
    """Addresses, half-open."""
    perms: str
    """"rw-p"."""
    offset: int
    """Bytes, as shown."""
    path: str
    """Name of the file, "" for anonymous memory; [heap] and such as the kernel writes them."""
    flags: tuple[str, ...]
    """VmFlags, two letters each."""
    sizes: Mapping[str, int]
    """Fields in kB: Rss, Pss, Shared_Clean, ..., Locked."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything seen after one step: what a runner returns."""

    pages: Mapping[str, Mapping[str, Sequence[RawPage]]]
    """process -> mapping's name -> its pages, for every process that lives."""
    vmas: Mapping[str, Sequence[RawVma]]
    """process -> areas that lie where the scenario places mappings, ascending."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """System counters by name, as "ksm.pages_shared" or "vmstat.thp_fault_alloc"."""


@dataclass(frozen=True, slots=True)
class PageState:
    """One virtual page, as it is compared."""

    letter: str
    frame: int | None = None
    """Which frame, or which slot of swap: numbered in the order of first appearance."""
    mapcount: int = 0
    refs: int | None = None
    flags: tuple[str, ...] = ()
    """Names of kpageflags, without the volatile ones."""
    volatile: tuple[str, ...] = field(default=(), compare=False)
    file: bool = False
    """pagemap's bit 61."""
    mapped_once: bool = False
    """pagemap's bit 56."""
    uffd_wp: bool = False
    soft_dirty: bool | None = None
    """None where the scenario does not ask: every new area is soft-dirty."""
    content: str | None = None
    """A tag of the scenario, 0, or ? for anything else; None where nothing can be read."""


@dataclass(frozen=True, slots=True)
class Area:
    """One virtual memory area, named by where it lies in the scenario's mappings."""

    name: str
    """The mapping that its first page is part of; "" beside all of them."""
    first: int
    """Its first page, counted from that mapping's first (from address 0 where there is none)."""
    pages: int
    perms: str
    file: str
    """Name of the file, without folders; "" for anonymous memory."""
    page: int
    """Offset in the file, in pages."""
    flags: tuple[str, ...]
    """VmFlags."""
    sizes: Mapping[str, int]
    """The fields of `SMAPS_FIELDS` that this kernel has, in kB."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that is compared after a step."""

    pages: Mapping[str, Mapping[str, tuple[PageState, ...]]] = field(default_factory=dict)
    """process -> mapping -> its pages."""
    areas: Mapping[str, tuple[Area, ...]] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)


Placed: TypeAlias = Mapping[str, Mapping[str, Placement]]
"""process -> mapping -> where it lies."""


def observe(
    seen: Seen,
    placed: Placed,
    release: KernelRelease,
    *,
    tags: Mapping[int, str],
    soft_dirty: bool = False,
) -> Observation:
    """Turn the kernel's words into what is compared.

    `tags` names the contents of the scenario by their words. Processes and mappings are taken in
    the order of `placed`, so that frames get the same numbers on both sides.
    """
    frames: dict[tuple[str, int], int] = {}
    pages: dict[str, dict[str, tuple[PageState, ...]]] = {}
    areas: dict[str, tuple[Area, ...]] = {}
    for process, names in placed.items():
        if process not in seen.pages:
            continue
        vmas = seen.vmas.get(process, ())
        merged = _fully_merged(seen.pages[process], names, vmas, release)
        reader = _Reader(release, tags, frames, soft_dirty)
        pages[process] = {
            name: reader.pages(seen.pages[process].get(name, ()), place, vmas, merged)
            for name, place in names.items()
        }
        areas[process] = tuple(_area(vma, names, soft_dirty) for vma in vmas)
    return Observation(pages, areas, dict(seen.counters))


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


# --- helpers -----------------------------------------------------------------------------


def _absent(entry: int, release: KernelRelease, area: RawVma) -> str:
    if not entry & (PM.SWAP | PM.GUARD):
        # The kernel does not walk VM_PFNMAP areas: their entries read 0.
        return "d" if "pf" in area.flags else "."
    decoded = decode_entry(entry, release)
    if entry & PM.GUARD:
        return "g"
    if decoded.kind is EntryKind.SWAP:
        return "s"
    if decoded.kind is EntryKind.HWPOISON:
        return "!"
    return "m"


class _Reader:
    """Turns the pages of one process into states. Frames are numbered over all processes."""

    def __init__(
        self,
        release: KernelRelease,
        tags: Mapping[int, str],
        frames: dict[tuple[str, int], int],
        soft_dirty: bool,
    ) -> None:
        self._release = release
        self._behaviour = behaviour_of(release)
        self._tags = tags
        self._frames = frames
        self._soft_dirty = soft_dirty

    def pages(
        self,
        raws: Sequence[RawPage],
        place: Placement,
        vmas: Sequence[RawVma],
        merged: frozenset[int],
    ) -> tuple[PageState, ...]:
        found: list[PageState] = []
        head: RawPage | None = None
        area: RawVma | None = None
        for index, raw in enumerate(raws):
            address = place.address + index * PAGE
            if area is None or not area.start <= address < area.end:
                area = next((vma for vma in vmas if vma.start <= address < vma.end), None)
            if not raw.flags & KPF.COMPOUND_TAIL:
                head = raw
            letter = letter_of(
                raw,
                self._release,
                area=area,
                head=head,
                merged=area is not None and area.start in merged,
            )
            found.append(self._state(raw, letter))
        return tuple(found)

    def _state(self, raw: RawPage, letter: str) -> PageState:
        if not raw.entry & PM.PRESENT:
            return PageState(
                letter,
                frame=self._number(self._target(raw.entry)),
                uffd_wp=bool(raw.entry & PM.UFFD_WP),
                soft_dirty=self._dirty(raw.entry),
            )
        flags = raw.flags
        if self._behaviour.ksm_bit_on_all_anon:
            flags &= ~KPF.KSM.value
        return PageState(
            letter,
            frame=self._number(("frame", raw.entry & PM.FRAME)),
            mapcount=raw.mapcount,
            refs=raw.refs,
            flags=tuple(flag_names(flags & ~VOLATILE.value)),
            volatile=tuple(flag_names(flags & VOLATILE.value)),
            file=bool(raw.entry & PM.FILE),
            mapped_once=bool(raw.entry & PM.EXCLUSIVE),
            uffd_wp=bool(raw.entry & PM.UFFD_WP),
            soft_dirty=self._dirty(raw.entry),
            content=self._content(raw),
        )

    def _number(self, identity: tuple[str, int] | None) -> int | None:
        if identity is None:
            return None
        return self._frames.setdefault(identity, len(self._frames))

    def _target(self, entry: int) -> tuple[str, int] | None:
        """What an entry that is not present names: a slot of swap, or a frame."""
        if not entry & PM.SWAP or entry & PM.GUARD:
            return None
        kind = decode_entry(entry, self._release).kind
        field_value = entry & PM.FRAME
        if kind is EntryKind.SWAP:
            return ("swap", field_value)
        if kind in (EntryKind.HWPOISON, EntryKind.MIGRATION):
            return ("frame", field_value >> 5)
        return None

    def _dirty(self, entry: int) -> bool | None:
        return bool(entry & PM.SOFT_DIRTY) if self._soft_dirty else None

    def _content(self, raw: RawPage) -> str | None:
        if raw.content is None:
            return None
        return "?" if raw.aliased else self._tags.get(raw.content, "?")


def _fully_merged(
    pages: Mapping[str, Sequence[RawPage]],
    names: Mapping[str, Placement],
    vmas: Sequence[RawVma],
    release: KernelRelease,
) -> frozenset[int]:
    """Starts of the areas in which smaps says of every possible page that it is KSM's."""
    if not behaviour_of(release).ksm_bit_on_all_anon:
        return frozenset()
    found = set()
    for vma in vmas:
        wanted = vma.sizes.get("KSM", 0) * 1024 // PAGE
        if not wanted:
            continue
        candidates: set[int] = set()
        zeroes: set[int] = set()
        for name, place in names.items():
            for index, raw in enumerate(pages.get(name, ())):
                address = place.address + index * PAGE
                if not vma.start <= address < vma.end or not raw.entry & PM.PRESENT:
                    continue
                if raw.flags & KPF.ZERO_PAGE:
                    zeroes.add(address)
                elif raw.flags & KPF.ANON and not raw.flags & (KPF.OWNER_2 | KPF.THP):
                    candidates.add(address)
        # With use_zero_pages, smaps counts pages that became the zero page as well.
        if wanted in (len(candidates), len(candidates) + len(zeroes)):
            found.add(vma.start)
    return frozenset(found)


def _area(vma: RawVma, names: Mapping[str, Placement], soft_dirty: bool) -> Area:
    owner = next((item for item in names.items() if item[1].holds(vma.start)), None)
    name, base = (owner[0], owner[1].address) if owner else ("", 0)
    return Area(
        name=name,
        first=(vma.start - base) // PAGE,
        pages=(vma.end - vma.start) // PAGE,
        perms=vma.perms,
        file=_file_name(vma.path),
        page=vma.offset // PAGE,
        flags=tuple(flag for flag in vma.flags if soft_dirty or flag != "sd"),
        sizes={key: vma.sizes[key] for key in SMAPS_FIELDS if key in vma.sizes},
    )


def _file_name(path: str) -> str:
    """`path` without folders: where a scenario's file systems are mounted is nobody's business."""
    if path.startswith("["):
        return path
    return path.removesuffix(" (deleted)").rpartition("/")[2].removeprefix("memfd:")

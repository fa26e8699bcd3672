"""What can be seen of processes after a step, in one form for the model and for real kernels.

Both sides give the kernel's own words (`Seen`): entries of /proc/PID/pagemap, words of
/proc/kpageflags and /proc/kpagecount, fields of smaps. `observe` turns them into an `Observation`,
in which a frame's number is only an identity and flags that come and go by themselves are gone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from memdesc.kernels.kpageflags import KPF, flag_names
from memdesc.kernels.pagemap import PM, EntryKind
from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.scenarios.letters import LETTERS, kind_of, letter_of
from memdesc.scenarios.places import PAGE, Placement
from memdesc.scenarios.raw import RawPage, RawVma, Seen

__all__ = [
    "ASKED_SMAPS_FIELDS",
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
"""What is compared of smaps. Left out is what follows from the area alone (Size, page sizes,
THPeligible)."""

ASKED_SMAPS_FIELDS: Final = ("Referenced",)
"""Compared only where a scenario asks: accessed bits, which the processor sets at every use."""


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
    """The fields of `SMAPS_FIELDS` that this kernel has, and of those asked for, in kB."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that is compared after a step."""

    pages: Mapping[str, Mapping[str, tuple[PageState, ...]]] = field(default_factory=dict)
    """process -> mapping -> its pages."""
    areas: Mapping[str, tuple[Area, ...]] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    frames: Mapping[str, tuple[PageState, ...]] = field(default_factory=dict)
    """Name of remembered frames -> them, where rows ask: what is free may be anybody's later."""


Placed: TypeAlias = Mapping[str, Mapping[str, Placement]]
"""process -> mapping -> where it lies."""


def observe(
    seen: Seen,
    placed: Placed,
    release: KernelRelease,
    *,
    tags: Mapping[int, str],
    soft_dirty: bool = False,
    referenced: bool = False,
) -> Observation:
    """Turn the kernel's words into what is compared.

    `tags` names the contents of the scenario by their words. Processes and mappings are taken in
    the order of `placed`, so that frames get the same numbers on both sides. `soft_dirty`,
    `referenced`: whether what a scenario has to ask for is seen as well.
    """
    numbers: dict[tuple[str, int], int] = {}
    pages: dict[str, dict[str, tuple[PageState, ...]]] = {}
    areas: dict[str, tuple[Area, ...]] = {}
    fields = SMAPS_FIELDS + (ASKED_SMAPS_FIELDS if referenced else ())
    for process, names in placed.items():
        if process not in seen.pages:
            continue
        vmas = seen.vmas.get(process, ())
        merged = _fully_merged(seen.pages[process], names, vmas, release)
        reader = _Reader(release, tags, numbers, soft_dirty)
        pages[process] = {
            name: reader.pages(seen.pages[process].get(name, ()), place, vmas, merged)
            for name, place in names.items()
        }
        areas[process] = tuple(_area(vma, names, fields, soft_dirty) for vma in vmas)
    mine = _Reader(release, tags, numbers, soft_dirty=False)
    remembered = {name: mine.frames(raws) for name, raws in seen.frames.items()}
    return Observation(pages, areas, dict(seen.counters), remembered)


# --- helpers -----------------------------------------------------------------------------


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
                head=RawPage(raw.entry, raw.head_flags) if raw.head_flags else head,
                merged=area is not None and area.start in merged,
            )
            found.append(self._state(raw, letter))
        return tuple(found)

    def frames(self, raws: Sequence[RawPage]) -> tuple[PageState, ...]:
        """Frames without mappings. Of a free one only that is told: BUDDY shows how far it got."""
        return tuple(
            self._state(replace(raw, flags=0, mapcount=0, content=None), "")
            if raw.refs == 0 or raw.flags & KPF.BUDDY
            else self._state(raw, "")
            for raw in raws
        )

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
        kind = kind_of(entry, self._release)
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


def _area(
    vma: RawVma, names: Mapping[str, Placement], fields: Sequence[str], soft_dirty: bool
) -> Area:
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
        sizes={key: vma.sizes[key] for key in fields if key in vma.sizes},
    )


def _file_name(path: str) -> str:
    """`path` without folders: where a scenario's file systems are mounted is nobody's business."""
    if path.startswith("["):
        return path
    name = path.removesuffix(" (deleted)").rpartition("/")[2].removeprefix("memfd:")
    # A file that never had a name is shown by its inode's number (fs/dcache.c:d_mark_tmpfile).
    return re.sub(r"#\d+$", "#", name)

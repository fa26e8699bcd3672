"""How each planted kind shows in pagemap, kpageflags and kpagecount, kernel by kernel.

REFERENCED, ACTIVE, IDLE and RECLAIM are reclaim's state and are not compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from memdesc.kernels.kpageflags import BITS as NAMED
from memdesc.vm.record import Recording

BITS = {bit.name: bit.bit for bit in NAMED.values()}
_IGNORED = ("REFERENCED", "ACTIVE", "IDLE", "RECLAIM")
_FRAME = (1 << 55) - 1
_PRESENT, _SWAPPED, _FILE, _GUARD, _PROTECTED, _EXCLUSIVE = (
    1 << bit for bit in (63, 62, 61, 58, 57, 56)
)

# Letters of the expectation strings.
LETTERS = {
    "U": "UPTODATE", "D": "DIRTY", "L": "LRU", "M": "MMAP", "N": "ANON", "B": "SWAPBACKED",
    "X": "OWNER_2", "P": "THP", "h": "COMPOUND_HEAD", "t": "COMPOUND_TAIL", "H": "HUGE", "K": "KSM",
    "V": "UNEVICTABLE", "m": "MLOCKED", "p": "PRIVATE", "Z": "ZERO_PAGE", "R": "RESERVED",
    "S": "SWAPCACHE", "O": "OWNER_PRIVATE", "W": "HWPOISON",
}  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """What the pages of a kind show: flag words (any of them), and how often a page is mapped."""

    words: tuple[str, ...]
    mapped: tuple[int, ...] | None = (1,)  # None: by every process
    tails: tuple[str, ...] = ()  # of tail pages on 6.1, which keep only their own flags
    file: bool | None = None


ANON = "ULMNBX"
THP_TAILS = ("MNPt", "MNPtX")
EXPECTED: dict[str, Expected] = {
    "anon": Expected((ANON,), file=False),
    "anon_sparse": Expected((ANON,), file=False),
    "anon_forked": Expected(("ULMNB",), (3, 4), file=False),
    "file_private_written": Expected(("ULMNB",), (4,), file=False),
    "zero_page": Expected(("RZ",), (0,), file=False),
    "huge_zero_page": Expected(("PZh", "PZt"), (0,), file=True),
    "anon_thp": Expected(("ULMNBPhX", "ULMNBPtX"), tails=THP_TAILS, file=False),
    "anon_mthp": Expected(("ULMNBPhX", "ULMNBPtX"), file=False),
    "thp_forked": Expected(("ULMNBPh", "ULMNBPt"), (4,), tails=("MNPt",), file=False),
    "thp_pte_mapped": Expected(("UDLMNBPhX", "UDLMNBPtX"), tails=THP_TAILS, file=False),
    "thp_partial_mapped": Expected(("UDLMNBPhX", "UDLMNBPtX"), tails=THP_TAILS, file=False),
    "thp_partial_unmapped": Expected(("UDLMNBPtX",), (0,), tails=THP_TAILS),
    "madv_free": Expected(("ULMNX",), file=False),
    "anon_prot_none": Expected((ANON,), file=False),
    "anon_uffd_wp": Expected((ANON,), file=False),
    "anon_mlocked": Expected(("ULMNBVmX",), file=False),
    "swap_cache": Expected(("ULMNBSOX",), file=False),
    "ksm": Expected(("UDLMNBK",), (2, 128), file=False),
    "tmpfs_mapped": Expected(("UDLMB",), file=True),
    "memfd": Expected(("UDLMB",), (1, 4), file=True),
    "shared_anon": Expected(("UDLMB",), (4,), file=True),
    "sysv_shm": Expected(("UDLMB",), file=True),
    "tmpfs_unmapped": Expected(("UDLB",), (0,)),
    "tmpfs_huge": Expected(("UDLMBPh", "UDLMBPt"), tails=("MPt",), file=True),
    "hugetlb_anon": Expected(("UMNHhX", "UMNHtX"), tails=("MNHt",)),
    "hugetlb_memfd": Expected(("UDMHh", "UDMHt"), tails=("MHt",), file=True),
    "ext4_mapped_written": Expected(("ULMp", "ULMpPh", "ULMpPt"), file=True),
    "ext4_mapped_read": Expected(("ULMX", "ULMPhX", "ULMPtX"), (1, 4), file=True),
    "ext4_mapped_dirty": Expected(("UDLMp", "UDLMpPh", "UDLMpPt"), file=True),
    "ext4_mlocked": Expected(("ULMpVm", "ULMpVmPh", "ULMpVmPt"), file=True),
    "ext4_unmapped_dirty": Expected(("UDLp", "UDLpPh", "UDLpPt"), (0,)),
    "ext4_in_pipe": Expected(("ULX", "ULPhX", "ULPtX"), (0,)),
    "ext4_unmapped_read": Expected(("ULX", "ULPhX", "ULPtX"), (0,)),
    "secretmem": Expected(("UDLMV",), file=True),
    "vmspliced": Expected((ANON,), file=False),
    "vmspliced_unmapped": Expected(("ULNBX",), (0,)),
    "io_uring_fixed": Expected((ANON,), file=False),
    "io_uring_ring": Expected(("M", "Mh", "Mt")),
    "packet_ring": Expected(("Mh", "Mt")),
    "perf_ring": Expected(("M",)),
    "bpf_array_mapped": Expected(("M",)),
    # The vdso and (7.2) the zero page are part of it.
    "kernel_image": Expected(("R", "MR", "ZR"), None),
    "vdso": Expected(("MR",), None),
    "vvar": Expected(("M",), None),
    "vvar_vclock": Expected(("M",), None),
}
NOT_PRESENT = {
    "anon_swapped": "swap entry",
    "anon_swapped_zram": "swap entry",
    "memfd_swapped": "empty",
    "guard": "guard",
}
MAYBE_PRESENT = {"vdso", "vvar", "vvar_vclock"}
POISONED = {"hwpoison_anon", "hwpoison_file", "hwpoison_free"}


@dataclass
class Result:
    """What was found for one kind."""

    pages: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)


def letters(flags: int) -> str:
    """A flag word in short form; flags without a letter are spelled out."""
    names = {name for name, bit in BITS.items() if flags >> bit & 1} - set(_IGNORED)
    short = "".join(letter for letter, name in LETTERS.items() if name in names)
    return short + "".join(f"+{name}" for name in sorted(names - set(LETTERS.values()))) or "-"


def mask_of(word: str) -> int:
    """The flag word of an expectation."""
    return sum(1 << BITS[LETTERS[letter]] for letter in word)


@dataclass(frozen=True)
class Behaviour:
    """What one series shows differently."""

    tails_keep_tail_flags_only: bool = False
    every_anon_is_ksm: bool = False
    perf_ring_has_no_frames: bool = False


BEHAVIOUR = {
    "6.1": Behaviour(tails_keep_tail_flags_only=True),
    "6.12": Behaviour(every_anon_is_ksm=True),
    "7.2": Behaviour(perf_ring_has_no_frames=True),
}


class Pages:
    """The page files of one recording."""

    def __init__(self, recording: Recording) -> None:
        self.root = recording.tree
        self.flags = memoryview((self.root / "proc/kpageflags").read_bytes()).cast("Q")
        self.counts = memoryview((self.root / "proc/kpagecount").read_bytes()).cast("Q")
        self.processes = sum(1 for path in self.root.glob("proc/[0-9]*/maps"))

    def pagemap(self, pid: int, address: int, pages: int) -> memoryview:
        """Pagemap entries of a range."""
        with (self.root / f"proc/{pid}/pagemap").open("rb") as file:
            file.seek(address // 4096 * 8)
            return memoryview(file.read(pages * 8).ljust(pages * 8, b"\0")).cast("Q")

    def of(self, region: dict[str, Any]) -> Iterator[tuple[int | None, int]]:
        """(page frame or None, pagemap entry or 0) of each page of a region."""
        if "pfn_start" in region:
            for frame in range(region["pfn_start"], region["pfn_start"] + region["nr_pages"]):
                yield frame, 0
            return
        step = 512 if region["kind"] == "anon_sparse" else 1
        for entry in self.pagemap(region["pid"], region["address"], region["nr_pages"])[::step]:
            yield (entry & _FRAME if entry & _PRESENT else None), entry


def examine(recording: Recording, behaviour: Behaviour) -> dict[str, Result]:
    """Compare every planted page with the expectation for its kind."""
    old = behaviour.tails_keep_tail_flags_only
    no_perf = behaviour.perf_ring_has_no_frames
    every_anon_is_ksm = behaviour.every_anon_is_ksm
    ignored = sum(1 << BITS[name] for name in _IGNORED)
    pages = Pages(recording)
    results: dict[str, Result] = {}
    for region in recording.planted():
        kind = region["kind"]
        result = results.setdefault(kind, Result())
        expected = EXPECTED.get(kind)
        words = (
            {mask_of(word) for word in expected.words + (expected.tails if old else ())}
            if expected
            else set()
        )
        if every_anon_is_ksm:
            words |= {word | 1 << BITS["KSM"] for word in words if word >> BITS["ANON"] & 1}
        for frame, entry in pages.of(region):
            result.pages += 1
            if frame is None:
                shown = "swap entry" if entry & _SWAPPED else "empty"
                if kind == "guard" and entry & _GUARD:
                    shown = "guard"
                result.words[shown] += 1
                if (
                    kind not in MAYBE_PRESENT
                    and NOT_PRESENT.get(kind, "empty" if no_perf and kind == "perf_ring" else "")
                    != shown
                ):
                    result.wrong[f"not present: {shown}"] += 1
                continue
            flags, count = pages.flags[frame] & ~ignored, pages.counts[frame]
            result.words[f"{letters(flags)} {count}"] += 1
            if kind in POISONED:
                if not flags >> BITS["HWPOISON"] & 1:
                    result.wrong["not poisoned"] += 1
            elif kind in NOT_PRESENT:
                result.wrong["present"] += 1
            elif expected is None:
                result.wrong["no expectation for this kind"] += 1
            elif flags not in words:
                result.wrong[f"flags {letters(flags)}"] += 1
            elif count not in (expected.mapped or (0, pages.processes)):
                result.wrong[f"mapped {count} times"] += 1
            elif expected.file is not None and bool(entry & _FILE) != expected.file:
                result.wrong["pagemap bit 61"] += 1
            elif kind == "anon_uffd_wp" and not entry & _PROTECTED:
                result.wrong["pagemap bit 57"] += 1
            elif bool(entry & _EXCLUSIVE) != (count == 1) and entry:
                result.wrong["pagemap bit 56"] += 1
    return results

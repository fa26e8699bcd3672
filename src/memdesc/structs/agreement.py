"""Do the struct pages and /proc/kpageflags say the same? Flag by flag, frame by frame.

The map from struct pages carries the words that this kernel would show.  On a live machine
memory changes between the readings, so only frames whose word was the same before and after
the scan are compared.

    report = agreement(scan.map(), before, after)
    report.share

`live_agreement` does it section by section, so that little changes in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.kpageflags import BITS, flag_names
from memdesc.kernels.release import KernelRelease
from memdesc.map.encode import ReadWords
from memdesc.map.extents import MemoryMap
from memdesc.structs.scan import StructScan
from memdesc.types import Pfn

__all__ = ["Agreement", "Difference", "FlagAgreement", "agreement", "live_agreement"]

_MOST_DIFFERENCES = 32


@dataclass(frozen=True, slots=True)
class FlagAgreement:
    """One bit of the word, over the frames compared."""

    name: str
    both: int
    """Frames where struct page and /proc show it."""
    only_struct: int
    only_proc: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Frames where the two words differ in the same way."""

    proc: int
    struct: int
    frames: int
    pfn: Pfn
    """The first of them."""

    def describe(self, release: KernelRelease) -> str:
        """One line: which flags only one of them shows, and how often."""

        def words(flags: int) -> str:
            return " ".join(flag_names(flags, release)) or "nothing"

        return (
            f"{self.frames} frames, first {self.pfn:#x}: both {words(self.proc & self.struct)}; "
            f"only struct page {words(self.struct & ~self.proc)}; "
            f"only /proc {words(self.proc & ~self.struct)}"
        )


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two readings of one machine agree."""

    frames: int
    """Frames in both readings."""
    changed: int
    """Frames whose word in /proc changed meanwhile; not compared."""
    equal: int
    """Frames compared that have the same word."""
    flags: tuple[FlagAgreement, ...]
    """Every flag that either reading shows."""
    differences: tuple[Difference, ...]
    """The most frequent ones first, at most 32."""

    @property
    def compared(self) -> int:
        return self.frames - self.changed

    @property
    def share(self) -> float:
        """Frames with the same word among those compared, 0 to 1; 1.0 for none compared."""
        return self.equal / self.compared if self.compared else 1.0


def agreement(
    result: MemoryMap,
    before: NDArray[np.uint64],
    after: NDArray[np.uint64] | None = None,
) -> Agreement:
    """Compare a map from struct pages with words of /proc/kpageflags.

    `before` and `after` (uint64, from frame 0 on) were read before and after the scan;
    without `after` nothing can have changed: the machine stood still.
    """
    end = min(before.size, result.pfn_end, before.size if after is None else after.size)
    start = min(result.pfn_start, end)
    ours = result.words(start, end) if start < end else np.zeros(0, np.uint64)
    return _compare(start, ours, before[start:end], None if after is None else after[start:end])


def live_agreement(scan: StructScan, read_words: ReadWords, frames: int) -> Agreement:
    """Compare a live kernel's struct pages with its kpageflags, one memory section at a time.

    `read_words` fills an array with the words of /proc/kpageflags from a frame on, and
    `frames` is how many that file has.
    """
    step = scan.memmap.section_pages
    parts = []
    for start in range(0, min(frames, scan.frames), step):
        end = min(start + step, frames, scan.frames)
        before, after = np.empty(end - start, np.uint64), np.empty(end - start, np.uint64)
        read_words(start, before)
        result = scan.part(start, end)
        read_words(start, after)
        parts.append(_compare(start, result.words(start, end), before, after))
    return _sum(parts)


# --- helpers -----------------------------------------------------------------------------


def _compare(
    start: int,
    ours: NDArray[np.uint64],
    theirs: NDArray[np.uint64],
    after: NDArray[np.uint64] | None,
) -> Agreement:
    """Compare words of the frames from `start` on."""
    still = np.ones(ours.size, np.bool_) if after is None else theirs == after
    differs = np.flatnonzero((ours != theirs) & still)
    flags = []
    for bit, info in BITS.items():
        mask = np.uint64(bit.value)
        a, b = (ours & mask != 0) & still, (theirs & mask != 0) & still
        counts = [int(np.count_nonzero(column)) for column in (a & b, a & ~b, b & ~a)]
        if any(counts):
            flags.append(FlagAgreement(info.name, *counts))
    compared = int(np.count_nonzero(still))
    return Agreement(
        frames=int(ours.size),
        changed=int(ours.size) - compared,
        equal=compared - int(differs.size),
        flags=tuple(flags),
        differences=_differences(start, differs, theirs[differs], ours[differs]),
    )


def _sum(parts: list[Agreement]) -> Agreement:
    flags: dict[str, FlagAgreement] = {}
    found: dict[tuple[int, int], Difference] = {}
    for part in parts:
        for flag in part.flags:
            old = flags.get(flag.name, FlagAgreement(flag.name, 0, 0, 0))
            flags[flag.name] = FlagAgreement(
                flag.name,
                old.both + flag.both,
                old.only_struct + flag.only_struct,
                old.only_proc + flag.only_proc,
            )
        for each in part.differences:
            key = each.proc, each.struct
            seen = found.get(key)
            found[key] = each if seen is None else replace(seen, frames=seen.frames + each.frames)
    ordered = sorted(found.values(), key=lambda each: -each.frames)
    return Agreement(
        frames=sum(part.frames for part in parts),
        changed=sum(part.changed for part in parts),
        equal=sum(part.equal for part in parts),
        flags=tuple(flags[info.name] for info in BITS.values() if info.name in flags),
        differences=tuple(ordered[:_MOST_DIFFERENCES]),
    )


def _differences(
    start: int, offsets: NDArray[np.int64], proc: NDArray[np.uint64], struct: NDArray[np.uint64]
) -> tuple[Difference, ...]:
    pairs = np.stack([proc, struct], axis=1)
    distinct, first, frames = np.unique(pairs, axis=0, return_index=True, return_counts=True)
    order = np.argsort(-frames, kind="stable")[:_MOST_DIFFERENCES]
    return tuple(
        Difference(
            proc=int(distinct[index, 0]),
            struct=int(distinct[index, 1]),
            frames=int(frames[index]),
            pfn=Pfn(start + int(offsets[first[index]])),
        )
        for index in order.tolist()
    )

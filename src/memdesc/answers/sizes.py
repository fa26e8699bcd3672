"""What answers about resident memory share: sizes by type, and what makes them inexact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memdesc.answers.usage import Sums, Usage
from memdesc.kernels.smaps import PSS_SHIFT
from memdesc.map.attribution import ReadReport
from memdesc.types import TypeSet

__all__ = ["Sizes", "TypeShare", "notes_of", "report_notes", "shown", "sizes_of"]


@dataclass(frozen=True, slots=True)
class TypeShare:
    """The part of a row that is of one type, in bytes."""

    types: TypeSet
    rss_bytes: int
    pss_bytes: int
    uss_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "type": self.types.json,
            "rss_bytes": self.rss_bytes,
            "pss_bytes": self.pss_bytes,
            "uss_bytes": self.uss_bytes,
        }


@dataclass(frozen=True, slots=True)
class Sizes:
    """What rows about resident memory have in common, in bytes."""

    rss_bytes: int
    pss_bytes: int
    """Proportional: each page divided by its mappings, rounded down as the kernel does."""
    uss_bytes: int
    """Unique: freed if this ended."""
    unread_bytes: int
    """Of `rss_bytes`: pages that processes map which were not read (from kpagecount)."""
    types: tuple[TypeShare, ...]
    """The same by type, largest first."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rss_bytes": self.rss_bytes,
            "pss_bytes": self.pss_bytes,
            "uss_bytes": self.uss_bytes,
            "unread_bytes": self.unread_bytes,
            "types": [share.to_json() for share in self.types],
        }


def sizes_of(usage: Usage, sums: Sums, index: int) -> Sizes:
    """The row of group `index` of `sums`."""
    shares = [
        TypeShare(
            usage.types[code],
            int(sums.rss[index, code]),
            int(sums.pss_fixed[index, code]) >> PSS_SHIFT,
            int(sums.uss[index, code]),
        )
        for code in np.flatnonzero(sums.rss[index]).tolist()
    ]
    shares.sort(key=lambda share: (-share.rss_bytes, share.types.mask))
    return Sizes(
        rss_bytes=int(sums.rss[index].sum()),
        pss_bytes=int(sums.pss_fixed[index].sum()) >> PSS_SHIFT,
        uss_bytes=int(sums.uss[index].sum()),
        unread_bytes=int(sums.unread[index].sum()),
        types=tuple(shares),
    )


def notes_of(usage: Usage) -> tuple[str, ...]:
    """What makes the answers of `usage` inexact, in sentences."""
    stale = usage.stale_pages
    notes = report_notes(usage.attribution.report)
    if stale:
        notes.append(
            f"mapped pages that are free in the map, which was read at another moment: {stale}"
        )
    return tuple(notes)


def report_notes(report: ReadReport) -> list[str]:
    """What was left out of an attribution, in sentences."""
    notes = []
    if report.refused:
        whom = "; ".join(f"PID {pid}: {why}" for pid, why in report.problems[:3])
        more = ", ..." if len(report.problems) > 3 else ""
        whom = f" ({whom}{more})" if whom else ""
        of = f" of {report.seen}" if report.seen else ""
        notes.append(
            f"{report.refused}{of} processes could not be read{whom}: "
            "what they map is missing, and pages they share count more for the others; "
            "see memdesc doctor"
        )
    sentences = (
        (report.vanished, "ended during the read and are left out"),
        (report.changed, "changed during the read"),
        (report.truncated, "could not be read to the end: the rest of them is missing"),
    )
    notes += [f"processes that {text}: {number}" for number, text in sentences if number]
    return notes


def shown(row: Sequence[TypeShare], limit: int = 3) -> str:
    """The largest types of a row in words, for a table: "anon 1234, file 56" in kB."""
    return ", ".join(f"{share.types.label} {share.rss_bytes >> 10}" for share in row[:limit])

"""One screen: what this machine's memory is, what is not visible and why, who owns it.

Bytes and names first, most important first. Everything here is also in a longer answer;
the overview says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from memdesc.answers.ledger import Ledger, ledger
from memdesc.answers.reconcile import Reconciliation, reconcile
from memdesc.map.compound import compounds_of
from memdesc.map.extents import MemoryMap, ScanStats, Totals
from memdesc.map.machine import Machine
from memdesc.rules.procedure import RULES
from memdesc.types import PAGE_SIZE_BYTES, TypeSet

__all__ = ["Overview", "Owner", "Unknown", "overview"]


@dataclass(frozen=True, slots=True)
class Owner:
    """Somebody who owns memory: a cgroup or a slab cache."""

    kind: str
    name: str
    size_bytes: int
    objects_active: int | None = None
    """Objects in use, of a slab cache."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Memory whose type is a union, and the reason."""

    types: TypeSet
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Overview:
    """The answer; sizes in bytes."""

    machine: Machine
    ledger: Ledger
    reconciliation: Reconciliation
    unknown: tuple[Unknown, ...]
    owners: tuple[Owner, ...]
    stats: ScanStats
    torn: int | None
    """Torn compound pages met while reading; None where only totals were read."""
    extents: int | None

    def to_json(self) -> dict[str, Any]:
        """Schema memdesc-overview/1."""
        return {
            "schema": "memdesc-overview/1",
            "kernel": str(self.machine.release) if self.machine.release.is_known else None,
            "hostname": self.machine.hostname or None,
            "frames_present": self.ledger.frames_present,
            "size_bytes_present": self.ledger.frames_present * PAGE_SIZE_BYTES,
            "rows": self.ledger.to_json()["rows"],
            "not_present": self.ledger.to_json()["not_present"],
            "unknown": [
                {"type": u.types.json, "size_bytes": u.size_bytes, "reason": u.reason}
                for u in self.unknown
            ],
            "owners": [
                {
                    "kind": o.kind,
                    "name": o.name,
                    "size_bytes": o.size_bytes,
                    "objects_active": o.objects_active,
                }
                for o in self.owners
            ],
            "checks": self.reconciliation.to_json(),
            "unseen": dict(self.machine.unseen),
            "scan": {
                "seconds": round(self.stats.seconds, 4),
                "threads": self.stats.threads,
                "extents": self.extents,
                "torn_compounds": self.torn,
                "frames_reread": self.stats.frames_reread,
                "frames_changed": self.stats.frames_changed,
            },
        }


def overview(source: MemoryMap | Totals, *, owners: int = 5) -> Overview:
    """Sum up `source`. With a whole map, cgroups and torn folios are known too."""
    totals = source.totals if isinstance(source, MemoryMap) else source
    book = ledger(totals)
    torn = extents = None
    if isinstance(source, MemoryMap):
        compounds = compounds_of(source)
        torn = compounds.torn_heads + compounds.orphan_tails
        extents = len(source)
    return Overview(
        machine=totals.machine,
        ledger=book,
        reconciliation=reconcile(source),
        unknown=_unknown(totals, book),
        owners=(*_cgroups(source, owners), *_slab_caches(totals.machine, owners)),
        stats=totals.stats,
        torn=torn,
        extents=extents,
    )


# --- helpers -----------------------------------------------------------------------------


def _unknown(totals: Totals, book: Ledger) -> tuple[Unknown, ...]:
    found: list[Unknown] = []
    pages = totals.pages.sum(axis=0)
    for row in book.rows:
        if row.types.is_certain:
            continue
        facts = np.flatnonzero(totals.table.types == np.uint64(row.types.mask))
        most = max(facts, key=lambda fact: int(pages[fact]))
        found.append(Unknown(row.types, row.size_bytes, RULES[totals.table.rules[int(most)]].text))
    return tuple(found)


def _cgroups(source: MemoryMap | Totals, most: int) -> list[Owner]:
    if not isinstance(source, MemoryMap) or source.cgroups is None:
        return []
    pages = np.bincount(source.cgroups, weights=source.nr_pages)
    order = [int(code) for code in np.argsort(-pages) if code and pages[code]]
    names = source.machine.cgroups
    return [
        Owner(
            "cgroup",
            names.get(int(source.cgroup_inodes[code]), f"inode {source.cgroup_inodes[code]}"),
            int(pages[code]) * PAGE_SIZE_BYTES,
        )
        for code in order[:most]
    ]


def _slab_caches(machine: Machine, most: int) -> list[Owner]:
    caches = sorted(machine.slabinfo, key=lambda cache: -cache.size_bytes)
    return [
        Owner("slab cache", cache.name, cache.size_bytes, cache.objects_active)
        for cache in caches[:most]
        if cache.size_bytes
    ]

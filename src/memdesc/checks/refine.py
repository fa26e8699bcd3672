"""Make a map's unions narrower, where something outside the map proves it."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from memdesc.map.extents import MemoryMap
from memdesc.map.facts import FactTable
from memdesc.types import TypeSet

__all__ = ["named", "narrowed"]


def narrowed(
    result: MemoryMap,
    without: TypeSet,
    *,
    within: TypeSet | None = None,
    holding: TypeSet | None = None,
) -> MemoryMap:
    """Take the kinds `without` out of every union that has another one left.

    With `within`, only out of unions that have no member outside it; with `holding`, only out
    of those that have one of these.
    """
    masks = result.table.types
    left = masks & ~np.uint64(without.mask)
    chosen = (left != 0) & (left != masks)
    if within is not None:
        chosen &= masks & ~np.uint64(within.mask) == 0
    if holding is not None:
        chosen &= masks & np.uint64(holding.mask) != 0
    table = dataclasses.replace(result.table, types=np.where(chosen, left, masks))
    return dataclasses.replace(result, table=table)


def named(result: MemoryMap, pfns: NDArray[np.int64], types: TypeSet) -> MemoryMap:
    """Say that the frames `pfns` are `types`, where the map has a union that holds them all."""
    starts = result.pfn_starts.astype(np.int64)
    pfns = np.unique(pfns[(pfns >= result.pfn_start) & (pfns < result.pfn_end)])
    at = np.searchsorted(starts, pfns, side="right") - 1
    masks = result.table.types
    is_wider = (masks & np.uint64(types.mask) == np.uint64(types.mask)) & (
        masks != np.uint64(types.mask)
    )
    pfns = pfns[is_wider[result.facts[at]]]
    if not pfns.size:
        return result
    # Cut the map at both ends of every frame, then join nothing: extents may stay short.
    edges = np.unique(np.concatenate([starts, pfns, pfns + 1]))
    edges = edges[edges < result.pfn_end]
    source = np.searchsorted(starts, edges, side="right") - 1
    facts = result.facts[source].astype(np.int64)
    chosen = np.isin(edges, pfns)
    table, codes = _with_types(result.table, np.unique(facts[chosen]), types)
    facts[chosen] = codes[facts[chosen]]

    def column(values: NDArray[np.uint32] | None) -> NDArray[np.uint32] | None:
        return None if values is None else values[source]

    return dataclasses.replace(
        result,
        table=table,
        pfn_starts=edges.astype(result.pfn_starts.dtype),
        facts=facts.astype(np.uint16),
        mapcounts=column(result.mapcounts),
        cgroups=column(result.cgroups),
        owners=column(result.owners),
        references=None if result.references is None else result.references[source],
    )


# --- helpers -----------------------------------------------------------------------------


def _with_types(
    table: FactTable, codes: NDArray[np.int64], types: TypeSet
) -> tuple[FactTable, NDArray[np.int64]]:
    """The table with a copy of each row in `codes` that says `types`; and, by old code, the
    code of its copy."""
    copies = np.zeros(len(table), np.int64)
    copies[codes] = len(table) + np.arange(codes.size)
    grown = FactTable(
        flags=np.concatenate([table.flags, table.flags[codes]]),
        types=np.concatenate([table.types, np.full(codes.size, types.mask, np.uint64)]),
        rules=(*table.rules, *(table.rules[code] for code in codes.tolist())),
    )
    return grown, copies

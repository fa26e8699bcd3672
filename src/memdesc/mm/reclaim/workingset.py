"""What is remembered of a folio that was reclaimed, and what that tells when it comes back.

`mm/workingset.c:workingset_eviction, workingset_test_recent, workingset_refault, lru_gen_refault
@6.1, @6.12, @7.2`.  Reclaim leaves a shadow in the page cache, or for a slot in the swap cache: the
age of the lists at that time, which grows by each page that leaves them.  A page that comes back
before as many others left as are active now was thrown out too early: it is active at once.

MADV_PAGEOUT reclaims for the whole machine, whose lists are far longer than what a scenario gives
away, so its shadows are recent.  `shrink` does so for the scenario's control group, of which little
is left: its shadows are held against the model's own lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.frames import ACTIVE_ANON, ACTIVE_FILE, C_LIST_COUNT, INACTIVE_ANON, INACTIVE_FILE

if TYPE_CHECKING:
    from memdesc.mm.files.inode import AddressSpace
    from memdesc.mm.kernel import Kernel

__all__ = [
    "WORKINGSET", "WORKINGSET_EVENTS", "Shadow", "Workingset", "cache_refault", "is_recent",
    "note_advice", "set_cache_shadow", "workingset_eviction", "workingset_refault",
]  # fmt: skip

WORKINGSET: Final = 1 << 60
"""PG_workingset, in the column of flags: /proc/kpageflags has no bit for it."""

WORKINGSET_EVENTS: Final = tuple(
    f"workingset_{what}_{kind}"
    for what in ("refault", "activate", "restore")
    for kind in ("anon", "file")
)


@dataclass(frozen=True, slots=True)
class Shadow:
    """What pack_shadow() keeps of an evicted page."""

    age: int
    """nonresident_age when it went."""
    workingset: bool
    """The folio had been active, or came back too early before."""
    group: bool
    """The control group of the scenario was told to give up memory."""


@dataclass(slots=True)
class Workingset:
    """The state of the lists that shadows are compared with."""

    nonresident_age: int = 0
    """Pages that were evicted or activated."""
    reclaims_group: bool = False
    """Reclaim is about the control group of the scenario, not about the machine."""


def workingset_eviction(kernel: Kernel, head: int) -> Shadow:
    """A folio is about to leave its cache because of reclaim."""
    state = kernel.workingset
    workingset = bool(kernel.flags(head) & WORKINGSET)
    shadow = Shadow(state.nonresident_age, workingset, state.reclaims_group)
    state.nonresident_age += 1 << kernel.order_of(head)
    return shadow


def is_recent(kernel: Kernel, shadow: Shadow, *, file: bool) -> bool:
    """workingset_test_recent(): would the page still be here if active ones had gone instead?"""
    if not shadow.group or kernel.knobs["lru_gen"] != "0":
        return True
    distance = kernel.workingset.nonresident_age - shadow.age
    lists = [ACTIVE_FILE] if file else [ACTIVE_FILE, INACTIVE_FILE]
    if kernel.swap is not None:
        lists += [ACTIVE_ANON, INACTIVE_ANON] if file else [ACTIVE_ANON]
    return distance <= sum(int(kernel.f.cell[C_LIST_COUNT + which]) for which in lists)


def workingset_refault(kernel: Kernel, head: int, shadow: Shadow) -> None:
    """A folio that was evicted is back, and not on a list yet."""
    kind = "anon" if kernel.flags(head) & KPF.SWAPBACKED else "file"
    pages = 1 << kernel.order_of(head)
    kernel.events[f"workingset_refault_{kind}"] += pages
    recent = is_recent(kernel, shadow, file=kind == "file")
    if not recent:
        kernel.say("workingset_refault: too many others left in between, inactive")
        return
    if kernel.knobs["lru_gen"] != "0":
        _lru_gen_refault(kernel, head, kind, pages)
        return
    kernel.set_flags(head, int(KPF.ACTIVE))
    kernel.workingset.nonresident_age += pages
    kernel.events[f"workingset_activate_{kind}"] += pages
    kernel.say("workingset_refault: thrown out too early, active at once")
    if shadow.workingset:
        kernel.set_flags(head, WORKINGSET)
        kernel.events[f"workingset_restore_{kind}"] += pages


def note_advice(kernel: Kernel, head: int) -> None:
    """MADV_COLD or MADV_PAGEOUT is about to take an active folio from the active list."""
    if kernel.flags(head) & KPF.ACTIVE and kernel.rules.advice_remembers_active:
        kernel.set_flags(head, WORKINGSET)


def set_cache_shadow(kernel: Kernel, mapping: AddressSpace, index: int, head: int) -> None:
    """A folio of a file's cache is reclaimed: its shadow takes its place, for each of its pages."""
    shadow = workingset_eviction(kernel, head)
    for page in range(1 << kernel.order_of(head)):
        mapping.shadows[index + page] = shadow


def cache_refault(
    kernel: Kernel, mapping: AddressSpace, index: int, head: int, *, write: bool
) -> None:
    """filemap_add_folio(): a folio takes the place of shadows.

    `write`: __GFP_WRITE; what was there will be overwritten, so its return says nothing.
    """
    old = [mapping.shadows.pop(index + page, None) for page in range(1 << kernel.order_of(head))]
    shadow = next((found for found in reversed(old) if found is not None), None)
    if shadow is not None and not write:
        workingset_refault(kernel, head, shadow)


# --- helpers -------------------------------------------------------------------------------------


def _lru_gen_refault(kernel: Kernel, head: int, kind: str, pages: int) -> None:
    """Which counters rise where the multi-generational LRU rules; the age is not seen."""
    if kernel.rules.lru_gen_activates_refaults:
        kernel.events[f"workingset_activate_{kind}"] += pages
    if kernel.rules.lru_gen_restores_faults and kernel.in_lru_fault:
        kernel.set_flags(head, WORKINGSET)
        kernel.events[f"workingset_restore_{kind}"] += pages

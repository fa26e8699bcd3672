"""What KSM shows and takes: /sys/kernel/mm/ksm, /proc/PID/ksm_stat.

`mm/ksm.c:max_page_sharing_store, merge_across_nodes_store, advisor_mode_store, pages_volatile_show,
general_profit_show, ksm_process_profit`, `fs/proc/base.c:proc_pid_ksm_stat @6.12`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.mm.ksm.ksm_tree import Ksm, items_of, zero_pages_of
from memdesc.mm.process import Errno, Mm
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["counters", "ksm_stat", "store"]

_SIZE_OF_ITEM: Final = 64
"""sizeof(struct ksm_rmap_item) of 64 bits with NUMA."""
_TREES: Final = frozenset({"ksm_max_sharing", "ksm_across_nodes"})
_SWITCHES: Final = frozenset({"ksm_zero_pages", "ksm_smart_scan"})


def counters(kernel: Kernel) -> dict[str, int]:
    """The files of /sys/kernel/mm/ksm that count, as "ksm.pages_shared"."""
    ksm, rules = kernel.ksm, kernel.rules
    items = [item for slot in ksm.slots for item in slot.items]
    nodes = ksm.nodes()
    shared = sum(bool(node.items) for node in nodes)
    sharing = sum(max(0, len(node.items) - 1) for node in nodes)
    unshared = sum(item.unstable for item in items)
    chains = [chain for chain in ksm.stable.values() if chain.is_chain]
    found = {
        "pages_shared": shared,
        "pages_sharing": sharing,
        "pages_unshared": unshared,
        "pages_volatile": max(0, len(items) - shared - sharing - unshared),
        "full_scans": ksm.full_scans,
        "stable_node_chains": len(chains),
        "stable_node_dups": sum(len(chain.nodes) for chain in chains),
        "run": ksm.run,
    }
    zero = ksm.zero_pages(kernel) if rules.ksm_marks_zero_pages else 0
    if rules.ksm_smart_scan:
        found["pages_skipped"] = ksm.skipped
    if rules.ksm_marks_zero_pages:
        found["ksm_zero_pages"] = zero
    if rules.memory_merge:
        found["general_profit"] = (sharing + zero) * PAGE_SIZE_BYTES - len(items) * _SIZE_OF_ITEM
    return {f"ksm.{name}": count for name, count in found.items()}


def ksm_stat(kernel: Kernel, mm: Mm, name: str) -> int:
    """A line of /proc/PID/ksm_stat without its "ksm_". Raises Errno."""
    rules = kernel.rules
    known = {
        "rmap_items": True,
        "merging_pages": True,
        "zero_pages": rules.ksm_marks_zero_pages,
        "process_profit": rules.memory_merge,
    }
    if not known[name]:
        raise Errno("ENOENT")
    zero = zero_pages_of(kernel, mm)
    items, merging = items_of(kernel, mm)
    found = {
        "rmap_items": items,
        "merging_pages": merging,
        "zero_pages": zero,
        "process_profit": (merging + zero) * PAGE_SIZE_BYTES - items * _SIZE_OF_ITEM,
    }
    return found[name]


def store(kernel: Kernel, name: str, value: str) -> None:
    """Whether a setting may be what is written, before it is. Raises Errno."""
    if name in _SWITCHES:
        if value not in ("0", "1"):
            raise Errno("EINVAL")
    elif name == "ksm_advisor":
        if value not in ("none", "scan-time"):
            raise Errno("EINVAL")
    elif not value.isdecimal():
        raise Errno("EINVAL")
    elif name == "ksm_pages_to_scan":
        if kernel.knobs["ksm_advisor"] != "none":
            kernel.say("pages_to_scan_store: the advisor decides")
            raise Errno("EINVAL")
    elif name in _TREES:
        _check_tree(kernel.ksm, kernel, name, int(value))


# --- helpers -------------------------------------------------------------------------------------


def _check_tree(ksm: Ksm, kernel: Kernel, name: str, value: int) -> None:
    """What decides how the stable tree is built cannot change while there is one."""
    if value < 2 if name == "ksm_max_sharing" else value > 1:
        raise Errno("EINVAL")
    if value == int(kernel.knobs[name]):
        return
    if any(node.items for node in ksm.nodes()) or not ksm.drop_all_nodes(kernel):
        kernel.say(f"{name}: pages are shared by the old value")
        raise Errno("EBUSY")

"""Settings of the system for `knob`, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from memdesc.errors import FormatError
from memdesc.scenarios.words import nearest

__all__ = ["KNOBS", "Knob"]


_THP: Final = "/sys/kernel/mm/transparent_hugepage/"
_KSM: Final = "/sys/kernel/mm/ksm/"


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting of the system: the file behind it and what it takes."""

    path: str
    help: str
    values: str = "a number"

    def check(self, name: str, value: str) -> None:
        """Raise FormatError for what no kernel takes.

        The words of KSM's settings are left to the kernel, as scenarios show its refusals.
        """
        words = self.values.split(", ")
        if self.values == "a number":
            wrong = not (value.isascii() and value.isdecimal() and int(value) < 1 << 31)
        else:
            wrong = value not in words and not self.path.startswith(_KSM)
        if wrong:
            raise FormatError(
                f"knob {name} cannot be {value[:40]!r}",
                hint=nearest(value, words) or f"it takes {self.values}",
            )


KNOBS: Final[Mapping[str, Knob]] = MappingProxyType(
    {
        "thp": Knob(_THP + "enabled", "huge pages at page faults", "always, madvise, never"),
        "thp_defrag": Knob(
            _THP + "defrag",
            "effort for a huge page",
            "always, defer, defer+madvise, madvise, never",
        ),
        "thp_zero": Knob(_THP + "use_zero_page", "huge zero page at read faults", "0, 1"),
        "thp_shmem": Knob(
            _THP + "shmem_enabled",
            "huge pages in shared memory",
            "always, within_size, advise, never, deny, force",
        ),
        "thp_shmem_64k": Knob(
            _THP + "hugepages-64kB/shmem_enabled",
            "folios of 16 pages in memfds and shared anonymous memory",
            "always, inherit, within_size, advise, never",
        ),
        "thp_shmem_2m": Knob(
            _THP + "hugepages-2048kB/shmem_enabled",
            "huge pages there",
            "always, inherit, within_size, advise, never",
        ),
        "tmpfs_huge": Knob(
            "mount option huge= of tmpfs",
            "huge pages in files of tmpfs",
            "always, within_size, advise, never",
        ),
        "thp_2m": Knob(
            _THP + "hugepages-2048kB/enabled",
            "huge pages of that size: `inherit` is what `thp` says (6.8)",
            "always, madvise, never, inherit",
        ),
        "thp_16k": Knob(
            _THP + "hugepages-16kB/enabled", "folios of 4 pages", "always, madvise, never, inherit"
        ),
        "thp_64k": Knob(
            _THP + "hugepages-64kB/enabled", "folios of 16 pages", "always, madvise, never, inherit"
        ),
        "max_ptes_none": Knob(_THP + "khugepaged/max_ptes_none", "empty entries in a collapse"),
        "max_ptes_shared": Knob(_THP + "khugepaged/max_ptes_shared", "shared pages in a collapse"),
        "max_ptes_swap": Knob(_THP + "khugepaged/max_ptes_swap", "swapped pages in a collapse"),
        "hugepages": Knob("/proc/sys/vm/nr_hugepages", "hugetlb pages of 2 MiB"),
        "hugepages_overcommit": Knob(
            "/proc/sys/vm/nr_overcommit_hugepages",
            "hugetlb pages beyond those, when they are wanted",
        ),
        "movable": Knob(
            "/sys/devices/system/memory/memory*/state",
            "memory that becomes ZONE_MOVABLE, MiB; before anything else",
            "128",
        ),
        "fault_around": Knob(
            "/sys/kernel/debug/fault_around_bytes", "window of read faults, bytes"
        ),
        "read_ahead": Knob("read_ahead_kb of the file systems' devices", "readahead, kB"),
        "lru_gen": Knob(
            "/sys/kernel/mm/lru_gen/enabled", "multi-generational LRU", "0, 1, 2, 3, 4, 5, 6, 7"
        ),
        "swappiness": Knob("/proc/sys/vm/swappiness", "anonymous memory against files"),
        "page_cluster": Knob("/proc/sys/vm/page-cluster", "swap readahead, log2 of pages"),
        "overcommit": Knob("/proc/sys/vm/overcommit_memory", "accounting of mappings", "0, 1, 2"),
        "commit_room": Knob(
            "/proc/sys/vm/overcommit_kbytes",
            "pages that all may promise yet where `overcommit` is 2, to about 1000",
        ),
        "max_map_count": Knob("/proc/sys/vm/max_map_count", "areas that a process may have"),
        "ksm_max_sharing": Knob(_KSM + "max_page_sharing", "mappings of one KSM page"),
        "ksm_zero_pages": Knob(_KSM + "use_zero_pages", "zeroes become the zero page", "0, 1"),
        "ksm_smart_scan": Knob(_KSM + "smart_scan", "skip pages that do not merge (6.7)", "0, 1"),
        "ksm_prune": Knob(
            _KSM + "stable_node_chains_prune_millisecs", "time between two looks at a whole chain"
        ),
        "ksm_across_nodes": Knob(
            _KSM + "merge_across_nodes", "pages of different nodes merge", "0, 1"
        ),
        "ksm_advisor": Knob(
            _KSM + "advisor_mode", "who decides how fast ksmd is (6.7)", "none, scan-time"
        ),
        "ksm_pages_to_scan": Knob(_KSM + "pages_to_scan", "pages between two sleeps of ksmd"),
    }
)
"""Settings for `knob`."""

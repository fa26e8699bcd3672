"""The kernel of the model: one machine, its processes, files and settings.

>>> from memdesc.mm.areas.mmap import mmap
>>> kernel = Kernel("6.12")
>>> process = kernel.process("p")
>>> vma = mmap(kernel, process.mm, 0x10000, 4)
>>> kernel.write(process, 0x10000, content=7)
>>> kernel.read(process, 0x10000)
7

`fired` tells which rules were applied since it was last cleared; `memdesc.mm.check.check` says
whether all that is counted twice agrees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.processes import is_modelled, process_rules
from memdesc.kernels.release import KernelRelease
from memdesc.mm import loops, lru
from memdesc.mm.areas.accounting import committed
from memdesc.mm.areas.mlock_batch import MlockBatch, drain
from memdesc.mm.faults.fault import access
from memdesc.mm.files.wb_err import Disk
from memdesc.mm.frames import (
    BATCH_ADD,
    BATCH_ROOM,
    BATCHES,
    C_LRU_GEN,
    C_ZERO_PFN,
    PIN_BIAS,
    Frames,
    Kind,
    empty_frames,
    grow_entries,
)
from memdesc.mm.huge.file_pmd import huge_file_counters
from memdesc.mm.huge.thp_stats import THP_EVENTS, thp_counters
from memdesc.mm.hugetlb.hugetlb_pool import (
    HugetlbPool,
    hugetlb_counters,
    put_hugetlb,
    set_overcommit,
    set_pool_size,
)
from memdesc.mm.ksm import ksm_sysfs
from memdesc.mm.ksm.ksm_tree import Ksm
from memdesc.mm.mm_ids import MmIds
from memdesc.mm.process import Mm, OutOfMemory, Process
from memdesc.mm.reclaim.mark_accessed import mark_new_folio
from memdesc.mm.reclaim.swap_state import SwapDevice
from memdesc.mm.reclaim.workingset import WORKINGSET_EVENTS, Workingset
from memdesc.mm.references.zone_movable import online_movable
from memdesc.model.compiled import array
from memdesc.model.described import KIND_CODES, DescribedMachine
from memdesc.model.designs import OVERLAYS, Design
from memdesc.model.zones import Layout
from memdesc.types import MemoryType

__all__ = ["KNOBS", "Kernel"]

T = TypeVar("T")

KNOBS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "thp": "never",
        "thp_defrag": "madvise",
        "thp_zero": "1",
        "thp_shmem": "never",
        "thp_shmem_64k": "never",
        "thp_shmem_2m": "inherit",
        "tmpfs_huge": "never",
        "thp_2m": "inherit",
        "thp_16k": "never",
        "thp_64k": "never",
        "max_ptes_none": "511",
        "max_ptes_shared": "256",
        "max_ptes_swap": "64",
        "hugepages": "0",
        "movable": "0",
        "hugepages_overcommit": "0",
        "fault_around": "4096",
        "read_ahead": "0",
        "lru_gen": "0",
        "swappiness": "60",
        "page_cluster": "0",
        "overcommit": "0",
        "commit_room": "0",
        "max_map_count": "65530",
        "ksm_max_sharing": "256",
        "ksm_zero_pages": "0",
        "ksm_smart_scan": "0",
        "ksm_prune": "4000000",
        "ksm_across_nodes": "1",
        "ksm_advisor": "none",
        "ksm_pages_to_scan": "100",
    }
)
"""Settings of the system and what they are before a scenario changes them: quiet, so that nothing
happens by itself."""


_EVENTS: Final = (
    "cow_ksm", "ksm_swpin_copy", "nr_foll_pin_acquired", "nr_foll_pin_released", "pglazyfreed",
    "pgmigrate_fail", "pgmigrate_success", "pswpin", "pswpout", "swap_ra",
)  # fmt: skip


class Kernel:
    """A machine of `memory_bytes` under one release, without processes.

    `kernel`: a series or release, 6.1 or later (QuestionError). `design`: how memory is described.
    `layout`: other memory.
    """

    def __init__(
        self,
        kernel: str = "6.12",
        *,
        memory_bytes: int = 512 << 20,
        layout: Layout | None = None,
        design: Design = OVERLAYS,
    ) -> None:
        self.release = KernelRelease.parse(kernel)
        if not is_modelled(self.release):
            raise QuestionError(
                f"the model of processes begins with 6.1: {kernel[:40]!r}",
                hint="it was compared with 6.1, 6.12 and 7.2, and knows the releases between them",
            )
        self.rules = process_rules(self.release)
        self._design = design
        self.boot(layout or Layout.pc(memory_bytes))
        self.knobs: dict[str, str] = dict(KNOBS)
        self.processes: dict[str, Process] = {}
        self.mappings: dict[int, Any] = {}
        """What pages name by number: anon_vmas, files (address spaces), KSM's stable nodes."""
        self.mlock = MlockBatch()
        self.poisoned: set[int] = set()
        """Frames that failed: each is held by a reference for good."""
        self.num_poisoned_pages = 0
        """Pages that were given up for memory errors, whatever became of them since."""
        self.names: dict[str, Any] = {}
        """Files by file system and name, as "tmpfs:a"."""
        self.segments: dict[str, Any] = {}
        """System V shared memory by the scenario's name."""
        self.swap: SwapDevice | None = None
        self.ksm = Ksm()
        self.mm_ids = MmIds()
        self.hugetlb = HugetlbPool()
        self.disk = Disk()
        self.commit_limit: int | None = None
        """CommitLimit in pages, once a scenario has set it."""
        self.events: Counter[str] = Counter(
            dict.fromkeys((*_EVENTS, *WORKINGSET_EVENTS, *THP_EVENTS), 0)
        )
        """Counters of /proc/vmstat that only rise, by name."""
        if self.rules.split_drops_zero_pages:
            self.events["thp_underused_split_page"] = 0
        self.size_events: Counter[tuple[int, str]] = Counter()
        """Events of large folios, by order and name (`thp_stats`)."""
        self.fired: list[str] = []
        """Rules that were applied, as "do_wp_page: reused, the only reference"."""
        self.workingset = Workingset()
        self.in_lru_fault = False
        """A fault is being resolved whose pages the multi-generational LRU takes for used."""
        self._last_mapping = 0

    def boot(self, layout: Layout) -> None:
        """Begin with memory that lies so, of which nothing is in use."""
        self.layout = layout
        self.machine = DescribedMachine(layout, self._design, str(self.release), cpus=1)
        frames = array(self.machine.slabs.state.word).size
        self.f: Frames = empty_frames(frames, self.rules.lru_batch)
        self._slots = 0
        self._free_slots: list[int] = []
        self.zero_pfn = next(r[0] for z in self.machine.pages.layout.zones for r in z.reserved)
        self.f.cell[C_ZERO_PFN] = self.zero_pfn
        self.f.flags[self.zero_pfn] = int(KPF.ZERO_PAGE | KPF.RESERVED)
        self.f.kind[self.zero_pfn] = Kind.OTHER
        self.f.refs[self.zero_pfn] = 1

    # --- processes -----------------------------------------------------------------------

    def process(self, name: str) -> Process:
        """A fresh process with an empty address space. Raises QuestionError where one that lives
        has the name."""
        self.check_name(name)
        made = Process(name, Mm(self))
        self.processes[name] = made
        return made

    def check_name(self, name: str) -> None:
        """Raise QuestionError where a process that lives has the name."""
        if name in self.processes:
            raise QuestionError(
                f"there is a process {name[:40]!r} already",
                hint="names are free again when their process has ended",
            )

    def read(self, process: Process, vpn: int) -> int:
        """What a load from a page gives. Raises Signal."""
        return int(self.f.content[access(self, process.mm, vpn, write=False)])

    def write(self, process: Process, vpn: int, content: int) -> None:
        """Store to a page. Raises Signal."""
        self.f.content[access(self, process.mm, vpn, write=True)] = content

    def say(self, rule: str) -> None:
        """Note that a rule was applied."""
        self.fired.append(rule)

    # --- frames --------------------------------------------------------------------------

    def alloc_folio(
        self, kind: MemoryType, order: int = 0, *, flags: int = 0, mapping: int = 0, index: int = 0
    ) -> int:
        """A folio with one reference, on no list. Raises OutOfMemory."""
        self.machine.slabs.make_room()
        pfn = loops.alloc_folio(*self.columns, KIND_CODES[kind], order, int(flags), mapping, index)
        if pfn < 0:
            raise OutOfMemory
        return int(pfn)

    def head(self, pfn: int) -> int:
        """First frame of the folio that a frame belongs to."""
        return pfn - int(self.f.offset[pfn])

    def pages_of(self, pfn: int) -> Iterator[int]:
        """The frames of the folio that begins at a frame."""
        return iter(range(pfn, pfn + (1 << int(self.f.order[pfn]))))

    def order_of(self, pfn: int) -> int:
        """Order of the folio that a frame belongs to."""
        return int(self.f.order[self.head(pfn)])

    def flags(self, pfn: int) -> int:
        """Flags of the folio that a frame belongs to."""
        return int(self.f.flags[self.head(pfn)])

    def get(self, pfn: int, count: int = 1) -> None:
        """folio_ref_add() on the folio of a frame."""
        self.f.refs[self.head(pfn)] += count

    def put(self, pfn: int, count: int = 1) -> None:
        """folio_put_refs(): the last reference frees the folio."""
        if self.f.flags[self.head(pfn)] & int(KPF.HUGE):
            put_hugetlb(self, pfn, count)
        else:
            lru.put(*self.columns, self.head(pfn), count)

    def refs(self, pfn: int) -> int:
        """References of the folio of a frame."""
        return int(self.f.refs[self.head(pfn)])

    def mapcount(self, pfn: int) -> int:
        """folio_mapcount(): entries of all levels that map the folio of a frame."""
        head = self.head(pfn)
        order = int(self.f.order[head])
        if order == 0:
            return int(self.f.maps[head])
        pages = array(self.f.maps)[head : head + (1 << order)]
        return int(pages.sum()) + int(self.f.entire[head])

    def set_flags(self, pfn: int, flags: int) -> None:
        """Set flags of the folio of a frame; not LRU, nor what decides the folio's list."""
        self.f.flags[self.head(pfn)] |= int(flags)

    def clear_flags(self, pfn: int, flags: int) -> None:
        """Clear flags of the folio of a frame; not those that decide its list."""
        self.f.flags[self.head(pfn)] &= ~int(flags)

    def relist(self, pfn: int, *, set_flags: int = 0, clear_flags: int = 0) -> None:
        """Change flags that decide a folio's LRU list, and move it there if it is on one."""
        lru.relist(self.f, self.head(pfn), int(set_flags), int(clear_flags))

    def exclusive(self, pfn: int) -> bool:
        """PageAnonExclusive() of one page."""
        return bool(self.f.flags[pfn] & KPF.OWNER_2)

    def set_exclusive(self, pfn: int, value: bool) -> None:
        """Set or clear PageAnonExclusive of one page."""
        if value:
            self.f.flags[pfn] |= int(KPF.OWNER_2)
        else:
            self.f.flags[pfn] &= ~int(KPF.OWNER_2)

    def may_be_pinned(self, pfn: int) -> bool:
        """folio_maybe_dma_pinned()."""
        head = self.head(pfn)
        if self.f.order[head]:
            return int(self.f.pins[head]) > 0
        return int(self.f.refs[head]) >= PIN_BIAS

    def batch(self, pfn: int, which: int) -> None:
        """Put a folio into one of the CPU's batches."""
        if self.in_lru_fault and which == BATCH_ADD:
            mark_new_folio(self, self.head(pfn))
        lru.add(*self.columns, self.head(pfn), which)

    def drain(self) -> None:
        """lru_add_drain()."""
        if any(self.f.batch[which * BATCH_ROOM] for which in range(BATCHES)):
            lru.drain_all(*self.columns)
        if self.mlock.waiting:
            drain(self)

    @property
    def columns(self) -> tuple[Any, Any, Frames]:
        """What compiled code takes."""
        return self.machine.pages.state, self.machine.slabs.state, self.f

    # --- page tables and mappings --------------------------------------------------------

    def alloc_table(self) -> int:
        """A zeroed page-table page. Raises OutOfMemory."""
        pfn = self.machine.alloc(MemoryType.PAGE_TABLE)
        if pfn is None:
            raise OutOfMemory
        self.f.kind[pfn] = Kind.TABLE
        self.f.refs[pfn] = 1
        return int(pfn)

    def free_table(self, pfn: int) -> None:
        """Free a page-table page."""
        self.f.kind[pfn] = Kind.NONE
        self.f.refs[pfn] = 0
        self.machine.free(pfn)

    def alloc_slot(self) -> int:
        """A slot of `Frames.entries` for a lowest table."""
        if self._free_slots:
            return self._free_slots.pop()
        self._slots += 1
        self.f = grow_entries(self.f, self._slots)
        return self._slots - 1

    def free_slot(self, slot: int) -> None:
        """Give a slot back, its entries all empty."""
        self._free_slots.append(slot)

    def new_mapping(self, kind: type[T]) -> T:
        """A new thing that pages can name; its first argument is its number."""
        self._last_mapping += 1
        made = kind(self._last_mapping)  # type: ignore[call-arg]
        self.mappings[self._last_mapping] = made
        return made

    def forget_mapping(self, number: int) -> None:
        """It goes; no page names it any more."""
        del self.mappings[number]

    def type_at(self, pfn: int) -> MemoryType:
        """What a frame is used for."""
        flags = self.flags(pfn)
        kind = int(self.f.kind[pfn])
        if kind == Kind.TABLE:
            return MemoryType.PAGE_TABLE
        if flags & KPF.ZERO_PAGE:
            return MemoryType.HUGE_ZERO if self.order_of(pfn) else MemoryType.ZERO
        if kind == Kind.FOLIO:
            if flags & KPF.KSM:
                return MemoryType.KSM
            if flags & KPF.HUGE:
                return MemoryType.HUGETLB
            if flags & KPF.ANON:
                return MemoryType.SWAP_CACHE if flags & KPF.SWAPCACHE else MemoryType.ANON
            return MemoryType.SHMEM if flags & KPF.SWAPBACKED else MemoryType.FILE
        return MemoryType.FREE if kind == Kind.NONE else MemoryType.DRIVER

    def content_readable(self, pfn: int) -> bool:
        """Whether an observer can read a page's content."""
        return not self.f.flags[pfn] & int(KPF.HWPOISON)

    def hugetlb_shared(self, pfn: int) -> bool:
        """Whether smaps counts a hugetlb page as shared."""
        return self.mapcount(pfn) >= 2

    def counters(self) -> dict[str, int]:
        """Counters by the names that scenarios use."""
        events = {f"vmstat.{name}": count for name, count in self.events.items()}
        events |= huge_file_counters(self)
        events["meminfo.HardwareCorrupted"] = self.num_poisoned_pages * 4
        return events | ksm_sysfs.counters(self) | hugetlb_counters(self) | thp_counters(self)

    def set_knob(self, name: str, value: str) -> None:
        """A setting of the system, by the name in `KNOBS`. Raises Errno."""
        if name.startswith("ksm_"):
            ksm_sysfs.store(self, name, value)
        self.knobs[name] = value
        if name == "lru_gen":
            self.f.cell[C_LRU_GEN] = self.rules.lru_gen_marks if value != "0" else 0
        elif name == "commit_room":
            self.commit_limit = committed(self) + int(value)
        elif name == "hugepages":
            set_pool_size(self, int(value))
        elif name == "movable":
            online_movable(self, int(value))
        elif name == "hugepages_overcommit":
            set_overcommit(self, int(value))

"""Whose page table is this, and of which level? From the top tables down, once for all.

A table does not know its level, and only the top one its process.  The upper tables of every
address space are read (a handful each; never the lowest level, which maps memory and not
tables), and every entry that leads to a table names that table's level and owner.

x86-64 only (`arch/x86/include/asm/pgtable_64_types.h`); PTE tables put aside for the split of
a huge page (`mm/pgtable-generic.c:pgtable_trans_huge_deposit`) are found at their PMD table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memdesc.descriptors import TableRole
from memdesc.errors import FaultError
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import OwnedFrames
from memdesc.structs.walk.pagetables import LARGE, PRESENT, kernel_tables
from memdesc.structs.walk.snapshot import read_many
from memdesc.structs.walk.tasks import find_tasks
from memdesc.structs.walk.view import View
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES, MemoryType, Pid

__all__ = ["TableOwner", "TableOwners"]

_ENTRIES: Final = 512
_USER_ENTRIES: Final = 256
"""The lower half of a top table maps user space."""
_LEVELS: Final = {4: (5, 3, 2, 1), 5: (5, 4, 3, 2, 1)}
"""Levels from the top as `PageTable.level` counts them: with four, there is no P4D."""
_MOST_DEPOSITS: Final = 512
"""PTE tables put aside at one PMD table: one per huge entry."""
_PMD: Final = 2


@dataclass(frozen=True, slots=True)
class TableOwner:
    """What is known of one page table."""

    level: int
    role: TableRole
    pid: Pid | None
    """A process with this address space; None for the kernel's own."""


class TableOwners:
    """The page tables of one kernel, by frame, as they were when this was made."""

    def __init__(self, kernel: Kernel, memmap: MemMap) -> None:
        """Reads the upper tables of every process. Raises LayoutError where tasks or the
        kernel's own tables cannot be found."""
        self._kernel = kernel
        self._memmap = memmap
        view = View.of(kernel, memmap)
        tables = kernel_tables(view)
        self._levels = _LEVELS[tables.nr_levels]
        self._mask = np.uint64(tables.frame_mask)
        self._found: dict[int, TableOwner] = {}
        self._names: dict[Pid, str] = {}
        for pid, mm, name in self._address_spaces():
            self._names[pid] = name
            self._walk_user(pid, mm)
        for mm in self._kernel_spaces():
            self._walk_user(None, mm)
        # The kernel's half is the same in all; its own top table lies in the image.
        self._walk_entries(self._read_root(tables.root)[_USER_ENTRIES:], 1, TableRole.KERNEL, None)

    def at(self, pfn: int) -> TableOwner | None:
        """What frame `pfn` is, as a table; None where no address space leads to it."""
        return self._found.get(pfn)

    def name_of(self, pid: Pid) -> str:
        """What the process `pid`, the owner of a table, is called."""
        return self._names[pid]

    def __len__(self) -> int:
        return len(self._found)

    def frames(self) -> OwnedFrames:
        """All of them, for kernels that do not mark every table (6.1: only the lower two levels;
        6.12: not the top one)."""
        texts = [_owner_text(owner) for owner in self._found.values()]
        names = {text: code for code, text in enumerate(dict.fromkeys(texts))}
        return OwnedFrames(
            MemoryType.PAGE_TABLE,
            np.array(list(self._found), np.int64),
            np.array([names[text] for text in texts], np.uint32),
            np.zeros(len(texts), np.uint64),
            tuple(names),
        )

    # --- helpers -------------------------------------------------------------------------

    def _address_spaces(self) -> Iterator[tuple[Pid, int, str]]:
        """(lowest PID, mm_struct, name) of every address space of processes."""
        met: set[int] = set()
        for task in find_tasks(self._kernel, self._memmap).tasks:
            if task.mm and task.mm not in met:
                met.add(task.mm)
                yield Pid(task.tgid), task.mm, task.comm

    def _kernel_spaces(self) -> Iterator[int]:
        """mm_structs that the kernel keeps for itself: to patch its text, to call firmware."""
        symbols = self._kernel.symbols
        for name in ("text_poke_mm", "poking_mm"):
            pointer = symbols.address_of(name)
            if pointer is not None:
                try:
                    yield self._kernel.u64(pointer)
                except FaultError:
                    continue
        firmware = symbols.address_of("efi_mm")
        if firmware is not None:
            yield firmware

    def _walk_user(self, pid: Pid | None, mm: int) -> None:
        role = TableRole.KERNEL if pid is None else TableRole.USER
        try:
            pgd = self._kernel.u64(mm + self._kernel.member("mm_struct", "pgd").offset)
            root = self._read_root(pgd)
        except FaultError:
            return
        pfn = self._memmap.pfn_of_direct(pgd)
        if 0 <= pfn < self._memmap.pfn_end:
            self._found.setdefault(pfn, TableOwner(self._levels[0], role, pid))
            if self._is_copy(root, pgd + PAGE_SIZE_BYTES):
                self._found.setdefault(pfn + 1, TableOwner(self._levels[0], role, pid))
        self._walk_entries(root[:_USER_ENTRIES], 1, role, pid)

    def _is_copy(self, root: NDArray[np.uint64], address: int) -> bool:
        """Whether the table at `address` is the one that user space runs with: page-table
        isolation keeps it right behind the kernel's, with the same tables of user space
        (`arch/x86/mm/pti.c:__pti_set_user_pgtbl`)."""
        mine = root[:_USER_ENTRIES]
        try:
            theirs = self._read_root(address)[:_USER_ENTRIES]
        except FaultError:
            return False
        same = bool((mine & self._mask == theirs & self._mask).all())
        return same and bool((mine & np.uint64(PRESENT) != 0).any())

    def _walk_entries(
        self, entries: NDArray[np.uint64], depth: int, role: TableRole, pid: Pid | None
    ) -> None:
        """Name the tables that `entries`, of tables above `depth`, lead to, and go on below."""
        while depth < len(self._levels):
            level = self._levels[depth]
            leads_on = entries & np.uint64(PRESENT) != 0
            if depth > 1:
                # In a top table the bit means nothing: it has no large leaves.
                leads_on &= entries & np.uint64(LARGE) == 0
            pfns = ((entries[leads_on] & self._mask) >> np.uint64(PAGE_SHIFT)).astype(np.int64)
            pfns = np.unique(pfns[pfns < self._memmap.pfn_end])
            # Shared tables (hugetlb) belong to whom they were met first.
            new = [pfn for pfn in pfns.tolist() if pfn not in self._found]
            for pfn in new:
                self._found[pfn] = TableOwner(level, role, pid)
            if level == 1 or not new:
                return
            entries = self._read_tables(np.array(new, np.int64))
            if level == _PMD:
                self._find_deposits(new, role, pid)
            depth += 1

    def _find_deposits(self, pmd_tables: list[int], role: TableRole, pid: Pid | None) -> None:
        """Name the PTE tables that are put aside at these PMD tables."""
        kernel = self._kernel
        struct = "ptdesc" if kernel.has("ptdesc", "pmd_huge_pte") else "page"
        if not kernel.has(struct, "pmd_huge_pte"):
            return
        place = kernel.member(struct, "pmd_huge_pte").offset
        lru = kernel.member("page", "lru").offset
        for table in pmd_tables:
            try:
                first = kernel.u64(self._memmap.page_address(table) + place)
                page = first
                for _ in range(_MOST_DEPOSITS):
                    pfn = self._memmap.pfn_of(page)
                    if not page or not 0 <= pfn < self._memmap.pfn_end:
                        break
                    self._found.setdefault(pfn, TableOwner(1, role, pid))
                    page = kernel.u64(page + lru) - lru
                    if page == first:
                        break
            except FaultError:
                continue

    def _read_root(self, address: int) -> NDArray[np.uint64]:
        raw = self._kernel.memory.read(address, PAGE_SIZE_BYTES)
        return np.frombuffer(raw, np.uint64)

    def _read_tables(self, pfns: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The entries of all these tables; of those that cannot be read, none."""
        base = np.uint64(self._memmap.direct_map_address(0))
        addresses = base + (pfns.astype(np.uint64) << np.uint64(PAGE_SHIFT))
        data, _ = read_many(self._kernel.memory, addresses, PAGE_SIZE_BYTES)
        return np.ascontiguousarray(data).view(np.uint64).reshape(-1)


def _owner_text(owner: TableOwner) -> str:
    return "page tables of the kernel" if owner.pid is None else f"page tables of {owner.pid}"

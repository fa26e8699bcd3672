"""Page tables: which exist, what a 2 MiB range is mapped by, and the entries of the lowest level.

Tables are frames of the machine with descriptors of their own.  Upper tables are allocated on
the way down to a fault, before it is known whether it succeeds, and freed when no area is near
(`mm/memory.c:__handle_mm_fault, free_pgtables @6.12`).  Four levels, as without LA57.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memdesc.mm import entries as e
from memdesc.mm.frames import ENTRIES_SHIFT, TABLE_ENTRIES
from memdesc.model.compiled import array
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["PMD_SHIFT", "Pmd", "PteTable", "Tables"]

PMD_SHIFT = ENTRIES_SHIFT
"""Pages of a PMD range, as a power of two."""
_PUD_SHIFT = 2 * ENTRIES_SHIFT
_PGD_SHIFT = 3 * ENTRIES_SHIFT


@dataclass(slots=True)
class PteTable:
    """A lowest table: its frame, and its slot in `Frames.entries`."""

    pfn: int
    slot: int

    @property
    def first(self) -> int:
        """Number of its first entry in `Frames.entries`."""
        return self.slot << ENTRIES_SHIFT


@dataclass(slots=True)
class Pmd:
    """What maps a 2 MiB range: a lowest table, or one huge entry with its deposited table."""

    table: PteTable | None = None
    huge: int = 0
    """The entry where it maps memory itself (HUGE set), or is a migration entry."""
    deposit: PteTable | None = None


class Tables:
    """The page tables of one address space."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.pgd_pfn = kernel.alloc_table()
        self.puds: dict[int, int] = {}
        """vpn >> 27 -> frame of the PUD table."""
        self.pmd_tables: dict[int, int] = {}
        """vpn >> 18 -> frame of the PMD table."""
        self.pmds: dict[int, Pmd] = {}
        """vpn >> 9 -> what maps the range; missing: pmd_none()."""

    # --- reading -------------------------------------------------------------------------

    def entry(self, vpn: int) -> int:
        """The entry that maps a page; one of a huge PMD is shown as if it were the page's own."""
        pmd = self.pmds.get(vpn >> PMD_SHIFT)
        if pmd is None:
            return e.NONE_ENTRY
        if pmd.huge:
            return (
                pmd.huge + ((vpn & (TABLE_ENTRIES - 1)) << 12)
                if e.is_present(pmd.huge)
                else pmd.huge
            )
        if pmd.table is None:
            return e.NONE_ENTRY
        return int(self._kernel.f.entries[pmd.table.first + (vpn & (TABLE_ENTRIES - 1))])

    def place(self, vpn: int) -> int | None:
        """Where in `Frames.entries` the entry of a page is; None without a lowest table."""
        pmd = self.pmds.get(vpn >> PMD_SHIFT)
        if pmd is None or pmd.table is None:
            return None
        return pmd.table.first + (vpn & (TABLE_ENTRIES - 1))

    def pmd_of(self, vpn: int) -> Pmd | None:
        """What maps the 2 MiB range of a page; None: nothing."""
        return self.pmds.get(vpn >> PMD_SHIFT)

    def runs(self, vpn_start: int, vpn_end: int) -> Iterator[tuple[int, int, Pmd]]:
        """(first page, end, what maps it) of each 2 MiB range that is mapped, cut to the range."""
        for key in range(vpn_start >> PMD_SHIFT, ((vpn_end - 1) >> PMD_SHIFT) + 1):
            pmd = self.pmds.get(key)
            if pmd is not None:
                low = key << PMD_SHIFT
                yield max(low, vpn_start), min(low + TABLE_ENTRIES, vpn_end), pmd

    @property
    def tables(self) -> int:
        """Page-table pages, as VmPTE counts them: without the PGD, with deposited tables."""
        lowest = sum((p.table is not None) + (p.deposit is not None) for p in self.pmds.values())
        return lowest + len(self.pmd_tables) + len(self.puds)

    # --- changing ------------------------------------------------------------------------

    def set(self, vpn: int, entry: int) -> None:
        """Write the entry of a page; its table exists."""
        place = self.place(vpn)
        assert place is not None
        self._kernel.f.entries[place] = entry

    def alloc_pud(self, vpn: int) -> None:
        """p4d_alloc, pud_alloc: the table above the 1 GiB range."""
        if vpn >> _PGD_SHIFT not in self.puds:
            self.puds[vpn >> _PGD_SHIFT] = self._kernel.alloc_table()

    def alloc_upper(self, vpn: int) -> None:
        """p4d_alloc, pud_alloc, pmd_alloc: the tables above the 2 MiB range."""
        self.alloc_pud(vpn)
        if vpn >> _PUD_SHIFT not in self.pmd_tables:
            self.pmd_tables[vpn >> _PUD_SHIFT] = self._kernel.alloc_table()

    def alloc_pte(self, vpn: int) -> PteTable:
        """pte_alloc(): the lowest table of a page."""
        self.alloc_upper(vpn)
        pmd = self.pmds.setdefault(vpn >> PMD_SHIFT, Pmd())
        assert not pmd.huge
        if pmd.table is None:
            pmd.table = self.new_pte_table()
        return pmd.table

    def new_pte_table(self) -> PteTable:
        """pte_alloc_one(): a lowest table that is not linked yet."""
        kernel = self._kernel
        pfn = kernel.alloc_table()
        return PteTable(pfn, kernel.alloc_slot())

    def free_pte_table(self, table: PteTable) -> None:
        """Give a lowest table back, empty or not."""
        kernel = self._kernel
        array(kernel.f.entries)[table.first : table.first + TABLE_ENTRIES] = 0
        kernel.free_slot(table.slot)
        kernel.free_table(table.pfn)

    def free_empty(self, vpn: int) -> bool:
        """try_to_free_pte(): the lowest table of a page, if all its entries are empty."""
        pmd = self.pmds[vpn >> PMD_SHIFT]
        assert pmd.table is not None
        first = pmd.table.first
        if array(self._kernel.f.entries)[first : first + TABLE_ENTRIES].any():
            return False
        self.free_pte_table(pmd.table)
        del self.pmds[vpn >> PMD_SHIFT]
        return True

    def move_pmd(self, vpn: int, to: int) -> None:
        """Link what maps a 2 MiB range elsewhere, where nothing is linked."""
        assert to >> PMD_SHIFT not in self.pmds
        self.pmds[to >> PMD_SHIFT] = self.pmds.pop(vpn >> PMD_SHIFT)

    def move_pud(self, vpn: int, to: int) -> bool:
        """Link the tables of a 1 GiB range elsewhere; False where some are linked there."""
        if to >> _PUD_SHIFT in self.pmd_tables:
            return False
        self.pmd_tables[to >> _PUD_SHIFT] = self.pmd_tables.pop(vpn >> _PUD_SHIFT)
        first, target = vpn >> PMD_SHIFT, to >> PMD_SHIFT
        for key in range(TABLE_ENTRIES):
            pmd = self.pmds.pop(first + key, None)
            if pmd is not None:
                self.pmds[target + key] = pmd
        return True

    def free_range(self, vpn_start: int, vpn_end: int, floor: int, ceiling: int) -> None:
        """free_pgd_range(): tables of the range that lie wholly between two areas.

        `floor`: end of the area before, `ceiling`: start of the next (0: none). A table goes when
        all that it can map lies between them.
        """
        top = ceiling or 1 << (4 * ENTRIES_SHIFT)

        def alone(key: int, shift: int) -> bool:
            return key << shift >= floor and (key + 1) << shift <= top

        for key in range(vpn_start >> PMD_SHIFT, ((vpn_end - 1) >> PMD_SHIFT) + 1):
            pmd = self.pmds.get(key)
            if pmd is not None and alone(key, PMD_SHIFT):
                assert not pmd.huge
                if pmd.table is not None:
                    self.free_pte_table(pmd.table)
                del self.pmds[key]
        for tables, shift in ((self.pmd_tables, _PUD_SHIFT), (self.puds, _PGD_SHIFT)):
            for key in range(vpn_start >> shift, ((vpn_end - 1) >> shift) + 1):
                if key in tables and alone(key, shift):
                    self._kernel.free_table(tables.pop(key))

    def free_all(self) -> None:
        """The PGD goes last, with the address space."""
        assert not self.pmds
        assert not self.pmd_tables
        assert not self.puds
        self._kernel.free_table(self.pgd_pfn)

    def check(self) -> None:
        """Every table is a table, and no two share a slot or a frame."""
        kernel = self._kernel
        pfns = [self.pgd_pfn, *self.puds.values(), *self.pmd_tables.values()]
        for key, pmd in self.pmds.items():
            assert key >> ENTRIES_SHIFT in self.pmd_tables
            assert bool(pmd.huge) <= (pmd.table is None)
            pfns += [t.pfn for t in (pmd.table, pmd.deposit) if t is not None]
        for key in self.pmd_tables:
            assert key >> ENTRIES_SHIFT in self.puds
        assert len(set(pfns)) == len(pfns)
        for pfn in pfns:
            assert kernel.type_at(pfn) is MemoryType.PAGE_TABLE

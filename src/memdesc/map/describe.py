"""From a frame to its typed descriptor: the way that a `Page` takes.

`MapDescriber` makes a map a `DescriptorLookup`: ask it for a page, and the page leads to
the descriptor of the whole folio, slab or run that holds it, with the fields that the
page files can fill; every other field says why it is not visible.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

from memdesc.descriptors import (
    AnonFolio,
    Balloon,
    Buddy,
    Descriptor,
    Folio,
    HugetlbFolio,
    MappedDriverPage,
    Nobody,
    NotVisible,
    Page,
    PageTable,
    Poisoned,
    Reserved,
    Slab,
    TableRole,
    Undescribed,
    bare_descriptor,
)
from memdesc.kernels.kpageflags import KPF, flag_names
from memdesc.map.compound import Compounds, compounds_of
from memdesc.map.extents import Extent, MemoryMap
from memdesc.rules.classify import former_type
from memdesc.types import CgroupInode, Pfn, PfnRange

__all__ = ["MapDescriber"]

_NO_COUNTS = NotVisible(
    "no file of /proc shows reference counts or pins; live:struct and a crash dump do"
)


class MapDescriber:
    """Finds descriptors in a map. Asking twice gives equal descriptors."""

    def __init__(self, result: MemoryMap) -> None:
        self.map = result

    @cached_property
    def compounds(self) -> Compounds:
        return compounds_of(self.map)

    def page(self, pfn: Pfn) -> Page:
        """The page `pfn`: a frame number and a way to its descriptor."""
        return Page(pfn, self)

    def pages_of(self, pfn: Pfn) -> PfnRange:
        """The whole compound page that holds `pfn`, or the frame alone."""
        return self.compounds.at(pfn) or PfnRange(pfn, Pfn(pfn + 1))

    def head_extent(self, pfn: Pfn) -> Extent:
        """The extent of the head of the compound page that holds `pfn`."""
        return self.map.extent(self.map.index_of(self.pages_of(pfn).pfn_start))

    def descriptor_of(self, pfn: Pfn) -> Descriptor:
        """The descriptor of what `pfn` is part of. Raises QuestionError outside the map."""
        own = self.map.extent(self.map.index_of(pfn))
        pages = self.pages_of(pfn)
        poisoned = bool(own.fact.flags & KPF.HWPOISON)
        extent = own if poisoned else self.head_extent(pfn)
        plain = bare_descriptor(own.fact.types, pages, own.fact.rule.text)
        return self._filled(plain, extent, pages)

    # --- helpers -------------------------------------------------------------------------

    def _filled(self, plain: Descriptor, extent: Extent, pages: PfnRange) -> Descriptor:
        flags = extent.fact.flags
        behaviour = self.map.machine.behaviour
        if isinstance(plain, Folio):
            plain = dataclasses.replace(
                plain,
                flags=frozenset(flag_names(flags, behaviour.release)),
                mapcount=self._mapcount(pages),
                refcount=_NO_COUNTS,
                pins=_NO_COUNTS,
                cgroup=self._cgroup(extent),
            )
        match plain:
            case AnonFolio():
                return dataclasses.replace(plain, exclusive=bool(flags & KPF.OWNER_2))
            case HugetlbFolio():
                return dataclasses.replace(plain, in_use=self._hugetlb_in_use(flags))
            case Buddy():
                return dataclasses.replace(
                    plain,
                    order=NotVisible("free blocks carry no order in /proc; see buddyinfo"),
                    migratetype=NotVisible("shown per block in totals only (pagetypeinfo)"),
                    reported=True
                    if flags & KPF.UPTODATE
                    else NotVisible("shown on the first frame of a block only"),
                )
            case Slab():
                return dataclasses.replace(
                    plain,
                    cache=NotVisible("no file says which cache a slab frame belongs to"),
                    pfmemalloc=bool(flags & KPF.ACTIVE),
                )
            case PageTable():
                role: TableRole | NotVisible = NotVisible("this kernel does not mark it")
                if behaviour.knows_release and behaviour.kernel_page_tables_typed:
                    role = TableRole.KERNEL if flags & KPF.REFERENCED else TableRole.USER
                return dataclasses.replace(plain, role=role, cgroup=self._cgroup(extent))
            case Reserved():
                mapped = "mapped into processes" if flags & KPF.MMAP else "kernel or firmware"
                return dataclasses.replace(plain, role=mapped, mapcount=self._mapcount(pages))
            case Poisoned():
                return dataclasses.replace(
                    plain, former=former_type(flags, self.map.machine.context)
                )
            case Balloon():
                return dataclasses.replace(plain, movable=bool(flags & KPF.UPTODATE))
            case MappedDriverPage():
                return dataclasses.replace(
                    plain,
                    mapcount=self._mapcount(pages),
                    refcount=_NO_COUNTS,
                    pins=_NO_COUNTS,
                    cgroup=self._cgroup(extent),
                )
            case Undescribed():
                return dataclasses.replace(plain, cgroup=self._cgroup(extent))
            case _:
                return plain

    def _mapcount(self, pages: PfnRange) -> int | NotVisible:
        if self.map.mapcounts is None:
            return NotVisible(self.map.unseen.get("mapcounts", "the source has no kpagecount"))
        counts = {extent.mapcount for extent in self.map.extents(pages.pfn_start, pages.pfn_end)}
        known = sorted(count for count in counts if count is not None)
        if len(known) == 1:
            return known[0]
        return NotVisible(f"differs over its frames, from {known[0]} to {known[-1]}")

    def _cgroup(self, extent: Extent) -> CgroupInode | Nobody | NotVisible:
        if extent.cgroup is None:
            return NotVisible(self.map.unseen.get("cgroups", "the source has no kpagecgroup"))
        return CgroupInode(extent.cgroup) if extent.cgroup else Nobody()

    def _hugetlb_in_use(self, flags: int) -> bool | NotVisible:
        if flags & KPF.MMAP:
            return True
        return NotVisible("not mapped; it may be free in its pool, or in a hugetlbfs file")

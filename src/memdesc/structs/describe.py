"""From a frame to its typed descriptor, with every field that kernel memory can fill.

The map has decided what a frame is (`memdesc.structs.scan`); `KernelDescriber` fills the
fields of that kind from the struct pages, the overlays over them and what they point to,
read at the moment of asking.  A field that cannot be read says why.

    describer = KernelDescriber(kernel, memmap, result, owned)
    describer.descriptor_of(Pfn(0x1234))

Descriptors carry kernel addresses (`mapping.address`, `anon_vma`, `pool`).  They are for
whoever asks about this machine or dump; a capture must not keep them unless it is asked to,
as they tell where the kernel's randomised layout put its objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Final, TypeVar, assert_never

from memdesc.descriptors import (
    Accounted,
    AnonFolio,
    Balloon,
    Buddy,
    Deferred,
    Descriptor,
    DevicePage,
    DriverPage,
    ExactAlloc,
    FileFolio,
    Guard,
    GuestMemfdFolio,
    Hole,
    HugetlbFolio,
    HugeZeroFolio,
    KernelStack,
    KsmFolio,
    LargeKmalloc,
    MappedDriverPage,
    MovableOps,
    NetPool,
    Nobody,
    NotVisible,
    Offline,
    Page,
    PageFrag,
    PageTable,
    PcpFree,
    PerCpu,
    Poisoned,
    RamDisk,
    Reserved,
    SecretmemFolio,
    ShmemFolio,
    Slab,
    SwapCacheFolio,
    Unaccepted,
    Undescribed,
    Vmalloc,
    ZeroPage,
    ZPDesc,
)
from memdesc.errors import FaultError
from memdesc.kernels.layout import MappingKind
from memdesc.kernels.page_types import PageType
from memdesc.map.describe import MapDescriber
from memdesc.map.extents import MemoryMap
from memdesc.structs.describe_folio import CHANGED, FolioPages, seen
from memdesc.structs.describe_kernel import (
    KernelImage,
    cache_of,
    device_map_of,
    migratetype_at,
    pool_references,
    zspage_offset_bytes,
)
from memdesc.structs.describe_owner import Cgroups
from memdesc.structs.describe_tables import TableOwners
from memdesc.structs.describe_user import FolioFields
from memdesc.structs.kernel import Kernel, Object
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import Owned, OwnedRanges
from memdesc.types import PAGE_SHIFT, CgroupInode, MemoryType, Pfn, PfnRange, Pid, TypeSet

__all__ = ["KernelDescriber"]

_TAKEN_OFF_BUDDY: Final = 0x48575053
"""`private` of a poisoned frame that was free (`mm/internal.h`: MAGIC_HWPOISON, "HWPS")."""

_NO_TREE: Final = NotVisible("no process' tables lead to it: on its way in or out")

_STACK_OF_TASK: Final = "stack of task "
"""How `memdesc.structs.walk.stacks` names the owner of a stack that is in use."""


class KernelDescriber:
    """Finds descriptors in a map that was made from struct pages.

    On a dump, asking twice gives equal descriptors; a live kernel moves on.
    """

    def __init__(
        self, kernel: Kernel, memmap: MemMap, result: MemoryMap, owned: OwnedRanges | None
    ) -> None:
        """`owned` is what the walks found; None where they were not done."""
        self.kernel = kernel
        self.memmap = memmap
        self.cgroups = Cgroups(kernel)
        self._map = MapDescriber(result)
        self._owned = owned
        self._image = KernelImage(kernel)
        self._folios = FolioFields(kernel, self.cgroups)

    def page(self, pfn: Pfn) -> Page:
        """The page `pfn`: a frame number and a way to its descriptor."""
        return Page(pfn, self)

    def pages_of(self, pfn: Pfn) -> PfnRange:
        """The compound page or free block that holds `pfn`, or the frame alone."""
        return self.descriptor_of(pfn).pages

    def descriptor_of(self, pfn: Pfn) -> Descriptor:
        """The descriptor of what `pfn` is part of. Raises QuestionError outside the map."""
        return self._filled(self._map.descriptor_of(pfn), pfn)

    def raw_page(self, pfn: Pfn) -> Mapping[str, int] | NotVisible:
        """The words of this frame's own struct page by name (a tail's are not its head's)."""
        return seen(FolioPages(self.memmap, PfnRange(pfn, Pfn(pfn + 1))).raw)

    # --- helpers -------------------------------------------------------------------------

    def _filled(self, plain: Descriptor, pfn: Pfn) -> Descriptor:
        folio = FolioPages(self.memmap, plain.pages)
        owner = self._owned.at(pfn) if self._owned is not None else None
        match plain:
            case (
                AnonFolio()
                | SwapCacheFolio()
                | KsmFolio()
                | FileFolio()
                | ShmemFolio()
                | HugetlbFolio()
                | SecretmemFolio()
                | GuestMemfdFolio()
            ):
                return self._folios.fill(plain, folio)
            case Buddy():
                return self._free_block(plain, pfn)
            case PcpFree():
                return replace(plain, cpu=self._cpu(owner))
            case Slab():
                return self._slab(plain, folio)
            case LargeKmalloc():
                return replace(plain, cgroup=self._cgroup(folio))
            case PageTable():
                return self._page_table(plain, folio, pfn)
            case Vmalloc():
                return self._vmalloc(plain, folio, owner)
            case KernelStack():
                return replace(
                    plain,
                    task=self._task(owner),
                    task_name=self._task_name(owner),
                    cgroup=self._cgroup(folio),
                )
            case PerCpu():
                chunk = owner.address if owner is not None and owner.address else None
                return replace(
                    plain,
                    chunk=self._unwalked() if chunk is None else chunk,
                    cgroup=self._cgroup(folio),
                )
            case NetPool():
                return self._net_pool(plain, folio)
            case PageFrag():
                return replace(plain, refcount=seen(lambda: folio.refcount))
            case ZPDesc():
                return replace(
                    plain,
                    zspage=seen(lambda: folio.private),
                    first_of_zspage=seen(lambda: folio.has_flag("private")),
                    first_object_offset_bytes=seen(lambda: zspage_offset_bytes(folio)),
                )
            case Balloon():
                return replace(plain, movable=seen(lambda: _is_movable(folio)))
            case MovableOps():
                return replace(plain, operations=seen(lambda: self._movable_operations(folio)))
            case DriverPage() | ExactAlloc() | Accounted():
                return replace(
                    plain, refcount=seen(lambda: folio.refcount), cgroup=self._cgroup(folio)
                )
            case MappedDriverPage():
                return replace(
                    plain,
                    refcount=seen(lambda: folio.refcount),
                    mapcount=seen(folio.mapcount),
                    pins=seen(folio.pins),
                    cgroup=self._cgroup(folio),
                )
            case DevicePage():
                return self._device(plain, folio)
            case Reserved():
                return self._reserved(plain, folio)
            case Poisoned():
                return replace(plain, former=self._former(plain, pfn))
            case Undescribed():
                return replace(plain, cgroup=self._cgroup(folio))
            case Offline():
                return replace(plain, driver=NotVisible("no struct of the kernel names the driver"))
            case Deferred() | Guard() | Unaccepted() | Hole():
                return plain
            case ZeroPage() | HugeZeroFolio() | RamDisk():
                return plain
            case _:
                assert_never(plain)

    # --- free and reserved memory --------------------------------------------------------

    def _free_block(self, plain: Buddy, pfn: Pfn) -> Buddy:
        """The block around `pfn`: the aligned head before it that is marked as one and large
        enough (`mm/page_alloc.c:is_free_buddy_page` @6.1, @7.2)."""
        for order in range(self.memmap.layout.max_order + 1):
            start = pfn >> order << order
            head = FolioPages(self.memmap, PfnRange(Pfn(start), Pfn(start + 1)))
            try:
                found = head.private if head.is_type(PageType.BUDDY) else -1
            except FaultError:
                break
            if order <= found <= self.memmap.layout.max_order:
                return Buddy(
                    PfnRange(Pfn(start), Pfn(start + (1 << found))),
                    order=found,
                    migratetype=seen(lambda: migratetype_at(self.memmap, pfn)),
                    reported=head.has_flag("reported"),
                )
        return replace(plain, order=CHANGED, migratetype=CHANGED, reported=CHANGED)

    def _reserved(self, plain: Reserved, folio: FolioPages) -> Reserved:
        part = seen(lambda: self._image.part_at(folio.pages.pfn_start))
        return replace(
            plain,
            role=part if isinstance(part, str) else plain.role,
            mapcount=seen(folio.mapcount),
        )

    def _former(self, plain: Poisoned, pfn: Pfn) -> TypeSet | NotVisible:
        """What the flags tell, and the two marks that say more: `private` of a frame that was
        free, and `mapping`, which outlives the loss of an anonymous page."""
        own = FolioPages(self.memmap, PfnRange(pfn, Pfn(pfn + 1)))

        def former() -> TypeSet | NotVisible:
            if own.private == _TAKEN_OFF_BUDDY:
                return TypeSet.of(MemoryType.FREE)
            if own.mapping_kind is MappingKind.ANON and own.mapping:
                return TypeSet.of(MemoryType.ANON)
            return plain.former

        return seen(former)

    # --- the kernel's own memory ---------------------------------------------------------

    def _slab(self, plain: Slab, folio: FolioPages) -> Slab:
        slab = seen(lambda: self.kernel.load("slab", folio.address))
        cache = _of(slab, cache_of)
        return replace(
            plain,
            cache=_of(cache, lambda it: it.string("name")),
            objects=_of(slab, lambda it: it["objects"]),
            objects_in_use=_of(slab, lambda it: it["inuse"]),
            object_size_bytes=_of(cache, lambda it: it["object_size"]),
            # SL_pfmemalloc and PG_active are the same bit (mm/slab.h @6.1, @7.2).
            pfmemalloc=seen(lambda: folio.has_flag("active")),
        )

    def _page_table(self, plain: PageTable, folio: FolioPages, pfn: Pfn) -> PageTable:
        plain = replace(plain, cgroup=self._cgroup(folio))
        if isinstance(self._tables, NotVisible):
            unseen = self._tables
            return replace(plain, level=unseen, owner=unseen, owner_name=unseen)
        found = self._tables.at(pfn)
        if found is None:
            return replace(plain, level=_NO_TREE, owner=_NO_TREE, owner_name=_NO_TREE)
        if found.pid is None:
            return replace(
                plain, role=found.role, level=found.level, owner=Nobody(), owner_name=Nobody()
            )
        return replace(
            plain,
            role=found.role,
            level=found.level,
            owner=found.pid,
            owner_name=self._tables.name_of(found.pid),
        )

    @cached_property
    def _tables(self) -> TableOwners | NotVisible:
        return seen(lambda: TableOwners(self.kernel, self.memmap))

    def _vmalloc(self, plain: Vmalloc, folio: FolioPages, owner: Owned | None) -> Vmalloc:
        area: int | NotVisible = self._unwalked()
        size: int | NotVisible = area
        if owner is not None and owner.address:
            struct = seen(lambda: self.kernel.load("vm_struct", owner.address))
            area = _of(struct, lambda it: it["addr"])
            size = _of(struct, lambda it: it["nr_pages"] << PAGE_SHIFT)
        return replace(
            plain,
            area=area,
            area_size_bytes=size,
            caller=self._unwalked() if owner is None else owner.owner,
            refcount=seen(lambda: folio.refcount),
            mapcount=seen(folio.mapcount),
            cgroup=self._cgroup(folio),
        )

    def _task(self, owner: Owned | None) -> Pid | Nobody | NotVisible:
        if owner is None:
            return self._unwalked()
        if not owner.owner.startswith(_STACK_OF_TASK):
            return Nobody()
        return seen(lambda: Pid(self.kernel.load("task_struct", owner.address)["pid"]))

    def _task_name(self, owner: Owned | None) -> str | Nobody | NotVisible:
        if owner is None:
            return self._unwalked()
        if not owner.owner.startswith(_STACK_OF_TASK):
            return Nobody()
        return seen(lambda: self.kernel.load("task_struct", owner.address).text("comm"))

    def _cpu(self, owner: Owned | None) -> int | NotVisible:
        if owner is None:
            return self._unwalked()
        number = owner.owner.removeprefix("cpu ")
        return int(number) if number.isdecimal() else NotVisible(owner.owner)

    def _net_pool(self, plain: NetPool, folio: FolioPages) -> NetPool:
        page = seen(lambda: self.kernel.load("page", folio.address))
        return replace(
            plain,
            pool=_of(page, lambda it: it["pp"]),
            dma_addr=_of(page, lambda it: it["dma_addr"]),
            pool_refcount=_of(page, pool_references),
            refcount=seen(lambda: folio.refcount),
            mapcount=seen(folio.mapcount),
        )

    def _device(self, plain: DevicePage, folio: FolioPages) -> DevicePage:
        found = seen(lambda: device_map_of(self.kernel, folio.address))
        pgmap = found if isinstance(found, NotVisible) else found[0]
        kind = plain.kind if isinstance(found, NotVisible) or found[1] is None else found[1]
        return replace(
            plain,
            kind=kind,
            pgmap=pgmap,
            refcount=seen(lambda: folio.refcount),
            mapcount=seen(folio.mapcount),
            pins=seen(folio.pins),
            cgroup=self._cgroup(folio),
        )

    def _movable_operations(self, folio: FolioPages) -> str | NotVisible:
        """The table that `mapping` leads to, up to 6.16; later ones go by the page type."""
        if folio.mapping_kind is not MappingKind.MOVABLE:
            return NotVisible("chosen by the page type on this kernel")
        return self._folios.mappings.table_name(folio.mapping)

    def _cgroup(self, folio: FolioPages) -> CgroupInode | Nobody | NotVisible:
        return seen(lambda: self.cgroups.of(folio.memcg_data))

    def _unwalked(self) -> NotVisible:
        """Why a walk has nothing to say."""
        if self._owned is None:
            return NotVisible("the kernel's structures were not walked")
        return NotVisible("no walk over the kernel's structures met this frame")


# --- helpers -----------------------------------------------------------------------------

_T = TypeVar("_T")


def _of(found: Object | NotVisible, read: Callable[[Object], _T]) -> _T | NotVisible:
    """What `read` finds in a struct, where there is one."""
    return found if isinstance(found, NotVisible) else seen(lambda: read(found))


def _is_movable(folio: FolioPages) -> bool:
    """Whether compaction may move a balloon page: by a flag, or by the kind of `mapping`."""
    if folio.layout.flag("movable_ops"):
        return folio.has_flag("movable_ops")
    return folio.mapping_kind is MappingKind.MOVABLE

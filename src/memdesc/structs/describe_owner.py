"""Who a folio belongs to: the memory cgroup that pays for it, the file that it caches.

Kernel addresses stay inside descriptors for whoever asks `what`. Nothing that is written to a
capture may carry one: it would tell a reader of the capture where the kernel's randomised
layout put its objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from memdesc.descriptors import AddressSpace
from memdesc.errors import FaultError, LayoutError
from memdesc.fact import Nobody, NotVisible
from memdesc.structs.describe_folio import seen
from memdesc.structs.describe_path import InodePaths
from memdesc.structs.kernel import Kernel
from memdesc.structs.paths import kernfs_path
from memdesc.types import CgroupInode

__all__ = ["Cgroups", "Mappings"]

_NO_TABLE_NAMES: Final = NotVisible("this kernel's symbols do not name its operations")

_DEEPEST: Final = 256
"""Levels of a cgroup tree; a longer chain is a loop."""


class Cgroups:
    """Memory cgroups by what a struct page's `memcg_data` says. Names are remembered."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.paths: dict[int, str] = {}
        """Inode -> path below the hierarchy's root, of every cgroup met."""
        types = kernel.types
        nr_flags = types.find_enumerator("__NR_MEMCG_DATA_FLAGS")
        # Without the enum, as 6.1 to 7.2 number them (include/linux/memcontrol.h).
        self._flag_mask = (nr_flags or 4) - 1
        self._objects = _first(kernel, "MEMCG_DATA_OBJEXTS", "MEMCG_DATA_OBJCGS", default=1)
        self._kmem = _first(kernel, "MEMCG_DATA_KMEM", default=2)
        self._online = _first(kernel, "CSS_ONLINE", default=2)
        # Since folios are charged through an obj_cgroup too, it hangs off each node's part.
        self._all_by_objcg = kernel.has("mem_cgroup_per_node", "objcg")

    def of(self, memcg_data: int) -> CgroupInode | Nobody | NotVisible:
        """The cgroup charged: the nearest one that is still online, as kpagecgroup shows it
        (`mm/memcontrol.c:page_cgroup_ino` @6.1, @7.2). Raises FaultError and LayoutError."""
        if not memcg_data:
            return Nobody()
        if memcg_data & self._objects:
            return NotVisible("charged per object, not per frame")
        group = memcg_data & ~self._flag_mask
        if memcg_data & self._kmem or self._all_by_objcg:
            found = self.kernel.load("obj_cgroup", group)["memcg"]
            if not found:
                return Nobody()
            group = found
        css = self.kernel.load("cgroup_subsys_state", group + self._css_offset)
        for _ in range(_DEEPEST):
            if css["flags"] & self._online:
                return self._named(css["cgroup"])
            parent = css.follow("parent")
            if parent is None:
                return Nobody()
            css = parent
        raise FaultError("a chain of cgroups does not end", css.address)

    def all(self) -> dict[int, str]:
        """Inode -> path of every memory cgroup of the hierarchy, removed ones left out.

        Raises FaultError and LayoutError; the children of one cgroup that cannot be read are
        left out with their subtrees.
        """
        self.paths.clear()
        root = self.kernel.u64(self.kernel.symbol("root_mem_cgroup"))
        for css in self._tree(root + self._css_offset, 0):
            self._named(css)
        return dict(self.paths)

    # --- helpers -------------------------------------------------------------------------

    @property
    def _css_offset(self) -> int:
        return self.kernel.member("mem_cgroup", "css").offset

    def _tree(self, css_address: int, depth: int) -> Iterator[int]:
        """Addresses of the cgroups of the online states at and below `css_address`."""
        css = self.kernel.load("cgroup_subsys_state", css_address)
        if css["flags"] & self._online:
            yield css["cgroup"]
        if depth >= _DEEPEST:
            return
        head = css.address_of("children")
        try:
            for child in self.kernel.list_entries(head, "cgroup_subsys_state", "sibling"):
                yield from self._tree(child.address, depth + 1)
        except FaultError:
            return

    def _named(self, cgroup: int) -> CgroupInode:
        """Remember the path of the cgroup at this address; returns its inode."""
        node = self.kernel.load("cgroup", cgroup).follow("kn")
        if node is None:
            raise FaultError("a cgroup has no node in its file system", cgroup)
        inode = CgroupInode(node["id"])
        if inode not in self.paths:
            self.paths[inode] = kernfs_path(self.kernel, node.address)
        return inode


class Mappings:
    """Address spaces of one kernel's files. Names of tables of operations are remembered."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._paths = InodePaths(kernel)
        self._tables: dict[int, str | NotVisible] = {}

    def at(self, mapping: int) -> AddressSpace:
        """What the `struct address_space` at `mapping` says of its file. Each field is read by
        itself, and says why where it cannot be."""
        kernel = self.kernel

        def host() -> int:
            return self._host(mapping)

        def filesystem() -> str:
            block = kernel.load("inode", host()).follow("i_sb")
            kind = None if block is None else block.follow("s_type")
            return "" if kind is None else kind.string("name")

        def operations() -> str | NotVisible:
            place = kernel.member("address_space", "a_ops").offset
            return self.table_name(kernel.u64(mapping + place))

        return AddressSpace(
            address=mapping,
            filesystem=seen(filesystem),
            inode=seen(lambda: kernel.u64(host() + kernel.member("inode", "i_ino").offset)),
            path=seen(lambda: self._paths.path_of(host())),
            operations=seen(operations),
        )

    def table_name(self, address: int) -> str | NotVisible:
        """The symbol of the table of calls at `address`: exactly there, as kernels that list
        only their code have some function before every table."""
        if address not in self._tables:
            name = self.kernel.symbols.name_at(address)
            if name is None or self.kernel.symbols.address_of(name) != address:
                self._tables[address] = _NO_TABLE_NAMES
            else:
                self._tables[address] = name
        return self._tables[address]

    def _host(self, mapping: int) -> int:
        """Address of the inode. Raises FaultError where the two do not lead to each other."""
        kernel = self.kernel
        inode = kernel.u64(mapping + kernel.member("address_space", "host").offset)
        if not inode:
            raise LayoutError("this address space belongs to no inode")
        own = kernel.u64(inode + kernel.member("inode", "i_mapping").offset)
        embedded = inode + kernel.member("inode", "i_data").offset
        if mapping not in (own, embedded):
            raise FaultError("the inode has another address space", inode)
        return inode


def _first(kernel: Kernel, *names: str, default: int) -> int:
    """The value of the first enumerator that this kernel has."""
    for name in names:
        value = kernel.types.find_enumerator(name)
        if value is not None:
            return value
    return default

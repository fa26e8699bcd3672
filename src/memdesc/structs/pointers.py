"""What the pointers in struct pages lead to: operations, cgroups, slab caches, files.

Millions of frames share few such pointers.  Each distinct one is followed once, and what
it leads to is remembered.  A pointer that leads nowhere is nothing, and is counted.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, FormatError, LayoutError
from memdesc.kernels.layout import PageLayout
from memdesc.kernels.page_state import Identity
from memdesc.map.codebook import CodeBook
from memdesc.structs.kernel import Kernel, Object

__all__ = ["Pointers"]

_U64 = NDArray[np.uint64]

_MOST_POINTERS = 1 << 18
"""Distinct pointers of one kind that are followed; damaged memory could hold any number."""
_MOST_PARENTS = 64
_ANONYMOUS_FILES = "anon_inodefs"
"""The file system of files without a name: perf events, eventfd, KVM."""

_BY_FUNCTION = {
    "secretmem_": Identity.SECRETMEM,
    "kvm_gmem_": Identity.GUEST_MEMFD,
    "zs_page_": Identity.ZSMALLOC,
    "balloon_page_": Identity.BALLOON,
}
"""First words of functions in address_space_operations and movable_operations. Functions are
in every kernel's symbols, the operations themselves only with CONFIG_KALLSYMS_ALL."""
_FILE_FUNCTIONS = ("migrate_folio", "dirty_folio", "read_folio", "free_folio")
_MOVABLE_FUNCTIONS = ("isolate_page", "migrate_page", "putback_page")


class Pointers:
    """Follows pointers of one kernel. Safe for several threads."""

    def __init__(self, kernel: Kernel, layout: PageLayout) -> None:
        self.kernel = kernel
        self._all_over_objcg = layout.folios_charge_objcg
        self.lost = 0
        """Pointers that could not be followed."""
        self.owner_names: list[str] = [""]
        self._owner_code: dict[str, int] = {"": 0}
        self._lock = threading.Lock()
        self._identities: dict[int, int] = {}
        self._mappings: dict[int, int] = {}
        self._caches: dict[int, int] = {}
        self._walks: dict[int, int] = {}
        self._memcgs = CodeBook("memory cgroups", limit=_MOST_POINTERS)
        self._inodes = np.zeros(1, np.uint64)
        """By the code of a word; that of 0 is 0."""
        slab = kernel.find_member("slab", "slab_cache")
        self.slab_cache_offset = None if slab is None else slab.offset
        """Offset of a slab's cache in its first struct page; None where it is not known."""

    def identities(self, mappings: _U64) -> _U64:
        """uint64: `Identity` of each `mapping` word, low bits included."""
        return self._each(mappings, self._identities, self._identity)

    def keys_of_mappings(self, mappings: _U64) -> _U64:
        """uint64: index into `owner_names` of each file's file system."""
        return self._each(mappings, self._mappings, self._file_system)

    def keys_of_caches(self, caches: _U64) -> _U64:
        """uint64: index into `owner_names` of each slab cache."""
        return self._each(caches, self._caches, self._cache)

    def keys_of_walks(self, owners: NDArray[np.uint32], names: tuple[str, ...]) -> _U64:
        """uint64: index into `owner_names` of each owner of a walk, by index into `names`."""
        return self._each(
            owners.astype(np.uint64), self._walks, lambda index: self._name(names[index])
        )

    def cgroup_inodes(self, words: _U64) -> _U64:
        """uint64: the inode number that kpagecgroup shows, for each word of memcg_data.

        A kernel page leads over its obj_cgroup, from 7.2 on every page does. A cgroup that
        was removed stands for its nearest living parent (`mm/memcontrol.c:page_cgroup_ino`
        @6.12).
        """
        try:
            codes = self._memcgs.codes(words)
        except FormatError:  # more than any machine has: damaged words charge nobody
            self.lost += words.size
            return np.zeros(words.size, np.uint64)
        if self._inodes.size < self._memcgs.keys.size:
            with self._lock:
                new = self._memcgs.keys[self._inodes.size :].tolist()
                found = [self._followed(self._cgroup_inode, word) for word in new]
                self._inodes = np.append(self._inodes, np.array(found, np.uint64))
        return self._inodes.take(codes)

    # --- helpers -------------------------------------------------------------------------

    def _each(self, values: _U64, known: dict[int, int], follow: Callable[[int], int]) -> _U64:
        if not values.size:
            return np.zeros(0, np.uint64)
        # Neighbours mostly share a pointer: look at each run of equal ones once.
        starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        distinct, inverse = np.unique(values[starts], return_inverse=True)
        results = np.zeros(distinct.size, np.uint64)
        for index, value in enumerate(distinct.tolist()):
            found = known.get(value)
            if found is None:
                if len(known) >= _MOST_POINTERS:
                    self.lost += 1
                    continue
                found = known[value] = self._followed(follow, value)
            results[index] = found
        return np.repeat(results[inverse], np.diff(starts, append=values.size))

    def _followed(self, follow: Callable[[int], int], value: int) -> int:
        try:
            return follow(value)
        except (FaultError, LayoutError):
            self.lost += 1
            return 0

    def _identity(self, mapping: int) -> int:
        kernel = self.kernel
        address = mapping & ~3
        if mapping & 3:
            names = self._functions("movable_operations", address, _MOVABLE_FUNCTIONS)
            unnamed = Identity.OTHER_MOVABLE
        else:
            if self._is_of_device(mapping):
                return Identity.DRIVER
            has_no_name = self._is_of_anonymous_file(mapping)
            address = kernel.u64(address + kernel.member("address_space", "a_ops").offset)
            names = self._functions("address_space_operations", address, _FILE_FUNCTIONS)
            unnamed = Identity.DRIVER if has_no_name else Identity.FILE
        for name in names:
            for prefix, identity in _BY_FUNCTION.items():
                if name.startswith(prefix):
                    return identity
        if unnamed is Identity.DRIVER:
            # guest_memfd kept its inodes among the files without a name at first; where the
            # symbols of its module are not known, its functions have none
            # (`virt/kvm/guest_memfd.c:__kvm_gmem_create` @6.12).
            return Identity.NOT_RESOLVED if "" in names else unnamed
        return unnamed if any(names) else Identity.NOT_RESOLVED

    def _is_of_device(self, mapping: int) -> bool:
        """Whether an address_space is a character device's."""
        host = self._host(mapping)
        if not host:
            return False
        mode = self.kernel.memory.read(host + self.kernel.member("inode", "i_mode").offset, 2)
        return stat.S_ISCHR(int.from_bytes(mode, "little"))

    def _is_of_anonymous_file(self, mapping: int) -> bool:
        """Whether an address_space is that of the inode which all anonymous files share
        (`kernel/events/core.c:perf_mmap_fault` @6.12), or of an inode beside it."""
        host = self._host(mapping)
        return bool(host) and self._file_system_name(host) == _ANONYMOUS_FILES

    def _host(self, mapping: int) -> int:
        """The inode of an address_space; 0 for none."""
        return self.kernel.u64(mapping + self.kernel.member("address_space", "host").offset)

    def _functions(self, struct: str, address: int, members: tuple[str, ...]) -> list[str]:
        """Names of the functions that a table of operations holds; "" for one that is not known."""
        kernel = self.kernel
        found = []
        for member in members:
            place = kernel.find_member(struct, member)
            function = 0 if place is None else kernel.u64(address + place.offset)
            if function:
                found.append(kernel.symbols.name_at(function) or "")
        return found

    def _cgroup_inode(self, word: int) -> int:
        """The inode number of what a word of memcg_data leads to."""
        kernel = self.kernel
        address = word & ~7
        if not address:
            return 0
        if self._all_over_objcg or word & 2:
            address = kernel.load("obj_cgroup", address)["memcg"]
        online = kernel.types.find_enumerator("CSS_ONLINE")
        for _ in range(_MOST_PARENTS):
            if not address:
                return 0
            css = self._css(address)
            if online is None or css["flags"] & online:
                group = css.follow("cgroup")
                node = None if group is None else group.follow("kn")
                return 0 if node is None else node["id"]
            address = css["parent"]
        raise FaultError(f"the cgroup at {address:#x} has no end of parents", address)

    def _css(self, memcg: int) -> Object:
        """The cgroup_subsys_state that every mem_cgroup begins with."""
        return self.kernel.load(
            "cgroup_subsys_state", memcg + self.kernel.member("mem_cgroup", "css").offset
        )

    def _file_system(self, mapping: int) -> int:
        kernel = self.kernel
        host = kernel.u64(mapping + kernel.member("address_space", "host").offset)
        if not host:
            return self._name("no inode")
        return self._name(self._file_system_name(host))

    def _file_system_name(self, inode: int) -> str:
        kernel = self.kernel
        block = kernel.u64(inode + kernel.member("inode", "i_sb").offset)
        kind = kernel.u64(block + kernel.member("super_block", "s_type").offset)
        return kernel.string(kernel.u64(kind + kernel.member("file_system_type", "name").offset))

    def _cache(self, cache: int) -> int:
        kernel = self.kernel
        if not cache:
            return 0
        name = kernel.u64(cache + kernel.member("kmem_cache", "name").offset)
        return self._name(kernel.string(name))

    def _name(self, name: str) -> int:
        with self._lock:
            code = self._owner_code.get(name)
            if code is None:
                code = self._owner_code[name] = len(self.owner_names)
                self.owner_names.append(name)
            return code

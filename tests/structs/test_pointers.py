"""Pointers of struct pages are followed once each, and those that lead nowhere are nothing."""

from __future__ import annotations

import numpy as np
import pytest
from struct_worlds import ArrayMemory, DictTypes

from memdesc.kernels.layout import PageLayout
from memdesc.kernels.page_state import Identity
from memdesc.kernels.release import KernelRelease
from memdesc.structs.kernel import Kernel
from memdesc.structs.pointers import Pointers

HEAP = 0xFFFF888000010000
CODE = 0xFFFFFFFF81000000
FUNCTIONS = {
    "secretmem_migrate_folio": CODE,
    "ext4_read_folio": CODE + 16,
    "zs_page_isolate": CODE + 32,
    "noop_dirty_folio": CODE + 48,
    "kvm_gmem_migrate_folio": CODE + 64,
}
REGULAR, CHARACTER_DEVICE = 0o100644, 0o020600


class Symbols:
    def address_of(self, name: str) -> int | None:
        return FUNCTIONS.get(name)

    def name_at(self, address: int) -> str | None:
        return next((name for name, at in FUNCTIONS.items() if at == address), None)


class Heap:
    """A page of kernel memory that structs are put into."""

    def __init__(self, series: str = "6.12") -> None:
        types = DictTypes.of(series)
        types.structs |= {
            "address_space": {"host": (0, 8), "a_ops": (8, 8)},
            "address_space_operations": {"read_folio": (0, 8), "migrate_folio": (8, 8)},
            "movable_operations": {"isolate_page": (0, 8)},
            "inode": {"i_mode": (0, 2), "i_sb": (8, 8)},
            "super_block": {"s_type": (0, 8)},
            "file_system_type": {"name": (0, 8)},
            "kmem_cache": {"name": (0, 8)},
            "slab": {"slab_cache": (8, 8)},
            "obj_cgroup": {**types.structs.get("obj_cgroup", {}), "memcg": (16, 8)},
            "mem_cgroup": {"css": (0, 32)},
            "cgroup_subsys_state": {
                "cgroup": (0, 8),
                "parent": (8, 8),
                "flags": (16, 8),
            },
            "cgroup": {"kn": (0, 8)},
            "kernfs_node": {"id": (0, 8)},
        }
        types.enumerators["CSS_ONLINE"] = 2
        types.pointers = {
            "cgroup_subsys_state.cgroup": "cgroup",
            "cgroup.kn": "kernfs_node",
        }
        self.bytes = np.zeros(4096, np.uint8)
        self.used = 0
        memory = ArrayMemory({HEAP: self.bytes})
        self.kernel = Kernel(
            memory, types, Symbols(), KernelRelease.parse("6.12"), "by hand", is_live=False
        )
        self.pointers = Pointers(self.kernel, PageLayout.probe(types))

    def put(self, *words: int) -> int:
        """Store 64-bit words; returns their address."""
        start, self.used = self.used, self.used + 64
        self.bytes.view(np.uint64)[start // 8 : start // 8 + len(words)] = words
        return HEAP + start

    def text(self, text: str) -> int:
        address = self.put()
        raw = np.frombuffer(text.encode() + b"\0", np.uint8)
        self.bytes[address - HEAP : address - HEAP + raw.size] = raw
        return address

    def mapping(self, *, mode: int, file_system: str, read: int = 0, migrate: int = 0) -> int:
        kind = self.put(self.text(file_system))
        inode = self.put(mode, self.put(kind))
        return self.put(inode, self.put(read, migrate))

    def cgroup(self, inode: int, *, online: bool, parent: int = 0) -> int:
        group = self.put(self.put(inode))
        return self.put(group, parent, 2 if online else 0)


def u64(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_functions_tell_whose_operations_a_mapping_has() -> None:
    heap = Heap()
    plain = heap.mapping(mode=REGULAR, file_system="ext4", read=FUNCTIONS["ext4_read_folio"])
    secret = heap.mapping(
        mode=REGULAR, file_system="secretmem", migrate=FUNCTIONS["secretmem_migrate_folio"]
    )
    unknown = heap.mapping(mode=REGULAR, file_system="9p", read=CODE + 4096)
    zsmalloc = heap.put(FUNCTIONS["zs_page_isolate"]) | 2
    found = heap.pointers.identities(u64(plain, secret, secret, unknown, zsmalloc, 0xDEAD0000))
    assert found.tolist() == [
        Identity.FILE,
        Identity.SECRETMEM,
        Identity.SECRETMEM,
        Identity.NOT_RESOLVED,
        Identity.ZSMALLOC,
        Identity.NOT_RESOLVED,
    ]
    assert heap.pointers.lost == 1


@pytest.mark.parametrize(
    ("mode", "file_system"), [(CHARACTER_DEVICE, "devtmpfs"), (0o600, "anon_inodefs")]
)
def test_a_mapping_of_a_device_or_of_files_without_names_is_a_driver_s(
    mode: int, file_system: str
) -> None:
    heap = Heap()
    mapping = heap.mapping(mode=mode, file_system=file_system)
    assert heap.pointers.identities(u64(mapping)).tolist() == [Identity.DRIVER]


def test_guest_memory_among_the_files_without_names_is_not_a_driver_s() -> None:
    """guest_memfd's inodes lie in anon_inodefs; a dump does not name the functions of kvm.ko."""
    heap = Heap()
    found = [
        heap.mapping(mode=0o600, file_system="anon_inodefs", migrate=function)
        for function in (
            FUNCTIONS["kvm_gmem_migrate_folio"],
            0xFFFFFFFFC0100000,
            FUNCTIONS["noop_dirty_folio"],
        )
    ]
    assert heap.pointers.identities(u64(*found)).tolist() == [
        Identity.GUEST_MEMFD,
        Identity.NOT_RESOLVED,
        Identity.DRIVER,
    ]


class TestCgroups:
    def test_a_kernel_page_leads_over_its_obj_cgroup_and_others_do_not(self) -> None:
        heap = Heap("6.12")
        group = heap.cgroup(1234, online=True)
        over = heap.put(0, 0, group)
        assert heap.pointers.cgroup_inodes(u64(group, over | 2, 0)).tolist() == [1234, 1234, 0]

    def test_from_7_2_on_every_page_does(self) -> None:
        heap = Heap("7.2")
        over = heap.put(0, 0, heap.cgroup(99, online=True))
        assert heap.pointers.cgroup_inodes(u64(over, over | 2)).tolist() == [99, 99]

    def test_a_removed_one_stands_for_its_living_parent(self) -> None:
        heap = Heap()
        root = heap.cgroup(1, online=True)
        gone = heap.cgroup(77, online=False, parent=heap.cgroup(78, online=False, parent=root))
        assert heap.pointers.cgroup_inodes(u64(gone)).tolist() == [1]

    def test_each_word_is_followed_once_whatever_comes_later(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heap = Heap("6.12")
        groups = [heap.cgroup(inode, online=True) for inode in (10, 11, 12)]
        followed: list[int] = []
        follow = heap.pointers._cgroup_inode
        monkeypatch.setattr(
            heap.pointers, "_cgroup_inode", lambda word: [followed.append(word), follow(word)][1]
        )
        found = [
            heap.pointers.cgroup_inodes(u64(*words)).tolist()
            for words in ([0, groups[0]], [groups[2], groups[0]], [groups[1], 0, groups[2]])
        ]
        assert found == [[0, 10], [12, 10], [11, 0, 12]]
        assert followed == [groups[0], groups[2], groups[1]]

    def test_a_ring_of_parents_ends(self) -> None:
        heap = Heap()
        group = heap.cgroup(5, online=False)
        heap.bytes.view(np.uint64)[(group - HEAP) // 8 + 1] = group
        assert heap.pointers.cgroup_inodes(u64(group, 0xDEAD000000000100)).tolist() == [0, 0]
        assert heap.pointers.lost == 2


def test_owners_have_names_and_equal_ones_one_code() -> None:
    heap = Heap()
    ext4 = [heap.mapping(mode=REGULAR, file_system="ext4") for _ in range(2)]
    dentry = heap.put(heap.text("dentry"))
    codes = heap.pointers.keys_of_mappings(u64(ext4[0], ext4[0], ext4[1]))
    codes = np.concatenate([codes, heap.pointers.keys_of_caches(u64(dentry, 0))])
    codes = np.concatenate(
        [codes, heap.pointers.keys_of_walks(np.array([0], np.uint32), ("cpu 0",))]
    )
    names = [heap.pointers.owner_names[code] for code in codes.tolist()]
    assert names == ["ext4", "ext4", "ext4", "dentry", "", "cpu 0"]

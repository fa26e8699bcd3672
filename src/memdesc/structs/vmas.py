"""The areas of an address space (VMAs), from the maple tree that holds them.

A maple tree has nodes of 256 bytes.  The low bits of a link say which kind of node it leads
to; pivots part the address range among the slots, and the slots of a leaf hold the VMAs.

Sources: `include/linux/maple_tree.h`, `lib/maple_tree.c:mte_to_node,mte_node_type,
mas_logical_pivot`, `fs/proc/task_mmu.c:show_vma_header_prefix,get_vma_name` @6.1, @6.12,
@7.2. Before 6.1 a red-black tree held them; such kernels are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from memdesc.errors import FaultError, LayoutError
from memdesc.kernels.pagemap_words import ProcRules
from memdesc.map.attribution import PERM_EXEC, PERM_READ, PERM_SHARED, PERM_WRITE, perms_text
from memdesc.structs.kernel import Kernel, Object
from memdesc.structs.paths import Paths
from memdesc.structs.torn import Torn
from memdesc.types import PAGE_SHIFT

__all__ = ["Area", "AreaReader", "VmaFlags", "maple_entries", "maps_text"]

_VSYSCALL_NONE = 2
"""`enum { EMULATE, XONLY, NONE } vsyscall_mode` (`vsyscall_64.c`)."""
_MOST_ENTRIES = 1 << 20
"""VMAs of one process; sysctl vm.max_map_count is 65530 unless raised."""
_LONGEST_NAME = 256


@dataclass(frozen=True, slots=True)
class VmaFlags:
    """Masks of `vm_flags`. Macros up to 6.18 (`include/linux/mm.h`); later kernels number
    them in an enum, which `of` reads."""

    read: int = 1 << 0
    write: int = 1 << 1
    execute: int = 1 << 2
    may_share: int = 1 << 7
    pfnmap: int = 1 << 10
    hugetlb: int = 1 << 22
    soft_dirty: int = 1 << 27

    @classmethod
    def of(cls, kernel: Kernel) -> VmaFlags:
        """The masks of this kernel."""
        names = {
            "read": "READ",
            "write": "WRITE",
            "execute": "EXEC",
            "may_share": "MAYSHARE",
            "pfnmap": "PFNMAP",
            "hugetlb": "HUGETLB",
            "soft_dirty": "SOFTDIRTY",
        }
        found = {
            field: kernel.types.find_enumerator(f"VMA_{name}_BIT") for field, name in names.items()
        }
        return cls(**{field: 1 << bit for field, bit in found.items() if bit is not None})


@dataclass(frozen=True, slots=True)
class Area:
    """One VMA. Addresses and the offset in bytes."""

    start: int
    end: int
    flags: int
    """`vm_flags`, this kernel's own bits (`VmaFlags`)."""
    perms: int
    """`PERM_*` bits."""
    offset: int
    device: int
    """Major << 20 | minor, 0 for none."""
    inode: int
    name: str
    """As /proc/PID/maps prints it; "" for none."""


class AreaReader:
    """Reads the VMAs of one kernel's processes."""

    def __init__(self, kernel: Kernel, paths: Paths) -> None:
        """Raises LayoutError for a kernel without maple trees."""
        if not kernel.has("mm_struct", "mm_mt"):
            raise LayoutError(
                f"{kernel.release} keeps its VMAs in no maple tree",
                hint="who maps what is read from kernels since 6.1",
            )
        self.kernel = kernel
        self.paths = paths
        self.flags = VmaFlags.of(kernel)
        self.heap_has_edges = ProcRules.of(kernel.release).heap_has_edges
        self.has_anon_names = kernel.has("vm_area_struct", "anon_name")
        # Up to 6.1 in a union with the links of a file's areas: only other areas have names.
        self.files_have_names = self.has_anon_names and (
            kernel.member("vm_area_struct", "anon_name").offset
            != kernel.member("vm_area_struct", "shared").offset
        )
        self._specials: dict[int, bool] = {}
        self._gate = self._find_gate()

    def areas(self, mm: Object, torn: Torn) -> list[Area]:
        """Every VMA of `mm` (an mm_struct), by rising address, and the vsyscall page behind
        them where the kernel has one and its symbols tell.

        What could not be read is left out and said in `torn`.
        """
        found: list[Area] = []
        for address in maple_entries(self.kernel, mm.address_of("mm_mt"), torn):
            try:
                vma = self.kernel.load("vm_area_struct", address)
            except FaultError as error:
                torn.add(f"VMA at {address:#x}: {error}")
                continue
            # A VMA that was freed meanwhile belongs to another address space, or to none.
            if vma["vm_mm"] != mm.address:
                torn.add(f"{address:#x} is no VMA of this process")
                continue
            found.append(self._area(mm, vma, torn))
        # A 32-bit process has no vsyscall page.
        if self._gate is not None and mm["task_size"] > 1 << 32:
            found.append(self._gate)
        return found

    def _area(self, mm: Object, vma: Object, torn: Torn) -> Area:
        """One VMA; a name that cannot be read is left out."""
        flags, file = vma["vm_flags"], vma["vm_file"]
        start, end = vma["vm_start"], vma["vm_end"]
        device = inode = 0
        name = ""
        try:
            if file:
                found = self.paths.name_of(file)
                device, inode = found.device, found.inode
                given = self._anon_name(vma) if self.files_have_names else ""
                name = f"[anon_shmem:{given}]" if given else found.path
            else:
                name = self._name(mm, vma, start, end)
        except FaultError as error:
            torn.add(f"name of the VMA at {start:#x}: {error}")
        offset = (vma["vm_pgoff"] << PAGE_SHIFT) & ((1 << 64) - 1) if file else 0
        return Area(start, end, flags, self._perms(flags), offset, device, inode, name)

    def _find_gate(self) -> Area | None:
        """The vsyscall page, which is in no tree (`arch/x86/entry/vsyscall/vsyscall_64.c:
        get_gate_vma`); None where the kernel has none or its symbols are not known."""
        kernel = self.kernel
        mode, gate = (kernel.symbols.address_of(name) for name in ("vsyscall_mode", "gate_vma"))
        if mode is None or gate is None:
            return None
        try:
            if kernel.u32(mode) == _VSYSCALL_NONE:
                return None
            vma = kernel.load("vm_area_struct", gate)
        except FaultError:
            return None
        flags = vma["vm_flags"]
        start, end = vma["vm_start"], vma["vm_end"]
        return Area(start, end, flags, self._perms(flags), 0, 0, 0, "[vsyscall]")

    def _perms(self, flags: int) -> int:
        masks = self.flags
        pairs = (
            (masks.read, PERM_READ),
            (masks.write, PERM_WRITE),
            (masks.execute, PERM_EXEC),
            (masks.may_share, PERM_SHARED),
        )
        return sum(perm for mask, perm in pairs if flags & mask)

    def _name(self, mm: Object, vma: Object, start: int, end: int) -> str:
        """Of a VMA without a file."""
        if special := self._special(vma):
            return special
        # vma_is_initial_heap(), vma_is_initial_stack().
        low, high = mm["start_brk"], mm["brk"]
        if self.heap_has_edges:
            low, high = low - 1, high + 1
        if start < high and end > low:
            return "[heap]"
        if start <= mm["start_stack"] <= end:
            return "[stack]"
        given = self._anon_name(vma)
        return f"[anon:{given}]" if given else ""

    def _special(self, vma: Object) -> str:
        """The name of a special mapping: [vdso], [vvar], [uprobes]."""
        operations = vma.follow("vm_ops")
        if operations is None or not operations["name"]:
            return ""
        function = operations["name"]
        if function not in self._specials:
            named = self.kernel.symbols.name_at(function)
            self._specials[function] = named in ("special_mapping_name", None)
        if not self._specials[function]:
            return ""
        mapping = vma.follow("vm_private_data", "vm_special_mapping")
        return mapping.string("name") if mapping is not None else ""

    def _anon_name(self, vma: Object) -> str:
        """Given with PR_SET_VMA_ANON_NAME."""
        if not self.has_anon_names or not vma["anon_name"]:
            return ""
        offset = self.kernel.member("anon_vma_name", "name").offset
        return self.kernel.string(vma["anon_name"] + offset, _LONGEST_NAME)


def maple_entries(kernel: Kernel, tree: int, torn: Torn) -> Iterator[int]:
    """The entries of the `struct maple_tree` at `tree`, in order, each once.

    Nodes that cannot be read, or were met before, are left out and said in `torn`.
    """
    try:
        root = kernel.u64(tree + kernel.member("maple_tree", "ma_root").offset)
    except FaultError as error:
        torn.add(f"maple tree: {error}")
        return
    if not root:
        return
    if root & _NODE_MARK != _NODE_MARK or root <= _LAST_INTERNAL:
        yield root  # a tree of one entry needs no node
        return
    walker = _Maple(kernel, torn)
    for index, entry in enumerate(walker.entries(root, 0, (1 << 64) - 1)):
        if index == _MOST_ENTRIES:
            torn.add(f"more than {_MOST_ENTRIES} VMAs")
            return
        yield entry


def maps_text(areas: Sequence[Area]) -> bytes:
    """The lines of /proc/PID/maps (`fs/proc/task_mmu.c:show_map_vma`)."""
    return b"".join(
        (
            f"{area.start:08x}-{area.end:08x} {perms_text(area.perms)} {area.offset:08x} "
            f"{area.device >> 20:02x}:{area.device & 0xFFFFF:02x} {area.inode} "
        ).encode()
        + (b" " + area.name.encode().replace(b"\n", b"\\012") if area.name else b"")
        + b"\n"
        for area in areas
    )


# --- the maple tree ----------------------------------------------------------------------

_NODE_MASK: Final = 0xFF
"""MAPLE_NODE_MASK: nodes are aligned to their size."""
_TYPE_SHIFT: Final = 3
_TYPE_MASK: Final = 0xF
_NODE_MARK: Final = 2
"""xa_is_node(): an internal entry above 4096."""
_LAST_INTERNAL: Final = 4096
_DEEPEST: Final = 31
"""MAPLE_HEIGHT_MAX."""


class _Maple:
    """Walks one tree. Slots and pivots are where type information says."""

    def __init__(self, kernel: Kernel, torn: Torn) -> None:
        self.kernel = kernel
        self.torn = torn
        self.seen: set[int] = set()
        self.size = kernel.size_of("maple_node")
        number = kernel.types.find_enumerator
        shapes = (
            ("maple_leaf_64", "mr64"),
            ("maple_range_64", "mr64"),
            ("maple_arange_64", "ma64"),
        )
        self.shapes = {
            number(name): (self._words(f"{union}.pivot"), self._words(f"{union}.slot"))
            for name, union in shapes
        }
        self.leaf = number("maple_leaf_64")

    def _words(self, path: str) -> slice:
        """The words of a node that an array takes."""
        member = self.kernel.member("maple_node", path)
        return slice(member.offset // 8, (member.offset + member.size_bits // 8) // 8)

    def entries(self, link: int, low: int, high: int, depth: int = 0) -> Iterator[int]:
        """The entries below `link`, which covers addresses [low, high]."""
        address, kind = link & ~_NODE_MASK, link >> _TYPE_SHIFT & _TYPE_MASK
        if depth == _DEEPEST:
            self.torn.add(f"maple tree is deeper than {_DEEPEST} levels")
            return
        if address in self.seen:
            self.torn.add(f"maple node at {address:#x} is met twice")
            return
        self.seen.add(address)
        if kind not in self.shapes:
            self.torn.add(f"maple node at {address:#x} has the unknown type {kind}")
            return
        try:
            raw = self.kernel.memory.read(address, self.size)
        except FaultError as error:
            self.torn.add(f"maple node: {error}")
            return
        words = memoryview(raw).cast("Q")
        pivots, slots = (words[part] for part in self.shapes[kind])
        for index, slot in enumerate(slots):
            last = index == len(pivots)
            end = high if last else pivots[index]
            # A pivot of 0 behind the first slot: the rest of the range is this slot's.
            if not end and index:
                end = high
            if not low <= end <= high:
                self.torn.add(f"maple node at {address:#x}: pivot {end:#x} is out of order")
                return
            if slot:
                if kind == self.leaf:
                    if slot & 3 == 0 and slot not in self.seen:
                        self.seen.add(slot)
                        yield slot
                else:
                    yield from self.entries(slot, low, end, depth + 1)
            if end == high:
                return
            low = end + 1

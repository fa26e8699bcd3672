"""Where x86-64 keeps its direct map of physical memory and its array of struct pages.

With KASLR (CONFIG_RANDOMIZE_MEMORY) both begin somewhere else at every boot, at a multiple of
1 GiB; with five levels of page tables they begin in a much larger room.  The kernel's variables
`page_offset_base` and `vmemmap_base` say where, but many kernels do not list them
(CONFIG_KALLSYMS_ALL) or hide them (kernel.kptr_restrict).  On a live machine both are found
from what this process knows of its own memory, and that proves itself:

- The direct map from the address of our own task_struct, which lies in it, so that only the
  multiples of 1 GiB below that address come into question; the right one shows, at the physical
  address of VMCOREINFO or of a page of ours, what is known to be there.
- vmemmap from the page tables: of the few 1 GiB ranges that are mapped at all, the right one
  has, for 16 pages of ours, a struct page that holds the page's own index.

Sources: `arch/x86/mm/kaslr.c:kernel_randomize_memory`, `Documentation/arch/x86/x86_64/mm.rst`,
`arch/x86/include/asm/page_64_types.h`, `kernel/ksysfs.c:vmcoreinfo_show` @6.12.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, LayoutError
from memdesc.structs.bpf import BpfMemory
from memdesc.structs.kernel import Kernel, Memory
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES

__all__ = [
    "Known",
    "OwnPages",
    "ProbedMemory",
    "find_direct_map",
    "find_vmemmap",
    "known_places",
    "live_direct_map",
    "mapped_gib",
    "page_offset_base",
    "vmcoreinfo_place",
    "vmemmap_base",
]

_GIB: Final = 1 << 30
_FOUR_LEVELS_START: Final = 0xFFFF800000000000
"""The kernel's half with four levels; with five, the direct map begins below it (at
0xff11000000000000, and KASLR moves it up by less than a third of the room)."""
_FIVE_LEVELS_START: Final = 0xFF00000000000000
_DIRECT_MAPS: Final = (0xFFFF888000000000, 0xFF11000000000000)
_VMEMMAPS: Final = (0xFFFFEA0000000000, 0xFFD4000000000000)
"""Without KASLR, with four and with five levels."""

_MOST_GIB: Final = 1 << 22
"""4 PiB of physical memory, all that five levels map."""
_VMCOREINFO: Final = Path("/sys/kernel/vmcoreinfo")

_ENTRIES: Final = 512
_PRESENT, _LARGE = 1, 1 << 7
_FRAME_MASK: Final = (1 << 52) - PAGE_SIZE_BYTES
_ENCRYPTED: Final = (0, 1 << 47, 1 << 51)
"""The bit that marks encrypted memory in entries of AMD's processors, where there is one
(`arch/x86/mm/mem_encrypt_identity.c:sme_enable`): all page tables have it then."""

_NR_OWN_PAGES: Final = 16
_ENOUGH: Final = 12
"""Of our own pages: some may move to another frame while we look."""


class ProbedMemory(Memory, Protocol):
    """Memory of which many addresses can be tried at once."""

    def read_many(
        self, addresses: NDArray[np.uint64], size_bytes: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """As `BpfMemory.read_many`."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known to be in physical memory."""

    physical: int
    content: bytes
    what: str


# --- the answers -------------------------------------------------------------------------


def page_offset_base(kernel: Kernel) -> int:
    """Address of physical address 0 in the direct map.

    Raises LayoutError where it cannot be found, with what would help.
    """
    if isinstance(kernel.memory, BpfMemory):
        return _found_or_named(kernel, "page_offset_base", _live_direct_map)
    # Physical memory begins with RAM: the map's first page is there, or this is not the map.
    return kernel.find_variable("page_offset_base") or _default(
        kernel, "the direct map", _DIRECT_MAPS, "page_offset_base"
    )


def vmemmap_base(kernel: Kernel) -> int:
    """Address of the struct page of frame 0, whether or not there is one.

    Raises LayoutError where it cannot be found, with what would help.
    """
    if isinstance(kernel.memory, BpfMemory):
        return _found_or_named(kernel, "vmemmap_base", _live_vmemmap)
    return kernel.find_variable("vmemmap_base") or _default(
        kernel, "vmemmap", _VMEMMAPS, "vmemmap_base"
    )


# --- how they are found ------------------------------------------------------------------


def live_direct_map(memory: BpfMemory, *, proc: Path = Path("/proc")) -> int:
    """The direct map's base on the running machine, found as `find_direct_map` does.

    Raises LayoutError where it is not found, and where looking is not safe: trying places
    reads physical memory at random, and a confidential guest (TDX, SEV-SNP) that touches
    memory which it has not accepted is stopped (`drivers/firmware/efi/unaccepted_memory.c`).
    """
    if unaccepted := _unaccepted_bytes(proc):
        raise LayoutError(
            f"the kernel's direct map is not looked for: {unaccepted >> 20} MiB of this guest's "
            "memory are not accepted yet and must not be touched",
            hint="a kernel that lists page_offset_base in /proc/kallsyms tells where it is",
        )
    with OwnPages() as pages:
        return find_direct_map(memory, memory.current_task(), list(known_places(pages)))


def find_direct_map(memory: ProbedMemory, inside: int, known: list[Known]) -> int:
    """The direct map's base, from an address inside it and what is `known` of the memory.

    Tries every multiple of 1 GiB below `inside`, the nearest first: one for each GiB of the
    machine at most. Raises LayoutError when none shows all of `known`.
    """
    if not known:
        raise LayoutError(
            "where the kernel's direct map begins is not known: no content of physical memory is",
            hint="/sys/kernel/vmcoreinfo, or CAP_SYS_ADMIN for /proc/self/pagemap, gives some",
        )
    nearest = inside // _GIB * _GIB
    lowest = _FOUR_LEVELS_START if inside >= _FOUR_LEVELS_START else _FIVE_LEVELS_START
    first, step = known[0], 512
    for above in range(0, min(_MOST_GIB, (nearest - lowest) // _GIB + 1), step):
        bases = np.uint64(nearest) - np.arange(above, above + step, dtype=np.uint64) * np.uint64(
            _GIB
        )
        content, readable = memory.read_many(bases + np.uint64(first.physical), len(first.content))
        for index in np.flatnonzero(readable).tolist():
            base = int(bases[index])
            if content[index].tobytes() == first.content and all(
                _shows(memory, base, one) for one in known
            ):
                return base
    raise LayoutError(
        f"the kernel's direct map was not found below {inside:#x}: "
        f"{known[0].what} is nowhere to be seen"
    )


def find_vmemmap(
    memory: ProbedMemory, pgd: int, page_offset: int, pages: OwnPages, *, page_size: int
) -> int:
    """The base of vmemmap: the only mapped one where the struct pages of `pages` are.

    `pgd` is the address of a top page table. Raises LayoutError when there is none.
    """
    frames = pages.frames()
    if frames is None:
        raise LayoutError(
            "where vmemmap begins is not known, and this process may not learn the frames of "
            "its own pages",
            hint="it needs CAP_SYS_ADMIN, or a kernel that lists vmemmap_base in /proc/kallsyms",
        )
    offsets = frames * np.uint64(page_size)
    within = int(offsets[0]) // _GIB * _GIB
    # From above: below vmemmap the direct map shows the same struct pages once more.
    for start in reversed(list(mapped_gib(memory, pgd, page_offset))):
        base = start - within
        structs, readable = memory.read_many(np.uint64(base) + offsets, page_size)
        if np.count_nonzero(readable) >= _ENOUGH and _hold(structs, pages.indices):
            return base
    raise LayoutError(
        "vmemmap was not found: nowhere in the kernel's page tables are the struct pages of "
        "our own pages",
        hint="the kernel may be built without CONFIG_SPARSEMEM_VMEMMAP; use --source live:proc",
    )


def mapped_gib(memory: Memory, pgd: int, page_offset: int) -> Iterator[int]:
    """Addresses of the kernel's half of which anything is mapped, each a multiple of 1 GiB,
    rising. `pgd` is the address of the top page table; how many levels there are shows in
    where the direct map begins."""
    levels = 5 if page_offset < _FOUR_LEVELS_START else 4
    start = (1 << 64) - (1 << (12 + 9 * levels - 1))
    table = np.frombuffer(memory.read(pgd, PAGE_SIZE_BYTES), np.uint64)
    yield from _entries(memory, table[_ENTRIES // 2 :], start, levels - 1, page_offset)


def vmcoreinfo_place() -> tuple[int, int] | None:
    """Physical address and size in bytes of the kernel's VMCOREINFO note; None where the
    kernel keeps none (CONFIG_VMCORE_INFO)."""
    try:
        address, size = _VMCOREINFO.read_text().split()
        return int(address, 16), int(size, 16)
    except (OSError, ValueError):
        return None


def known_places(pages: OwnPages) -> Iterator[Known]:
    """What this process knows about physical memory."""
    place = vmcoreinfo_place()
    if place is not None:
        yield Known(place[0] + 12, b"VMCOREINFO\0", "the note VMCOREINFO")
    frames = pages.frames()
    if frames is not None:
        yield Known(int(frames[0]) << PAGE_SHIFT, pages.pattern(0), "a page of this process")


class OwnPages:
    """A few pages of this process whose content, index and frames are known."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(
            -1, _NR_OWN_PAGES * PAGE_SIZE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        try:
            # The tails of a large folio have no index of their own.
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        except OSError:
            pass  # a kernel without large folios
        self._secret = os.urandom(32)
        for number in range(_NR_OWN_PAGES):
            start = number * PAGE_SIZE_BYTES
            self._memory[start : start + 64] = self.pattern(number)
        view = np.frombuffer(self._memory, np.uint8)
        first = view.ctypes.data >> PAGE_SHIFT
        del view
        self.indices: NDArray[np.uint64] = np.arange(first, first + _NR_OWN_PAGES, dtype=np.uint64)
        """uint64[n]: `page->index` of anonymous memory is its virtual address in pages
        (`include/linux/pagemap.h:linear_page_index`)."""

    def pattern(self, number: int) -> bytes:
        """The 64 bytes that page `number` begins with."""
        return (self._secret + struct.pack("<Q", number)).ljust(64, b"\x5a")

    def frames(self) -> NDArray[np.uint64] | None:
        """uint64[n]: where the pages are now; None where the kernel does not tell
        (`fs/proc/task_mmu.c`: without CAP_SYS_ADMIN all frames read 0)."""
        try:
            with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
                file.seek(int(self.indices[0]) * 8)
                entries = np.frombuffer(file.read(_NR_OWN_PAGES * 8), np.uint64)
        except OSError:
            return None
        frames = entries & np.uint64((1 << 55) - 1)
        present = entries >> np.uint64(63) != 0
        if entries.size != _NR_OWN_PAGES or not (present & (frames != 0)).all():
            return None
        return frames

    def close(self) -> None:
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


# --- helpers -----------------------------------------------------------------------------


def _found_or_named(kernel: Kernel, name: str, find: Callable[[Kernel, BpfMemory], int]) -> int:
    """Finding takes 4 ms and proves itself; reading /proc/kallsyms takes 80."""
    assert isinstance(kernel.memory, BpfMemory)
    try:
        return find(kernel, kernel.memory)
    except (LayoutError, FaultError):
        value = kernel.find_variable(name)
        if value is None:
            raise
        return value


def _live_direct_map(_kernel: Kernel, memory: BpfMemory) -> int:
    return live_direct_map(memory)


def _unaccepted_bytes(proc: Path = Path("/proc")) -> int:
    """Memory of this machine that was not accepted yet; 0 where there is no such thing."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return 0
    found = (line.split() for line in lines if line.startswith("Unaccepted:"))
    return next((int(words[1]) << 10 for words in found), 0)


def _live_vmemmap(kernel: Kernel, memory: BpfMemory) -> int:
    mm = kernel.load("task_struct", memory.current_task()).follow("mm")
    if mm is None:
        raise LayoutError("this process has no memory of its own to find vmemmap with")
    with OwnPages() as pages:
        return find_vmemmap(
            memory,
            mm["pgd"],
            page_offset_base(kernel),
            pages,
            page_size=kernel.size_of("page"),
        )


def _default(kernel: Kernel, what: str, bases: tuple[int, ...], symbol: str) -> int:
    """The base of `bases` at which there is memory."""
    for base in bases:
        try:
            kernel.memory.read(base, 8)
        except FaultError:
            continue
        return base
    raise LayoutError(
        f"where {what} of {kernel.name} begins is not known",
        hint=f"the kernel's symbol {symbol} would tell; give its vmlinux with --vmlinux",
    )


def _shows(memory: Memory, base: int, known: Known) -> bool:
    try:
        return memory.read(base + known.physical, len(known.content)) == known.content
    except FaultError:
        return False


def _hold(structs: NDArray[np.uint8], indices: NDArray[np.uint64]) -> bool:
    """Whether some word of the structs, the same in all, is their page's index.

    So nothing about the layout of struct page is assumed.
    """
    words = structs[:, : structs.shape[1] // 8 * 8].view(np.uint64)
    equal = words == indices[:, None]
    return bool((np.count_nonzero(equal, axis=0) >= _ENOUGH).any())


def _entries(
    memory: Memory, table: NDArray[np.uint64], start: int, level: int, page_offset: int
) -> Iterator[int]:
    """Of a table whose entries map 2**(12 + 9 * level) bytes each, from `start` on."""
    size = 1 << (12 + 9 * level)
    for number in np.flatnonzero(table & np.uint64(_PRESENT)).tolist():
        address = start + number * size
        entry = int(table[number])
        if size == _GIB:
            yield address
        elif not entry & _LARGE:
            below = _table_at(memory, page_offset, entry & _FRAME_MASK)
            if below is not None:
                yield from _entries(memory, below, address, level - 1, page_offset)


def _table_at(memory: Memory, page_offset: int, physical: int) -> NDArray[np.uint64] | None:
    """The table at this address, which may have the mark of encrypted memory; None for one
    elsewhere than in ordinary memory."""
    for bit in _ENCRYPTED:
        if bit and not physical & bit:
            continue
        try:
            raw = memory.read(page_offset + (physical & ~bit), PAGE_SIZE_BYTES)
        except FaultError:
            continue
        return np.frombuffer(raw, np.uint64)
    return None

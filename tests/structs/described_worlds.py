"""Dumps of guests with planted memory, described, beside what their kernels said in /proc.

The dumps are those of `structs.real_dumps`; the tree is of the same moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from structs.real_dumps import frames_of_writers, real_dump

from memdesc.descriptors import (
    Descriptor,
)
from memdesc.kernels.pagemap import Present
from memdesc.map.extents import MemoryMap
from memdesc.sources.procfs import read_machine
from memdesc.sources.source import pagemap_entry
from memdesc.structs.describe import KernelDescriber
from memdesc.structs.dump import open_dump
from memdesc.structs.kernel import Kernel, Memory
from memdesc.structs.memmap import MemMap
from memdesc.structs.scan import StructScan
from memdesc.structs.walk import walk_owned
from memdesc.types import MemoryType, Pfn, Pid, VirtAddr

PAGE = 4096


@dataclass
class World:
    """A dump, described, and what its kernel had said in /proc just before."""

    kernel: Kernel
    memmap: MemMap
    map: MemoryMap
    describer: KernelDescriber
    tree: Path

    def words(self, name: str) -> NDArray[np.uint64]:
        return np.fromfile(self.tree / "proc" / name, np.uint64)

    @cached_property
    def planted(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((self.tree / "planted.json").read_text())
        return [row for row in rows if "missing" not in row]

    def pfns(self, row: dict[str, Any]) -> Iterator[tuple[int, Pfn]]:
        """(page within what was planted, frame) of a planted row, as far as it is present."""
        for page in range(row["nr_pages"]):
            if "pfn_start" in row:
                yield page, Pfn(row["pfn_start"] + page)
                continue
            address = VirtAddr(row["address"] + page * PAGE)
            entry = pagemap_entry(self.tree, Pid(row["pid"]), address, self.kernel.release)
            if isinstance(entry.target, Present) and isinstance(entry.target.pfn, int):
                yield page, entry.target.pfn

    def frames_of_writers(self) -> NDArray[np.bool_]:
        """bool[pfn_end]: what those map who changed while the copy was written."""
        return frames_of_writers(self.kernel, self.memmap, self.tree, self.map.pfn_end)

    def described(self, kind: str) -> list[Descriptor]:
        """The descriptors of all frames planted as `kind`; fails where there are none."""
        found = [
            self.describer.descriptor_of(pfn)
            for row in self.planted
            if row["kind"] == kind
            for _, pfn in self.pfns(row)
        ]
        assert found, f"nothing was planted as {kind}"
        return found

    @cached_property
    def every(self) -> tuple[Descriptor, ...]:
        """One descriptor of each extent, folio and free block."""
        found: list[Descriptor] = []
        pfn = 0
        while pfn < self.map.pfn_end:
            descriptor = self.describer.descriptor_of(Pfn(pfn))
            found.append(descriptor)
            is_run = descriptor.pages.nr_pages == 1
            end = self.map.extent(self.map.index_of(pfn)).pages.pfn_end
            # Frames of one extent that are no compound page are all alike but for their counts.
            pfn = end if is_run else descriptor.pages.pfn_end
        return tuple(found)

    def frames(self, kind: MemoryType) -> Iterator[Descriptor]:
        """The descriptor of each frame of one kind."""
        for index in range(len(self.map)):
            extent = self.map.extent(index)
            if extent.fact.types.only is kind:
                for pfn in range(extent.pages.pfn_start, extent.pages.pfn_end):
                    yield self.describer.descriptor_of(Pfn(pfn))


def world_of(request: pytest.FixtureRequest) -> World:
    """The world of the kernel that a fixture is asked for; kept for the whole session."""
    dump = real_dump(request, request.param)
    return _world(dump.elf, dump.vmlinux, dump.elf.parent / "tree")


@cache
def _world(dump: Path, vmlinux: Path, tree: Path) -> World:
    kernel = open_dump(dump, vmlinux)
    memmap = MemMap.find(kernel)
    owned = walk_owned(kernel, memmap)
    result = StructScan(kernel, memmap, read_machine(tree), owned).map()
    return World(kernel, memmap, result, KernelDescriber(kernel, memmap, result, owned), tree)


# --- damage ------------------------------------------------------------------------------


class Patched:
    """A kernel's memory with some bytes replaced."""

    def __init__(self, memory: Memory, patches: dict[int, bytes]) -> None:
        self.memory = memory
        self.patches = patches

    def read(self, address: int, size_bytes: int) -> bytes:
        data = bytearray(size_bytes)
        self.read_into(address, np.frombuffer(data, np.uint8))
        return bytes(data)

    def read_into(self, address: int, into: NDArray[np.uint8]) -> None:
        self.memory.read_into(address, into)
        for start, content in self.patches.items():
            for offset, value in enumerate(content):
                if 0 <= start + offset - address < into.size:
                    into[start + offset - address] = value


def patched(world: World, patches: dict[int, bytes]) -> tuple[Kernel, MemMap]:
    kernel = replace(world.kernel, memory=Patched(world.kernel.memory, patches))
    return kernel, replace(world.memmap, kernel=kernel)

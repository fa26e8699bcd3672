"""The running kernel as a `Kernel`, and where KASLR has put its maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from memdesc.errors import FaultError, LayoutError
from memdesc.structs import bases, live
from memdesc.structs.bases import (
    Known,
    OwnPages,
    find_direct_map,
    find_vmemmap,
    mapped_gib,
    page_offset_base,
    vmemmap_base,
)
from memdesc.structs.kernel import Kernel
from memdesc.structs.live import live_vmcoreinfo, open_live_kernel, why_not
from memdesc.types import PAGE_SHIFT

NOT_HERE = why_not()
GIB = 1 << 30


class NoSymbols:
    def address_of(self, name: str) -> int | None:
        return None

    def name_at(self, address: int) -> str | None:
        return None


@pytest.mark.live
@pytest.mark.skipif(bool(NOT_HERE), reason=f"{NOT_HERE}; run as root on a kernel with BTF")
class TestTheRunningKernel:
    @pytest.fixture
    def kernel(self):
        opened = open_live_kernel()
        yield opened
        opened.memory.close()

    @pytest.fixture
    def hidden(self, kernel) -> Kernel:
        """The same kernel as kernel.kptr_restrict=2 shows it."""
        return dataclasses.replace(kernel, symbols=NoSymbols())

    def test_it_says_its_own_release(self, kernel):
        address = kernel.symbols.address_of("init_uts_ns")
        if address is None:
            pytest.skip("init_uts_ns is neither in VMCOREINFO nor in /proc/kallsyms")
        release = kernel.load("uts_namespace", address).text("name.release")
        assert release == Path("/proc/sys/kernel/osrelease").read_text().strip()
        assert kernel.release.text == release
        assert kernel.is_live

    def test_our_own_task_is_as_proc_says(self, kernel):
        task = kernel.load("task_struct", kernel.memory.current_task())
        lines = Path("/proc/thread-self/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert task["tgid"] == int(status["Tgid"])
        assert task.follow("real_parent")["tgid"] == int(status["PPid"])
        assert task.text("comm") == status["Name"].strip()

    def test_the_direct_map_is_found_without_symbols(self, hidden):
        base = page_offset_base(hidden)
        with OwnPages() as pages:
            frames = pages.frames()
            for number in range(16):
                place = base + (int(frames[number]) << PAGE_SHIFT)
                assert hidden.memory.read(place, 64) == pages.pattern(number)

    def test_vmemmap_is_found_without_symbols(self, kernel, hidden):
        base = vmemmap_base(hidden)
        info = live_vmcoreinfo(kernel.memory)
        said = None if info is None else info.symbols.get("vmemmap")
        if said is None and (address := kernel.symbols.address_of("vmemmap_base")) is not None:
            said = kernel.u64(address)
        if said is not None:
            assert base == said, "what the kernel itself says"
        assert base % GIB == 0

    def test_the_struct_pages_there_are_those_of_kpagecount(self, hidden):
        """Pages that we map once have one mapping: `_mapcount` counts from -1."""
        base, size = vmemmap_base(hidden), hidden.size_of("page")
        place = hidden.member("page", "_mapcount.counter").offset
        with OwnPages() as pages, Path("/proc/kpagecount").open("rb", buffering=0) as file:
            for frame in pages.frames().tolist():
                file.seek(frame * 8)
                count = int.from_bytes(file.read(8), "little")
                mapcount = int.from_bytes(
                    hidden.memory.read(base + frame * size + place, 4), "little", signed=True
                )
                assert mapcount + 1 == count == 1

    def test_symbols_agree_with_what_is_found(self, kernel):
        """Where the kernel lists its variables, they hold what was found without them."""
        found = {"page_offset_base": page_offset_base, "vmemmap_base": vmemmap_base}
        listed = {name: kernel.symbols.address_of(name) for name in found}
        if not any(listed.values()):
            pytest.skip("no variables in /proc/kallsyms: built without CONFIG_KALLSYMS_ALL")
        for name, address in listed.items():
            assert kernel.u64(address) == found[name](kernel)

    def test_vmcoreinfo_is_this_kernels(self, kernel):
        info = live_vmcoreinfo(kernel.memory)
        if info is None:
            pytest.skip("this kernel keeps no VMCOREINFO (CONFIG_VMCORE_INFO)")
        assert info.release == kernel.release
        assert info.sizes["page"] == kernel.size_of("page")
        assert kernel.symbols.address_of("mem_section") != info.symbols["mem_section"]


class TestWhyNot:
    def test_a_kernel_without_types_is_named(self, monkeypatch, tmp_path):
        monkeypatch.setattr(live, "LIVE_BTF", tmp_path / "vmlinux")
        assert f"{tmp_path / 'vmlinux'} is missing" in why_not()


@dataclasses.dataclass
class FakeMachine:
    """A kernel's address space with page tables: pages by address, all else unreadable."""

    levels: int
    direct_map: int
    vmemmap: int
    memory_gib: int = 6
    pages: dict[int, bytes] = dataclasses.field(default_factory=dict)
    pgd = 0x7000

    def __post_init__(self) -> None:
        self._next = self.pgd + 0x1000
        self._tables: dict[int, dict[int, int]] = {self.pgd: {}}
        for gib in range(self.memory_gib):
            self.map_gib(self.direct_map + gib * GIB, large=True)
        self.map_gib(self.vmemmap, large=False)
        self.map_gib(0xFFFFFFFF80000000, large=False)

    def map_gib(self, address: int, *, large: bool) -> None:
        table = self.pgd
        for level in range(self.levels - 1, 1, -1):
            number = address >> (12 + 9 * level) & 511
            if number not in self._tables[table]:
                self._tables[self._next] = {}
                self._tables[table][number] = self._next | 0x8000_0000_0000_0063
                self._next += 0x1000
            table = self._tables[table][number] & ((1 << 52) - 4096)
        self._tables[table][address >> 30 & 511] = 0x63 | (0x80 if large else 0)

    def read(self, address: int, size_bytes: int) -> bytes:
        table = self._tables.get(address - self.direct_map)
        if table is not None:
            words = np.zeros(512, np.uint64)
            for number, entry in table.items():
                words[number] = entry
            return words.tobytes()[:size_bytes]
        page = self.pages.get(address & ~4095)
        start = address & 4095
        if page is None or start + size_bytes > 4096:
            raise FaultError("not there", address)
        return page[start : start + size_bytes]

    def read_into(self, address: int, into: np.ndarray) -> None:
        raise NotImplementedError

    def read_many(self, addresses, size_bytes):
        data = np.zeros((addresses.size, size_bytes), np.uint8)
        readable = np.zeros(addresses.size, np.bool_)
        for index, address in enumerate(addresses.tolist()):
            try:
                data[index] = np.frombuffer(self.read(address, size_bytes), np.uint8)
                readable[index] = True
            except FaultError:
                pass
        return data, readable

    def put(self, address: int, content: bytes) -> None:
        page = bytearray(self.pages.get(address & ~4095, bytes(4096)))
        page[address & 4095 : (address & 4095) + len(content)] = content
        self.pages[address & ~4095] = bytes(page)


MACHINES = [
    pytest.param(4, 0xFFFF888000000000, 0xFFFFEA0000000000, id="four-levels"),
    pytest.param(4, 0xFFFF9D3B40000000, 0xFFFFF5C1C0000000, id="four-levels-kaslr"),
    pytest.param(5, 0xFF11000000000000, 0xFFD4000000000000, id="five-levels"),
    pytest.param(5, 0xFF2A7F0240000000, 0xFFB1000DC0000000, id="five-levels-kaslr"),
]


class FakePages:
    """Pages of "this process" on a fake machine."""

    def __init__(self, frames: Sequence[int] | None) -> None:
        self.indices = np.arange(0x7F1234567, 0x7F1234567 + 16, dtype=np.uint64)
        self._frames = frames

    def frames(self):
        return None if self._frames is None else np.array(self._frames, np.uint64)


class TestFinding:
    """With four and five levels of page tables, with and without KASLR."""

    frames = tuple(0x5000 + 977 * number for number in range(16))

    def machine(self, levels: int, direct_map: int, vmemmap: int) -> FakeMachine:
        machine = FakeMachine(levels, direct_map, vmemmap)
        for frame, index in zip(self.frames, FakePages(None).indices.tolist(), strict=True):
            machine.put(vmemmap + frame * 64 + 32, index.to_bytes(8, "little"))
        return machine

    @pytest.mark.parametrize(("levels", "direct_map", "vmemmap"), MACHINES)
    def test_what_is_mapped_is_seen_whatever_the_levels(self, levels, direct_map, vmemmap):
        machine = self.machine(levels, direct_map, vmemmap)
        assert list(mapped_gib(machine, direct_map + machine.pgd, direct_map)) == [
            *(direct_map + gib * GIB for gib in range(6)),
            vmemmap,
            0xFFFFFFFF80000000,
        ]

    @pytest.mark.parametrize(("levels", "direct_map", "vmemmap"), MACHINES)
    def test_the_direct_map_begins_where_all_that_is_known_is(self, levels, direct_map, vmemmap):
        machine = self.machine(levels, direct_map, vmemmap)
        known = [Known(0x1234_5678, b"first", "one"), Known(0x4000, b"second", "another")]
        for one in known:
            machine.put(direct_map + one.physical, one.content)
        # A copy of the first one exactly 2 GiB higher up, nearer to where the search begins.
        machine.put(direct_map + 2 * GIB + known[0].physical, known[0].content)
        inside = direct_map + 5 * GIB + 0xABC0
        assert find_direct_map(machine, inside, known) == direct_map

    @pytest.mark.parametrize(("levels", "direct_map", "vmemmap"), MACHINES)
    def test_vmemmap_is_not_its_own_image_in_the_direct_map(self, levels, direct_map, vmemmap):
        machine = self.machine(levels, direct_map, vmemmap)
        for address, page in list(machine.pages.items()):
            machine.pages[address - vmemmap + direct_map + 3 * GIB] = page
        found = find_vmemmap(
            machine, direct_map + machine.pgd, direct_map, FakePages(self.frames), page_size=64
        )
        assert found == vmemmap

    def test_a_few_pages_that_moved_meanwhile_do_no_harm_and_many_do(self):
        machine = self.machine(4, 0xFFFF888000000000, 0xFFFFEA0000000000)
        arguments = (machine, machine.direct_map + machine.pgd, machine.direct_map)
        moved = [frame + 1 if at % 4 == 0 else frame for at, frame in enumerate(self.frames)]
        found = find_vmemmap(*arguments, FakePages(moved), page_size=64)
        assert found == machine.vmemmap
        moved = [frame + 1 for frame in self.frames]
        with pytest.raises(LayoutError, match="vmemmap was not found"):
            find_vmemmap(*arguments, FakePages(moved), page_size=64)

    def test_what_cannot_be_found_is_an_error_with_what_would_help(self):
        machine = self.machine(4, 0xFFFF888000000000, 0xFFFFEA0000000000)
        with pytest.raises(LayoutError) as caught:
            find_direct_map(machine, machine.direct_map + GIB, [])
        assert "CAP_SYS_ADMIN" in caught.value.hint
        with pytest.raises(LayoutError, match="nowhere"):
            find_direct_map(machine, machine.direct_map + GIB, [Known(0, b"x", "x")])
        with pytest.raises(LayoutError) as caught:
            find_vmemmap(machine, 0, 0, FakePages(None), page_size=64)
        assert "CAP_SYS_ADMIN" in caught.value.hint

    def test_a_dump_without_symbols_is_not_given_a_guess(self):
        class Nothing:
            def read(self, address: int, size_bytes: int) -> bytes:
                raise FaultError("not there", address)

            def read_into(self, address, into):
                raise FaultError("not there", address)

        kernel = Kernel(Nothing(), None, NoSymbols(), None, "a dump", is_live=False)
        for find in (bases.page_offset_base, bases.vmemmap_base):
            with pytest.raises(LayoutError, match="a dump begins is not known"):
                find(kernel)

    def test_a_guest_that_has_not_accepted_all_its_memory_is_not_searched(self, tmp_path):
        (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nUnaccepted:    2097152 kB\n")
        with pytest.raises(LayoutError, match="2048 MiB of this guest's memory") as caught:
            bases.live_direct_map(None, proc=tmp_path)  # memory is not even asked
        assert "page_offset_base" in caught.value.hint

    @pytest.mark.parametrize("bit", [47, 51])
    def test_page_tables_of_encrypted_memory_are_followed(self, bit):
        machine = self.machine(4, 0xFFFF888000000000, 0xFFFFEA0000000000)
        plain = list(mapped_gib(machine, machine.direct_map + machine.pgd, machine.direct_map))
        for table in machine._tables.values():
            table.update({number: entry | 1 << bit for number, entry in table.items()})
        found = list(mapped_gib(machine, machine.direct_map + machine.pgd, machine.direct_map))
        assert found == plain

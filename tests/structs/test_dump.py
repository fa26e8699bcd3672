"""Opening dumps: a kernel of 1 MiB written by hand, and real kernels where there are any."""

from __future__ import annotations

import os
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from structs.real_dumps import RealDump, real_dump
from structs.synthetic_dump import (
    BANNER,
    BUILD_ID,
    DIRECT_MAP,
    MEMORY_BYTES,
    MODULES,
    PAGE,
    RELEASE,
    UNBACKED,
    VMEMMAP,
    TinyKernel,
    tiny_btf,
)

from memdesc.errors import FaultError, LayoutError
from memdesc.kernels.type_info import Kind, place_of
from memdesc.structs import dump_file, kdump
from memdesc.structs.dump import open_dump
from memdesc.structs.dump_symbols import DumpSymbols
from memdesc.structs.kernel import Kernel
from memdesc.structs.vmcoreinfo import VmcoreInfo

pytest.importorskip("drgn", reason="drgn is not installed: pip install 'memdesc[vmcore]'")

WAYS: dict[str, Callable[[TinyKernel], bytes]] = {
    "elf": TinyKernel.elf,
    "kdump as QEMU writes it": lambda tiny: tiny.kdump(flattened=True),
    "kdump as makedumpfile writes it": lambda tiny: tiny.kdump(system=b"Linux"),
    "kdump, not compressed": lambda tiny: tiny.kdump(flags=0),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[TinyKernel], Path]:
    def write(tiny: TinyKernel) -> Path:
        path = tmp_path / "vmcore"
        path.write_bytes(request.param(tiny))
        return path

    return write


@pytest.mark.parametrize("kernel_offset", [0, 0x1A00_0000], ids=["nokaslr", "kaslr"])
def test_a_dump_opens_with_nothing_but_itself(
    write: Callable[[TinyKernel], Path], kernel_offset: int
) -> None:
    tiny = TinyKernel(kernel_offset=kernel_offset)
    path = write(tiny)
    before = path.read_bytes()
    kernel = open_dump(path)
    assert (kernel.release.text, kernel.is_live, kernel.notes) == (RELEASE, False, ())
    assert kernel.types.origin == f"BTF in {path}"
    task = kernel.load("task_struct", kernel.symbol("init_task"))
    assert task.text("comm") == "swapper/0"
    assert kernel.symbol("kernel_clone") == tiny.address(0x400)
    assert kernel.symbols.name_at(tiny.address(0x420)) == "kernel_clone"
    assert kernel.symbols.name_at(MODULES + 0x123) == "helper_work"
    assert kernel.symbols.name_at(MODULES + 0x1000) is None, "one byte beyond the module"
    assert kernel.symbols.name_at(0) is None
    assert path.read_bytes() == before


def test_memory_is_what_was_written(write: Callable[[TinyKernel], Path]) -> None:
    tiny = TinyKernel()
    memory = open_dump(write(tiny)).memory
    chance = random.Random(3)
    for _ in range(200):
        at = chance.randrange(MEMORY_BYTES)
        size = chance.randrange(1, min(3 * PAGE, MEMORY_BYTES - at) + 1)
        wanted = bytes(tiny.memory[at : at + size])
        assert memory.read(DIRECT_MAP + at, size) == wanted
        into = np.empty(size, np.uint8)
        memory.read_into(tiny.address(at), into)
        assert into.tobytes() == wanted
    assert memory.read(VMEMMAP, 512) == bytes(range(256)) * 2
    for address, size in ((UNBACKED, 8), (DIRECT_MAP + MEMORY_BYTES - 4, 8), (0, 1), (-8, 8)):
        with pytest.raises(FaultError):
            memory.read(address, size)
        with pytest.raises(FaultError):
            memory.read_into(address, np.empty(size, np.uint8))


def test_threads_read_the_same_memory(write: Callable[[TinyKernel], Path]) -> None:
    tiny = TinyKernel()
    memory = open_dump(write(tiny)).memory
    wrong: list[int] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            at = chance.randrange(MEMORY_BYTES - 9000)
            size = chance.randrange(1, 9000)
            if memory.read(DIRECT_MAP + at, size) != tiny.memory[at : at + size]:
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_page_that_makedumpfile_left_out_is_a_fault_and_its_neighbours_are_not(
    tmp_path: Path,
) -> None:
    tiny = TinyKernel()
    (tmp_path / "vmcore").write_bytes(tiny.kdump(excluded=lambda pfn: pfn == 200))
    memory = open_dump(tmp_path / "vmcore").memory
    for pfn in (199, 201, 255):
        data = bytes(tiny.memory[pfn * PAGE : (pfn + 1) * PAGE])
        assert memory.read(DIRECT_MAP + pfn * PAGE, PAGE) == data
    with pytest.raises(FaultError, match="no memory at"):
        memory.read(DIRECT_MAP + 200 * PAGE, 8)


def test_drgn_s_own_reader_agrees_where_it_can_read_the_file(tmp_path: Path) -> None:
    """libkdumpfile, on a file as makedumpfile writes it."""
    drgn = pytest.importorskip("drgn")
    tiny = TinyKernel(kernel_offset=0x600_0000)
    (tmp_path / "vmcore").write_bytes(tiny.kdump(system=b"Linux"))
    prog = drgn.Program()
    prog.set_core_dump(tmp_path / "vmcore")
    memory = open_dump(tmp_path / "vmcore").memory
    for address in (DIRECT_MAP, DIRECT_MAP + 5 * PAGE, tiny.address(0), VMEMMAP):
        assert memory.read(address, 3 * PAGE) == prog.read(address, 3 * PAGE)


def test_a_flattened_file_is_the_file_it_stands_for(tmp_path: Path) -> None:
    """Later writes win, gaps read as zeros, and nothing is read beyond the end."""
    chance = random.Random(5)
    records = [
        (chance.randrange(5000), chance.randbytes(chance.randrange(1, 700))) for _ in range(40)
    ]
    whole = bytearray(max(at + len(data) for at, data in records))
    raw = b"makedumpfile".ljust(4096, b"\0")
    for at, data in records:
        whole[at : at + len(data)] = data
        raw += struct.pack(">qq", at, len(data)) + data
    (tmp_path / "flat").write_bytes(raw + struct.pack(">qq", -1, -1))
    fd = os.open(tmp_path / "flat", os.O_RDONLY)
    try:
        flat = kdump.Flattened(fd, tmp_path / "flat")
        assert flat.size_bytes == len(whole)
        assert not flat.is_cut
        for _ in range(300):
            at, count = chance.randrange(6000), chance.randrange(3000)
            assert flat.pread(count, at) == whole[at : at + count]
    finally:
        os.close(fd)


def test_a_live_kernel_is_read_anew_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/kcore, for which a file stands here: nothing of it is kept."""
    tiny = TinyKernel()
    path = tmp_path / "kcore"
    raw = tiny.elf()
    path.write_bytes(raw)
    (tmp_path / "btf").write_bytes(tiny_vmlinux(BUILD_ID))
    monkeypatch.setattr(dump_file, "_KCORE", str(path))
    kernel = open_dump(path, tmp_path / "btf")
    assert kernel.is_live
    at = len(raw) - MEMORY_BYTES + 77 * PAGE
    for value in (1, 2):
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([value]) * 8)
        assert kernel.memory.read(DIRECT_MAP + 77 * PAGE, 8) == bytes([value]) * 8


# --- what a vmlinux adds, and what is left without -----------------------------------------


def test_types_of_a_vmlinux_are_taken_when_the_dump_has_none(tmp_path: Path) -> None:
    (tmp_path / "vmcore").write_bytes(TinyKernel(with_btf=False).elf())
    with pytest.raises(LayoutError, match="does not describe its kernel's types") as caught:
        open_dump(tmp_path / "vmcore")
    assert "--vmlinux" in caught.value.hint
    (tmp_path / "btf").write_bytes(tiny_btf())
    kernel = open_dump(tmp_path / "vmcore", tmp_path / "btf")
    assert kernel.size_of("page") == 64
    (note,) = kernel.notes
    assert "could not be checked" in note


def test_a_vmlinux_of_another_build_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vmcore").write_bytes(TinyKernel().elf())
    (tmp_path / "same").write_bytes(tiny_vmlinux(BUILD_ID))
    (tmp_path / "other").write_bytes(tiny_vmlinux("ff" * 20))
    kernel = open_dump(tmp_path / "vmcore", tmp_path / "same")
    assert (kernel.types.origin, kernel.notes) == (f"BTF of {tmp_path / 'same'}", ())
    with pytest.raises(LayoutError, match=f"build id is {'ff' * 20}, not {BUILD_ID}"):
        open_dump(tmp_path / "vmcore", tmp_path / "other")


def test_without_a_build_id_the_banner_decides(tmp_path: Path) -> None:
    (tmp_path / "vmcore").write_bytes(TinyKernel().elf())
    (tmp_path / "same").write_bytes(tiny_vmlinux("", b"x" * 99 + BANNER + b"\0"))
    (tmp_path / "other").write_bytes(tiny_vmlinux("", BANNER.replace(b"hand", b"foot")))
    assert open_dump(tmp_path / "vmcore", tmp_path / "same").notes == ()
    with pytest.raises(LayoutError, match="banner differs"):
        open_dump(tmp_path / "vmcore", tmp_path / "other")


def test_types_that_contradict_vmcoreinfo_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vmcore").write_bytes(TinyKernel().elf())
    (tmp_path / "btf").write_bytes(tiny_btf(page_bytes=56))
    with pytest.raises(LayoutError, match="struct page has 56 bytes there and 64 here"):
        open_dump(tmp_path / "vmcore", tmp_path / "btf")


def test_without_kallsyms_only_vmcoreinfo_names_anything_and_that_is_said(tmp_path: Path) -> None:
    tiny = TinyKernel(with_kallsyms=False)
    info = tiny.info({"SYMBOL(mem_section)": f"{DIRECT_MAP + 4096:x}"})
    (tmp_path / "vmcore").write_bytes(tiny.elf(info=info))
    (tmp_path / "btf").write_bytes(tiny_vmlinux(BUILD_ID))
    kernel = open_dump(tmp_path / "vmcore", tmp_path / "btf")
    assert kernel.symbols.address_of("mem_section") is None, "VMCOREINFO has its value"
    assert kernel.symbol("init_uts_ns") == tiny.symbols["init_uts_ns"]
    assert kernel.symbols.name_at(tiny.address(0x400)) is None
    (note,) = kernel.notes
    assert "cannot be named" in note


def tiny_vmlinux(build_id: str, rodata: bytes = b"") -> bytes:
    """An ELF image with .BTF, and .notes where there is a build id."""
    note = struct.pack("<III4s", 4, 20, 3, b"GNU\0") + bytes.fromhex(build_id) if build_id else b""
    sections = {".BTF": tiny_btf(), ".notes": note, ".rodata": rodata}
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
    body, rows = b"", [bytes(64)]
    for name, content in {**sections, ".shstrtab": names}.items():
        at = names.index(b"\0" + name.encode() + b"\0") + 1
        rows.append(struct.pack("<IIQQQQIIQQ", at, 1, 0, 0, 64 + len(body), len(content), *[0] * 4))
        body += content
    table = 64 + len(body)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 5, 4)
    return header + body + b"".join(rows)


# --- real kernels --------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[pytest.param(series, marks=pytest.mark.vm) for series in ("6.1", "6.12", "7.2")],
)
def dump(request: pytest.FixtureRequest) -> RealDump:
    return real_dump(request, request.param)


@pytest.fixture(scope="module")
def kernel(dump: RealDump) -> Kernel:
    return open_dump(dump.elf)


def test_a_real_dump_opens_without_a_debug_package(dump: RealDump, kernel: Kernel) -> None:
    assert kernel.release.text == dump.release
    assert kernel.types.origin == f"BTF in {dump.elf}"
    assert kernel.notes == ()
    assert kernel.load("task_struct", kernel.symbol("init_task")).text("comm") == "swapper/0"
    banner = kernel.string(kernel.symbol("linux_banner"), 512)
    assert banner.startswith(f"Linux version {dump.release} ")


def test_the_btf_in_the_dump_is_that_of_the_vmlinux(dump: RealDump, kernel: Kernel) -> None:
    image = open_dump(dump.elf, dump.vmlinux)
    assert image.types.origin == f"BTF of {dump.vmlinux}"
    assert image.notes == ()
    for name in ("page", "zone", "task_struct", "kmem_cache", "vm_struct"):
        assert image.types.find_struct(name) == kernel.types.find_struct(name)


def test_symbols_are_those_of_proc_kallsyms(dump: RealDump, kernel: Kernel) -> None:
    """Every symbol of every module, and each 97th of the kernel."""
    rows = [line.split() for line in dump.kallsyms.read_text().splitlines()]
    by_address: dict[int, set[str]] = {}
    for address, _, name, *_ in rows:
        by_address.setdefault(int(address, 16), set()).add(name)
    in_modules = {int(row[0], 16) for row in rows if len(row) > 3 and row[3] != "[bpf]"}
    image = sorted(int(row[0], 16) for row in rows if len(row) == 3)[::97]
    wanted = [a for a in (*in_modules, *image) if a >= 0xFFFF_FFFF_8000_0000]
    wrong = {hex(a): kernel.symbols.name_at(a) for a in wanted}
    wrong = {a: name for a, name in wrong.items() if name not in by_address[int(a, 16)]}
    assert not wrong
    assert len(in_modules) > 100
    assert isinstance(kernel.symbols, DumpSymbols)
    modules = kernel.symbols.modules()
    assert modules is not None
    assert modules.unreadable == 0


def test_a_kdump_file_holds_the_same_kernel(dump: RealDump, kernel: Kernel) -> None:
    if not dump.kdump.exists():
        pytest.skip(f"no kdump file of {dump.release}: MEMDESC_DUMPS has them")
    other = open_dump(dump.kdump)
    vmemmap, size = 0xFFFF_EA00_0000_0000, 64 * 4096
    for address in (vmemmap, kernel.symbol("_stext"), kernel.symbol("__start_BTF")):
        assert other.memory.read(address, size) == kernel.memory.read(address, size)
    assert other.types.find_struct("page") == kernel.types.find_struct("page")


def test_a_vmlinux_of_another_real_kernel_is_refused(
    dump: RealDump, request: pytest.FixtureRequest
) -> None:
    series = next(name for name in ("6.1", "6.12") if not dump.release.startswith(f"{name}."))
    other = real_dump(request, series)
    with pytest.raises(LayoutError, match=r"is not the kernel of .*: its build id is") as caught:
        open_dump(dump.elf, other.vmlinux)
    assert dump.release in caught.value.hint


def test_the_first_fifth_of_a_real_dump_opens_and_the_rest_faults(
    dump: RealDump, tmp_path: Path
) -> None:
    """The kernel's image lies low and its struct pages high."""
    cut = tmp_path / "vmcore"
    with dump.elf.open("rb") as whole:
        cut.write_bytes(whole.read(128 << 20))
    kernel = open_dump(cut, dump.vmlinux)
    assert "was cut" in kernel.notes[0]
    assert kernel.load("task_struct", kernel.symbol("init_task")).text("comm") == "swapper/0"
    with pytest.raises(FaultError, match="no memory at"):
        kernel.memory.read_into(0xFFFF_EA00_0000_0000, np.empty(640 << 14, np.uint8))


def test_dwarf_says_what_btf_says(dump: RealDump, kernel: Kernel) -> None:
    """Member by member, except that BTF may have one dimension of an array where C has two."""
    if dump.debug is None:
        pytest.skip(f"no vmlinux with DWARF of {dump.release}: set MEMDESC_DWARF to a folder")
    dwarf = open_dump(dump.elf, dump.debug)
    assert dwarf.types.origin == f"DWARF of {dump.debug}"
    assert dwarf.notes == ()
    structs = "page folio slab kmem_cache vm_struct vmap_area task_struct mm_struct module zone "
    structs += "address_space inode vm_area_struct mem_cgroup maple_node xa_node pgd_t nosuch"
    for name in structs.split():
        theirs, ours = dwarf.types.find_struct(name), kernel.types.find_struct(name)
        assert (theirs is None) == (ours is None), name
        if theirs is None or ours is None:
            continue
        assert (theirs.name, theirs.size_bytes) == (ours.name, ours.size_bytes)
        assert list(theirs.members) == list(ours.members)
        for one, two in zip(theirs.members.values(), ours.members.values(), strict=True):
            assert (one.offset_bits, one.size_bits) == (two.offset_bits, two.size_bits), one.name
            assert one.type.kind is two.type.kind
            assert (one.type.name, one.type.is_signed) == (two.type.name, two.type.is_signed)
            if one.type.element is None or one.type.element.kind is not Kind.ARRAY:
                assert one.type.nr_elements == two.type.nr_elements
    for enum in ("pageflags", "zone_type", "migratetype", "nosuch"):
        assert dwarf.types.find_enum(enum) == kernel.types.find_enum(enum)
    for name in ("PG_locked", "PG_hwpoison", "NR_FREE_PAGES", "nosuch"):
        assert dwarf.types.find_enumerator(name) == kernel.types.find_enumerator(name)
    for path in ("free_area[3].nr_free", "free_area[99].nr_free", "nosuch"):
        theirs, ours = (place_of(types, "zone", path) for types in (dwarf.types, kernel.types))
        assert (theirs and theirs.offset) == (ours and ours.offset)


def test_vmcoreinfo_reads_what_the_kernel_wrote() -> None:
    raw = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(a)=ffffffff81000000\nNUMBER(b)=-129\n"
    raw += b"NUMBER(c)=0xffffc90000000000\nOFFSET(page.lru)=8\nSIZE(page)=64\nLENGTH(d)=11\n"
    raw += b"BUILD-ID=00ff\nKERNELOFFSET=1a000000\nCRASHTIME=1700000000\n\0\0\0"
    info = VmcoreInfo.parse(raw)
    assert info.release.numbers == "6.1.0"
    assert info.symbol("a") == 0xFFFFFFFF81000000
    assert info.numbers == {"b": -129, "c": 0xFFFFC90000000000}
    assert (info.offsets, info.sizes, info.lengths) == ({"page.lru": 8}, {"page": 64}, {"d": 11})
    assert (info.build_id, info.kernel_offset) == ("00ff", 0x1A000000)
    assert info.crash_time == 1700000000

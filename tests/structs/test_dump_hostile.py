"""Files that are no dump, and dumps that are damaged: one clear error, or a counted fault.

Nothing here may hang, crash the process or end in a traceback of another kind; whatever
still opens must read the right bytes or say that it cannot.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structs.synthetic_dump import DIRECT_MAP, IMAGE, MEMORY_BYTES, MODULES, PAGE, TinyKernel

from memdesc.errors import (
    FaultError,
    FormatError,
    LayoutError,
    MemdescError,
    NotReadableError,
    SourceError,
    TruncatedError,
)
from memdesc.structs.dump import open_dump
from memdesc.structs.dump_symbols import DumpSymbols
from memdesc.structs.kernel import Kernel
from memdesc.structs.vmcoreinfo import VmcoreInfo

pytest.importorskip("drgn", reason="drgn is not installed: pip install 'memdesc[vmcore]'")

FORMS: dict[str, Callable[[TinyKernel], bytes]] = {
    "elf": TinyKernel.elf,
    "kdump": TinyKernel.kdump,
    "flattened": lambda tiny: tiny.kdump(flattened=True),
}
SECONDS = 60


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A test that takes longer than SECONDS has hung."""

    def ring(_number: int, _frame: object) -> None:
        raise TimeoutError(f"no answer after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def dump(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "vmcore"
        path.write_bytes(content)
        return path

    return write


def refused(path: Path | str, error: type[MemdescError], message: str) -> MemdescError:
    with pytest.raises(error, match=message) as caught:
        open_dump(path)
    assert "\n" not in str(caught.value)
    return caught.value


# --- no dump at all ------------------------------------------------------------------------


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    assert refused(tmp_path, NotReadableError, "is a directory").hint
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe", NotReadableError, "no regular file").hint
    refused("/dev/zero", NotReadableError, "no regular file")
    refused(tmp_path / "nosuch", NotReadableError, "No such file")


def test_what_is_no_dump_is_named(dump: Callable[[bytes], Path], tmp_path: Path) -> None:
    assert refused(dump(b""), TruncatedError, "is empty").hint
    assert refused(dump(random.Random(1).randbytes(9999)), FormatError, "no dump of a kernel").hint
    assert refused(dump(b"hello\n"), FormatError, "begins with 68 65 6c 6c 6f 0a").hint
    error = refused(sys.executable, FormatError, "is a program or library, no dump|a program")
    assert "--vmlinux" in error.hint


def test_the_core_of_a_process_is_told_apart(dump: Callable[[bytes], Path]) -> None:
    tiny = TinyKernel()
    error = refused(dump(tiny.elf(note_name=b"CORE")), FormatError, "core of a process")
    assert "makedumpfile" in error.hint
    error = refused(dump(tiny.elf(note_name=b"QEMU")), FormatError, "without VMCOREINFO")
    assert "-device vmcoreinfo" in error.hint


def test_a_real_core_of_a_process_is_told_apart(tmp_path: Path) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip(f"cores go to {pattern!r} here, not to the working directory")
    subprocess.run(
        [sys.executable, "-c", "import os; os.abort()"],
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 28, 1 << 28)),
        check=False,
    )
    cores = list(tmp_path.iterdir())
    if not cores:
        pytest.skip("this machine writes no cores (hard limit of RLIMIT_CORE)")
    refused(cores[0], FormatError, "core of a process")


def test_another_architecture_is_named(dump: Callable[[bytes], Path]) -> None:
    tiny = TinyKernel()
    refused(dump(tiny.elf(machine=183)), LayoutError, "is for aarch64")
    refused(dump(tiny.elf(machine=4711)), LayoutError, "ELF machine 4711")
    refused(dump(tiny.kdump(machine=b"ppc64le")), LayoutError, "is for ppc64le")
    big_endian = bytearray(tiny.elf())
    big_endian[5] = 2
    refused(dump(bytes(big_endian)), LayoutError, "big-endian")
    refused(dump(tiny.elf(info=tiny.info({"PAGESIZE": "65536"}))), LayoutError, "65536 bytes")
    elsewhere = TinyKernel()
    elsewhere.write(elsewhere.symbols["init_uts_ns"] + 4 * 65, b"riscv64")
    refused(dump(elsewhere.elf()), LayoutError, "is for riscv64")


# --- VMCOREINFO ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"OSRELEASE": None}, "does not give OSRELEASE"),
        ({"PAGESIZE": None}, "does not give PAGESIZE"),
        ({"PAGESIZE": "4k"}, "'4k' for PAGESIZE"),
        ({"OSRELEASE": "six"}, "not a kernel release"),
        ({"SYMBOL(init_uts_ns)": "nowhere"}, "'nowhere' for init_uts_ns"),
        ({"SYMBOL(init_uts_ns)": None}, "does not give SYMBOL.init_uts_ns"),
        ({"SYMBOL(init_uts_ns)": "ffffffffffffff00"}, "cannot be found"),
        ({"SYMBOL(swapper_pg_dir)": f"{IMAGE + MEMORY_BYTES * 9:x}"}, "cannot be found"),
        ({"SYMBOL(swapper_pg_dir)": None}, "swapper_pg_dir|cannot be found"),
        ({"NUMBER(phys_base)": "12345"}, "cannot be found"),
        ({"OSRELEASE": "6.12.98-other"}, "is not where VMCOREINFO says"),
        ({"BUILD-ID": "not hex"}, "as build id"),
        ({"KERNELOFFSET": "-1"}, "no address"),
    ],
)
@pytest.mark.parametrize("form", ["elf", "kdump"])
def test_vmcoreinfo_that_is_wrong_is_one_error(
    dump: Callable[[bytes], Path], form: str, changes: dict[str, str | None], message: str
) -> None:
    tiny = TinyKernel()
    raw = (tiny.elf if form == "elf" else tiny.kdump)(info=tiny.info(changes))
    refused(dump(raw), MemdescError, message)


def test_vmcoreinfo_is_read_strictly() -> None:
    good = b"OSRELEASE=6.1\nPAGESIZE=4096\n"
    for bad in (
        good + b"SYMBOL(a\n",
        good + b"=5\n",
        good + b"SYMBOL(a)=1\nSYMBOL(a)=2\n",
        good + b"caf\xc3\xa9=1\n",
        good + b"NUMBER(a)=1e5\n",
        good + b"X=1\n" * (1 << 19),
        b"",
    ):
        with pytest.raises(FormatError):
            VmcoreInfo.parse(bad)


def test_a_dump_without_vmcoreinfo_says_how_to_make_one(dump: Callable[[bytes], Path]) -> None:
    error = refused(dump(TinyKernel().kdump(info=b"")), FormatError, "holds no VMCOREINFO")
    assert "vmcoreinfo" in error.hint


# --- cut and flipped -----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_anywhere_is_an_error_or_says_so(
    dump: Callable[[bytes], Path], form: str
) -> None:
    tiny = TinyKernel()
    whole = FORMS[form](tiny)
    chance = random.Random(7)
    lengths = {1, 15, 16, 63, 64, 200, 4095, 4096, 5000, 8192, len(whole) - 1}
    lengths |= {chance.randrange(len(whole)) for _ in range(40)}
    opened = 0
    for length in sorted(lengths):
        try:
            kernel = open_dump(dump(whole[:length]))
        except FaultError:
            pytest.fail(f"cut to {length} bytes: a fault is no answer to opening a file")
        except MemdescError:
            continue
        opened += 1
        assert any("cut" in note for note in kernel.notes) or form == "kdump", length
        right_or_fault(kernel, tiny)
    assert opened, "a file that lacks its last byte can be read for the rest"


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bytes_are_an_error_or_harmless(dump: Callable[[bytes], Path], form: str) -> None:
    """In the headers, the notes, the index of the pages and the first pages."""
    tiny = TinyKernel()
    whole = FORMS[form](tiny)
    chance = random.Random(11)
    for _ in range(80):
        raw = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3, 40))):
            at = chance.randrange(min(len(raw), 4 * PAGE + 7000))
            raw[at] = chance.choice((0, 0xFF, raw[at] ^ 1 << chance.randrange(8)))
        try:
            touch_everything(open_dump(dump(bytes(raw))))
        except MemdescError:
            pass


def test_kernel_memory_that_is_garbage_is_an_error_or_harmless(
    dump: Callable[[bytes], Path],
) -> None:
    """Page tables, kallsyms, BTF, the list of modules: any of them overwritten."""
    chance = random.Random(13)
    errors = set()
    for round_ in range(90):
        tiny = TinyKernel()
        end = -(-len(bytes(tiny.memory).rstrip(b"\0")) // PAGE) * PAGE
        at = PAGE * chance.randrange(1, end // PAGE) + chance.choice((0, 0, 1024))
        size = chance.choice((8, 64, 2048))
        filling = (chance.randbytes(size), b"\xff" * size, bytes(size))[round_ % 3]
        tiny.memory[at : at + size] = filling
        try:
            touch_everything(open_dump(dump(tiny.elf())))
        except MemdescError as error:
            errors.add(type(error))
    assert LayoutError in errors


def test_page_tables_that_lead_to_themselves_end(dump: Callable[[bytes], Path]) -> None:
    tiny = TinyKernel()
    top = tiny.physical(tiny.symbols["swapper_pg_dir"])
    for entry in range(512):
        struct.pack_into("<Q", tiny.memory, top + entry * 8, top | 0x63)
    refused(dump(tiny.elf()), LayoutError, "cannot be found|is not where")
    refused(dump(tiny.kdump()), LayoutError, "cannot be found|is not where")


def test_modules_in_a_loop_are_counted(dump: Callable[[bytes], Path]) -> None:
    """The list never comes back to its head: what was read counts, and the loop is told."""
    tiny = TinyKernel()
    head = tiny._names["modules"]
    module = int.from_bytes(tiny.memory[tiny.physical(head) :][:8], "little")
    tiny.write(module, struct.pack("<Q", module))
    kernel = open_dump(dump(tiny.elf()))
    assert isinstance(kernel.symbols, DumpSymbols)
    assert kernel.symbols.name_at(MODULES + 4) == "helper_init"
    modules = kernel.symbols.modules()
    assert modules is not None
    assert modules.unreadable == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_shrinks_while_it_is_open_faults(tmp_path: Path, form: str) -> None:
    """In a child: a mapping of the file would end it with SIGBUS."""
    path = tmp_path / "vmcore"
    path.write_bytes(FORMS[form](TinyKernel()))
    done = subprocess.run(
        [sys.executable, "-c", _SHRINK, str(path), hex(DIRECT_MAP)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout) == (0, "FaultError\n"), done.stderr


_SHRINK = """
import os, sys
import numpy as np
from memdesc.errors import MemdescError
from memdesc.structs.dump import open_dump
kernel = open_dump(sys.argv[1])
os.truncate(sys.argv[1], 5000)
try:
    kernel.memory.read_into(int(sys.argv[2], 16), np.empty(1 << 20, np.uint8))
except MemdescError as error:
    print(type(error).__name__)
"""


# --- kdump's own ---------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [2, 4, 0x20], ids=["LZO", "snappy", "zstd"])
def test_pages_that_python_cannot_unpack_are_left_to_drgn(
    dump: Callable[[bytes], Path], packing: int
) -> None:
    """These pages are not really packed so: drgn's library fails on them, in one sentence."""
    refused(dump(TinyKernel().kdump(system=b"Linux", flags=packing)), SourceError, "vmcore")
    error = refused(dump(TinyKernel().kdump(flags=packing)), FormatError, "LZO, snappy or zstd")
    assert "zlib" in error.hint


def test_one_part_of_a_split_dump_says_what_to_do(dump: Callable[[bytes], Path]) -> None:
    raw = bytearray(TinyKernel().kdump())
    struct.pack_into("<i", raw, PAGE + 12, 1)
    assert "--reassemble" in refused(dump(bytes(raw)), FormatError, "split").hint


def test_an_incomplete_dump_opens_and_says_so(dump: Callable[[bytes], Path]) -> None:
    raw = bytearray(TinyKernel().kdump())
    raw[424] |= 8
    (note,) = open_dump(dump(bytes(raw))).notes
    assert "ran out of space" in note


# --- where drgn or the kernel's memory are missing -----------------------------------------


def test_without_drgn_one_sentence_says_how_to_get_it(
    dump: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dump(TinyKernel().elf())
    monkeypatch.setitem(sys.modules, "drgn", None)
    assert "pip install" in refused(path, SourceError, "needs drgn").hint


def test_a_live_kernel_without_kcore_says_so() -> None:
    if Path("/proc/kcore").exists():
        pytest.skip("this machine has /proc/kcore")
    assert "live:struct" in refused("/proc/kcore", NotReadableError, "cannot open").hint


def test_a_closed_dump_faults(dump: Callable[[bytes], Path]) -> None:
    kernel = open_dump(dump(TinyKernel().kdump()))
    kernel.memory.close()  # type: ignore[attr-defined]
    with pytest.raises(FaultError, match="was closed"):
        kernel.memory.read(DIRECT_MAP + 9 * PAGE, 8)


# --- helpers -------------------------------------------------------------------------------


def right_or_fault(kernel: Kernel, tiny: TinyKernel) -> None:
    for at in range(0, MEMORY_BYTES, PAGE):
        try:
            page = kernel.memory.read(DIRECT_MAP + at, PAGE)
        except FaultError:
            continue
        assert page == tiny.memory[at : at + PAGE]


def touch_everything(kernel: Kernel) -> None:
    """What a reader does; raises MemdescError at most."""
    kernel.symbols.name_at(MODULES + 0x123)
    kernel.symbols.name_at(IMAGE + 0x400)
    kernel.load("task_struct", kernel.symbol("init_task")).text("comm")
    for at in range(0, MEMORY_BYTES, 16 * PAGE):
        try:
            kernel.memory.read(DIRECT_MAP + at, 2 * PAGE)
        except FaultError:
            pass

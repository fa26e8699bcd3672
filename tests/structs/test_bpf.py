"""Reading the running kernel's memory with a BPF program."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from memdesc.errors import FaultError, NotReadableError
from memdesc.structs import bpf
from memdesc.structs.bases import OwnPages, find_direct_map, known_places
from memdesc.structs.bpf import BLOCK_BYTES, BpfMemory
from memdesc.structs.live import why_not
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES

NOT_HERE = why_not()
live = [
    pytest.mark.live,
    pytest.mark.skipif(bool(NOT_HERE), reason=f"{NOT_HERE}; run as root on a kernel with BTF"),
]
IN_NO_MAP = 0xFFFF_8000_0000_0000
"""The guard hole at the start of the kernel's half: never mapped, with four or five levels."""


@pytest.fixture
def memory():
    with BpfMemory() as opened:
        yield opened


@pytest.fixture
def ours(memory):
    """Pages of this process, and where the kernel sees them; found again if they moved."""
    with OwnPages() as pages:
        base = find_direct_map(memory, memory.current_task(), list(known_places(pages)))
        yield pages, base


def place(pages: OwnPages, base: int, number: int) -> int:
    frames = pages.frames()
    assert frames is not None, "root sees the frames of its own pages"
    return base + (int(frames[number]) << PAGE_SHIFT)


class TestReading:
    pytestmark = live

    def test_what_we_wrote_to_our_own_pages_is_what_the_kernel_sees(self, memory, ours):
        pages, base = ours
        for number in range(16):
            assert memory.read(place(pages, base, number), 64) == pages.pattern(number)

    def test_every_size_and_alignment_reads_the_same_bytes(self, memory, ours):
        pages, base = ours
        at = place(pages, base, 3)
        for start in (0, 1, 7, 8, 63):
            for size in (1, 2, 8, 33, 64 - start):
                wanted = pages.pattern(3).ljust(128, b"\0")[start : start + size]
                assert memory.read(at + start, size) == wanted
        assert memory.read(at, 0) == b""

    def test_a_large_read_is_made_of_many_small_ones(self, memory):
        """The kernel's own code does not change: three blocks and a rest, twice."""
        start = code_start()
        size = 3 * BLOCK_BYTES + 12345
        whole = np.zeros(size, np.uint8)
        memory.read_into(start, whole)
        assert memory.read(start, size) == whole.tobytes(), "read() of more than a block"
        pieces = [memory.read(start + at, 4096) for at in range(0, size - 4096, 4096)]
        joined = np.frombuffer(b"".join(pieces), np.uint8)
        different = np.count_nonzero(joined != whole[: joined.size])
        assert different < 64, "only static calls and the like are patched while we read"
        assert whole.any()

    def test_many_addresses_at_once_keep_their_order_and_say_which_are_unreadable(
        self, memory, ours
    ):
        pages, base = ours
        good = [place(pages, base, number) for number in range(16)]
        addresses = np.array(good * 200, np.uint64)
        addresses[5::7] = IN_NO_MAP
        data, readable = memory.read_many(addresses, 64)
        assert data.shape == (3200, 64)
        assert np.array_equal(readable, addresses != IN_NO_MAP)
        assert not data[~readable].any()
        for index in np.flatnonzero(readable).tolist():
            assert data[index].tobytes() == pages.pattern(index % 16)

    @pytest.mark.parametrize("size", [1, 24, 4096, 1 << 16])
    def test_many_of_any_size_equal_single_reads(self, memory, size):
        start = code_start()
        addresses = np.arange(start, start + 40 * 65536, 65536, dtype=np.uint64)[::-1].copy()
        data, readable = memory.read_many(addresses, size)
        assert readable.all()
        single = [np.frombuffer(memory.read(int(at), size), np.uint8) for at in addresses]
        assert np.count_nonzero(data != np.array(single)) < 64

    def test_no_address_at_all(self, memory):
        data, readable = memory.read_many(np.empty(0, np.uint64), 8)
        assert data.shape == (0, 8)
        assert readable.shape == (0,)

    @pytest.mark.parametrize("size", [0, (1 << 16) + 1])
    def test_too_large_a_piece_is_refused_before_the_kernel_sees_it(self, memory, size):
        with pytest.raises(ValueError, match="size_bytes"):
            memory.read_many(np.zeros(1, np.uint64), size)


class TestFaults:
    pytestmark = live

    @pytest.mark.parametrize(
        "address", [0, 8, IN_NO_MAP, 0x7FFF_FFFF_F000, 1 << 63, (1 << 64) - 8], ids=hex
    )
    def test_a_wild_address_is_an_error_that_names_it(self, memory, address):
        for read in (
            lambda: memory.read(address, 8),
            lambda: memory.read_into(address, np.empty(3 * BLOCK_BYTES, np.uint8)),
        ):
            with pytest.raises(FaultError, match=f"{address:#x}") as caught:
                read()
            assert caught.value.address == address

    def test_memory_of_user_space_is_not_readable_by_its_own_address(self, memory):
        mine = np.arange(512, dtype=np.uint64)
        with pytest.raises(FaultError):
            memory.read(mine.ctypes.data, 64)

    def test_after_a_fault_the_next_read_is_right(self, memory, ours):
        pages, base = ours
        for _ in range(3):
            with pytest.raises(FaultError):
                memory.read(IN_NO_MAP, 8)
            assert memory.read(place(pages, base, 0), 64) == pages.pattern(0)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestThreadsAndClosing:
    pytestmark = live

    def test_threads_do_not_see_each_others_bytes(self, memory, ours):
        pages, base = ours
        wrong: list[int] = []

        def work(number: int) -> None:
            block = np.empty(PAGE_SIZE_BYTES, np.uint8)
            for _ in range(2000):
                at = place(pages, base, number)
                memory.read_into(at, block)
                if block[:64].tobytes() != pages.pattern(number):
                    wrong.append(number)
                if memory.read(at, 64) != pages.pattern(number):
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_closing_leaves_no_descriptor_and_no_program(self):
        gc.collect()
        before = descriptors()
        opened = BpfMemory()
        opened.read_many(np.zeros(1, np.uint64), 8)
        opened.current_task()
        assert descriptors() > before
        opened.close()
        opened.close()
        assert descriptors() == before
        with pytest.raises(NotReadableError, match="closed"):
            opened.read(IN_NO_MAP, 8)

    def test_a_read_that_is_under_way_ends_well(self, monkeypatch):
        """Symbols may still be read in another thread when somebody closes the memory."""
        gc.collect()
        before = descriptors()
        opened = BpfMemory()
        task = opened.current_task()
        inside, closed = threading.Event(), threading.Event()
        copy_block = bpf._Reader.copy_block

        def slowly(reader, address, size_bytes):
            inside.set()
            assert closed.wait(10)
            return copy_block(reader, address, size_bytes)

        monkeypatch.setattr(bpf._Reader, "copy_block", slowly)
        into = np.zeros(64, np.uint8)
        thread = threading.Thread(target=opened.read_into, args=(task, into))
        thread.start()
        assert inside.wait(10)
        opened.close()
        closed.set()
        thread.join(10)
        assert into.any()
        assert descriptors() == before

    def test_the_current_task_is_ours(self, memory):
        """Its memory holds our thread's name, wherever the layout puts it."""
        comm = Path("/proc/thread-self/comm").read_bytes().rstrip(b"\n")
        assert comm in memory.read(memory.current_task(), 8192)


class TestWhereItIsNotPermitted:
    @pytest.mark.skipif(os.geteuid() != 0, reason="already without privileges: run it as root")
    def test_without_privileges_there_is_one_clear_error(self):
        program = (
            "import os\n"
            "from memdesc.structs.bpf import BpfMemory\n"
            "from memdesc.structs.live import open_live_kernel, why_not\n"
            "from memdesc.errors import NotReadableError\n"
            "os.setgroups([]); os.setresgid(65534, 65534, 65534)\n"
            "os.setresuid(65534, 65534, 65534)\n"
            "before = len(os.listdir('/proc/self/fd'))\n"
            "for make in (BpfMemory, open_live_kernel):\n"
            "    try:\n"
            "        make()\n"
            "    except NotReadableError as error:\n"
            "        print(error, '|', error.hint)\n"
            "print(why_not())\n"
            "print(len(os.listdir('/proc/self/fd')) - before)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        *errors, why, leaked = done.stdout.splitlines()
        assert len(errors) == 2
        for error in errors:
            message, _, hint = error.partition(" | ")
            assert "BPF" in message or "types" in message
            assert hint
        assert why == errors[1].partition(" | ")[0]
        assert leaked == "0"

    @pytest.mark.parametrize(
        ("number", "word"),
        [
            (errno.EPERM, "Operation not permitted"),
            (errno.ENOSYS, "seccomp"),
            (errno.EINVAL, "5.14"),
            (errno.ENOMEM, "memory"),
        ],
    )
    def test_each_refusal_has_its_reason_and_a_next_step(self, monkeypatch, number, word):
        def refuse(*_: object) -> int:
            bpf.ctypes.set_errno(number)
            return -1

        monkeypatch.setattr(bpf, "_syscall", refuse)
        monkeypatch.setattr(bpf, "_LOCKDOWN", Path("/nonexistent"))
        with pytest.raises(NotReadableError, match=word) as caught:
            BpfMemory()
        assert caught.value.hint

    def test_lockdown_is_named_whatever_error_the_kernel_gave(self, monkeypatch, tmp_path):
        (tmp_path / "lockdown").write_text("none integrity [confidentiality]\n")
        monkeypatch.setattr(bpf, "_syscall", lambda *_: -1)
        monkeypatch.setattr(bpf, "_LOCKDOWN", tmp_path / "lockdown")
        with pytest.raises(NotReadableError, match="locked down for confidentiality"):
            BpfMemory()

    def test_other_machines_are_told_so(self, monkeypatch):
        monkeypatch.setattr(bpf.platform, "machine", lambda: "aarch64")
        with pytest.raises(NotReadableError, match="aarch64"):
            BpfMemory()


def code_start() -> int:
    """The start of the kernel's code, which stays as it is."""
    with Path("/proc/kallsyms").open() as file:
        for line in file:
            address, _, name = line.split()[:3]
            if name == "_stext" and int(address, 16):
                return int(address, 16)
    pytest.skip("/proc/kallsyms hides where the kernel's code is: needs CAP_SYSLOG")

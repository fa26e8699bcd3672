"""Limits of processes and of the system, seals, policies: what no scenario can count exactly."""

from __future__ import annotations

import pytest

from memdesc.mm.areas.accounting import committed, set_limit
from memdesc.mm.areas.brk import brk, set_start_brk
from memdesc.mm.areas.mempolicy import Policy, get_mempolicy, mbind
from memdesc.mm.areas.mmap import exit_process, mmap, munmap
from memdesc.mm.areas.mprotect import mprotect
from memdesc.mm.areas.mseal import mseal
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno

AT = 0x10000
READ_WRITE = VM.READ | VM.WRITE


def test_what_is_promised_is_what_may_be_written_and_shared_memory_once() -> None:
    kernel = Kernel("6.12", memory_bytes=24 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 8)
    mmap(kernel, process.mm, AT + 0x100, 8, prot=VM.READ)
    mmap(kernel, process.mm, AT + 0x200, 8, flags=VM.NORESERVE)
    mmap(kernel, process.mm, AT + 0x300, 16, flags=VM.SHARED)
    assert committed(kernel) == 8 + 16
    child = fork(kernel, process, "c")
    assert committed(kernel) == 8 + 8 + 16
    munmap(kernel, process.mm, AT + 0x300, AT + 0x310)
    exit_process(kernel, process)
    assert committed(kernel) == 8 + 16
    exit_process(kernel, child)
    assert committed(kernel) == 0


def test_the_last_page_of_the_limit_can_be_promised_and_a_failed_fork_leaves_nothing() -> None:
    kernel = Kernel("6.12", memory_bytes=24 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 8)
    kernel.write(process, AT, content=1)
    kernel.set_knob("commit_room", "7")
    kernel.set_knob("overcommit", "2")
    with pytest.raises(Errno, match="ENOMEM"):
        fork(kernel, process, "c")
    check(kernel)
    assert list(kernel.processes) == ["p"]
    mmap(kernel, process.mm, AT + 0x100, 7)
    with pytest.raises(Errno, match="ENOMEM"):
        mmap(kernel, process.mm, AT + 0x200, 1)
    mprotect(kernel, process.mm, AT, AT + 8, VM.READ)
    assert committed(kernel) == 15, "what was written stays promised"


def test_the_limit_of_data_is_of_private_writable_areas() -> None:
    kernel = Kernel("6.12", memory_bytes=24 << 20)
    mm = kernel.process("p").mm
    set_limit(mm, "data", 4)
    mmap(kernel, mm, AT, 8, prot=VM.READ)
    mprotect(kernel, mm, AT, AT + 4, READ_WRITE)
    with pytest.raises(Errno, match="ENOMEM"):
        mprotect(kernel, mm, AT + 4, AT + 5, READ_WRITE)
    mprotect(kernel, mm, AT, AT + 4, READ_WRITE | VM.EXEC)
    set_start_brk(mm, AT + 0x100)
    with pytest.raises(Errno, match="ENOMEM"):
        brk(kernel, mm, 1)
    assert mm.brk == mm.start_brk


def test_equal_policies_are_one_and_pieces_become_one_area_again() -> None:
    kernel = Kernel("6.12", memory_bytes=24 << 20)
    mm = kernel.process("p").mm
    mmap(kernel, mm, AT, 6)
    for first in (0, 4, 2):
        mbind(kernel, mm, AT + first, AT + first + 2, "bind", frozenset({0, first}))
    assert len(mm.vmas) == 1
    assert get_mempolicy(mm, AT + 3) == Policy("bind", frozenset({0}))
    mbind(kernel, mm, AT + 2, AT + 4, "bind", frozenset({0, 1}), static=True)
    assert len(mm.vmas) == 3
    check(kernel)


def test_a_sealed_range_is_sealed_whole_or_not_at_all() -> None:
    kernel = Kernel("6.12", memory_bytes=24 << 20)
    mm = kernel.process("p").mm
    mmap(kernel, mm, AT, 2)
    mmap(kernel, mm, AT + 3, 2)
    with pytest.raises(Errno, match="ENOMEM"):
        mseal(kernel, mm, AT, AT + 5)
    assert not any(vma.flags & VM.SEALED for vma in mm.vmas)
    mmap(kernel, mm, AT + 2, 1, prot=VM.READ)
    mseal(kernel, mm, AT, AT + 5)
    with pytest.raises(Errno, match="EPERM"):
        mmap(kernel, mm, AT + 2, 1, fixed=True)
    assert all(vma.flags & VM.SEALED for vma in mm.vmas)

"""The kernel's own copies: no references, partial results, and memory without a page behind it."""

from __future__ import annotations

import pytest

from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import mmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.faults.uaccess import copy_from_user, copy_to_user
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process
from memdesc.mm.references.gup import get_user_pages

AT = 0x10000


def world() -> tuple[Kernel, Process]:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 3)
    return kernel, process


def test_copies_take_no_reference() -> None:
    kernel, process = world()
    assert copy_to_user(kernel, process, AT, [1, 2]) == 2
    kernel.drain()
    assert [kernel.refs(e.pfn_of(process.mm.tables.entry(AT + i))) for i in range(2)] == [1, 1]
    assert copy_from_user(kernel, process, AT, 3) == (1, 2, 0)


def test_copies_say_what_is_missing() -> None:
    kernel, process = world()
    assert copy_to_user(kernel, process, AT + 1, [1, 2, 3]) == 2
    assert kernel.fired[-1] == "copy_to_user: SIGSEGV MAPERR becomes 1 pages not copied"
    with pytest.raises(Errno, match="EFAULT"):
        copy_from_user(kernel, process, AT + 3, 1)


def test_copies_reach_what_get_user_pages_refuses() -> None:
    kernel, process = world()
    kernel.write(process, AT, 4)
    area = process.mm.vmas.find(AT)
    assert area is not None
    area.flags |= VM.PFNMAP
    with pytest.raises(Errno, match="EFAULT"):
        get_user_pages(kernel, process.mm, AT, 1)
    assert copy_from_user(kernel, process, AT, 1) == (4,)
    assert copy_to_user(kernel, process, AT, [5]) == 1

"""fork where scenarios cannot look: no memory, and what is inherited beside pages."""

from __future__ import annotations

import pytest

from memdesc.mm.areas.mmap import exit_process, mmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import OutOfMemory
from memdesc.mm.references.pins import register_buffer

AT = 0x10000


def test_a_fork_that_runs_out_of_memory_leaves_nothing() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 64)
    for vpn in range(AT, AT + 64):
        kernel.write(process, vpn, vpn)
    process.pins["d"] = register_buffer(kernel, process, AT, 64)
    kernel.drain()
    before = [kernel.refs(pfn) for pfn in process.pins["d"].pages]
    # Each pinned page is copied: allocations fail behind the child's tables and some copies.
    kernel.machine.pages.fail_after(20)
    with pytest.raises(OutOfMemory):
        fork(kernel, process, "c")
    kernel.machine.pages.fail_after(-1)
    kernel.drain()
    assert "c" not in kernel.processes
    assert [kernel.refs(pfn) for pfn in process.pins["d"].pages] == before
    check(kernel)
    fork(kernel, process, "c")
    assert kernel.read(kernel.processes["c"], AT + 63) == AT + 63
    check(kernel)


def test_a_child_was_never_pinned() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 1)
    process.pins["d"] = register_buffer(kernel, process, AT, 1)
    child = fork(kernel, process, "c")
    assert process.mm.has_pinned
    assert not child.mm.has_pinned
    assert not child.pins
    exit_process(kernel, process)
    assert kernel.read(child, AT) == 0
    check(kernel)


def test_userfaultfd_and_locks_stay_with_the_parent() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    area = mmap(kernel, process.mm, AT, 1)
    area.flags |= VM.UFFD_WP | VM.UFFD_MISSING | VM.LOCKED
    twin = fork(kernel, process, "c").mm.vmas.find(AT)
    assert twin is not None
    assert not twin.flags & (VM.UFFD_WP | VM.UFFD_MISSING | VM.LOCKED)


def test_a_thousand_references_look_like_a_pin_only_where_something_was_pinned() -> None:
    for pinned_before in (False, True):
        kernel = Kernel("6.12", memory_bytes=64 << 20)
        process = kernel.process("p")
        mmap(kernel, process.mm, AT, 2)
        kernel.write(process, AT, 1)
        if pinned_before:
            register_buffer(kernel, process, AT + 1, 1).release(kernel)
        kernel.drain()
        pfn = process.mm.tables.entry(AT) >> 12
        kernel.get(pfn, 1024)
        child = fork(kernel, process, "c")
        copied = child.mm.tables.entry(AT) >> 12 != pfn
        assert copied is pinned_before
        kernel.put(pfn, 1024)
        kernel.drain()
        check(kernel)

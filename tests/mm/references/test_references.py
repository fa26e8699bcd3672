"""Pipes, sockets, futexes, devices and movable memory: what scenarios cannot ask of the model."""

from __future__ import annotations

import pytest

from memdesc.mm.areas.mmap import exit_process, mmap, munmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process
from memdesc.mm.references.device_mapping import map_firmware, map_ring
from memdesc.mm.references.direct_io import begin_dma_from
from memdesc.mm.references.futex import futex_wake
from memdesc.mm.references.gup import FOLL, pin_user_pages, pin_user_pages_fast, unpin_user_pages
from memdesc.mm.references.pins import access_remote_vm
from memdesc.mm.references.splice import splice_more, vmsplice
from memdesc.mm.references.zerocopy import send_zerocopy
from memdesc.mm.references.zone_movable import online_movable

AT = 0x10000
SERIES = ("6.1", "6.12", "7.2")


def world(series: str = "6.12", pages: int = 4) -> tuple[Kernel, Process]:
    kernel = Kernel(series, memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, pages)
    return kernel, process


@pytest.mark.parametrize("room", range(1, 20))
def test_a_pipe_takes_what_fits_and_gives_the_rest_back(room: int) -> None:
    kernel, process = world(pages=40)
    for at in range(40):
        kernel.write(process, AT + at, at + 1)
    pipe = process.pins["s"] = vmsplice(kernel, process, AT, room)
    assert pipe.slots >= room > pipe.slots // 2
    free = pipe.slots - room
    if free:
        assert splice_more(kernel, process, pipe, AT + 20, 20) == 4096 * free
    with pytest.raises(Errno, match="EAGAIN"):
        splice_more(kernel, process, pipe, AT, 1)
    kernel.drain()
    check(kernel)
    assert pipe.read(kernel) == (*range(1, room + 1), *range(21, 21 + free))
    check(kernel)


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize(("references", "copied"), [(1022, False), (1023, True)])
def test_fork_counts_the_childs_reference_before_it_asks(
    series: str, references: int, copied: bool
) -> None:
    kernel, process = world(series)
    kernel.write(process, AT, 7)
    unpin_user_pages(kernel, pin_user_pages(kernel, process.mm, AT, 1, FOLL.WRITE))
    kernel.drain()
    process.pins["s"] = vmsplice(kernel, process, AT, 1, times=references - 1)
    pfn = process.mm.tables.entry(AT) >> 12 & (1 << 40) - 1
    assert kernel.refs(pfn) == references
    child = fork(kernel, process, "c")
    kernel.drain()
    check(kernel)
    assert kernel.exclusive(pfn) is copied
    assert (process.mm.tables.entry(AT) ^ child.mm.tables.entry(AT)) >> 12 != 0 or not copied
    exit_process(kernel, process)
    check(kernel)
    assert kernel.read(child, AT) == 7


def test_what_is_sent_is_what_is_there_when_it_is_received() -> None:
    kernel, process = world()
    for at in range(4):
        kernel.write(process, AT + at, at + 1)
    munmap(kernel, process.mm, AT + 2, AT + 3)
    sent = process.pins["s"] = send_zerocopy(kernel, process, AT, 4)
    kernel.write(process, AT + 1, 9)
    kernel.drain()
    check(kernel)
    assert sent.receive(kernel) == (1, 9)
    with pytest.raises(Errno, match="EFAULT"):
        send_zerocopy(kernel, process, AT + 2, 1)


@pytest.mark.parametrize("series", SERIES)
def test_a_device_that_reads_is_told_what_is_there_in_the_end(series: str) -> None:
    kernel, process = world(series)
    kernel.write(process, AT, 1)
    fork(kernel, process, "c")
    kernel.drain()
    transfer = process.pins["d"] = begin_dma_from(kernel, process, AT, 1)
    kernel.write(process, AT, 2)
    kernel.drain()
    check(kernel)
    assert transfer.taken(kernel) == ((2,) if kernel.rules.direct_io_pins else (1,))
    check(kernel)


def test_a_shared_futex_gives_its_reference_back_where_it_is_refused() -> None:
    kernel, process = world()
    mmap(kernel, process.mm, AT + 0x100, 2, prot=VM.READ)
    for vpn in (AT + 0x100, AT + 0x200):
        with pytest.raises(Errno, match="EFAULT"):
            futex_wake(kernel, process, vpn)
    assert kernel.refs(kernel.zero_pfn) == 1
    assert futex_wake(kernel, process, AT) == 0
    kernel.drain()
    check(kernel)


@pytest.mark.parametrize("series", SERIES)
def test_a_drivers_page_lives_until_its_pin_is_released(series: str) -> None:
    kernel, process = world(series)
    map_ring(kernel, process.mm, AT + 0x100, 1, VM.READ | VM.WRITE)
    kernel.fired.clear()
    flags = FOLL.WRITE | FOLL.LONGTERM
    pages = pin_user_pages_fast(kernel, process.mm, AT + 0x100, 1, flags)
    refused = any("slow path: a page of a file" in rule for rule in kernel.fired)
    assert refused is kernel.rules.refuses_longterm_file_writes
    kernel.write(process, AT + 0x100, 5)
    munmap(kernel, process.mm, AT + 0x100, AT + 0x101)
    assert kernel.refs(pages[0]) == 1024
    assert kernel.f.content[pages[0]] == 5
    unpin_user_pages(kernel, pages)
    assert kernel.refs(pages[0]) == 0
    check(kernel)


def test_a_debugger_may_not_write_what_the_entry_forbids_of_a_device() -> None:
    kernel, process = world()
    map_firmware(kernel, process.mm, AT + 0x100, 2, VM.READ | VM.WRITE, content=3)
    assert access_remote_vm(kernel, process, process, AT + 0x100, 2) == (3, 3)
    with pytest.raises(Errno, match="EIO"):
        access_remote_vm(kernel, process, process, AT + 0x100, 1, [4])
    kernel.write(process, AT + 0x101, 4)
    assert kernel.read(process, AT + 0x100) == 3
    kernel.drain()
    check(kernel)


def test_movable_memory_comes_before_anything_else() -> None:
    kernel = Kernel("6.12")
    managed = kernel.machine.pages.layout.managed
    for mebibytes in (1, 100, 512):
        with pytest.raises(Errno, match="EINVAL"):
            online_movable(kernel, mebibytes)
    kernel.set_knob("movable", "128")
    layout = kernel.machine.pages.layout
    assert [zone.name for zone in layout.zones][-1] == "Movable"
    assert layout.zones[-1].managed == 128 << 8
    assert layout.managed == managed
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 1)
    kernel.write(process, AT, 1)
    with pytest.raises(Errno, match="EBUSY"):
        online_movable(kernel, 128)
    check(kernel)

"""What get_user_pages decides beyond what scenarios can show: flags, long pins, limits, reasons."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.mmap import exit_process, mmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.files.inode import EXT4, OpenFile, new_inode
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Limits, Process
from memdesc.mm.references.futex import futex_key
from memdesc.mm.references.gup import (
    FOLL,
    get_user_pages,
    get_user_pages_fast,
    pin_user_pages,
    pin_user_pages_fast,
    put_pages,
    unpin_user_pages,
)
from memdesc.mm.references.gup_longterm import is_longterm_pinnable
from memdesc.mm.references.pins import register_buffer
from memdesc.mm.references.splice import vmsplice
from memdesc.model.zones import Layout, ZoneLayout

AT = 0x10000


def world(series: str = "6.12", pages: int = 4) -> tuple[Kernel, Process]:
    kernel = Kernel(series, memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, pages)
    return kernel, process


def shared_page(series: str) -> tuple[Kernel, Process]:
    """A page that a child shares, which is alive."""
    kernel, process = world(series)
    kernel.write(process, AT, 7)
    fork(kernel, process, "c")
    kernel.drain()
    return kernel, process


def test_only_one_kind_of_reference_and_longterm_only_as_a_pin() -> None:
    kernel, process = world()
    for flags in (FOLL.PIN, FOLL.LONGTERM):
        with pytest.raises(Errno, match="EINVAL"):
            get_user_pages(kernel, process.mm, AT, 1, flags)
    with pytest.raises(Errno, match="EINVAL"):
        pin_user_pages(kernel, process.mm, AT, 1, FOLL.GET)


def test_nofault_and_dump_do_not_fill_holes() -> None:
    kernel, process = world()
    for flags in (FOLL.NOFAULT, FOLL.DUMP):
        with pytest.raises(Errno, match="EFAULT"):
            get_user_pages(kernel, process.mm, AT, 1, flags)
    kernel.write(process, AT, 1)
    pages = get_user_pages(kernel, process.mm, AT, 2, FOLL.DUMP)
    assert len(pages) == 1
    assert process.mm.tables.entry(AT + 1) == 0


def test_a_core_dump_leaves_the_zero_page_out() -> None:
    kernel, process = world()
    kernel.read(process, AT)
    assert get_user_pages(kernel, process.mm, AT, 1) == [kernel.zero_pfn]
    with pytest.raises(Errno, match="EFAULT"):
        get_user_pages(kernel, process.mm, AT, 1, FOLL.DUMP)


@pytest.mark.parametrize("series", ["6.1", "6.12", "7.2"])
def test_reasons_of_the_fast_path(series: str) -> None:
    kernel, process = shared_page(series)
    kernel.fired.clear()
    put_pages(kernel, get_user_pages_fast(kernel, process.mm, AT, 1))
    assert kernel.fired == ["gup_fast: all pages without a lock"]
    for flags, why in (
        (FOLL.WRITE, "the entry is read-only"),
        (FOLL(0), "gup_must_unshare"),
    ):
        kernel, process = shared_page(series)
        pages = pin_user_pages_fast(kernel, process.mm, AT, 1, flags)
        assert any(why in rule for rule in kernel.fired), kernel.fired
        assert kernel.exclusive(pages[0])
        unpin_user_pages(kernel, pages)
        kernel.drain()
        check(kernel)


def test_the_fast_path_gives_up_at_the_first_page_and_keeps_the_others() -> None:
    kernel, process = world()
    kernel.write(process, AT, 1)
    kernel.write(process, AT + 2, 3)
    kernel.fired.clear()
    pages = get_user_pages_fast(kernel, process.mm, AT, 3)
    assert len(pages) == 3
    assert pages[1] == kernel.zero_pfn
    assert kernel.fired[0] == "gup_fast: 1 pages, then the slow path: nothing is present"
    only_fast = get_user_pages_fast(kernel, process.mm, AT, 4, FOLL.FAST_ONLY)
    assert only_fast == pages[:1]


def test_a_short_read_pin_may_keep_the_zero_page_a_long_one_may_not() -> None:
    for series, copied in (("6.1", False), ("6.12", True), ("7.2", True)):
        kernel, process = world(series)
        pages = pin_user_pages(kernel, process.mm, AT, 1)
        assert pages == [kernel.zero_pfn]
        assert kernel.refs(kernel.zero_pfn) == 1
        pages = pin_user_pages(kernel, process.mm, AT, 1, FOLL.LONGTERM)
        assert (pages[0] != kernel.zero_pfn) is copied
        assert not process.mm.tables.entry(AT) & 2  # read-only


def test_pins_of_a_large_folio_are_counted_beside_its_references() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    kernel.set_knob("thp", "always")
    process = kernel.process("p")
    low = 0x10000
    mmap(kernel, process.mm, low, 512)
    kernel.write(process, low, 1)
    head = pin_user_pages(kernel, process.mm, low + 3, 2)[0] - 3
    assert (kernel.refs(head), int(kernel.f.pins[head])) == (3, 2)
    assert kernel.may_be_pinned(head + 100)
    unpin_user_pages(kernel, [head + 3, head + 4])
    assert (kernel.refs(head), int(kernel.f.pins[head])) == (1, 0)
    check(kernel)


def test_a_page_lives_until_it_is_released() -> None:
    kernel, process = world()
    kernel.write(process, AT, 9)
    pages = pin_user_pages(kernel, process.mm, AT, 1, FOLL.WRITE)
    exit_process(kernel, process)
    kernel.drain()
    assert kernel.refs(pages[0]) == 1024
    assert kernel.mapcount(pages[0]) == 0
    assert kernel.f.content[pages[0]] == 9
    assert kernel.flags(pages[0]) & KPF.ANON
    unpin_user_pages(kernel, pages, dirty=True)
    assert kernel.refs(pages[0]) == 0
    check(kernel)


def test_force_wants_soft_dirty_pages_to_fault() -> None:
    kernel, process = world()
    kernel.write(process, AT, 1)
    area = process.mm.vmas.find(AT)
    assert area is not None
    area.flags &= ~(VM.WRITE | VM.SOFTDIRTY)
    entry = process.mm.tables.entry(AT) & ~(1 << 1)
    process.mm.tables.set(AT, entry & ~(1 << 11))
    kernel.fired.clear()
    get_user_pages(kernel, process.mm, AT, 1, FOLL.WRITE | FOLL.FORCE)
    assert any("do_wp_page" in rule for rule in kernel.fired)


def test_memlock_limits_what_io_uring_pins() -> None:
    kernel, process = world(pages=8)
    process.mm.limits = Limits(memlock=5, capable=False)
    process.pins["a"] = register_buffer(kernel, process, AT, 3)
    with pytest.raises(Errno, match="ENOMEM"):
        register_buffer(kernel, process, AT + 3, 3)
    process.pins["b"] = register_buffer(kernel, process, AT + 3, 2)
    kernel.drain()
    check(kernel)
    process.pins["a"].release(kernel)
    register_buffer(kernel, process, AT + 5, 3).release(kernel)
    process.pins.pop("b").release(kernel)
    kernel.drain()
    check(kernel)


def test_vmsplice_gets_sixteen_pages_at_a_time_and_ends_early() -> None:
    kernel, process = world(pages=20)
    kernel.fired.clear()
    pipe = vmsplice(kernel, process, AT, 24)
    assert len(pipe.pages) == 20
    pipe.release(kernel)
    assert sum(rule.startswith("gup_fast") for rule in kernel.fired) == 3


def test_futex_keys_go_by_the_page_only_where_a_file_is_behind_it() -> None:
    kernel, process = world()
    kernel.write(process, AT, 1)
    fork(kernel, process, "c")
    other = kernel.processes["c"]
    assert futex_key(kernel, process, AT) != futex_key(kernel, other, AT)
    inode = new_inode(kernel, EXT4, "f")
    inode.size = 4096
    keys = []
    for number, each in enumerate((process, other)):
        at = AT + 0x100 * (number + 1)
        file = OpenFile(inode)
        inode.opens += 1
        mmap(kernel, each.mm, at, 1, flags=VM.SHARED, file=file, pgoff=0)
        keys.append(futex_key(kernel, each, at))
    assert keys[0] == keys[1]
    assert keys[0][0] == "shared"


def with_movable_zone() -> Layout:
    return Layout(
        (
            ZoneLayout("DMA", 0, 1, 4095),
            ZoneLayout("DMA32", 0, 4096, 12288),
            ZoneLayout("Movable", 0, 16384, 8192),
        )
    )


@pytest.mark.parametrize("series", ["6.1", "6.12", "7.2"])
def test_what_is_pinned_for_long_leaves_the_movable_zone(series: str) -> None:
    kernel = Kernel(series, layout=with_movable_zone())
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 2)
    kernel.write(process, AT, 5)
    before = pin_user_pages(kernel, process.mm, AT, 1, FOLL.WRITE)
    assert before[0] >= 16384, "an anonymous page that lies in ZONE_MOVABLE was wanted"
    assert not is_longterm_pinnable(kernel, before[0])
    with pytest.raises(Errno, match="ENOMEM"):
        pin_user_pages(kernel, process.mm, AT, 1, FOLL.WRITE | FOLL.LONGTERM)
    unpin_user_pages(kernel, before)
    after = pin_user_pages(kernel, process.mm, AT, 1, FOLL.WRITE | FOLL.LONGTERM)
    assert after[0] < 16384
    assert kernel.read(process, AT) == 5
    assert kernel.flags(after[0]) & KPF.DIRTY
    assert kernel.exclusive(after[0])
    assert kernel.refs(before[0]) == 0
    unpin_user_pages(kernel, after)
    kernel.drain()
    check(kernel)

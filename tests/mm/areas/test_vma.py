"""Areas: which of them may be one, and that check() notices when they do not fit."""

from __future__ import annotations

import pytest

from memdesc.kernels.processes import ProcessRules
from memdesc.mm.areas.mmap import mmap, munmap, set_anon_name
from memdesc.mm.areas.mprotect import mprotect
from memdesc.mm.areas.vma import VM, Vma, VmaSet
from memdesc.mm.areas.vma_modify import split_vma, vma_modify_flags
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Mm, OutOfMemory
from memdesc.mm.rmap import AnonVma

AT = 0x10000
R, RW = VM.READ, VM.READ | VM.WRITE


def shape(mm: Mm) -> list[tuple[int, int]]:
    return [(vma.vpn_start - AT, vma.vpn_end - AT) for vma in mm.vmas]


def test_areas_are_found_by_address() -> None:
    areas = VmaSet()
    one, other = Vma(10, 14, RW, 10), Vma(20, 22, RW, 20)
    areas.insert(other)
    areas.insert(one)
    assert [areas.find(vpn) for vpn in (9, 10, 13, 14, 20, 22)] == [
        None, one, one, None, other, None,
    ]  # fmt: skip
    assert areas.overlapping(13, 21) == [one, other]
    assert areas.overlapping(14, 20) == []
    assert (areas.before(20), areas.after(14), areas.before(10)) == (one, other, None)
    areas.resize(one, 12, 20)
    assert one.pgoff == 12
    areas.check()
    areas.resize(one, 12, 21)
    with pytest.raises(AssertionError):
        areas.check()


@pytest.mark.parametrize("series", ["6.1", "6.12", "7.2"])
def test_any_split_and_merge_gives_one_area_back(series: str) -> None:
    kernel = Kernel(series, memory_bytes=64 << 20)
    mm = kernel.process("p").mm
    mmap(kernel, mm, AT, 12)
    kernel.write(kernel.processes["p"], AT + 5, 1)
    for start in range(12):
        for end in range(start + 1, 13):
            mprotect(kernel, mm, AT + start, AT + end, R)
            check(kernel)
            mprotect(kernel, mm, AT + start, AT + end, RW)
            check(kernel)
            assert shape(mm) == [(0, 12)], (start, end)


def test_the_part_that_is_left_keeps_its_pages_findable() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 4)
    for vpn in range(AT, AT + 4):
        kernel.write(process, vpn, vpn)
    munmap(kernel, process.mm, AT + 1, AT + 2)
    first, second = process.mm.vmas
    assert first.anon_vma is not None
    assert first.anon_vma is second.anon_vma
    assert {id(vma) for _, vma in first.anon_vma.vmas} == {id(first), id(second)}
    munmap(kernel, process.mm, AT, AT + 4)
    assert not any(isinstance(found, AnonVma) for found in kernel.mappings.values())


def test_a_split_that_is_one_too_many_changes_nothing_but_the_start() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    mm = kernel.process("p").mm
    vma = mmap(kernel, mm, AT, 6)
    kernel.set_knob("max_map_count", "2")
    with pytest.raises(OutOfMemory):
        vma_modify_flags(kernel, mm, vma, AT + 2, AT + 4, vma.flags | VM.RAND_READ)
    assert shape(mm) == [(0, 2), (2, 6)]
    assert not any(area.flags & VM.RAND_READ for area in mm.vmas)
    check(kernel)


class Named(ProcessRules):
    anon_vma_names = True


def test_names_keep_areas_apart_where_the_kernel_has_them() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    mm = kernel.process("p").mm
    mmap(kernel, mm, AT, 6)
    with pytest.raises(Errno, match="EINVAL"):
        set_anon_name(kernel, mm, AT, AT + 1, "heap")
    kernel.rules = Named(kernel.release)
    set_anon_name(kernel, mm, AT + 2, AT + 4, "heap")
    assert shape(mm) == [(0, 2), (2, 4), (4, 6)]
    with pytest.raises(Errno, match="ENOMEM"):
        set_anon_name(kernel, mm, AT, AT + 8, "heap")
    assert shape(mm) == [(0, 6)]
    assert [vma.name for vma in mm.vmas] == ["heap"]


def _lost_link(kernel: Kernel) -> None:
    vma = kernel.processes["p"].mm.vmas.find(AT)
    assert vma is not None
    vma.chain[0].vmas.clear()


def _wrong_count(kernel: Kernel) -> None:
    vma = kernel.processes["p"].mm.vmas.find(AT)
    assert vma is not None
    vma.chain[0].active_vmas += 1


def _not_merged(kernel: Kernel) -> None:
    mm = kernel.processes["p"].mm
    vma = mm.vmas.find(AT + 8)
    assert vma is not None
    split_vma(kernel, mm, vma, AT + 9)


def _left_table(kernel: Kernel) -> None:
    kernel.processes["p"].mm.tables.alloc_pte(AT + 5 * 512)


@pytest.mark.parametrize("damage", [_lost_link, _wrong_count, _not_merged, _left_table])
def test_check_notices(damage: object) -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 2)
    kernel.write(process, AT, 1)
    mmap(kernel, process.mm, AT + 8, 2)
    check(kernel)
    assert callable(damage)
    damage(kernel)
    with pytest.raises(AssertionError):
        check(kernel)


def test_grandchildren_reuse_the_anon_vma_of_who_has_gone() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p0")
    mmap(kernel, process.mm, AT, 1)
    kernel.write(process, AT, 1)
    from memdesc.mm.areas.mmap import exit_process

    for number in range(1, 9):
        child = fork(kernel, process, f"p{number}")
        exit_process(kernel, process)
        process = child
        kernel.write(process, AT, number)
        check(kernel)
    # Without reuse the chain would grow with every generation.
    vma = process.mm.vmas.find(AT)
    assert vma is not None
    assert len(vma.chain) <= 3

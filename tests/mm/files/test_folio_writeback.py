"""A device that holds what it is given: what goes on meanwhile, and what would never return."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memdesc.errors import MemdescError
from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.madvise import madvise
from memdesc.mm.areas.mmap import mmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.files import inode as files
from memdesc.mm.files.folio_writeback import Answers
from memdesc.mm.files.page_cache import cachestat, pwrite
from memdesc.mm.files.truncate import ftruncate
from memdesc.mm.files.writeback import set_disk, sync, sync_file_range, vfs_fsync_range
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Process, Signal
from memdesc.mm.reclaim.swap_state import set_swap
from memdesc.mm.reclaim.swapfile import swapoff, swapon

VPN = 0x10000


@pytest.fixture
def held() -> tuple[Kernel, Process, files.OpenFile]:
    """A page of a file that is mapped, and under write-back."""
    kernel = Kernel("6.12")
    process = kernel.process("p")
    file = files.open_file(kernel, process, "f", "ext4", "f", create=True)
    pwrite(kernel, file, 0, [1])
    mmap(kernel, process.mm, VPN, 1, flags=VM.SHARED | VM.MAYSHARE, file=file)
    kernel.write(process, VPN, content=2)
    set_disk(kernel, Answers.HOLD)
    sync_file_range(kernel, file, 0, 1, waits=False)
    assert cachestat(kernel, file.mapping, 0, None)[:3] == (1, 0, 1)
    return kernel, process, file


STEPS: list[Callable[[Kernel, Process, files.OpenFile], object]] = [
    lambda kernel, process, _: kernel.write(process, VPN, content=3),
    lambda kernel, _, file: pwrite(kernel, file, 0, [3]),
    lambda kernel, _, file: ftruncate(kernel, file, 0),
    lambda kernel, _, file: vfs_fsync_range(kernel, file),
    lambda kernel, _, file: sync_file_range(kernel, file, 0, 1),
    lambda kernel, *_: sync(kernel),
]


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_who_would_wait_is_refused(held: tuple[Kernel, Process, files.OpenFile], step: int) -> None:
    with pytest.raises(MemdescError, match="holds") as refused:
        STEPS[step](*held)
    assert "disk ok" in (refused.value.hint or "")


@pytest.mark.parametrize("answers", [Answers.OK, Answers.FAIL])
def test_the_disk_goes_on(held: tuple[Kernel, Process, files.OpenFile], answers: Answers) -> None:
    kernel, process, file = held
    assert kernel.read(process, VPN) == 2
    set_disk(kernel, answers)
    check(kernel)
    assert cachestat(kernel, file.mapping, 0, None)[:3] == (1, 0, 0)
    assert bool(file.mapping.wb_err) is (answers is Answers.FAIL)
    assert (file.mapping.blocks[0] == 2) is (answers is Answers.OK)
    kernel.write(process, VPN, content=3)


def swapped_out(answers: Answers) -> tuple[Kernel, Process]:
    """A page that reclaim gave to swap while the device did so."""
    kernel = Kernel("6.12")
    process = kernel.process("p")
    swapon(kernel, is_synchronous=False)
    mmap(kernel, process.mm, VPN, 1)
    kernel.write(process, VPN, content=1)
    set_swap(kernel, answers)
    madvise(kernel, process, VPN, VPN + 1, "pageout")
    return kernel, process


def test_a_store_to_what_is_swapped_out_copies() -> None:
    kernel, process = swapped_out(Answers.HOLD)
    assert kernel.swap is not None
    (old,) = kernel.swap.slots
    kernel.write(process, VPN, content=2)
    assert kernel.flags(old) & KPF.WRITEBACK
    assert not kernel.f.maps[old]
    with pytest.raises(MemdescError, match="swapoff"):
        swapoff(kernel)
    set_swap(kernel, Answers.OK)
    check(kernel)
    swapoff(kernel)
    assert kernel.read(process, VPN) == 2


@pytest.mark.parametrize("fails", [Answers.FAIL, Answers.HOLD])
def test_a_page_that_comes_without_its_content(fails: Answers) -> None:
    kernel, process = swapped_out(Answers.OK)
    set_swap(kernel, fails)
    with pytest.raises(MemdescError if fails is Answers.HOLD else Signal):
        kernel.read(process, VPN)
    if fails is Answers.FAIL:
        check(kernel)
        swapoff(kernel)
        with pytest.raises(Signal) as lost:
            kernel.read(process, VPN)
        assert lost.value.code == "MCEERR_AR"

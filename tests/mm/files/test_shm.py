"""System V shared memory: what counts, what stays, and what goes with the last area."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.mmap import exit_process
from memdesc.mm.areas.mprotect import mprotect
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.files.shm import shm_rmid, shmat, shmctl_lock, shmdt, shmget
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno

AT = 0x10000


def test_content_is_the_segments_and_goes_with_the_last_area() -> None:
    kernel = Kernel("6.12")
    one, other = kernel.process("one"), kernel.process("other")
    segment = shmget(kernel, 4)
    shmat(kernel, one.mm, segment, AT)
    kernel.write(one, AT, content=7)
    pfn = segment.file.mapping.pages[0]
    exit_process(kernel, one)
    kernel.drain()
    assert kernel.refs(pfn) == 1
    shmat(kernel, other.mm, segment, AT, readonly=True)
    assert kernel.read(other, AT) == 7
    shm_rmid(kernel, segment)
    assert not segment.gone
    shmdt(kernel, other.mm, AT)
    kernel.drain()
    assert segment.gone
    assert kernel.refs(pfn) == 0
    check(kernel)
    with pytest.raises(Errno, match="EINVAL"):
        shmat(kernel, other.mm, segment, AT)


@pytest.mark.parametrize(("series", "areas"), [("6.1", 4), ("6.12", 3)])
def test_areas_are_counted_and_do_not_vanish(series: str, areas: int) -> None:
    kernel = Kernel(series)
    process = kernel.process("p")
    segment = shmget(kernel, 4)
    shmat(kernel, process.mm, segment, AT)
    for first, last, prot in ((1, 2, VM.READ), (1, 2, VM.READ | VM.WRITE), (0, 3, VM.READ)):
        mprotect(kernel, process.mm, AT + first, AT + last, prot)
    assert segment.attached == len(process.mm.vmas) == areas
    child = fork(kernel, process, "c")
    assert segment.attached == 2 * areas
    shmdt(kernel, child.mm, AT)
    assert segment.attached == areas
    with pytest.raises(Errno, match="EINVAL"):
        shmdt(kernel, child.mm, AT)
    check(kernel)


def test_pages_of_a_locked_segment_are_unevictable_without_being_locked() -> None:
    kernel = Kernel("6.12")
    process = kernel.process("p")
    segment = shmget(kernel, 2)
    shmat(kernel, process.mm, segment, AT)
    kernel.write(process, AT, content=1)
    shmctl_lock(kernel, segment, lock=True)
    kernel.write(process, AT + 1, content=2)
    kernel.drain()
    before, after = (kernel.flags(segment.file.mapping.pages[at]) for at in (0, 1))
    assert not before & KPF.UNEVICTABLE
    assert after & KPF.UNEVICTABLE
    assert not after & KPF.MLOCKED
    shmctl_lock(kernel, segment, lock=False)
    assert not kernel.flags(segment.file.mapping.pages[1]) & KPF.UNEVICTABLE
    check(kernel)

"""The modelled kernel: which releases it takes, and the names of its processes."""

from __future__ import annotations

import pytest

from memdesc.errors import QuestionError
from memdesc.mm.areas.mmap import TASK_SIZE, exit_process, mmap, munmap
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno


def test_the_model_begins_with_the_oldest_release_that_was_read() -> None:
    assert Kernel("6.1").release.minor == 1
    with pytest.raises(QuestionError, match=r"begins with 6\.1: .5\.10.") as caught:
        Kernel("5.10")
    assert "6.12" in caught.value.hint


def test_two_processes_that_live_have_different_names() -> None:
    kernel = Kernel()
    first = kernel.process("p")
    with pytest.raises(QuestionError, match="a process 'p' already"):
        kernel.process("p")
    with pytest.raises(QuestionError, match="a process 'p' already"):
        fork(kernel, first, "p")
    assert kernel.processes == {"p": first}
    exit_process(kernel, first)
    assert kernel.process("p") is not first


def test_an_address_space_ends() -> None:
    kernel = Kernel()
    mm = kernel.process("p").mm
    for vpn, pages in ((-1, 1), (1 << 40, 1), (TASK_SIZE, 1), (TASK_SIZE - 1, 2), (0, 1 << 40)):
        with pytest.raises(Errno, match="ENOMEM"):
            mmap(kernel, mm, vpn, pages)
    mmap(kernel, mm, TASK_SIZE - 1, 1)
    for start, end in ((-1, 1), (TASK_SIZE - 1, TASK_SIZE + 1)):
        with pytest.raises(Errno, match="EINVAL"):
            munmap(kernel, mm, start, end)
    munmap(kernel, mm, TASK_SIZE - 1, TASK_SIZE)
    assert not list(mm.vmas)

"""Plant memory of every kind in this process and ask `what` it is: each must be named.

This reads the running kernel's own files, so it runs on whatever kernel the machine has.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import planting
import pytest

from memdesc.answers.places import VirtPlace
from memdesc.answers.what import NoPage, PageAnswer, what
from memdesc.descriptors import AnonFolio, FileFolio, HugetlbFolio, Reserved, ShmemFolio
from memdesc.errors import NotReadableError
from memdesc.kernels.pagemap import EntryKind
from memdesc.sources.source import ProcSource
from memdesc.types import MemoryType, Pid, VirtAddr

T = MemoryType
Planter = Callable[[], AbstractContextManager[int]]


@pytest.fixture(scope="module")
def live() -> ProcSource:
    try:
        return ProcSource()
    except NotReadableError as error:
        pytest.skip(f"{error}; {error.hint}")


def ask(live: ProcSource, planter: Planter) -> PageAnswer | NoPage:
    try:
        with planter() as address:
            place = VirtPlace(Pid(os.getpid()), VirtAddr(address), f"{os.getpid()}:{address:#x}")
            return what(live, place)
    except planting.CannotPlant as reason:
        pytest.skip(str(reason))


CERTAIN: list[tuple[Planter, MemoryType]] = [
    (planting.anon, T.ANON),
    (planting.zero_page, T.ZERO),
    (planting.transparent_huge_page, T.ANON),
    (planting.huge_zero_page, T.HUGE_ZERO),
    (planting.shared_anonymous, T.SHMEM),
    (planting.memfd, T.SHMEM),
    (planting.tmpfs_file, T.SHMEM),
    (planting.file_page, T.FILE),
    (planting.private_file_copy, T.ANON),
    (planting.mlocked, T.ANON),
    (planting.lazily_freed, T.ANON),
    (planting.hugetlb, T.HUGETLB),
    (planting.vdso, T.RESERVED),
]


@pytest.mark.live
@pytest.mark.parametrize(("planter", "kind"), CERTAIN, ids=[p.__name__ for p, _ in CERTAIN])
def test_planted_memory_is_named(live: ProcSource, planter: Planter, kind: MemoryType) -> None:
    answer = ask(live, planter)
    assert isinstance(answer, PageAnswer), answer
    assert kind in answer.types
    if not live.machine.behaviour.ksm_bit_on_all_anon:
        assert answer.types.only is kind, (answer.types, answer.flag_names)


@pytest.mark.live
def test_secret_memory_is_at_least_named_as_a_possibility(live: ProcSource) -> None:
    answer = ask(live, planting.secret_memory)
    assert isinstance(answer, PageAnswer)
    assert T.SECRETMEM in answer.types


@pytest.mark.live
def test_a_huge_page_is_described_whole_from_any_of_its_frames(live: ProcSource) -> None:
    try:
        with planting.transparent_huge_page() as address:
            answers = [
                what(live, VirtPlace(Pid(os.getpid()), VirtAddr(address + offset), "tail"))
                for offset in (0, 4096, 511 * 4096)
            ]
    except planting.CannotPlant as reason:
        pytest.skip(str(reason))
    ranges = set()
    for answer in answers:
        assert isinstance(answer, PageAnswer)
        ranges.add(answer.pages)
    if answers[0].to_json()["order"] != 9:
        pytest.skip("no free 2 MiB block on this machine right now: the fault fell back")
    assert len(ranges) == 1


@pytest.mark.live
@pytest.mark.parametrize(
    ("planter", "descriptor"),
    [
        (planting.anon, AnonFolio),
        (planting.memfd, ShmemFolio),
        (planting.file_page, FileFolio),
        (planting.hugetlb, HugetlbFolio),
        (planting.vdso, Reserved),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_descriptor_is_of_the_kind(
    live: ProcSource, planter: Planter, descriptor: type[object]
) -> None:
    answer = ask(live, planter)
    assert isinstance(answer, PageAnswer)
    assert isinstance(answer.descriptor, descriptor) or not answer.types.is_certain


@pytest.mark.live
def test_places_without_a_page_say_why(live: ProcSource) -> None:
    empty = ask(live, planting.never_touched)
    assert isinstance(empty, NoPage)
    assert empty.kind is EntryKind.EMPTY
    guard = ask(live, planting.guard_region)
    assert isinstance(guard, NoPage)
    assert guard.kind is EntryKind.MARKER

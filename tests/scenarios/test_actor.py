"""The program that does a scenario's steps on a real kernel, part by part, on this machine."""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.pagemap import PM
from memdesc.scenarios.actor import calls, controller, frames, knobs, look, memory, verbs
from memdesc.scenarios.actor.access import PAGE, Access, Fault
from memdesc.scenarios.knobs import KNOBS
from memdesc.scenarios.places import FIRST_SLOT
from memdesc.scenarios.verbs import ADVICE, VERBS

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux",
    reason="the actor's machine code is for Linux on x86-64",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="frame numbers are shown to root only")


def in_child(function: Callable[[], Any]) -> Any:
    """What a function returns in a child, whose handlers and mappings are its own.

    A child that a signal ends gives the signal's name.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        try:
            os.write(writing, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        data = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(data) if data else signal.Signals(-status).name


def shown(fault: Fault | int | None) -> Any:
    return [fault.signal, fault.code, fault.address] if isinstance(fault, Fault) else fault


def arena(pages: int, prot: int = 3) -> int:
    flags = calls.MAP_PRIVATE | calls.MAP_ANONYMOUS | calls.MAP_FIXED_NOREPLACE
    return calls.mmap(pages * PAGE, prot, flags, address=FIRST_SLOT)


# --- accesses ------------------------------------------------------------------------------------


def test_a_store_fills_the_whole_page_and_nothing_else() -> None:
    def act() -> Any:
        access, place = Access(), arena(3)
        assert access.store_page(place + PAGE, 0x1234567890ABCDEF) is None
        return [access.load(place + at) for at in (0, PAGE, PAGE + 8, 2 * PAGE - 8, 2 * PAGE)]

    assert in_child(act) == [0, *(0x1234567890ABCDEF,) * 3, 0]


def test_a_store_to_read_only_memory_brings_accerr() -> None:
    def act() -> Any:
        access, place = Access(), arena(1, calls.PROT_READ)
        return [shown(access.store_page(place, 1)), shown(access.load(place))]

    assert in_child(act) == [["SIGSEGV", "ACCERR", FIRST_SLOT], 0]


def test_an_access_beside_all_mappings_brings_maperr_each_time() -> None:
    def act() -> Any:
        access, place = Access(), arena(1)
        return [shown(access.load(place + PAGE + 16)) for _ in range(3)]

    assert in_child(act) == [["SIGSEGV", "MAPERR", FIRST_SLOT + PAGE + 16]] * 3


def test_an_access_behind_a_files_end_brings_sigbus() -> None:
    def act() -> Any:
        access, fd = Access(), os.memfd_create("short")
        os.ftruncate(fd, 10)
        place = calls.mmap(2 * PAGE, 3, calls.MAP_SHARED, fd)
        fault = access.store_page(place + PAGE, 1)
        assert isinstance(fault, Fault)
        return [access.load(place), fault.signal, fault.code, fault.address - place]

    assert in_child(act) == [0, "SIGBUS", "ADRERR", PAGE]


def test_the_handlers_are_inherited_over_fork() -> None:
    def act() -> Any:
        access, place = Access(), arena(1, calls.PROT_READ)
        return in_child(lambda: shown(access.store_page(place, 1)))

    assert in_child(act) == ["SIGSEGV", "ACCERR", FIRST_SLOT]


def test_a_fault_that_is_not_an_access_of_a_scenario_ends_the_process() -> None:
    def act() -> None:
        import ctypes

        Access()
        ctypes.string_at(16)

    assert in_child(act) == "SIGILL"


def test_a_system_call_that_fails_gives_its_errno() -> None:
    with pytest.raises(OSError) as caught:
        calls.madvise(FIRST_SLOT + 1, PAGE, 4)
    assert calls.error_name(caught.value) == "EINVAL"


# --- tables --------------------------------------------------------------------------------------


def test_every_verb_of_the_language_is_done_and_no_other() -> None:
    by_process = {name for name, verb in VERBS.items() if verb.by_process and verb.alias is None}
    assert set(verbs.PROCESS_VERBS) | set(controller.SEVERAL) | {"fork", "exit"} == by_process
    alone = {name for name, verb in VERBS.items() if not verb.by_process}
    assert set(controller.ALONE) == alone


def test_every_setting_and_advice_of_the_language_is_known() -> None:
    assert set(KNOBS) <= set(knobs.FILES)
    assert set(knobs.DEFAULTS) <= set(knobs.FILES)
    assert set(ADVICE) == set(memory.ADVICE)
    files = {name: knob.path for name, knob in KNOBS.items() if knob.path.startswith("/")}
    assert {name: knobs.FILES[name] for name in files} == files
    assert KNOBS.keys() - files.keys() == {"read_ahead", "tmpfs_huge"}  # a device, a mount


def test_nothing_of_this_machine_is_changed() -> None:
    assert not verbs.inside_guest()
    system = knobs.System()
    for step in (
        ("knob", {"name": "overcommit", "value": "17"}),
        ("ksm", {"action": "run", "value": 1}),
        ("swap", {"state": "on"}),
        ("dropcaches", {"value": 1}),
        ("sync", {}),
    ):
        with pytest.raises(verbs.RefusedError):
            system.do(*step)
    for advice in ("hwpoison", "soft_offline"):
        with pytest.raises(verbs.RefusedError):
            memory.advise(None, {"range": {}, "advice": advice})  # type: ignore[arg-type]


def test_a_setting_that_is_so_already_is_fine() -> None:
    value = int(Path("/proc/sys/vm/overcommit_memory").read_text())
    knobs.System().do("knob", {"name": "overcommit", "value": str(value)})


# --- looking -------------------------------------------------------------------------------------


@pytest.mark.live
@needs_root
def test_a_look_shows_what_was_written_and_no_more() -> None:
    def act() -> Any:
        access = Access()
        end = FIRST_SLOT + (1 << 30)
        observer = look.Observer((FIRST_SLOT, end))
        place = arena(4)
        calls.madvise(place, 4 * PAGE, 15)  # MADV_NOHUGEPAGE
        access.store_page(place, 7)
        access.store_page(place + PAGE, 8)
        access.store_page(place + PAGE, 0)
        import ctypes

        ctypes.c_uint64.from_address(place + PAGE + 16).value = 9
        access.load(place + 2 * PAGE)
        observer.settle()
        mine = look.Watched("me", "buf", place, 4)
        looked = observer.look({"me": os.getpid()}, [mine])
        return [looked.pages["me"]["buf"], looked.vmas["me"]]

    (written, mixed, read, untouched), areas = in_child(act)
    assert written[0] & PM.PRESENT
    assert written[1] & KPF.ANON
    assert written[1] & KPF.LRU
    assert written[2] == 1
    assert written[4:] == [7, False, False, 0]
    assert (mixed[4], mixed[6]) == (0, True)
    assert read[1] & KPF.ZERO_PAGE
    assert read[4] == 0
    assert untouched[:7] == [untouched[0], 0, 0, None, None, False, False]
    assert not untouched[0] & (PM.PRESENT | PM.SWAP)
    (area,) = areas
    assert (area["start"], area["end"]) == (FIRST_SLOT, FIRST_SLOT + 4 * PAGE)
    assert (area["perms"], area["path"], area["offset"]) == ("rw-p", "", 0)
    assert area["sizes"]["Rss"] == 8
    assert "nh" in area["flags"]


@pytest.mark.live
@needs_root
def test_a_look_faults_nothing_in_and_names_files_by_their_place() -> None:
    def act() -> Any:
        fd = os.memfd_create("quiet")
        os.ftruncate(fd, 4 * PAGE)
        place = calls.mmap(4 * PAGE, 3, calls.MAP_SHARED | calls.MAP_FIXED, fd, PAGE, FIRST_SLOT)
        observer = look.Observer((FIRST_SLOT, FIRST_SLOT + (1 << 30)), [("/memfd:", "m:")])
        mine = [look.Watched("me", "buf", place, 4)]
        looked = [observer.look({"me": os.getpid()}, mine) for _ in range(2)][1]
        return [looked.pages["me"]["buf"], looked.vmas["me"], os.fstat(fd).st_blocks]

    rows, (area,), blocks = in_child(act)
    assert not any(row[0] & PM.PRESENT for row in rows)
    assert blocks == 0
    assert area["path"].startswith("m:quiet")
    assert area["offset"] == PAGE


def test_pages_mapped_by_a_pmd_are_known_only_where_sizes_leave_no_choice() -> None:
    def area(first: int, pages: int, **sizes: int) -> dict[str, Any]:
        return {"start": first, "end": first + pages * PAGE, "flags": [], "sizes": sizes}

    block = [PM.PRESENT | (512 + page) for page in range(512)]
    apart = [PM.PRESENT | (512 * 7 + 1 + page) for page in range(512)]
    mine = look.Watched("p", "buf", FIRST_SLOT, 1024)
    by = look.huge_by_smaps
    assert by(mine, block + apart, [area(FIRST_SLOT, 1024, AnonHugePages=2048)]) == (
        [True] * 512 + [False] * 512
    )
    assert by(mine, block + block, [area(FIRST_SLOT, 1024, AnonHugePages=2048)]) == [None] * 1024
    assert by(mine, block + block, [area(FIRST_SLOT, 1024, AnonHugePages=0)]) == [False] * 1024
    halves = [area(FIRST_SLOT, 512), area(FIRST_SLOT + 512 * PAGE, 512, FilePmdMapped=2048)]
    assert by(mine, block + block, halves) == [False] * 512 + [True] * 512


def test_frames_are_read_in_runs() -> None:
    assert frames.runs([5, 3, 4, 9]) == [(3, 3), (9, 1)]
    assert frames.runs([]) == []

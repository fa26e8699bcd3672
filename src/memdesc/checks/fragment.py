"""Fragment guests and let their kernel move pages: the facts before, and what it did.

    for moment in fragment("6.12", folder):
        print(moment.program, len(moment.trials), moment.allocated)

One guest is booted per kernel.  Every program starts from the state after boot, and every
trial from the very moment of which the facts were taken: a snapshot is loaded again before
each.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.map.extents import MemoryMap
from memdesc.sources.source import ProcSource
from memdesc.sources.structs import DumpSource
from memdesc.vm.guest import Guest
from memdesc.vm.qemu import Machine
from memdesc.vm.workload.fragment import PROGRAMS
from memdesc.vm.workload.fragment_ask import TRACE_FILE

__all__ = ["MACHINE", "WAYS", "Moment", "Tell", "Trial", "fragment", "read_trace"]

I64 = NDArray[np.int64]
Tell = Callable[[str], None]

MACHINE = Machine(memory_mb=512, words=("movablecore=256M",))
"""Half of the memory is ZONE_MOVABLE, of which one whole memory block can go offline."""

BLOCKS = (1, 2)
"""Memory blocks of 128 MiB that are tried: one in DMA32, one in Movable. The first and the
last have holes, which the kernel refuses at once."""

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "free blocks": ("transparent", {"effort": False}),
    "transparent": ("transparent", {}),
    "transparent, compacted first": ("transparent", {"compact_first": True}),
    "hugetlb": ("huge_pages", {}),
    "hugetlb, compacted first": ("huge_pages", {"compact_first": True}),
}
"""How huge pages are asked for -> function of `fragment_ask` and its arguments: by faults that
only take free blocks; by faults that compact, and by the hugetlb pool, which reclaims as well,
both of them as the memory is, and after a compaction of all of it."""

_PROC_FILES = (
    "kpageflags", "kpagecount", "zoneinfo", "meminfo", "vmstat", "buddyinfo", "pagetypeinfo",
    "slabinfo", "iomem", "cmdline", "stat", "sys/kernel/osrelease",
    "sys/vm/compact_unevictable_allowed",
)  # fmt: skip
_ASK = "memdesc.vm.workload.fragment_ask"
_SECONDS = 120.0
_VMEMMAP = 0xFFFF_EA00_0000_0000
_PAGE_STRUCT = 64
"""Where the struct pages are without KASLR and with four levels, and the size of each:
what the probes show are addresses of them (`arch/x86/include/asm/pgtable_64_types.h` @6.1)."""


@dataclass(frozen=True)
class Trial:
    """Pages that the kernel was asked to move, once."""

    name: str
    """"compaction", or "offline:2" for memory block 2."""
    tried: I64
    """Frames (of folios, their heads) that it tried to move, rising."""
    moved: I64
    """Those of them that it moved, rising."""
    moved_to: I64
    """Where each of `moved` went."""
    errno: int = 0
    """0: done; -1: still trying when its time was over."""
    state: str = ""
    """Of a memory block afterwards."""
    named: tuple[int, ...] = ()
    """Frames that the kernel's log names: unmovable, or their migration failed."""
    no_room: int = 0
    """Frames of which it says that there was no free one to move them to."""
    vmstat: dict[str, int] = field(default_factory=dict)
    """Counters that changed."""
    pages_checked: int = 0
    pages_wrong: int = 0
    """Pages whose content was compared afterwards, and those that had lost it."""


@dataclass(frozen=True)
class Moment:
    """A fragmented guest: its facts, and what became of it."""

    series: str
    release: str
    package: str
    program: str
    map: MemoryMap
    """From the dump: with owners and references."""
    proc: MemoryMap
    """From the page files of /proc, milliseconds before."""
    held: dict[str, I64]
    """How pages are held -> their frames."""
    refused: dict[str, str]
    trials: tuple[Trial, ...]
    allocated: dict[str, int]
    """Way to ask (`WAYS`) -> huge pages until the kernel had no more."""


def fragment(
    series: str,
    folder: Path,
    *,
    programs: Sequence[str] = tuple(PROGRAMS),
    ways: Sequence[str] = tuple(WAYS),
    blocks: Sequence[int] = BLOCKS,
    keep: bool = False,
    tell: Tell = lambda _: None,
) -> Iterator[Moment]:
    """Boot a kernel and run the programs, one after the other; files go to `folder`.

    With `keep` the dumps stay there. Raises VmError where the rig or the guest fails.
    """
    tell(f"booting {series}")
    with Guest(series, MACHINE) as guest:
        guest.call(f"{_ASK}:watch")
        guest.savevm("booted")
        for number, program in enumerate(programs):
            if number:
                guest.loadvm("booted")
            yield _moment(guest, program, folder / program, ways, blocks, keep=keep, tell=tell)


def read_trace(text: str) -> tuple[set[int], dict[int, int]]:
    """(frames tried, old frame -> new frame) of the events that the probes wrote."""
    tried: set[int] = set()
    moved: dict[int, int] = {}
    for line in text.splitlines():
        found = {name: _frame(address) for name, address in _ARGUMENT.findall(line)}
        if "new" in found:
            moved[found["old"]] = found["new"]
        elif found:
            tried.add(found["old"])
    return tried | moved.keys(), moved


# --- helpers -----------------------------------------------------------------------------

_ARGUMENT = re.compile(r"(old|new)=0x([0-9a-f]+)")
_FAILED = re.compile(r"migrating pfn ([0-9a-f]+) failed ret:(-?[0-9]+)")
_NO_ROOM = -errno.ENOMEM
_DUMPED = re.compile(r"page: .*pfn:0x([0-9a-f]+)")
_UNMOVABLE = "page dumped because: unmovable page"


def _frame(address: str) -> int:
    return (int(address, 16) - _VMEMMAP) // _PAGE_STRUCT


def _moment(
    guest: Guest,
    program: str,
    folder: Path,
    ways: Sequence[str],
    blocks: Sequence[int],
    *,
    keep: bool,
    tell: Tell,
) -> Moment:
    folder.mkdir(parents=True)
    tell(f"{program}: filling")
    note: dict[str, Any] = guest.call(
        "memdesc.vm.workload.fragment:fill", program, seconds=_SECONDS
    )
    _copy_proc(guest, folder / "tree")
    guest.savevm("before")
    guest.dump(folder / "vmcore")
    (folder / "note.json").write_text(json.dumps(note))
    trials = []
    for name in ("compaction", *(f"offline:{block}" for block in blocks)):
        guest.loadvm("before")
        tell(f"{program}: {name}")
        trials.append(_trial(guest, name, note, folder))
    allocated = {}
    for way in ways:
        guest.loadvm("before")
        tell(f"{program}: {way}")
        function, arguments = WAYS[way]
        value = guest.call(f"{_ASK}:{function}", seconds=_SECONDS, **arguments)
        allocated[way] = value["huge_pages"]
        (folder / f"{way}.json").write_text(json.dumps(value))
        (folder / f"{way}.zoneinfo").write_bytes(guest.pull("/proc/zoneinfo"))
    tell(f"{program}: reading the dump")
    source = DumpSource(folder / "vmcore")
    result = source.map(owners=True, references=True)
    if not keep:
        (folder / "vmcore").unlink()
    return Moment(
        guest.kernel.series,
        guest.kernel.release,
        guest.kernel.package,
        program,
        result,
        ProcSource(folder / "tree").map(),
        {name: np.array(frames, np.int64) for name, frames in note["held"].items()},
        note["refused"],
        tuple(trials),
        allocated,
    )


def _copy_proc(guest: Guest, tree: Path) -> None:
    """The page files and their like; the page files last, next to the snapshot."""
    for name in reversed(_PROC_FILES):
        path = tree / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(guest.pull(f"/proc/{name}"))


def _trial(guest: Guest, name: str, note: dict[str, Any], folder: Path) -> Trial:
    what, _, block = name.partition(":")
    if what == "compaction":
        value = guest.call(f"{_ASK}:compact", seconds=_SECONDS)
    else:
        value = guest.call(f"{_ASK}:offline", int(block), seconds=_SECONDS)
    if value["lost"] and value.get("errno", 0) >= 0:
        raise RuntimeError(f"the trace of {name} lost {value['lost']} events")
    text = guest.pull(TRACE_FILE).decode(errors="replace")
    checked = guest.call(
        f"{_ASK}:check_numbers", note["pid"], note["address"], note["pages"], seconds=_SECONDS
    )
    tried, moved = read_trace(text)
    (folder / f"{name}.log").write_text(value.get("log", ""))
    olds = sorted(moved)
    return Trial(
        name,
        np.array(sorted(tried), np.int64),
        np.array(olds, np.int64),
        np.array([moved[old] for old in olds], np.int64),
        value.get("errno", 0),
        value.get("state", ""),
        *_named_frames(value.get("log", "")),
        value["vmstat"],
        checked["seen"],
        checked["wrong"],
    )


def _named_frames(log: str) -> tuple[tuple[int, ...], int]:
    """Frames that the log calls unmovable or whose migration it says failed; and how many
    could not be moved for want of room, which says nothing of the frame."""
    named: dict[int, None] = {}
    last, no_room = None, 0
    for line in log.splitlines():
        if found := _FAILED.search(line):
            if int(found[2]) == _NO_ROOM:
                no_room += 1
            else:
                named[int(found[1], 16)] = None
        elif found := _DUMPED.search(line):
            last = int(found[1], 16)
        elif _UNMOVABLE in line and last is not None:
            named[last] = None
    return tuple(named), no_room

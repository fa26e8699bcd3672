"""Check a kernel: boot it, plant memory, record and dump it, and judge every source.

    run = check(recording)              # a recording that exists
    run = check_kernel("6.12", folder)  # record it first

A recording holds one moment twice: the copied /proc, which the source `live:proc` reads, and
the memory itself, which says what is true.  A second dump goes with the map that the struct
page source made inside the guest (`live:struct`).
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from memdesc.checks.kept import load_map
from memdesc.checks.peers import find_dwarf, peer_rows
from memdesc.checks.planted import PlantedScore, score_planted
from memdesc.checks.runs import Cell, Open, Planted, Proved, Row, Run
from memdesc.checks.score import Score, score
from memdesc.checks.truth import truth_of
from memdesc.checks.walks import label_rows, walk_rows
from memdesc.errors import VmError
from memdesc.map.extents import MemoryMap
from memdesc.sources.source import ProcSource
from memdesc.sources.structs import DumpSource
from memdesc.vm.guest import Guest
from memdesc.vm.record import Recording, record

__all__ = ["LIVE_PROC", "LIVE_STRUCT", "VMCORE", "check", "record_kernel"]

LIVE_PROC, LIVE_STRUCT, VMCORE = "live:proc", "live:struct", "vmcore"

Tell = Callable[[str], None]

_STRUCT_MAP = "structs.npz"
_BEFORE, _AFTER = "vmcore.before", "vmcore.after"
_IN_GUEST = "/run/structs.npz"
_SECONDS = 300.0


def record_kernel(series: str, output: Path, *, tell: Tell) -> Recording:
    """Record a kernel for `check`: what `record` makes, and the struct page source's map.

    Raises what `record` raises.
    """

    def read_structs(guest: Guest, made: Recording) -> None:
        tell("reading struct pages in the guest")
        dumps = {"before": made.folder / _BEFORE, "after": made.folder / _AFTER}
        answer = guest.call(
            "memdesc.checks.inside:read_structs",
            _IN_GUEST,
            seconds=_SECONDS,
            on_hold=lambda name: guest.dump(dumps[name]),
        )
        if "missing" in answer:
            raise VmError(f"{series} does not let its struct pages be read: {answer['missing']}")
        (made.folder / _STRUCT_MAP).write_bytes(guest.pull(_IN_GUEST))

    return record(series, output, also=read_structs, tell=tell)


def check(
    recording: Recording, *, series: str, dwarf: Path | None = None, tell: Tell = lambda _: None
) -> Run:
    """Judge every source of a recording.

    `dwarf` is a folder with the vmlinux files of debug packages, for drgn's helpers. A
    recording without the struct page source's map is judged without that source. Raises what
    reading its files raises.
    """
    tell("reading the dump")
    source = DumpSource(recording.vmcore)
    truth = truth_of(source)
    tell("judging")
    judge = _Judge(recording)
    judge.add(LIVE_PROC, ProcSource(recording.tree).map(), truth.map)
    if (recording.folder / _STRUCT_MAP).exists():
        judge.add_structs(truth.map)
    judge.add(VMCORE, source.map(), truth.map)
    tell("comparing with the counters")
    walks = tuple(walk_rows(source, truth.map, recording.tree))
    tell("comparing with drgn")
    peers = peer_rows(
        recording.vmcore, source, truth.map, dwarf=find_dwarf(recording.release, dwarf)
    )
    kernel = (recording.tree / "kernel.txt").read_text().splitlines()
    return Run(
        series=series,
        release=recording.release,
        package=kernel[0],
        date=time.strftime("%Y-%m-%d", time.gmtime(recording.vmcore.stat().st_mtime)),
        how=_how(source),
        frames=truth.map.pfn_end - truth.map.pfn_start,
        moved=judge.moved,
        rows=tuple(judge.rows),
        planted=tuple(judge.planted),
        walks=walks,
        peers=tuple(peers),
        labels=tuple(label_rows(source, truth.map)),
        proofs=tuple(Proved(proof.kinds, proof.frames, proof.text) for proof in truth.proofs),
        open=tuple(Open(row.types, row.frames, row.why) for row in truth.open_rows()),
    )


# --- helpers -----------------------------------------------------------------------------


class _Judge:
    """Collects the rows of one source after the other."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.rows: list[Row] = []
        self.planted: list[Planted] = []
        self.moved: dict[str, int] = {}
        self._regions = json.loads((recording.tree / "planted.json").read_text())

    def add(self, name: str, judged: MemoryMap, truth: MemoryMap) -> None:
        """Judge a map of the recorded moment."""
        self._add(name, score(judged, truth))
        self._add_planted(name, score_planted(judged, self.recording.tree, self._regions))

    def add_structs(self, recorded: MemoryMap) -> None:
        """Judge the map that was made inside the guest, a little later than `recorded`."""
        folder = self.recording.folder
        before, after = (DumpSource(folder / name) for name in (_BEFORE, _AFTER))
        judged = load_map(folder / _STRUCT_MAP, after.machine)
        truth = truth_of(after).map
        self._add(LIVE_STRUCT, score(judged, truth, before=truth_of(before).map))
        tree = self.recording.tree
        self._add_planted(
            LIVE_STRUCT, score_planted(judged, tree, self._regions, recorded=recorded)
        )

    def _add(self, name: str, scored: Score) -> None:
        self.moved[name] = scored.moved
        self.rows += [Row(name, row.truth, Cell.of(row)) for row in scored.rows]

    def _add_planted(self, name: str, scored: Iterator[PlantedScore]) -> None:
        self.planted += [Planted(name, row.kind, row.truth, Cell.of(row)) for row in scored]


def _how(source: DumpSource) -> str:
    machine = source.machine
    present = (machine.frames_present or 0) * 4096 >> 20
    return (
        f"QEMU, emulated, {machine.nr_cpus} CPU, {present} MiB present, counting instructions; "
        f"Python {platform.python_version()}"
    )

"""Turn a recorded tree (a copy of a machine's /proc and /sys) into a capture that ships.

    memdesc matrix --run --kernel 6.12 --keep recorded
    python tools/bundle.py recorded/6.12/tree debian-6.12 # writes src/memdesc/captures/debian-6.12

With planted.json in the tree, and the dump beside it, what the tests ask about the same moment
is written as well: tests/data/planted-NAME.json, and tests/data/truth-NAME.npz with the true
type of every frame (`memdesc.checks.truth`).

The trees come from our own virtual machines, so names are kept. The moment is the one of
the recording: its files' time, and the counters from before and after the page files
where the tree has both (`meminfo.before` beside `meminfo`).
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import sys
from pathlib import Path

from memdesc.checks.kept import save_map
from memdesc.checks.truth import truth_of
from memdesc.errors import MemdescError
from memdesc.map.machine import Counters, Machine
from memdesc.sources.bundled import FOLDER
from memdesc.sources.capture import Capture
from memdesc.sources.capture_format import CaptureInfo
from memdesc.sources.capture_write import write_capture
from memdesc.sources.pages import PageScan, open_page_files
from memdesc.sources.processes import read_processes
from memdesc.sources.procfs import parse_meminfo, parse_vmstat, read_counters, read_machine
from memdesc.sources.structs import DumpSource

TESTS = Path(__file__).parent.parent / "tests/data"

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


def bundle(tree: Path, name: str, folder: Path = FOLDER) -> CaptureInfo:
    """Write the capture `name` of `tree` below `folder`, replacing an older one."""
    if not _NAME.fullmatch(name):
        raise SystemExit(f"not a name for a capture: {name!r}")
    machine = recorded_machine(tree)
    unseen: dict[str, str] = {}
    flags, (mapcounts, cgroups) = open_page_files(tree / "proc", unseen)
    has_processes = any(tree.glob("proc/[0-9]*/maps"))
    folder.mkdir(parents=True, exist_ok=True)
    info = write_capture(
        folder / name,
        PageScan(machine, flags, mapcounts, cgroups, {**machine.unseen, **unseen}),
        attribution=read_processes(tree) if has_processes else None,
        names=True,
        force=True,
    )
    # It ships inside a package: everybody who may run memdesc may read it.
    (folder / name).chmod(0o755)
    for file in (folder / name).iterdir():
        file.chmod(0o644)
    return info


def keep_for_tests(tree: Path, name: str) -> None:
    """Copy what was planted, and write the truth of the dump beside the tree, where there is."""
    planted, vmcore = tree / "planted.json", tree.parent / "vmcore"
    if planted.exists():
        shutil.copyfile(planted, TESTS / f"planted-{name}.json")
    if vmcore.exists():
        save_map(truth_of(DumpSource(vmcore)).map, TESTS / f"truth-{name}.npz")


def recorded_machine(tree: Path) -> Machine:
    """The machine of the tree, at the time of the recording."""
    version = re.match(r"Linux version (\S+)", _text(tree / "proc/version"))
    has_release = (tree / "proc/sys/kernel/osrelease").exists()
    machine = read_machine(tree, release=version[1] if version and not has_release else None)
    if (tree / "proc/meminfo.before").exists():
        before = Counters(
            parse_meminfo(_text(tree / "proc/meminfo.before")),
            parse_vmstat(_text(tree / "proc/vmstat.before")),
        )
        machine = dataclasses.replace(machine, before=before)
    recorded = (tree / "proc/kpageflags").stat().st_mtime
    return dataclasses.replace(machine, after=read_counters(tree), time_unix_s=round(recorded))


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""


def main() -> int:
    """Convert one tree and say what it became."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tree", type=Path, help="the recorded tree: TREE/proc/kpageflags ...")
    parser.add_argument("name", help="name of the capture, for example debian-6.12")
    parser.add_argument("--output", type=Path, default=FOLDER, help="default: %(default)s")
    given = parser.parse_args()
    try:
        info = bundle(given.tree, given.name, given.output)
        Capture(given.output / given.name).verify()
        if given.output == FOLDER:
            keep_for_tests(given.tree, given.name)
    except MemdescError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 2
    for name, file in info.files.items():
        print(f"{file.size_bytes:>9}  {name}")
    print(f"{info.size_bytes:>9}  {info.pfn_end} frames, {info.extents} extents, {info.kernel}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

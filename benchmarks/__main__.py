"""All benchmarks, side by side in one run.

    python -m benchmarks                    # 268 million frames, 2.1 GB in the page cache
    python -m benchmarks --quick            # 67 million
    python -m benchmarks --only live        # one of them; may be given several times
    python -m benchmarks --json

What is compared runs in turns, round after round, and every ratio is taken within one round: a
busy machine slows both sides, so the median of the ratios says more than any figure in seconds.
"busy" is the share of one processor that other programs used meanwhile. A round in which they
used more than a tenth of one is done again, up to four times as many rounds in all; of these the
quietest count. Where "busy" is still above a few per cent, run it again.

The live files need root. page-types is built from Debian's kernel sources (tools/page_types.py);
where that cannot be, its rows are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from benchmarks import inputs
from benchmarks.floor import CGROUP, COUNT, FLAGS, read_files
from benchmarks.processes import Took, others, run
from tools.page_types import PageTypesUnavailable, build, default_cache

_QUIET = 0.1
ROOT = Path(__file__).parent.parent
MEMDESC: list[str | Path] = [sys.executable, "-m", "memdesc"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times `of` is `to`, round by round."""

    of: str
    to: str
    median: float
    low: float
    high: float
    goal: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was timed."""

    what: str
    wall_median_s: float
    wall_min_s: float
    cpu_median_s: float
    ns_per_frame: float = 0.0
    rss_mib: float = 0.0


@dataclass
class Result:
    """A benchmark's rows and ratios, and what was measured."""

    name: str
    measures: str
    lies_when: str
    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    busy: float = 0.0
    """The most of a processor that others used during one of the rounds that count."""
    rounds: str = ""


@dataclass(frozen=True)
class Setting:
    """What the benchmarks are run with."""

    rounds: int
    frames: int
    quick: bool
    page_types: Path | None
    folder: Path

    def dense(self, frames: int) -> Path:
        """A recorded file of a full machine, made once per run."""
        file = self.folder / f"dense-{frames}.bin"
        if not file.exists():
            inputs.write(file, inputs.dense(frames))
        return file


# --- the benchmarks ----------------------------------------------------------------------


def live(setting: Setting) -> Result:
    """Scan this machine through /proc, against merely reading it and against page-types."""
    from memdesc.sources.source import ProcSource

    result = Result(
        "live",
        "reading /proc/kpageflags (and kpagecount, kpagecgroup) of this machine: with two threads "
        "that do nothing else, with the scan alone (start-up aside), and as whole processes",
        "the machine changes between the two sides of a ratio; the floor has two threads, so on "
        "other than two processors compare with that in mind",
    )
    if os.geteuid() != 0:
        result.notes.append("left out: the page files need root")
        return result
    threads = 2

    def floor(*files: Path) -> Took:
        cpu = time.process_time()
        wall, _ = read_files(files, threads)
        return Took(wall, time.process_time() - cpu)

    def scan(method: str) -> Took:
        one = ProcSource(threads=threads).scan()
        wall, cpu = time.perf_counter(), time.process_time()
        getattr(one, method)()
        return Took(time.perf_counter() - wall, time.process_time() - cpu)

    table = ["ledger", "--by", "flags"]
    sides: dict[str, Callable[[], Took]] = {
        "read flags": partial(floor, FLAGS),
        "scan flags": partial(scan, "totals"),
        "read 3 files": partial(floor, FLAGS, COUNT, CGROUP),
        "scan 3 files": partial(scan, "map"),
        "memdesc ledger --by flags": partial(run, [*MEMDESC, *table]),
        "memdesc ledger --by flags --json": partial(run, [*MEMDESC, *table, "--json"]),
        "memdesc (overview)": partial(run, MEMDESC),
    }
    if setting.page_types:
        sides["page-types"] = partial(run, [setting.page_types])
        sides["page-types -l -M -C -N"] = partial(run, [setting.page_types, "-l", "-M", "-C", "-N"])
    took = take_turns(result, sides, setting.rounds, frames=read_files([FLAGS])[1])
    compare(result, took, "scan flags", "read flags", "at most 1.15")
    compare(result, took, "scan 3 files", "read 3 files", "at most 1.15")
    for name in ("memdesc ledger --by flags", "memdesc ledger --by flags --json", "scan flags"):
        goal = "at least 1.7" if name.startswith("memdesc") else ""
        compare(result, took, "page-types", name, goal)
    compare(result, took, "page-types -l -M -C -N", "memdesc (overview)")
    return result


def recorded(setting: Setting) -> Result:
    """Count a recorded file by type, against page-types -F on the same file."""
    result = Result(
        "recorded",
        f"whole processes on one recorded file of {setting.frames / 1e6:.0f} million frames of a "
        "full machine (benchmarks/inputs.py dense), in the page cache",
        "the file does not fit in the page cache; other programs use the processors: page-types "
        "needs one, memdesc two",
    )
    file = setting.dense(setting.frames)
    ledger = [*MEMDESC, "ledger", "--source", file]
    sides: dict[str, Callable[[], Took]] = {
        "read": lambda: Took(read_files([file])[0], 0.0),
        "memdesc ledger --kernel 6.18.1": partial(run, [*ledger, "--kernel", "6.18.1"]),
        "memdesc ledger": partial(run, ledger),
    }
    if setting.page_types:
        sides["page-types -F"] = partial(run, [setting.page_types, "-F", file])
    took = take_turns(result, sides, setting.rounds, frames=setting.frames)
    compare(result, took, "page-types -F", "memdesc ledger --kernel 6.18.1", "at least 3")
    compare(result, took, "page-types -F", "memdesc ledger")
    result.notes.append(
        "memory: the goal is at most 100 MB for memdesc ledger, at any size; 10 MiB is the least "
        "that can be told, the size of the process that starts the others"
    )
    return result


def startup(setting: Setting) -> Result:
    """Time commands that have next to nothing to do."""
    result = Result(
        "startup",
        "what a command costs before it reads anything: 1000 frames, output thrown away",
        "Python's byte code is not cached (PYTHONDONTWRITEBYTECODE): memdesc is then compiled "
        "every time",
    )
    file = setting.dense(1000)
    python: dict[str, list[str | Path]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import numpy'": [sys.executable, "-c", "import numpy"],
        "memdesc --version": [*MEMDESC, "--version"],
        "memdesc --help": [*MEMDESC, "--help"],
        "memdesc ledger": [*MEMDESC, "ledger", "--source", file],
        "memdesc ledger --json": [*MEMDESC, "ledger", "--source", file, "--json"],
    }
    if setting.page_types:
        python["page-types -F"] = [setting.page_types, "-F", file]
    sides = {name: partial(run, command) for name, command in python.items()}
    take_turns(result, sides, 2 * setting.rounds + 1)
    result.notes.append("the goal is below 0.1 s for --version and --help")
    return result


def what(setting: Setting) -> Result:
    """Ask a recorded machine about one frame."""
    result = Result(
        "what",
        "memdesc what 0x1234 as a whole process: on a capture that ships with memdesc, and on a "
        "recorded file of which it reads only the neighbourhood",
        "the file system's cache is cold",
    )
    command = [*MEMDESC, "what", "0x1234", "--source"]
    sides = {
        "bundled:debian-6.12": partial(run, [*command, "bundled:debian-6.12"]),
        "a raw file": partial(run, [*command, setting.dense(setting.frames)]),
    }
    take_turns(result, sides, setting.rounds)
    return result


def script(name: str, measures: str, options: Sequence[str], setting: Setting) -> Result:
    """Run another benchmark of this folder and hand its lines on."""
    result = Result(name, measures, f"see benchmarks/{name}.py")
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    result.notes += (
        done.stdout.splitlines() if not done.returncode else done.stderr.splitlines()[-1:]
    )
    return result


def benchmarks(quick: bool) -> Mapping[str, Callable[[Setting], Result]]:
    """Every benchmark by name, in the order in which they run."""
    frames = ["--frames", "6553600"] if quick else []
    return {
        "live": live,
        "structs": partial(
            script,
            "structs",
            "reading and typing struct pages through BPF, against /proc/kpageflags",
            ["--rounds", "3" if quick else "7"],
        ),
        "recorded": recorded,
        "startup": startup,
        "what": what,
        "capture": partial(
            script, "capture", "writing, opening and querying a capture, and its size", frames
        ),
        "attribution": partial(
            script,
            "attribution",
            "reading who maps what, against the kernel's own cost",
            ["--scale", "0.25"] if quick else ["--peer"],
        ),
        "model_descriptors": partial(
            script,
            "model_descriptors",
            "allocating and freeing frames with their descriptors on the modelled machine",
            ["--rounds", "3" if quick else "7"],
        ),
    }


# --- measuring ---------------------------------------------------------------------------


def take_turns(
    result: Result, sides: Mapping[str, Callable[[], Took]], rounds: int, *, frames: int = 0
) -> dict[str, list[Took]]:
    """Run every side once to warm up, then all of them in turns; adds a row for each."""
    for side in sides.values():
        side()
    done: list[tuple[float, dict[str, Took]]] = []
    while len(done) < 4 * rounds and sum(busy <= _QUIET for busy, _ in done) < rounds:
        shares: list[float] = []
        one: dict[str, Took] = {}
        # Every other round the other way round, so that no side always follows the same one.
        for name in list(sides)[:: 1 if len(done) % 2 == 0 else -1]:
            with others(shares):
                one[name] = sides[name]()
        done.append((max(shares), one))
    kept = sorted(done, key=lambda entry: entry[0])[:rounds]
    took = {name: [one[name] for _, one in kept] for name in sides}
    result.busy = round(kept[-1][0], 2)
    result.rounds = f"{len(kept)} of {len(done)}"
    for name, runs in took.items():
        wall = statistics.median(one.wall_s for one in runs)
        result.rows.append(
            Row(
                name,
                round(wall, 4),
                round(min(one.wall_s for one in runs), 4),
                round(statistics.median(one.cpu_s for one in runs), 4),
                round(wall / frames * 1e9, 2) if frames else 0.0,
                round(max(one.rss_mib for one in runs), 1),
            )
        )
    return took


def compare(
    result: Result, took: Mapping[str, Sequence[Took]], of: str, to: str, goal: str = ""
) -> None:
    """Add the ratio of two sides, round by round, if both are there."""
    if of not in took or to not in took:
        return
    ratios = [one.wall_s / other.wall_s for one, other in zip(took[of], took[to], strict=True)]
    low, high = round(min(ratios), 2), round(max(ratios), 2)
    result.ratios.append(Ratio(of, to, round(statistics.median(ratios), 2), low, high, goal))


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "processor": model,
        "processors": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load": [round(load, 1) for load in os.getloadavg()],
    }


# --- printing ----------------------------------------------------------------------------


def show(result: Result) -> Iterator[str]:
    """The lines of one benchmark's table."""
    yield f"\n{result.name}: {result.measures}"
    yield f"  lies when: {result.lies_when}"
    if result.rows:
        yield f"  rounds: {result.rounds}; busy: at most {result.busy:.0%} of a processor"
        yield f"  {'':<36}{'wall':>9}{'min':>9}{'cpu':>9}{'ns/frame':>10}{'MiB':>7}"
    for row in result.rows:
        frame = f"{row.ns_per_frame:.2f}" if row.ns_per_frame else ""
        rss = f"{row.rss_mib:.0f}" if row.rss_mib else ""
        yield (
            f"  {row.what:<36}{row.wall_median_s:>8.3f}s{row.wall_min_s:>8.3f}s"
            f"{row.cpu_median_s:>8.3f}s{frame:>10}{rss:>7}"
        )
    for ratio in result.ratios:
        goal = f"  goal: {ratio.goal}" if ratio.goal else ""
        yield (
            f"  {ratio.of} / {ratio.to}: {ratio.median:.2f} "
            f"({ratio.low:.2f} to {ratio.high:.2f}){goal}"
        )
    for note in result.notes:
        yield f"  {note}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    names = list(benchmarks(quick=True))
    parser.add_argument("--quick", action="store_true", help="smaller inputs, fewer rounds")
    parser.add_argument("--only", action="append", choices=names, help="may be given several times")
    parser.add_argument("--rounds", type=int, help="default: 7, with --quick 5")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--folder", type=Path, help="for the inputs (default: temporary)")
    given = parser.parse_args()
    if importlib.util.find_spec("memdesc") is None:
        parser.error("memdesc is not installed here: pip install -e '.[all]'")
    # Commands are timed as they run where they are installed: with their byte code cached.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        page_types = build(default_cache().resolve())
    except PageTypesUnavailable as error:
        print(f"without page-types: {error}", file=sys.stderr)
        page_types = None
    folder = given.folder or Path(tempfile.mkdtemp(prefix="memdesc-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        rounds=given.rounds or (5 if given.quick else 7),
        frames=1 << 26 if given.quick else 1 << 28,
        quick=given.quick,
        page_types=page_types,
        folder=folder,
    )
    results: list[Result] = []
    try:
        for name, benchmark in benchmarks(given.quick).items():
            if given.only and name not in given.only:
                continue
            results.append(benchmark(setting))
            if not given.json:
                print("\n".join(show(results[-1])), flush=True)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)
    if given.json:
        value = {"machine": machine(), "results": [asdict(result) for result in results]}
        print(json.dumps(value, indent=1))
    else:
        print("\n" + ", ".join(f"{key} {value}" for key, value in machine().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

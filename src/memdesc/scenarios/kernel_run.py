"""A scenario on a real kernel: in a guest, or on this machine.

The whole scenario runs in one go: `start` sends all steps to the program in `actor`, which does
them and looks after each; `do` and `see` then tell what came of one step after the other.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import lzma
import mmap
import os
import py_compile
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from memdesc.errors import VmError
from memdesc.kernels.kpageflags import flag_names
from memdesc.kernels.pagemap import PM
from memdesc.kernels.release import KernelRelease
from memdesc.scenarios.expectation import Check, Subject
from memdesc.scenarios.images import IMAGES, MODULES, packed
from memdesc.scenarios.observation import VOLATILE, RawPage, RawVma, Seen
from memdesc.scenarios.outcome import Outcome
from memdesc.scenarios.places import FIRST_SLOT
from memdesc.scenarios.scenario import Plan
from memdesc.scenarios.skipped import SkippedError
from memdesc.scenarios.step import Step
from memdesc.vm.guest import Guest, GuestEndedError, GuestTimeoutError
from memdesc.vm.initramfs import module_files
from memdesc.vm.kernels import fetch

__all__ = [
    "ACTOR_FOLDER",
    "BrokenRunError",
    "HereRunner",
    "KernelRunner",
    "Played",
    "SkippedError",
    "VmRunner",
    "actor_files",
    "guest_program",
    "module_contents",
    "played_of",
    "request_of",
    "tracks_soft_dirty",
]

ACTOR_FOLDER: Final = Path(__file__).with_name("actor")

_ARENA: Final = (FIRST_SLOT, FIRST_SLOT + (1 << 44))
_GUEST_FOLDER = "/run/scenario"
_STATE = "scenarios"
_SECONDS = 120.0

_VOLATILE_NAMES: Final = frozenset(flag_names(int(VOLATILE)))

_LAST_LINE = re.compile(r"scenario: line (\d+)")

_BY_DEVICE_MAPPER = ("disk", "dma", "dma_from")


class BrokenRunError(VmError):
    """The program that does the steps failed at one; `line` says which."""

    def __init__(self, message: str, *, line: int | None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.line = line


class KernelRunner:
    """Plays a scenario on a machine when it starts, and tells of each step when it is asked.

    A `Runner` (`scenarios.run`).
    """

    def __init__(self, release: KernelRelease) -> None:
        self._release = release
        self._played = Played((), None)
        self._order: dict[int, int] = {}

    @property
    def release(self) -> KernelRelease:
        """Whose rules hold there."""
        return self._release

    def start(self, plan: Plan, release: KernelRelease) -> None:
        """Do all steps. Raises SkippedError, VmError."""
        self._order = {step.line: at for at, step in enumerate(plan.steps)}
        self._played = played_of(self.play(request_of(plan, self.modules)))

    def do(self, step: Step) -> Outcome:
        """How a step ended. Raises BrokenRunError where the run came no further."""
        return self._found(step)[0]

    def see(self, step: Step) -> Seen:
        """Everything seen after a step."""
        return self._found(step)[1]

    def rules(self) -> list[str]:
        """A kernel does not say why."""
        return []

    def end(self) -> None:
        """Nothing of a scenario is left after `start`."""

    def play(self, request: dict[str, Any]) -> dict[str, Any]:
        """Let the actor do what `request_of` made; its answer."""
        raise NotImplementedError

    def modules(self, names: Sequence[str]) -> list[bytes]:
        """Kernel modules and what they depend on, for a machine that may load them."""
        return []

    def _found(self, step: Step) -> tuple[Outcome, Seen]:
        at = self._order[step.line]
        if at >= len(self._played.steps):
            assert self._played.error is not None
            raise self._played.error
        return self._played.steps[at]


class VmRunner(KernelRunner):
    """Real kernels in a guest, which is booted once and goes back to its state for each scenario.

    A context manager. `guest` may be one that runs already and whose state may be thrown away.
    """

    def __init__(self, series: str, *, guest: Guest | None = None) -> None:
        super().__init__(KernelRelease.parse(series))
        self.series = series
        self._own = guest is None
        self._guest = guest or Guest(series)
        self._ready = False

    def __enter__(self) -> VmRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the guest, if it was booted here."""
        if self._own and self._ready:
            self._guest.end()
        self._ready = False

    def modules(self, names: Sequence[str]) -> list[bytes]:
        return module_contents(self.series, names)

    def play(self, request: dict[str, Any]) -> dict[str, Any]:
        """Go back to the state of the guest's beginning, and play."""
        guest = self._guest
        if not self._ready:
            if self._own:
                guest.__enter__()
            for path, content in actor_files().items():
                guest.push(content, path)
            guest.savevm(_STATE)
            self._ready = True
        else:
            guest.loadvm(_STATE)
        guest.push(json.dumps(request).encode(), f"{_GUEST_FOLDER}/request.json")
        try:
            value: dict[str, Any] = guest.run(guest_program(), seconds=_SECONDS).value
        except (GuestEndedError, GuestTimeoutError) as error:
            said = _LAST_LINE.findall(guest.console)
            line = int(said[-1]) if said else None
            raise BrokenRunError(f"line {line}: {error}", line=line, hint=error.hint) from error
        return value


class HereRunner(KernelRunner):
    """This machine's own kernel, as root; nothing is changed but the scenario's own processes.

    Raises SkippedError where this user may not see what is compared, or a step changes the
    system.
    """

    def __init__(self) -> None:
        super().__init__(KernelRelease.parse(os.uname().release))

    def start(self, plan: Plan, release: KernelRelease) -> None:
        if plan.soft_dirty and not tracks_soft_dirty():
            raise SkippedError(
                "this kernel does not track soft-dirty",
                line=next((check.line for check in plan.checks if _asks_soft_dirty(check)), None),
                hint="it is built without CONFIG_MEM_SOFT_DIRTY; the kernels of guests have it",
            )
        super().start(plan, release)

    def play(self, request: dict[str, Any]) -> dict[str, Any]:
        if os.geteuid() != 0:
            raise SkippedError(
                "scenarios on this machine need root, to read frame numbers and flags",
                line=None,
                hint="run it with sudo, or in a guest: --on vm:6.12",
            )
        command = [sys.executable, "-s", "-m", ACTOR_FOLDER.name]
        with tempfile.TemporaryDirectory(prefix="memdesc-scenario-") as folder:
            # Beside the processes' own memory nothing of this machine is written.
            done = subprocess.run(  # noqa: S603 - our own program
                command,
                input=json.dumps(request),
                capture_output=True,
                text=True,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ACTOR_FOLDER.parent)},
                timeout=_SECONDS,
                check=False,
            )
        if done.returncode or not done.stdout:
            raise BrokenRunError(
                f"the program that does the steps ended with {done.returncode}",
                line=None,
                hint=done.stderr.strip()[-2000:],
            )
        value: dict[str, Any] = json.loads(done.stdout)
        return value


def request_of(
    plan: Plan, modules: Callable[[Sequence[str]], list[bytes]] = lambda _: []
) -> dict[str, Any]:
    """What the actor is sent for a plan; `modules` gives kernel modules by their names."""
    steps = [step.as_json() for step in plan.steps]
    request: dict[str, Any] = {
        "steps": steps,
        "counters": list(plan.counters),
        "arena": list(_ARENA),
        "accessed": plan.referenced or any(_asks_whether_used(check) for check in plan.checks),
        "contents": any(check.subject is Subject.CONTENT for check in plan.checks),
        "frame_contents": any(
            check.subject is Subject.CONTENT and check.is_of_frames for check in plan.checks
        ),
    }
    text = json.dumps(steps)
    used = [where for where in IMAGES if f'"where": "{where}"' in text]
    request |= {where: IMAGES[where]() for where in used}
    wanted = [module for where in used for module in MODULES[where]]
    request["disk"] = any(step.verb == "disk" for step in plan.steps)
    if any(step.verb in _BY_DEVICE_MAPPER or step.args.get("mapped") for step in plan.steps):
        wanted.append("dm_mod")
    if wanted:
        request["modules"] = [packed(module) for module in modules(wanted)]
    return request


@dataclass(frozen=True)
class Played:
    """What an actor answered."""

    steps: tuple[tuple[Outcome, Seen], ...]
    """As far as it came."""
    error: BrokenRunError | None
    """Why it came no further."""


def played_of(answer: Mapping[str, Any]) -> Played:
    """Read an actor's answer. Raises SkippedError where it refused a step."""
    line = answer.get("line")
    if "refused" in answer:
        raise SkippedError(str(answer["refused"]), line=line)
    error = None
    if "broken" in answer:
        text = str(answer["broken"]).strip()
        hint = text if "\n" in text else ""
        error = BrokenRunError(f"line {line}: {text.splitlines()[-1]}", line=line, hint=hint)
    found = []
    pages: dict[tuple[str, str], list[RawPage]] = {}
    areas: dict[str, list[RawVma]] = {}
    for step in answer["steps"]:
        for process, names in step["pages"].items():
            for name, rows in names.items():
                if rows is not None:
                    pages[process, name] = [RawPage(*row) for row in rows]
        for process, parts in step["vmas"].items():
            if parts["vmas"] is not None:
                areas[process] = [_area_of(vma) for vma in parts["vmas"]]
        seen = Seen(
            {p: {n: pages[p, n] for n in names} for p, names in step["pages"].items()},
            {process: areas[process] for process in step["vmas"]},
            step["counters"],
            {name: [RawPage(*row) for row in rows] for name, rows in step["frames"].items()},
        )
        found.append((Outcome.of_json(step["outcome"]), seen))
    return Played(tuple(found), error)


@functools.cache
def actor_files() -> dict[str, bytes]:
    """The actor's modules by the path that they have in a guest.

    They come compiled, because a guest has the same Python and takes half a second for it.
    """
    files: dict[str, bytes] = {}
    for source in sorted(ACTOR_FOLDER.glob("*.py")):
        path = f"{_GUEST_FOLDER}/{ACTOR_FOLDER.name}/{source.name}"
        with tempfile.TemporaryDirectory(prefix="memdesc-actor-") as folder:
            compiled = py_compile.compile(
                str(source),
                cfile=str(Path(folder) / "module.pyc"),
                dfile=path,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
            assert compiled is not None
            files[importlib.util.cache_from_source(path)] = Path(compiled).read_bytes()
        files[path] = source.read_bytes()
    return files


def guest_program() -> str:
    """What a guest runs to play the request that was pushed to it."""
    return (
        "import json, sys\n"
        f"sys.path.insert(0, {_GUEST_FOLDER!r})\n"
        f"from {ACTOR_FOLDER.name}.controller import play\n"
        f"with open({_GUEST_FOLDER!r} + '/request.json') as file:\n"
        "    request = json.load(file)\n"
        "result = play(request)\n"
    )


def tracks_soft_dirty() -> bool:
    """Whether this machine's kernel shows in pagemap's bit 55 that a page was written.

    Without CONFIG_MEM_SOFT_DIRTY it never does (`fs/proc/task_mmu.c:pte_to_pagemap_entry`); with
    it, every page of a new area is soft-dirty.
    """
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area[0] = 1
        word = ctypes.c_char.from_buffer(area)
        address = ctypes.addressof(word)
        with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
            entry = os.pread(file.fileno(), 8, address // mmap.PAGESIZE * 8)
        del word
    return bool(int.from_bytes(entry, "little") & PM.SOFT_DIRTY)


def _asks_soft_dirty(check: Check) -> bool:
    named = any(flag[1:] == "sd" for area in check.areas for flag in area.flags)
    return named or check.subject is Subject.SOFT_DIRTY


def _asks_whether_used(check: Check) -> bool:
    """Whether a row names a flag that an access may set."""
    return check.subject is Subject.FLAGS and any(
        cell.lstrip("+-") in _VOLATILE_NAMES for cell in check.cells
    )


def _area_of(vma: Mapping[str, Any]) -> RawVma:
    return RawVma(
        vma["start"],
        vma["end"],
        vma["perms"],
        vma["offset"],
        vma["path"],
        tuple(vma["flags"]),
        vma["sizes"],
    )


def module_contents(series: str, names: Sequence[str]) -> list[bytes]:
    """Modules of a series' kernel and of what they depend on, in the order of loading."""
    files = module_files(fetch(series).modules, names)
    return [lzma.decompress(f.read_bytes()) if f.suffix == ".xz" else f.read_bytes() for f in files]

"""Ask real kernels what a failure does: every kind of frame, each from the same moment.

A guest is booted, memory of every kind is planted in it, and one moment is kept: as a
snapshot, as a copy of /proc, and as a dump.  From the two descriptions a sample is drawn
(`memdesc.checks.sweep_sample`); each frame of it is made to fail, hard and soft, and after
each failure the guest goes back to the snapshot, so that failures never see each other.

    python -m memdesc.checks.sweep 6.12 --output sweep-6.12.csv.gz

A failure takes about a second; nothing is poisoned but memory of the guest.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memdesc.answers.failure import knowledge_of
from memdesc.checks.sweep_guest import TREE
from memdesc.checks.sweep_rows import HOWS, Frame, How, Sweep, Trial, write_sweep
from memdesc.checks.sweep_sample import draw, facts_of, strata_of
from memdesc.errors import MemdescError, VmError
from memdesc.sources.source import ProcSource
from memdesc.sources.structs import DumpSource
from memdesc.vm.guest import Guest, GuestEndedError, GuestProgramError, GuestTimeoutError
from memdesc.vm.kernels import Kernel, fetch
from memdesc.vm.qemu import Machine
from memdesc.vm.record import unpack_tree

__all__ = ["MACHINE", "run_sweep"]

MACHINE = Machine(memory_mb=640, balloon_mb=8, preload=())
"""What sweeps are made with: as recordings, but by the clock, as snapshots want it."""

FRAMES = 330
_TAG = "planted"
_PLANT_SECONDS = 300.0
_FAIL_SECONDS = 5.0
_SESSIONS = 4
"""Guests that are booted at most until the sample is complete."""
_SAVE_EVERY = 20
"""Frames from one `save` to the next."""
_IN_VAIN = 4
"""Failures in a row without any trace, until a session is given up."""
_LOADS = 3
"""How often a snapshot is loaded until the guest wakes up."""
_VERDICT = re.compile(r"Memory failure: (0x[0-9a-f]+): recovery action for (.*): (\w+)")
_PLACE = re.compile(r"\b(Memory failure|[Ss]oft[ _]offline): (0x[0-9a-f]+: )?")
_LOG_CHARACTERS = 120

Tell = Callable[[str], None]
"""Called with what is done now, in a few words."""


def run_sweep(
    kernel: Kernel | str,
    *,
    nr_frames: int = FRAMES,
    hows: Sequence[How] = HOWS,
    seed: int = 1,
    at_most: int | None = None,
    seconds: float | None = None,
    machine: Machine = MACHINE,
    tell: Tell = lambda _: None,
    save: Callable[[Sweep], None] = lambda _: None,
) -> Sweep:
    """Boot, plant, sample at least `nr_frames` frames and make each fail in every way of `hows`.

    With `at_most`, only that many frames of the sample fail, a random choice; with `seconds`,
    no frame begins to later than that after the first. The frames that were left out are
    missing from the result, and the others' weights are theirs as drawn.
    A guest that no longer comes back from its snapshot is replaced by a fresh one, of which
    another sample makes up for what is missing. `save` is called now and then with what is
    there so far. Raises VmError where the rig lacks something or the guest cannot be planted;
    whatever a failure does to the guest is a row of the result.
    """
    tell("fetching the kernel")
    found = fetch(kernel) if isinstance(kernel, str) else kernel
    wanted = nr_frames if at_most is None else at_most
    frames: list[Frame] = []
    for session in range(_SESSIONS):
        limit = None if at_most is None and not session else wanted - len(frames)
        with _planted(found, nr_frames, seed + session, machine, tell) as (guest, sweep):
            notes = {**sweep.notes, "seed": seed, "sessions": session + 1}
            for frame in _failed(guest, sweep.frames[:limit], hows, seconds, tell):
                frames.append(frame)
                if len(frames) % _SAVE_EVERY == 0:
                    save(dataclasses.replace(sweep, frames=tuple(frames), notes=notes))
        if len(frames) >= wanted or seconds is not None:
            break
    else:
        tell(f"{_SESSIONS} guests ended early: {len(frames)} frames of {wanted}")
    return dataclasses.replace(sweep, frames=tuple(frames), notes=notes)


def main(words: Sequence[str] | None = None) -> int:
    """The command; see --help."""
    options = _parser().parse_args(words)
    if options.output.exists() and not options.force:
        print(f"error: {options.output} exists; --force replaces it", file=sys.stderr)
        return 2
    try:
        sweep = run_sweep(
            options.kernel,
            nr_frames=options.frames,
            hows=HOWS if options.how == "both" else (options.how,),
            seed=options.seed,
            seconds=options.seconds,
            tell=_teller(),
            save=lambda so_far: write_sweep(so_far, options.output),
        )
        write_sweep(sweep, options.output)
    except MemdescError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 2
    print(options.output)
    return 0


# --- the moment --------------------------------------------------------------------------

_GUEST = "memdesc.checks.sweep_guest"


@contextmanager
def _planted(
    kernel: Kernel, nr_frames: int, seed: int, machine: Machine, tell: Tell
) -> Iterator[tuple[Guest, Sweep]]:
    """A planted guest with its moment kept, and the sample of it."""
    with tempfile.TemporaryDirectory(prefix="memdesc-sweep-") as name:
        folder = Path(name)
        tell("booting")
        with Guest(kernel, machine) as guest:
            tell("planting")
            pids = guest.call(f"{_GUEST}:serve", seconds=_PLANT_SECONDS)
            tell("keeping the moment")
            guest.savevm(_TAG, dump=folder / "vmcore")
            unpack_tree(guest.pull(TREE), folder / "tree")
            tell("classifying")
            yield guest, _described(kernel, folder, nr_frames, seed, len(pids))


def _described(kernel: Kernel, folder: Path, nr_frames: int, seed: int, pids: int) -> Sweep:
    """What both sources say of the kept moment, and the sample, without trials."""
    source = DumpSource(folder / "vmcore")
    structs = source.map(owners=True)
    proc = ProcSource(folder / "tree").map()
    strata = strata_of(proc, structs, folder / "tree")
    drawn = draw(strata, nr_frames, seed)
    known = knowledge_of(proc.machine)
    return Sweep(
        series=kernel.series,
        release=kernel.release,
        package=kernel.package,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        frames_total=sum(int(stratum.frames.size) for stratum in strata),
        sysctls=dict(known.sysctls),
        hugetlb_reserved=known.hugetlb_reserved,
        frames=tuple(facts_of(drawn, proc, structs, source)),
        notes={"strata": len(strata), "seed": seed, "processes": pids},
    )


# --- failures ----------------------------------------------------------------------------


def _failed(
    guest: Guest, frames: Sequence[Frame], hows: Sequence[How], seconds: float | None, tell: Tell
) -> Iterator[Frame]:
    """The frames with their trials, as far as time allows.

    Where several failures in a row leave nothing to see, it is the emulated machine that no
    longer comes back from its snapshot; they are left out, and the session ends.
    """
    started = time.monotonic()
    total = len(frames) * len(hows)
    done = in_vain = 0
    held_back: list[Frame] = []
    for frame in frames:
        if seconds is not None and time.monotonic() - started > seconds:
            break
        trials: dict[How, Trial] = {}
        for how in hows:
            try:
                trials[how] = _trial(guest, frame.pfn, how)
            except VmError as error:
                tell(f"{error}: keeping what is there")
                return
            done += 1
            in_vain = 0 if trials[how].errno or trials[how].verdict else in_vain + 1
            left = (time.monotonic() - started) / done * (total - done)
            tell(f"failing {done}/{total}, {left:.0f} s left")
        held_back.append(dataclasses.replace(frame, trials=trials))
        if in_vain >= _IN_VAIN:
            tell("the guest no longer answers: " + trials[hows[-1]].log)
            return
        if not in_vain:
            yield from held_back
            held_back.clear()
    yield from held_back


def _trial(guest: Guest, pfn: int, how: How) -> Trial:
    """One failure from the kept moment; whatever comes of it is an answer."""
    _go_back(guest)
    said = len(guest.console)
    end, why = "reset", ""
    try:
        seen: dict[str, Any] = guest.call(f"{_GUEST}:fail", how, pfn, seconds=_FAIL_SECONDS)
    except GuestProgramError as error:
        end, why = "own", f"{error}: {error.hint}"
    except GuestTimeoutError:
        end = "hung"
    except GuestEndedError:
        pass
    else:
        return _told(seen, pfn)
    # Nobody lived to read the log, but the console has what matters of it.
    lines = [line.partition("] ")[2] or line for line in guest.console[said:].splitlines()]
    message, verdict, others = _verdict(lines, pfn)
    return Trial("", message, verdict, None, None, end, others or why[:_LOG_CHARACTERS])


def _go_back(guest: Guest) -> None:
    """Load the snapshot, once more where the guest does not wake up. Raises VmError."""
    for _ in range(_LOADS - 1):
        try:
            guest.loadvm(_TAG)
        except GuestTimeoutError:
            continue
        return
    guest.loadvm(_TAG)


def _told(seen: dict[str, Any], pfn: int) -> Trial:
    message, verdict, others = _verdict(seen["log"], pfn)
    end = f"killed {len(seen['dead'])}" if seen["dead"] else ""
    if not seen["healthy"]:
        end = "unwell"
    before, after = (words[0] if words else None for words in (seen["before"], seen["after"]))
    return Trial(seen["errno"], message, verdict, before, after, end, others)


def _verdict(lines: Sequence[str], pfn: int) -> tuple[str, str, str]:
    """(what the log calls the frame, the verdict, the other lines joined)."""
    message = verdict = ""
    others = []
    for line in lines:
        match = _VERDICT.search(line)
        if match and int(match[1], 16) == pfn:
            message, verdict = match[2], match[3]
        elif line.strip():
            # Not the address, nor the raw flags behind it: the frame's row has them.
            text = _PLACE.sub("", line).partition(" (")[0].strip()
            others.append(text)
    return message, verdict, " | ".join(dict.fromkeys(others))[:_LOG_CHARACTERS]


# --- the command -------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m memdesc.checks.sweep",
        description="Make a sample of a guest's frames fail, hard and soft, and keep what its "
        "kernel answered. About a second per failure.",
    )
    parser.add_argument("kernel", metavar="KERNEL", help="series, as `memdesc vm list` shows")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="*.csv.gz")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    parser.add_argument(
        "--frames", type=int, default=FRAMES, metavar="N", help=f"at least (default: {FRAMES})"
    )
    parser.add_argument("--how", choices=("hard", "soft", "both"), default="both")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the sample")
    parser.add_argument(
        "--seconds", type=float, metavar="N", help="begin no failure later than this"
    )
    return parser


def _teller() -> Tell:
    """Say what is done: on one line of a terminal, else a line now and then."""
    started = time.monotonic()
    last = -60.0

    def tell(what: str) -> None:
        nonlocal last
        now = time.monotonic() - started
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{what} ... ({now:.0f} s)")
        elif now - last > 20 or not what.startswith("failing"):
            sys.stderr.write(f"{what} ... ({now:.0f} s)\n")
            last = now
        sys.stderr.flush()

    return tell


if __name__ == "__main__":
    sys.exit(main())

"""`memdesc vm`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from memdesc.cli.common import console, envelope, notice, print_json, size, steps, table
from memdesc.errors import QuestionError

DESCRIPTION = (
    "Boot a real Debian kernel in a virtual machine: run a program inside, dump its memory, or\n"
    "record memory of every kind together with what the kernel says about it. Nothing is\n"
    "installed; a guest has no network, sees no file system of this machine, and always ends."
)
EXAMPLES = """
  memdesc vm list                                    kernels, and what this machine lacks
  memdesc vm fetch 6.12                              today's release from Debian's archive
  memdesc vm run 6.12 -- program.py ARGUMENTS        with memdesc importable
  memdesc vm dump 7.2 --output 7.2.vmcore            planted memory of every kind, dumped
  memdesc vm record 6.1 --output recorded-6.1        dump, capture, /proc, what was planted
  memdesc vm trace 6.12 --output traced              the page allocator's events, and its
                                                     lists before and after
"""

_FORMATS = ("elf", "kdump-zlib")


def arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    listing = commands.add_parser("list", help="kernels, and what this machine lacks")
    listing.add_argument("--json", action="store_true", help="machine-readable output on stdout")

    fetching = commands.add_parser("fetch", help="download kernels, or newer releases of them")
    fetching.add_argument("kernels", nargs="*", metavar="KERNEL", help="6.1, 6.12 ... (all)")

    running = commands.add_parser("run", help="run a Python program inside")
    _kernel_argument(running)
    running.add_argument("--icount", action="store_true", help="count instructions: repeatable")
    _memory_argument(running, 512)
    running.add_argument(
        "--seconds", type=float, default=60.0, metavar="N", help="time limit (default: 60)"
    )
    running.add_argument("program", metavar="-- PROGRAM.py", type=Path)
    running.add_argument("words", nargs=argparse.REMAINDER, metavar="ARGUMENTS")

    dumping = commands.add_parser("dump", help="plant memory of every kind and dump the guest")
    _kernel_argument(dumping)
    dumping.add_argument("--output", metavar="FILE", type=Path, required=True)
    dumping.add_argument("--format", choices=_FORMATS, default="elf", help="default: elf")
    dumping.add_argument("--force", action="store_true", help="replace a file that exists")
    _memory_argument(dumping, 640)

    recording = commands.add_parser("record", help="dump, capture, /proc, and what was planted")
    _kernel_argument(recording)
    recording.add_argument("--output", metavar="DIR", type=Path, required=True)
    recording.add_argument("--format", choices=_FORMATS, default="elf", help="of the dump")
    recording.add_argument("--no-dump", action="store_true", help="leave out the dump")
    recording.add_argument("--no-capture", action="store_true", help="leave out the capture")
    _memory_argument(recording, 640)

    tracing = commands.add_parser("trace", help="allocation events, and the lists around them")
    _kernel_argument(tracing)
    tracing.add_argument("--output", metavar="DIR", type=Path, required=True)
    tracing.add_argument(
        "--workload",
        choices=("compile", "churn", "steps"),
        default="compile",
        help="what runs meanwhile (default: compile)",
    )
    tracing.add_argument(
        "--buffer-kb", type=_kilobytes, default=32768, metavar="N", help="default: 32768"
    )
    tracing.add_argument("--dumps", action="store_true", help="keep the memory dumps")
    _memory_argument(tracing, 512)


def run(options: argparse.Namespace) -> int:
    return _ACTIONS[options.action](options)


# --- actions -----------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> int:
    from memdesc.vm.host import install_hint, missing_tools
    from memdesc.vm.kernels import SERIES, cached

    found = {name: cached(name) for name in SERIES}
    missing = missing_tools()
    if options.json:
        rows = [
            {
                "series": name,
                "suite": SERIES[name].suite,
                "meta_package": SERIES[name].meta_package,
                "release": kernel.release if kernel else None,
                "package": kernel.package if kernel else None,
                "vmlinux": str(kernel.vmlinux) if kernel else None,
            }
            for name, kernel in found.items()
        ]
        lacks = [{"tool": t.name, "package": t.package, "why": t.why} for t in missing]
        value = {"schema": "memdesc-vm/1", "rows": rows, "missing": lacks}
        print_json(envelope(value, source="vm"))
        return 1 if missing else 0
    cells = [
        [
            name,
            kernel.release if kernel else "not fetched",
            kernel.package if kernel else f"{SERIES[name].meta_package} ({SERIES[name].suite})",
        ]
        for name, kernel in found.items()
    ]
    out = console()
    out.print(table(["kernel", "release", "package"], cells))
    for tool in missing:
        out.print(f"missing: {tool.name}, which {tool.why}", markup=False)
    if missing:
        notice(f"hint: {install_hint(missing)}")
    return 1 if missing else 0


def _fetch(options: argparse.Namespace) -> int:
    from memdesc.vm.kernels import SERIES, fetch, series_named

    names = [series_named(name).name for name in options.kernels or SERIES]
    for name in names:
        with steps() as tell:
            tell(f"fetching {name}")
            kernel = fetch(name, refresh=True)
        print(f"{name}  {kernel.release}  {kernel.package}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from memdesc.vm.guest import Guest
    from memdesc.vm.qemu import Machine

    program: Path = options.program
    if not program.is_file():
        raise QuestionError(
            f"no such program: {program}",
            hint="a Python program of this machine goes behind the options: -- PROGRAM.py",
        )
    with steps() as tell:
        tell("booting")
        guest = Guest(options.kernel, Machine(memory_mb=options.memory, icount=options.icount))
        with guest:
            tell("running")
            outcome = guest.run(program, *options.words, seconds=options.seconds, check=False)
    sys.stdout.write(outcome.stdout)
    sys.stdout.flush()
    sys.stderr.write(outcome.stderr)
    if outcome.status < 0:
        notice(f"note: signal {-outcome.status} ended the program (--seconds limits its time)")
        return 128 - outcome.status
    return outcome.status


def _dump(options: argparse.Namespace) -> int:
    import dataclasses

    from memdesc.vm.record import MACHINE, dump_planted

    output: Path = options.output
    if output.exists() and not (options.force and output.is_file()):
        raise QuestionError(f"{output} exists", hint="--force replaces a file")
    machine = dataclasses.replace(MACHINE, memory_mb=options.memory)
    with steps() as tell:
        kernel = dump_planted(
            options.kernel, output, format=options.format, machine=machine, tell=tell
        )
    print(output)
    notice(
        f"{size(output.stat().st_size)}, kernel {kernel.release}; its types: "
        f"--vmlinux {kernel.vmlinux}"
    )
    return 0


def _record(options: argparse.Namespace) -> int:
    import dataclasses

    from memdesc.vm.record import MACHINE, record

    with steps() as tell:
        made = record(
            options.kernel,
            options.output,
            dump=None if options.no_dump else options.format,
            capture=not options.no_capture,
            machine=dataclasses.replace(MACHINE, memory_mb=options.memory),
            tell=tell,
        )
    print(made.folder)
    kinds = {row["kind"] for row in made.planted()}
    notice(f"kernel {made.release}: {len(kinds)} kinds of memory planted")
    return 0


def _trace(options: argparse.Namespace) -> int:
    import dataclasses

    from memdesc.vm.trace import MACHINE, record_trace

    with steps() as tell:
        made = record_trace(
            options.kernel,
            options.output,
            workload=options.workload,
            machine=dataclasses.replace(MACHINE, memory_mb=options.memory),
            buffer_kb=options.buffer_kb,
            dumps=options.dumps,
            tell=tell,
        )
    print(options.output)
    notice(
        f"kernel {made.about['release']}: {len(made.trace):,} events, none lost; "
        f"`memdesc model replay {options.output}` feeds them to the model"
    )
    return 0


_ACTIONS = {
    "list": _list,
    "fetch": _fetch,
    "run": _run,
    "dump": _dump,
    "record": _record,
    "trace": _trace,
}


# --- helpers -----------------------------------------------------------------------------


def _kernel_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kernel", metavar="KERNEL", help="series, as `memdesc vm list` shows")


def _memory_argument(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--memory",
        type=_megabytes,
        default=default,
        metavar="MB",
        help=f"of the guest (default: {default})",
    )


def _kilobytes(text: str) -> int:
    """64 to 1048576: a ring buffer smaller than that holds nothing."""
    if text.isdecimal() and 64 <= int(text) <= 1 << 20:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not between 64 and {1 << 20} kB")


def _megabytes(text: str) -> int:
    """256 to 65536: less does not boot, more is a mistake."""
    if text.isdecimal() and 256 <= int(text) <= 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not between 256 and 65536 MB")

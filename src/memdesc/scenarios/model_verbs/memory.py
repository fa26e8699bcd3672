"""Processes, mappings and accesses on the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.mm.areas.mmap import exit_process, mmap, munmap, set_anon_name
from memdesc.mm.areas.mprotect import mprotect
from memdesc.mm.areas.mremap import mremap
from memdesc.mm.areas.vma import VM
from memdesc.mm.faults.fork import fork
from memdesc.mm.hugetlb.hugetlbfs import hugetlb_file
from memdesc.mm.process import Process
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.outcome import Value
from memdesc.scenarios.places import PAGE

__all__ = ["pages_of", "prot_of"]

_PROT = {"r": VM.READ, "w": VM.WRITE, "x": VM.EXEC}


def pages_of(where: Mapping[str, Any]) -> range:
    """Virtual page numbers of a RANGE or NEW argument."""
    first = where["address"] // PAGE
    return range(first, first + where["pages"])


def prot_of(word: str) -> VM:
    """Flags of an area for "rw", "r", "none"."""
    return VM(0) if word == "none" else VM(sum(int(_PROT[letter]) for letter in word))


@verb("process")
def _process(run: ModelRunner, process: None, args: Mapping[str, Any]) -> Value:
    run.kernel.process(args["name"])
    return None


@verb("fork")
def _fork(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    fork(run.kernel, process, args["child"])
    return None


@verb("exit")
def _exit(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    exit_process(run.kernel, process)
    return None


@verb("kill")
def _kill(run: ModelRunner, process: None, args: Mapping[str, Any]) -> Value:
    exit_process(run.kernel, run.process(args["process"]))
    return None


_MAP_FLAGS = {
    "noreserve": VM.NORESERVE, "locked": VM.LOCKED, "growsdown": VM.GROWSDOWN,
    "droppable": VM.DROPPABLE,
}  # fmt: skip


@verb("map")
def _map(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    flags = VM.SHARED if args["sharing"] == "shared" else VM(0)
    for name, flag in _MAP_FLAGS.items():
        if args[name]:
            flags |= flag
    file, pgoff = None, None
    if args["backing"] == "hugetlb":
        file, pgoff = hugetlb_file(run.kernel, len(vpns)), 0
    if args["file"] is not None:
        file, pgoff = process.files[args["file"]], args["page"] or 0
    try:
        mmap(
            run.kernel, process.mm, vpns.start, len(vpns),
            prot=prot_of(args["prot"]), flags=flags, file=file, pgoff=pgoff,
            fixed=bool(args["fixed"]), populate=bool(args["populate"]),
        )  # fmt: skip
    finally:
        if args["backing"] == "hugetlb" and file is not None:
            file.closed(run.kernel)
    return None


@verb("unmap")
def _unmap(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    munmap(run.kernel, process.mm, vpns.start, vpns.stop)
    return None


@verb("protect")
def _protect(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    mprotect(run.kernel, process.mm, vpns.start, vpns.stop, prot_of(args["prot"]))
    return None


@verb("remap")
def _remap(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    new_pages = len(vpns) if args["new_pages"] is None else args["new_pages"]
    to = None if args["to"] is None else args["to"]["address"] // PAGE
    mremap(
        run.kernel, process.mm, vpns.start, len(vpns), new_pages,
        to=to, dontunmap=bool(args["dontunmap"]),
    )  # fmt: skip
    return None


@verb("name_area")
def _name_area(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    set_anon_name(run.kernel, process.mm, vpns.start, vpns.stop, args["text"])
    return None


@verb("tables")
def _tables(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    now = process.mm.tables.tables
    if process.mm.tables_at_first is None:
        process.mm.tables_at_first = now
    return now - process.mm.tables_at_first


@verb("read")
def _read(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    return tuple(run.word(run.kernel.read(process, vpn)) for vpn in pages_of(args["range"]))


@verb("write")
def _write(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    for vpn, content in zip(vpns, run.contents(args, len(vpns)), strict=True):
        run.kernel.write(process, vpn, content)
    return None


@verb("drain")
def _drain(run: ModelRunner, process: None, args: Mapping[str, Any]) -> Value:
    if args["state"] == "now":
        run.kernel.drain()
    else:
        run.drains = args["state"] == "on"
    return None


@verb("knob")
def _knob(run: ModelRunner, process: None, args: Mapping[str, Any]) -> Value:
    run.kernel.set_knob(args["name"], str(args["value"]))
    return None

"""Processes, mappings and accesses on the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.mm.fork import fork
from memdesc.mm.mmap import exit_process, mmap, munmap
from memdesc.mm.process import Process
from memdesc.mm.vma import VM
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
    exit_process(run.kernel, run.kernel.processes[args["process"]])
    return None


@verb("map")
def _map(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    flags = VM(0)
    if args["sharing"] == "shared":
        flags |= VM.SHARED
    if args["noreserve"]:
        flags |= VM.NORESERVE
    mmap(run.kernel, process.mm, vpns.start, len(vpns), prot=prot_of(args["prot"]), flags=flags)
    return None


@verb("unmap")
def _unmap(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    munmap(run.kernel, process.mm, vpns.start, vpns.stop)
    return None


@verb("read")
def _read(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    return tuple(run.word(run.kernel.read(process, vpn)) for vpn in pages_of(args["range"]))


@verb("write")
def _write(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    words = args["content"]["words"]
    for number, vpn in enumerate(vpns):
        content = run.content(words[number if len(words) > 1 else 0])
        run.kernel.write(process, vpn, content)
    return None


@verb("drain")
def _drain(run: ModelRunner, process: None, args: Mapping[str, Any]) -> Value:
    run.kernel.drain()
    return None


@verb("knob")
def _knob(run: ModelRunner, process: None, args: Mapping[str, Any]) -> Value:
    run.kernel.set_knob(args["name"], str(args["value"]))
    return None

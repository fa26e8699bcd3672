"""Advice, locking and what processes say about themselves, on the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.mm.areas.madvise import madvise
from memdesc.mm.areas.mincore import mincore
from memdesc.mm.areas.mlock import mlock, mlockall, munlock, munlockall
from memdesc.mm.faults.clear_refs import clear_refs
from memdesc.mm.process import Errno, Process
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.model_verbs.memory import pages_of
from memdesc.scenarios.outcome import Value

__all__: list[str] = []


@verb("advise")
def _advise(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    madvise(run.kernel, process, vpns.start, vpns.stop, args["advice"])
    return None


@verb("lock")
def _lock(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    mlock(run.kernel, process.mm, vpns.start, vpns.stop, on_fault=args["onfault"])
    return None


@verb("unlock")
def _unlock(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    munlock(run.kernel, process.mm, vpns.start, vpns.stop)
    return None


@verb("lockall")
def _lockall(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    mlockall(
        run.kernel, process.mm,
        current=args["current"], future=args["future"], on_fault=args["onfault"],
    )  # fmt: skip
    return None


@verb("unlockall")
def _unlockall(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    munlockall(run.kernel, process.mm)
    return None


@verb("clear_refs")
def _clear_refs(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    clear_refs(run.kernel, process.mm, args["value"])
    return None


@verb("mincore")
def _mincore(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    return tuple(mincore(run.kernel, process.mm, vpns.start, vpns.stop))


@verb("prctl")
def _prctl(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    value = args["value"]
    if args["option"] == "thp_disable":
        process.mm.thp_disabled = bool(value)
        return None
    if not run.kernel.rules.memory_merge:
        raise Errno("EINVAL")
    from memdesc.mm.ksm.ksm import ksm_enable_merge_any

    ksm_enable_merge_any(run.kernel, process.mm, enable=bool(value))
    return None

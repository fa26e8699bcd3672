"""System V shared memory on the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.mm.files.shm import Segment, shm_rmid, shmat, shmctl_lock, shmdt, shmget
from memdesc.mm.process import Process
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.model_verbs.memory import pages_of
from memdesc.scenarios.outcome import Value

Args = Mapping[str, Any]


def _segment(run: ModelRunner, args: Args) -> Segment:
    found = run.kernel.segments[args["segment"]]
    assert isinstance(found, Segment)
    return found


@verb("shm")
def _shm(run: ModelRunner, process: None, args: Args) -> Value:
    run.kernel.segments[args["segment"]] = shmget(run.kernel, args["pages"])
    return None


@verb("shm_control")
def _shm_control(run: ModelRunner, process: None, args: Args) -> Value:
    segment = _segment(run, args)
    if args["action"] == "remove":
        shm_rmid(run.kernel, segment)
    else:
        shmctl_lock(run.kernel, segment, lock=args["action"] == "lock")
    return None


@verb("shm_attached")
def _shm_attached(run: ModelRunner, process: None, args: Args) -> Value:
    return _segment(run, args).attached


@verb("attach")
def _attach(run: ModelRunner, process: Process, args: Args) -> Value:
    vpn = pages_of(args["range"]).start
    shmat(run.kernel, process.mm, _segment(run, args), vpn, readonly=args["readonly"])
    return None


@verb("detach")
def _detach(run: ModelRunner, process: Process, args: Args) -> Value:
    shmdt(run.kernel, process.mm, pages_of(args["range"]).start)
    return None

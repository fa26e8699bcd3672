"""Writing back on the model: fsync and its like, and a disk that fails or holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.mm.files import writeback
from memdesc.mm.files.folio_writeback import Answers
from memdesc.mm.files.super import fill, freeze, remount, thaw
from memdesc.mm.process import Process
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.model_verbs.files import extent_of, file_of
from memdesc.scenarios.model_verbs.memory import pages_of
from memdesc.scenarios.outcome import Value

__all__: list[str] = []

Args = Mapping[str, Any]


@verb("fsync")
def _fsync(run: ModelRunner, process: Process, args: Args) -> Value:
    writeback.vfs_fsync_range(run.kernel, file_of(process, args["file"]))
    return None


@verb("sync_range")
def _sync_range(run: ModelRunner, process: Process, args: Args) -> Value:
    extent = extent_of(process, args["file"])
    writeback.sync_file_range(run.kernel, *extent, waits=not args["start"])
    return None


@verb("syncfs")
def _syncfs(run: ModelRunner, process: Process, args: Args) -> Value:
    writeback.syncfs(run.kernel, file_of(process, args["file"]))
    return None


@verb("msync")
def _msync(run: ModelRunner, process: Process, args: Args) -> Value:
    vpns = pages_of(args["range"])
    writeback.msync(run.kernel, process.mm, vpns.start, vpns.stop, args["mode"])
    return None


@verb("sync")
def _sync(run: ModelRunner, process: None, args: Args) -> Value:
    writeback.sync(run.kernel)
    return None


@verb("filesystem")
def _filesystem(run: ModelRunner, process: None, args: Args) -> Value:
    where, state = args["where"], args["state"]
    if state == "frozen":
        freeze(run.kernel, where)
    elif state == "thawed":
        thaw(run.kernel, where)
    else:
        remount(run.kernel, where, readonly=state == "readonly")
    return None


@verb("fill")
def _fill(run: ModelRunner, process: None, args: Args) -> Value:
    fill(run.kernel, args["where"], args["pages"])
    return None


@verb("disk")
def _disk(run: ModelRunner, process: None, args: Args) -> Value:
    writeback.set_disk(run.kernel, Answers(args["state"]))
    return None

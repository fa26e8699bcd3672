"""Writing back on the model: fsync, msync, sync."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.mm.page_cache import file_mappings
from memdesc.mm.process import Errno, Process
from memdesc.mm.writeback import writeback_range
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.model_verbs.files import file_of
from memdesc.scenarios.model_verbs.memory import pages_of
from memdesc.scenarios.outcome import Value

__all__: list[str] = []

Args = Mapping[str, Any]


@verb("fsync")
def _fsync(run: ModelRunner, process: Process, args: Args) -> Value:
    writeback_range(run.kernel, file_of(process, args["file"]).mapping)
    return None


@verb("msync")
def _msync(run: ModelRunner, process: Process, args: Args) -> Value:
    vpns = pages_of(args["range"])
    for vma in process.mm.vmas.overlapping(vpns.start, vpns.stop):
        if vma.file is not None and args["mode"] == "sync":
            first = vma.index_of(max(vpns.start, vma.vpn_start))
            last = vma.index_of(min(vpns.stop, vma.vpn_end))
            writeback_range(run.kernel, vma.file.mapping, first, last)
    if any(process.mm.vmas.find(vpn) is None for vpn in vpns):
        raise Errno("ENOMEM")
    return None


@verb("sync")
def _sync(run: ModelRunner, process: None, args: Args) -> Value:
    for mapping in file_mappings(run.kernel):
        writeback_range(run.kernel, mapping)
    return None

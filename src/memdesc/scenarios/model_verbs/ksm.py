"""KSM on the model: passes of ksmd. (Its settings are knobs, taking part is advice.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.errors import FormatError
from memdesc.mm.ksm import ksm, ksm_sysfs
from memdesc.mm.process import Errno, Process
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.outcome import Value


@verb("ksm")
def _ksm(run: ModelRunner, process: None, args: Mapping[str, Any]) -> Value:
    value = args["value"]
    if args["action"] == "scan":
        for _ in range(value):
            ksm.scan(run.kernel)
    elif value == 2:
        ksm.stop_and_unmerge(run.kernel)
    elif value == 0:
        run.kernel.ksm.run = 0
    elif value > 2:
        raise Errno("EINVAL")
    else:
        raise FormatError(
            f"`ksm run {value}` lets ksmd go on by itself, which is never twice the same",
            hint="write `ksm scan 1` for one pass; `ksm run 2` unmerges, `ksm run 0` stops",
        )
    return None


@verb("ksm_stat")
def _ksm_stat(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    return ksm_sysfs.ksm_stat(run.kernel, process.mm, args["name"])

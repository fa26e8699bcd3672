"""Swap on the model: the device. (MADV_PAGEOUT and its like are advice.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.mm.swapfile import swapoff, swapon
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.outcome import Value


@verb("swap")
def _swap(run: ModelRunner, process: None, args: Mapping[str, Any]) -> Value:
    (swapon if args["state"] == "on" else swapoff)(run.kernel)
    return None

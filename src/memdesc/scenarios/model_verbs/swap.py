"""Swap on the model: the device. (MADV_PAGEOUT and its like are advice.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.mm.files.folio_writeback import Answers
from memdesc.mm.reclaim.shrink_lruvec import shrink_all
from memdesc.mm.reclaim.swap_slots import SWAP_PAGES
from memdesc.mm.reclaim.swap_state import set_swap
from memdesc.mm.reclaim.swapfile import swapoff, swapon
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.outcome import Value


@verb("swap")
def _swap(run: ModelRunner, process: None, args: Mapping[str, Any]) -> Value:
    if args["state"] == "on":
        swapon(run.kernel, args["pages"] or SWAP_PAGES, is_synchronous=not args["mapped"])
    elif args["state"] == "off":
        swapoff(run.kernel)
    else:
        set_swap(run.kernel, Answers(args["state"]))
    return None


@verb("shrink")
def _shrink(run: ModelRunner, process: None, args: Mapping[str, Any]) -> Value:
    shrink_all(run.kernel)
    return None

"""System calls about whole areas, on the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.mm.areas.brk import brk, set_start_brk
from memdesc.mm.areas.mempolicy import get_mempolicy, mbind, set_home_node
from memdesc.mm.areas.mseal import mseal
from memdesc.mm.areas.process_madvise import process_madvise
from memdesc.mm.areas.remap_file_pages import remap_file_pages
from memdesc.mm.pagemap_scan import PageIs, page_nodes, pagemap_scan
from memdesc.mm.process import NOBODY, Process
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.model_verbs.memory import pages_of
from memdesc.scenarios.outcome import Value
from memdesc.scenarios.places import PAGE

__all__: list[str] = []

Args = Mapping[str, Any]


@verb("mseal")
def _mseal(run: ModelRunner, process: Process, args: Args) -> Value:
    vpns = pages_of(args["range"])
    mseal(run.kernel, process.mm, vpns.start, vpns.stop)
    return None


@verb("nodes")
def _nodes(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    return tuple(map(str, page_nodes(run.kernel, process.mm, vpns.start, vpns.stop)))


@verb("scan_pages")
def _scan_pages(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    found = pagemap_scan(run.kernel, process.mm, vpns.start, vpns.stop, protect=args["protect"])
    return tuple(_names_of(word) for word in found)


def _names_of(word: int) -> str:
    names = [one.name.lower() for one in PageIs if one.name and int(one) & word]
    return "+".join(names) or "none"


@verb("mbind")
def _mbind(run: ModelRunner, process: Process, args: Args) -> Value:
    vpns = pages_of(args["range"])
    nodes = frozenset(node for node in range(64) if (args["mask"] or 0) >> node & 1)
    mbind(run.kernel, process.mm, vpns.start, vpns.stop, args["mode"], nodes, static=args["static"])
    return None


@verb("home_node")
def _home_node(run: ModelRunner, process: Process, args: Args) -> Value:
    vpns = pages_of(args["range"])
    set_home_node(run.kernel, process.mm, vpns.start, vpns.stop, args["node"])
    return None


@verb("policy")
def _policy(run: ModelRunner, process: Process, args: Args) -> Value:
    found = get_mempolicy(process.mm, pages_of(args["range"]).start)
    if found is None:
        return ("default",)
    nodes = found.nodes if found.asked is None else found.asked
    mask = sum(1 << node for node in nodes)
    static = () if found.asked is None else ("static",)
    return (found.mode, *static, *((str(mask),) if mask else ()))


@verb("heap")
def _heap(run: ModelRunner, process: Process, args: Args) -> Value:
    set_start_brk(process.mm, pages_of(args["range"]).start)
    return None


@verb("brk")
def _brk(run: ModelRunner, process: Process, args: Args) -> Value:
    brk(run.kernel, process.mm, args["pages"])
    return None


@verb("remap_file_pages")
def _remap_file_pages(run: ModelRunner, process: Process, args: Args) -> Value:
    vpns = pages_of(args["range"])
    remap_file_pages(run.kernel, process.mm, vpns.start, vpns.stop, args["page"])
    return None


@verb("process_advise")
def _process_advise(run: ModelRunner, process: Process, args: Args) -> Value:
    vpns = pages_of(args["range"])
    other = run.process(args["other"])
    process_madvise(run.kernel, process, other, vpns.start, vpns.stop, args["advice"])
    return len(vpns) * PAGE


@verb("drop")
def _drop(run: ModelRunner, process: Process, args: Args) -> Value:
    process.mm.limits.capable = False
    if args["what"] == "root":
        process.mm.limits.uid = NOBODY
    return None

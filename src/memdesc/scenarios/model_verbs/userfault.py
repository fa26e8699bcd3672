"""userfaultfd on the model.

As on a kernel, a process has one descriptor per mode; which one a step is about follows from the
addresses that were registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.mm.process import Errno, Process
from memdesc.mm.userfault import userfault_move, userfault_ops, userfaultfd
from memdesc.mm.userfault.userfault_wp import writeprotect
from memdesc.mm.userfault.userfaultfd import UserfaultfdCtx
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.model_verbs.memory import pages_of
from memdesc.scenarios.outcome import Value


@verb("uffd")
def _uffd(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    ctx = next((one for one in process.userfaults if one.mode == args["mode"]), None)
    if ctx is None:
        ctx = userfaultfd.userfaultfd(run.kernel, args["mode"])
        process.userfaults.append(ctx)
    userfaultfd.register(run.kernel, process.mm, ctx, vpns.start, vpns.stop)
    ctx.ranges.append((vpns.start, vpns.stop))
    return None


@verb("uffd_protect")
def _protect(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    _writeprotect(run, process, args, protect=True)
    return None


@verb("uffd_unprotect")
def _unprotect(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    _writeprotect(run, process, args, protect=False)
    return None


@verb("uffd_copy")
def _copy(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    _ctx_of(process, vpns.start)
    contents = run.contents(args, len(vpns))
    userfault_ops.copy(run.kernel, process.mm, vpns.start, contents, protect=bool(args["wp"]))
    return None


@verb("uffd_continue")
def _continue(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    _ctx_of(process, vpns.start)
    userfault_ops.continue_(run.kernel, process.mm, vpns.start, vpns.stop, protect=bool(args["wp"]))
    return None


@verb("uffd_move")
def _move(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns, source = pages_of(args["range"]), pages_of(args["source"])
    ctx = _ctx_of(process, vpns.start)
    userfault_move.move_pages(
        run.kernel, process.mm, ctx, vpns.start, source.start, len(vpns), holes=bool(args["holes"])
    )
    return None


@verb("uffd_zero")
def _zero(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    _ctx_of(process, vpns.start)
    userfault_ops.zeropage(run.kernel, process.mm, vpns.start, vpns.stop)
    return None


@verb("uffd_poison")
def _poison(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    _ctx_of(process, vpns.start)
    userfault_ops.poison(run.kernel, process.mm, vpns.start, vpns.stop)
    return None


@verb("uffd_unregister")
def _unregister(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    ctx = _ctx_of(process, vpns.start)
    userfaultfd.unregister(run.kernel, process.mm, ctx, vpns.start, vpns.stop)
    return None


def _writeprotect(
    run: ModelRunner, process: Process, args: Mapping[str, Any], *, protect: bool
) -> None:
    vpns = pages_of(args["range"])
    _ctx_of(process, vpns.start)
    writeprotect(run.kernel, process.mm, vpns.start, vpns.stop, protect=protect)


def _ctx_of(process: Process, vpn: int) -> UserfaultfdCtx:
    """The descriptor that an address was registered with; the actor looks in the same order."""
    for ctx in reversed(process.userfaults):
        if any(first <= vpn < end for first, end in ctx.ranges):
            return ctx
    raise Errno("EINVAL")

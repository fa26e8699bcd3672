"""References to pages, and the kernel's own ways to user memory, on the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.kernels.pagemap import PM
from memdesc.mm.areas.pkeys import RIGHTS, pkey_protect
from memdesc.mm.faults.uaccess import copy_from_user, copy_to_user
from memdesc.mm.process import Errno, Process
from memdesc.mm.references.device_mapping import map_firmware, map_ring
from memdesc.mm.references.direct_io import begin_dma, begin_dma_from, dio_read, dio_write
from memdesc.mm.references.futex import futex_wake
from memdesc.mm.references.pins import (
    access_remote_vm,
    hand_over,
    process_vm_readv,
    process_vm_writev,
    register_buffer,
)
from memdesc.mm.references.splice import splice_more, vmsplice
from memdesc.mm.references.xdp_umem import xdp_umem_reg
from memdesc.mm.references.zerocopy import send_zerocopy
from memdesc.mm.seen import pagemap_entry
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.model_verbs.files import extent_of
from memdesc.scenarios.model_verbs.memory import pages_of, prot_of
from memdesc.scenarios.outcome import Value
from memdesc.scenarios.places import PAGE

_FIRMWARE_WORD = int.from_bytes(b"firmware", "little")
"""Stands for what no scenario has written."""


def _words(run: ModelRunner, contents: tuple[int, ...]) -> Value:
    return tuple(run.word(content) for content in contents)


def _other(run: ModelRunner, args: Mapping[str, Any]) -> Process:
    return run.process(args["other"])


@verb("splice")
def _splice(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    process.pins[args["pin"]] = vmsplice(
        run.kernel, process, vpns.start, len(vpns),
        times=args["times"] or 1, gift=bool(args["gift"]),
    )  # fmt: skip
    return None


@verb("splice_more")
def _splice_more(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    return splice_more(run.kernel, process, process.pins[args["pin"]], vpns.start, len(vpns))


@verb("pipe_read")
def _pipe_read(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    return _words(run, process.pins[args["pin"]].read(run.kernel))


@verb("pin")
def _pin(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    process.pins[args["pin"]] = register_buffer(run.kernel, process, vpns.start, len(vpns))
    return None


@verb("pin_write")
def _pin_write(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    held = process.pins[args["pin"]]
    return int(held.write(run.kernel, run.contents(args, len(held.pages))))


@verb("pin_read")
def _pin_read(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    return _words(run, process.pins[args["pin"]].read(run.kernel))


@verb("dma")
def _dma(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    contents = run.contents(args, len(vpns))
    process.pins[args["pin"]] = begin_dma(run.kernel, process, vpns.start, contents)
    return None


@verb("dma_from")
def _dma_from(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    process.pins[args["pin"]] = begin_dma_from(run.kernel, process, vpns.start, len(vpns))
    return None


@verb("dma_taken")
def _dma_taken(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    return _words(run, process.pins.take(args["pin"]).taken(run.kernel))


@verb("send")
def _send(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    process.pins[args["pin"]] = send_zerocopy(run.kernel, process, vpns.start, len(vpns))
    return None


@verb("receive")
def _receive(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    return _words(run, process.pins.take(args["pin"]).receive(run.kernel))


@verb("umem")
def _umem(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    process.pins[args["pin"]] = xdp_umem_reg(run.kernel, process, vpns.start, len(vpns))
    return None


@verb("futex")
def _futex(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    return futex_wake(
        run.kernel, process, pages_of(args["range"]).start, shared=not args["private"]
    )


@verb("release")
def _release(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    process.pins.take(args["pin"]).release(run.kernel)
    return None


@verb("hand")
def _hand(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    name = args["pin"]
    hand_over(process, run.kernel.processes[args["other"]], name)
    return None


@verb("remember")
def _remember(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    entries = [
        0 if vma is None else pagemap_entry(run.kernel, process.mm, vma, vpn)
        for vpn in pages_of(args["range"])
        for vma in (process.mm.vmas.find(vpn),)
    ]
    if not all(entry & PM.PRESENT for entry in entries):
        raise Errno("EFAULT")
    run.remembered[args["frames"]] = [entry & PM.FRAME for entry in entries]
    return None


@verb("peek")
def _peek(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    return _words(
        run, process_vm_readv(run.kernel, process, _other(run, args), vpns.start, len(vpns))
    )


@verb("poke")
def _poke(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    contents = run.contents(args, len(vpns))
    return process_vm_writev(run.kernel, process, _other(run, args), vpns.start, contents)


@verb("ptrace_read")
def _ptrace_read(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    return _words(
        run, access_remote_vm(run.kernel, process, _other(run, args), vpns.start, len(vpns))
    )


@verb("ptrace_write")
def _ptrace_write(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    contents = run.contents(args, len(vpns))
    other = _other(run, args)
    return PAGE * len(access_remote_vm(run.kernel, process, other, vpns.start, len(vpns), contents))


@verb("copy_to")
def _copy_to(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    contents = run.contents(args, len(vpns))
    return PAGE * copy_to_user(run.kernel, process, vpns.start, contents)


@verb("copy_from")
def _copy_from(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    return _words(run, copy_from_user(run.kernel, process, vpns.start, len(vpns)))


@verb("dio_read")
def _dio_read(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    file, first, _ = extent_of(process, args["file"])
    vpns = pages_of(args["range"])
    return dio_read(run.kernel, process, file, first, vpns.start, len(vpns))


@verb("dio_write")
def _dio_write(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    file, first, _ = extent_of(process, args["file"])
    vpns = pages_of(args["range"])
    return dio_write(run.kernel, process, file, first, vpns.start, len(vpns))


@verb("key")
def _key(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns = pages_of(args["range"])
    rights = RIGHTS[args["rights"]]
    pkey_protect(run.kernel, process.mm, vpns.start, vpns.stop, prot_of("rw"), rights)
    return None


@verb("map_device")
def _map_device(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    vpns, prot = pages_of(args["range"]), prot_of(args["prot"])
    if args["device"] == "firmware":
        content = run.content(_FIRMWARE_WORD)
        map_firmware(run.kernel, process.mm, vpns.start, len(vpns), prot, content=content)
    else:
        map_ring(run.kernel, process.mm, vpns.start, len(vpns), prot)
    return None

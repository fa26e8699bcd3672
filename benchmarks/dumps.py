"""Crash dumps: from open to the ledger, and bulk reading against drgn's loop over pages.

    python -m benchmarks.dumps VMCORE [--vmlinux FILE] [--rounds 5]

VMCORE is any dump, for example one that `memdesc vm dump 6.12 --output FILE` makes; FILE a
kernel image with DWARF, for the drgn loop and for opening with DWARF.  Without it drgn gets
its types from the dump's BTF through `memdesc.drgn_plugin`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from memdesc.answers.ledger import ledger
from memdesc.sources.structs import DumpSource


def open_to_ledger(path: Path, vmlinux: Path | None) -> float:
    """Seconds from a path to the rows of the ledger; every frame typed and counted."""
    began = time.perf_counter()
    source = DumpSource(path, vmlinux=vmlinux)
    rows = ledger(source.totals()).rows
    assert rows
    return time.perf_counter() - began


def typed_per_frame(source: DumpSource) -> float:
    """Seconds per frame to read and type every struct page, walks included."""
    began = time.perf_counter()
    totals = source.totals()
    return (time.perf_counter() - began) / totals.frames


def read_per_frame(source: DumpSource) -> float:
    """Seconds per frame to read every struct page in bulk and take its flags."""
    began = time.perf_counter()
    frames = 0
    marked = 0
    memmap = source.memmap
    place = memmap.layout.flags
    for low, high in memmap.sections:
        pages = memmap.read_pages(low, high - low)
        marked += int(pages[:, place : place + 8].view("<u8").any(axis=1).sum())
        frames += high - low
    assert marked
    return (time.perf_counter() - began) / frames


def drgn_loop(path: Path, vmlinux: Path | None, pages: int) -> Callable[[], float]:
    """drgn's for_each_page with a read of the flags, seconds per page."""
    import drgn
    from drgn.helpers.linux.mm import for_each_page

    if vmlinux is not None:
        prog = drgn.Program()
        prog.set_core_dump(str(path))
        prog.load_debug_info([str(vmlinux)])
    else:
        from memdesc.drgn_plugin import open_program

        prog = open_program(path)

    def run() -> float:
        first = next(iter(for_each_page(prog)))
        is_word = first.flags.type_.kind == drgn.TypeKind.INT
        count = 0
        began = time.perf_counter()
        for page in itertools.islice(for_each_page(prog), pages):
            _ = page.flags.value_() if is_word else page.flags.f.value_()
            count += 1
        return (time.perf_counter() - began) / count

    return run


def main() -> None:
    """Measure all sides in turns; ratios are taken within a round."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.dumps")
    parser.add_argument("vmcore", type=Path)
    parser.add_argument("--vmlinux", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pages", type=int, default=40_000, help="pages of the drgn loop")
    options = parser.parse_args()
    loop = drgn_loop(options.vmcore, options.vmlinux, options.pages)
    source = DumpSource(options.vmcore)
    typed_per_frame(source)
    opened, with_dwarf, typed, bulk, drgn_ns = [], [], [], [], []
    for _ in range(options.rounds):
        opened.append(open_to_ledger(options.vmcore, None))
        if options.vmlinux is not None:
            with_dwarf.append(open_to_ledger(options.vmcore, options.vmlinux))
        drgn_ns.append(loop() * 1e9)
        bulk.append(read_per_frame(source) * 1e9)
        typed.append(typed_per_frame(source) * 1e9)
    size = options.vmcore.stat().st_size / 2**20
    print(f"{options.vmcore.name}: {size:.0f} MiB, {options.rounds} rounds, medians")
    print(f"  open to ledger, BTF of the dump   {statistics.median(opened):6.2f} s")
    if with_dwarf:
        print(f"  open to ledger, DWARF             {statistics.median(with_dwarf):6.2f} s")
    print(f"  drgn for_each_page, flags         {statistics.median(drgn_ns):6.0f} ns per page")
    for name, values in (("bulk read, flags", bulk), ("typed, walks included", typed)):
        ratio = statistics.median(a / b for a, b in zip(drgn_ns, values, strict=True))
        text = f"{statistics.median(values):6.1f} ns per frame, {ratio:.0f} times as fast"
        print(f"  {name:<34}{text}")


if __name__ == "__main__":
    main()

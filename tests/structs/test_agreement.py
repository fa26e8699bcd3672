"""Struct pages against /proc: a report per flag, on this machine and on dumps of real kernels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from struct_worlds import ANON, World
from structs.real_dumps import RealDump, real_dump

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.release import KernelRelease
from memdesc.map.machine import Machine
from memdesc.sources.kpage import PageFile
from memdesc.sources.procfs import (
    parse_buddyinfo,
    parse_meminfo,
    parse_vmstat,
    parse_zoneinfo,
    read_machine,
)
from memdesc.structs.agreement import agreement, live_agreement
from memdesc.structs.dump import open_dump
from memdesc.structs.kernel import Kernel
from memdesc.structs.live import open_live_kernel, why_not
from memdesc.structs.machine import machine_of
from memdesc.structs.memmap import MemMap
from memdesc.structs.scan import StructScan

NOT_HERE = why_not()


class TestTheReport:
    def words_and_map(self) -> tuple[np.ndarray, StructScan]:
        world = World("6.12", nr_pages=1024)
        for pfn in range(8):
            world.page(pfn, "lru", "swapbacked", mapping=ANON, mapcount=1)
        scan = StructScan(world.kernel, world.memmap, Machine(release=world.kernel.release))
        return scan.map().words(0, 1024), scan

    def test_equal_words_agree_in_every_flag(self) -> None:
        words, scan = self.words_and_map()
        report = agreement(scan.map(), words)
        assert (report.frames, report.changed, report.share) == (1024, 0, 1.0)
        by_name = {flag.name: flag for flag in report.flags}
        assert by_name["ANON"].both == 8
        assert not any(flag.only_struct or flag.only_proc for flag in report.flags)

    def test_differences_are_counted_by_flag_and_by_word(self) -> None:
        words, scan = self.words_and_map()
        words[:2] |= np.uint64(KPF.DIRTY)
        words[2] &= ~np.uint64(KPF.MMAP)
        report = agreement(scan.map(), words)
        assert report.equal == 1021
        by_name = {flag.name: flag for flag in report.flags}
        assert (by_name["DIRTY"].only_proc, by_name["MMAP"].only_struct) == (2, 1)
        first = report.differences[0]
        assert (first.frames, first.pfn) == (2, 0)
        assert "only /proc DIRTY" in first.describe(KernelRelease.parse("6.12"))

    def test_frames_that_changed_meanwhile_are_not_compared(self) -> None:
        words, scan = self.words_and_map()
        after = words.copy()
        words[5] = after[6] = 0
        report = agreement(scan.map(), words, after)
        assert (report.changed, report.compared, report.share) == (2, 1022, 1.0)

    def test_section_by_section_is_the_same(self) -> None:
        words, scan = self.words_and_map()
        words[3] = 0

        def read(pfn: int, into: np.ndarray) -> None:
            into[:] = words[pfn : pfn + into.size]

        report = live_agreement(scan, read, 1024)
        assert (report.frames, report.equal) == (1024, 1023)
        assert report == agreement(scan.map(), words, words)


@pytest.mark.live
@pytest.mark.skipif(bool(NOT_HERE), reason=f"{NOT_HERE}; run as root on a kernel with BTF")
def test_this_machine_s_struct_pages_and_kpageflags_agree() -> None:
    try:
        flags = PageFile(Path("/proc/kpageflags"))
    except OSError as error:
        pytest.skip(f"/proc/kpageflags cannot be read: {error}; run as root")
    kernel = open_live_kernel()
    scan = StructScan(kernel, MemMap.find(kernel), read_machine(Path("/")), threads=1)
    report = live_agreement(scan, flags.read_into, flags.frames())
    told = [each.describe(kernel.release) for each in report.differences[:5]]
    assert report.compared > report.frames // 2
    assert report.share >= 0.999, told


# --- dumps of real kernels ---------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[pytest.param(series, marks=pytest.mark.vm) for series in ("6.1", "6.12", "7.2")],
)
def dump(request: pytest.FixtureRequest) -> RealDump:
    return real_dump(request, request.param)


@pytest.fixture(scope="module")
def proc(dump: RealDump) -> Path:
    """The same guest's /proc, copied just before the dump."""
    return dump.elf.parent / "tree" / "proc"


@pytest.fixture(scope="module")
def kernel(dump: RealDump) -> Kernel:
    return open_dump(dump.elf, dump.vmlinux)


@pytest.fixture(scope="module")
def scan(kernel: Kernel) -> StructScan:
    memmap = MemMap.find(kernel)
    return StructScan(kernel, memmap, machine_of(kernel, memmap))


def test_every_word_of_a_guest_is_what_its_proc_showed(
    scan: StructScan, kernel: Kernel, proc: Path
) -> None:
    """A handful differ: the guest goes on for a moment between the last page file and the
    dump (copy-on-write, a per-CPU batch of pages put on the LRU list, a slab or two). A tail
    shows its head's flags, so a huge page that drifts counts once, and two may."""
    report = agreement(scan.map(), np.fromfile(proc / "kpageflags", np.uint64))
    told = [each.describe(kernel.release) for each in report.differences]
    drifting = KPF.IDLE | KPF.OWNER_2 | KPF.LRU
    stray = [each for each in report.differences if (each.proc ^ each.struct) & ~drifting]
    assert sum(each.frames for each in stray) <= 16, told
    tails = sum(each.frames for each in report.differences if each.proc & KPF.COMPOUND_TAIL)
    assert tails <= 2 * 511, told
    assert report.equal + tails >= 0.998 * report.frames, told


def test_map_counts_and_cgroups_of_a_guest_are_those_of_its_proc(
    scan: StructScan, proc: Path
) -> None:
    result = scan.map()
    assert result.mapcounts is not None
    assert result.cgroups is not None
    lengths = result.nr_pages
    counts = np.repeat(result.mapcounts, lengths)
    shown = np.fromfile(proc / "kpagecount", np.uint64)
    inodes = np.repeat(result.cgroup_inodes[result.cgroups], lengths)
    charged = np.fromfile(proc / "kpagecgroup", np.uint64)
    size = min(counts.size, shown.size)
    # kpagecount of a slab frame is no map count on every kernel: nothing maps those.
    mapped = result.words(0, size) & np.uint64(KPF.MMAP) != 0
    assert np.count_nonzero((counts[:size] != shown[:size]) & mapped) <= size // 500
    # Kernels that show only heads read 0 for tails; here tails have their head's.
    told = charged[:size] != 0
    assert np.count_nonzero(told) > 10_000
    assert np.count_nonzero((inodes[:size] != charged[:size]) & told) <= size // 500


def test_the_machine_of_a_guest_is_that_of_its_proc(scan: StructScan, proc: Path) -> None:
    machine = scan.machine
    told = parse_zoneinfo((proc / "zoneinfo").read_text())
    # A page or two may be taken from a CPU's list between the file and the dump.
    still = [dataclasses.replace(zone, pcp=0) for zone in machine.zones]
    assert still == [dataclasses.replace(zone, pcp=0) for zone in told]
    for zone, shown in zip(machine.zones, told, strict=True):
        assert abs(zone.pcp - shown.pcp) <= 8
    assert machine.buddyinfo == parse_buddyinfo((proc / "buddyinfo").read_text())
    shown = parse_meminfo((proc / "meminfo").read_text())
    ours = machine.before.meminfo
    assert {"MemTotal", "MemFree", "Buffers", "Cached", "Slab", "Hugetlb", "Percpu"} <= ours.keys()
    for name in ours.keys() & shown.keys():
        assert abs(ours[name] - shown[name]) <= 1 << 20, name
    assert ours["MemTotal"] == shown["MemTotal"]
    counted = parse_vmstat((proc / "vmstat").read_text())
    assert machine.before.vmstat.keys() <= counted.keys()
    assert machine.unseen == {}

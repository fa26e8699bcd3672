"""The text files beside the page files, as real kernels write them and as nobody would."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st

from memdesc.errors import CaptureError, FormatError
from memdesc.map.machine import IomemRange, Machine, SlabCache, Zone
from memdesc.sources.procfs import (
    parse_buddyinfo,
    parse_iomem,
    parse_meminfo,
    parse_pagetypeinfo,
    parse_slabinfo,
    parse_vmstat,
    parse_zoneinfo,
    read_machine,
)

ZONEINFO_6_18 = """\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 413
  pages free     3840
        boost    0
        min      10
        spanned  4095
        present  3998
        managed  3840
        cma      0
        protection: (0, 3019, 24105, 24105, 24105)
  pagesets
    cpu: 0
              count:    0
              high:     0
    cpu: 1
              count:    2
  node_unreclaimable:  0
  start_pfn:           1
Node 0, zone  Movable
  pages free     0
        spanned  0
        present  0
        managed  0
Node 1, zone   Normal
  pages free     77
        spanned  5505024
        present  5505024
        managed  622592
  pagesets
    cpu: 0
              count: 20898
  start_pfn:           1048576
"""


def test_zoneinfo() -> None:
    assert parse_zoneinfo(ZONEINFO_6_18) == (
        Zone(0, "DMA", 1, 4095, 3998, 3840, 3840, 2, wmark_min=10, reserve=24105),
        Zone(1, "Normal", 1048576, 5505024, 5505024, 622592, 77, 20898),
    )


def test_meminfo_sizes_are_bytes_and_huge_pages_are_counts() -> None:
    text = "MemFree:   12 kB\nActive(anon):  3 kB\nHugePages_Total:  7\nHugepagesize: 2048 kB\n"
    assert parse_meminfo(text) == {
        "MemFree": 12288,
        "Active(anon)": 3072,
        "HugePages_Total": 7,
        "Hugepagesize": 2 << 20,
    }


def test_vmstat_buddyinfo_pagetypeinfo_slabinfo() -> None:
    assert parse_vmstat("nr_free_pages 12\nbroken\n") == {"nr_free_pages": 12}
    assert parse_buddyinfo("Node 0, zone   Normal    121    512      0\n") == (
        (0, "Normal", (121, 512, 0)),
    )
    line = "Node    0, zone   Normal, type    Unmovable     1  >100000     3\n"
    assert parse_pagetypeinfo(line) == ((0, "Normal", "Unmovable", (1, 100000, 3)),)
    slab = "dentry 202218 202230 192 21 1 : tunables 0 0 0 : slabdata 9630 9630 0\n"
    (cache,) = parse_slabinfo("slabinfo - version: 2.1\n" + slab)
    assert cache == SlabCache("dentry", 202218, 202230, 192, 1, 9630)
    assert cache.size_bytes == 9630 * 4096


def test_iomem_keeps_top_level_ranges_and_sees_hidden_addresses() -> None:
    text = "00001000-0009fbff : System RAM\n  01000000-022090c7 : Kernel code\n"
    assert parse_iomem(text) == (IomemRange(0x1000, 0x9FC00, "System RAM"),)
    assert parse_iomem("00000000-00000000 : System RAM\n") == ()


def test_missing_files_are_named_with_the_reason(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    assert machine.unseen["/proc/zoneinfo"] == "No such file or directory"
    assert not machine.release.is_known
    assert machine.frames_present is None


def test_a_release_can_be_given_and_must_be_one(tmp_path: Path) -> None:
    assert str(read_machine(tmp_path, release="6.12.1").release) == "6.12.1"
    with pytest.raises(FormatError):
        read_machine(tmp_path, release="new")


def test_a_machine_survives_json(tmp_path: Path) -> None:
    machine = worlds.tree(tmp_path, [0] * 4).machine
    again = Machine.from_json(json.loads(json.dumps(machine.to_json())))
    assert again == machine


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    for parse in (
        parse_buddyinfo,
        parse_iomem,
        parse_meminfo,
        parse_pagetypeinfo,
        parse_slabinfo,
        parse_vmstat,
        parse_zoneinfo,
    ):
        parse(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(key=st.sampled_from(sorted(Machine().to_json())), value=JSON)
def test_a_hostile_machine_section_is_one_error(key: str, value: object) -> None:
    document = {**Machine().to_json(), key: value}
    with contextlib.suppress(CaptureError):
        Machine.from_json(document)

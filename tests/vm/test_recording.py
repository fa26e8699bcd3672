"""A recording of each kernel: what was planted is what the files and the dump show."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path

import pytest
from vm.expected import BEHAVIOUR, BITS, Pages, examine

from memdesc.sources.capture import Capture
from memdesc.vm.record import Recording

pytestmark = pytest.mark.vm
PAGE = 4096


def series(recording: Recording) -> str:
    return recording.folder.name.partition("-")[0]


def test_every_planted_page_looks_as_its_kind_does(recording: Recording) -> None:
    results = examine(recording, BEHAVIOUR[series(recording)])
    wrong = {kind: (result.wrong, result.words) for kind, result in results.items() if result.wrong}
    assert not wrong
    assert len(results) > 45
    assert sum(result.pages for result in results.values()) > 15_000


def test_what_is_not_there_is_only_what_the_kernel_lacks(recording: Recording) -> None:
    rows = json.loads((recording.tree / "planted.json").read_text())
    missing = {row["kind"] for row in rows if "missing" in row}
    lacks = {"6.1": {"anon_mthp", "guard"}, "6.12": {"guard"}, "7.2": set()}
    assert missing == lacks[series(recording)]


def test_flags_and_counters_agree_to_the_page(recording: Recording) -> None:
    flags = Pages(recording).flags
    seen = Counter(
        name
        for word in flags
        for name in ("BUDDY", "OFFLINE", "HWPOISON")
        if word >> BITS[name] & 1
    )
    lines = (line.split() for line in (recording.tree / "proc/meminfo").read_text().splitlines())
    meminfo = {words[0].rstrip(":"): int(words[1]) // 4 for words in lines}
    counted = json.loads((recording.tree / "counted.json").read_text())
    balloon = sum(row["bytes"] for row in counted if row["kind"] == "balloon") // PAGE
    assert seen["BUDDY"] == meminfo["MemFree"]
    assert seen["OFFLINE"] == balloon
    assert seen["HWPOISON"] == meminfo["HardwareCorrupted"] == 3


def test_the_dump_shows_the_moment_of_the_page_files(recording: Recording) -> None:
    """Each page of private memory holds the number that was written, at its frame's place."""
    pages = Pages(recording)
    looked_at = 0
    with recording.vmcore.open("rb") as dump:
        segments = physical_segments(dump.read(PAGE))
        for region in recording.planted():
            if region["kind"] not in ("anon", "anon_thp", "anon_mlocked", "io_uring_fixed"):
                continue
            for index, (frame, _entry) in enumerate(pages.of(region)):
                assert frame is not None
                address = frame * PAGE
                start, offset = next(
                    (start, offset) for start, end, offset in segments if start <= address < end
                )
                dump.seek(offset + address - start)
                number, seed = struct.unpack("<II", dump.read(8))
                assert (number, seed > 0) == (index + 1, True), (region, index)
                looked_at += 1
    assert looked_at > 2500


def physical_segments(head: bytes) -> list[tuple[int, int, int]]:
    """(first byte, end, offset in the file) of the memory in an ELF dump."""
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    found = []
    for index in range(count):
        kind, _flags, at, _virtual, physical, length = struct.unpack_from(
            "<IIQQQQ", head, offset + index * size
        )
        if kind == 1:
            found.append((physical, physical + length, at))
    return found


def test_symbols_belong_to_the_kernel_of_the_dump(recording: Recording) -> None:
    lines = (line.split() for line in recording.kallsyms.read_text().splitlines())
    symbols = {words[2]: int(words[0], 16) for words in lines if len(words) == 3}
    with recording.vmcore.open("rb") as dump:
        note = dump.read(1 << 16)
    assert f"OSRELEASE={recording.release}\n".encode() in note
    # The kernel itself wrote this address into its VMCOREINFO.
    assert b"SYMBOL(swapper_pg_dir)=%x\n" % symbols["init_top_pgt"] in note


def test_the_kernel_has_type_information(recording: Recording) -> None:
    with recording.vmlinux.open("rb") as file:
        content = file.read()
    assert content.startswith(b"\x7fELF")
    assert b"\0.BTF\0" in content


def test_memdesc_captured_the_same_guest(recording: Recording) -> None:
    capture = Capture(recording.capture)
    capture.verify()
    assert str(capture.machine.release) == recording.release
    names = set(capture.attribution().processes.comm)
    assert {"database", "cache", "webserver", "webworker0", "batch", "monitor (probe)"} <= names


def test_the_tree_is_a_source(recording: Recording, tmp_path: Path) -> None:
    from memdesc.answers.ledger import ledger
    from memdesc.sources.open import open_source

    result = open_source(f"tree:{recording.tree}").map()
    assert ledger(result).frames_present == result.machine.frames_present

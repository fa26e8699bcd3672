"""Coverage-guided fuzzing of everything that reads foreign bytes. Not part of `make test`.

    make fuzz                       one minute per target
    python fuzz/fuzz_parsers.py procfs -max_total_time=600

A target may raise MemdescError and nothing else; atheris reports anything else with the
input that caused it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["memdesc"]):
    import numpy as np

    from memdesc.answers.ledger import ledger
    from memdesc.answers.places import parse_place
    from memdesc.errors import MemdescError
    from memdesc.kernels.pagemap import decode_entry
    from memdesc.kernels.release import KernelRelease, behaviour_of
    from memdesc.map.compound import compounds_of
    from memdesc.map.machine import Machine
    from memdesc.rules.classify import Context, classify
    from memdesc.sources import procfs
    from memdesc.sources.source import RawSource
    from memdesc.word import decode

FOLDER = Path(tempfile.mkdtemp(prefix="memdesc-fuzz-"))


def texts(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    procfs.parse_zoneinfo(text)
    procfs.parse_meminfo(text)
    procfs.parse_vmstat(text)
    procfs.parse_iomem(text)
    procfs.parse_buddyinfo(text)
    procfs.parse_pagetypeinfo(text)
    procfs.parse_slabinfo(text)
    parse_place(text)


def machine(data: bytes) -> None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    Machine.from_json(value)


def words(data: bytes) -> None:
    for at in range(0, len(data) - 7, 8):
        word = int.from_bytes(data[at : at + 8], "little")
        for release in ("6.1.1", "6.12.1", "6.18.1", "7.2.1"):
            known = KernelRelease.parse(release)
            classify(word, Context(behaviour_of(known)))
            decode_entry(word, known)
        decode(word)


def raw(data: bytes) -> None:
    path = FOLDER / "raw"
    path.write_bytes(data)
    result = RawSource(path, release="6.1.1" if len(data) % 16 else "7.2.1", threads=1).map()
    result.check()
    compounds_of(result)
    assert (
        ledger(result).frames_present + sum(row.frames for row in ledger(result).not_present)
        == len(data) // 8
    )
    assert np.array_equal(result.words(0, result.pfn_end), np.frombuffer(data, "<u8")) or not data


TARGETS: dict[str, Callable[[bytes], None]] = {
    "texts": texts,
    "machine": machine,
    "words": words,
    "raw": raw,
}


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]

    def one(data: bytes) -> None:
        try:
            target(data)
        except MemdescError:
            pass

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""Stored traces: nothing is lost, the same input gives the same bytes, damage is refused."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from traces.pages import SAMPLES, unpack
from traces.recorded import NAMES, recorded

from memdesc.errors import FormatError
from memdesc.traces.events import COLUMNS, Trace
from memdesc.traces.read import open_trace, read_trace
from memdesc.traces.state import AllocatorState
from memdesc.traces.store import Recorded, load_recorded, save_recorded


def assert_same(one: Trace, other: Trace) -> None:
    assert one.texts == other.texts
    assert one.sites == other.sites
    for name, kind in COLUMNS.items():
        assert one.columns[name].dtype == other.columns[name].dtype == np.dtype(kind)
        assert one.columns[name].tolist() == other.columns[name].tolist(), name


@pytest.mark.parametrize("name", SAMPLES)
def test_a_trace_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    trace = read_trace(unpack(name, tmp_path / "tracefs"))
    paths = tmp_path / "one.npz", tmp_path / "other.npz"
    for path in paths:
        save_recorded(path, Recorded(trace))
    assert_same(read_trace(paths[0]), trace)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("name", NAMES[:2])
def test_states_flags_and_steps_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    before = recorded(name)
    path = tmp_path / "trace.npz"
    save_recorded(path, before)
    after = load_recorded(path)
    assert_same(after.trace, before.trace)
    assert after.steps == before.steps
    assert after.about == before.about
    for one, other in ((before.before, after.before), (before.after, after.after)):
        assert one is not None
        assert other is not None
        assert one.zones == other.zones
        assert one.files == other.files
        for blocks in ("free", "pcp"):
            assert getattr(one, blocks).pfn.tolist() == getattr(other, blocks).pfn.tolist()
        assert one.pageblocks.tolist() == other.pageblocks.tolist()
    assert np.array_equal(before.flags_before, after.flags_before)  # type: ignore[arg-type]


def test_an_empty_trace_can_be_stored(tmp_path: Path) -> None:
    trace = read_trace(unpack("6.12", tmp_path / "tracefs"))
    save_recorded(tmp_path / "empty.npz", Recorded(trace.between(0, 0)))
    assert len(read_trace(tmp_path / "empty.npz")) == 0


def test_no_damage_goes_unnoticed_or_breaks_the_reader(tmp_path: Path) -> None:
    trace = read_trace(unpack("6.12", tmp_path / "tracefs"))
    save_recorded(tmp_path / "trace.npz", Recorded(trace))
    content = (tmp_path / "trace.npz").read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for at in random.integers(0, len(content), 150).tolist():
        damaged = bytearray(content)
        damaged[at] ^= int(random.integers(1, 256))
        (tmp_path / "damaged.npz").write_bytes(bytes(damaged))
        try:
            found = open_trace(tmp_path / "damaged.npz")
        except FormatError:
            refused += 1
            continue
        # What a zip does not check (its times) changes nothing.
        assert_same(found.trace, trace)
    assert refused > 100


@pytest.mark.parametrize(
    ("column", "value"),
    [("free_pfn", 1), ("free_order", 63), ("pcp_zone", 99), ("free_pfn", 0xFFFFFFFF)],
)
def test_lists_that_cannot_be_are_refused(column: str, value: int) -> None:
    before = recorded("6.12-steps").before
    assert before is not None
    arrays = before.to_arrays("x_")
    AllocatorState.from_arrays(arrays, "x_")
    arrays[f"x_{column}"] = arrays[f"x_{column}"].copy()
    arrays[f"x_{column}"][-1] = value
    with pytest.raises(FormatError, match="damaged"):
        AllocatorState.from_arrays(arrays, "x_")


@pytest.mark.parametrize("change", ['"spanned": "1"', '"spanned": -5', '"spanned": 1e300'])
def test_zones_that_cannot_be_are_refused(change: str) -> None:
    before = recorded("6.12-steps").before
    assert before is not None
    arrays = before.to_arrays("x_")
    text = arrays["x_about"].tobytes().decode()
    changed = re.sub(r'"spanned": \d+', change, text)
    assert changed != text
    arrays["x_about"] = np.frombuffer(changed.encode(), np.uint8)
    with pytest.raises(FormatError, match="damaged"):
        AllocatorState.from_arrays(arrays, "x_")


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("head.npy", b"no array")
    with pytest.raises(FormatError, match="stored trace"):
        open_trace(path)

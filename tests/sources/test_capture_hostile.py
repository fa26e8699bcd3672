"""A capture from anywhere: whatever is wrong with it is one clear CaptureError."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arro3.core import Array, DataType, Field, RecordBatch, Schema
from arro3.io import write_parquet
from captures import (
    assert_clear,
    attribution,
    forge,
    manifest,
    read_all,
    table_bytes,
    world,
    write_manifest,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memdesc.errors import CaptureError
from memdesc.map.extents import MemoryMap
from memdesc.sources import capture_read, decoder
from memdesc.sources import tables as module_tables
from memdesc.sources.capture import Capture
from memdesc.sources.capture_format import SCHEMA, TABLE_COLUMNS
from memdesc.sources.capture_write import write_capture
from memdesc.sources.decoder import decoded
from memdesc.sources.tables import BATCH_ROWS, read_batches


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture with everything, made once."""
    folder = tmp_path_factory.mktemp("pristine")
    source = world(folder / "world")
    write_capture(folder / "capture", source.scan(), attribution=attribution(), names=True)
    return folder / "capture"


@pytest.fixture
def capture(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "capture"))


def refused(path: Path) -> CaptureError:
    error = read_all(path)
    assert isinstance(error, CaptureError), "it was read"
    return error


def extents(path: Path) -> dict[str, Any]:
    """The columns of the extents, to be changed and forged."""
    name = path / "extents.parquet"
    with name.open("rb") as file:
        return dict(next(read_batches(file, TABLE_COLUMNS["extents"])))


def forge_extents(
    path: Path, batch: Mapping[str, Any], columns: Mapping[str, str] = TABLE_COLUMNS["extents"]
) -> None:
    rows = len(next(iter(batch.values())))
    data = table_bytes(path.parent / "forged", columns, batch)
    forge(path, "extents.parquet", data, rows=rows, columns=dict(columns))
    value = manifest(path)
    value["counts"]["extents"] = rows
    write_manifest(path, value)


def without_totals(path: Path) -> None:
    """As captures were before there was such a table."""
    (path / "totals.parquet").unlink()
    value = manifest(path)
    del value["files"]["totals.parquet"]
    value["visible"]["files"].remove("totals.parquet")
    write_manifest(path, value)


# --- the manifest ------------------------------------------------------------------------


def test_there_is_no_capture(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path(os.devnull)):
        with pytest.raises(CaptureError) as caught:
            Capture(path)
        assert_clear(caught.value)
        assert "directory with a manifest.json" in caught.value.hint


@pytest.mark.parametrize("schema", ["memdesc-capture/2", "other/1", None, 1, [], "x" * 10_000])
def test_another_schema_is_named(capture: Path, schema: Any) -> None:
    write_manifest(capture, {**manifest(capture), "schema": schema})
    error = refused(capture)
    assert SCHEMA in str(error)
    assert "update" in error.hint


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}" * 2,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"schema":"\\ud800"}',
        b"1" * 100_000,
        b'{"schema":"memdesc-capture/1"}',
        b" " * (1 << 20) + b"{}",
        b"[" + b"[]," * 300_000 + b"1]",
    ],
    ids=range(13),
)
def test_a_manifest_that_is_none(capture: Path, text: bytes) -> None:
    (capture / "manifest.json").write_bytes(text)
    refused(capture)


def changes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path] if path else []
    for key, part in items if isinstance(value, dict | list) else ():
        found += changes(part, (*path, key)) if isinstance(part, dict | list) else [(*path, key)]
    return found


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_change_of_the_manifest(pristine: Path, tmp_path: Path, data: st.DataObject) -> None:
    shutil.copytree(pristine, tmp_path / "capture", dirs_exist_ok=True)
    value = manifest(pristine)
    *place, last = data.draw(st.sampled_from(changes(value)))
    parent = value
    for key in place:
        parent = parent[key]
    odd = [None, -1, 0, 1, 2**52, 2**52 + 1, 2**63, 2**70, 10**400, 1e308, float("nan"), True]
    if data.draw(st.booleans()):
        del parent[last]
    else:
        parent[last] = data.draw(
            st.sampled_from([*odd, "", "x", "../../etc/passwd", "x" * 9999, [], {}, [[]], {"a": 1}])
        )
    write_manifest(tmp_path / "capture", value)
    read_all(tmp_path / "capture")


@pytest.mark.parametrize(
    "place",
    [
        ("counts", "frames"),
        ("counts", "pfn_end"),
        ("counts", "extents"),
        ("counts", "facts"),
        ("counts", "cgroups"),
        ("files", "extents.parquet", "rows"),
        ("files", "facts.parquet", "rows"),
        ("files", "mappings.parquet", "rows"),
        ("files", "mappings.parquet", "size_bytes"),
        ("scan", "threads"),
        ("scan", "frames_changed"),
        ("time_unix_s",),
    ],
)
def test_absurd_numbers_are_refused_at_open(capture: Path, place: tuple[str, ...]) -> None:
    value = manifest(capture)
    *path, last = place
    parent = value
    for key in path:
        parent = parent[key]
    for number in (99999999999999999999, -1, 1 << 52, 10**400):
        parent[last] = number
        write_manifest(capture, value)
        with pytest.raises(CaptureError) as caught:
            Capture(capture).verify()
        assert_clear(caught.value)
        if place != ("counts", "pfn_end"):
            with pytest.raises(CaptureError):
                Capture(capture)


def test_counts_that_are_off_by_one_are_refused(capture: Path) -> None:
    good = manifest(capture)
    for name in good["counts"]:
        for step in (-1, 1):
            value = {**good, "counts": {**good["counts"], name: good["counts"][name] + step}}
            write_manifest(capture, value)
            with pytest.raises(CaptureError):
                Capture(capture)
    frames = good["counts"]["frames"] + 1
    write_manifest(
        capture, {**good, "counts": {**good["counts"], "frames": frames, "pfn_end": frames}}
    )
    with pytest.raises(CaptureError):
        Capture(capture).verify()


@pytest.mark.parametrize("what", ["files", "columns"])
def test_what_is_visible_is_what_is_there(capture: Path, what: str) -> None:
    good = manifest(capture)
    for listed in ([], None, [*good["visible"][what], "x"], [[]], good["visible"][what][1:]):
        write_manifest(capture, {**good, "visible": {**good["visible"], what: listed}})
        with pytest.raises(CaptureError):
            Capture(capture)


def test_files_have_fixed_names(capture: Path) -> None:
    good = manifest(capture)
    for name in ("../outside.parquet", "/etc/passwd", "manifest.json", "other.parquet", "a/b"):
        value = {**good, "files": dict(good["files"])}
        value["files"][name] = value["files"].pop("facts.parquet", {})
        write_manifest(capture, value)
        assert "no capture has" in str(refused(capture))


# --- files -------------------------------------------------------------------------------


def tables(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.name != "manifest.json")


def test_a_missing_file(pristine: Path, tmp_path: Path) -> None:
    for name in tables(pristine):
        copy = Path(shutil.copytree(pristine, tmp_path / name))
        (copy / name).unlink()
        error = refused(copy)
        assert name in error.path
        assert "missing" in error.hint
        with pytest.raises(CaptureError, match=name):
            Capture(copy)


def test_a_capture_that_may_not_be_read_says_so(
    capture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any, **_options: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CaptureError, match="Permission denied") as caught:
        Capture(capture)
    assert "root" in caught.value.hint
    assert "directory with" not in caught.value.hint


# --- totals ------------------------------------------------------------------------------


def test_totals_may_be_missing(capture: Path) -> None:
    expected = Capture(capture).totals().pages
    without_totals(capture)
    old = Capture(capture)
    assert np.array_equal(old.totals().pages, expected)
    old.verify()


def forge_totals(path: Path, batch: Mapping[str, Any]) -> None:
    rows = len(batch["fact"])
    data = table_bytes(path.parent / "forged", TABLE_COLUMNS["totals"], batch)
    forge(path, "totals.parquet", data, rows=rows)


@pytest.mark.parametrize(
    "change", ["more", "negative", "fact", "region", "no zero", "twice", "none"]
)
def test_totals_that_cannot_be(capture: Path, change: str) -> None:
    with (capture / "totals.parquet").open("rb") as file:
        batch = {
            name: np.array(values)
            for name, values in next(read_batches(file, TABLE_COLUMNS["totals"])).items()
        }
    match change:
        case "more":
            batch["frames"][0] += 1
        case "negative":
            batch["frames"][0] = -5
        case "fact":
            batch["fact"][0] = 60_000
        case "region":
            batch["pfn_start"][-1] = 1 << 51
        case "no zero":
            batch["pfn_start"] += 1
        case "twice":
            batch = {name: np.concatenate([values, values]) for name, values in batch.items()}
        case _:
            batch = {name: values[:0] for name, values in batch.items()}
    forge_totals(capture, batch)
    for ask in (Capture.totals, Capture.verify):
        with pytest.raises(CaptureError) as caught:
            ask(Capture(capture))
        assert "totals" in caught.value.path


def test_totals_are_held_against_the_extents(capture: Path) -> None:
    with (capture / "totals.parquet").open("rb") as file:
        columns = next(read_batches(file, TABLE_COLUMNS["totals"]))
        batch = {name: np.array(values) for name, values in columns.items()}
    batch["frames"][0] += 1
    batch["frames"][1] -= 1  # another fact of the same region: every sum still holds
    forge_totals(capture, batch)
    for ask in (Capture.verify, Capture.map):
        with pytest.raises(CaptureError, match="not those of the extents"):
            ask(Capture(capture))


def test_borders_that_this_version_draws_elsewhere_are_counted_anew(capture: Path) -> None:
    value = json.loads((capture / "machine.json").read_text())
    value["iomem"] = [{"phys_start": 0, "phys_end": (1000 << 12) - 1, "name": "System RAM"}]
    before = Capture(capture).totals().pages
    forge(capture, "machine.json", json.dumps(value).encode())
    after = Capture(capture)
    assert len(after.totals().pages) != len(before)
    assert np.array_equal(after.totals().pages, after.map().totals.pages)
    assert np.array_equal(after.totals().pages.sum(axis=0), before.sum(axis=0))
    after.verify()


def test_a_truncated_or_longer_file(pristine: Path, tmp_path: Path) -> None:
    for name in tables(pristine):
        data = (pristine / name).read_bytes()
        copy = Path(shutil.copytree(pristine, tmp_path / name))
        for damaged in (b"", data[:-1], data[: len(data) // 2], data + b"\0"):
            (copy / name).write_bytes(damaged)
            assert "bytes" in str(refused(copy))


def link_outside(path: Path) -> None:
    moved = path.parent.parent / "moved"
    shutil.move(path, moved)
    path.symlink_to(moved)


def hard_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


@pytest.mark.parametrize(
    "trick",
    [
        link_outside,
        hard_place(lambda path: path.symlink_to("/dev/zero")),
        hard_place(lambda path: path.symlink_to(path.name)),
        hard_place(lambda path: path.mkdir()),
        hard_place(os.mkfifo),
    ],
    ids=["link", "link to a device", "link to itself", "folder", "pipe"],
)
@pytest.mark.parametrize("name", ["manifest.json", "machine.json", "extents.parquet"])
def test_only_regular_files_are_opened(
    capture: Path, name: str, trick: Callable[[Path], None]
) -> None:
    trick(capture / name)
    assert name in str(refused(capture))


def test_other_files_are_left_alone(capture: Path) -> None:
    (capture / "README.md").write_text("mine")
    (capture / "more.parquet").symlink_to("/dev/zero")
    assert not isinstance(read_all(capture), CaptureError)


# --- tables ------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("change", ["missing", "extra", "renamed", "order", "type", "text"])
def test_columns_are_exactly_those(capture: Path, change: str, declared: bool) -> None:
    batch: dict[str, Any] = extents(capture)
    columns = dict(TABLE_COLUMNS["extents"])
    match change:
        case "missing":
            del columns["nr_pages"]
        case "extra":
            columns["pid"], batch["pid"] = "int64", batch["pfn_start"]
        case "renamed":
            columns["length"], batch["length"] = columns.pop("nr_pages"), batch["nr_pages"]
        case "order":
            columns["nr_pages"] = columns.pop("nr_pages")
        case "type":
            columns["fact"] = "int32"
        case "text":
            columns["fact"], batch["fact"] = "string", [str(code) for code in batch["fact"]]
    forge_extents(capture, {name: batch[name] for name in columns}, columns)
    if not declared:
        value = manifest(capture)
        value["files"]["extents.parquet"]["columns"] = dict(TABLE_COLUMNS["extents"])
        write_manifest(capture, value)
    if change == "order":  # columns are found by name
        assert not isinstance(read_all(capture), CaptureError)
    else:
        assert "column" in str(refused(capture))


def test_nulls_are_refused(capture: Path) -> None:
    fields, arrays = [], []
    types = {"int64": DataType.int64(), "uint16": DataType.uint16(), "uint32": DataType.uint32()}
    for name, kind in TABLE_COLUMNS["extents"].items():
        values: list[int | None] = extents(capture)[name].tolist()
        values[1] = None
        fields.append(Field(name, types[kind], nullable=True))
        arrays.append(Array(values, type=types[kind]))
    out = io.BytesIO()
    write_parquet(RecordBatch.from_arrays(arrays, schema=Schema(fields)), out)
    forge(capture, "extents.parquet", out.getvalue())
    refused(capture)


def gap(rows: dict[str, Any]) -> None:
    rows["pfn_start"][5:] += 1


def overlap(rows: dict[str, Any]) -> None:
    rows["nr_pages"][3] += 1


def falling(rows: dict[str, Any]) -> None:
    rows["pfn_start"][[3, 4]] = rows["pfn_start"][[4, 3]]


def empty_extent(rows: dict[str, Any]) -> None:
    rows["nr_pages"][0] = 0


def negative(rows: dict[str, Any]) -> None:
    rows["nr_pages"][0], rows["pfn_start"][0] = rows["nr_pages"][0] + 5, -5


def late_start(rows: dict[str, Any]) -> None:
    rows["pfn_start"][0] += 1
    rows["nr_pages"][0] -= 1


def early_end(rows: dict[str, Any]) -> None:
    for name in rows:
        rows[name] = rows[name][:-1]


def late_end(rows: dict[str, Any]) -> None:
    rows["nr_pages"][-1] += 1


def overflow(rows: dict[str, Any]) -> None:
    rows["nr_pages"][:] = 2**62
    rows["pfn_start"] = np.arange(rows["nr_pages"].size, dtype=np.uint64).astype(np.int64) << 62


def unknown_fact(rows: dict[str, Any]) -> None:
    rows["fact"][7] = 60_000


def unknown_cgroup(rows: dict[str, Any]) -> None:
    rows["cgroup"][7] = 2**32 - 1


@pytest.mark.parametrize(
    "damage",
    [
        gap,
        overlap,
        falling,
        empty_extent,
        negative,
        late_start,
        early_end,
        late_end,
        overflow,
        unknown_fact,
        unknown_cgroup,
    ],
)
def test_extents_that_make_no_map(capture: Path, damage: Callable[[dict[str, Any]], None]) -> None:
    rows = {name: np.array(values) for name, values in extents(capture).items()}
    damage(rows)
    forge_extents(capture, rows)
    assert "extents" in refused(capture).path
    without_totals(capture)
    for ask in (Capture.totals, Capture.map, Capture.verify):
        with pytest.raises(CaptureError):
            ask(Capture(capture))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("type", "gold"),
        ("type", ""),
        ("type", "anon|"),
        ("rule", "because"),
        ("certainty", "sure"),
        ("fact", 3),
    ],
)
def test_facts_that_do_not_exist(capture: Path, column: str, value: Any) -> None:
    with (capture / "facts.parquet").open("rb") as file:
        rows: dict[str, Any] = {
            name: list(values)
            for name, values in next(read_batches(file, TABLE_COLUMNS["facts"])).items()
        }
    rows[column][0] = value
    data = table_bytes(capture.parent / "forged", TABLE_COLUMNS["facts"], rows)
    forge(capture, "facts.parquet", data)
    assert "facts" in refused(capture).path


@pytest.mark.parametrize(
    "change",
    [
        {"processes": {"pid": [1, 1]}},
        {"vmas": {"process": [0, 1, 7]}},
        {"vmas": {"start": [4096, 8192, 1]}},
        {"mappings": {"vma": [0, 1, 99]}},
        {"mappings": {"nr_pages": [1, 2, -4]}},
    ],
)
def test_processes_that_make_no_sense(capture: Path, change: Any) -> None:
    ((table, columns),) = change.items()
    kinds = manifest(capture)["files"][f"{table}.parquet"]["columns"]
    with (capture / f"{table}.parquet").open("rb") as file:
        rows = next(read_batches(file, kinds))
    data = table_bytes(capture.parent / "forged", kinds, {**rows, **columns})
    forge(capture, f"{table}.parquet", data)
    assert isinstance(Capture(capture).map(), MemoryMap)
    refused(capture)


def test_a_machine_that_makes_no_sense(capture: Path) -> None:
    good = json.loads((capture / "machine.json").read_text())
    zone = good["zones"][0]
    for change in (
        {"zones": [zone] * 2000},
        {"zones": [{**zone, "pfn_start": 2**63}]},
        {"iomem": [{"phys_start": 5, "phys_end": 1, "name": "x"}]},
        {"iomem": [{"phys_start": 1, "phys_end": 5, "name": "x"}] * 5000},
        {"time_unix_s": 1e999},
        {"time_unix_s": 10**400},
        {"hostname": "\ud800"},
        {"section_pages": 3},
        {"cgroups": {"-1": "x"}},
        {"release": "\0" * 100_000},
    ):
        forge(capture, "machine.json", json.dumps({**good, **change}).encode())
        assert "machine" in refused(capture).path, change


# --- bombs -------------------------------------------------------------------------------

READ_SMALL = """
import resource, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from captures import read_all
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
answer = read_all(Path({path!r}))
assert isinstance(answer, Exception), answer
print(answer)
"""


def refused_in_little_memory(path: Path) -> str:
    """Read in a process that may not have more than 1 GiB of address space."""
    code = READ_SMALL.format(paths=[entry for entry in sys.path if entry], path=str(path))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def parquet(columns: Mapping[str, Any], **options: Any) -> bytes:
    arrays = [
        Array(values, type=DataType.utf8())
        if isinstance(values, list)
        else Array.from_numpy(np.asarray(values))
        for values in columns.values()
    ]
    fields = [
        Field(name, array.type, nullable=False) for name, array in zip(columns, arrays, strict=True)
    ]
    out = io.BytesIO()
    batch = RecordBatch.from_arrays(arrays, schema=Schema(fields))
    write_parquet(batch, out, compression="zstd(3)", skip_arrow_metadata=True, **options)
    return out.getvalue()


def test_a_page_that_decompresses_without_end(capture: Path) -> None:
    count = 1 << 24
    zeros = {name: np.zeros(count, kind) for name, kind in TABLE_COLUMNS["extents"].items()}
    data = parquet(
        zeros,
        dictionary_enabled=False,
        encoding="plain",
        data_page_size_limit=1 << 30,
        data_page_row_count_limit=1 << 30,
        write_batch_size=1 << 30,
        max_row_group_size=1 << 30,
    )
    assert len(data) < 100_000
    forge(capture, "extents.parquet", data, rows=count)
    value = manifest(capture)
    value["counts"] |= {"extents": count, "pfn_end": count, "frames": count}
    write_manifest(capture, value)
    assert "data is damaged" in refused_in_little_memory(capture)


def test_more_rows_than_a_map_can_have(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 1_000_000
    rows = {name: np.zeros(count, kind) for name, kind in TABLE_COLUMNS["extents"].items()}
    rows["pfn_start"] = np.arange(count)
    rows["nr_pages"] += 1
    forge_extents(capture, rows)
    value = manifest(capture)
    value["counts"] |= {"pfn_end": count, "frames": count}
    write_manifest(capture, value)
    without_totals(capture)
    assert not isinstance(read_all(capture), CaptureError)
    monkeypatch.setattr(capture_read, "_MAX_ROWS_ALWAYS", count - 1)
    monkeypatch.setattr(capture_read, "_MAX_ROWS_PER_BYTE", 2)
    assert "cannot be a map" in str(refused(capture))


def test_a_text_that_is_repeated_without_end(capture: Path) -> None:
    count = 200
    rows = {
        "cgroup": np.arange(count, dtype=np.uint32),
        "inode": np.arange(count, dtype=np.uint64),
        "path": ["x" * 1_000_000] * count,
    }
    data = parquet(rows, dictionary_page_size_limit=1 << 24)
    assert len(data) < 200_000
    forge(capture, "cgroups.parquet", data, rows=count)
    value = manifest(capture)
    value["counts"]["cgroups"] = count
    write_manifest(capture, value)
    assert "data is damaged" in refused_in_little_memory(capture)


def test_more_text_than_anybody_needs(capture: Path) -> None:
    count = 300
    rows = {
        "cgroup": np.arange(count, dtype=np.uint32),
        "inode": np.arange(count, dtype=np.uint64),
        "path": ["x" * 1_000_000] * count,
    }
    data = parquet(rows, dictionary_enabled=False)
    forge(capture, "cgroups.parquet", data, rows=count)
    value = manifest(capture)
    value["counts"]["cgroups"] = count
    write_manifest(capture, value)
    assert "data is damaged" in refused_in_little_memory(capture)


def test_json_that_grows(capture: Path) -> None:
    good = json.loads((capture / "machine.json").read_text())
    text = json.dumps(good)[:-1] + ', "x": [' + "[]," * 20_000_000 + "1]}"
    forge(capture, "machine.json", text.encode())
    assert "too" in refused_in_little_memory(capture)


def test_counts_that_would_fill_memory(capture: Path) -> None:
    value = manifest(capture)
    value["counts"] |= {"extents": 2**45, "pfn_end": 2**50, "frames": 2**50}
    value["files"]["extents.parquet"]["rows"] = 2**45
    write_manifest(capture, value)
    assert "rows" in refused_in_little_memory(capture)


# --- random damage -----------------------------------------------------------------------


@st.composite
def damages(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with a few bytes changed, cut out or put in; or cut short."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(result) - 1)))
        match draw(st.integers(0, 3)):
            case 0 if result:
                result[place] ^= 1 << draw(st.integers(0, 7))
            case 1 if result:
                result[place] = draw(st.integers(0, 255))
            case 2:
                del result[place : place + draw(st.integers(1, 20))]
            case _:
                result[place:place] = draw(st.binary(min_size=1, max_size=8))
    return bytes(result[: draw(st.integers(0, len(result)))] if draw(st.booleans()) else result)


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_accidental_damage_is_always_seen(
    pristine: Path, tmp_path: Path, data: st.DataObject
) -> None:
    copy = Path(shutil.copytree(pristine, tmp_path / "capture", dirs_exist_ok=True))
    name = data.draw(st.sampled_from(tables(pristine)))
    before = (pristine / name).read_bytes()
    after = data.draw(damages(before))
    (copy / name).write_bytes(after)
    assert isinstance(read_all(copy), CaptureError) == (after != before)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_forged_damage_is_refused_or_a_map(
    pristine: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Size and hash agree with the damage: the checks behind them stand alone."""
    copy = Path(shutil.copytree(pristine, tmp_path / "capture", dirs_exist_ok=True))
    name = data.draw(st.sampled_from(tables(pristine)))
    forge(copy, name, data.draw(damages((pristine / name).read_bytes())))
    read_all(copy)


def payloads(data: bytes) -> list[int]:
    """Offsets in a Parquet file made of uncompressed pages: everything before its footer."""
    return list(range(4, len(data) - 8 - int.from_bytes(data[-8:-4], "little")))


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_damage_that_the_compression_does_not_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    """Some of it makes arro3 abort: only the child that decodes may die of that, in silence."""
    columns = {"page": "int64", "nr_pages": "int64", "fact": "uint16", "name": "string"}
    rows = {
        "page": np.arange(40) ** 2,
        "nr_pages": np.arange(40) % 3,
        "fact": np.arange(40) % 5,
        "name": [f"name {number}" for number in range(40)],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_tables, "_COMPRESSION", "uncompressed")
        good = table_bytes(tmp_path / "table", columns, rows)
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.sampled_from(payloads(good)))] = data.draw(
            st.sampled_from([0, 1, 127, 128, 255])
        )
    (tmp_path / "table").write_bytes(changed)
    with (tmp_path / "table").open("rb") as file, suppress(CaptureError):
        for batch in decoded(file, columns, max_text_bytes=1 << 20):
            assert set(batch) == set(columns)
    assert capsys.readouterr().err == ""


def test_a_decoder_that_hangs_is_ended(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_args: Any) -> Iterator[Any]:
        time.sleep(1000)
        yield {}

    monkeypatch.setattr(decoder, "read_batches", hang)
    monkeypatch.setattr(decoder, "_PATIENCE_MS", 50)
    assert "does not come to an end" in str(refused(capture))


@pytest.mark.parametrize("end", ["kill", "memory", "error"])
def test_a_decoder_that_dies_is_one_error(
    capture: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    def die(*_args: Any) -> Iterator[Any]:
        match end:
            case "kill":
                os.kill(os.getpid(), signal.SIGABRT)
            case "memory":
                bytearray(1 << 30)
            case _:
                raise ValueError
        yield {}

    monkeypatch.setattr(decoder, "read_batches", die)
    assert "data" in str(refused(capture))


def test_threads_may_read(capture: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(read_all, [capture] * 12))
    assert not any(isinstance(answer, CaptureError) for answer in answers)


def test_no_child_is_left_behind(capture: Path) -> None:
    before = children()  # a guest of other tests may run
    batches = Capture(capture)._files.batches("extents")
    next(batches)
    assert len(children() - before) == 1
    del batches
    Capture(capture).window(5)
    assert children() == before


def children() -> set[int]:
    """Child processes of every thread, those that nobody waited for among them."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for each in lists for pid in each.read_text().split()}


def test_batches_are_bounded(tmp_path: Path) -> None:
    rows = 3 * BATCH_ROWS
    data = table_bytes(tmp_path / "table", {"x": "int64"}, {"x": np.arange(rows)})
    with io.BytesIO(data) as file:
        sizes = [len(batch["x"]) for batch in read_batches(file, {"x": "int64"})]
    assert max(sizes) <= BATCH_ROWS
    assert sum(sizes) == rows

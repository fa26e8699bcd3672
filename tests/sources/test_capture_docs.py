"""The statements in docs/captures.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from captures import attribution, world

from memdesc.sources.capture_format import ATTRIBUTION_TABLES, TABLE_COLUMNS
from memdesc.sources.capture_write import write_capture
from memdesc.sources.source import RawSource

PAGE = (Path(__file__).parents[2] / "docs/captures.md").read_text()
STATEMENTS = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two captures of a machine, and a fleet of two machines of which one shows less."""
    base = tmp_path_factory.mktemp("docs")
    for name, seed in (("before.memdesc", 1), ("after.memdesc", 2), ("fleet/host=web-1", 3)):
        (base / name).parent.mkdir(exist_ok=True)
        source = world(base / f"world-{seed}", 40_000, seed)
        write_capture(base / name, source.scan(), attribution=attribution())
    raw = RawSource(base / "world-3/proc/kpageflags", release="6.12.1")
    write_capture(base / "fleet/host=web-2", raw.scan())
    return base


def test_there_are_statements() -> None:
    assert len(STATEMENTS) > 5


@pytest.mark.parametrize("number", range(len(STATEMENTS)))
def test_statements_run(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed: pip install duckdb")
    monkeypatch.chdir(folder)
    rows = duckdb.sql(STATEMENTS[number]).fetchall()
    assert rows


def test_the_polars_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("polars", reason="polars is not installed: pip install polars")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(folder)
    exec(code, {})


def test_every_column_is_described() -> None:
    for table, columns in TABLE_COLUMNS.items():
        section = PAGE.split(f"### {table}.parquet")[1].split("\n###")[0]
        for name, kind in columns.items():
            shown = "text" if kind == "string" else kind
            assert f"| `{name}` | {shown} |" in section, (table, name)
    for table in ATTRIBUTION_TABLES:
        for name in attribution().to_tables()[table]:
            assert f"`{name}`" in PAGE.split("### processes.parquet")[1], (table, name)

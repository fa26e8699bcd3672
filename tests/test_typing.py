"""Misuse of the vocabulary is rejected by two type checkers, line by line.

Every wrong line in typing_tests/ ends in `# E: <kind>`.  Each checker must report
exactly those lines, each with an error of that kind, and nothing else: a line that
passes is a hole in the types, a line too many is a false alarm.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TYPING_TESTS = ROOT / "typing_tests"

Report = set[tuple[str, int, str]]
"""File name, line, kind of error."""

KIND_OF = {
    "mypy": {
        "attr-defined": "attribute",
        "union-attr": "attribute",
        "arg-type": "argument",
        "return-value": "return",
        "operator": "operand",
        "misc": "frozen",
    },
    "pyrefly": {
        "missing-attribute": "attribute",
        "bad-argument-type": "argument",
        "bad-return": "return",
        "unsupported-operation": "operand",
        "read-only": "frozen",
    },
}


def files() -> list[Path]:
    return sorted(TYPING_TESTS.glob("*.py"))


def expected() -> Report:
    marker = re.compile(r"# E: (\w+)$")
    return {
        (path.name, number, found[1])
        for path in files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (found := marker.search(line))
    }


def run(command: list[str]) -> str:
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src"), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    # Both exit with 1 when they have something to report; everything above is a failure to run.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(scratch: Path) -> Report:
    pytest.importorskip("mypy", reason="mypy is not installed: pip install mypy")
    config = scratch / "mypy.ini"
    config.write_text("[mypy]\n", encoding="utf-8")
    options = ["--strict", "--explicit-package-bases", "--output", "json"]
    options += ["--follow-imports", "silent"]  # errors of memdesc itself are another check's
    options += ["--config-file", str(config), "--cache-dir", str(scratch / "cache")]
    lines = run([sys.executable, "-m", "mypy", *options, *map(str, files())]).splitlines()
    errors = [json.loads(line) for line in lines if line.startswith("{")]
    return {
        (Path(each["file"]).name, each["line"], KIND_OF["mypy"].get(each["code"], each["code"]))
        for each in errors
        if each["severity"] == "error"
    }


def pyrefly(scratch: Path) -> Report:
    beside_python = Path(sys.executable).parent / "pyrefly"
    binary = str(beside_python) if beside_python.exists() else shutil.which("pyrefly")
    if binary is None:
        pytest.skip("pyrefly is not installed: pip install pyrefly")
    config = scratch / "pyrefly.toml"
    config.write_text(f'search-path = ["{ROOT / "src"}"]\n', encoding="utf-8")
    options = ["--config", str(config), "--output-format", "json"]
    errors = json.loads(run([binary, "check", *options, *map(str, files())]))["errors"]
    return {
        (Path(each["path"]).name, each["line"], KIND_OF["pyrefly"].get(each["name"], each["name"]))
        for each in errors
        if each["severity"] == "error"
    }


@pytest.mark.parametrize("check", [mypy, pyrefly])
def test_exactly_the_marked_lines_are_rejected(
    check: Callable[[Path], Report], tmp_path: Path
) -> None:
    reported = check(tmp_path)
    missed = sorted(expected() - reported)
    unexpected = sorted(reported - expected())
    assert not missed, f"{check.__name__} lets these wrong lines pass: {missed}"
    assert not unexpected, f"{check.__name__} rejects these lines: {unexpected}"


def test_the_wrong_lines_cover_every_promise() -> None:
    """The list that the design names: none of these may lose its last example."""
    text = {path.name: path.read_text(encoding="utf-8") for path in files()}
    assert "return page.mapping  # E: attribute" in text["misuse_page.py"]
    assert "return slab.mapping  # E: attribute" in text["misuse_page.py"]
    assert "index.page(address)  # E: argument" in text["misuse_numbers.py"]
    assert "index.page(4096)  # E: argument" in text["misuse_numbers.py"]
    assert "assert_never(descriptor)  # E: argument" in text["misuse_match.py"]
    assert "# E: frozen" in text["misuse_facts.py"]
    assert "# E:" not in text["good_use.py"]

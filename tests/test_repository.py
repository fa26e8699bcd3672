"""Rules of this repository that a test keeps, so that no reviewer has to."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src/memdesc").rglob("*.py"))


def test_imports_run_one_way() -> None:
    command = Path(sys.executable).parent / "lint-imports"
    if not command.exists():
        pytest.skip("import-linter is not installed: pip install --group dev")
    result = subprocess.run([command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_answers(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_only_kernels_compares_releases() -> None:
    compare = re.compile(r"(\.(major|minor|patch)\)?|version|release)\s*(<=?|>=?|==)\s*[\w(]")
    guilty = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        if "kernels" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if compare.search(line)
    ]
    assert not guilty


def test_importing_the_package_loads_nothing_heavy() -> None:
    probe = (
        "import sys, memdesc, memdesc.cli; memdesc.cli.help_text(); "
        "print([m for m in ('numpy','rich','arro3','jinja2','duckdb') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_public_surface_is_complete_and_sorted() -> None:
    import memdesc

    assert memdesc.__all__ == sorted(memdesc.__all__)
    assert set(memdesc._HOME) == set(memdesc.__all__) - {"__version__"}
    for name in memdesc.__all__:
        assert getattr(memdesc, name) is not None


def test_every_command_has_help_with_examples() -> None:
    import importlib

    from memdesc.cli import COMMANDS

    for name in COMMANDS:
        module = importlib.import_module(f"memdesc.cli.{name}")
        assert module.DESCRIPTION, name
        assert f"memdesc {name}" in module.EXAMPLES or name == "overview", name

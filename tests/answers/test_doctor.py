"""The doctor works where nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest
import worlds

from memdesc.answers.doctor import doctor


def test_an_empty_root_is_ill_and_every_gap_has_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    answer = doctor(tmp_path)
    assert not answer.is_well
    for check in answer.checks:
        assert check.costs
        assert check.state == "ok" or check.remedy, check


def test_a_readable_tree_is_well(tmp_path: Path) -> None:
    worlds.tree(tmp_path, [0] * 8)
    answer = doctor(tmp_path)
    assert answer.is_well
    assert answer.release == "7.2.13"


@pytest.mark.parametrize(
    ("release", "trap"),
    [
        ("6.1.192", "false MMAP"),
        ("6.12.117", "KSM is set on every anonymous page"),
        ("6.18.44", "holes and device memory read 0"),
    ],
)
def test_the_traps_of_a_kernel_are_named(tmp_path: Path, release: str, trap: str) -> None:
    worlds.tree(tmp_path, [0] * 8, release=release)
    assert any(trap in text for text in doctor(tmp_path).traps)

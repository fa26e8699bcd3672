"""`memdesc doctor --compare`: the two ways of seeing this machine must agree."""

from __future__ import annotations

import json

import pytest

from memdesc.cli import main
from memdesc.structs.live import why_not


@pytest.mark.live
def test_struct_pages_and_proc_agree(capsys: pytest.CaptureFixture[str]) -> None:
    if reason := why_not():
        pytest.skip(f"struct pages cannot be read here: {reason}")
    assert main(["doctor", "--compare", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == "memdesc-agreement/1"
    assert value["share"] >= 0.999
    assert value["frames_equal"] + value["frames_changed"] <= value["frames"]
    lru = next(row for row in value["rows"] if row["name"] == "LRU")
    assert lru["both"] > 0

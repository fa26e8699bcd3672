"""Every JSON answer begins with the same keys, whatever the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memdesc.cli import COMMANDS, main

SOURCE = "bundled:debian-7.2"
WITHOUT_ROWS = {"capture", "report"}
CALLS: list[list[str]] = [
    ["overview"],
    ["ledger"],
    *(["ledger", "--by", by] for by in ("zone", "node", "cgroup", "order", "flags")),
    ["what", "0x1000", "0xfffffffff"],
    ["who"],
    ["who", "0x8100"],
    ["who", "--files"],
    ["who", "--charged"],
    ["who", "--pid", "1"],
    ["failure"],
    *(["failure", "--by", by] for by in ("zone", "cgroup", "process", "file", "range")),
    ["failure", "0x8100", "0x14000"],
    ["move", "0x8100", "zone:DMA32", "block:1", "0x1000-0x2000"],
    ["blocks"],
    ["blocks", "--size", "1G", "--without", "slab", "--without", "0x8100"],
    ["savings"],
    *(["savings", "--by", by, "--design", "32"] for by in ("zone", "node", "cgroup")),
    ["diff", SOURCE, SOURCE],
    ["doctor"],
    ["doctor", "--flags"],
    ["capture", "--verify", "CAPTURE"],
    ["model", "replay", "TRACE"],
    ["scenario", "list", "SCENARIOS"],
    ["vm", "list"],
    ["matrix"],
    ["matrix", "--kernel", "6.12", "--source", "vmcore"],
]


@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_the_envelope(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import memdesc

    bundled = str(Path(memdesc.__file__).parent / "captures" / "debian-7.2")
    trace = str(Path(__file__).parent.parent / "data" / "traces" / "7.2-steps.npz")
    page = str(Path(__file__).parents[2] / "docs/scenarios.md")
    places = {"CAPTURE": bundled, "TRACE": trace, "SCENARIOS": page}
    given = [places.get(word, word) for word in words]
    takes_source = words[0] not in ("diff", "doctor", "model", "scenario", "vm", "matrix")
    main([*given, "--json", *(["--source", SOURCE] if takes_source else [])])
    value = json.loads(capsys.readouterr().out)
    assert list(value)[:3] == ["schema", "kernel", "source"]
    assert value["schema"].startswith("memdesc-")
    assert value["kernel"] is None or value["kernel"][0].isdecimal()
    named = {"doctor": "live", "vm": "vm", "matrix": "checks"}
    named |= {"diff": given[-1], "capture": given[-1], "model": given[-1], "scenario": given[-1]}
    assert value["source"] == named.get(words[0], SOURCE)
    assert isinstance(value["notes"], list)
    assert ("rows" in value) == (words[0] not in WITHOUT_ROWS)
    if words[0] not in ("doctor", "capture", "scenario", "vm", "matrix"):
        assert value["kernel"].startswith("7.2")
    for row in value.get("rows", []):
        assert "schema" not in row
        assert [key for key, item in row.items() if item in ("", "unknown")] == []


def test_every_command_is_called() -> None:
    assert {words[0] for words in CALLS} | {"report"} == set(COMMANDS)


def test_a_recorded_capture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = tmp_path / "flags.bin"
    flags.write_bytes(bytes(8 * 64))
    words = ["capture", "--source", str(flags), "--output", str(tmp_path / "c"), "--json"]
    assert main(words) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert value["schema"].startswith("memdesc-capture/")
    assert value["kernel"] is None
    assert value["source"] == str(flags)
    assert value["notes"] == []


def test_owners_are_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--json", "--source", SOURCE])
    owners = json.loads(capsys.readouterr().out)["owners"]
    assert all(isinstance(o["objects_active"], int) for o in owners if o["kind"] == "slab cache")

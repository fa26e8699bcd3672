"""From a recorded tree to a capture that ships."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
import worlds
from tools.bundle import bundle, main, recorded_machine

from memdesc.sources.capture import Capture


def recorded(folder: Path) -> Path:
    worlds.tree(
        folder,
        [0x400, 0x868, 0x868, 0],
        cgroups=[0, 7, 8, 0],
        files={
            "proc/meminfo.before": "MemTotal: 3 kB\n",
            "proc/vmstat.before": "nr_free_pages 9\n",
            "proc/version": "Linux version 6.1.0-9-amd64 (nobody@nowhere) #1 SMP\n",
        },
    )
    os.utime(folder / "proc/kpageflags", (1_700_000_000, 1_700_000_000))
    return folder


def test_a_tree_becomes_a_capture(tmp_path: Path) -> None:
    info = bundle(recorded(tmp_path / "tree"), "debian-0.1", tmp_path / "captures")
    capture = Capture(tmp_path / "captures/debian-0.1")
    capture.verify()
    assert capture.info == info
    assert capture.info.time_unix_s == 1_700_000_000
    assert capture.machine.hostname == "testhost"
    assert capture.machine.before.meminfo == {"MemTotal": 3 << 10}
    assert capture.machine.after.meminfo == {"MemTotal": 1 << 10}
    assert capture.machine.cgroups == {7: "/web", 8: "/db"}
    assert not info.has_attribution
    assert stat.S_IMODE(capture.path.stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in capture.path.iterdir()} == {0o644}
    bundle(tmp_path / "tree", "debian-0.1", tmp_path / "captures")


def test_the_release_may_come_from_the_version(tmp_path: Path) -> None:
    tree = recorded(tmp_path / "tree")
    (tree / "proc/sys/kernel/osrelease").unlink()
    assert recorded_machine(tree).release.text == "6.1.0-9-amd64"


def test_names_are_plain(tmp_path: Path) -> None:
    for name in ("../x", "", "a/b", ".hidden", "UPPER"):
        with pytest.raises(SystemExit):
            bundle(tmp_path, name, tmp_path)


def test_a_bad_tree_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "proc").mkdir()
    monkeypatch.setattr(sys, "argv", ["bundle", str(tmp_path), "x", "--output", str(tmp_path)])
    (tmp_path / "proc/kpageflags").write_bytes(b"123")
    assert main() == 2
    assert capsys.readouterr().err.startswith("error: ")

"""Scenario files as they lie on a disk: what cannot be read or replaced is said, and stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memdesc.errors import NotReadableError
from memdesc.scenarios.reader import read_file
from memdesc.scenarios.scenario import ScenarioError
from memdesc.scenarios.source import MOST_BYTES, file_to_write, read_source, write_source

BLOCK = "```scenario\nprocess p\n```\n"


def test_bytes_that_are_no_text_are_said_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "bytes.md"
    path.write_bytes(b"```scenario\nprocess p # caf\xe9\n```\n")
    with pytest.raises(ScenarioError, match=r"bytes\.md:2: not UTF-8 text: byte 0xe9") as found:
        read_file(path)
    assert "iconv" in found.value.hint


def test_a_file_that_is_too_long_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.md"
    path.write_text(BLOCK)
    with path.open("r+") as file:
        file.truncate(1 << 40)
    with pytest.raises(ScenarioError, match=r"long\.md:1: too long") as found:
        read_file(path)
    assert f"{MOST_BYTES >> 20} MiB" in found.value.hint


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotReadableError, match="Is a directory") as found:
        read_source(tmp_path)
    assert found.value.hint


def test_a_mark_of_byte_order_is_kept_and_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "marked.md"
    path.write_bytes(b"\xef\xbb\xbf# Title\r\n" + BLOCK.replace("\n", "\r\n").encode())
    (scenario,) = read_file(path)
    assert scenario.title == "Title"
    text = read_source(path)
    write_source(path, text)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf# Title\r\n```scenario\r\n")


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("old")
    path.chmod(0o640)
    write_source(path, "new\n")
    assert path.read_text() == "new\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.md", tmp_path / "link.md"
    real.write_text("old")
    link.symlink_to("real.md")
    write_source(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link, tmp_path):
        with pytest.raises(NotReadableError, match="no regular file") as found:
            write_source(path, "new")
        assert "save the scenarios to a file first" in found.value.hint
    assert pipe.is_fifo()
    assert link.is_symlink()
    with pytest.raises(NotReadableError, match="No such file"):
        file_to_write(tmp_path / "absent.md")
    assert sorted(tmp_path.iterdir()) == [link, pipe]


def test_a_folder_that_is_not_writable_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.md"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(NotReadableError, match="Permission denied"):
        write_source(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

"""The monitor: commands, the events between them, and a QEMU that refuses, hangs or ends."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from memdesc.errors import VmError
from memdesc.vm.qmp import Event, Qmp, QmpClosedError

Answers = list[list[dict[str, Any]]]
"""For each command, the messages that QEMU sends."""


@contextmanager
def monitor(answers: Answers) -> Iterator[tuple[Qmp, list[dict[str, Any]]]]:
    """A monitor that is connected to a QEMU which says `answers`; and what it was asked."""
    ours, theirs = socket.socketpair()
    asked: list[dict[str, Any]] = []

    def qemu() -> None:
        # A monitor that has given up does not take what is still said to it.
        with suppress(OSError), theirs, theirs.makefile("rw") as file:
            print(json.dumps({"QMP": {"version": {}}}), file=file, flush=True)
            for messages in [[{"return": {}}], *answers]:
                asked.append(json.loads(file.readline()))
                for message in messages:
                    print(json.dumps(message), file=file, flush=True)

    thread = threading.Thread(target=qemu)
    thread.start()
    with ours:
        yield Qmp(ours), asked
    thread.join(5)


def test_events_between_a_command_and_its_result_are_kept() -> None:
    reset = {"event": "RESET", "data": {"guest": True}}
    with monitor([[reset, {"return": {"running": True}}]]) as (qmp, asked):
        assert qmp.command("query-status") == {"running": True}
    assert list(qmp.events) == [Event("RESET", {"guest": True})]
    assert [message["execute"] for message in asked] == ["qmp_capabilities", "query-status"]


def test_arguments_have_hyphens_as_qemu_spells_them() -> None:
    with monitor([[{"return": ""}]]) as (qmp, asked):
        qmp.human("savevm a")
    assert asked[-1]["arguments"] == {"command-line": "savevm a"}


def test_a_refusal_has_the_words_of_qemu() -> None:
    refusal = {"error": {"class": "GenericError", "desc": "no such device"}}
    with monitor([[refusal]]) as (qmp, _), pytest.raises(VmError, match="no such device"):
        qmp.command("device_del", id="x")


def test_the_human_monitor_says_something_only_when_it_fails() -> None:
    said = {"return": "Error: no block device can store vmstate\r\n"}
    with monitor([[said]]) as (qmp, _), pytest.raises(VmError, match=r"savevm: .*vmstate"):
        qmp.human("savevm a")


def test_a_command_that_hangs_ends_in_time() -> None:
    with monitor([[], [{"return": {}}]]) as (qmp, _):
        with pytest.raises(VmError, match="did not answer stop within 0 s"):
            qmp.command("stop", seconds=0.2)
        qmp.connection.sendall(b'{"execute": "go-on"}\n')


def test_a_qemu_that_ended_is_said_to_have_ended() -> None:
    with monitor([]) as (qmp, _), pytest.raises(QmpClosedError):
        qmp.command("stop")

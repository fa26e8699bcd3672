"""Host and init talk: tokens keep a request of another moment from being carried out."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

from memdesc.vm.channel import Channel, Watch
from memdesc.vm.port import Port


class Gone(Exception):
    pass


def gone() -> NoReturn:
    raise Gone("gone")


def silent() -> NoReturn:
    raise Gone("silent")


@contextmanager
def connected() -> Iterator[tuple[Channel, list[dict[str, Any]]]]:
    """A channel to an init that echoes; and the requests that the init carried out."""
    ours, theirs = socket.socketpair()
    monitor, _qemu = socket.socketpair()
    done: list[dict[str, Any]] = []

    def guest() -> None:
        port = Port(theirs.fileno())
        try:
            while True:
                request = port.request()
                done.append(request)
                if "hold" in request:
                    port.hold(request["hold"])
                port.answer(request, b"\n" * request.get("size", 0))
        except (EOFError, ConnectionError):
            pass

    thread = threading.Thread(target=guest)
    thread.start()
    with monitor, _qemu, theirs:
        with ours:
            yield Channel(ours, Watch(monitor, lambda: None, gone, silent)), done
            ours.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        assert not thread.is_alive()


def test_large_answers_and_requests_arrive_whole() -> None:
    with connected() as (channel, _):
        channel.wake()
        text = "x" * 3_000_000
        value, data = channel.ask({"text": text, "size": 2_000_000}, 10)
        assert value["text"] == text
        assert data == b"\n" * 2_000_000


def test_a_request_on_its_way_to_a_parked_guest_is_dropped() -> None:
    """What `loadvm` does: the guest is parked again, and old requests still arrive."""
    with connected() as (channel, done):
        channel.wake()
        old = channel._token
        channel.park()
        channel._send(b'Q %s 1 {"do": "poison"}\nQ %s 2 {"do"' % (old, old))  # and half of one
        channel.wake()
        assert channel.ask({"do": "look"}, 10)[0] == {"do": "look"}
        assert done == [{"do": "look"}]


def test_what_the_guest_said_before_it_woke_is_forgotten() -> None:
    with connected() as (channel, _):
        channel._received += b"A 1 200 0\nhalf of an ans"
        channel.wake()
        assert channel.ask({"n": 1}, 10)[0] == {"n": 1}


def test_the_guest_holds_until_the_host_has_looked() -> None:
    with connected() as (channel, _):
        channel.wake()
        names: list[str] = []
        channel.ask({"hold": "recorded"}, 10, on_hold=names.append)
        assert names == ["recorded"]
        assert channel.ask({"n": 2}, 10)[0] == {"n": 2}


def test_a_silent_guest_and_a_guest_that_is_gone() -> None:
    ours, theirs = socket.socketpair()
    monitor, qemu = socket.socketpair()
    with ours, monitor, qemu:
        channel = Channel(ours, Watch(monitor, lambda: None, gone, silent))
        with pytest.raises(Gone, match="silent"):
            channel.ask({}, 0.1)
        theirs.close()
        with pytest.raises(Gone, match="gone"):
            channel.ask({}, 5)


def test_the_port_takes_lines_in_pieces() -> None:
    reading, writing = os.pipe()
    port = Port(reading)
    port.token = b"t"
    for piece in (b"noise\nQ t ", b'7 {"a"', b": 1}\nQ u 8 {}\n"):
        os.write(writing, piece)
    assert port.request() == {"a": 1}
    assert port.number == 7
    os.close(writing)
    with pytest.raises(EOFError):
        port.request()
    os.close(reading)

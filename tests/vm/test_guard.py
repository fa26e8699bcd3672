"""Nothing that harms a machine runs outside a guest."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

import memdesc
from memdesc.vm import init, inject, port
from memdesc.vm.guard import GUEST_WORD, NotAGuestError, inside_guest
from memdesc.vm.workload import calls, stage

SOURCES = sorted(Path(memdesc.__file__).parent.rglob("*.py"))

HARMFUL: dict[str, Callable[[], object]] = {
    "hard_offline": lambda: inject.hard_offline(0),
    "soft_offline": lambda: inject.soft_offline(0),
    "restart": calls.restart,
    "mount": lambda: calls.mount("tmpfs", "/nowhere", "tmpfs"),
    "swapon": lambda: calls.swapon("/dev/null", 0),
    "make_swap": lambda: calls.make_swap("/dev/null", 1),
    "plant": stage.plant,
    "record": lambda: stage.record("/dev/null"),
    "play": lambda: stage.play("monitor"),
    "init": init.main,
    "hold": lambda: port.hold("here"),
}


def test_this_machine_is_no_guest() -> None:
    assert GUEST_WORD not in Path("/proc/cmdline").read_text().split()
    assert not inside_guest()


@pytest.mark.parametrize("name", HARMFUL)
def test_it_refuses_here_and_touches_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_args: object, **_kwargs: object) -> NoReturn:
        raise AssertionError(f"{name} went on")

    for module, function in ((os, "open"), (os, "fork"), (calls._libc, "mount")):
        monkeypatch.setattr(module, function, touched)
    for function in ("reboot", "swapon"):
        monkeypatch.setattr(calls._libc, function, touched)
    with pytest.raises(NotAGuestError, match="not a guest") as refused:
        HARMFUL[name]()
    assert GUEST_WORD in refused.value.hint


def test_only_one_module_can_poison_and_each_of_its_entrances_is_guarded() -> None:
    able = re.compile(r"(hard|soft|f\"\{how\})_offline_page\"|corrupt-pfn|MADV_HWPOISON *=")
    guilty = {path.name for path in SOURCES if able.search(path.read_text())}
    assert guilty == {"inject.py"}
    public = [getattr(inject, name) for name in inject.__all__ if name != "Injection"]
    assert all(hasattr(function, "__wrapped__") for function in public)

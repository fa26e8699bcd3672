"""Nothing that harms a machine runs outside a guest of ours.

A guest's kernel command line holds the word `memdesc.guest=1`, which `vm.qemu` puts there
and nothing else does.  Whatever poisons or offlines pages, changes settings or restarts the
machine asks here first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from memdesc.errors import VmError

__all__ = ["GUEST_WORD", "NotAGuestError", "inside_guest", "only_in_guest", "require_guest"]

GUEST_WORD = "memdesc.guest=1"
"""The word of the kernel command line that every guest of ours has, and nothing else."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


class NotAGuestError(VmError):
    """Something that only a guest may do was asked of a machine that is none."""


def inside_guest() -> bool:
    """Whether this process runs in a guest that `vm.guest` booted."""
    try:
        words = Path("/proc/cmdline").read_text().split()
    except OSError:
        return False
    return GUEST_WORD in words


def require_guest(what: str) -> None:
    """Raise NotAGuestError unless this process runs in a guest of ours."""
    if not inside_guest():
        raise NotAGuestError(
            f"refused to {what}: this machine is not a guest of memdesc",
            hint=f"it is done inside `memdesc vm run`, whose kernel was booted with {GUEST_WORD}",
        )


def only_in_guest(what: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make a function refuse to run outside a guest; `what` completes "refused to ..."."""

    def guarded(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            require_guest(what)
            return function(*args, **kwargs)

        return call

    return guarded

"""Places to run scenarios, by name: model:6.12, vm:6.12, here.

>>> parse_where("vm:6.12")
Where(kind='vm', series='6.12')
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from memdesc.errors import QuestionError
from memdesc.kernels.processes import is_modelled
from memdesc.kernels.release import KernelRelease
from memdesc.scenarios.reader import SERIES
from memdesc.scenarios.run import Runner

__all__ = ["Where", "model_of_here", "open_runner", "parse_where"]

_KINDS: Final = ("model", "vm", "here")


@dataclass(frozen=True, slots=True)
class Where:
    """One place."""

    kind: str
    series: str = ""
    """Of a model or guest."""

    def __str__(self) -> str:
        return self.kind if self.kind == "here" else f"{self.kind}:{self.series}"


def parse_where(text: str) -> Where:
    """Read model:6.12, vm:6.12 or here. Raises QuestionError."""
    kind, colon, series = text.partition(":")
    if text == "here":
        return Where("here")
    if kind in ("model", "vm") and colon and series in SERIES:
        return Where(kind, series)
    if kind in ("model", "vm") and colon:
        raise QuestionError(
            f"not a kernel that scenarios run on: {series[:40]!r}",
            hint=f"{kind} has: " + ", ".join(f"{kind}:{name}" for name in SERIES),
        )
    places = [*(f"{kind}:{name}" for kind in ("model", "vm") for name in SERIES), "here"]
    near = difflib.get_close_matches(text, places)
    if text in SERIES:
        near = [f"model:{text}", f"vm:{text}"]
    raise QuestionError(
        f"not a place for scenarios: {text[:40]!r}",
        hint=f"did you mean {' or '.join(near)}?" if near else "give model:6.12, vm:6.12 or here",
    )


def model_of_here() -> Where:
    """The model that this machine's own kernel is compared with: of the running release.

    One that is none of `SERIES` has the rules of the releases around it, and nobody has compared
    it yet. Raises QuestionError before 6.1.
    """
    release = KernelRelease.parse(os.uname().release)
    if not is_modelled(release):
        raise QuestionError(
            f"this machine runs {release}, and the model begins with 6.1",
            hint="run it alone: memdesc scenario run FILE --on here; or compare in guests",
        )
    return Where("model", f"{release.major}.{release.minor}.{release.patch}")


@contextmanager
def open_runner(where: Where) -> Iterator[Runner]:
    """A runner there, for any number of scenarios. Raises MemdescError."""
    # The model compiles when it is imported, and a guest needs QEMU: only where asked for.
    if where.kind == "model":
        from memdesc.scenarios.model_run import ModelRunner

        yield ModelRunner(where.series)
    elif where.kind == "vm":
        from memdesc.scenarios.kernel_run import VmRunner

        with VmRunner(where.series) as runner:
            yield runner
    else:
        from memdesc.scenarios.kernel_run import HereRunner

        yield HereRunner()

"""One source, two ways to run it: compiled by numba, or as plain Python.

A loop over frames takes its columns once as raw pointers and hands those to its helpers::

    @compiled
    def count_free(state: State, pfn_start: int, pfn_end: int) -> int:
        m = pointers(state)
        ...  # m.frame[pfn] reads, m.frame[pfn] = 0 writes

Pointers rather than arrays, because numba counts references of every array at every call of a
helper, which costs ten times what the work does.  A pointer's element is a Python `int` on one
side and an int64 on the other (uint64 where the column is uint64), so both do the same
arithmetic; there are no negative indices and no bounds.

With `MEMDESC_MODEL_COMPILED=0` in the environment nothing is compiled and numba is not
imported: `pointers` gives memory views, whose elements are Python integers and which do
check their bounds.  The results are the same.

What was compiled is kept in `$XDG_CACHE_HOME/memdesc/model` (else `~/.cache/...`), in a folder
named after a checksum of the module's source and of all of this package that it imports: numba
itself looks only at the one file.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

from numpy.typing import NDArray

__all__ = ["COMPILED", "Column", "array", "compiled", "helper", "hot", "keep_apart", "pointers"]

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=NamedTuple)

COMPILED = os.environ.get("MEMDESC_MODEL_COMPILED", "1") != "0"
"""Whether the model's loops are compiled in this process."""


class Column(Protocol):
    """A column of integers: an array where Python holds it, a pointer in compiled code."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


def array(column: Column) -> NDArray[Any]:
    """The numpy array that stands behind a column of a state that Python holds."""
    return cast("NDArray[Any]", column)


def _views(state: Any) -> Any:
    return type(state)(*(memoryview(column) for column in state))


if TYPE_CHECKING or not COMPILED:

    def compiled(function: F) -> F:
        """Compile a function that Python calls; its signature stays the same for type checkers."""
        return function

    def helper(function: F) -> F:
        """Compile a function that only compiled ones call: half the time, and nothing on disk."""
        return function

    def hot(function: F) -> F:
        """As `helper`, and put into every caller: for what runs at every operation."""
        return function

    def pointers(state: S) -> S:
        """Columns as pointers: same tuple type, same names. Takes C-contiguous columns."""
        return cast("S", _views(state))

    def keep_apart() -> None:
        """Said first in a helper that is large and rare: it is not copied into its callers."""

else:
    import numba

    from memdesc.model.pointers import keep_apart, pointers

    @functools.cache
    def _checksum(module: str) -> str:
        """Of the source of `module` and of all of memdesc that it imports by name."""
        source = Path(str(sys.modules[module].__file__)).read_bytes()
        whole = hashlib.sha256(source)
        for other in sorted(
            set(re.findall(rb"^from (memdesc[\w.]+) import", source, re.MULTILINE))
        ):
            if other.decode() in sys.modules:
                whole.update(_checksum(other.decode()).encode())
        return whole.hexdigest()[:16]

    def _cache_folder(module: str) -> str:
        root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return str(Path(root) / "memdesc" / "model" / _checksum(module))

    def compiled(function: F) -> F:
        """Compile `function` when it is first called, and keep the result on disk."""
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = _cache_folder(function.__module__)
        try:
            made = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
        except RuntimeError:  # nowhere to keep it
            made = numba.njit(nogil=True, error_model="numpy")(function)
        finally:
            numba.config.CACHE_DIR = before
        return cast("F", made)

    _INNER = {
        "nogil": True,
        "error_model": "numpy",
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
    }

    def helper(function: F) -> F:
        """Compile a function that only compiled ones call."""
        # Said, because a function compiled for a hot one would inherit its option.
        return cast("F", _once(numba.njit(forceinline=False, **_INNER)(function)))

    def hot(function: F) -> F:
        """As `helper`, and put into every caller."""
        return cast("F", _once(numba.njit(forceinline=True, **_INNER)(function)))

    def _once(made: Any) -> Any:
        """Keep numba from compiling a function anew for every constant that it is called with."""
        template = made.get_call_template

        def general(args: Any, kws: Any) -> Any:
            plain = tuple(numba.types.unliteral(arg) for arg in args)
            return template(plain, {k: numba.types.unliteral(arg) for k, arg in kws.items()})

        made.get_call_template = general
        return made

"""What counters prove: a kind that this kernel cannot have, or of which there is none."""

from __future__ import annotations

import pytest

from memdesc.rules.absent import absent_types
from memdesc.types import MemoryType

T = MemoryType
EVERYTHING = {"nr_free_pages": 9, "nr_zspages": 3, "nr_unaccepted": 1}
GUARD_PAGES = "debug_guardpage_minorder=1"


def absent(vmstat: dict[str, int], *, cmdline: str | None = GUARD_PAGES) -> set[MemoryType]:
    mask = absent_types(meminfo={}, vmstat=vmstat, cmdline=cmdline)
    return {kind for kind in MemoryType if mask & kind.bit}


def test_nothing_is_absent_that_is_counted() -> None:
    assert absent(EVERYTHING) == set()


@pytest.mark.parametrize(
    ("line", "kind"), [("nr_zspages", T.ZSMALLOC), ("nr_unaccepted", T.UNACCEPTED)]
)
def test_none_counted_and_no_counter_prove_the_same(line: str, kind: MemoryType) -> None:
    """The line is there exactly where the kernel was built to have the kind (6.1 of Debian has no
    nr_unaccepted)."""
    assert absent(EVERYTHING | {line: 0}) == {kind}
    assert absent({name: n for name, n in EVERYTHING.items() if name != line}) == {kind}


def test_a_vmstat_that_was_not_read_proves_nothing() -> None:
    assert absent({}) == set()


def test_guard_pages_are_asked_for_at_boot() -> None:
    assert absent(EVERYTHING, cmdline="quiet") == {T.GUARD}
    assert absent(EVERYTHING, cmdline=None) == set()

"""Releases between those that were read: where a change is believed to have come in."""

from __future__ import annotations

import pytest

from memdesc.kernels.memory_failure import failure_behaviour
from memdesc.kernels.migration import move_behaviour
from memdesc.kernels.release import KernelRelease


@pytest.mark.parametrize(
    ("release", "ksm", "rest"),
    [("6.1", False, False), ("6.6", True, False), ("6.11", True, True), ("7.2", True, True)],
)
def test_memory_failure_learnt_of_merged_pages_before_the_rest(
    release: str, ksm: bool, rest: bool
) -> None:
    behaviour = failure_behaviour(KernelRelease.parse(release))
    assert behaviour.ksm_is_handled is ksm
    assert behaviour.unsplit_is_failed is behaviour.repeats_verdict is rest
    assert behaviour.unhandlable_message == ("get hwpoison page" if rest else "unknown page")


@pytest.mark.parametrize(("release", "stays"), [("6.12", False), ("6.18", True), ("7.2", True)])
def test_migration_writes_nothing_out_since_writepage_went(release: str, stays: bool) -> None:
    assert move_behaviour(KernelRelease.parse(release)).dirty_without_op_stays is stays

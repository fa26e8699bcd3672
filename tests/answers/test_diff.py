"""What changed between two maps."""

from __future__ import annotations

from pathlib import Path

import worlds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memdesc.answers.diff import diff
from memdesc.kernels.kpageflags import word_of
from memdesc.sources.source import RawSource
from memdesc.types import MemoryType

FREE = word_of(["BUDDY"])
SLAB = word_of(["SLAB"])
TABLE = word_of(["PGTABLE"])


def test_frames_that_became_something_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before = worlds.raw_map(tmp_path / "a", [FREE, FREE, SLAB, TABLE])
    after = worlds.raw_map(tmp_path / "b", [FREE, SLAB, SLAB, SLAB])
    answer = diff(before, after)
    assert answer.transitions is not None
    moves = {(t.before.only, t.after.only): t.frames for t in answer.transitions}
    assert moves == {
        (MemoryType.FREE, MemoryType.SLAB): 1,
        (MemoryType.PAGE_TABLE, MemoryType.SLAB): 1,
    }
    assert answer.frames_same == 2
    assert answer.changes[0].types.only is MemoryType.SLAB
    assert answer.changes[0].frames_delta == 2


def test_machines_of_another_size_are_compared_by_type_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    answer = diff(
        worlds.raw_map(tmp_path / "a", [FREE]), worlds.raw_map(tmp_path / "b", [FREE, SLAB])
    )
    assert answer.transitions is None
    assert answer.why == "different numbers of frames: 1, 2"
    value = answer.to_json()
    assert value["comparable"] is False
    assert value["frames_same_type"] is None
    assert value["rows"][0]["size_bytes_after"] == 4096


def test_an_unknown_kernel_is_the_reason(tmp_path: Path) -> None:
    one = RawSource(worlds.write_words(tmp_path / "flags.bin", [FREE])).map()
    answer = diff(one, one, names=("a.bin", "live"))
    assert answer.why == "the kernels of a.bin and live are not known (--kernel)"
    other = worlds.raw_map(tmp_path, [FREE])
    assert diff(other, one).why == "the kernel of AFTER is not known (--kernel)"


WORDS = st.lists(st.sampled_from([FREE, SLAB, TABLE, 0]), min_size=8, max_size=8)


@given(before=WORDS, after=WORDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_transitions_explain_every_change(
    tmp_path: Path, before: list[int], after: list[int]
) -> None:
    for name, words in (("a", before), ("b", after)):
        (tmp_path / name).mkdir(exist_ok=True)
        worlds.write_words(tmp_path / name / "flags.bin", words)
    first = worlds.raw_map(tmp_path / "a", before)
    last = worlds.raw_map(tmp_path / "b", after)
    answer = diff(first, last)
    assert answer.transitions is not None
    assert answer.frames_same is not None
    assert answer.frames_same + sum(t.frames for t in answer.transitions) == 8
    for change in answer.changes:
        gained = sum(t.frames for t in answer.transitions if t.after == change.types)
        lost = sum(t.frames for t in answer.transitions if t.before == change.types)
        assert change.frames_delta == gained - lost

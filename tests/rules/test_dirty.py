"""Who is told when a page is dirtied: every type against the type table, every file system."""

from __future__ import annotations

import pytest

from memdesc.kernels.dirtying import dirty_callback
from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.kernels.type_table import TYPE_TABLE
from memdesc.rules.dirty import Dirtying, dirtied
from memdesc.rules.subject import Knowledge, Subject
from memdesc.types import Certainty, MemoryType

T = MemoryType
RELEASES = {"6.1": "6.1.192", "6.12": "6.12.117", "7.2": "7.2.13"}


def kernel(series: str) -> Knowledge:
    return Knowledge(behaviour_of(KernelRelease.parse(RELEASES[series])))


@pytest.mark.parametrize("series", RELEASES)
@pytest.mark.parametrize("kind", list(T), ids=lambda kind: kind.value)
def test_the_rule_says_what_the_type_table_says(kind: MemoryType, series: str) -> None:
    ruling = dirtied(Subject(kind, KPF(0)), kernel(series))
    assert ruling.outcomes[0].tells is TYPE_TABLE[kind].dirtying.value
    # Only of a file without a name nobody knows: ramfs has nobody to tell.
    assert (ruling.only is None) == (kind is T.FILE)


@pytest.mark.parametrize(
    ("file_system", "callbacks"),
    [
        ("ext4", ("ext4_dirty_folio", "ext4_dirty_folio", "ext4_dirty_folio")),
        ("xfs", ("filemap_dirty_folio", "iomap_dirty_folio", "iomap_dirty_folio")),
        ("btrfs", ("filemap_dirty_folio", "filemap_dirty_folio", "btrfs_data_dirty_folio")),
        ("fuse", ("filemap_dirty_folio", "filemap_dirty_folio", "iomap_dirty_folio")),
        ("exfat", ("block_dirty_folio", "block_dirty_folio", "iomap_dirty_folio")),
        ("ramfs", ("noop_dirty_folio", "noop_dirty_folio", "noop_dirty_folio")),
        ("squirrelfs", (None, None, None)),
    ],
)
def test_file_systems(file_system: str, callbacks: tuple[str | None, ...]) -> None:
    for series, callback in zip(RELEASES, callbacks, strict=True):
        assert dirty_callback(file_system, KernelRelease.parse(RELEASES[series])) == callback
        ruling = dirtied(Subject(T.FILE, KPF(0)), kernel(series), file_system=file_system)
        assert ruling.only is not None
        assert ruling.only.callback == (callback or "")
        told = callback != "noop_dirty_folio"
        assert ruling.only.tells is (Dirtying.FILE_SYSTEM if told else Dirtying.FLAG_ONLY)
        assert (ruling.certainty is Certainty.EXACT) == (callback is not None)


def test_the_swap_cache_answers_for_anonymous_memory() -> None:
    alone = dirtied(Subject(T.ANON, KPF.ANON), kernel("7.2")).only
    swapped = dirtied(Subject(T.ANON, KPF.ANON | KPF.SWAPCACHE), kernel("7.2")).only
    assert alone is not None
    assert swapped is not None
    assert (alone.callback, swapped.callback) == ("", "noop_dirty_folio")

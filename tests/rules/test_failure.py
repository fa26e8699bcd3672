"""What a failure does: every type against the type table, and what real kernels showed."""

from __future__ import annotations

from itertools import chain, combinations, product

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.kernels.type_cells import Verdict
from memdesc.kernels.type_table import LARGE_FOLIO, TYPE_TABLE
from memdesc.rules.failure import Consequence, HardOutcome, SoftOutcome, hard_failure, soft_offline
from memdesc.rules.subject import Knowledge, Ruling, Subject
from memdesc.types import Certainty, MemoryType

T = MemoryType
RELEASES = {"6.1": "6.1.192", "6.12": "6.12.117", "7.2": "7.2.13"}
LARGE = (T.ANON, T.FILE, T.SHMEM, T.SWAP_CACHE, T.KSM)
_FLAGS = (
    *(KPF.MMAP, KPF.DIRTY, KPF.UPTODATE, KPF.PRIVATE),
    *(KPF.UNEVICTABLE, KPF.MLOCKED, KPF.WRITEBACK),
)


def kernel(series: str, **sysctls: int) -> Knowledge:
    return Knowledge(
        behaviour_of(KernelRelease.parse(RELEASES[series])),
        {f"vm.{name}": value for name, value in sysctls.items()},
    )


def every_word() -> list[KPF]:
    """Every combination of the flags that the rule looks at, of a page on an LRU list."""
    subsets = chain.from_iterable(combinations(_FLAGS, size) for size in range(len(_FLAGS) + 1))
    words = []
    for flags in subsets:
        word = KPF.LRU
        for flag in flags:
            word |= flag
        words.append(word)
    return words


def verdicts(kind: MemoryType, series: str, *, order: int = 0) -> set[Verdict]:
    """Every verdict that the rule can give for `kind`."""
    mark = KPF.COMPOUND_HEAD if order else KPF(0)
    return {
        outcome.verdict
        for word, swapbacked, extra in product(every_word(), (True, False), (None, True, False))
        for outcome in hard_failure(
            Subject(
                kind,
                word | mark | (KPF.SWAPBACKED if swapbacked else KPF(0)),
                order,
                extra,
            ),
            kernel(series),
        ).outcomes
    }


def table_verdicts(kind: MemoryType, series: str) -> set[Verdict]:
    row = TYPE_TABLE[kind]
    cell = {"6.1": row.failure_6_1, "6.12": row.failure_6_12, "7.2": row.failure_7_2}[series]
    return set(cell.value)


@pytest.mark.parametrize("series", RELEASES)
@pytest.mark.parametrize("kind", list(T), ids=lambda kind: kind.value)
def test_the_rule_says_what_the_type_table_says(kind: MemoryType, series: str) -> None:
    expected = table_verdicts(kind, series)
    if expected == {Verdict.NO_SUCH_TYPE}:
        pytest.skip(f"{series} has no {kind.value}: the table has nothing to compare with")
    assert verdicts(kind, series) == expected


@pytest.mark.parametrize("series", RELEASES)
@pytest.mark.parametrize("kind", LARGE, ids=lambda kind: kind.value)
def test_large_folios_are_split_or_not(kind: MemoryType, series: str) -> None:
    cell = {
        "6.1": LARGE_FOLIO.failure_6_1,
        "6.12": LARGE_FOLIO.failure_6_12,
        "7.2": LARGE_FOLIO.failure_7_2,
    }[series]
    found = verdicts(kind, series, order=9)
    if kind is T.KSM and series == "6.1":
        assert found == {Verdict.IGNORED}
        return
    assert set(cell.value) <= found <= set(cell.value) | table_verdicts(kind, series)


@pytest.mark.parametrize("series", RELEASES)
@pytest.mark.parametrize("kind", list(T), ids=lambda kind: kind.value)
def test_soft_offline_never_kills_and_always_answers(kind: MemoryType, series: str) -> None:
    for word, extra in product(every_word(), (None, True, False)):
        ruling = soft_offline(Subject(kind, word, 0, extra), kernel(series))
        assert ruling.outcomes
        assert {out.errno for out in ruling.outcomes} <= {"ok", "EBUSY", "EIO", "ENXIO"}


# --- one frame at a time, as real kernels showed it ---------------------------------------

USED = KPF.UPTODATE | KPF.LRU | KPF.REFERENCED


def hard(series: str, kind: MemoryType, flags: KPF, **known: bool | int) -> Ruling[HardOutcome]:
    extra, order = known.get("extra"), known.get("order", 0)
    subject = Subject(kind, flags, order, None if extra is None else bool(extra))
    return hard_failure(subject, kernel(series))


def only(ruling: Ruling[HardOutcome]) -> HardOutcome:
    assert ruling.only is not None, ruling
    return ruling.only


@pytest.mark.parametrize("series", RELEASES)
def test_a_pinned_anonymous_page_is_recovered_all_the_same(series: str) -> None:
    anon = USED | KPF.ANON | KPF.SWAPBACKED | KPF.MMAP
    for extra in (True, False):
        outcome = only(hard(series, T.ANON, anon, extra=extra))
        assert (outcome.verdict, outcome.message) == (Verdict.RECOVERED, "dirty LRU page")
        assert outcome.on_hardware is Consequence.KILLED_ON_TOUCH
    # Nothing depends on the references, so /proc alone is enough.
    assert hard(series, T.ANON, anon).certainty is Certainty.EXACT


@pytest.mark.parametrize("series", RELEASES)
def test_a_lazily_freed_page_kills_on_touch_too(series: str) -> None:
    outcome = only(hard(series, T.ANON, USED | KPF.ANON | KPF.MMAP, extra=False))
    assert outcome.message == "clean LRU page"
    assert outcome.injected is Consequence.KILLED_ON_TOUCH


@pytest.mark.parametrize("series", RELEASES)
def test_clean_page_cache_is_read_again(series: str) -> None:
    outcome = only(hard(series, T.FILE, USED | KPF.MMAP, extra=False))
    assert (outcome.verdict, outcome.message) == (Verdict.RECOVERED, "clean LRU page")
    assert outcome.on_hardware is Consequence.NOTHING_LOST
    held = only(hard(series, T.FILE, USED, extra=True))
    assert (held.verdict, held.errno) == (Verdict.FAILED, "EBUSY")


@pytest.mark.parametrize("series", RELEASES)
def test_dirty_page_cache_is_lost(series: str) -> None:
    outcome = only(hard(series, T.FILE, USED | KPF.DIRTY, extra=False))
    assert outcome.message == "dirty LRU page"
    assert outcome.on_hardware is Consequence.CONTENT_LOST


def test_an_unsplit_huge_page() -> None:
    huge = USED | KPF.ANON | KPF.SWAPBACKED | KPF.MMAP | KPF.THP | KPF.COMPOUND_HEAD
    old = only(hard("6.1", T.ANON, huge, extra=True, order=9))
    assert (old.verdict, old.errno, old.message) == (Verdict.IGNORED, "EBUSY", "unsplit thp")
    for series in ("6.12", "7.2"):
        new = only(hard(series, T.ANON, huge, extra=True, order=9))
        assert (new.verdict, new.errno) == (Verdict.FAILED, "EHWPOISON")
        assert new.injected is Consequence.UNHANDLED
        assert only(hard(series, T.ANON, huge, extra=False, order=9)).verdict is Verdict.RECOVERED


def test_merged_pages_cannot_be_unmapped_by_6_1() -> None:
    merged = USED | KPF.ANON | KPF.KSM | KPF.SWAPBACKED | KPF.MMAP
    assert only(hard("6.1", T.KSM, merged)).message == "unmapping failed page"
    assert only(hard("6.12", T.KSM, merged)).verdict is Verdict.RECOVERED


@pytest.mark.parametrize("series", RELEASES)
def test_a_poisoned_page_table_is_ignored_and_fatal(series: str) -> None:
    outcome = only(hard(series, T.PAGE_TABLE, KPF.PGTABLE))
    assert outcome.verdict is Verdict.IGNORED
    assert outcome.injected is Consequence.UNHANDLED
    assert outcome.on_hardware is Consequence.MACHINE_LOST
    assert outcome.message == ("unknown page" if series == "6.1" else "get hwpoison page")


@pytest.mark.parametrize("series", RELEASES)
def test_a_file_in_memory_alone_cannot_be_dropped(series: str) -> None:
    """The pages of an initramfs: dirty, unevictable and not mlocked."""
    ramfs = USED | KPF.DIRTY | KPF.UNEVICTABLE
    outcome = only(hard(series, T.FILE, ramfs))
    assert (outcome.verdict, outcome.message) == (Verdict.FAILED, "dirty unevictable LRU page")
    assert only(hard(series, T.FILE, ramfs | KPF.MLOCKED, extra=False)).verdict is Verdict.RECOVERED


@pytest.mark.parametrize("series", RELEASES)
def test_swap_cache(series: str) -> None:
    swap = USED | KPF.ANON | KPF.SWAPBACKED | KPF.SWAPCACHE
    assert only(hard(series, T.SWAP_CACHE, swap, extra=False)).verdict is Verdict.RECOVERED
    late = only(hard(series, T.SWAP_CACHE, swap | KPF.DIRTY, extra=False))
    assert late.verdict is Verdict.DELAYED
    assert only(hard(series, T.SWAP_CACHE, swap, extra=True)).verdict is Verdict.FAILED


def test_early_kill_and_soft_offline_are_settings() -> None:
    anon = Subject(T.ANON, USED | KPF.ANON | KPF.SWAPBACKED | KPF.MMAP, 0, False)
    early = hard_failure(anon, kernel("7.2", memory_failure_early_kill=1)).only
    assert early is not None
    assert early.on_hardware is Consequence.KILLED_NOW
    off = {"enable_soft_offline": 0}
    assert [soft.errno for soft in soft_offline(anon, kernel("7.2", **off)).outcomes] == [
        "EOPNOTSUPP"
    ]
    # 6.1 does not have the switch.
    assert soft_offline(anon, kernel("6.1", **off)).only == SoftOutcome(
        "ok", "its content is moved to another frame"
    )


@pytest.mark.parametrize("series", RELEASES)
def test_poisoning_twice(series: str) -> None:
    outcome = only(hard(series, T.POISONED, KPF.HWPOISON))
    assert outcome.errno == "EHWPOISON"
    assert outcome.verdict is (Verdict.NO_VERDICT if series == "6.1" else Verdict.FAILED)
    assert soft_offline(Subject(T.POISONED, KPF.HWPOISON), kernel(series)).outcomes[0].errno == "ok"


def test_consequences_rise() -> None:
    assert [end.severity for end in Consequence] == list(range(len(Consequence)))

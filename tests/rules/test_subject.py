"""A column of facts gets what each of its rows would get alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.rules.dirty import dirtied
from memdesc.rules.failure import hard_failure, soft_offline
from memdesc.rules.move import by_compaction, by_offlining
from memdesc.rules.subject import Asker, Knowledge, Ruling, Subject, Subjects, ask, merged
from memdesc.types import KERNEL_UNKNOWN, Certainty, MemoryType, TypeSet

AnyRule = Callable[[Subject, Knowledge], Ruling[Any]]

RULES: list[AnyRule] = [hard_failure, soft_offline, by_compaction, by_offlining, dirtied]
RELEASES = ["6.1.192", "6.12.117", "7.2.13"]

masks = st.one_of(
    st.sampled_from([kind.bit for kind in MemoryType]),
    st.just(KERNEL_UNKNOWN.mask),
    st.lists(st.sampled_from(list(MemoryType)), min_size=1, max_size=4).map(
        lambda kinds: TypeSet.from_iterable(kinds).mask
    ),
)
words = st.lists(st.sampled_from(list(KPF)), max_size=6).map(
    lambda flags: sum(flag.value for flag in set(flags))
)
rows = st.lists(
    st.tuples(masks, words, st.integers(-1, 18), st.integers(-1, 1)), min_size=1, max_size=12
)
kernels = st.builds(
    lambda release, sysctls, reserved: Knowledge(
        behaviour_of(KernelRelease.parse(release)), sysctls, reserved
    ),
    st.sampled_from(RELEASES),
    st.dictionaries(
        st.sampled_from(
            [
                "vm.memory_failure_early_kill",
                "vm.enable_soft_offline",
                "vm.compact_unevictable_allowed",
            ]
        ),
        st.integers(0, 1),
    ),
    st.sampled_from([None, 0, 3]),
)


def alone(rule: AnyRule, row: tuple[int, int, int, int], kernel: Knowledge) -> Ruling[Any]:
    """The rule asked about one frame, by hand."""
    mask, word, order, extra = row
    return merged(
        [
            rule(
                Subject(
                    kind,
                    KPF(word),
                    None if order < 0 else order,
                    None if extra < 0 else bool(extra),
                ),
                kernel,
            )
            for kind in TypeSet(mask)
        ]
    )


@pytest.mark.parametrize("rule", RULES)
@given(rows=rows, kernel=kernels)
def test_a_column_is_its_rows(
    rule: AnyRule, rows: list[tuple[int, int, int, int]], kernel: Knowledge
) -> None:
    types, flags, orders, extra = (list(column) for column in zip(*rows, strict=True))
    answers = ask(
        rule,
        Subjects(
            np.array(types, np.uint64),
            np.array(flags, np.uint64),
            np.array(orders, np.int8),
            np.array(extra, np.int8),
        ),
        kernel,
    )
    asker = Asker(rule, np.array(types, np.uint64), np.array(flags, np.uint64), kernel)
    for _ in range(2):  # the second time from memory
        codes = asker.codes(
            np.arange(len(rows), dtype=np.uint16),
            np.array(orders, np.int8),
            np.array(extra, np.int8),
        )
    for index, row in enumerate(rows):
        expected = alone(rule, row, kernel)
        assert answers[index] == expected
        assert asker.rulings[int(codes[index])] == expected


@pytest.mark.parametrize("rule", RULES)
@given(rows=rows, kernel=kernels)
def test_a_union_has_what_its_members_have(
    rule: AnyRule, rows: list[tuple[int, int, int, int]], kernel: Knowledge
) -> None:
    for mask, word, order, extra in rows:
        whole = set(alone(rule, (mask, word, order, extra), kernel).outcomes)
        parts = [
            set(alone(rule, (kind.bit, word, order, extra), kernel).outcomes)
            for kind in TypeSet(mask)
        ]
        assert whole == set.union(*parts)


@pytest.mark.parametrize("rule", [hard_failure, soft_offline, by_compaction, by_offlining])
@given(rows=rows, kernel=kernels)
def test_not_knowing_never_excludes_what_is(
    rule: AnyRule, rows: list[tuple[int, int, int, int]], kernel: Knowledge
) -> None:
    """What is certain with reference counts is among the answers without them."""
    for mask, word, order, _ in rows:
        open_answer = set(alone(rule, (mask, word, order, -1), kernel).outcomes)
        for extra in (0, 1):
            assert set(alone(rule, (mask, word, order, extra), kernel).outcomes) <= open_answer


def test_no_union_is_exact() -> None:
    kernel = Knowledge(behaviour_of(KernelRelease.parse("7.2.13")))
    vmalloc_or_stack = TypeSet.of(MemoryType.VMALLOC, MemoryType.KERNEL_STACK).mask
    # Both are ignored, for the same reason: sure enough, but not what was seen.
    ruling = alone(by_offlining, (vmalloc_or_stack, 0, 0, -1), kernel)
    assert ruling.only is not None
    assert ruling.certainty is Certainty.INFERRED
    mixed = alone(by_offlining, (vmalloc_or_stack | MemoryType.FREE_PCP.bit, 0, 0, -1), kernel)
    assert mixed.only is None
    assert mixed.certainty is Certainty.NOT_VISIBLE


def test_bits_that_no_rule_asks_for_make_no_new_subjects() -> None:
    asked: list[Subject] = []

    def listen(subject: Subject, kernel: Knowledge) -> Ruling[str]:
        asked.append(subject)
        return Ruling(("heard",), Certainty.EXACT, "a test")

    flags = np.array([0, KPF.IDLE, KPF.ARCH, KPF.SOFTDIRTY], np.uint64)
    types = np.full(4, MemoryType.ANON.bit, np.uint64)
    kernel = Knowledge(behaviour_of(KernelRelease.parse("7.2.13")))
    assert ask(listen, Subjects(types, flags), kernel).codes.tolist() == [0, 0, 0, 0]
    asker = Asker(listen, types, flags, kernel)
    assert asker.codes(np.arange(4, dtype=np.uint16)).tolist() == [0, 0, 0, 0]
    assert len(asked) == 2

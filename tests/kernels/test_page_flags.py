"""Page flag numbers: an enum that shifts with release and configuration."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.errors import FormatError, QuestionError
from memdesc.kernels.page_flags import (
    DEBIAN_6_1,
    DEBIAN_6_12,
    DEBIAN_7_2,
    DEBIAN_FIELDS,
    GUEST_6_18,
    GUEST_6_18_FIELDS,
    FlagConfig,
    HighFields,
    page_flag_aliases,
    page_flag_bits,
)
from memdesc.kernels.release import UNKNOWN_RELEASE, KernelRelease

CONFIGS = st.builds(FlagConfig, **{each.name: st.booleans() for each in fields(FlagConfig)})
READ = st.sampled_from(["5.15", "6.1.192", "6.12.117", "6.18.44", "7.2.13", "7.3.4"])


def bits(release: str, config: FlagConfig) -> dict[str, int]:
    return dict(page_flag_bits(KernelRelease.parse(release), config))


@pytest.mark.parametrize(
    ("release", "config", "expected", "count"),
    [
        ("6.1.192", DEBIAN_6_1, {"uncached": 22, "hwpoison": 23, "arch_2": 24}, 25),
        ("6.12.117", DEBIAN_6_12, {"hwpoison": 20, "young": 21, "idle": 22, "arch_2": 23}, 24),
        ("7.2.13", DEBIAN_7_2, {"hwpoison": 21, "young": 22, "idle": 23, "arch_2": 24}, 25),
        ("6.18.44", GUEST_6_18, {"young": 21, "idle": 22, "arch_2": 23}, 24),
    ],
)
def test_built_kernels(
    release: str, config: FlagConfig, expected: dict[str, int], count: int
) -> None:
    """The numbers in the type information of four built kernels."""
    found = bits(release, config)
    assert {name: found[name] for name in expected} == expected
    assert len(found) == count


@pytest.mark.parametrize(
    ("flag", "in_6_1", "in_6_12", "in_7_2"),
    [
        ("locked", 0, 0, 0),
        ("referenced", 1, 2, 2),
        ("uptodate", 2, 3, 3),
        ("dirty", 3, 4, 4),
        ("lru", 4, 5, 5),
        ("active", 5, 8, 8),
        ("workingset", 6, 9, 9),
        ("waiters", 7, 7, 7),
        ("owner_priv_1", 10, 10, 10),
        ("arch_1", 11, 12, 12),
        ("reserved", 12, 13, 13),
        ("private", 13, 14, 14),
        ("private_2", 14, 15, 15),
        ("writeback", 15, 1, 1),
        ("head", 16, 6, 6),
        ("reclaim", 18, 16, 16),
        ("swapbacked", 19, 17, 17),
        ("unevictable", 20, 18, 18),
        ("mlocked", 21, 19, 20),
    ],
)
def test_what_moved(flag: str, in_6_1: int, in_6_12: int, in_7_2: int) -> None:
    assert bits("6.1.192", DEBIAN_6_1)[flag] == in_6_1
    assert bits("6.12.117", DEBIAN_6_12)[flag] == in_6_12
    assert bits("7.2.13", DEBIAN_7_2)[flag] == in_7_2


def test_what_came_and_went() -> None:
    old, new = bits("6.1", DEBIAN_6_1), bits("7.2", DEBIAN_7_2)
    assert (old["error"], old["slab"], old["mappedtodisk"]) == (8, 9, 17)
    assert not {"error", "slab", "mappedtodisk", "uncached"} & new.keys()
    assert (new["owner_2"], new["dropbehind"]) == (11, 19)


@given(READ, CONFIGS)
def test_numbers_are_an_enum_without_gaps(release: str, config: FlagConfig) -> None:
    found = bits(release, config)
    assert sorted(found.values()) == list(range(len(found)))


@given(READ, CONFIGS)
def test_hwpoison_exists_only_with_memory_failure(release: str, config: FlagConfig) -> None:
    assert ("hwpoison" in bits(release, config)) == config.memory_failure


@pytest.mark.parametrize("release", ["5.10", "6.2", "6.6.30", "6.11", "6.14", "6.17", "7.4"])
def test_releases_that_were_not_read_are_refused(release: str) -> None:
    with pytest.raises(QuestionError, match="not known") as refused:
        bits(release, FlagConfig())
    assert "debug information" in refused.value.hint


def test_no_release_is_refused_too() -> None:
    with pytest.raises(QuestionError, match="unknown"):
        page_flag_bits(UNKNOWN_RELEASE, FlagConfig())


@pytest.mark.parametrize(
    ("release", "name", "flag"),
    [
        ("6.1.192", "anon_exclusive", "mappedtodisk"),
        ("7.2.13", "anon_exclusive", "owner_2"),
        ("6.12.117", "reported", "uptodate"),
        ("7.2.13", "movable_ops", "uptodate"),
        ("6.1.192", "has_hwpoisoned", "error"),
        ("7.2.13", "has_hwpoisoned", "active"),
        ("7.2.13", "large_rmappable", "workingset"),
    ],
)
def test_second_meanings(release: str, name: str, flag: str) -> None:
    aliases = {each.name: each for each in page_flag_aliases(KernelRelease.parse(release))}
    assert aliases[name].flag == flag


@given(READ)
def test_every_alias_names_a_flag_that_exists(release: str) -> None:
    found = bits(release, FlagConfig())
    for alias in page_flag_aliases(KernelRelease.parse(release)):
        assert alias.flag in found, alias


def test_movable_ops_is_not_a_flag_before_it_was() -> None:
    names = {each.name for each in page_flag_aliases(KernelRelease.parse("6.12.117"))}
    assert "movable_ops" not in names


def test_fields_grow_down_from_bit_63() -> None:
    places = {
        name: (place.low, place.low + place.width - 1)
        for name, place in DEBIAN_FIELDS.positions().items()
    }
    assert places == {
        "node": (54, 63),
        "zone": (51, 53),
        "last_cpupid": (30, 50),
        "lru_gen": (27, 29),
        "lru_refs": (25, 26),
    }
    assert GUEST_6_18_FIELDS.positions()["last_cpupid"].low == 35


def test_the_debian_7_2_word_is_full() -> None:
    """Flags from below and fields from above meet: there is no spare bit."""
    lowest = min(place.low for place in DEBIAN_FIELDS.positions().values())
    assert lowest == len(bits("7.2.13", DEBIAN_7_2))


def test_a_field_is_read_out_of_the_word() -> None:
    places = DEBIAN_FIELDS.positions()
    word = 3 << 54 | 2 << 51 | 0x1F
    assert (places["node"].of(word), places["zone"].of(word)) == (3, 2)


def test_too_many_fields() -> None:
    with pytest.raises(FormatError):
        HighFields(section=40, node=20, zone=10).positions()

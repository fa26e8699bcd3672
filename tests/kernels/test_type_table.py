"""The type table: complete, sourced, and the same as the page that readers see."""

from __future__ import annotations

from pathlib import Path

import pytest

import memdesc.types as vocabulary
from memdesc.kernels.page_types import MEMORY_TYPES_OF, PageType
from memdesc.kernels.type_cells import (
    Answer,
    Cell,
    Dirtying,
    MovedBy,
    TypeFacts,
    UserMapping,
    Verdict,
    cell_names,
)
from memdesc.kernels.type_table import LARGE_FOLIO, TYPE_TABLE, UNIONS, render_markdown
from memdesc.kernels.type_titles import TITLES
from memdesc.plan import PLAN_TYPE
from memdesc.types import DEVICE, Certainty, MemoryType, TypeSet

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "types.md"
COMMAND = "python -m memdesc.kernels.type_table > docs/reference/types.md"

ALL = {**{kind.value: facts for kind, facts in TYPE_TABLE.items()}, "large folio": LARGE_FOLIO}


def test_every_memory_type_has_an_entry() -> None:
    assert set(TYPE_TABLE) == set(MemoryType)


@pytest.mark.parametrize("name", list(ALL))
def test_every_entry_has_every_cell_with_a_source(name: str) -> None:
    facts = ALL[name]
    assert facts.title
    assert facts.description.endswith(".")
    assert list(facts.cells()) == list(cell_names())
    for field, cell in facts.cells().items():
        assert isinstance(cell, Cell), field
        assert cell.text.strip(), f"{name}.{field} says nothing"
        assert cell.source.strip(), f"{name}.{field} has no source"
        assert cell.value is not None, f"{name}.{field} has no value"


@pytest.mark.parametrize("name", list(ALL))
def test_a_source_is_a_place_in_a_kernel_or_a_document(name: str) -> None:
    for field, cell in ALL[name].cells().items():
        places = ("@", "wiki", "guest", "6.1.192", "virt/kvm")
        assert any(each in cell.source for each in places), f"{name}.{field}: {cell.source}"


@pytest.mark.parametrize("name", list(ALL))
def test_no_text_breaks_the_page(name: str) -> None:
    for field, cell in ALL[name].cells().items():
        for text in (cell.text, cell.source):
            assert "|" not in text, f"{name}.{field}"
            assert "\n" not in text, f"{name}.{field}"
            assert "  " not in text, f"{name}.{field}: words were joined badly"


def test_every_type_has_its_title() -> None:
    assert {kind: facts.title for kind, facts in TYPE_TABLE.items()} == TITLES


def test_titles_are_different() -> None:
    titles = [facts.title for facts in ALL.values()]
    assert len(set(titles)) == len(titles)


# The cells agree with each other and with the other tables.


@pytest.mark.parametrize("kind", list(MemoryType))
def test_the_plan_column_is_the_plan(kind: MemoryType) -> None:
    assert TYPE_TABLE[kind].plan.value == PLAN_TYPE[kind]


@pytest.mark.parametrize("kind", list(MemoryType))
def test_a_page_type_belongs_to_its_memory_type(kind: MemoryType) -> None:
    for page_type in TYPE_TABLE[kind].page_type.value:
        assert kind in MEMORY_TYPES_OF[page_type]


def test_every_page_type_but_the_retired_one_is_used() -> None:
    used = {each for facts in TYPE_TABLE.values() for each in facts.page_type.value}
    assert used == set(PageType) - {PageType.KMEMCG}


def never_mapped(facts: TypeFacts) -> bool:
    return facts.user_mapping.value == (UserMapping.NEVER,)


@pytest.mark.parametrize("kind", list(MemoryType))
def test_what_users_never_map_is_not_counted_pinned_or_reached(kind: MemoryType) -> None:
    facts = TYPE_TABLE[kind]
    if never_mapped(facts):
        assert facts.mapcount.value is Answer.NO
        assert facts.pinnable.value is Answer.NO
        assert facts.gup.value is Answer.NO


@pytest.mark.parametrize("kind", list(MemoryType))
def test_typed_memory_is_never_dirtied_and_mostly_never_mapped(kind: MemoryType) -> None:
    """The type lies over the map count, so a typed page has none; hugetlb is a folio."""
    facts = TYPE_TABLE[kind]
    if facts.page_type.value and kind is not MemoryType.HUGETLB:
        assert never_mapped(facts)
        assert facts.dirtying.value is Dirtying.MUST_NOT


@pytest.mark.parametrize("kind", list(MemoryType))
def test_compaction_moves_what_is_on_the_lru(kind: MemoryType) -> None:
    """Secret and guest memory are the exceptions: on a list, but not to be touched."""
    facts = TYPE_TABLE[kind]
    exceptions = (MemoryType.SECRETMEM, MemoryType.GUEST_MEMFD)
    if facts.movable.value is MovedBy.LRU:
        assert facts.on_lru.value is Answer.YES
    if facts.on_lru.value is Answer.YES and kind not in exceptions:
        assert facts.movable.value is MovedBy.LRU


@pytest.mark.parametrize(
    ("kind", "moved_by"),
    [
        (MemoryType.ANON, MovedBy.LRU),
        (MemoryType.FILE, MovedBy.LRU),
        (MemoryType.HUGETLB, MovedBy.HUGETLB),
        (MemoryType.ZSMALLOC, MovedBy.MOVABLE_OPS),
        (MemoryType.BALLOON, MovedBy.MOVABLE_OPS),
        (MemoryType.SLAB, MovedBy.NEVER),
        (MemoryType.PAGE_TABLE, MovedBy.NEVER),
        (MemoryType.FREE, MovedBy.NOTHING),
        (MemoryType.DEVICE_PRIVATE, MovedBy.MIGRATE_VMA),
    ],
)
def test_what_can_move(kind: MemoryType, moved_by: MovedBy) -> None:
    assert TYPE_TABLE[kind].movable.value is moved_by


def test_only_page_cache_tells_a_file_system() -> None:
    told = {k for k, f in TYPE_TABLE.items() if f.dirtying.value is Dirtying.FILE_SYSTEM}
    assert told == {MemoryType.FILE}


@pytest.mark.parametrize(
    ("kind", "now", "in_6_1"),
    [
        (MemoryType.FREE, Verdict.RECOVERED, Verdict.RECOVERED),
        (MemoryType.ANON, Verdict.RECOVERED, Verdict.RECOVERED),
        (MemoryType.KSM, Verdict.RECOVERED, Verdict.IGNORED),
        (MemoryType.SLAB, Verdict.IGNORED, Verdict.IGNORED),
        (MemoryType.ZERO, Verdict.IGNORED, Verdict.IGNORED),
        (MemoryType.SECRETMEM, Verdict.FAILED, Verdict.FAILED),
        (MemoryType.DEVICE_PRIVATE, Verdict.FAILED, Verdict.FAILED),
        (MemoryType.POISONED, Verdict.FAILED, Verdict.NO_VERDICT),
        (MemoryType.GUEST_MEMFD, Verdict.FAILED, Verdict.NO_SUCH_TYPE),
    ],
)
def test_verdicts(kind: MemoryType, now: Verdict, in_6_1: Verdict) -> None:
    assert TYPE_TABLE[kind].failure_7_2.value == (now,)
    assert TYPE_TABLE[kind].failure_6_1.value == (in_6_1,)


def test_device_memory_is_not_on_the_lru_and_not_in_the_plan() -> None:
    for kind in DEVICE:
        assert TYPE_TABLE[kind].on_lru.value is Answer.NO
        assert str(TYPE_TABLE[kind].plan.value) == "not placed"


def test_inferences_are_marked() -> None:
    assert TYPE_TABLE[MemoryType.HUGETLB].plan.certainty is Certainty.INFERRED
    assert TYPE_TABLE[MemoryType.PAGE_FRAG].plan.certainty is Certainty.INFERRED
    assert TYPE_TABLE[MemoryType.DEFERRED].failure_7_2.certainty is Certainty.INFERRED


# The page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_markdown(), f"regenerate it: {COMMAND}"


def test_the_page_has_a_section_for_every_type() -> None:
    lines = render_markdown().splitlines()
    for name in ALL:
        assert lines.count(f"## {name}") == 1


def test_every_union_of_the_vocabulary_is_explained() -> None:
    """FREE_LIKE is a group to ask about, not an answer that a classifier gives."""
    public = {
        getattr(vocabulary, name)
        for name in vocabulary.__all__
        if isinstance(getattr(vocabulary, name), TypeSet) and name != "FREE_LIKE"
    }
    assert {union.kinds for union in UNIONS} == public
    assert all(union.why and union.helps for union in UNIONS)

"""The designs as data: they say what the plan says, and name what it does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from memdesc.errors import QuestionError
from memdesc.model import designs
from memdesc.model.designs import (
    DESCRIPTORS,
    DESIGNS,
    MEMDESC_8,
    OVERLAYS,
    PAGE_16,
    PAGE_32,
    STRUCT_PAGE,
    Basis,
    design_of,
)
from memdesc.plan import NEWEST, PLAN_TYPE, REVISIONS, InPlan, PlanKind
from memdesc.types import DEVICE, MemoryType

OF_PLAN = {
    PlanKind.MISC: None,
    PlanKind.BUDDY: None,
    PlanKind.FILE: "folio",
    PlanKind.ANON: "folio",
    PlanKind.KSM: "ksm",
    PlanKind.SLAB: "slab",
    PlanKind.BUMP: "bump",
    PlanKind.MOVABLE: "movable",
    PlanKind.PAGE_TABLE: "ptdesc",
    PlanKind.HWPOISON: "hwpoison",
    PlanKind.PERCPU: "pcpudesc",
    PlanKind.ACCTMEM: "acctmem",
    PlanKind.ZPDESC: "zpdesc",
    PlanKind.MANAGED: "mgdesc",
}


@pytest.mark.parametrize("kind", MemoryType, ids=lambda kind: kind.value)
def test_the_8_byte_design_is_the_newest_revision(kind: MemoryType) -> None:
    """Each type has the descriptors that its places in the plan lead to."""
    found = {spec and spec.name for spec in MEMDESC_8.descriptors(kind, 0, charged=None)}
    place = PLAN_TYPE[kind]
    if not isinstance(place, InPlan):
        expected: set[str | None] = {None, "folio"} if kind in DEVICE else {None}
    else:
        expected = {OF_PLAN[code.kind] for code in place.codes}
    # The plan names acctmem for any charged kernel page, and lists it for some types only.
    assert found - {"acctmem"} == expected - {"acctmem"}
    assert expected <= found
    assert MEMDESC_8.revision == NEWEST.id


def test_sizes_are_those_that_were_published() -> None:
    sizes = {spec.name: spec.size_bytes for spec in DESCRIPTORS if spec.basis is Basis.PLANNED}
    assert sizes == {"folio": 80, "slab": 64, "ptdesc": 64, "zpdesc": 32}
    assert all(spec.size_bytes % 16 == 0 for spec in DESCRIPTORS)
    assumed = {spec.name for spec in DESCRIPTORS if spec.basis is Basis.ASSUMED}
    assert assumed == {"ksm", "bump", "pcpudesc", "acctmem", "mgdesc", "movable", "hwpoison"}


def test_five_designs_from_the_largest_memory_map_to_the_smallest() -> None:
    assert [one.bytes_per_frame for one in DESIGNS.values()] == [64, 64, 32, 16, 8]
    assert [one.id for one in DESIGNS.values()] == ["2021", "today", "32", "16", "8"]
    for one in DESIGNS.values():
        assert one.date
        assert one.source
        assert one.allocates == bool(one.specs) == bool(one.revision)
        assert not one.revision or one.revision in REVISIONS


@pytest.mark.parametrize("one", [STRUCT_PAGE, OVERLAYS], ids=lambda one: one.id)
def test_todays_designs_allocate_nothing(one: designs.Design) -> None:
    assert {one.descriptor(kind, order) for kind in MemoryType for order in (0, 3)} == {None}


def test_what_the_smaller_page_still_holds_needs_no_descriptor() -> None:
    """Charges, per-CPU chunks and movable operations fit a page that keeps `private`."""
    kept = (MemoryType.PERCPU, MemoryType.ACCOUNTED, MemoryType.MOVABLE_OPS, MemoryType.POISONED)
    for kind in kept:
        assert PAGE_32.descriptor(kind, 0) is None
        assert PAGE_16.descriptor(kind, 0) is None
        assert MEMDESC_8.descriptor(kind, 0) is not None
    # Without a count in the page, a mapped driver page may need one elsewhere.
    assert PAGE_32.descriptors(MemoryType.DRIVER_MAPPED, 0) == (None,)
    assert PAGE_16.descriptors(MemoryType.DRIVER_MAPPED, 0) == (None, designs.MGDESC)


def test_an_unknown_design_is_refused() -> None:
    with pytest.raises(QuestionError) as error:
        design_of("12")
    assert "8" in error.value.hint


def test_designs_need_neither_numpy_nor_numba() -> None:
    probe = (
        "import sys, memdesc.model.designs, memdesc.model.cost; "
        "print([m for m in ('numpy', 'numba') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

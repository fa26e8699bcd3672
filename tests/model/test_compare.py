"""The same operations on every design."""

from __future__ import annotations

import json

import numpy as np
import pytest

from memdesc.cli import main
from memdesc.cli.model_compare import WORKLOADS as CLI_WORKLOADS
from memdesc.errors import QuestionError
from memdesc.model.check_slab import check_described
from memdesc.model.compare import Comparison, DesignRun, compare
from memdesc.model.compiled import array
from memdesc.model.cost import Mix, cost
from memdesc.model.described import DescribedMachine
from memdesc.model.designs import DESIGNS, MEMDESC_8
from memdesc.model.operations import ALLOC, FREE
from memdesc.model.workloads import WORKLOADS, workload
from memdesc.model.zones import Layout
from memdesc.types import MemoryType

MIB = 1 << 20
LAYOUT = Layout.pc(48 * MIB)


def compared(name: str, operations: int = 3000, fill: float = 0.8, **more: str) -> Comparison:
    rows = workload(name, memory_bytes=48 * MIB, operations=operations, fill=fill)
    return compare(rows, LAYOUT, **more)  # type: ignore[arg-type]


def by_id(found: Comparison) -> dict[str, DesignRun]:
    return {run.design.id: run for run in found.runs}


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_64_byte_designs_differ_in_nothing(name: str) -> None:
    runs = by_id(compared(name))
    then, now = runs["2021"], runs["today"]
    assert then.now == now.now
    assert then.lines == now.lines
    assert then.descriptor_allocs == now.descriptor_allocs == 0
    assert [run.design.id for run in runs.values()] == list(DESIGNS)


def test_smaller_pages_leave_more_memory_free_at_boot() -> None:
    runs = by_id(compared("slab"))
    free = [runs[name].free_bytes_at_boot for name in ("today", "32", "16", "8")]
    assert free == sorted(free)
    assert free[3] - free[0] == pytest.approx(48 * MIB * 56 // 4096, abs=4096)
    assert runs["8"].now.memmap_bytes * 8 == runs["today"].now.memmap_bytes


def test_single_pages_cost_more_lines_and_huge_pages_fewer() -> None:
    def lines(found: Comparison, design: str, operation: str) -> float:
        return next(x.lines for x in by_id(found)[design].lines if x.operation == operation)

    anon, thp = compared("anon"), compared("thp")
    assert lines(anon, "today", "allocate") == 1.0
    assert 2.9 < lines(anon, "8", "allocate") < 3.2
    assert lines(thp, "8", "allocate") < lines(thp, "today", "allocate") / 4
    assert lines(anon, "8", "look up") > lines(anon, "today", "look up")
    # Walking a pageblock by frame reads words, and then a descriptor for each folio.
    assert lines(anon, "8", "scan pageblock") < lines(anon, "today", "scan pageblock")
    assert lines(thp, "8", "scan pageblock") > lines(thp, "today", "scan pageblock")


def test_when_memory_is_short_a_design_fails_where_another_does_not() -> None:
    rows = workload("anon", memory_bytes=20 * MIB, operations=14_000, fill=1.3)
    runs = by_id(compare(rows, Layout.pc(20 * MIB), lines=False))
    then, today = runs["2021"], runs["today"]
    assert then.failed == today.failed > 0
    assert today.failed_only_here == today.failed_only_today == today.failed_for_descriptors == 0
    for name in ("32", "16", "8"):
        run = runs[name]
        # A smaller memory map leaves more frames; the descriptors of single pages take them.
        assert run.failed_only_here > 0
        assert run.failed_only_today > 0
        assert run.failed == today.failed + run.failed_only_here - run.failed_only_today


@pytest.mark.parametrize("design", DESIGNS.values(), ids=list(DESIGNS))
@pytest.mark.parametrize("name", WORKLOADS)
def test_after_a_workload_all_is_well_and_the_cost_of_the_mix_agrees(
    name: str, design: object
) -> None:
    machine = DescribedMachine(LAYOUT, design, "7.2")  # type: ignore[arg-type]
    rows = workload(name, memory_bytes=48 * MIB, operations=3000)
    batch = rows.on(machine)
    assert machine.slabs.run(batch) == len(rows)
    check_described(machine)
    mix: dict[tuple[MemoryType, int], int] = {}
    kinds = list(MemoryType)
    live: dict[int, tuple[MemoryType, int]] = {}
    for code, kind, order, _, handle, _ in rows.rows:
        if code == ALLOC:
            live[handle] = (kinds[kind], order)
        elif code == FREE:
            del live[handle]
    assert (array(batch.result)[array(batch.code) == ALLOC] >= 0).all()
    for key in live.values():
        mix[key] = mix.get(key, 0) + 1
    for slab in machine.slabs.slabinfo():
        key = (MemoryType.SLAB, slab.pagesperslab.bit_length() - 1)
        mix[key] = mix.get(key, 0) + slab.num_slabs
    expected = cost(machine.design, Mix.of({key: count for key, count in mix.items() if count}))
    assert machine.metadata().descriptor_bytes == expected.descriptor_bytes[0]


def test_a_traced_run_does_what_an_untraced_one_does() -> None:
    """The trace fills up many times on the way, and each time the batch goes on."""
    rows = workload("files", memory_bytes=48 * MIB, operations=2000)
    results = []
    for traced in (False, True):
        machine = DescribedMachine(LAYOUT, MEMDESC_8)
        batch = rows.on(machine)
        if traced:
            machine.slabs.trace(8192)
            at, times = 0, 0
            while at < len(rows):
                at = machine.slabs.run(batch, at)
                times += len(machine.slabs.take_trace()) > 0
            assert times > 1
        else:
            machine.slabs.run(batch)
        results.append(array(batch.result).copy())
    assert (results[0] == results[1]).all()
    with pytest.raises(QuestionError):
        DescribedMachine(LAYOUT, MEMDESC_8).slabs.trace(10)


def test_workloads_are_repeatable_and_refuse_what_they_cannot() -> None:
    one, other, third = (
        workload("anon", memory_bytes=48 * MIB, operations=500, seed=seed) for seed in (1, 1, 2)
    )
    assert one.rows == other.rows != third.rows
    assert len(one) >= 500
    with pytest.raises(QuestionError, match="no workload 'sap'"):
        workload("sap", memory_bytes=MIB, operations=500)
    with pytest.raises(QuestionError, match="at least 100"):
        workload("anon", memory_bytes=MIB, operations=5)


# --- the command -------------------------------------------------------------------------


def test_the_command_knows_every_workload() -> None:
    assert {name: one.text for name, one in WORKLOADS.items()} == CLI_WORKLOADS


def test_the_command_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = "model compare thp --memory 48 --operations 1000 --design 8 --design today --json"
    assert main(words.split()) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == "memdesc-model-compare/1"
    assert value["kernel"] == "6.12"
    assert [row["design"] for row in value["rows"]] == ["8", "today"]
    eight = value["rows"][0]
    assert eight["revision"] == "R6"
    now = eight["now"]
    assert now["slab_bytes"] == now["descriptor_bytes"] + now["unused_bytes"] + now["waste_bytes"]
    assert now["total_bytes"] == now["memmap_bytes"] + now["descriptor_bytes"]
    assert np.isclose(sum(each["count"] for each in eight["lines"]), value["operations"])


def test_the_command_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "compare", "tables", "--memory", "48", "--operations", "500"]) == 0
    out = capsys.readouterr().out
    for text in ("8-byte memdesc", "struct page, 2021", "cache lines of metadata", "spared"):
        assert text in out


@pytest.mark.parametrize(
    "words",
    [["nothing"], ["--memory", "1"], ["--operations", "x"], ["--cpus", "0"], ["--fill", "0"]],
)
def test_the_command_says_what_is_wrong(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "compare", *words]) == 2
    assert "error:" in capsys.readouterr().err

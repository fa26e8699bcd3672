"""Does the word of every frame say what the frame is, and does its descriptor agree?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from memdesc.model import slab_state as t
from memdesc.model.compiled import array
from memdesc.model.described import DescribedMachine
from memdesc.model.slab_frames import PLAIN, PLAIN_ORDER_SHIFT, PLAIN_REFS_SHIFT, PLAIN_TAIL
from memdesc.model.state import (
    FREE,
    HOLE,
    KIND_SHIFT,
    ORDER_MASK,
    PCP,
    RESERVED,
    USED,
    USED_MOVABLE,
)
from memdesc.plan import PlanKind

__all__ = ["check_words"]

_SLAB = int(PlanKind.SLAB)


def check_words(machine: DescribedMachine) -> list[str]:
    """Everything that is wrong with the words of a machine and what they lead to."""
    frame = array(machine.pages.state.frame)
    words = (array(machine.slabs.state.word) ^ t.FREE_WORD).tolist()
    found = list(_not_in_use(machine))
    check = _plain if not machine.design.allocates else _described
    led_to: dict[int, int] = {}
    heads = np.flatnonzero(np.isin(frame >> KIND_SHIFT << KIND_SHIFT, (USED, USED_MOVABLE)))
    for pfn in heads.tolist():
        found += check(machine, words, pfn, int(frame[pfn]) & ORDER_MASK, led_to)
    if machine.design.allocates:
        found += _leaks(machine, led_to)
    return found


def _not_in_use(machine: DescribedMachine) -> Iterator[str]:
    """Free frames say free, holes nothing, and reserved ones that they are."""
    frame = array(machine.pages.state.frame)
    words = array(machine.slabs.state.word) ^ t.FREE_WORD
    kind = frame >> KIND_SHIFT << KIND_SHIFT
    if (words[kind == HOLE] != 0).any():
        yield "a frame that does not exist has a word"
    if machine.design.allocates and (words[kind == RESERVED] & 0x7FF).any():
        yield "a reserved frame does not say so"
    heads = np.flatnonzero((kind == FREE) | (kind >= PCP))
    sizes = 1 << (frame[heads] & ORDER_MASK).astype(np.int64)
    mark = np.zeros(frame.size + 1, np.int64)
    np.add.at(mark, heads, 1)
    np.add.at(mark, heads + sizes, -1)
    is_free = np.cumsum(mark[:-1]) > 0
    wrong = np.flatnonzero((words == t.FREE_WORD) != is_free)
    if wrong.size:
        yield f"frame {wrong[0]:#x} is free and has a word, or is in use and has none"


def _plain(
    machine: DescribedMachine, words: list[int], pfn: int, order: int, _: dict[int, int]
) -> Iterator[str]:
    """64 bytes: the head carries the count, its tails lead to it."""
    word = words[pfn]
    if word & 15 != PLAIN or word & PLAIN_TAIL or word >> PLAIN_ORDER_SHIFT & 63 != order:
        yield f"the struct page of {pfn:#x} is no head of order {order}"
    tail = word & ((1 << PLAIN_REFS_SHIFT) - 1) | PLAIN_TAIL
    if any(each != tail for each in words[pfn + 1 : pfn + (1 << order)]):
        yield f"a tail of {pfn:#x} is none"
    links = array(machine.pages.state.next)
    is_slab = int(links[pfn]) < len(machine.slabs.records()) and word >> PLAIN_REFS_SHIFT == 0
    if not is_slab and (links[pfn + 1 : pfn + (1 << order)] != pfn).any():
        yield f"a tail of {pfn:#x} leads to another head"


def _described(
    machine: DescribedMachine,
    words: list[int],
    pfn: int,
    order: int,
    led_to: dict[int, int],
) -> Iterator[str]:
    """A memdesc word: the same in all frames, and its descriptor leads back."""
    word = words[pfn]
    if any(each != word for each in words[pfn + 1 : pfn + (1 << order)]):
        yield f"frames of the block at {pfn:#x} hold different words"
    tag = word & 15
    if tag == 0:
        if word >> 12 & 63 != order:
            yield f"the word of {pfn:#x} says another order than {order}"
        return
    if word == tag:
        return  # the page itself has all there is
    address = (word & ~15) - int(machine.slabs.state.cell[t.G_DIRECT_MAP])
    if address in led_to:
        yield f"{pfn:#x} and {led_to[address]:#x} share a descriptor"
    led_to[address] = pfn
    yield from _leads_back(machine, pfn, order, tag, address)


def _leads_back(
    machine: DescribedMachine, pfn: int, order: int, tag: int, address: int
) -> Iterator[str]:
    slabs = machine.slabs
    records = slabs.records()
    record = int(array(machine.pages.state.next)[address >> 12])
    if record >= len(records) or records[record, t.R_PLACE] == t.UNUSED:
        yield f"the descriptor of {pfn:#x} lies in no slab"
        return
    cache = int(records[record, t.R_CACHE])
    size = int(slabs.state.cache[cache * t.CACHE_FIELDS + t.C_SIZE])
    number, rest = divmod(address - (int(records[record, t.R_PFN]) << 12), size)
    at = (int(records[record, t.R_BASE]) + number) * t.SLOT_FIELDS
    slot = array(slabs.state.slot)[at : at + t.SLOT_FIELDS].tolist()
    if rest or slot[t.S_REFS] == 0 or slot[t.S_VALUE] != pfn:
        yield f"the descriptor of {pfn:#x} is free, or of other frames"
    if tag == _SLAB:
        mine = records[slot[t.S_OWNER]]
        if mine[t.R_PFN] != pfn or mine[t.R_DESCRIPTOR] != address:
            yield f"the slab at {pfn:#x} has another descriptor"
        if (mine[t.R_SELF] == 1) != (cache == mine[t.R_CACHE]):
            yield f"the slab at {pfn:#x} should or should not describe itself"
        if cache != slabs.state.cell[t.G_SLAB_CACHE]:
            yield f"the slab at {pfn:#x} is described by an object of another cache"
        return
    kind = (slot[t.S_KIND] & 255) * t.KIND_FIELDS
    expected = slabs.state.kind[kind + (t.K_LARGE if order else t.K_SMALL)]
    if slot[t.S_KIND] >> 8 != order or cache != expected or slabs.state.kind[kind + t.K_TAG] != tag:
        yield f"the descriptor of {pfn:#x} is of another order, cache or type"


def _leaks(machine: DescribedMachine, led_to: dict[int, int]) -> Iterator[str]:
    """Every descriptor in use is led to by a frame."""
    slabs = machine.slabs
    slots = array(slabs.state.slot).reshape(-1, t.SLOT_FIELDS)
    caches = {cache.number: cache for cache in machine.descriptor_caches.values()}
    for row in slabs.records().tolist():
        cache = caches.get(row[t.R_CACHE])
        if cache is None or row[t.R_PLACE] == t.UNUSED:
            continue
        refs = slots[row[t.R_BASE] : row[t.R_BASE] + row[t.R_OBJECTS], t.S_REFS]
        for number in np.flatnonzero(refs != 0).tolist():
            address = (row[t.R_PFN] << 12) + number * cache.layout.size_bytes
            if address not in led_to:
                yield f"descriptor {address:#x} of {cache.name} is in use and nothing leads to it"

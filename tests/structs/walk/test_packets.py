"""Packets lead to frames: only those in use, whole blocks, and nothing by damage."""

from __future__ import annotations

import numpy as np
import pytest
from structs.walk.fakes import DIRECT_MAP, VMEMMAP, Memory, Types, fake_view

from memdesc.errors import LayoutError
from memdesc.structs.walk.packets import packet_frames
from memdesc.structs.walk.view import View

TYPES = """
atomic: u32 counter
refcount: atomic refs
kmem_cache: u32 size
slab: u64 page_flags, u64 slab_cache, u32 objects
sk_buff: u64 head, u32 end, refcount users, u64 head_frag
skb_frag: u64 netmem, u32 len, u32 offset
skb_shared_info: u32 nr_frags, atomic dataref, skb_frag[17] frags
"""
VARIABLE = 0xFFFFFFFF83000000
HEADS, CLONES = DIRECT_MAP + 0x1000, DIRECT_MAP + 0x1100
SLAB, CLONE_SLAB, DATA, BLOCK = 16, 17, 18, 64
END = 0x100
SIZE = 24
"""Of a sk_buff here."""


class Packets:
    """Two slabs with one object of each cache, and an order-2 block at frame `BLOCK`."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.memory.write(VARIABLE, HEADS)
        self.memory.write(VARIABLE + 8, CLONES)
        self.memory.write(HEADS, SIZE)
        self.memory.write(CLONES, 2 * SIZE)
        for pfn in range(128):
            self.memory.write(VMEMMAP + pfn * 64, *[0] * 8)
        for slab, cache in ((SLAB, HEADS), (CLONE_SLAB, CLONES)):
            self.memory.write(VMEMMAP + slab * 64, 0, cache, 1)
            self.memory.write(DIRECT_MAP + (slab << 12), *[0] * 8)
        layout = self.view().memmap.layout
        self.memory.write(VMEMMAP + BLOCK * 64 + layout.flags, layout.flag("head"))
        self.memory.write_bytes(VMEMMAP + BLOCK * 64 + layout.folio_order, b"\2")
        for tail in (1, 2, 3):
            page = VMEMMAP + (BLOCK + tail) * 64
            self.memory.write(page + layout.compound, VMEMMAP + BLOCK * 64 + 1)

    def view(self, types: str = TYPES) -> View:
        symbols = {"skbuff_head_cache": VARIABLE, "skbuff_fclone_cache": VARIABLE + 8}
        return fake_view(Types(types), self.memory, symbols)

    def packet(
        self, *pages: int, slab: int = SLAB, at: int = 0, users: int = 1, shared: int = 1
    ) -> None:
        data = DIRECT_MAP + (DATA << 12) + 0x400 * (slab - SLAB) + 0x200 * bool(at)
        self.memory.write(DIRECT_MAP + (slab << 12) + at, data, END | users << 32, 0)
        self.memory.write(data + END, len(pages) | shared << 32)
        for index, page in enumerate(pages):
            self.memory.write(data + END + 8 + 16 * index, page)

    def frames(self) -> list[int]:
        return packet_frames(self.view(), np.array([SLAB, CLONE_SLAB])).tolist()


def page(pfn: int) -> int:
    return VMEMMAP + pfn * 64


@pytest.fixture
def packets() -> Packets:
    return Packets()


def test_a_fragment_leads_to_its_whole_block(packets: Packets):
    packets.packet(page(BLOCK + 2), page(40))
    assert packets.frames() == [40, BLOCK, BLOCK + 1, BLOCK + 2, BLOCK + 3]


def test_both_halves_of_a_clone_are_followed(packets: Packets):
    packets.packet(page(40), slab=CLONE_SLAB)
    packets.packet(page(41), slab=CLONE_SLAB, at=SIZE)
    assert packets.frames() == [40, 41]


def test_free_objects_and_data_of_nobody_lead_nowhere(packets: Packets):
    packets.packet(page(40), users=0)
    packets.packet(page(41), slab=CLONE_SLAB, shared=0)
    assert packets.frames() == []


@pytest.mark.parametrize("wild", [0, 0xDEAD000000000100, page(40) | 1, VMEMMAP - 64, page(1 << 20)])
def test_what_is_no_page_is_passed_over(packets: Packets, wild: int):
    packets.packet(wild, page(42))
    assert packets.frames() == [42]


def test_more_fragments_than_a_packet_has_are_damage(packets: Packets):
    packets.packet(*[page(40)] * 17)
    assert packets.frames() == [40]
    packets.memory.write(DIRECT_MAP + (DATA << 12) + END, 18 | 1 << 32)
    assert packets.frames() == []


def test_an_unknown_fragment_is_refused(packets: Packets):
    packets.packet(page(40))
    with pytest.raises(LayoutError, match="fragments of packets"):
        packet_frames(packets.view(TYPES.replace("u64 netmem", "u64 other")), np.array([SLAB]))

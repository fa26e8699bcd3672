"""How people name a page: a frame, a physical address, or an address of a process.

0x1234, 4660        a page frame number (decimal without 0x)
phys:0x1234000      a physical address
1234:0x7f00a000     an address of process 1234
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from memdesc.errors import QuestionError
from memdesc.types import Pfn, PhysAddr, Pid, VirtAddr

__all__ = ["FramePlace", "PhysPlace", "Place", "VirtPlace", "parse_place"]


@dataclass(frozen=True, slots=True)
class FramePlace:
    """A page frame number."""

    pfn: Pfn
    text: str


@dataclass(frozen=True, slots=True)
class PhysPlace:
    """A physical address."""

    address: PhysAddr
    text: str


@dataclass(frozen=True, slots=True)
class VirtPlace:
    """An address of a process."""

    pid: Pid
    address: VirtAddr
    text: str


Place: TypeAlias = FramePlace | PhysPlace | VirtPlace

_HEX = r"(0[xX][0-9a-fA-F]{1,16})"
_NUMBER = rf"({_HEX[1:-1]}|[0-9]{{1,20}})"


def parse_place(text: str) -> Place:
    """Read a place. Raises QuestionError for anything else."""
    word = text.strip()
    if found := re.fullmatch(_NUMBER, word):
        return FramePlace(Pfn(_int(found[1])), word)
    if found := re.fullmatch(rf"phys:{_HEX}", word):
        return PhysPlace(PhysAddr(_int(found[1])), word)
    if found := re.fullmatch(rf"([0-9]{{1,10}}):{_HEX}", word):
        return VirtPlace(Pid(int(found[1])), VirtAddr(_int(found[2])), word)
    raise QuestionError(
        f"not a place: {word[:60]!r}",
        hint=_hint(word)
        or "a frame is 0x1234, a physical address phys:0x1234000, "
        "an address of process 12 is 12:0x7f0000001000",
    )


def _hint(word: str) -> str:
    """What to write instead, where only the 0x is missing."""
    if found := re.fullmatch(r"(phys|[0-9]{1,10}):([0-9a-fA-F]{1,16})", word):
        return f"addresses are hexadecimal: write it with 0x: {found[1]}:0x{found[2]}"
    return ""


def _int(text: str) -> int:
    return int(text, 16) if text[:2].lower() == "0x" else int(text)

"""The tail-page bug on the modelled machine: in 2021 it compiles, typed it cannot be written."""

from memdesc.descriptors import FileFolio, Slab
from memdesc.model.described import DescribedMachine
from memdesc.model.pages import TypedPages
from memdesc.model.struct_page import struct_page
from memdesc.types import Pfn


def tail_mapping_2021(machine: DescribedMachine, head: Pfn) -> int:
    """Accepted, and wrong: the fourth page of a folio has no mapping of its own."""
    return struct_page(machine, head + 3).mapping


def tail_mapping_typed(pages: TypedPages, head: Pfn) -> object:
    return pages.page(Pfn(head + 3)).mapping  # E: attribute


def tail_mapping_of_its_descriptor(pages: TypedPages, head: Pfn) -> object:
    """Nor before it is known to be a file's."""
    return pages.page(Pfn(head + 3)).descriptor().mapping  # E: attribute


def tail_mapping_right(pages: TypedPages, head: Pfn) -> object:
    folio = pages.page(Pfn(head + 3)).descriptor()
    return folio.mapping if isinstance(folio, FileFolio) else None


def slab_mapping_2021(machine: DescribedMachine, head: Pfn) -> int:
    """Accepted, and it is the cache."""
    return struct_page(machine, head).mapping


def slab_mapping_typed(slab: Slab) -> object:
    return slab.mapping  # E: attribute


def a_bare_number_is_no_frame(pages: TypedPages, address: int) -> object:
    return pages.page(address)  # E: argument

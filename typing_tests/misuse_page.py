"""A page has a frame number and a way to its descriptor. Everything else is an error."""

from memdesc.descriptors import AnonFolio, FileFolio, Page, PageTable, Slab


def tail_page_mapping(page: Page) -> object:
    """The bug that a C compiler cannot see: a tail page has no mapping of its own."""
    return page.mapping  # E: attribute


def page_flags(page: Page) -> object:
    return page.flags  # E: attribute


def page_refcount(page: Page) -> object:
    return page.refcount  # E: attribute


def slab_mapping(slab: Slab) -> object:
    """Slabs belong to a cache, never to an address space."""
    return slab.mapping  # E: attribute


def slab_mapcount(slab: Slab) -> object:
    return slab.mapcount  # E: attribute


def page_table_refcount(table: PageTable) -> object:
    return table.refcount  # E: attribute


def anonymous_mapping(folio: AnonFolio) -> object:
    """Anonymous memory has an anon_vma, which is no address space."""
    return folio.mapping  # E: attribute


def file_anon_vma(folio: FileFolio) -> object:
    return folio.anon_vma  # E: attribute


def any_descriptor_mapping(page: Page) -> object:
    """Not even the descriptor has one, before its kind is known."""
    return page.descriptor().mapping  # E: attribute

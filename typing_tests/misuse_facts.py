"""Facts may be not visible, and descriptors do not change."""

from memdesc.descriptors import AnonFolio, FileFolio, Page, Slab
from memdesc.types import Pfn, PfnRange


def count_that_may_not_be_visible(folio: AnonFolio) -> int:
    """No source can hide a missing count behind 0: the reason must be handled first."""
    return folio.refcount + 1  # E: operand


def mapping_that_may_not_be_visible(folio: FileFolio) -> object:
    return folio.mapping.inode  # E: attribute


def none_is_no_fact(pages: PfnRange) -> Slab:
    return Slab(pages, cache=None)  # E: argument


def slab_changed_in_place(slab: Slab) -> None:
    slab.cache = "dentry"  # E: frozen


def range_changed_in_place(pages: PfnRange) -> None:
    pages.pfn_end = Pfn(0)  # E: frozen


def page_renumbered(page: Page) -> None:
    page.pfn = Pfn(1)  # E: frozen

"""Owners that walks name, held against the struct page that was read later."""

from __future__ import annotations

import numpy as np
import pytest

from memdesc.kernels.page_state import (
    SIG_IN_FREE_BLOCK,
    SIG_KNOWN,
    SIG_REFCOUNT_0,
    SIG_TYPE_SHIFT,
    TypeCode,
)
from memdesc.structs.counts import _still_owned
from memdesc.structs.owned import kind_code
from memdesc.types import MemoryType


@pytest.mark.parametrize(
    ("kind", "signature", "is_owned"),
    [
        (MemoryType.FREE_PCP, SIG_REFCOUNT_0, True),
        (MemoryType.FREE_PCP, 0, False),
        (MemoryType.FREE_PCP, SIG_REFCOUNT_0 | SIG_IN_FREE_BLOCK, False),
        (MemoryType.FREE_PCP, SIG_REFCOUNT_0 | TypeCode.SLAB << SIG_TYPE_SHIFT, False),
        (MemoryType.VMALLOC, 0, True),
        (MemoryType.VMALLOC, SIG_REFCOUNT_0, False),
        (MemoryType.PAGE_TABLE, SIG_REFCOUNT_0, True),
    ],
)
def test_an_owner_goes_with_the_frame(kind: MemoryType, signature: int, is_owned: bool) -> None:
    signatures = np.array([SIG_KNOWN | signature], np.uint64)
    assert _still_owned(signatures, np.array([kind_code(kind)], np.uint8)).tolist() == [is_owned]

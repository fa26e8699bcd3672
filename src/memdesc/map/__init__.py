"""The typed map: extents of consecutive frames with the same facts, as columns."""

"""A machine whose pages carry memdescs: an executable page allocator and slab allocator."""

"""Areas of an address space, and every call on them."""

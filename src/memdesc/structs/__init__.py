"""A kernel seen through its own memory: type information, memory, struct pages, owners."""

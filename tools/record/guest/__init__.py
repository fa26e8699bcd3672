"""Runs inside the recording guest: plants known memory, then copies what the kernel shows of it."""

"""Faults, copy-on-write, fork, unmapping, and the kernel's own access."""

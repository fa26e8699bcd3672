"""Traces of the kernel's memory events, read into columns."""

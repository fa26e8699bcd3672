"""Swap, and what takes pages away."""

"""Kernel knowledge as data: bits, types and behaviours, per release, each with its source."""

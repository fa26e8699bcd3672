"""Huge pages of a pool."""

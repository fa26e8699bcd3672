"""Merging of equal pages."""

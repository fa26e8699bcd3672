"""Huge pages and other large folios, of anonymous memory and of files."""

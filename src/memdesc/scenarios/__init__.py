"""Scenario files: one Markdown file is a page of documentation, a test of the model, and a test
of a real kernel.

`reader` makes steps of a file, `model_run` does them on the model, `kernel_run` on a real kernel
(in a guest, or here), `compare` finds the first page at which they differ.
"""

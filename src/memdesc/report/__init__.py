"""The HTML report: one self-contained file about one machine's memory.

`build.report_data` gathers typed data from a map, `render.render` turns it into a page,
`save.save` writes the page beside its target and renames it.
"""

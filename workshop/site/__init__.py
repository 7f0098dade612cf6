"""The site: executed notebooks, README, guide and docstrings as pages that ask no other host for anything.

`stage` lays out what Sphinx reads, `notebook` turns a stored notebook into a page, `nodes` what Markdown links to;
`python -m workshop.site` (`make site`) builds it.
"""

"""The site: executed notebooks, README, guide and docstrings as pages that ask no other host for anything.

`stage` lays out what Sphinx reads, `notebook` makes a page of a stored notebook, `nodes` shows what Markdown
links to, `docstrings` reads docstrings; `python -m workshop.site` (`make site`) builds it.
"""

"""Blind listening tests: whether people hear what was steered, by a rule written down before anyone has answered.

| | modules |
|---|---|
| what users call | `test` (`ms.ListeningTest`); `page` shows a test by voila, without code |
| before the test | `design` (clips, order, sides, screening) `power` (how many listeners) `simulation` (made-up ones) |
| while it is taken | `widget` (with `player.js`, `widget.js`, `widget.css`) `session` `store`; `jupyter/` for voila |
| after it | `analysis` `stats` `plots` `export`; `checks` holds those of notebook 05's exercises |
"""

__all__ = ["ListeningTest"]


def __getattr__(name):  # on first use, so that what needs one module only, such as the page, starts at once
    if name == "ListeningTest":
        from .test import ListeningTest

        return ListeningTest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

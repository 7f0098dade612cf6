"""Blind listening tests: do people hear what was steered? By a rule written down before anyone has answered.

| | modules |
|---|---|
| what users call | `test` (`ms.ListeningTest`); `page` shows a test by voila, without code |
| before the test | `design` (clips, order, sides, screening) `power` (how many listeners) `simulation` |
| while it is taken | `widget` (with its `.js` and `.css`) `session` `answers`; `jupyter/` for voila |
| after it | `analysis` `stats` `charts` |
"""

from .._shared import modules

_MODULES = "test page design power simulation widget session answers analysis stats charts"
__getattr__, __dir__ = modules(__name__, _MODULES)

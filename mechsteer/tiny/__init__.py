"""The embedded model as it is loaded: a small MusicGen of our own (`workshop/tiny` makes it).

`loading` puts its weights into audiocraft's classes; `codec` and `lm` are its two networks, `captions` reads
what a prompt asks for, `vocabulary` is what it knows, `orchestra` its music.
"""

from .._shared import modules

__getattr__, __dir__ = modules(__name__, "loading codec lm captions vocabulary orchestra")

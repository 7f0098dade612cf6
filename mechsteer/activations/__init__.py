"""Labelled clips, and what the model makes of them.

`clips` finds and reads labelled sound; `collect` reads activations of all of it into one Dataset; `read` is
the reading itself, of one batch; `frames` says what sounds in each frame; `pairs` finds clips that differ in
one label only.
"""

from .._shared import modules

__getattr__, __dir__ = modules(__name__, "clips pairs collect read frames")

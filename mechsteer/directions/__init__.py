"""What separates a concept in the activations, and what writes it.

`find` trains probes and gives their directions; `scores` cross-validates them beside their controls;
`geometry` compares directions; `written` finds those that write; `files` shares them. Behind them:
`_solvers`, `_labels`.
"""

from .._shared import modules

__getattr__, __dir__ = modules(__name__, "find scores geometry written files")

"""What changed in the sound: `describe` measures every clip; `ears` say what it sounds like, two of them
trained here (`judges`); `kept` and `loudness` compare clips, `distances` sets of clips; `dose` sweeps over
strengths, `tradeoff` weighs what they bring against what they cost; `intervals` says how sure a number is.
"""

from .._shared import modules

_MODULES = "describe judges ears kept pitch loudness distances dose tradeoff intervals"
__getattr__, __dir__ = modules(__name__, _MODULES)

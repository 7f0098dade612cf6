"""What changed in the sound: `describe` measures every clip; `judges` say what it sounds like, and `clap` how
well it fits a text; `pitch` and `loudness` compare; `distances` hold sets of clips against real ones; `dose`
sweeps over strengths; `intervals` says how sure a number is.
"""

from .._shared import modules

__getattr__, __dir__ = modules(__name__, "describe judges clap pitch loudness distances dose intervals")

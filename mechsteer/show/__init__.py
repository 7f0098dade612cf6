"""What a person looks at: `player` (sound and spectrogram), `plots`, `panel` (to steer by hand), `saving`."""

from .._shared import modules

__getattr__, __dir__ = modules(__name__, "player plots panel saving")

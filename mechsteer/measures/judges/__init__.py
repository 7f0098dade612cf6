"""Two judges that say what a clip sounds like: `hear` asks them; `_network` and `_statistics` are what they are."""

from ..._shared import modules

__getattr__, __dir__ = modules(__name__, "hear")

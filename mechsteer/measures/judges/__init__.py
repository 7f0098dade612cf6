"""Two judges that say what a clip sounds like: `hear` asks them; they are in `_network` and `_statistics`."""

from ..._shared import modules

__getattr__, __dir__ = modules(__name__, "hear")

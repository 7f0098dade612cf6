"""Load a MusicGen, look inside it, and generate, steered or not.

`model` has `load` and the `Model` it makes; `sites` the places in a layer; `steering` what to add, where and
when; `effects` that value as tensors; `sampling` tokens from logits; `stream` music while it is made;
`generation` what comes out. `tracing` is nnsight on it, `patching` and `lens` ask where the model uses what.
Behind them: `_engine` (one decoding step), `_decoding` (step after step), `_audiocraft`, `_checkpoints`,
`_vectors`, `_calls`.
"""

from .._shared import modules

_MODULES = "model sites steering effects sampling stream generation tracing patching lens"
__getattr__, __dir__ = modules(__name__, _MODULES)

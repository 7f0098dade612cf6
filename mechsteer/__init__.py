"""mechsteer: look inside MusicGen and steer it. Seven folders, in the order in which data pass them:

| folder | what it does | what it gives to notebooks |
|---|---|---|
| `model` | load, look inside, generate | `load` `Steering` `patch` `lens` |
| `activations` | labelled clips, and what the model makes of them | `clips` `codes` `pairs` `collect` ... |
| `directions` | what separates a concept, what writes it | `find_directions` `accuracy_by_layer` ... |
| `measures` | what changed in the sound | `describe` `success` `dose_response` `tradeoff` ... |
| `show` | what a person looks at | `save_figure` `steering_panel` |
| `listening` | blind tests with people | `ListeningTest` `listeners_needed` |
| `tiny` | the embedded model, as `load` builds it | |

Imports go from a folder to those above it, never down. Modules and names load on first use (PEP 562), so that
`import mechsteer as ms` costs milliseconds; what isn't a name here is reached through its folder, as in
`ms.directions.geometry.cosine`.
"""

import importlib

from ._shared import did_you_mean

__version__ = "0.1.0"

_FOLDERS = ("model", "activations", "directions", "measures", "show", "listening", "tiny")
_NAMES = {  # module -> what it gives to notebooks
    "model.model": "load",
    "model.steering": "Steering",
    "model.patching": "patch",
    "model.lens": "lens",
    "activations.clips": "clips read_clip",
    "activations.collect": "codes collect",
    "activations.pairs": "pairs",
    "activations._store": "open_activations",
    "activations.frames": "frame_labels",
    "directions.find": "find_directions logistic mse",
    "directions.scores": "accuracy_by_layer",
    "directions.geometry": "direction_cosines",
    "directions.files": "load_direction save_direction",
    "directions.written": "caption_contrast optimised_vector",
    "measures.describe": "describe success",
    "measures.intervals": "share",
    "measures.dose": "dose_response dose_table knee",
    "measures.tradeoff": "tradeoff",
    "measures.judges.hear": "hear",
    "show.saving": "save_figure",
    "show.panel": "steering_panel",
    "listening.test": "ListeningTest",
    "listening.power": "listeners_needed",
}
_METHODS = ("generate", "nll", "trace", "tracing_generation", "encode", "decode", "sequence", "conditions")
_OWNERS = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted({*_OWNERS, *_FOLDERS})


def __getattr__(name):
    if name in _OWNERS:
        return getattr(importlib.import_module(f".{_OWNERS[name]}", __name__), name)
    if name in _FOLDERS:
        return importlib.import_module(f".{name}", __name__)
    hint = did_you_mean(name, [*__all__, *_METHODS], f"It has {', '.join(__all__)}")
    if any(f"{method!r}?" in hint for method in _METHODS):
        hint += " It is a method of the model that ms.load gives"
    raise AttributeError(f"module 'mechsteer' has no attribute {name!r}. {hint}")


def __dir__():
    return [*__all__, "__version__"]

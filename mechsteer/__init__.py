"""mechsteer: look inside MusicGen and steer it.

Names load on first use (PEP 562), so `import mechsteer as ms` costs milliseconds and a notebook that only reads saved
data never imports torch.
"""

import importlib

__version__ = "0.1.0"

# public name -> the module that owns it
_OWNERS = {
    "load": "model",
    "hear": "hearing",
    "embedding": "hearing",
    "chroma_correlation": "pitch",
    "pitch_agreement": "pitch",
    "Generation": "audio",
    "Steering": "steering",
    "describe": "measures",
    "success": "measures",
    "share": "measures",
    "mean_interval": "measures",
    "clap_similarity": "measures",
    "texture": "distances",
    "frechet": "distances",
    "kad": "distances",
    "kad_interval": "distances",
    "clips": "datasets",
    "codes": "activations",
    "collect": "activations",
    "open_activations": "store",
    "frame_labels": "truth",
    "notes": "datasets",
    "accuracy_by_layer": "probes",
    "apply_direction": "probes",
    "caption_contrast": "contrasts",
    "optimised_vector": "contrasts",
    "find_directions": "probes",
    "direction_cosines": "geometry",
    "dose_response": "dose",
    "dose_table": "dose",
    "knee": "dose",
    "ListeningTest": "listening.test",
    "Screening": "listening.design",
    "listeners_needed": "listening.power",
    "load_direction": "directions",
    "save_direction": "directions",
    "save_figure": "saving",
    "steering_panel": "panel",
}
_MODULES = (
    "activations",
    "audio",
    "checks",
    "contrasts",
    "datasets",
    "directions",
    "dose",
    "distances",
    "geometry",
    "hearing",
    "listening",
    "measures",
    "model",
    "panel",
    "pitch",
    "plots",
    "probes",
    "steering",
    "tiny",
)

__all__ = sorted({*_OWNERS, *_MODULES})


def __getattr__(name):
    if name in _OWNERS:
        return getattr(importlib.import_module(f".{_OWNERS[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    import difflib

    close = difflib.get_close_matches(name, __all__, 1, 0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(__all__)}"
    raise AttributeError(f"module 'mechsteer' has no attribute {name!r}; {hint}")


def __dir__():
    return [*__all__, "__version__"]

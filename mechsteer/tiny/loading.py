"""The embedded model: a small MusicGen of our own, trained by `workshop.tiny` on labelled music.

Its weights lie in `data/tiny/`: `codec.safetensors`, `lm.safetensors` (float16; the configurations are in
their metadata) and `card.json`, what was measured. `load_embedded` puts them into audiocraft's own classes.
"""

import json
from pathlib import Path

from .. import paths
from ..errors import AGAIN, MissingWeights, reading

TRAINED = 8.0  # s, the length of the clips that the LM was trained on


def folder() -> Path:
    """Where the embedded model's files are."""
    return paths.data() / "tiny"


def load_embedded(source: Path | None = None):
    """The embedded model as an audiocraft `MusicGen`, on the CPU and in float32.

    `source` is a folder with `codec.safetensors` and `lm.safetensors`; default `data/tiny`. MissingWeights,
    with the command that trains them, if they are absent.
    """
    from ..model._audiocraft import MusicGen
    from .lm import LMConfig, build_lm

    source = Path(source or folder())
    codec = load_codec(source)
    weights, config = _read(path := source / "lm.safetensors")
    with reading(path, AGAIN):
        config = LMConfig(**config)
        lm = build_lm(config)
        lm.load_state_dict(weights)
    lm.eval()
    longest = int(config.max_duration * codec.frame_rate) + config.n_q + 1
    lm.transformer.rope.get_rotation(0, longest)  # computed now, in float32
    made = MusicGen("tiny", codec, lm, max_duration=config.max_duration)
    made.window, made.ears = TRAINED, ("cnn", "features")
    return made


def load_codec(source: Path | None = None):
    """The embedded model's codec alone, an audiocraft `CompressionModel`; raises as `load_embedded` does."""
    from .codec import Codec, CodecConfig

    weights, config = _read(Path(source or folder()) / "codec.safetensors")
    codec = Codec(CodecConfig(**config))
    del codec.decoder.views  # only training needs it, and the quantiser's averages, so they are not shipped
    codec.load_state_dict(weights, strict=False)
    return codec.eval()


def _read(path: Path):
    """float32 weights and the configuration of a safetensors file."""
    from safetensors import safe_open

    if not path.is_file():
        anew = "`make orchestra` and `make tiny` train it anew, in about four hours on two cores"
        raise MissingWeights(f"no embedded model: {path}, part of the repository, is missing; {anew}")
    with reading(path, AGAIN), safe_open(path, "pt") as file:
        weights = {k: file.get_tensor(k).float() for k in file.keys()}  # noqa: SIM118
        return weights, json.loads(file.metadata()["config"])

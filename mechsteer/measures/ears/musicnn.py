"""musicnn: 50 tags of real music, by a network that nobody here trained.

Package musicnn 0.1.0 (ISC), weights in its wheel: `MTT` learnt from listeners' tags of MagnaTagATune
(instruments, moods, styles), `MSD` from last.fm's tags of the Million Song Dataset (styles, decades). The
package's own code needs TensorFlow and old pins, and is never imported: here its weights are read as data,
and its network runs in torch on the mel spectra that librosa would give it. That these aren't rounded to
float16, as the original does, moves no tag of the clips that were compared by more than 0.0001.

What it can't hear: trumpet, organ, saxophone and whatever else has no tag, which it takes for something that
has; notes and keys. What it tells apart of the orchestra's music stands in data/tiny/hearing.json.

Source: Pons & Serra 2019, *musicnn: pre-trained convolutional neural networks for music audio tagging*
(arXiv 1909.06654).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import _spectra as spectra
from . import _tf_checkpoint
from .asking import argmax_table

PATCH, SIZE, HOP, BANDS = 187, 512, 256, 96  # frames (3 s) that the network hears at once; samples; mel bands
MTT = (
    "guitar, classical, slow, techno, strings, drums, electronic, rock, fast, piano, ambient, beat, violin, "
    "vocal, synth, female, indian, opera, male, singing, vocals, no vocals, harpsichord, loud, quiet, flute, "
    "woman, male vocal, no vocal, pop, soft, sitar, solo, man, classic, choir, voice, new age, dance, "
    "male voice, female vocal, beats, harp, cello, no voice, weird, country, metal, female voice, choral"
)
MSD = (
    "rock, pop, alternative, indie, electronic, female vocalists, dance, 00s, alternative rock, jazz, "
    "beautiful, metal, chillout, male vocalists, classic rock, soul, indie rock, Mellow, electronica, 80s, "
    "folk, 90s, chill, instrumental, punk, oldies, blues, hard rock, ambient, acoustic, experimental, "
    "female vocalist, guitar, Hip-Hop, 70s, party, country, easy listening, sexy, catchy, funk, electro, "
    "heavy metal, Progressive rock, 60s, rnb, indie pop, sad, House, happy"
)
MODELS = {  # name -> tags in the network's order, SHA-256 of its two files
    "MTT": (MTT.split(", "), "5a310d763b7d8bafda59f31636c3f1b87b5c62d134d7e6ff9b880e4c25515ab4"),
    "MSD": (MSD.split(", "), "ffb40cd66093fac1af5e4bae851c19c767a962aa577d0aa1fa12b426f15215ad"),
}
LEADS = ("piano", "guitar", "violin", "flute")  # tags that tell the lead, in data/tiny/hearing.json
_GET = "musicnn's weights aren't here: `uv sync --extra ears`, or pip install --no-deps musicnn==0.1.0"
_AT_ONCE = 8  # patches, so that long clips need no more memory than short ones
_PADS = ((3, 3), (3, 3), (63, 64), (31, 32), (15, 16))  # frames of zeros around a patch in the first layers
_DEAD = 1e-6  # weights of a filter that decayed away in training; it gives its bias whatever it hears


def musicnn(audio: Any, sample_rate: int) -> pd.DataFrame:
    """Which of `LEADS` the model MTT hears in each clip, and all its tags.

    Parameters and errors as in `tags`. Returns a pd.DataFrame, one row a clip: `lead`, the likeliest of
    `LEADS`; `p_lead_piano` and so on, their tags' probabilities, which don't sum to 1; and all 50 tags, as
    `tag_guitar`. A silent clip has missing values. It always names a lead, also of what none of them plays.
    Styles and drums it doesn't name: on the orchestra's music it ranks them poorly (`tag_electronic`,
    `tag_drums`) or no better than chance.
    """
    found = tags(audio, sample_rate)
    table = argmax_table({"lead": found[list(LEADS)].to_numpy()}, {"lead": LEADS})
    return pd.concat([table, found.add_prefix("tag_")], axis=1)


def tags(audio: Any, sample_rate: int, model: str = "MTT") -> pd.DataFrame:
    """Probability of each tag.

    Parameters
    ----------
    audio, sample_rate : as in `judges.hear.hear`: 3 s or more; channels are averaged.
    model : "MTT" or "MSD", see the module.

    Returns a pd.DataFrame, one row a clip, one column a tag; NaN for a silent clip. The network hears patches
    of 3 s (187 frames), as few as cover the clip at even distances: 5 s are two that share 1 s. Probabilities
    are averaged over patches. (The original's default leaves out what doesn't fill a patch.)

    Raises ValueError for shorter clips, an unknown model, damaged weights, or audio that `to_clips` refuses;
    ImportError without the weights: it says how to get them.
    """
    import torch

    network, names = _network(model), MODELS[model][0]
    clips = spectra.mono(audio, sample_rate, spectra.SHORTEST)
    n, samples = clips.shape
    starts = np.linspace(0, samples // HOP + 1 - PATCH, -(-samples // (3 * spectra.RATE))).astype(int)
    found = np.empty((n, len(names)), np.float32)
    with torch.inference_mode():
        for row, clip in enumerate(clips):
            mel = log_mel(clip)
            heard = torch.from_numpy(np.stack([mel[start : start + PATCH] for start in starts]))
            found[row] = torch.cat([network(x) for x in heard.split(_AT_ONCE)]).mean(0).numpy()
    found[spectra.rms(clips) <= spectra.SILENCE] = np.nan
    return pd.DataFrame(found, columns=names)


def log_mel(clip: np.ndarray) -> np.ndarray:
    """log10(10,000 x + 1) of librosa's mel spectrogram of a clip at 16 kHz: float32 (frame, band)."""
    power = spectra.power_spectrum(clip[None], SIZE, HOP)[0] * np.float32(SIZE**2 / 8)  # as librosa scales it
    return np.log10(10_000 * (power @ spectra.slaney_filters(SIZE, BANDS)) + 1)


def folder(model: str) -> Path:
    """Where the package musicnn holds a model's weights; errors as in `tags`."""
    if model not in MODELS:
        raise ValueError(f"no musicnn {model!r}: there are {' and '.join(map(repr, MODELS))}")
    spec = importlib.util.find_spec("musicnn")  # finds it, and runs nothing of it
    places = (spec and spec.submodule_search_locations) or ()
    found = [path for place in places if (path := Path(place) / f"{model}_musicnn").is_dir()]
    if not found:
        raise ImportError(_GET)
    return found[0]


@lru_cache
def _network(model: str) -> Callable:
    """The network as a function of log-mels (patch, frame, band): probabilities (patch, tag)."""
    import torch

    tensors = _tf_checkpoint.read(folder(model), MODELS[model][1], "install musicnn==0.1.0 again")
    return partial(_probabilities, {k: torch.tensor(v) for k, v in tensors.items() if "/Adam" not in k})


def _probabilities(weights: dict, mel):
    """The network of the package's `models.py`, with time as the last axis of what it passes on."""
    import torch
    from torch.nn.functional import conv1d, relu

    x = _norm(weights, mel[:, None], 0)
    parts = [torch.cat([_peaks(weights, x, layer) for layer in range(5)], 1)]  # patch, 561, frame
    for layer in (5, 6, 7):
        kernel, bias = _conv(weights, layer)
        y = _norm(weights, relu(conv1d(parts[-1], kernel[:, 0].swapaxes(1, 2), bias, padding=3)), layer + 1)
        parts.append(y if layer == 5 else y + parts[-1])
    x = torch.cat(parts, 1)  # patch, 753, frame
    x = _norm(weights, torch.stack([x.amax(2), x.mean(2)], 2).flatten(1), 9)
    x = _norm(weights, relu(x @ weights["dense/kernel"] + weights["dense/bias"]), 10)
    return torch.sigmoid(x @ weights["dense_1/kernel"] + weights["dense_1/bias"])


def _peaks(weights: dict, x, layer: int):
    """A convolution over frames and bands, and its highest output over bands: (patch, filter, frame).

    The original normalises first. As that is a line for each filter, the highest of what it gives comes from
    the filter's highest output where the line rises, and from its lowest where it falls: such filters are
    turned around, and only one value a frame is kept.
    """
    from torch.nn.functional import conv2d, pad, relu

    (kernel, bias), sign = _conv(weights, layer), weights[f"batch_normalization_{layer + 1}/gamma"].sign()
    lives = kernel.abs().amax((1, 2, 3)) > _DEAD
    out = bias[:, None].repeat(len(x), 1, x.shape[2])
    turned = sign[lives, None]
    padded, kernel = pad(x, (0, 0, *_PADS[layer])), turned[..., None, None] * kernel[lives]
    y = conv2d(padded, kernel, sign[lives] * bias[lives])
    out[:, lives] = turned * y.amax(3)
    return _norm(weights, relu(out), layer + 1)


def _conv(weights: dict, layer: int):
    """Kernel (filter, channel, frame, band) and bias of a layer."""
    name = f"conv2d_{layer}" if layer else "conv2d"
    return weights[f"{name}/kernel"].permute(3, 2, 0, 1), weights[f"{name}/bias"]


def _norm(weights: dict, x, layer: int):
    """Batch normalisation with what was learnt."""
    from torch.nn.functional import batch_norm

    name = f"batch_normalization_{layer}" if layer else "batch_normalization"
    learnt = (weights[f"{name}/{part}"] for part in ("moving_mean", "moving_variance", "gamma", "beta"))
    return batch_norm(x, *learnt, eps=1e-3)

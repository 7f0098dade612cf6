"""Audiobox Aesthetics: how good a clip sounds, by listeners' ratings of other music that a model learnt.

Package audiobox_aesthetics, weights `facebook/audiobox-aesthetics` from the Hugging Face hub (0.4 GB), both
CC-BY 4.0. It says nothing about what is played. Source: Tjandra et al. 2025, arXiv 2502.05139.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from ...sound import to_clips

AESTHETICS, RATE = "facebook/audiobox-aesthetics", 16_000
AXES = {"CE": "enjoyment", "CU": "usefulness", "PC": "complexity", "PQ": "quality"}


def aesthetics(audio: Any, sample_rate: int, model: str | Path = AESTHETICS) -> pd.DataFrame:
    """Content `enjoyment` and `usefulness`, production `complexity` and `quality` of each clip, 1 to 10.

    `audio`, `sample_rate` as in `judges.hear.hear`; `model` is a hub id or a folder. Clips are heard in
    windows of 10 s, as the package does, and averaged by length. Raises ImportError without the package and
    FileNotFoundError without its weights: each says how to get them.
    """
    import torch

    network = _network(str(model))
    from audiobox_aesthetics.infer import make_inference_batch

    clips = torch.from_numpy(to_clips(audio, sample_rate, RATE, 1))
    rows = []
    with torch.inference_mode():
        for clip in clips:
            wavs, masks, weights, _ = make_inference_batch([clip], sample_rate=RATE)
            found = network({"wav": torch.stack(wavs), "mask": torch.stack(masks)})
            weight = torch.tensor(weights)
            mean = {axis: float((x.flatten() * weight).sum() / weight.sum()) for axis, x in found.items()}
            scale = network.target_transform
            rows.append({word: mean[a] * scale[a]["std"] + scale[a]["mean"] for a, word in AXES.items()})
    return pd.DataFrame(rows)


@lru_cache(maxsize=1)
def _network(name):
    try:
        from audiobox_aesthetics.model.aes import AesMultiOutput
    except ImportError as error:
        raise ImportError("the ear 'aesthetics' needs `uv sync --extra ears`") from error
    try:
        return AesMultiOutput.from_pretrained(name, local_files_only=True).eval()
    except OSError as error:
        fetch = f"`hf download {AESTHETICS}` fetches it into the local cache, or give a folder as model="
        raise FileNotFoundError(f"no aesthetics model {name!r} on this machine; {fetch}") from error

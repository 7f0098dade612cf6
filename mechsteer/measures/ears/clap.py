"""CLAP, which holds sound against words: a judge that nobody here trained, for any concept and any model.

Package transformers (Apache 2.0), weights `laion/clap-htsat-unfused` from the Hugging Face hub (0.6 GB); none
are shipped, and nothing is downloaded here. It was trained on pairs of sounds and captions: it knows what
things are called, and is poor at pitch, harmony and small steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from ...sound import SILENCE, to_clips
from .asking import argmax_table

CLAP = "laion/clap-htsat-unfused"
_LEADS = "piano guitar violin flute trumpet organ saxophone clarinet cello voice"
WORDS = {  # what is asked where nobody says what
    "lead": tuple(_LEADS.split()),
    "style": ("classical", "jazz", "rock", "electronic", "pop", "hip hop", "country", "metal", "ambient"),
}
SENTENCES = {"lead": "music with a {} playing the melody", "style": "{} music"}


def clap(
    audio: Any,
    sample_rate: int,
    words: Mapping[str, Sequence[str]] | None = None,
    model: str | Path = CLAP,
) -> pd.DataFrame:
    """Which word of each group fits each clip best: zero-shot classification.

    Parameters
    ----------
    audio, sample_rate : as in `judges.hear.hear`
    words : group -> the words it chooses from, such as {"lead": ["oboe", "harp"]}; default `WORDS`. A group
        in `SENTENCES` has its words put into a sentence; those of another are asked as they are, so they may
        be whole descriptions: {"mood": ["calm, quiet music", "angry, loud music"]}.
    model : hub id or folder of a CLAP in transformers' format.

    Returns a pd.DataFrame, one row a clip: for each group the best word, and `p_<group>_<word>`, the softmax
    over the group's words of CLAP's own logits (cosine times its learnt scale). It always finds one: give the
    words that you would mind being confused. A silent clip has missing values. Raises ValueError for a group
    of fewer than two words, and what `clap_similarity` raises.
    Source: Wu et al. 2023, "Large-scale contrastive language-audio pretraining", sec. 3 (zero-shot).
    """
    words = {group: list(map(str, of)) for group, of in (WORDS if words is None else words).items()}
    if few := [group for group, of in words.items() if len(set(of)) < 2 or isinstance(of, str)]:
        raise ValueError(f"{', '.join(few)}: CLAP chooses between two different words or more")
    texts = [SENTENCES.get(group, "{}").format(word) for group, of in words.items() for word in of]
    found = clap_similarity(audio, sample_rate, texts, model) * _clap(str(model))[2]
    silent = np.abs(to_clips(audio, sample_rate, int(sample_rate), 1)[:, 0]).max(1) < SILENCE
    found[silent] = np.nan
    ends = np.cumsum([len(of) for of in words.values()])[:-1]
    logits = dict(zip(words, np.split(found, ends, axis=1), strict=True))
    return argmax_table({group: softmax(x, axis=1) for group, x in logits.items()}, words)


def clap_similarity(
    audio: Any, sample_rate: int, texts: str | Sequence[str], model: str | Path = CLAP
) -> np.ndarray:
    """Cosine similarity of each clip to each text in CLAP's joint embedding: (clip, text), in [-1, 1].

    `audio`, `sample_rate` and `model` as in `clap`; `texts` such as "jazz played on a guitar". Clips longer
    than the model's window (10 s) are cut into equal parts, whose embeddings are averaged. Raises
    FileNotFoundError if the weights aren't on this machine: it says how to get them.
    """
    import torch

    clap, processor, _ = _clap(str(model))
    extractor = processor.feature_extractor
    clips = to_clips(audio, sample_rate, extractor.sampling_rate, 1)[:, 0]
    parts = -(-clips.shape[-1] // extractor.nb_max_samples)
    found, texts = [], [texts] if isinstance(texts, str) else list(texts)
    with torch.inference_mode():
        text = processor(text=texts, return_tensors="pt", padding=True)
        words = clap.get_text_features(**text).pooler_output  # text, dim; of length 1
        for clip in clips:
            pieces = np.array_split(clip, parts)
            sound = extractor(pieces, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            found.append(clap.get_audio_features(**sound).pooler_output.mean(0))
        heard = torch.nn.functional.normalize(torch.stack(found), dim=-1)
    return (heard @ words.T).numpy()


def is_here() -> bool:
    """Whether CLAP's weights are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(CLAP, "config.json"), str)


@lru_cache(maxsize=1)
def _clap(name):
    from transformers import ClapModel, ClapProcessor

    try:
        model = ClapModel.from_pretrained(name, local_files_only=True).eval()
        scale = float(model.logit_scale_a.exp())
        return model, ClapProcessor.from_pretrained(name, local_files_only=True), scale
    except OSError as error:
        fetch = f"`hf download {CLAP}` fetches it into the local cache, or give the folder of one as model="
        raise FileNotFoundError(f"no CLAP {name!r} on this machine; {fetch}") from error

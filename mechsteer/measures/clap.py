"""How well clips fit a text, as CLAP hears it: a judge that nobody here trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..sound import to_clips

CLAP = "laion/clap-htsat-unfused"


def clap_similarity(
    audio: Any, sample_rate: int, texts: str | Sequence[str], model: str | Path = CLAP
) -> np.ndarray:
    """Cosine similarity of each clip to each text in CLAP's joint embedding: (clip, text), in [-1, 1].

    Parameters
    ----------
    audio, sample_rate : as in `judges.hear.hear`; channels are averaged.
    texts : str or list of str, such as "jazz played on a guitar".
    model : hub id or folder of a CLAP in transformers' format. Nothing is downloaded.

    Clips longer than the model's window (10 s) are cut into equal parts, whose embeddings are averaged.
    Raises FileNotFoundError if the weights aren't on this machine: it says how to get them.
    Source: Wu et al. 2023, "Large-scale contrastive language-audio pretraining".
    """
    import torch

    clap, processor = _clap(str(model))
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


@lru_cache(maxsize=1)
def _clap(name):
    from transformers import ClapModel, ClapProcessor

    try:
        model = ClapModel.from_pretrained(name, local_files_only=True)
        return model.eval(), ClapProcessor.from_pretrained(name, local_files_only=True)
    except OSError as error:
        fetch = f"`hf download {CLAP}` fetches it into the local cache, or give the folder of one as model="
        raise FileNotFoundError(f"no CLAP {name!r} on this machine; {fetch}") from error

"""How much two clips share, on four axes: harmony, rhythm, melody, structure.

`shared` compares a steered clip with its unsteered twin, say. Two unrelated clips share something, too: what
was *kept* is (shared - unrelated) / (1 - unrelated), with the mean of `shared` over unrelated pairs. How well
these ears hear exact notes and beats, and what related and other clips share: `data/tiny/notes_heard.json`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from . import _spectra as spectra
from .pitch import VOICED, melody

AXES = ("harmony", "rhythm", "melody", "structure")
BLOCK = 0.5  # s, over which chroma is averaged before a clip is held against itself
HOP, BEAT_HOP = 640, 160  # samples: 40 ms between chroma frames, 10 ms between places where a beat may fall


def shared(a: Any, b: Any, sample_rate: int) -> pd.DataFrame:
    """How much of each clip of `a` is in the clip of `b` beside it.

    Parameters
    ----------
    a, b : (sample,), (channel, sample) or (clip, channel, sample), of one shape, 3 s or more; `a` is the
        reference
    sample_rate : int, Hz, of both. Channels are averaged; all is heard at 16 kHz.

    Returns
    -------
    pd.DataFrame, one row per pair, floats in [0, 1]; 1 for the same sound on every axis:

    - `harmony`: cosine of the chroma vectors (power per pitch class, tuned to 440 Hz; frames of 256 ms every
      40 ms), the mean over the frames within 60 dB of `a`'s loudest;
    - `rhythm`: F-measure of the beats [1], which count as found again within 70 ms; beats by dynamic
      programming [2]. The standard evaluation leaves out the first 5 s of a piece; here all beats count.
    - `melody`: raw pitch accuracy [3]: the share of `a`'s voiced frames in which `b` has its pitch within 50
      cents. `pitch.melody` listens from 180 Hz up, so it doesn't hear a lower melody.
    - `structure`: Pearson's r, at least 0, of the two self-similarity matrices: cosines of the mean chroma of
      all pairs of blocks of 0.5 s within a clip. `b` in another key has its structure, and not its harmony.

    Missing where `a` has nothing to keep: it is silent, without a beat, without a voiced frame, or its blocks
    are all alike. 0 where `b` alone lacks it.

    Raises
    ------
    ValueError  if `a` and `b` differ in shape, are shorter than 3 s, or are no audio.

    Sources: the axes are those of TADA (Staniszewski et al. 2026, arXiv 2602.11910). [1] Davies et al. 2009,
    by `mir_eval.beat`. [2] Ellis 2007, by `librosa.beat`. [3] Poliner et al. 2007, by `mir_eval.melody`.
    """
    x, y = (spectra.mono(z, sample_rate, spectra.SHORTEST) for z in (a, b))
    if x.shape != y.shape:
        raise ValueError(f"clips {x.shape} and {y.shape} at 16 kHz; give pairs of the same number and length")
    pairs = zip(spectra.level(x), spectra.level(y), strict=True)
    return pd.DataFrame([_pair(p, q) for p, q in pairs], columns=list(AXES))


def chroma(clip: np.ndarray) -> np.ndarray:
    """Power per pitch class, C first, (12, frame): of float32 (sample,) at 16 kHz, a frame every 40 ms."""
    heard = spectra.librosa_ready().feature
    return heard.chroma_stft(y=clip, sr=spectra.RATE, n_fft=4096, hop_length=HOP, tuning=0, norm=None)


def beats(clip: np.ndarray) -> np.ndarray:
    """Times of the beats, s, ascending: of float32 (sample,) at 16 kHz; empty where there is no onset."""
    heard = spectra.librosa_ready().beat
    return heard.beat_track(y=clip, sr=spectra.RATE, hop_length=BEAT_HOP, units="time", trim=False)[1]


def _pair(a, b):
    (p, beats_p, melody_p), (q, beats_q, melody_q) = (_heard(clip.tobytes()) for clip in (a, b))
    power = p.sum(0)
    heard = (power > 1e-6 * power.max()) & (power > 0)
    harmony = (_unit(p) * _unit(q)).sum(0)[heard].mean() if heard.any() else np.nan
    return harmony, _rhythm(beats_p, beats_q), _melody(melody_p, melody_q), _structure(p, q)


@lru_cache(maxsize=128)  # a sweep's twins come back with every strength
def _heard(clip):
    clip = np.frombuffer(clip, np.float32)
    return chroma(clip), beats(clip), melody(clip)


def _rhythm(a, b):
    from mir_eval.beat import f_measure

    return f_measure(a, b) if len(a) and len(b) else 0.0 if len(a) else np.nan


def _melody(a, b):
    from mir_eval.melody import hz2cents, raw_pitch_accuracy

    (f, noise), (g, _) = a, b
    voiced = noise < VOICED
    return raw_pitch_accuracy(voiced, hz2cents(f), voiced, hz2cents(g)) if voiced.any() else np.nan


def _structure(p, q):
    n = round(p.shape[1] * HOP / spectra.RATE / BLOCK)
    blocks = (_unit(np.stack([part.mean(1) for part in np.array_split(z, n, axis=1)], 1)) for z in (p, q))
    a, b = ((z.T @ z)[np.triu_indices(n, 1)] for z in blocks)
    flat = [np.ptp(z) < 1e-3 for z in (a, b)]  # r would be of rounding
    return np.nan if flat[0] else 0.0 if flat[1] else max(0.0, np.corrcoef(a, b)[0, 1])


def _unit(z):
    return z / np.maximum(np.linalg.norm(z, axis=0), 1e-12)

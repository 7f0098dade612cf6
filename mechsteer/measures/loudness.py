"""Loudness of clips by ITU-R BS.1770 (pyloudnorm), and clips brought to one loudness without clipping any.

Louder sounds better, so a comparison between clips of unequal loudness compares loudness first.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._shared import number
from ..sound import to_clips

BLOCK = 0.4  # s, one gating block
CEILING = -1.0  # dBFS, the highest true peak of clips brought to one loudness


def loudness(audio: Any, sample_rate: int) -> np.ndarray:
    """Integrated loudness in LUFS, (clip,); NaN where all of a clip is below the gate of -70 LUFS.

    Parameters
    ----------
    audio : array or tensor
        (sample,), (channel, sample) or (clip, channel, sample), of at most five channels, which are weighted,
        not averaged.
    sample_rate : int, Hz

    Raises ValueError for clips shorter than a gating block, 0.4 s, or audio that `to_clips` refuses.
    Source: ITU-R BS.1770-4, as in pyloudnorm (Steinmetz & Reiss 2021).
    """
    from pyloudnorm import Meter

    channels = np.shape(audio)[-2] if np.ndim(audio) > 1 else 1
    clips, meter = to_clips(audio, sample_rate, sample_rate, channels), Meter(sample_rate)
    if clips.shape[-1] < BLOCK * sample_rate:
        seconds = clips.shape[-1] / sample_rate
        raise ValueError(f"clips of {seconds:.2f} s are too short: {BLOCK:g} s at least")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the logarithm of silence
        found = np.array([meter.integrated_loudness(clip.T.astype(float)) for clip in clips])
    return np.where(np.isfinite(found), found, np.nan)


def true_peak(clip: np.ndarray) -> float:
    """Largest magnitude of (channel, sample) in dBFS, between the samples too (BS.1770 annex 2)."""
    from scipy.signal import resample_poly

    peak = max(np.abs(clip).max(), np.abs(resample_poly(clip, 4, 1, axis=-1)).max())  # at 4 times the rate
    return float(20 * np.log10(max(peak, 1e-10)))


def match_loudness(
    clips: Sequence[np.ndarray], sample_rate: int, target: float = -23.0
) -> tuple[list[np.ndarray], float]:
    """Bring every clip (channel, sample) to the same loudness; their lengths may differ.

    `target` is in LUFS; if a clip would pass `CEILING` there, *all* come out lower by as much, none limited.

    Returns the clips as float32, and the loudness they have now, LUFS. Raises ValueError for a silent clip
    (its number is named), which no gain can match.
    """
    target = number("loudness (LUFS)", target, -100, 0)
    levels = [float(loudness(clip, sample_rate)[0]) for clip in clips]
    if silent := [str(k) for k, level in enumerate(levels) if np.isnan(level)]:
        raise ValueError(f"clip {', '.join(silent)} is silent, so no gain matches it: leave that item out")
    room = [CEILING - true_peak(clip) - (target - level) for clip, level in zip(clips, levels, strict=True)]
    reached = target + min(0.0, *room)
    gains = [10 ** ((reached - level) / 20) for level in levels]
    return [np.asarray(c * gain, dtype="float32") for c, gain in zip(clips, gains, strict=True)], reached

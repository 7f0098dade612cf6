"""Loudness of clips by ITU-R BS.1770 (pyloudnorm), and clips brought to one loudness without clipping any.

Louder sounds better, so a comparison between clips of unequal loudness compares loudness first.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

__all__ = ["loudness", "match_loudness", "true_peak"]


def loudness(clip: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness of (channel, sample) in LUFS, gated; minus infinity for silence.

    Raises
    ------
    ValueError  for clips shorter than one gating block, 0.4 s.
    """
    import pyloudnorm

    if clip.shape[-1] < 0.4 * sample_rate:
        raise ValueError(
            f"a clip of {clip.shape[-1] / sample_rate:.2f} s is too short for a loudness: 0.4 s at least"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(pyloudnorm.Meter(sample_rate).integrated_loudness(np.asarray(clip.T, dtype="float64")))


def true_peak(clip: np.ndarray) -> float:
    """Largest magnitude of (channel, sample), between the samples too (BS.1770 annex 2: 4 times the rate), in dBFS."""
    from scipy.signal import resample_poly

    peak = max(np.abs(clip).max(), np.abs(resample_poly(clip, 4, 1, axis=-1)).max())
    return float(20 * np.log10(max(peak, 1e-10)))


def match_loudness(
    clips: Sequence[np.ndarray], sample_rate: int, target: float = -23.0, ceiling: float = -1.0
) -> tuple[list[np.ndarray], float]:
    """Bring every clip (channel, sample) to the same loudness.

    Parameters
    ----------
    target : LUFS. If one clip would pass `ceiling` there, *all* come out lower by as much: equal, and none limited.
    ceiling : highest true peak allowed, dBFS.

    Returns
    -------
    clips, reached : the clips as float32, and the loudness they have now, LUFS.

    Raises
    ------
    ValueError  for a silent clip (its number is named), which no gain can match.
    """
    levels = [loudness(clip, sample_rate) for clip in clips]
    silent = [str(k) for k, level in enumerate(levels) if not np.isfinite(level)]
    if silent:
        raise ValueError(
            f"clip {', '.join(silent)} is silent, so its loudness can't be matched: leave that item out"
        )
    room = [ceiling - true_peak(clip) - (target - level) for clip, level in zip(clips, levels, strict=True)]
    reached = target + min(0.0, *room)
    matched = [
        np.asarray(clip * 10 ** ((reached - level) / 20), dtype="float32")
        for clip, level in zip(clips, levels, strict=True)
    ]
    return matched, reached

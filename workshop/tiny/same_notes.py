"""How much of the notes the codec gives back, as the card of the embedded model says it.

Steered clips are held against their twins by `mechsteer.measures.kept`.
"""

from typing import Any

import numpy as np

from mechsteer.measures import _spectra as spectra
from mechsteer.measures.pitch import VOICED, fundamental


def chroma_correlation(a: Any, b: Any, sample_rate: int) -> np.ndarray:
    """Correlation of the pitch-class profiles of two sets of clips, frame by frame, averaged over frames.

    Parameters
    ----------
    a, b : (sample,), (channel, sample) or (clip, channel, sample), of one shape; a[i] is held against b[i]
    sample_rate : int, Hz, of both.

    Returns
    -------
    np.ndarray (clip,): Pearson's r over the 12 pitch classes (frames of 256 ms every 40 ms), the mean over
    frames within 60 dB of `a`'s loudest. 1 is the same; NaN where `a` is silent. A frame in which `b` has no
    profile counts 0.

    Raises ValueError if `a` and `b` differ in shape, or are no audio.
    """
    x, y = _side_by_side(a, b, sample_rate)
    p, q = chroma(x), chroma(y)
    power = np.square(p).sum(1)
    heard = (power > 1e-6 * power.max(1, keepdims=True)) & (power > 0)
    centred = [z - z.mean(1, keepdims=True) for z in (p, q)]
    norm = np.sqrt(np.square(centred[0]).sum(1) * np.square(centred[1]).sum(1))
    r = np.where(norm > 0, (centred[0] * centred[1]).sum(1) / np.maximum(norm, 1e-12), 0.0)
    return _mean_where(r, heard)


def pitch_agreement(a: Any, b: Any, sample_rate: int) -> np.ndarray:
    """Share of the frames voiced in `a` whose fundamental in `b` is within 50 cents of it.

    Parameters, shapes and errors as in `chroma_correlation`. The fundamental is `fundamental`'s (in a
    mixture, that of the part which dominates); a frame is voiced where less than a fifth of `a` is aperiodic.
    Returns (clip,), in [0, 1]; NaN where `a` has no voiced frame.
    """
    (f, noise), (g, _) = (fundamental(x, spectra.RATE) for x in _side_by_side(a, b, sample_rate))
    return _mean_where(np.abs(1200 * np.log2(g / f)) <= 50, noise < VOICED)


def chroma(audio: np.ndarray, size: int = 4096, hop: int = 640) -> np.ndarray:
    """Power per pitch class from A1 to G#6, C first, square root taken, (clip, 12, frame)."""
    bands = spectra.power_spectrum(spectra.level(audio), size, hop) @ spectra.note_filters(size)
    octaves = bands.reshape(*bands.shape[:2], -1, 12).sum(axis=2)
    return np.roll(np.sqrt(octaves), spectra.LOWEST_NOTE % 12, axis=-1).swapaxes(1, 2)


def _side_by_side(a, b, sample_rate):
    x, y = (spectra.mono(z, sample_rate) for z in (a, b))
    if x.shape != y.shape:
        raise ValueError(f"clips {x.shape} and {y.shape} at 16 kHz; give pairs of the same number and length")
    return x, y


def _mean_where(value, where):
    count = where.sum(1)
    return np.where(count > 0, np.where(where, value, 0.0).sum(1) / np.maximum(count, 1), np.nan)

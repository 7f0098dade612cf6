"""The fundamental of each frame by YIN, and of what sounds above the bass: the melody."""

from __future__ import annotations

import numpy as np
from scipy import fft

from . import _spectra as spectra

LOWEST, HIGHEST = 60.0, 1600.0  # Hz
ABOVE = 180.0  # Hz; a melody is looked for above it, as a bass plays below
VOICED = 0.2  # aperiodicity below which a frame has a pitch
_WINDOW, _HOP = 1024, 640  # samples: 64 ms every 40 ms


def melody(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hertz and aperiodicity, (frame,), of what sounds above 180 Hz in one clip, float (sample,) at 16 kHz.

    In a mixture that is rather the melody; of the whole sound, YIN would follow the bass. See `fundamental`.
    """
    from scipy.signal import butter, sosfiltfilt

    filtered = sosfiltfilt(butter(4, ABOVE, "high", fs=spectra.RATE, output="sos"), clip)
    (hertz,), (noise,) = fundamental(filtered[None], spectra.RATE, ABOVE)
    return hertz, noise


def fundamental(audio: np.ndarray, sample_rate: int, lowest: float = LOWEST) -> tuple[np.ndarray, np.ndarray]:
    """Fundamental frequency of each frame by YIN.

    Parameters
    ----------
    audio : float (clip, sample)
    sample_rate : int, Hz
    lowest : Hz, from where to search; up to 1600 Hz.

    Returns hertz and aperiodicity, float (clip, frame), one every 640 samples. Aperiodicity is 0 for a
    periodic frame, about 1 for noise and 1 for silence.
    Source: de Cheveigne & Kawahara 2002, steps 1 to 5.
    """
    frames = [_yin(clip.astype(np.float64), sample_rate, lowest) for clip in audio]
    return tuple(np.stack(values) for values in zip(*frames, strict=True))


def _yin(clip, sample_rate, lowest):
    first, last = int(sample_rate / HIGHEST), int(sample_rate / lowest)
    size = _WINDOW + last
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(clip, size // 2), size)[::_HOP]
    n = fft.next_fast_len(size, real=True)
    product = fft.irfft(fft.rfft(frames, n) * fft.rfft(frames[:, :_WINDOW], n).conj(), n)[:, : last + 1]
    energy = np.cumsum(np.pad(np.square(frames), ((0, 0), (1, 0))), axis=1)
    energy = energy[:, _WINDOW : _WINDOW + last + 1] - energy[:, : last + 1]
    difference = np.maximum(energy[:, :1] + energy - 2 * product, 0)
    lag = np.arange(last + 1)
    mean = np.cumsum(difference[:, 1:], axis=1) / lag[1:]
    least = 1e-9 * energy[:, :1] + 1e-12  # silence has no period
    d = np.ones_like(difference)
    d[:, 1:] = np.where(mean > least, difference[:, 1:] / np.maximum(mean, least), 1.0)
    inner = d[:, 1:-1]
    dip = (inner <= d[:, 2:]) & (inner < d[:, :-2]) & (inner < VOICED) & (lag[1:-1] >= first)
    lowest = np.where(lag[1:-1] >= first, inner, np.inf).argmin(1)
    best = np.where(dip.any(1), dip.argmax(1), lowest) + 1  # the first dip, or else the deepest
    left, middle, right = (d[np.arange(len(d)), best + k] for k in (-1, 0, 1))
    bend = left - 2 * middle + right
    sharper = np.where(bend > 1e-9, 0.5 * (left - right) / np.maximum(bend, 1e-9), 0.0)
    return sample_rate / (best + np.clip(sharper, -0.5, 0.5)), middle

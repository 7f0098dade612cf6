"""Short-time spectra of 16 kHz mono clips in numpy: what the judges and the measures of `pitch` hear.

Functions take float32 (clip, sample), as `mono` gives it, and return float32 (clip, band, frame). Frame i is
centred on sample i * hop; beyond its ends a clip is silent. Levels are relative to the clip's own RMS.
"""

import getpass
import tempfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy import fft

from ..sound import to_clips

RATE = 16_000  # Hz
FLOOR = 1e-5  # added to power before the logarithm: 50 dB below a band as loud as the whole clip
SILENCE = 1e-5  # RMS below which a clip counts as silent (-100 dB of full scale)
SHORTEST = 3.0  # s that a clip needs to be judged, or to have a texture
LOWEST_NOTE, NOTES = 33, 60  # MIDI; A1 (55 Hz) and five octaves up


def mono(audio: Any, sample_rate: int, shortest: float = 0.0) -> np.ndarray:
    """Any audio that `to_clips` takes as (clip, sample) at 16 kHz; ValueError under `shortest` s."""
    clips = to_clips(audio, sample_rate, RATE, 1)[:, 0]
    if clips.shape[-1] < shortest * RATE:
        raise ValueError(f"clips of {clips.shape[-1] / RATE:.2f} s; {shortest:g} s or more are needed")
    return clips


def rms(audio: np.ndarray) -> np.ndarray:
    """Root mean square of each clip, (clip,)."""
    return np.sqrt(np.mean(np.square(audio, dtype=np.float64), axis=-1))


def level(audio: np.ndarray) -> np.ndarray:
    """Clips scaled to an RMS of 1; silent ones become zeros."""
    strength = rms(audio)[:, None]
    return np.where(strength > SILENCE, audio / np.maximum(strength, SILENCE), 0.0).astype(np.float32)


def power_spectrum(audio: np.ndarray, size: int, hop: int) -> np.ndarray:
    """Power spectrogram with a Hann window of `size` samples, (clip, frame, bin); a tone of RMS 1 has 1."""
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    padded = np.pad(audio, ((0, 0), (size // 2, size // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size, axis=-1)[:, ::hop]
    spectrum = fft.rfft(frames * window, axis=-1)
    return (spectrum.real**2 + spectrum.imag**2) * np.float32(2 / window.sum() ** 2)


@lru_cache
def mel_filters(size: int, bands: int, lowest: float = 30.0, highest: float = 7600.0) -> np.ndarray:
    """Triangles of height 1 spaced evenly in mel (O'Shaughnessy's formula), (bin, band)."""
    mel = np.linspace(*(2595 * np.log10(1 + np.array([lowest, highest]) / 700)), bands + 2)
    return _triangles(700 * (10 ** (mel / 2595) - 1), size)


@lru_cache
def slaney_filters(size: int, bands: int, rate: int = RATE, norm: str | None = "slaney") -> np.ndarray:
    """librosa's mel filters from 0 Hz to half of `rate`, (bin, band), from torchaudio, which loads faster."""
    from torchaudio.functional import melscale_fbanks

    return melscale_fbanks(size // 2 + 1, 0.0, rate / 2, bands, rate, norm, "slaney").numpy()


@lru_cache
def note_filters(size: int) -> np.ndarray:
    """Triangles of height 1, one per semitone of five octaves from A1 up, (bin, note)."""
    return _triangles(440 * 2 ** ((np.arange(LOWEST_NOTE - 1, LOWEST_NOTE + NOTES + 1) - 69) / 12), size)


def _triangles(edges, size):
    """Filters that peak at edges[1:-1] Hz, with feet at their neighbours' peaks, at least a bin away."""
    step = RATE / size
    hertz, centre = np.arange(size // 2 + 1)[:, None] * step, edges[1:-1]
    below = (hertz - centre) / np.maximum(centre - edges[:-2], step)
    above = (centre - hertz) / np.maximum(edges[2:] - centre, step)
    return np.maximum(0, 1 + np.minimum(below, above)).astype(np.float32)


def log_mel(audio: np.ndarray, size: int = 1024, hop: int = 256, bands: int = 64) -> np.ndarray:
    """Natural log of mel-band power, (clip, band, frame)."""
    return np.log(power_spectrum(level(audio), size, hop) @ mel_filters(size, bands) + FLOOR).swapaxes(1, 2)


def note_spectrum(audio: np.ndarray, size: int = 8192, hop: int = 2048) -> np.ndarray:
    """Magnitude of each semitone of five octaves from A1 (55 Hz), (clip, note, frame); a lone one has 1.2."""
    return np.sqrt(power_spectrum(level(audio), size, hop) @ note_filters(size)).swapaxes(1, 2)


@lru_cache
def librosa_ready() -> Any:
    """librosa, once it has compiled what is used here; what else it compiles at import waits for a call.

    One process at a time: numba keeps what it compiles on disk, and one that loads it meanwhile can crash.
    """
    import numba
    from filelock import FileLock

    lock = Path(tempfile.gettempdir()) / f"mechsteer-librosa-{getpass.getuser()}.lock"
    with FileLock(lock), mock.patch.object(numba, "guvectorize", partial(_when_called, numba.guvectorize)):
        import librosa

        noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
        librosa.beat.beat_track(y=noise, sr=RATE)
        librosa.estimate_tuning(y=noise, sr=RATE)
    return librosa


def _when_called(guvectorize, types, *given, **options):
    """numba's decorator, done at a call, for those of `types` that hold its arguments, and kept on disk."""

    @lru_cache
    def made(fun, kind):
        return guvectorize([t for t in types if kind in t] or types, *given, **options | {"cache": True})(fun)

    return lambda fun: lambda *x, **named: made(fun, f"({np.result_type(*x)}")(*x, **named)

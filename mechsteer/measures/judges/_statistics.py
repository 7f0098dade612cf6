"""The second judge of `hear`: hand-made statistics of the spectra and linear models, no neural network.

- sound and rhythm (the weights call them "texture"): statistics of mel-frequency cepstral coefficients,
  onsets and rates, with logistic regression for lead, style and drums;
- key: how loud each pitch class is in three registers. One linear template for major and one for minor is
  held against the statistics turned to every tonic;
- tempo: a Fourier tempogram. One linear template per style is held against it at every tempo in turn.

Everything is numpy; the weights come from `python -m workshop.tiny.judge`, fitted by scikit-learn.
"""

import numpy as np
from scipy import fft
from scipy.special import log_softmax

OCTAVE = 24  # tempi per octave
BPM = 55 * 2 ** (np.arange(43) / OCTAVE)  # 55 to 185
_BELOW, _ABOVE = 42, 66  # the tempogram's reach around a tempo: 0.3 to 6.7 times the beat's rate
_FPS = 16_000 / 256  # frames of the log-mel spectrogram per second
_COEFFICIENTS = 26


def sound_and_rhythm(mel: np.ndarray) -> np.ndarray:
    """Statistics of sound and rhythm, (clip, 618), of log-mel spectrograms (clip, band, frame).

    Per cepstral coefficient its mean, spread, skewness, quantiles and movement over 1, 2, 4 and 8 frames; how
    strong the onsets of each of 16 bands are (mean, spread, quantiles); the tempogram in 50 bands of rate.
    """
    cepstrum = fft.dct(mel.astype(np.float32), axis=1, norm="ortho")[:, 1 : _COEFFICIENTS + 1]
    steps = np.diff(cepstrum, axis=-1)
    centred = cepstrum - cepstrum.mean(-1, keepdims=True)
    spread = cepstrum.std(-1)
    parts = [cepstrum.mean(-1), spread, np.abs(steps).mean(-1), steps.std(-1)]
    parts += [(centred**3).mean(-1) / (spread**3 + 1)]
    parts += list(np.quantile(cepstrum, (0.1, 0.25, 0.5, 0.75, 0.9), axis=-1))
    parts += [np.abs(cepstrum[..., lag:] - cepstrum[..., :-lag]).mean(-1) for lag in (2, 4, 8)]
    onsets = rises(mel, 16)
    strengths = [onsets.mean(-1), onsets.std(-1), *np.quantile(onsets, (0.5, 0.9, 0.97), axis=-1)]
    rates = tempogram(mel)[..., :150].reshape(len(mel), 4, 50, 3).max(-1)
    parts += [np.log(x + 0.02) for x in strengths] + [np.log(rates + 0.05).reshape(len(mel), -1)]
    return np.concatenate(parts, axis=1)


def rises(mel: np.ndarray, bands: int) -> np.ndarray:
    """How far each band rose over two frames, (clip, band, frame - 2), nepers of power; 0 where it fell."""
    mel = mel.astype(np.float32)
    rise = np.maximum(mel[..., 2:] - mel[..., :-2], 0)
    return rise.reshape(len(mel), bands, -1, rise.shape[-1]).mean(2)


def pitch_classes(notes: np.ndarray) -> np.ndarray:
    """Mean and spread of pitch classes in three registers, (clip, 6, 12) from A, of (clip, note, frame)."""
    registers = np.exp(-0.5 * ((np.arange(60) - np.array([8.0, 26.0, 44.0])[:, None]) / 8) ** 2)
    level = np.sqrt(notes.astype(np.float32))[:, None] * registers[..., None].astype(np.float32)
    level = level.reshape(*level.shape[:2], 5, 12, level.shape[-1]).sum(2)
    level /= np.maximum(level.mean((2, 3), keepdims=True), 1e-4)
    return np.concatenate([level.mean(-1), level.std(-1)], axis=1)


def turned(classes: np.ndarray) -> np.ndarray:
    """Pitch-class statistics as heard from each tonic, (clip, 12 tonics, 72)."""
    views = [np.roll(classes, -tonic, axis=-1) for tonic in range(12)]
    return np.stack(views, axis=1).reshape(len(classes), 12, -1)


def tempogram(mel: np.ndarray) -> np.ndarray:
    """Strength of each rate in the onsets of four bands, (clip, 4, rate): around `BPM`, 24 per octave."""
    onset = rises(mel, 4)
    onset -= onset.mean(-1, keepdims=True)
    onset /= onset.std(-1, keepdims=True) + 1e-3
    frames = onset.shape[-1]
    rate = BPM[0] / 60 * 2 ** (np.arange(-_BELOW, len(BPM) + _ABOVE) / OCTAVE)  # Hz
    wave = np.exp(-2j * np.pi * np.arange(frames)[:, None] / _FPS * rate).astype(np.complex64)
    return np.abs((onset * np.hanning(frames).astype(np.float32)) @ wave) / np.float32(np.sqrt(frames))


def around(tempograms: np.ndarray) -> np.ndarray:
    """The tempogram relative to each candidate tempo, (clip, tempo of BPM, 4 * 55)."""
    views = np.lib.stride_tricks.sliding_window_view(tempograms, _BELOW + _ABOVE + 1, axis=-1)[..., ::2]
    return views.swapaxes(1, 2).reshape(len(tempograms), len(BPM), -1)


def standardise(x: np.ndarray, weights: dict, name: str) -> np.ndarray:
    """Features as the linear model `name` was fitted on: mean 0, spread 1, outliers drawn in to 4."""
    return np.clip((x - weights[f"{name}.mean"]) / weights[f"{name}.spread"], -4, 4)


def linear(x: np.ndarray, weights: dict, name: str) -> np.ndarray:
    """Scores of the linear model `name`."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def judge(mel: np.ndarray, notes: np.ndarray, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Log-probabilities of lead, style, drums, beat (of BPM), key (mode, tonic from A); the `embedding`."""
    x = standardise(sound_and_rhythm(mel), weights, "texture")
    out = {name: log_softmax(linear(x, weights, name), axis=1) for name in ("lead", "style", "drums")}
    key = linear(standardise(turned(pitch_classes(notes)), weights, "turned"), weights, "key")
    out["key"] = log_softmax(key.reshape(len(x), -1), axis=1).reshape(len(x), 12, 2).swapaxes(1, 2)
    out["beat"] = log_softmax(beat_scores(around(tempogram(mel)), np.exp(out["style"]), weights), axis=1)
    return out | {"embedding": x}


def beat_scores(candidates: np.ndarray, styles: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Score of each tempo, (clip, tempo): the styles' templates, weighted by how likely each style is."""
    scores = linear(standardise(candidates, weights, "around"), weights, "beat")  # clip, tempo, style
    return (scores * styles[:, None]).sum(-1)

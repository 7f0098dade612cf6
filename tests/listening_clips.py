"""Small sounds for listening tests: one pitch a condition, so that a test tells which is which by ear."""

from pathlib import Path

import numpy as np

from mechsteer import ListeningTest

PITCH = {"steered": 440.0, "unsteered": 220.0, "oversteered": 880.0}  # Hz
RATE = 16000


def clip(hertz: float, seconds: float = 1.5, gain: float = 0.2, seed: int = 0) -> tuple[np.ndarray, int]:
    t = np.arange(int(seconds * RATE)) / RATE
    noise = 0.01 * np.random.default_rng(seed).standard_normal(t.size)
    return (gain * sum(np.sin(2 * np.pi * hertz * k * t) / k for k in (1, 2, 3)) + noise)[None], RATE


def conditions(names=("steered", "unsteered"), items: int = 2, seconds: float = 1.5) -> dict:
    """Item k of a condition is its pitch times (1 + k / 50); conditions differ in loudness by a factor 2."""
    return {
        name: [
            clip(PITCH[name] * (1 + k / 50), seconds, 0.1 * (1 + n), seed=10 * n + k) for k in range(items)
        ]
        for n, name in enumerate(names)
    }


def make(
    folder: Path, kind: str = "preference", names=("steered", "unsteered"), items: int = 2, **options
) -> ListeningTest:
    question = {
        "preference": "Which sounds more like guitar?",
        "abx": "Is X the same as A or as B?",
        "rating": "How much does it sound like guitar?",
    }[kind]
    return ListeningTest(conditions(names, items), question, name="try", kind=kind, folder=folder, **options)


def pitch(samples: np.ndarray, rate: int) -> float:
    """The strongest frequency, Hz."""
    spectrum = np.abs(np.fft.rfft(samples.reshape(len(samples), -1)[:, 0] * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


def condition_of(samples: np.ndarray, rate: int) -> str:
    heard = pitch(samples, rate)
    return min(PITCH, key=lambda name: abs(np.log(PITCH[name] * 1.01 / heard)))

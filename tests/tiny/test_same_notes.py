"""What the card says of the codec: which notes come back."""

import numpy as np
import pytest

from workshop.tiny.same_notes import chroma_correlation, pitch_agreement

RATE = 16_000


def tone(hertz, seconds=3.0):
    t = np.arange(round(seconds * RATE)) / RATE
    return sum(0.2 / k * np.sin(2 * np.pi * k * hertz * t) for k in (1, 2, 3))


def test_agreement_counts_semitones_and_correlation_forgives_octaves():
    a = np.stack([tone(220)] * 4)[:, None]
    b = np.stack([tone(220 * 2 ** (cents / 1200)) for cents in (0, 30, 100, 1200)])[:, None]
    np.testing.assert_allclose(pitch_agreement(a, b, RATE), [1, 1, 0, 0], atol=0.06)
    r = chroma_correlation(a, b, RATE)
    assert r[0] == pytest.approx(1) and r[3] > 0.9 and r[2] < 0.4
    assert np.isnan(pitch_agreement(0 * a, a, RATE)).all()
    assert (
        np.isnan(chroma_correlation(0 * a, a, RATE)).all() and (chroma_correlation(a, 0 * a, RATE) == 0).all()
    )
    with pytest.raises(ValueError, match="same number and length"):
        pitch_agreement(a, a[:1], RATE)

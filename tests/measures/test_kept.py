"""What two clips share: all of themselves, and of a tune in another key its rhythm and structure only."""

import numpy as np
import pandas as pd
import pytest
from mir_eval.beat import f_measure

from mechsteer.measures import kept
from mechsteer.measures.pitch import VOICED, melody

RATE, SECONDS = 16_000, 5.0
TUNE = (60, 64, 67, 72, 71, 67, 62, 65, 69, 60)  # MIDI, a note every half second


def tone(pitch, seconds=0.5):
    t, hertz = np.arange(round(seconds * RATE)) / RATE, 440 * 2 ** ((pitch - 69) / 12)
    return 0.2 * np.exp(-3 * t) * sum(np.sin(2 * np.pi * k * hertz * t) / k for k in (1, 2, 3))


def tune(up=0, seconds=0.5):
    """The tune, transposed by semitones; float32 (sample,), 5 s."""
    sound = np.concatenate([tone(pitch + up, seconds) for pitch in TUNE * 2])
    return sound[: round(SECONDS * RATE)].astype(np.float32)


@pytest.fixture(scope="module")
def table():
    """The tune beside itself in other guises, by what was done to it."""
    noise = np.random.default_rng(0).normal(0, 1e-3, tune().shape).astype(np.float32)
    others = {"same": tune(), "softer": 0.1 * tune(), "noisy": tune() + noise, "transposed": tune(3)}
    others |= {"faster": tune(seconds=0.37), "silent": 0 * tune()}
    b = np.stack(list(others.values()))[:, None]
    found = kept.shared(np.stack([tune()] * len(b))[:, None], b, RATE)
    return found.set_axis(list(others))


def test_a_clip_shares_all_with_itself_at_any_gain(table):
    assert tuple(table) == kept.AXES
    np.testing.assert_allclose(table.loc[["same", "softer"]], 1, atol=1e-6)
    assert (table.loc["noisy"] > 0.95).all()


def test_another_key_keeps_rhythm_and_structure(table):
    harmony, rhythm, tune, structure = table.loc["transposed"]
    assert harmony < 0.5 and tune < 0.1
    assert rhythm > 0.9 and structure > 0.9


def test_another_tempo_keeps_neither_rhythm_nor_tune(table):
    assert (table.loc["faster"] < 0.6).all()


def test_silence_has_lost_all_and_nothing_to_keep(table):
    assert (table.loc["silent"] == 0).all()
    assert kept.shared(0 * tune(), tune(), RATE).isna().all(axis=None)
    assert kept.shared(0 * tune(), 0 * tune(), RATE).isna().all(axis=None)


def test_a_held_tone_has_no_structure_and_noise_no_melody():
    t = np.arange(round(SECONDS * RATE)) / RATE
    held = kept.shared(np.sin(2 * np.pi * 440 * t), tune(), RATE).loc[0]
    assert np.isnan(held["structure"]) and held[["harmony", "melody"]].notna().all()
    noise = np.random.default_rng(0).normal(0, 0.1, t.shape)
    noise -= np.convolve(noise, np.ones(40) / 40, "same")  # none below 180 Hz
    assert kept.shared(noise, tune(), RATE)["melody"].fillna(0).lt(0.1).all()


def test_pairs_are_compared_one_by_one_at_any_rate_and_channels():
    a = np.stack([tune(), tune(3)])[:, None]
    both = kept.shared(a, a[::-1], RATE)
    alone = kept.shared(a[1], a[0], RATE)
    np.testing.assert_allclose(both.loc[1], alone.loc[0], atol=1e-6)
    stereo = np.repeat(a.repeat(2, axis=2), 2, axis=1)  # held samples: 32 kHz
    pd.testing.assert_frame_equal(kept.shared(stereo, stereo, 2 * RATE), both * 0 + 1, atol=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((2, 1, 48_000)), np.zeros((1, 1, 48_000)), "the same number and length"),
        (np.zeros(48_000), np.zeros(64_000), "the same number and length"),
        (np.zeros(8_000), np.zeros(8_000), "3 s or more are needed"),
        (np.full(48_000, np.nan), np.zeros(48_000), "NaN"),
    ],
    ids=["number", "length", "short", "nan"],
)
def test_what_cannot_be_compared_is_said(a, b, message):
    with pytest.raises(ValueError, match=message):
        kept.shared(a, b, RATE)


def test_beats_are_found_where_they_are():
    clicks, every = np.zeros(round(SECONDS * RATE), np.float32), np.arange(0.2, SECONDS, 0.5)
    for at in every:
        clicks[round(at * RATE) :][:400] = np.random.default_rng(0).normal(0, 0.3, 400)
    assert f_measure(every, kept.beats(clicks)) > 0.8
    assert len(kept.beats(0 * clicks)) == 0


def test_the_melody_is_heard_above_a_louder_bass():
    low, high = (np.sin(2 * np.pi * f * np.arange(RATE * 3) / RATE) for f in (65.4, 523.25))
    hertz, noise = melody((0.3 * low + 0.1 * high).astype(np.float32))
    inside = slice(3, -3)
    assert (noise[inside] < VOICED).all()
    np.testing.assert_allclose(1200 * np.log2(hertz[inside] / 523.25), 0, atol=20)

"""Loudness by BS.1770, and clips matched to it."""

import numpy as np
import pytest

from mechsteer.measures.loudness import loudness, match_loudness, true_peak


def tone(seconds: float = 2.0, rate: int = 48000, hertz: float = 997.0, peak: float = 1.0) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate))[None]


@pytest.mark.parametrize("rate", [16000, 32000, 48000])
def test_a_full_scale_sine_in_one_channel_reads_minus_three(rate):
    """ITU-R BS.1770-4, annex 1: 0 dBFS at 997 Hz in one front channel is -3.01 LKFS."""
    assert loudness(tone(rate=rate), rate) == pytest.approx(-3.01, abs=0.1)
    assert loudness(np.repeat(tone(rate=rate), 2, 0), rate) == pytest.approx(0.0, abs=0.1)


def test_true_peak_sees_between_the_samples():
    quarter = np.sin(np.pi / 2 * np.arange(4000) + np.pi / 4)[None]  # samples at 0.707, waveform up to 1
    assert 20 * np.log10(np.abs(quarter).max()) == pytest.approx(-3.01, abs=0.01)
    assert true_peak(quarter) == pytest.approx(0.0, abs=0.6)


def test_clips_come_out_equally_loud_and_none_clips():
    rng = np.random.default_rng(0)
    clips = [tone(peak=0.01), 0.3 * rng.standard_normal((1, 96000)), np.repeat(tone(peak=0.5), 2, 0)]
    matched, reached = match_loudness(clips, 48000)
    assert reached == -23
    assert [loudness(clip, 48000)[0] for clip in matched] == pytest.approx([-23] * 3, abs=0.05)
    spike = np.zeros((1, 96000))
    spike[0, ::4800] = 0.5  # much peak, little loudness
    matched, reached = match_loudness([*clips, spike], 48000, target=-14)
    assert reached < -14
    assert [loudness(clip, 48000)[0] for clip in matched] == pytest.approx([reached] * 4, abs=0.05)
    assert max(true_peak(clip) for clip in matched) == pytest.approx(-1.0, abs=0.01)


def test_silence_and_snippets_are_refused():
    with pytest.raises(ValueError, match="clip 1 is silent"):
        match_loudness([tone(), 0 * tone()], 48000)
    with pytest.raises(ValueError, match="too short"):
        loudness(tone(0.1), 48000)


def test_every_clip_of_a_batch_has_its_own_and_silence_none():
    clips = np.stack([tone(peak=0.2), tone(peak=0.1), tone(peak=1e-5)])
    found = loudness(clips, 48000)
    assert found.shape == (3,) and np.isnan(found[2])
    assert found[0] - found[1] == pytest.approx(20 * np.log10(2), abs=0.01)
    assert loudness((clips[0] * 32767).astype(np.int16), 48000) == pytest.approx(found[:1], abs=0.01)

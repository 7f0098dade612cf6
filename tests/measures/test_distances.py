"""Distances between sets of clips: invariances, closed forms, no bias, and classes told apart."""

import numpy as np
import pytest

import mechsteer as ms
from mechsteer.measures import distances
from mechsteer.measures.distances import kernel_distance

RATE = 16_000


def noise(n=2, seconds=3.0, rate=RATE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (n, 1, round(seconds * rate))).astype(np.float32)


def gaussian(n, dim=6, shift=0.0, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)) + shift * np.eye(dim)[0]


def turned(x, seed=9) -> np.ndarray:
    return x @ np.linalg.qr(np.random.default_rng(seed).normal(size=(x.shape[1],) * 2))[0]


# --- the embedding


def test_gain_channels_integers_and_company_leave_texture_alone():
    clips = noise()
    plain = distances.texture(clips, RATE)
    assert plain.shape == (2, 160) and plain.dtype == np.float32
    np.testing.assert_allclose(distances.texture(0.01 * clips, RATE), plain, atol=1e-3)
    np.testing.assert_allclose(distances.texture(np.repeat(clips, 2, axis=1), RATE), plain, atol=1e-3)
    np.testing.assert_allclose(distances.texture((clips * 32_000).astype(np.int16), RATE), plain, atol=0.02)
    np.testing.assert_allclose(distances.texture(clips[1], RATE)[0], plain[1], atol=1e-4)


def test_texture_says_which_band_sounds_and_how_fast_it_moves():
    time = np.arange(4 * RATE) / RATE
    for rate, octave in ((0.75, 0), (3.0, 2), (11.0, 4)):
        clip = noise(1, 4.0) * (1 + 0.8 * np.sin(2 * np.pi * rate * time))
        assert (distances.texture(clip, RATE)[0, 64:].reshape(16, 6).mean(0).argmax()) == octave
    low, high = (
        distances.texture(np.sin(2 * np.pi * hertz * time), RATE)[0, :32].argmax() for hertz in (200, 4000)
    )
    assert low < 6 and 20 < high < 30


def test_the_modulation_adds_up_to_the_spread():
    clips = noise(1, 8.0)
    mel = distances.spectra.log_mel(clips[:, 0], bands=32)[0]
    slow = mel.reshape(16, 2, -1).mean(1)
    total = np.sqrt(np.square(distances.texture(clips, RATE)[0, 64:].reshape(16, 6)).sum(1))
    np.testing.assert_allclose(total, slow.std(-1), rtol=0.15)


def test_texture_of_silence_is_far_from_everything_and_short_clips_are_refused():
    clips = np.concatenate([noise(), 0 * noise(1)])
    found = distances.texture(clips, RATE)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found[2] - found[0]) > 5 * np.linalg.norm(found[1] - found[0])
    with pytest.raises(ValueError, match="3 s or more are needed"):
        distances.texture(noise(seconds=2.9), RATE)


def test_distances_tell_instruments_apart():
    from mechsteer.activations.clips import read_clip

    clips = ms.clips("orchestra")
    found = {}
    for lead in ("organ", "guitar"):
        some = clips[clips["lead"] == lead].sample(16, random_state=0)
        short = [np.asarray(codes)[:, :75] for codes in some["codes"]]
        heard = [read_clip(row) for _, row in some.assign(codes=short, duration=3.0).iterrows()]
        found[lead] = distances.texture(np.stack([audio for audio, _ in heard]), heard[0][1])
    organ, guitar = found["organ"], found["guitar"]
    assert kernel_distance(guitar[:8], guitar[8:]).value < kernel_distance(organ[:8], guitar[8:]).value
    assert kernel_distance(organ, guitar, n=300).lo > 0


# --- kernel distance


def test_the_kernel_distance_is_the_unbiased_estimate_written_out():
    x, y, width = gaussian(5), gaussian(7, shift=1.0, seed=1), 1.7
    k = lambda a, b: np.exp(-np.square(a - b).sum() / (2 * width**2))
    mean = lambda a, b: np.mean(
        [k(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if a is not b or i != j]
    )
    assert kernel_distance(x, y, width).value == pytest.approx(
        100 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    )
    median = np.median([np.linalg.norm(y[i] - y[j]) for i in range(7) for j in range(i)])
    assert kernel_distance(x, y).value == pytest.approx(kernel_distance(x, y, median).value)


def test_the_kernel_distance_between_halves_of_one_set_scatters_around_zero():
    rng, whole = np.random.default_rng(0), gaussian(60)
    halves = [
        kernel_distance(whole[order[:20]], whole[order[20:]], 3.0).value
        for order in (rng.permutation(60) for _ in range(200))
    ]
    assert abs(np.mean(halves)) < 0.3 * np.std(halves)
    assert 0.3 < np.mean(np.array(halves) > 0) < 0.7


def test_the_kernel_distance_grows_with_distance_and_keeps_its_invariances():
    x, y = gaussian(40), gaussian(50, seed=1)
    apart = [kernel_distance(gaussian(40, shift=s), y).value for s in (0.0, 1.0, 2.0, 4.0)]
    assert (np.diff(apart) > 0).all() and apart[0] < 5 and apart[-1] < 200
    plain = kernel_distance(x, y).value
    for a, b in ((x[::-1], y[::-1]), (turned(x), turned(y)), (x + 5, y + 5), (3 * x, 3 * y)):
        assert kernel_distance(a, b).value == pytest.approx(plain, abs=1e-9)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_interval_of_the_kernel_distance_is_as_wide_as_its_scatter(shift):
    draws = [(gaussian(30, 20, shift, seed=i), gaussian(40, 20, seed=1000 + i)) for i in range(60)]
    found = [kernel_distance(x, y, 6.0, n=200) for x, y in draws]
    scatter, width = np.std([f.value for f in found]), np.mean([f.hi - f.lo for f in found])
    assert 0.8 < width / (3.92 * scatter) < 1.4
    mean = np.mean([f.value for f in found])
    assert np.mean([f.lo <= mean <= f.hi for f in found]) > 0.85
    assert kernel_distance(*draws[0], 6.0, n=200) == found[0]


def test_sets_that_cannot_be_compared_are_refused():
    x = gaussian(4)
    for a, b, message in (
        (x[0], x, r"give \(clip, dim\)"),
        (x[:1], x, "two clips or more"),
        (x, x[:, :3], "one dim"),
        (x * np.nan, x, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            kernel_distance(a, b)
    with pytest.raises(ValueError, match="isn't positive"):
        kernel_distance(x, np.ones((4, 6)))

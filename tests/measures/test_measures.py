"""Measures of steered clips: they agree with their parts, and know tones and tokens exactly."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import mechsteer as ms
from mechsteer.measures.describe import brightness
from mechsteer.measures.kept import shared
from mechsteer.measures.loudness import loudness
from mechsteer.model.generation import Generation

SECONDS, START = 3.2, 1.2
TWIN = [0, 0, 2]


@pytest.fixture(scope="module")
def sweep(model):
    """One prompt: unsteered; the same seed steered hard from START on; another seed."""
    values = np.random.default_rng(0).normal(size=(model.n_layers, model.d_model))
    coords = {"layer": np.arange(model.n_layers), "norm": ("layer", np.full(model.n_layers, 50.0))}
    direction = xr.DataArray(values, dims=("layer", "d_model"), coords=coords, attrs={"site": "resid"})
    steered = ms.Steering(direction, strength=5.0, start=START)
    return model.generate(
        "jazz piano", SECONDS, seed=[3, 3, 4], steering=[None, steered, None], progress=False
    )


def by_hand(audio, codes, rate=16_000, **settings) -> Generation:
    n = len(audio)
    audio = np.asarray(audio, np.float32).reshape(n, -1, np.shape(audio)[-1])
    return Generation(audio, codes, rate, ["a tune"] * n, list(range(n)), [None] * n, settings=settings)


def tone(hertz, seconds=3.0, rate=16_000, gain=0.1) -> np.ndarray:
    return gain * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


# --- one row per clip


def test_describe_gives_what_its_parts_give(model, sweep):
    table = ms.describe(sweep, twin=TWIN, model=model, ears="both")
    assert table["clip"].tolist() == [0, 1, 2] and table["seed"].tolist() == sweep.seeds
    assert table["prompt"].tolist() == sweep.prompts
    heard = ms.hear(sweep.audio, sweep.sample_rate)
    for judge, own in heard.groupby("judge"):
        for column in own.columns.difference(["judge", "clip"]):
            assert table[f"{judge}_{column}"].tolist() == own[column].tolist()
    np.testing.assert_allclose(table["nll"], model.nll(sweep.codes, prompts=sweep.prompts), rtol=1e-5)
    rate, unsteered = sweep.sample_rate, sweep.audio[TWIN]
    for axis, own in shared(unsteered, sweep.audio, rate).items():
        np.testing.assert_allclose(table[f"twin_{axis}"], own, rtol=1e-5)
    np.testing.assert_allclose(table["loudness"], loudness(sweep.audio, rate))


def test_a_steered_clip_leaves_its_twin_when_the_steering_begins(model, sweep):
    table = ms.describe(sweep, twin=TWIN, ears=[])
    assert table["twin_divergence"][0] == table["twin_divergence"][2] == pytest.approx(SECONDS, abs=1e-6)
    earliest = START - (model.n_codebooks - 1) / model.frame_rate
    assert earliest - 1e-6 <= table["twin_divergence"][1] < SECONDS - 0.5
    assert table["twin_harmony"][0] == pytest.approx(1)
    assert table["twin_harmony"][1] < 1 - 1e-6 or model.name != "tiny", "random weights hum one chord"


def test_twins_may_be_rows_clips_or_one_for_all(sweep):
    columns = ["twin_harmony", "twin_rhythm", "twin_divergence"]
    rows = ms.describe(sweep, twin=[0, 0, 0], ears=[])[columns]
    pd.testing.assert_frame_equal(ms.describe(sweep, twin=sweep[0], ears=[])[columns], rows)
    each = dataclasses.replace(sweep, audio=sweep.audio[[0, 0, 0]], codes=sweep.codes[[0, 0, 0]])
    pd.testing.assert_frame_equal(ms.describe(sweep, twin=each, ears=[])[columns], rows)


def test_start_leaves_out_the_audio_before_it(sweep):
    whole, late = (ms.describe(sweep, twin=TWIN, ears="features", start=start) for start in (0.0, 0.1))
    cut = sweep.audio[..., round(0.1 * sweep.sample_rate) :]
    heard = ms.hear(cut, sweep.sample_rate, "features")
    np.testing.assert_array_equal(late["features_p_drums"], heard["p_drums"])
    np.testing.assert_array_equal(late["brightness"], brightness(cut, sweep.sample_rate))
    assert (late["brightness"] != whole["brightness"]).all()
    pd.testing.assert_series_equal(late["twin_divergence"], whole["twin_divergence"])


def test_divergence_counts_from_the_audio_prompt_over_all_codebooks():
    codes = np.zeros((3, 4, 75), np.int64)
    codes[1, 2, 40] = 7
    codes[2, 0, 5] = 7  # within the prompt
    clips = by_hand(np.stack([tone(440)] * 3), codes, prompt_frames=10)
    found = ms.describe(clips, twin=[0, 0, 0], ears=[])["twin_divergence"]
    np.testing.assert_allclose(found, [65 / 25, 30 / 25, 65 / 25])


def test_a_silent_clip_is_missing_and_no_success():
    clips = by_hand(np.stack([tone(440), np.zeros(48_000)]), np.zeros((2, 1, 75), int))
    table = ms.describe(clips, twin=[0, 1], ears="features")
    assert table.loc[1].filter(regex="^features_|brightness|loudness|twin_harmony|twin_melody").isna().all()
    assert table.loc[0].filter(regex="^features_|brightness|loudness").notna().all()
    heard = {"drums": table["features_drums"][0]}
    assert ms.success(table, heard, "features").tolist() == [True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": 0.3}, "3 s or more must be left"),
        ({"start": -1.0}, "a finite number of 0 or more"),
        ({"twin": [0]}, "a row from 0 to 1 for each clip"),
        ({"twin": [0, 2]}, "a row from 0 to 1 for each clip"),
        ({"twin": 3}, "3 twins for 2 clips"),
        ({"twin": "longer"}, "one model and one duration"),
        ({"ears": "ear"}, "no ear 'ear'"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    make = lambda n, seconds: by_hand(
        np.stack([tone(440, seconds)] * n), np.zeros((n, 1, int(25 * seconds)), int)
    )
    twins = {3: make(3, 3.2), "longer": make(2, 4)}
    twin = change.pop("twin", None)
    twin = twin if isinstance(twin, list | None) else twins[twin]
    with pytest.raises(ValueError, match=message):
        ms.describe(make(2, 3.2), **{"ears": [], "twin": twin} | change)


# --- brightness


def test_brightness_is_the_centroid_whatever_the_gain():
    import librosa

    noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
    clips = np.stack([tone(1000), tone(1000, gain=0.5), noise, np.zeros(48_000)])[:, None].astype(np.float32)
    found = brightness(clips, 16_000)
    np.testing.assert_allclose(found[:2], 1000, rtol=1e-3)
    reference = np.median(librosa.feature.spectral_centroid(y=clips[2, 0], sr=16_000))
    assert found[2] == pytest.approx(reference, rel=1e-3)
    assert np.isnan(found[3])


def test_brightness_ignores_the_silence_around_the_music():
    clip = np.concatenate([np.zeros(32_000), tone(500, 2.0), np.zeros(32_000)])
    clip += np.random.default_rng(0).normal(0, 1e-6, clip.size)
    assert brightness(clip, 16_000)[0] == pytest.approx(500, rel=0.01)


# --- success


def test_success_takes_a_value_a_set_or_a_range():
    frame = pd.DataFrame(
        {
            "cnn_lead": ["guitar", "guitar", "organ", None],
            "features_lead": ["guitar", "piano", "organ", "guitar"],
            "cnn_drums": pd.array([True, False, True, pd.NA], dtype="boolean"),
            "cnn_tempo": [140.0, 181.0, 139.9, np.nan],
            "brightness": [900.0, 1500.0, 1000.0, 2000.0],
        },
        index=[3, 1, 4, 2],
    )
    check = lambda concept, judge="cnn": ms.success(frame, concept, judge).tolist()
    assert check({"lead": "guitar"}) == [True, True, False, False]
    assert check({"lead": "guitar"}, "both") == [True, False, False, False]
    assert check({"lead": {"guitar", "organ"}}) == [True, True, True, False]
    assert check({"drums": True}) == [True, False, True, False]
    assert check({"drums": False}) == [False, True, False, False]
    assert check({"tempo": (140, 181)}) == [True, False, False, False]
    assert check({"brightness": (1000, 2000)}, "features") == [False, True, True, False]
    assert check({"lead": "guitar", "drums": True}) == [True, False, False, False]
    assert ms.success(frame, {"lead": "guitar"}).index.tolist() == [3, 1, 4, 2]
    slips = [({"lead": "gitar"}, "cnn doesn't hear lead 'gitar'. Did you mean 'guitar'")]
    slips += [
        ({"lead": {"guitar", "harp"}}, "cnn doesn't hear lead 'harp'. It hears"),
        ({"drums": "True"}, "drums"),
    ]
    slips += [({}, "empty"), ({"key": "C"}, "cnn_key"), ({"tempo": (1, 2, 3)}, "isn't")]
    for concept, message in slips:
        with pytest.raises(ValueError, match=message):
            ms.success(frame, concept)
    own = frame.assign(style="reggae")
    assert check({"lead": "guitar"}) and ms.success(own, {"style": "reggae"}).all(), "a column of one's own"

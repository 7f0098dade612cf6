"""Measures of steered clips: they agree with their parts, and know tones and tokens exactly."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import mechsteer as ms
from mechsteer.measures.clap import clap_similarity
from mechsteer.measures.describe import brightness
from mechsteer.measures.loudness import loudness
from mechsteer.measures.pitch import chroma_correlation, pitch_agreement
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
    table = ms.describe(sweep, twin=TWIN, model=model)
    assert table["clip"].tolist() == [0, 1, 2] and table["seed"].tolist() == sweep.seeds
    assert table["prompt"].tolist() == sweep.prompts
    heard = ms.hear(sweep.audio, sweep.sample_rate)
    for judge, own in heard.groupby("judge"):
        for column in own.columns.difference(["judge", "clip"]):
            assert table[f"{judge}_{column}"].tolist() == own[column].tolist()
    np.testing.assert_allclose(table["nll"], model.nll(sweep.codes, prompts=sweep.prompts), rtol=1e-5)
    rate, unsteered = sweep.sample_rate, sweep.audio[TWIN]
    np.testing.assert_allclose(
        table["twin_chroma"], chroma_correlation(unsteered, sweep.audio, rate), rtol=1e-5
    )
    np.testing.assert_allclose(table["twin_melody"], pitch_agreement(unsteered, sweep.audio, rate), rtol=1e-5)
    np.testing.assert_allclose(table["loudness"], loudness(sweep.audio, rate))


def test_a_steered_clip_leaves_its_twin_when_the_steering_begins(model, sweep):
    table = ms.describe(sweep, twin=TWIN, judge=None)
    assert table["twin_divergence"][0] == table["twin_divergence"][2] == pytest.approx(SECONDS, abs=1e-6)
    earliest = START - (model.n_codebooks - 1) / model.frame_rate
    assert earliest - 1e-6 <= table["twin_divergence"][1] < SECONDS - 0.5
    assert table["twin_chroma"][0] == pytest.approx(1) and table["twin_chroma"][1] < 1 - 1e-6


def test_twins_may_be_rows_clips_or_one_for_all(sweep):
    columns = ["twin_chroma", "twin_melody", "twin_divergence"]
    rows = ms.describe(sweep, twin=[0, 0, 0], judge=None)[columns]
    pd.testing.assert_frame_equal(ms.describe(sweep, twin=sweep[0], judge=None)[columns], rows)
    each = dataclasses.replace(sweep, audio=sweep.audio[[0, 0, 0]], codes=sweep.codes[[0, 0, 0]])
    pd.testing.assert_frame_equal(ms.describe(sweep, twin=each, judge=None)[columns], rows)


def test_start_leaves_out_the_audio_before_it(sweep):
    whole, late = (ms.describe(sweep, twin=TWIN, judge="features", start=start) for start in (0.0, 0.1))
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
    found = ms.describe(clips, twin=[0, 0, 0], judge=None)["twin_divergence"]
    np.testing.assert_allclose(found, [65 / 25, 30 / 25, 65 / 25])


def test_a_silent_clip_is_missing_and_no_success():
    clips = by_hand(np.stack([tone(440), np.zeros(48_000)]), np.zeros((2, 1, 75), int))
    table = ms.describe(clips, twin=[0, 1], judge="features")
    assert table.loc[1].filter(regex="^features_|brightness|loudness|twin_chroma|twin_melody").isna().all()
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
        ({"judge": "ear"}, "unknown judge"),
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
        ms.describe(make(2, 3.2), **{"judge": None, "twin": twin} | change)


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
    slips = [({"lead": "gitar"}, "no judge hears lead 'gitar'. Did you mean 'guitar'")]
    slips += [
        ({"lead": {"guitar", "harp"}}, "no judge hears lead 'harp'. They hear"),
        ({"drums": "True"}, "drums"),
    ]
    slips += [({}, "empty"), ({"key": "C"}, "cnn_key"), ({"tempo": (1, 2, 3)}, "isn't")]
    for concept, message in slips:
        with pytest.raises(ValueError, match=message):
            ms.success(frame, concept)
    own = frame.assign(style="reggae")
    assert check({"lead": "guitar"}) and ms.success(own, {"style": "reggae"}).all(), "a column of one's own"


# --- CLAP


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory):
    """A CLAP of random weights, two narrow layers, in transformers' format."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer

    text = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 16, "max_position_embeddings": 66}
    audio = {
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ClapModel(
            ClapConfig(projection_dim=8, text_config=text, audio_config=audio | {"num_hidden_layers": 2})
        )
    folder = tmp_path_factory.mktemp("clap")
    model.save_pretrained(folder)
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    tokenizer = RobertaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc"), tokenizer).save_pretrained(folder)
    return folder


def test_clap_similarity_is_a_cosine_per_clip_and_text(clap_folder):
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
    clips, texts = np.stack([tone(440), noise])[:, None], ["jazz guitar", "rock", "a slow tune"]
    found = clap_similarity(clips, 16_000, texts, model=clap_folder)
    assert found.shape == (2, 3) and (np.abs(found) <= 1 + 1e-5).all()
    assert np.ptp(found, axis=0).min() > 0 and np.ptp(found, axis=1).min() > 0
    alone = clap_similarity(clips[1], 16_000, texts[2], model=clap_folder)
    np.testing.assert_allclose(alone, found[1:, 2:], atol=1e-5)
    long = np.tile(clips, (1, 1, 4))  # two windows; a random crop would change from call to call
    np.testing.assert_array_equal(
        *(clap_similarity(long, 16_000, texts, model=clap_folder) for _ in range(2))
    )


def test_a_clap_that_is_not_there_is_asked_for():
    with pytest.raises(FileNotFoundError, match="hf download laion/clap-htsat-unfused"):
        clap_similarity(tone(440), 16_000, "jazz")

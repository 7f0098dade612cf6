"""Ears by name and as functions, one table for all; CLAP and the aesthetics model with random weights."""

import functools

import numpy as np
import pandas as pd
import pytest

import mechsteer as ms
from mechsteer.measures.ears import aesthetics, asking, clap
from mechsteer.model.generation import Generation

RATE = 16_000


def tone(hertz: float, seconds: float = 3.0) -> np.ndarray:
    return 0.2 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


def music(n: int = 2) -> Generation:
    audio = np.stack([tone(220 * (1 + k)) for k in range(n)])[:, None]
    return Generation(audio, np.zeros((n, 1, 75), int), RATE, [None] * n, list(range(n)), [None] * n)


def height(audio, sample_rate):
    """An ear of one's own: whether a tone is high."""
    crossings = (np.diff(np.sign(audio[:, 0]), axis=1) != 0).sum(1) * sample_rate / audio.shape[-1] / 2
    p = (crossings > 300).astype(float)
    words = np.where(p > 0.5, "high", "low")
    return pd.DataFrame({"pitch": words, "p_pitch_high": p, "p_pitch_low": 1 - p})


# --- asking


def test_any_function_is_an_ear_beside_the_named_ones():
    table = ms.describe(music(), ears=["features", height])
    assert table["height_pitch"].tolist() == ["low", "high"] and "features_lead" in table
    assert not any(column.startswith("cnn_") for column in table)
    assert ms.success(table, {"pitch": "high"}, "height").tolist() == [False, True]
    assert asking.heard_by(table) == ["features", "height"]
    assert asking.concepts(table, "high") == {"height": {"pitch": "high"}}
    assert ms.describe(music(), ears=[]).shape[1] < table.shape[1]


def test_clipped_clips_are_said_and_loud_or_silent_ones_not():
    import warnings

    loud, rng = music(3), np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asking.ask({"height": height}, loud.audio * 3, RATE)
        asking.ask({"height": height}, rng.normal(0, 1, (2, 1, 48_000)), RATE)
        asking.ask({"height": height}, np.zeros((1, 1, 48_000)), RATE)
    cut = rng.normal(0, 1, (3, 1, 48_000))
    cut[:2] = np.clip(4 * cut[:2], -1, 1)
    with pytest.warns(UserWarning, match="^2 of 3 clips are clipped: .*; give them quieter$"):
        asking.ask({"height": height}, cut, RATE)


def test_success_says_which_ears_agree():
    frame = pd.DataFrame({"cnn_lead": ["guitar", "piano"], "cnn_p_lead_guitar": [0.9, 0.2]})
    frame["clap_lead"], frame["clap_p_lead_guitar"] = ["guitar", "guitar"], [0.8, 0.7]
    frame["clap_p_lead_oboe"] = 0.1
    both = ms.success(frame, {"lead": "guitar"}, ["cnn", "clap"])
    assert both.to_dict("list") == {"cnn": [True, False], "clap": [True, True]}
    assert ms.success(frame, {"lead": "guitar"}).tolist() == [True, False], "the first that there is"
    assert not ms.success(frame, {"lead": "oboe"}, "clap").any()
    with pytest.raises(ValueError, match="clap doesn't hear lead 'banjo'. It hears"):
        ms.success(frame, {"lead": "banjo"}, "clap")


def test_a_models_own_judges_come_first_and_else_what_is_here(monkeypatch):
    assert list(asking.named(None, ("cnn", "features"))) == ["cnn", "features"]
    assert list(asking.named("both")) == ["cnn", "features"]
    monkeypatch.setattr(asking, "here", lambda name: name == "musicnn")
    assert list(asking.named(None, ("clap", "musicnn", "musicnn"))) == ["musicnn"]
    monkeypatch.setattr(asking, "here", lambda name: False)
    with pytest.raises(FileNotFoundError, match="uv sync --extra ears.*hf download.*ears=\\[\\]"):
        asking.named(None, ("clap", "musicnn"))
    assert asking.named([]) == {}


@pytest.mark.parametrize(
    ("ears", "message"),
    [
        ("musicn", "no ear 'musicn'. Did you mean 'musicnn'"),
        (["cnn", "both"], "two ears are called 'cnn'"),
        ([height, height], "two ears are called 'height'"),
        (lambda audio, rate: pd.DataFrame({"a": [1]}), "gave 1 rows for 2 clips"),
    ],
    ids=["misspelt", "twice", "same-function", "rows"],
)
def test_what_is_no_ear_is_said(ears, message):
    with pytest.raises(ValueError, match=message):
        ms.describe(music(), ears=ears)


def test_the_model_says_which_ears_its_music_is_for(model):
    assert model.ears == (("cnn", "features") if model.name == "tiny" else ("clap", "musicnn"))
    assert model.generate(duration=0.2, progress=False).ears == model.ears


# --- CLAP


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory):
    """A CLAP of random weights, two narrow layers, in transformers' format."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer

    text = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 16, "max_position_embeddings": 66}
    audio = {"hidden_size": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1]}
    audio |= {"num_attention_heads": [1, 2], "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ClapModel(ClapConfig(projection_dim=8, text_config=text, audio_config=audio))
    folder = tmp_path_factory.mktemp("clap")
    model.save_pretrained(folder)
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    tokenizer = RobertaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc"), tokenizer).save_pretrained(folder)
    return folder


def test_clap_similarity_is_a_cosine_per_clip_and_text(clap_folder):
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
    clips, texts = np.stack([tone(440), noise])[:, None], ["jazz guitar", "rock", "a slow tune"]
    found = clap.clap_similarity(clips, RATE, texts, model=clap_folder)
    assert found.shape == (2, 3) and (np.abs(found) <= 1 + 1e-5).all()
    assert np.ptp(found, axis=0).min() > 0 and np.ptp(found, axis=1).min() > 0
    alone = clap.clap_similarity(clips[1], RATE, texts[2], model=clap_folder)
    np.testing.assert_allclose(alone, found[1:, 2:], atol=1e-5)
    long = np.tile(clips, (1, 1, 4))  # two windows; a random crop would change from call to call
    np.testing.assert_array_equal(
        *(clap.clap_similarity(long, RATE, texts, model=clap_folder) for _ in range(2))
    )


def test_clap_chooses_between_any_words_with_its_own_scale(clap_folder):
    words = {"mood": ["calm, quiet music", "angry, loud music"], "lead": ["oboe", "harp"]}
    ear = functools.partial(clap.clap, words=words, model=clap_folder)
    table = ms.describe(music(3), ears=[ear])
    assert list(asking.concepts(table, "harp")) == ["clap"]
    for group, of in words.items():
        p = table[[f"clap_p_{group}_{word}" for word in of]].to_numpy()
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
        assert table[f"clap_{group}"].tolist() == [of[k] for k in p.argmax(1)]
    cosine = clap.clap_similarity(music(3).audio, RATE, words["mood"], model=clap_folder)
    scale = float(clap._clap(str(clap_folder))[0].logit_scale_a.exp())
    odds = np.log(table["clap_p_mood_" + words["mood"][0]] / table["clap_p_mood_" + words["mood"][1]])
    np.testing.assert_allclose(odds, scale * (cosine[:, 0] - cosine[:, 1]), rtol=1e-3, atol=1e-4)
    silent = ear(np.zeros((1, 1, 48_000), np.float32), RATE)
    assert silent["mood"].isna().all() and silent["p_mood_calm, quiet music"].isna().all()
    with pytest.raises(ValueError, match="mood: CLAP chooses between two"):
        clap.clap(tone(440), RATE, {"mood": ["calm"]}, clap_folder)


def test_a_clap_that_is_not_there_is_asked_for():
    with pytest.raises(FileNotFoundError, match="hf download laion/clap-htsat-unfused"):
        clap.clap_similarity(tone(440), RATE, "jazz")


# --- aesthetics


def test_the_aesthetics_model_hears_what_its_package_hears(tmp_path, monkeypatch):
    import torch
    from audiobox_aesthetics.infer import AesPredictor
    from audiobox_aesthetics.model import aes

    monkeypatch.setattr(aes.DEFAULT_AUDIO_CFG, "encoder_layers", 2)  # the real format, two of twelve layers
    scale = {axis: {"mean": 5.0 + k, "std": 1.5} for k, axis in enumerate(aesthetics.AXES)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        aes.AesMultiOutput(nth_layer=3, target_transform=scale).save_pretrained(tmp_path)
    audio = np.random.default_rng(0).normal(0, 0.1, (1, 1, 11 * RATE))  # more than a window
    found = aesthetics.aesthetics(audio, RATE, model=tmp_path)
    theirs = object.__new__(AesPredictor)  # without its own loading, which goes to the hub
    theirs.model, theirs.device = aesthetics._network(str(tmp_path)), torch.device("cpu")
    theirs.sample_rate, theirs.data_col = RATE, "path"
    theirs.target_transform = {axis: aes.Normalize(**of) for axis, of in scale.items()}
    wav = lambda clip: {"path": torch.from_numpy(clip).float(), "sample_rate": RATE}
    expected = pd.DataFrame(theirs.forward([wav(clip) for clip in audio])).rename(columns=aesthetics.AXES)
    np.testing.assert_allclose(found[list(expected)], expected, atol=1e-4)


def test_an_aesthetics_model_that_is_not_there_is_asked_for():
    with pytest.raises(FileNotFoundError, match="hf download facebook/audiobox-aesthetics"):
        aesthetics.aesthetics(tone(440), RATE)

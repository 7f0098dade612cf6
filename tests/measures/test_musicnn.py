"""musicnn's weights and network against the original's tags, and what happens to bad input."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import mechsteer as ms
from mechsteer import paths
from mechsteer.measures.ears import _tf_checkpoint, musicnn
from mechsteer.tiny import orchestra
from mechsteer.tiny.vocabulary import LEADS
from workshop.tiny import hearing

RATE = 16_000
# What the original package gave (musicnn 0.1.0, its own files unchanged, tensorflow-cpu 2.15.1, librosa
# 0.10.1, numpy 1.26.4): mean of its taggram over the patches that `tags` hears, `extractor(file, model,
# input_overlap=2.04)` for clips of 5 s and 2.536 for the one of 8 s, from float wav files of `clip(name)`.
ORIGINAL = {
    ("MTT", "noise"): {"fast": 0.27466, "techno": 0.22133, "loud": 0.08302, "electronic": 0.06413},
    ("MTT", "plucked"): {"piano": 0.67831, "slow": 0.35295, "solo": 0.26217, "classical": 0.20971},
    ("MTT", "sustained"): {"violin": 0.34475, "strings": 0.26424, "slow": 0.22269, "solo": 0.18406},
    ("MTT", "orchestra"): {"guitar": 0.4821, "classical": 0.29734, "slow": 0.26457, "piano": 0.16884},
    ("MSD", "noise"): {"electronic": 0.18639, "dance": 0.13684, "rock": 0.07303, "metal": 0.06799},
    ("MSD", "plucked"): {"jazz": 0.62736, "instrumental": 0.2263, "guitar": 0.06583, "folk": 0.03818},
    ("MSD", "sustained"): {"instrumental": 0.24065, "ambient": 0.23871, "jazz": 0.21714},
    ("MSD", "orchestra"): {"folk": 0.24542, "instrumental": 0.1822, "rock": 0.15081},
}


def clip(name: str) -> np.ndarray:
    """Noise, plucked notes and a tone with vibrato, 5 s; or the orchestra's first clip, decoded."""
    if name == "orchestra":
        row = orchestra.table().iloc[0]
        return orchestra.decode(row["codes"], row["codec"])[0][0]
    t = np.arange(5 * RATE) / RATE
    if name == "noise":
        return (0.05 * np.random.default_rng(0).standard_normal(t.size)).astype(np.float32)
    if name == "sustained":
        phase = 2 * np.pi * 440 * t + 0.8 * np.sin(2 * np.pi * 5.5 * t)
        return (0.04 * sum(np.sin(h * phase) / h for h in range(1, 9))).astype(np.float32)
    out = np.zeros_like(t)
    for k, semitone in enumerate([0, 4, 7, 12, 7, 4, 0, 5, 9, 12]):
        since, hertz = np.clip(t - 0.5 * k, 0, None), 220 * 2 ** (semitone / 12)
        overtones = sum(np.sin(2 * np.pi * hertz * h * since) / h for h in range(1, 7))
        out += (t >= 0.5 * k) * np.exp(-5 * since) * overtones
    return (0.05 * out).astype(np.float32)


@pytest.fixture(scope="module")
def weights() -> Path:
    """The folder of musicnn's MTT model, as the package has it."""
    return musicnn.folder("MTT")


@pytest.mark.parametrize(("model", "name"), ORIGINAL, ids=[" ".join(key) for key in ORIGINAL])
def test_tags_are_the_original_s(model, name):
    found = musicnn.tags(clip(name), RATE, model).iloc[0]
    expected = ORIGINAL[model, name]
    assert found[list(expected)].to_dict() == pytest.approx(expected, abs=1e-4)
    assert set(found.nlargest(2).index) <= set(expected)


def test_spectra_are_librosa_s():
    from librosa.feature import melspectrogram

    sound = clip("plucked")
    power = melspectrogram(y=sound, sr=RATE, n_fft=512, hop_length=256, n_mels=96).T
    np.testing.assert_allclose(musicnn.log_mel(sound), np.log10(10_000 * power + 1), atol=1e-4)


def test_a_clip_s_tags_don_t_depend_on_the_others_and_silence_has_none():
    clips = np.stack([clip("noise"), clip("plucked"), 0 * clip("noise")])[:, None]
    together = musicnn.tags(clips, RATE)
    alone = musicnn.tags(clips[1], RATE).iloc[0]
    np.testing.assert_allclose(together.iloc[1], alone, atol=1e-6)
    assert together.iloc[:2].notna().all(None) and together.iloc[2].isna().all()


def test_the_ear_names_what_it_tells_apart_and_gives_all_tags():
    clips = np.stack([clip("plucked"), clip("sustained"), 0 * clip("noise")])[:, None]
    found, tags = musicnn.musicnn(clips, RATE), musicnn.tags(clips, RATE)
    assert list(found["lead"][:2]) == ["piano", "violin"] and found.iloc[2].isna().all()
    for tag in tags:
        np.testing.assert_array_equal(found[f"tag_{tag}"], tags[tag])
    for lead in musicnn.LEADS:
        np.testing.assert_array_equal(found[f"p_lead_{lead}"], tags[lead])


def test_what_it_names_is_what_was_measured_to_separate():
    table = json.loads((paths.data() / "tiny" / "hearing.json").read_text())["told_apart"]["musicnn MTT"]
    assert list(musicnn.LEADS) == table["lead"]


def test_an_ear_is_scored_as_scikit_learn_does_it_and_by_whole_scores():
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(30), 4)
    of_class = np.tile([True, False, False, False], 30)
    heard = np.round(rng.standard_normal(120) + of_class, 1)  # with ties
    found = hearing.auc(heard, of_class, groups)
    assert found.value == pytest.approx(roc_auc_score(of_class, heard))
    assert 0.5 < found.lo < found.value < found.hi < 0.9
    order = rng.permutation(120)
    assert hearing.auc(heard[order], of_class[order], groups[order]) == pytest.approx(found)


def test_a_class_without_a_column_is_not_heard_and_one_told_apart_in_one_sound_only_is_dropped():
    labels = pd.DataFrame({"score": np.arange(24) // 6, "lead": [*LEADS] * 4})
    labels["drums"] = labels["score"] % 2 == 0
    labels["style"], labels["tempo_class"] = np.where(labels["drums"], "jazz", "rock"), "slow"
    hit, noise = (labels["lead"] == "guitar").astype(float), np.tile([0.0, 1.0], 12)
    heard = {"p_lead_guitar": [hit, hit], "p_lead_piano": [labels["lead"] == "piano", noise]}
    rows = []
    for k, kind in enumerate(hearing.KINDS):
        table = pd.DataFrame({name: values[k] for name, values in heard.items()})
        rows += hearing.separation(table, labels, sound=kind)
    assert hearing.told_apart(rows)["lead"] == ["guitar"]
    assert {row["class"] for row in rows if row["attribute"] == "lead" and not row["heard"]} == {
        "violin", "flute", "trumpet", "organ"
    }  # fmt: skip


def test_every_weight_is_read(weights):
    index, data = ((weights / name).read_bytes() for name in (".index", ".data-00000-of-00001"))
    found = {
        k: v for k, v in _tf_checkpoint.parse(index, data).items() if "/Adam" not in k and "_power" not in k
    }
    assert sum(v.size for v in found.values()) == 792_079
    assert found["conv2d/kernel"].shape == (7, 38, 1, 204) and found["dense/kernel"].shape == (1506, 200)
    assert all(np.isfinite(v).all() for v in found.values())


@pytest.mark.parametrize("name", [".index", ".data-00000-of-00001"], ids=["index", "data"])
@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_damaged_weights_are_one_sentence(weights, tmp_path, name, damage):
    folder = tmp_path / "MTT_musicnn"
    shutil.copytree(weights, folder)
    held = bytearray((folder / name).read_bytes())
    if damage == "changed":
        held[len(held) // 2] ^= 1
    (folder / name).write_bytes({"cut": held[:-100], "changed": held, "emptied": b""}[damage])
    with pytest.raises(ValueError, match="install musicnn==0.1.0 again") as error:
        _tf_checkpoint.read(folder, musicnn.MODELS["MTT"][1], "install musicnn==0.1.0 again")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("audio", "options", "told"),
    [
        (np.zeros(2 * RATE), {}, "3 s or more are needed"),
        (np.full(4 * RATE, np.nan), {}, "NaN"),
        (np.zeros(4 * RATE), {"model": "MTG"}, "'MTT' and 'MSD'"),
    ],
    ids=["short", "nan", "unknown model"],
)
def test_bad_input_is_one_sentence(audio, options, told):
    with pytest.raises(ValueError, match=told) as error:
        musicnn.tags(audio, RATE, **options)
    assert "\n" not in str(error.value)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "musicnn", None)
    with pytest.raises(ImportError, match="uv sync --extra ears"):
        musicnn.folder("MTT")


def test_the_package_s_own_code_is_never_imported():
    musicnn.tags(clip("noise"), RATE)
    assert "musicnn" not in sys.modules and "tensorflow" not in sys.modules


def test_ears_of_notebooks_reach_it_by_name():
    assert ms.measures.ears.musicnn is musicnn

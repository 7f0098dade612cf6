"""The judges hear what was composed, whatever the gain, rate or length; `pitch` knows tones and octaves."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soxr
from conftest import ROOT, require

import mechsteer as ms
from mechsteer.measures import _spectra as spectra
from mechsteer.measures import pitch
from mechsteer.measures.judges import _statistics as statistics
from mechsteer.measures.judges.hear import JUDGES, KNOWN, NONE, embedding, tempo_class, tempo_of
from workshop.tiny import render
from workshop.tiny.compose import LEADS, STYLES, Score, compose

RATE = spectra.RATE


@pytest.fixture(scope="module")
def music():
    """Twelve clips of scores outside the orchestra, (clip, channel, sample), and their labels."""
    require(
        not render.missing(), "libfluidsynth3 and fluid-soundfont-gm (" + "; ".join(render.missing()) + ")"
    )
    renderer, audio, rows = render.Renderer(), [], []
    for i in range(12):
        score, lead, style = Score.draw(77, i), list(LEADS)[i % 6], STYLES[i % 4]
        audio.append(renderer(compose(score, lead, style)))
        rows.append(score.labels() | {"lead": lead, "style": style})
    return np.stack(audio)[:, None], pd.DataFrame(rows)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(0, 0.1, (2, 1, 4 * RATE)).astype(np.float32)


# --- the judges


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("seconds", [8, 5])
def test_a_judge_hears_what_was_composed(music, judge, seconds):
    audio, truth = music
    heard = ms.hear(audio[..., : seconds * RATE], RATE, judge)
    right = {name: (heard[name] == truth[name]).sum() for name in ("lead", "style", "drums", "mode", "tonic")}
    right["tempo"] = ((heard.tempo / truth.tempo - 1).abs() < 0.04).sum()
    least = {"lead": 10, "style": 9, "drums": 9, "mode": 10, "tonic": 10, "tempo": 9}
    assert all(right[name] >= n for name, n in least.items()), right
    assert (heard.tempo_class == tempo_class(heard.tempo)).all()


def test_the_judges_hear_through_the_codec():
    from mechsteer.activations.clips import read_clip

    clips = ms.clips("orchestra").query("split == 'test'").sample(16, random_state=0).reset_index(drop=True)
    decoded = [read_clip(row) for _, row in clips.iterrows()]
    heard = ms.hear(np.stack([audio for audio, _ in decoded]), decoded[0][1], "cnn")
    right = {name: (heard[name] == clips[name]).sum() for name in ("lead", "style", "mode", "tonic")}
    right["tempo"] = ((heard.tempo / clips.tempo - 1).abs() < 0.04).sum()
    assert all(n >= 12 for n in right.values()), right


def test_both_judges_give_a_row_per_clip_and_probabilities_that_sum_to_one(noise):
    table = ms.hear(noise, RATE)
    assert table[["judge", "clip"]].values.tolist() == [
        ["cnn", 0],
        ["cnn", 1],
        ["features", 0],
        ["features", 1],
    ]
    for attribute in ("lead", "style", "mode"):
        p = table.filter(regex=f"^p_{attribute}_")
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-4)
        named = table[attribute] != NONE
        assert (p.idxmax(axis=1).str.removeprefix(f"p_{attribute}_") == table[attribute])[named].all()
    assert ((table.lead == NONE) == ~table.known).all() and (table.known == (table.novelty <= 0.5)).all()
    assert (table.drums == (table.p_drums > 0.5)).all()
    assert table.tempo.between(50, 190).all() and table.tonic.between(0, 11).all()


def test_gain_channels_integers_and_company_change_nothing(music):
    audio, _ = music
    audio = audio[:4]
    numbers = lambda table: table.select_dtypes("number").drop(columns="clip").to_numpy(float)
    plain = ms.hear(audio, RATE)
    stereo = np.concatenate([audio, audio], axis=1)
    as_integers = np.round(audio * 32767).astype(np.int16)
    for changed in (audio * 0.03, stereo, as_integers):
        np.testing.assert_allclose(numbers(ms.hear(changed, RATE)), numbers(plain), atol=0.02, rtol=0.02)
    alone = pd.concat([ms.hear(clip, RATE) for clip in audio]).sort_values("judge", kind="stable")
    np.testing.assert_allclose(numbers(alone), numbers(plain), atol=1e-3, rtol=1e-3)


def test_the_sample_rate_is_taken_into_account(music):
    audio, _ = music
    plain = ms.hear(audio[:4], RATE)
    faster = np.stack([soxr.resample(clip[0], RATE, 44_100)[None] for clip in audio[:4]])
    other = ms.hear(faster, 44_100)
    for attribute in ("lead", "style", "mode", "tonic", "drums"):
        assert (plain[attribute] == other[attribute]).mean() >= 7 / 8
    np.testing.assert_allclose(other.tempo, plain.tempo, rtol=0.02)


def test_a_silent_clip_is_missing_not_guessed(noise):
    table = ms.hear(np.stack([noise[0], 0 * noise[0]]), RATE)
    values = table.drop(columns=["judge", "clip"])
    assert values[table["clip"] == 1].isna().all(axis=None) and values[table["clip"] == 0].notna().all(
        axis=None
    )
    spread = embedding(np.stack([noise[0], 0 * noise[0]]), RATE, "cnn")
    assert np.isfinite(spread[0]).all() and np.isnan(spread[1]).all()


@pytest.mark.parametrize("judge", JUDGES)
def test_embeddings_tell_leads_apart(music, judge):
    audio, truth = music
    x = embedding(audio, RATE, judge)
    assert x.shape[0] == 12 and x.dtype == np.float32 and np.isfinite(x).all()
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
    same = truth.lead.to_numpy()[:, None] == truth.lead.to_numpy()[None]
    assert distance[same & ~np.eye(12, dtype=bool)].mean() < distance[~same].mean()


def test_bad_input_is_refused_with_advice(noise, tmp_path):
    with pytest.raises(ValueError, match="3 s or more are needed"):
        ms.hear(noise[..., : 2 * RATE], RATE)
    with pytest.raises(ValueError, match="unknown judge 'ears'.*'cnn', 'features' or 'both'"):
        ms.hear(noise, RATE, "ears")
    with pytest.raises(ValueError, match="one judge"):
        embedding(noise, RATE, "both")
    with pytest.raises(ValueError, match="NaN"):
        ms.hear(np.where(noise > 0.3, np.nan, noise), RATE)
    with pytest.raises(FileNotFoundError, match="workshop.tiny.judge"):
        ms.hear(noise, RATE, weights=tmp_path)


def test_the_second_judge_needs_no_torch():
    code = (
        "import sys, numpy as np, mechsteer as ms; "
        "ms.hear(np.random.default_rng(0).normal(0, .1, 64000), 16000, 'features'); "
        "print({'torch', 'librosa'} & set(sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        == "set()\n"
    )


def test_the_shipped_table_is_complete_and_the_weights_are_small():
    folder = ROOT / "data" / "tiny"
    table = pd.DataFrame(json.loads((folder / "judge.json").read_text())["test"])
    shares = table[table.attribute != "tempo"]
    assert set(shares.judge) == set(JUDGES) and (shares.n >= 200).all()
    assert {"lead", "style", "drums", "mode", "tempo_class"} <= set(shares.attribute)
    assert ((shares.low <= shares.accuracy) & (shares.accuracy <= shares.high)).all()
    sizes = {name: (folder / file).stat().st_size for name, file in JUDGES.items()}
    assert sizes["cnn"] < 700_000 and sizes["features"] < 100_000


# --- what they are made of


def test_spectra_put_a_tone_where_it_belongs():
    t = np.arange(4 * RATE) / RATE
    tones = np.stack([np.sin(2 * np.pi * 440 * t), 0.01 * np.sin(2 * np.pi * 261.63 * t)])
    notes = spectra.note_spectrum(tones).mean(-1)
    assert notes.argmax(1).tolist() == [69 - spectra.LOWEST_NOTE, 60 - spectra.LOWEST_NOTE]
    np.testing.assert_allclose(notes.max(1), 1.2, atol=0.15)
    np.testing.assert_allclose(spectra.log_mel(tones), spectra.log_mel(7 * tones), atol=1e-3)


def test_the_rhythm_axis_is_in_seconds():
    import torch

    from mechsteer.measures.judges._network import HOP, PERIODS, Rhythm

    mel = torch.zeros(1, 64, 500)
    mel[..., :: round(0.8 / HOP)] = 5.0  # an onset every 0.8 s
    correlation = Rhythm(64)(mel)[0, 0].detach()
    peak = PERIODS[correlation.argmax()].item()
    assert any(peak == pytest.approx(k * 0.8, rel=0.03) for k in (1, 2, 3))
    at = lambda seconds: correlation[(PERIODS - seconds).abs().argmin()]
    assert at(0.8) > 5 * max(at(0.5).abs(), at(1.2).abs())


def test_a_transposed_chord_turns_the_key_statistics():
    notes = np.zeros((2, 60, 20), np.float32)
    notes[0, [12, 16, 19, 24]] = 1
    notes[1] = np.roll(notes[0], 3, axis=0)
    c, e = statistics.turned(statistics.pitch_classes(notes))
    order = lambda x: x.reshape(12, 6, 12)[:, :3].sum((1, 2))
    assert c.shape == (12, 72)
    np.testing.assert_allclose(order(c), order(c)[0] * np.ones(12), rtol=1e-5)  # turning loses nothing
    assert np.linalg.norm(c[0] - e[3]) < 0.5 * np.linalg.norm(c[0] - e[0])


def test_tempo_is_read_between_the_steps():
    bpm = statistics.BPM
    for true in (63.0, 101.0, 148.5):
        score = -0.5 * (np.log2(bpm / true) * 24 / 0.8) ** 2
        assert tempo_of(score[None], bpm)[0] == pytest.approx(true, rel=0.005)
    assert tempo_class(np.array([99.9, 100.0, 139.9, 140.0])).tolist() == [
        "slow",
        "medium",
        "medium",
        "fast",
    ]


# --- training


def test_training_and_test_clips_share_no_score_and_a_larger_orchestra_keeps_the_test():
    from workshop.tiny.judge import choose
    from workshop.tiny.orchestra import plan_clips

    small, large = (choose(plan_clips(0, paired=8, test=6, valid=2, single=n), 40) for n in (60, 90))
    assert not set(small[small.split == "train"].score) & set(small[small.split == "test"].score)
    test = large[large.split == "test"]
    assert (test.groupby(["score", "style"]).size() == 1).all() and len(test) == 24
    assert test["clip"].tolist() == small[small.split == "test"]["clip"].tolist()
    assert (large.split == "train").sum() == 40


def test_training_learns_and_resumes(music, tmp_path):
    from workshop.tiny import judge

    audio, truth = music
    audio = np.round(audio[:, 0] * 32767).astype(np.int16)
    mel, notes = judge.cached_spectra(audio, np.arange(12), tmp_path, block=5)
    again = judge.cached_spectra(
        0 * audio, np.arange(12), tmp_path, block=5
    )  # from the files, not from the audio
    assert (again[0] == mel).all() and (again[1] == notes).all() and mel.shape == (12, 64, 501)
    goal = judge.targets(truth)
    weights = judge.train_statistics(mel, notes, goal)
    judge.save(weights, tmp_path / JUDGES["features"], half=False)
    shutil.copy(
        ROOT / "data" / "tiny" / KNOWN, tmp_path
    )  # of other judges: what is refused means nothing here
    heard = ms.hear(audio[:, None], RATE, "features", weights=tmp_path)
    heard["lead"] = heard.filter(like="p_lead_").idxmax(axis=1).str.removeprefix("p_lead_")
    for attribute in ("lead", "style", "mode", "tonic"):
        assert (heard[attribute] == truth[attribute]).all()  # twelve clips are learnt by heart
    network = judge.train_network(
        mel[:4], notes[:4], {name: x[:4] for name, x in goal.items()}, epochs=2, batch=4
    )
    judge.save({n: v.numpy() for n, v in network.state_dict().items()}, tmp_path / JUDGES["cnn"], half=True)
    assert len(ms.hear(audio[:2, None], RATE, "cnn", weights=tmp_path)) == 2


# --- pitch


def tone(hertz, seconds=3.0):
    t = np.arange(round(seconds * RATE)) / RATE
    return sum(0.2 / k * np.sin(2 * np.pi * k * hertz * t) for k in (1, 2, 3))


@pytest.mark.parametrize("hertz", [70, 110, 261.63, 587.33, 1200])
def test_the_fundamental_of_a_tone(hertz):
    found, aperiodicity = pitch.fundamental(tone(hertz)[None], RATE)
    inside = slice(2, -2)
    np.testing.assert_allclose(1200 * np.log2(found[0, inside] / hertz), 0, atol=10)
    assert (aperiodicity[0, inside] < 0.1).all()


def test_noise_and_silence_have_no_pitch(noise):
    assert (pitch.fundamental(noise[:, 0], RATE)[1] < pitch.VOICED).mean() < 0.02
    assert (pitch.fundamental(np.zeros((1, 4000)), RATE)[1] == 1).all()

"""Each judge refuses to name the lead of music unlike its own, says so, and keeps its promise."""

import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, require

import mechsteer as ms
from mechsteer.measures import _spectra as spectra
from mechsteer.measures.judges import _known
from mechsteer.measures.judges.hear import JUDGES, KNOWN, NONE, heard_values
from mechsteer.model.generation import Generation
from workshop.tiny import render, strangers
from workshop.tiny.compose import LEADS, STYLES, Score

RATE, TINY = spectra.RATE, ROOT / "data" / "tiny"


@pytest.fixture(scope="module")
def music():
    """The same twelve scores, outside the orchestra, by name: played by known leads, and by French horn."""
    require(
        not render.missing(), "libfluidsynth3 and fluid-soundfont-gm (" + "; ".join(render.missing()) + ")"
    )
    renderer, rows = (
        render.Renderer(),
        [(Score.draw(78, i), list(LEADS)[i % 6], STYLES[i % 4]) for i in range(12)],
    )
    rendered = lambda *more: np.stack([strangers.play(renderer, *row, *more) for row in rows])[:, None]
    return {"known": rendered(), "horn": rendered(strangers.HELD["French horn"])}


def test_another_program_changes_the_lead_and_nothing_else(music):
    require(not render.missing(), "libfluidsynth3 and fluid-soundfont-gm")
    score = Score.draw(78, 0)
    again = strangers.play(render.Renderer(), score, "piano", STYLES[0], LEADS["piano"])
    np.testing.assert_allclose(again, music["known"][0, 0], atol=1e-6)
    assert np.abs(music["horn"][0] - music["known"][0]).max() > 0.01


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("seconds", [8, 5, 3])
def test_known_music_is_named_and_strange_music_often_refused(music, judge, seconds):
    heard = {name: ms.hear(x[..., : seconds * RATE], RATE, judge) for name, x in music.items()}
    assert heard["known"]["known"].sum() >= 10
    assert heard["horn"]["novelty"].mean() > heard["known"]["novelty"].mean() + 0.1
    for table in heard.values():
        assert ((table["lead"] == NONE) == ~table["known"]).all() and table["novelty"].between(0, 1).all()
        assert table["style"].isin(STYLES).all() and table["tempo"].notna().all()


def test_one_sentence_where_most_clips_are_refused(music):
    noise = np.random.default_rng(0).normal(0, 0.1, (3, 1, 4 * RATE)).astype(np.float32)
    noise[2] = 0  # silent: neither known nor refused
    clips = lambda steering: Generation(noise, np.zeros((3, 1, 8)), RATE, [None] * 3, [0, 1, 2], steering)
    with pytest.warns(UserWarning, match="^cnn knows music like 0 of the 2 unsteered .*; ask ") as told:
        table = ms.describe(clips([None] * 3), ears="cnn")
    assert len(told) == 1
    assert table["cnn_known"].tolist()[:2] == [False, False]
    assert table.loc[2, ["cnn_known", "cnn_novelty", "cnn_lead"]].isna().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ms.describe(clips(["pushed", "pushed", None]), ears="cnn")  # what a push made, the table says
        ms.hear(music["known"], RATE)


def test_success_knows_the_value():
    assert NONE in heard_values()["lead"]
    frame = pd.DataFrame({"cnn_lead": ["guitar", NONE]})
    assert ms.success(frame, {"lead": "guitar"}).tolist() == [True, False]
    assert ms.success(frame, {"lead": NONE}).tolist() == [False, True]


def test_a_missing_or_damaged_file_is_one_sentence(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 4 * RATE)
    shutil.copy(TINY / JUDGES["features"], tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{KNOWN}; `python -m workshop.tiny.strangers`"):
        ms.hear(noise, RATE, "features", weights=tmp_path)
    (tmp_path / KNOWN).write_bytes((TINY / KNOWN).read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"{KNOWN} is damaged"):
        ms.hear(noise, RATE, "features", weights=tmp_path)


def test_the_fit_finds_what_lies_outside_planted_leads():
    rng = np.random.default_rng(0)
    lead = np.arange(1200) % 6
    centres = np.concatenate([np.eye(6) * 12, np.zeros((6, 14))], axis=1)
    drawn = lambda n: centres[lead[:n]] + rng.normal(size=(n, 20))
    known = strangers.fit(drawn(1200), lead)
    known |= strangers.limits(known, [np.stack([drawn(600), drawn(600)])] * 3)
    refused = lambda x, seconds=5.0: (_known.novelty(x, seconds, known) > 0.5).mean()
    assert 0.02 < refused(drawn(1200)) < 0.08 and refused(drawn(1200), 4.2) == pytest.approx(0.05, abs=0.03)
    assert refused(centres.mean(0) + rng.normal(size=(200, 20))) > 0.95  # between all leads


def test_the_shipped_table_keeps_its_promise():
    table = pd.DataFrame(json.loads((TINY / "strangers.json").read_text())["table"])
    assert ((table["low"] <= table["refused"]) & (table["refused"] <= table["high"])).all()
    assert {"original", "decoded"} <= set(table["sound"]) and set(strangers.HELD) < set(table["music"])
    known = table[table["music"] == "known"]
    assert set(known["judge"]) == set(JUDGES) and set(known["seconds"]) == set(_known.SECONDS)
    assert (known["low"] <= 0.05).all()  # no more than promised, as far as 240 clips can say
    assert (TINY / KNOWN).stat().st_size < 50_000

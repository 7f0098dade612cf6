"""Sweeps: what must equal the unsteered clips, what survives a stop, and sums over known tables."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mechsteer as ms
from mechsteer import paths
from mechsteer.measures.dose import UNSTEERED
from mechsteer.measures.kept import AXES


def steering(model, seed=0, **options):
    vector = np.random.default_rng(seed).normal(size=model.d_model)
    return ms.Steering(vector, layers=[1], norm=5.0, **options)


@pytest.fixture(scope="module")
def sweep(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    call = dict(strengths=[0.0, 1.0], n=2, seed=5, duration=3.0, batch_size=4, out=folder, progress=False)
    call |= {"ears": "both"}
    prompts = ["jazz piano", None]
    return call, prompts, ms.dose_response(model, {"random": steering(model)}, prompts, **call)


def test_a_sweep_holds_every_clip_beside_its_twin(model, sweep):
    _, _, frame = sweep
    assert frame.groupby(["name", "strength"], sort=False).size().to_dict() == {
        (UNSTEERED, 0.0): 2,
        ("random", 0.0): 2,
        ("random", 1.0): 2,
    }
    assert (
        frame["seed"].tolist() == [5, 6] * 3 and frame["prompt"].fillna("").tolist() == ["jazz piano", ""] * 3
    )
    off, on = (frame[(frame["name"] == "random") & (frame["strength"] == x)] for x in (0.0, 1.0))
    assert (off["twin_divergence"] == 3.0).all(), "strength 0 changes nothing"
    assert (on["twin_divergence"] < 3.0).all()
    unsteered = frame[frame["name"] == UNSTEERED]
    same = ["cnn_lead", "features_style", "nll", "nll_unprompted", "brightness", "loudness"]
    pd.testing.assert_frame_equal(
        off[same].reset_index(drop=True), unsteered[same].reset_index(drop=True), rtol=1e-4
    )


@pytest.mark.parametrize("model", ["meta"], indirect=True)  # what is kept is the same for every model
def test_finished_cells_are_kept_and_never_taken_for_others(model, sweep, monkeypatch):
    call, prompts, frame = sweep
    calls, generate = [], model.generate
    monkeypatch.setattr(
        model, "generate", lambda *a, **k: calls.append(len(k["steering"])) or generate(*a, **k)
    )
    again = ms.dose_response(model, {"random": steering(model)}, prompts, **call)
    assert not calls and again["nll"].equals(frame["nll"])
    more = ms.dose_response(model, {"random": steering(model)}, prompts, **call | {"strengths": [1.0, 2.0]})
    assert calls == [2, 2], "the twins, and the one strength that is new"
    assert more[more["strength"] == 1.0]["nll"].tolist() == frame[frame["strength"] == 1.0]["nll"].tolist()
    ms.dose_response(model, {"random": steering(model, start=1.0)}, prompts, **call | {"strengths": [1.0]})
    assert calls[2:] == [2, 2], "another schedule is another cell"


@pytest.mark.parametrize("model", ["meta"], indirect=True)
def test_a_cell_that_is_damaged_or_not_ours_is_made_again(model, sweep, tmp_path):
    call, prompts, frame = sweep
    for file in Path(call["out"]).glob("*.parquet"):
        shutil.copy(file, tmp_path)
    first, second, *_ = sorted(tmp_path.glob("*.parquet"))
    kept = lambda file: paths.read_table(file, file.stem)
    whole, right = first.read_bytes(), kept(first)
    foreign = tmp_path / "foreign"
    pd.DataFrame({"nll": [0.0]}).to_parquet(foreign)
    for damaged in (whole[: len(whole) // 2], b"", foreign.read_bytes(), second.read_bytes()):
        first.write_bytes(damaged)
        assert kept(first) is None
    for at in range(0, len(whole), 499):  # not every byte of parquet means something
        first.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        if (found := kept(first)) is not None:
            pd.testing.assert_frame_equal(found, right, check_exact=True)
    for file in tmp_path.glob("*.parquet"):
        file.write_bytes(whole[: len(whole) // 2])
    again = ms.dose_response(model, {"random": steering(model)}, prompts, **call | {"out": tmp_path})
    pd.testing.assert_frame_equal(again.drop(columns="texture"), frame.drop(columns="texture"))
    assert sum(kept(file) is not None for file in tmp_path.glob("*.parquet")) == 3


@pytest.mark.parametrize("options", [{"n": 0}, {"n": 1.5}, {"strengths": [np.nan]}, {"batch_size": 0}])
def test_sweeps_take_finite_numbers_only(model, options):
    with pytest.raises(ValueError, match="isn't a"):
        ms.dose_response(
            model, {"a": steering(model)}, None, ears=[], **{"strengths": [1.0], "n": 1, **options}
        )


def test_bad_sweeps_are_refused_before_any_work(model):
    for names, strengths in (({UNSTEERED: steering(model)}, [1.0]), ({"a": steering(model)}, [])):
        with pytest.raises(ValueError, match="at least one strength"):
            ms.dose_response(model, names, None, strengths, n=1, ears=[])


def planted(name, strength, leads, style="jazz", nll=4.0):
    n = len(leads)
    columns = {
        "name": name,
        "strength": strength,
        "clip": range(n),
        "cnn_lead": leads,
        "features_lead": leads,
    }
    columns |= {
        "cnn_style": style,
        **{f"twin_{axis}": 0.5 for axis in AXES},
        **{f"other_{axis}": 0.2 if name == UNSTEERED else np.nan for axis in AXES},
        "twin_divergence": 1.0,
    }
    columns |= {
        "nll": nll,
        "nll_unprompted": nll + np.linspace(-0.1, 0.1, n),
        "brightness": 900.0,
        "loudness": -20.0,
    }
    columns["texture"] = list(np.random.default_rng(0).normal(size=(n, 6)))
    return pd.DataFrame(columns)


def test_table_and_knee_of_a_planted_sweep():
    g, p = "guitar", "piano"
    frame = pd.concat(
        [
            planted(UNSTEERED, 0.0, [p] * 10),
            planted("good", 0.5, [g] * 4 + [p] * 6),
            planted("good", 1.0, [g] * 8 + [p] * 2),
            planted("good", 2.0, [g] * 10, style="rock", nll=5.0),  # all guitar, but broken
            planted("good", 4.0, [g] * 10, nll=4.0),  # beyond the break
            planted("bad", 1.0, [p] * 10, nll=6.0),
        ],
        ignore_index=True,
    )
    table = ms.dose_table(
        frame, {"lead": "guitar"}, kept=["style"], reference=np.random.default_rng(1).normal(size=(40, 6))
    )
    row = table.set_index(["name", "strength"]).loc[("good", 1.0)]
    assert (row["n"], row["success"], row["judge2_success"], row["kept_style"]) == (10, 0.8, 0.8, 1.0)
    assert row["success_lo"] < 0.8 < row["success_hi"] and np.isfinite(row["texture_distance"])
    assert row["kept_melody"] == pytest.approx((0.5 - 0.2) / (1 - 0.2)), "0 is what unrelated clips share"
    assert table.set_index(["name", "strength"]).loc[("good", 2.0), "kept_style"] == 0
    chosen = ms.knee(table).set_index("name")
    assert chosen.loc["good", "strength"] == 1.0 and chosen.loc["bad", "strength"] == 0
    with pytest.raises(ValueError, match="no unsteered"):
        ms.dose_table(frame[frame["name"] == "good"], {"lead": "guitar"})
    alike = frame.assign(**{f"other_{axis}": 1.0 for axis in AXES})  # as of random weights
    assert ms.dose_table(alike, {"lead": "guitar"})["kept_melody"].isna().all()
    heard = frame.assign(chords_mode="minor", chords_p_mode_minor=1.0)  # an ear that hears something else
    assert "chords_success" not in ms.dose_table(heard, {"lead": "guitar"})
    with pytest.raises(ValueError, match="unknown"):
        ms.dose_table(frame, {"lead": "guitar"}, kept=["mood"])


def test_each_sweep_has_its_own_twins_and_knee_and_mixed_ones_are_refused():
    """The same clip numbers at two guidances: at 3 the unsteered music is rock, and less sure of itself."""
    g, p, concept = "guitar", "piano", {"lead": "guitar"}
    at_1 = [
        planted(UNSTEERED, 0.0, [p] * 4),
        planted("good", 0.5, [g] + [p] * 3),
        planted("good", 1.0, [g] * 4),
    ]
    at_3 = [planted(UNSTEERED, 0.0, [p] * 4, "rock", 6.0), planted("good", 0.5, [g] * 3 + [p], "rock", 6.0)]
    at_3 += [planted("good", 1.0, [g] * 4, "rock", 4.0)]
    tables = [ms.dose_table(pd.concat(sweep), concept, kept=["style"]) for sweep in (at_1, at_3)]
    for table, best in zip(tables, (1.0, 0.5), strict=True):
        assert (table["n"] == 4).all() and (table["kept_style"] == 1).all()
        assert ms.knee(table)["strength"].tolist() == [best], "at guidance 3 the music breaks at strength 1"
    with pytest.raises(ValueError, match="several unsteered twins.*one sweep at a time"):
        ms.dose_table(pd.concat([*at_1, *at_3]), concept, kept=["style"])
    with pytest.raises(ValueError, match="2 unsteered rows: give the table of one sweep"):
        ms.knee(pd.concat(tables))

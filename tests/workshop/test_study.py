"""The shipped study: what it says of itself, and a slice of it made again."""

import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

import mechsteer as ms
from mechsteer import paths
from workshop.study import figures, run
from workshop.study.finders import DRAWS, Finder

TABLES = ("doses", "clips")


@pytest.fixture(scope="module")
def tiny():
    return ms.load("tiny", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def shipped():
    return {name: pd.read_parquet(paths.data() / "study" / f"{name}.parquet") for name in TABLES}


def test_an_experiment_brings_its_facts_and_every_clip_a_control_of_its_own(tiny, tmp_path):
    n, vectors = 5, np.random.default_rng(0).normal(size=(4, tiny.d_model))
    steer = [ms.Steering(v, layers=[2], norm=5.0, branch="cond") for v in vectors]
    steerings = {"mse": ("mse", steer[0]), "random": ("random", steer[1:])}
    few = lambda t: (t["lead"] == "guitar") & (t["style"] == "jazz") & (t["tempo"] > 150)
    asked = ("guitar", "dose", "lead", "guitar", "guitar", "jazz", "jazz")
    question = run.Experiment(*asked, steerings, [0.5], few, duration=3.0)
    table, clips = run.run_experiment(question, tiny, n, 0, tmp_path)
    assert table["name"].tolist() == ["unsteered", "mse", "random"] and (table["n"] == n).all()
    assert table["kind"].tolist() == ["control", "read", "control"]
    assert table["layers"].tolist() == ["", "2", "2"]
    columns = ["experiment", "question", "label", "value", "target", "source"]
    assert (table[columns] == ["guitar", "dose", "lead", "guitar", "guitar", "jazz"]).all(axis=None)
    of_random = clips[clips["name"] == "random"]
    assert of_random["seed"].tolist() == of_random["clip"].tolist() == list(range(n))
    again, _ = run.run_experiment(dataclasses.replace(question), tiny, n, 0, tmp_path)
    pd.testing.assert_frame_equal(again, table)
    for i in (1, 4):  # clips 1 and 4 have the second and, in turn, the first random direction
        alone = tiny.generate("jazz", 3.0, i, 0.5 * steer[1 + i % 3], progress=False)
        assert of_random["nll"].iloc[i] == pytest.approx(tiny.nll(alone.codes, "jazz").item(), abs=0.02)


def test_controls_are_many_draws_and_shuffling_keeps_the_level_of_the_label(tiny):
    finder = Finder(tiny, scores=8)
    found = finder.probes("style", "jazz") | finder.randoms("heads", [1, 2])
    for name in ("shuffled labels", "random"):
        vectors = np.stack([s.direction.values for s in found[name][1]])
        assert len(np.unique(vectors.round(6), axis=0)) > 0.2 * DRAWS, (
            "permutations of 8 scores repeat, but not often"
        )
    shuffled, real = found["shuffled labels"][1], found["diff_of_means"][1]
    assert all(
        s.layers == real.layers and np.allclose(s.direction.norm, real.direction.norm) for s in shuffled
    )
    same = [abs(float((s.direction * real.direction).sum())) for s in shuffled]
    assert np.mean(same) < 0.8, (
        "a permutation across scores of few classes resembles the real one at times only"
    )


def test_with_all_penalty_both_probes_are_the_difference_of_means(tiny):
    finder = Finder(tiny, scores=8)
    means = finder.probes("lead", "guitar")["diff_of_means"][1]
    found = finder.penalised("lead", "guitar", (1e-4, 1e4))
    facts = {name: run.reading(given, means) for name, (_, given) in found.items()}
    for method in ("logistic", "mse"):
        weak, strong = (facts[f"{method}, penalty {alpha}"] for alpha in ("0.0001", "10000"))
        assert strong["cosine"] > 0.999 and weak["cosine"] < 0.9
        assert (weak["penalty"], strong["penalty"]) == (1e-4, 1e4) and weak["held_out"] > 0.8
    random = run.first_part(finder.randoms()["random"][1])
    assert run.reading(random, means) == {}, "no probe, nothing to say of it"


def test_a_name_that_no_experiment_has_is_told_with_those_there_are(monkeypatch):
    """Nothing is loaded or computed for it."""
    monkeypatch.setattr(run, "load", None)
    monkeypatch.setattr(run, "Finder", None)
    with pytest.raises(ValueError, match="called 'guitra'. Did you mean 'guitar'.* There are 'guitar',"):
        list(run.questions(None, ["rock", "guitra"]))
    monkeypatch.setattr("sys.argv", ["run", "--only", "typo"])
    with pytest.raises(SystemExit, match="called 'typo'. There are 'guitar', 'guitar, by penalty'"):
        run.main()


def test_the_engine_is_passed_on_and_what_it_lacks_is_told_before_any_work(tmp_path, monkeypatch):
    question = run.Experiment(*["guitar"] * 6, None, {}, [1.0], None)
    with pytest.raises(ValueError, match="engine='spark': choose 'local', or 'ray'"):
        run.run_experiment(question, None, 2, 0, tmp_path, engine="spark", workers=2)
    monkeypatch.setattr(run, "load", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    for workers, says in (("0", "--workers: give one or more"), ("3", "needs Ray: `uv sync --extra ray`")):
        monkeypatch.setattr("sys.argv", ["run", "--engine", "ray", "--workers", workers])
        with pytest.raises(SystemExit, match=says):
            run.main()


def test_results_of_other_weights_and_of_an_older_run_give_way(tmp_path):
    path = tmp_path / "doses.parquet"
    row = lambda experiment, weights, value: pd.DataFrame(
        [{"experiment": experiment, "model_hash": weights, "success": value}]
    )
    for table in (
        row("rock", "old", 0.1),
        row("guitar", "new", 0.2),
        row("drums", "new", 0.3),
        row("drums", "new", 0.4),
    ):
        run.add(table, path)
    kept = pd.read_parquet(path)
    assert kept["experiment"].tolist() == ["guitar", "drums"] and kept["success"].tolist() == [0.2, 0.4]
    assert {p.name for p in tmp_path.iterdir()} <= {"doses.parquet", "doses.lock"}


def test_every_question_can_be_asked(tiny, tmp_path, monkeypatch):
    """Each experiment's steerings fit the model; one clip of the widest shows that a mixture runs."""
    monkeypatch.setattr(run, "Finder", lambda model: Finder(model, scores=8))
    names = ("guitar at the best heads", "fast", "piano to guitar, ways to add")
    asked = {e.name: e for e in run.questions(tiny, names)}
    assert set(asked) == set(names)
    heads = asked["guitar at the best heads"].steerings
    each = [run.first_part(given) for _, given in heads.values()]
    assert all(s.site == "heads" and int((s.direction.weight != 0).sum()) == 8 for s in each)
    songs = ms.clips("orchestra")
    assert (asked["fast"].reference(songs) == (songs["tempo"] >= 140)).all()
    ways = asked["piano to guitar, ways to add"].steerings.items()
    ways = {name: 0.2 * (given if hasattr(given, "parts") else given[0]) for name, (_, given) in ways}
    made = tiny.generate("jazz piano", 1.0, [0] * (len(ways) + 1), [None, *ways.values()], progress=False)
    moved = (made.codes[1:] != made.codes[:1]).any(axis=(1, 2))
    assert moved.all(), f"nothing changed by {[name for name, m in zip(ways, moved, strict=True) if not m]}"


def test_the_shipped_study_says_where_it_comes_from(shipped):
    doses = shipped["doses"]
    for column in ("model", "model_hash", "seed"):
        assert doses[column].nunique() == 1
    assert doses[["command", "date"]].notna().all(axis=None)
    assert (doses["n"] >= 100).all(), "a claim rests on 100 clips a cell"
    for name, rows in doses.groupby("experiment"):
        assert {"unsteered", "random", "shuffled labels"} <= set(rows["name"]), f"{name} lacks a control"
    assert ((doses["success_lo"] <= doses["success"]) & (doses["success"] <= doses["success_hi"])).all()
    cell = ["experiment", "name", "strength"]
    assert shipped["clips"].groupby(cell).size().to_dict() == doses.set_index(cell)["n"].to_dict()


def test_every_experiment_there_is_ships_with_what_it_asks(shipped):
    rows = shipped["doses"].drop_duplicates("experiment").set_index("experiment")
    assert set(rows.index) == set(run.known())
    assert set(rows["question"]) == {"dose", "site", "ways", "penalty", "audio"}
    assert rows.loc["drums", ["label", "value", "target"]].tolist() == ["drums", "True", "drums"]
    assert rows.loc["fast", ["label", "value", "target"]].tolist() == ["tempo_class", "fast", "fast"]
    assert (rows["question"] == "dose").sum() == 9 and (rows["source"] == "unprompted").sum() == 9


def test_success_clip_by_clip_is_that_of_the_table_for_every_concept(shipped):
    """A tempo and drums too, which are no lead and no style."""
    shares = shipped["doses"].set_index(["name", "experiment", "strength"])["both_success"]
    for pair in (("logistic", "mse"), ("mse", "diff_of_means")):
        duels = figures.duels(shipped["doses"], shipped["clips"], *pair)
        for name in pair:
            assert duels[name].to_numpy() == pytest.approx(shares[name].reindex(duels.index).to_numpy())
        apart = duels[f"{pair[0]} only"] - duels[f"{pair[1]} only"]
        assert (duels[pair[0]] - duels[pair[1]]).to_numpy() == pytest.approx(apart.to_numpy() / 100)
    assert "fast" in duels.index and duels.loc["fast", "mse"].max() > 0.2


def test_a_slice_made_again_lies_within_the_shipped_study(shipped, tiny):
    doses = shipped["doses"]
    assert doses["model_hash"].iloc[0] == tiny.hash, "the study is of other weights: run `make study`"
    rows = doses[(doses["experiment"] == "guitar") & (doses["name"] == "diff_of_means")]
    row = rows.loc[rows["success"].idxmax()]
    direction = ms.load_direction(run.direction_file("guitar", "diff_of_means"), tiny)
    n, strength = 8, float(row["strength"])
    made = tiny.generate(None, 5.0, list(range(n)), strength * ms.Steering(direction), progress=False)
    heard = ms.hear(made.audio, made.sample_rate, "cnn")["lead"]
    then = shipped["clips"].query(
        "experiment == 'guitar' and name == 'diff_of_means' and strength == @strength"
    )
    then = then.sort_values("clip")["cnn_lead"].head(n)
    assert (heard.to_numpy() == then.to_numpy()).mean() >= 0.75, "same seeds, same clips, up to rounding"
    assert binomtest(int((heard == "guitar").sum()), n, float(row["success"])).pvalue > 0.01

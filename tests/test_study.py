"""The shipped study: what it says of itself, and a slice of it made again."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

import mechsteer as ms
from mechsteer import paths, study

TABLES = ("doses", "clips")


@pytest.fixture(scope="module")
def tiny():
    return ms.load("tiny", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def shipped():
    return {name: pd.read_parquet(paths.data() / "study" / f"{name}.parquet") for name in TABLES}


def test_an_experiment_brings_its_facts_and_pools_its_random_directions(tiny, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(study.RANDOM + 1, tiny.d_model))
    steer = [ms.Steering(v, layers=[2], norm=5.0, branch="cond") for v in vectors]
    steerings = {"mse": ("mse", steer[0])} | {f"random {i}": ("random", s) for i, s in enumerate(steer[1:])}
    few = lambda t: (t["lead"] == "guitar") & (t["style"] == "jazz") & (t["tempo"] > 150)
    question = study.Experiment("guitar", {"lead": "guitar"}, "jazz", "jazz", steerings, [0.5], few, duration=3.0)
    table, clips = study.run(question, tiny, study.RANDOM, 0, tmp_path)
    assert table["name"].tolist() == ["unsteered", "mse", "random"] and (table["n"] == study.RANDOM).all()
    assert table["kind"].tolist() == ["control", "read", "control"] and table["layers"].tolist() == ["", "2", "2"]
    of_random = clips[clips["name"] == "random"]
    assert of_random["seed"].tolist() == of_random["clip"].tolist() == list(range(study.RANDOM))
    again, _ = study.run(dataclasses.replace(question), tiny, study.RANDOM, 0, tmp_path)
    pd.testing.assert_frame_equal(again, table)


def test_the_shipped_study_says_where_it_comes_from(shipped):
    doses = shipped["doses"]
    for column in ("model", "model_hash", "seed", "command", "date"):
        assert doses[column].nunique() == 1
    assert (doses["n"] >= 100).all(), "a claim rests on 100 clips a cell"
    for name, rows in doses.groupby("experiment"):
        assert {"unsteered", "random", "shuffled labels"} <= set(rows["name"]), f"{name} lacks a control"
    assert ((doses["success_lo"] <= doses["success"]) & (doses["success"] <= doses["success_hi"])).all()
    cell = ["experiment", "name", "strength"]
    assert shipped["clips"].groupby(cell).size().to_dict() == doses.set_index(cell)["n"].to_dict()


def test_a_slice_made_again_lies_within_the_shipped_study(shipped, tiny):
    doses = shipped["doses"]
    assert doses["model_hash"].iloc[0] == tiny.hash, "the study is of other weights: run `make study`"
    rows = doses[(doses["experiment"] == "guitar") & (doses["name"] == "diff_of_means")]
    row = rows.loc[rows["success"].idxmax()]
    direction = ms.load_direction(study.direction_file("guitar", "diff_of_means"), tiny)
    n, strength = 8, float(row["strength"])
    made = tiny.generate(None, 5.0, list(range(n)), strength * ms.Steering(direction), progress=False)
    heard = ms.hear(made.audio, made.sample_rate, "cnn")["lead"]
    then = shipped["clips"].query("experiment == 'guitar' and name == 'diff_of_means' and strength == @strength")
    then = then.sort_values("clip")["cnn_lead"].head(n)
    assert (heard.to_numpy() == then.to_numpy()).mean() >= 0.75, "same seeds, same clips, up to rounding"
    assert binomtest(int((heard == "guitar").sum()), n, float(row["success"])).pvalue > 0.01

"""Intervals: those of the books, as wide as they say, and aware that folds share training data."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import mechsteer as ms
from mechsteer.measures import intervals
from mechsteer.measures.intervals import means_by, wilson


def test_share_is_wilsons_interval():
    found = ms.share([True] * 8 + [False] * 2)
    p, n, z = 0.8, 10, 1.959964
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    np.testing.assert_allclose(
        found, [0.8, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    )
    assert ms.share([True] * 5).hi == 1 and 0 < ms.share([False] * 5).hi < 1
    assert ms.share(pd.array([True, pd.NA, False], dtype="boolean")).value == 0.5
    narrow, wide = ms.share([True, False] * 100), ms.share([True, False] * 10)
    assert wide.lo < narrow.lo < 0.5 < narrow.hi
    for values in ([], [np.nan], [0.5, 1.0], ["guitar"]):
        with pytest.raises(ValueError, match="true or false"):
            ms.share(values)


def test_the_bootstrap_agrees_with_theory_and_ignores_order():
    values = np.random.default_rng(1).normal(5, 2, 400)
    found, error = intervals.mean_interval(values), values.std() / 20
    np.testing.assert_allclose(found, values.mean() + np.array([0, -1.96, 1.96]) * error, atol=0.25 * error)
    assert intervals.mean_interval(values) == found == intervals.mean_interval(values[::-1])
    assert intervals.mean_interval([*values, np.nan]) == found
    assert intervals.mean_interval(values, seed=1) != found


def test_values_that_share_a_seed_count_as_one_draw():
    effects = np.random.default_rng(2).normal(size=20)
    values, groups = np.repeat(effects, 10), np.repeat([f"seed {i}" for i in range(20)], 10)
    alone, grouped = intervals.mean_interval(values), intervals.mean_interval(values, groups)
    assert alone.value == pytest.approx(grouped.value)
    ratio = (grouped.hi - grouped.lo) / (alone.hi - alone.lo)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)
    shuffled = np.random.default_rng(3).permutation(200)
    assert intervals.mean_interval(values[shuffled], groups[shuffled]) == pytest.approx(grouped)
    lone = intervals.mean_interval([1.0, 2.0], ["a", "a"])
    assert lone.value == 1.5 and np.isnan([lone.lo, lone.hi]).all()
    for arguments, message in ((([1.0, 2.0], ["a"]), "1 groups for 2"), (([np.nan],), "no values")):
        with pytest.raises(ValueError, match=message):
            intervals.mean_interval(*arguments)


# --- means of every group of a table


def folds_of(scores, **columns) -> pd.DataFrame:
    """A table with a row per (trial, fold) of scores (trial, fold)."""
    trials, k = np.shape(scores)
    grid = {"trial": np.repeat(np.arange(trials), k), "fold": np.tile(np.arange(k), trials)}
    return pd.DataFrame({**grid, "score": np.ravel(scores), **columns})


def covered(found: pd.DataFrame, truth: float) -> float:
    return ((found["lo"] <= truth) & (found["hi"] >= truth)).mean()


def test_seeds_and_clips_get_students_interval():
    table = pd.DataFrame({"layer": [0, 0, 0, 1], "score": [1.0, 2.0, 3.0, 5.0]})
    found = means_by(table, ["layer"]).set_index("layer")
    assert found.loc[0, "mean"] == 2
    assert found.loc[0, "hi"] - 2 == pytest.approx(4.302653 / np.sqrt(3), abs=1e-5)  # t(0.975, 2) s / sqrt(n)
    assert found.loc[1, "n"] == 1 and np.isnan(found.loc[1, "lo"])
    draws = np.random.default_rng(1).standard_normal((2000, 5))
    assert covered(means_by(folds_of(draws).drop(columns="fold"), ["trial"]), 0) == pytest.approx(
        0.95, abs=0.02
    )
    shares = np.random.default_rng(1).binomial(50, 0.94, (2000, 5)) / 50  # five seeds of fifty clips
    table = folds_of(shares, metric="accuracy").drop(columns="fold")
    assert covered(means_by(table, ["trial"]), 0.94) == pytest.approx(0.96, abs=0.02)


def test_folds_get_nadeau_and_bengios():
    """With k folds n_test / n_train is 1 / (k - 1)."""
    half = lambda of, folds: (
        stats.t.ppf(0.975, len(of) - 1) * np.sqrt((1 / len(of) + 1 / (folds - 1)) * np.var(of, ddof=1))
    )
    scores = [1.0, 2.0, 4.0, 5.0, 3.0]
    found, wide = means_by(folds_of([scores]), ["trial"]).loc[0], half(scores, 5)
    assert (found["lo"], found["hi"], found["n"]) == pytest.approx((3 - wide, 3 + wide, 5))
    twice = pd.concat([folds_of([scores])] * 2)  # two repeats of five folds are no ten folds
    assert means_by(twice, ["trial"]).loc[0, "hi"] == pytest.approx(3 + half(scores * 2, 5))
    missing = [1.0, 2.0, 4.0, 3.0, np.nan]  # a fold that lacks a class: still five folds
    assert means_by(folds_of([missing]), ["trial"]).loc[0, "hi"] == pytest.approx(2.5 + half(missing[:4], 5))
    one = folds_of([scores]).assign(fold=3)  # clips of one fold aren't folds
    assert means_by(one, ["trial"]).equals(means_by(one.drop(columns="fold"), ["trial"]))


def test_a_share_gets_wilsons_interval_of_the_trials_that_would_vary_as_much():
    near = folds_of([[1.0, 1.0, 0.97, 1.0, 0.9]], metric="accuracy")
    plain, inside = (means_by(table, ["trial"]).loc[0] for table in (near.drop(columns="metric"), near))
    assert plain["hi"] > 1 > inside["hi"] > inside["mean"] == plain["mean"]
    assert inside["mean"] - inside["lo"] > inside["hi"] - inside["mean"], "wider towards the middle"
    p, variance = near["score"].mean(), (1 / 5 + 1 / 4) * near["score"].var()
    trials = p * (1 - p) / variance * (1.959964 / 2.776445) ** 2
    assert (inside["lo"], inside["hi"]) == pytest.approx(wilson(p * trials, trials))
    other = means_by(near.assign(score=1 - near["score"]), ["trial"]).loc[0]
    assert other["lo"] == pytest.approx(1 - inside["hi"]), "and the same seen from the other side"
    middle = near.assign(score=0.5 + 0.01 * (near["score"] - near["score"].mean()))
    one, two = (means_by(table, ["trial"]).loc[0] for table in (middle.drop(columns="metric"), middle))
    assert two["lo"] == pytest.approx(one["lo"], abs=1e-6), "in the middle they agree"
    found = means_by(pd.concat([near, near.assign(trial=1, metric="r2")]), ["trial"])
    assert found["hi"].tolist() == pytest.approx([inside["hi"], plain["hi"]]), "R² is no share"


def test_folds_that_all_agree_are_not_certain():
    table = folds_of([[1.0] * 5, [0.0] * 5, [0.9] * 5], metric="accuracy")
    found = means_by(table, ["trial"])
    assert (found["hi"] > found["lo"]).all() and found[["lo", "hi"]].stack().between(0, 1).all()
    assert (found.loc[0, "lo"], found.loc[0, "hi"]) == pytest.approx(wilson(5, 5)), (
        "a trial a fold, if no more is known"
    )
    known = means_by(table.assign(rows=20), ["trial"])
    assert (known.loc[0, "lo"], known.loc[0, "hi"]) == pytest.approx(wilson(100, 100))
    nearly = folds_of([[0.9, 0.9, 0.9, 0.9, 0.900001]], metric="accuracy", rows=20)
    assert means_by(nearly, ["trial"]).loc[0, "lo"] == pytest.approx(wilson(90, 100)[0], abs=1e-5), (
        "nor beyond the rows"
    )


@pytest.mark.parametrize("gap", [0.7, 1.5, 2.5])
def test_intervals_over_real_folds_cover_the_accuracy_of_new_data(gap):
    """Five folds of sixty clips with twenty features, classified by the difference of the training means."""
    rng, scores, truths = np.random.default_rng(0), [], []
    for _ in range(400):
        y, fold = rng.permutation(60) % 2, rng.permutation(60) % 5
        x = rng.standard_normal((60, 20))
        x[:, 0] += gap * (2 * y - 1)
        for f in range(5):
            train, test = fold != f, fold == f
            low, high = (x[train & (y == c)].mean(0) for c in (0, 1))
            w, b = high - low, -(low + high) @ (high - low) / 2
            scores.append((((x[test] @ w + b) > 0) == (y[test] == 1)).mean())
            truths += [stats.norm.cdf((gap * w[0] + sign * b) / np.linalg.norm(w)) for sign in (1, -1)]
    table, truth = folds_of(np.reshape(scores, (400, 5)), metric="accuracy"), np.mean(truths)
    assert covered(means_by(table, ["trial"]), truth) >= 0.94
    assert covered(means_by(table.assign(rows=12), ["trial"]), truth) >= 0.94
    student = means_by(table.drop(columns=["metric", "fold"]), ["trial"])  # as if folds shared nothing
    assert covered(student, truth) < 0.94


def test_a_group_without_a_layer_is_a_group_and_columns_are_asked_for():
    table = pd.DataFrame({"layer": pd.array([pd.NA, 0, pd.NA, 0], "Int64"), "score": [1.0, 2.0, 3.0, 5.0]})
    assert means_by(table, ["layer"])["mean"].tolist() == [3.5, 2.0]
    with pytest.raises(ValueError, match="lacks the column.*site; it has layer, score"):
        means_by(table, ["site"])
    with pytest.raises(ValueError, match="no rows"):
        means_by(table.iloc[:0], ["layer"])

"""Statistics of listening tests: what is planted is found, and false alarms are as rare as promised."""

import itertools
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy.stats import binomtest

from mechsteer.listening import charts, power, stats
from mechsteer.measures.intervals import wilson


def choices(strengths: dict, listeners: int, items: int, seed: int = 0, sd: float = 0.0) -> pd.DataFrame:
    """Made-up choices between all pairs by a Bradley-Terry rule."""
    rng, names, rows = np.random.default_rng(seed), list(strengths), []
    for listener in range(listeners):
        taste = {n: s + sd * rng.standard_normal() for n, s in strengths.items()}
        for item in range(items):
            for i, a in enumerate(names):
                for b in names[i + 1 :]:
                    first = rng.random() < 1 / (1 + np.exp(taste[b] - taste[a]))
                    rows.append((listener, item, *rng.permutation([a, b]), a if first else b))
    return pd.DataFrame(rows, columns=["listener", "item", "left", "right", "chosen"])


def test_wilson_is_the_textbook_interval():
    assert wilson(15, 20) == pytest.approx((0.5313, 0.8881), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)


def test_shares_are_counted_whichever_side_a_condition_was_on():
    table = choices({"steered": 1.0, "plain": 0.0}, 20, 10)
    swapped = table.rename(columns={"left": "right", "right": "left"})
    one, two = (stats.preferences(t, boots=50) for t in (table, swapped))
    pd.testing.assert_frame_equal(one, two)
    row = one.iloc[0]
    assert (row["condition"], row["over"], row["answers"]) == ("plain", "steered", 200)
    assert row["share"] == (table["chosen"] == "plain").mean() == pytest.approx(1 / (1 + np.e), abs=0.08)
    assert row["lo"] < row["share"] < row["hi"] < 0.5 and row["p"] < 0.01


def test_listeners_who_differ_widen_the_interval_that_counting_answers_does_not():
    table = choices({"a": 0.0, "b": 0.0}, 12, 30, seed=1, sd=2.0)
    row = stats.preferences(table, boots=300).iloc[0]
    assert row["hi"] - row["lo"] > 2 * (row["wilson_hi"] - row["wilson_lo"])
    alone = binomtest(round(row["share"] * row["answers"]), int(row["answers"])).pvalue
    assert row["p"] > 10 * alone or row["p"] > 0.2


def test_the_crossed_test_is_the_plain_t_test_where_there_is_one_item():
    from scipy.stats import ttest_1samp

    x = np.random.default_rng(0).random(9)
    table = pd.DataFrame({"listener": range(9), "item": 0, "x": x})
    assert stats.crossed_test(table, "x") == pytest.approx(ttest_1samp(x, 0.5).pvalue)
    assert np.isnan(stats.crossed_test(table.head(1), "x"))


def test_unanimous_answers_are_as_sure_as_their_listeners_and_items_are_many():
    table = choices({"steered": 50.0, "plain": 0.0}, 9, 12)
    row = stats.preferences(table, boots=20).iloc[0]
    assert row["share"] == 0 and row["p"] == pytest.approx(2 * 0.5**9)
    assert (row["lo"], row["hi"]) == pytest.approx(stats.wilson(0, 9)) and row["hi"] > row["wilson_hi"]
    balanced = pd.DataFrame(
        [(i, j, (i - j) % 5 > 0) for i in range(5) for j in range(5)], columns=["listener", "item", "x"]
    )
    assert stats.crossed_test(balanced, "x") == pytest.approx(2 * 0.5**5), (
        "4 of 5 each: no unit differs from another"
    )
    sure = power.power(0.999, [4, 8], items=12, listener_sd=0, item_sd=0, runs=200).set_index("listeners")[
        "power"
    ]
    assert sure[4] < 0.2 and sure[8] > 0.9


def test_holm_by_hand():
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])


def test_bradley_terry_finds_planted_strengths():
    planted = {"steered": 1.2, "plain": 0.0, "random": -0.2, "prompt": 0.4}
    found = stats.bradley_terry(choices(planted, 40, 12), boots=60).set_index("condition")
    truth = pd.Series(planted) - np.mean(list(planted.values()))
    assert found.index[0] == "steered" and found["strength"].sum() == pytest.approx(0)
    np.testing.assert_allclose(found["strength"], truth[found.index], atol=0.2)
    assert ((found["lo"] < truth[found.index]) & (truth[found.index] < found["hi"])).all()


def test_bradley_terry_is_logistic_regression_on_differences():
    from sklearn.linear_model import LogisticRegression

    table, names = choices({"a": 0.8, "b": 0.0, "c": -0.5}, 10, 6), ["a", "b", "c"]
    half = pd.DataFrame(itertools.permutations(names, 2), columns=["left", "right"])
    both = pd.concat([table, half.assign(chosen=half["left"])])  # half a win more, each way
    weight = np.repeat([1.0, 0.5], [len(table), len(half)])
    both = pd.concat([both, both.assign(left=both["right"], right=both["left"])])  # two classes to tell apart
    code = lambda column: pd.get_dummies(both[column]).reindex(columns=names).to_numpy(float)
    model = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10, max_iter=1000)
    fitted = model.fit(code("left") - code("right"), both["chosen"] == both["left"], np.tile(weight, 2))
    found = stats.bradley_terry(table, boots=2).set_index("condition")["strength"]
    np.testing.assert_allclose(found[names], fitted.coef_[0] - fitted.coef_[0].mean(), atol=1e-3)


def test_bradley_terry_says_when_the_data_leave_a_strength_open():
    won = choices({"a": 50.0, "b": 0.0}, 3, 4)
    assert np.isfinite(stats.bradley_terry(won, boots=5)["strength"]).all()
    apart = pd.concat([won, won.replace({"a": "c", "b": "d"})])
    with pytest.raises(ValueError, match="never compared"):
        stats.bradley_terry(apart, boots=5)


def test_abx_counts_right_answers():
    table = choices({"a": 0.0, "b": 0.0}, 8, 10).assign(correct=lambda t: np.arange(len(t)) % 4 > 0)
    row = stats.discrimination(table, boots=100).iloc[0]
    assert (row["condition"], row["against"], row["share"]) == ("a", "b", 0.75) and row["p"] < 0.05


def test_ratings_are_compared_on_the_same_item_by_the_same_listener():
    rng = np.random.default_rng(0)
    grid = pd.MultiIndex.from_product(
        [range(10), range(6), ["plain", "steered"]], names=["listener", "item", "condition"]
    )
    table = grid.to_frame(index=False)
    mood = rng.normal(0, 20, 10)[
        table["listener"]
    ]  # listeners use the scale differently; differences don't see it
    table["rating"] = 50 + mood + 10 * (table["condition"] == "steered") + rng.normal(0, 2, len(table))
    found = stats.ratings(table, "plain", boots=200).set_index("condition")
    steered = found.loc["steered"]
    assert steered["difference"] == pytest.approx(10, abs=1.5)
    assert steered["difference_hi"] - steered["difference_lo"] < (steered["hi"] - steered["lo"]) / 3
    assert np.isnan(found.loc["plain", "difference"]) and steered["p_holm"] < 0.001
    with pytest.raises(ValueError, match="no condition 'absent'"):
        stats.ratings(table, "absent")


def test_krippendorffs_alpha_on_his_own_example():
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability", sections C and E."""
    nan = np.nan
    answers = pd.DataFrame(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
            [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
        ]
    )
    assert stats.agreement(answers) == pytest.approx(0.743, abs=5e-4)
    assert stats.agreement(answers, "interval") == pytest.approx(0.849, abs=5e-4)
    assert np.isnan(stats.agreement(answers.head(1)))


PAIRS = (("steered", "unsteered"), ("random", "unsteered"), ("steered", "prompt"))


def grid_of(choose, listeners: int = 18, items: int = 8) -> tuple[pd.DataFrame, list[int]]:
    """Choices between PAIRS on each item by a rule (pair, item, listener) -> 0 or 1; each column's pair."""
    columns = [(k, item) for k in range(len(PAIRS)) for item in range(items)]
    rows = [[PAIRS[k][choose(k, item, n)] for k, item in columns] for n in range(listeners)]
    return pd.DataFrame(rows), [k for k, _ in columns]


def test_coin_flips_on_several_pairs_agree_no_more_than_chance():
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        grid, pairs = grid_of(lambda k, item, n, rng=rng: rng.integers(2))
        found.append((stats.agreement(grid, within=pairs), stats.agreement(grid)))
    fair, pooled = np.array(found).T
    assert abs(fair.mean()) < 0.01 and np.abs(fair).max() < 0.1
    assert pooled.mean() > 0.25, "over all pairs together, coins would seem to agree"
    unlike, pairs = grid_of(lambda k, item, n: int(rng.random() < (0.05, 0.5, 0.95)[k]))
    assert abs(stats.agreement(unlike, within=pairs)) < 0.1, "nor does it where the shares differ by pair"


def test_agreement_on_several_pairs_is_1_where_all_agree():
    grid, pairs = grid_of(lambda k, item, n: (item + k) % 2)
    assert stats.agreement(grid, within=pairs) == 1
    grid, pairs = grid_of(lambda k, item, n: 0 if k == 0 else item % 2)  # a pair with one winner adds nothing
    assert stats.agreement(grid, within=pairs) == 1
    assert np.isnan(stats.agreement(grid_of(lambda k, item, n: k % 2)[0], within=pairs)), (
        "nothing left to agree on"
    )
    one, _ = grid_of(lambda k, item, n: (item * n) % 2)
    assert stats.agreement(one, within=[0] * one.shape[1]) == pytest.approx(stats.agreement(one))
    with pytest.raises(ValueError, match="one label per column"):
        stats.agreement(grid, within=pairs[1:])


def test_power_grows_with_listeners_and_false_alarms_stay_near_the_level():
    table = power.power(0.65, [5, 15, 40], items=10, runs=400).set_index("listeners")["power"]
    assert table[5] < table[15] < table[40] and table[40] > 0.8
    null = power.power(0.5, [10, 30], items=12, runs=1000)["power"]
    assert null.max() < 0.08
    naive = power.power(0.65, [15], items=10, listener_sd=0, item_sd=0, runs=400)["power"].iloc[0]
    assert naive > table[15]


def test_power_by_formula_and_the_number_it_takes():
    assert power.binomial_power(0.65, 90) == pytest.approx(0.812, abs=1e-3)
    assert power.binomial_power(0.5, 90) < 0.05
    needed = power.listeners_needed(0.65, 0.8, items=10, runs=400)
    assert power.power(0.65, [needed], items=10, runs=400)["power"].iloc[0] >= 0.8
    with pytest.raises(ValueError, match="more items"):
        power.listeners_needed(0.55, 0.9, items=2, most=20, runs=100)
    with pytest.raises(ValueError, match="between 0 and 1"):
        power.power(1.0)


def test_a_figures_title_says_what_was_found():
    table = pd.DataFrame(
        {"condition": ["a", "b"], "over": ["c", "c"], "share": [0.6, 0.1], "lo": 0.05, "hi": [0.7, 0.3]}
    )
    design = lambda kind: SimpleNamespace(kind=kind, question="Which?")
    title = lambda fig: fig.layout.title.text.split("<br>")[0]
    assert title(charts.results(table, design("preference"), "")) == "Which? C over b: 90%", (
        "turned to the winner"
    )
    assert title(charts.results(table[:1], design("preference"), "")) == "Which? No difference is shown"
    told = table.rename(columns={"over": "against"})
    assert title(charts.results(told, design("abx"), "")) == "Not shown to be told apart"
    told = charts.results(told.assign(lo=[0.52, 0.05]), design("abx"), "")
    assert title(told) == "Told apart best: a / c, X told rightly 60%"
    rated = table.rename(columns={"share": "mean"}).assign(mean=[30, 60])
    assert title(charts.results(rated, design("rating"), "")) == "Which? Most: b, 60 of 100"


def test_the_demonstration_has_the_items_and_listeners_that_its_own_table_asks_for():
    cells = nbformat.read(ROOT / "notebooks/09_blind_listening_test.ipynb", 4).cells
    given: dict = {}
    exec(next(c.source for c in cells if "parameters" in c.metadata.get("tags", [])), given)
    asked = dict(items=given["ITEMS"], runs=given["RUNS"], seed=given["SEED"])
    careless = 2
    assert any(f"careless={careless}," in cell.source for cell in cells)
    needed = power.listeners_needed(0.65, 0.8, most=200, alpha=0.05 / 3, **asked)
    assert needed == given["LISTENERS"] - careless

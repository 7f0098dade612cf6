"""Statistics of listening tests: shares, strengths, ratings and agreement, from tables of answers.

Tables are tidy: one row per answer with `listener` and `item`. Answers of one listener resemble each other,
and so do answers on one item, so the 95 % intervals draw listeners *and* items with replacement
(`bootstrap`), and `p` comes from a t test whose variance allows for both (`crossed_test`). What treats
answers as independent says so in its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ..measures.intervals import wilson

UNITS = ["listener", "item"]


def bootstrap(
    table: pd.DataFrame, statistic: Callable[[np.ndarray], np.ndarray], boots: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of a statistic when listeners and items are drawn anew, independently.

    `statistic` gets one weight per row of `table` (how often its listener and its item were drawn: the
    product) and returns a number or an array; a draw that leaves nothing to average may return NaN and is
    left out. Where there is only one listener, or one item, it stays as it is.

    Returns lo and hi, arrays of the statistic's shape.
    Source: Owen 2007, "The pigeonhole bootstrap" (crossed units; a little wider than needed, never narrower).
    """
    rng, drawn = np.random.default_rng(seed), []
    codes = [pd.factorize(table[unit])[0] for unit in UNITS if table[unit].nunique() > 1]
    for _ in range(boots):
        weights = np.ones(len(table))
        for code in codes:
            n = code.max() + 1
            weights *= rng.multinomial(n, np.full(n, 1 / n))[code]
        drawn.append(statistic(weights))
    return tuple(np.nanpercentile(drawn, [2.5, 97.5], axis=0))


def crossed_test(table: pd.DataFrame, value: str, null: float = 0.5) -> float:
    """The p of a mean of `value` other than `null`, allowing for listeners and items that differ.

    The mean is that of all rows; its variance is the listeners' plus the items' minus the part counted twice
    (not less than the larger of the two), with t's degrees of freedom from the smaller number of units. With
    one item only listeners count, so the answer is about that item alone, and likewise for one listener.
    Where listeners don't differ at all, nor items (everyone chose the same, say), p is the sign test's with
    one vote per unit of the scarcer kind. NaN with one listener and one item: no variance to go by.

    Source: Cameron, Gelbach & Miller 2011, "Robust inference with multiway clustering".
    """
    x = table[value].to_numpy(float)
    codes = [pd.factorize(table[unit])[0] for unit in UNITS]
    sums = [np.bincount(code, weights=x - x.mean()) for code in codes]
    return float(crossed_p(sums, np.square(x - x.mean()).sum(), x.mean() - null, len(x)))


def crossed_p(sums: Sequence[np.ndarray], squares: np.ndarray, gap: np.ndarray, n: int) -> np.ndarray:
    """The p of `crossed_test` for any number of tests (...) at once, each of n answers.

    `sums` are deviations from the mean, summed by listener (..., listener) and by item (..., item); `squares`
    (...) is the sum of their squares, and `gap` (...) how far the mean is from the null.
    """
    from scipy.stats import t as student

    sums = [s for s in sums if s.shape[-1] > 1]
    if not sums:
        return np.full_like(gap, np.nan)
    parts = [np.square(s).sum(-1) * s.shape[-1] / (s.shape[-1] - 1) for s in sums]
    variance = np.maximum.reduce([sum(parts) - (squares if len(parts) == 2 else 0), *parts])
    se, fewest = np.sqrt(variance) / n, min(s.shape[-1] for s in sums)
    varies = se > 1e-9
    p = 2 * student.sf(np.abs(gap) / np.where(varies, se, 1), fewest - 1)
    alike = np.where(gap == 0, 1.0, min(1.0, 2 * 0.5**fewest))
    return np.where(varies, p, alike)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjustment of several p values: the chance of any false alarm stays below the level."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    return np.minimum(adjusted, 1.0)[np.argsort(order)]


def _ends_of_mean(table: pd.DataFrame, value: str, boots: int, seed: int) -> tuple[float, float]:
    """`bootstrap` of the mean of a column."""
    x = table[value].to_numpy(float)
    return bootstrap(table, lambda w: w @ x / w.sum() if w.any() else np.nan, boots, seed)


def _shares_by_pair(answers: pd.DataFrame, other: str, boots: int, seed: int) -> pd.DataFrame:
    """The share of `hit` against one half for every pair of conditions; `other` is the second one's column.

    If all answers are the same, no draw differs; then the interval is Wilson's with one vote per listener or
    item, whichever are fewer.
    """
    rows, names = [], np.sort(answers[["left", "right"]].to_numpy(str), axis=1)
    for (a, b), part in answers.groupby([names[:, 0], names[:, 1]], sort=True):
        hit, n, units = part["hit"].to_numpy(float), len(part), part[UNITS].nunique()
        lo, hi = _ends_of_mean(part, "hit", boots, seed)
        if hit.min() == hit.max():
            votes = min((count for count in units if count > 1), default=1)
            lo, hi = wilson(hit[0] * votes, votes)
        row = {"condition": a, other: b, "share": hit.mean(), "lo": lo, "hi": hi}
        row |= {"p": crossed_test(part, "hit"), "answers": n, **units.add_suffix("s")}
        rows.append(row | dict(zip(("wilson_lo", "wilson_hi"), wilson(hit.sum(), n), strict=True)))
    table = pd.DataFrame(rows)
    table.insert(6, "p_holm", holm(table["p"]))
    return table


def preferences(answers: pd.DataFrame, boots: int = 1000, seed: int = 0) -> pd.DataFrame:
    """How often each condition was chosen over each other one.

    `answers` has the columns listener, item, left, right (conditions heard as A and B) and chosen (one of the
    two). Returns a pd.DataFrame, one row per pair: condition, over, share (of answers for `condition`), lo,
    hi (drawn by listener and item), p (`crossed_test`), p_holm (over the pairs), answers, listeners, items,
    and, as if every answer were independent, wilson_lo, wilson_hi. The pair's first name is the one that
    comes first in the alphabet.
    """
    first = answers[["left", "right"]].min(axis=1)
    return _shares_by_pair(answers.assign(hit=answers["chosen"] == first), "over", boots, seed)


def discrimination(answers: pd.DataFrame, boots: int = 1000, seed: int = 0) -> pd.DataFrame:
    """How often X was told rightly in ABX, per pair of conditions: columns as in `preferences`, chance 0.5.

    `answers` has the columns listener, item, left, right and correct. Not being told apart is no proof of
    sameness: read the interval's upper end.
    """
    return _shares_by_pair(answers.assign(hit=answers["correct"]), "against", boots, seed)


def bradley_terry(answers: pd.DataFrame, boots: int = 1000, seed: int = 0) -> pd.DataFrame:
    """One scale for all conditions: P(a is chosen over b) = 1 / (1 + exp(strength_b - strength_a)).

    `answers` are as in `preferences`. Half a win is added each way to every pair that was compared, so that a
    condition that never lost gets a finite strength, in every bootstrap draw too.

    Returns a pd.DataFrame, one row per condition, strongest first: condition, strength (log odds, mean 0),
    lo, hi, answers. Raises ValueError if some conditions were never compared, even indirectly.
    Source: Bradley & Terry 1952, Biometrika 39; the added half: Haldane 1956.
    """
    from scipy.sparse.csgraph import connected_components

    names = sorted({*answers["left"], *answers["right"]})
    number = {name: k for k, name in enumerate(names)}
    left, right, won = (answers[column].map(number).to_numpy() for column in ("left", "right", "chosen"))
    size, lost = len(names), left + right - won
    compared = np.zeros((size, size), bool)
    compared[left, right] = compared[right, left] = True
    if connected_components(compared, directed=False)[0] > 1:
        raise ValueError("some conditions were never compared, not even through others: add such pairs")

    def strengths(weights: np.ndarray) -> np.ndarray:
        wins = np.bincount(won * size + lost, weights, size**2).reshape(size, size)
        return _strengths(wins + 0.5 * compared)

    estimate, (lo, hi) = strengths(np.ones(len(answers))), bootstrap(answers, strengths, boots, seed)
    table = pd.DataFrame({"condition": names, "strength": estimate, "lo": lo, "hi": hi})
    table["answers"] = np.bincount([*left, *right], minlength=size)
    return table.sort_values("strength", ascending=False, ignore_index=True)


def _strengths(wins: np.ndarray) -> np.ndarray:
    """Maximum likelihood by Newton's method from wins[i, j], how often i was chosen over j; the mean is 0."""
    size, played = len(wins), wins + wins.T
    strength = np.zeros(size)
    for _ in range(100):
        chance = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
        gradient = (wins - played * chance).sum(1)
        weight = played * chance * (1 - chance)
        hessian = np.diag(weight.sum(1)) - weight + 1 / size  # 1 / size fixes the mean, which the data don't
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        strength += step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-9:
            break
    return strength - strength.mean()


def ratings(answers: pd.DataFrame, reference: str, boots: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Mean rating of each condition, and its difference from the reference, within item and listener.

    `answers` has the columns listener, item, condition and rating (0 to 100), one row per slider. Returns a
    pd.DataFrame, one row per condition, highest first: condition, mean, lo, hi, difference, difference_lo,
    difference_hi, p (`crossed_test` of the differences), p_holm, answers; the reference's own differences are
    NaN. Raises ValueError if there is no such reference.
    """
    grid = answers.pivot_table(index=UNITS, columns="condition", values="rating")
    if reference not in grid:
        raise ValueError(f"there is no condition {reference!r}; there are {', '.join(grid)}")
    rows = []
    for name in grid:
        own = grid[name].rename("rating").dropna().reset_index()
        lo, hi = _ends_of_mean(own, "rating", boots, seed)
        apart = (grid[name] - grid[reference]).rename("difference").dropna().reset_index()
        difference = (np.nan,) * 4
        if name != reference:
            p = crossed_test(apart, "difference", 0.0)
            difference = apart["difference"].mean(), *_ends_of_mean(apart, "difference", boots, seed), p
        rows.append((name, own["rating"].mean(), lo, hi, *difference, np.nan, len(own)))
    moved = ["difference", "difference_lo", "difference_hi", "p", "p_holm"]
    table = pd.DataFrame(rows, columns=["condition", "mean", "lo", "hi", *moved, "answers"])
    tested = table["p"].notna()
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"])
    return table.sort_values("mean", ascending=False, ignore_index=True)


def agreement(values: pd.DataFrame, kind: str = "nominal", within: Sequence | None = None) -> float:
    """Krippendorff's alpha between listeners: 1 is full agreement, 0 is what chance gives, below 0 is worse.

    Parameters
    ----------
    values : listeners down, what was judged across; NaN where a listener didn't answer.
    kind : "nominal" (choices) or "interval" (ratings).
    within : one label per column, here the pair of conditions: chance deals answers out anew among columns
        with the same label only, as nobody can choose what isn't offered. Default: one label for all.

    Chance keeps the shares (per label), so alpha says whether listeners agree on *which* trials are which:
    those who choose one condition in 3 of 4 trials, each in other trials, have alpha 0. NaN if there are no
    two answers to compare, or all (per label) are the same.

    Source: Krippendorff 2004, "Content Analysis", ch. 11; disagreement is summed over the labels before the
    ratio is taken.
    """
    unequal = lambda x: len(x) ** 2 - np.square(np.unique(x, return_counts=True)[1]).sum()
    squares = lambda x: 2 * len(x) ** 2 * np.var(x.astype(float))
    apart = {"nominal": unequal, "interval": squares}[kind]  # disagreement, summed over all ordered pairs
    labels = np.zeros(values.shape[1]) if within is None else np.asarray(within)
    if len(labels) != values.shape[1]:
        raise ValueError(f"within needs one label per column: {values.shape[1]}, not {len(labels)}")
    observed = expected = 0.0
    for label in np.unique(labels):
        columns = (values.iloc[:, k].dropna().to_numpy() for k in np.flatnonzero(labels == label))
        units = [column for column in columns if len(column) > 1]
        if units:
            pooled = np.concatenate(units)
            observed += sum(apart(unit) / (len(unit) - 1) for unit in units)
            expected += apart(pooled) / (len(pooled) - 1)
    return float(1 - observed / expected) if expected else float("nan")

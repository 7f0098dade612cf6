"""Statistics of listening tests: shares, strengths, ratings, agreement, and power before the test.

Tables are tidy: one row per answer with `listener` and `item`. Answers of one listener resemble each other,
and so do answers on one item, so intervals draw listeners *and* items with replacement (`bootstrap`), and `p`
comes from a t test whose variance allows for both (`crossed_test`). What treats answers as independent says
so in its name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ..measures.intervals import need, wilson


def bootstrap(
    table: pd.DataFrame,
    statistic: Callable[[np.ndarray], np.ndarray],
    by: Sequence[str] = ("listener", "item"),
    boots: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a statistic when the units in `by` are drawn with replacement, independently.

    Parameters
    ----------
    statistic : gets one weight per row of `table` (how often the row was drawn: the product over `by`) and
        returns an array. A draw that leaves nothing to average may return NaN and is left out.
    by : columns whose values are drawn; a column with one value is left as it is.

    Returns lo and hi, arrays of the statistic's shape.
    Source: Owen 2007, "The pigeonhole bootstrap" (crossed units; a little wider than needed, never narrower).
    """
    rng = np.random.default_rng(seed)
    codes = [pd.factorize(table[column])[0] for column in by]
    codes = [code for code in codes if code.max(initial=0) > 0]
    drawn = []
    for _ in range(boots):
        weights = np.ones(len(table))
        for code in codes:
            n = code.max() + 1
            weights *= rng.multinomial(n, np.full(n, 1 / n))[code]
        drawn.append(np.asarray(statistic(weights), dtype=float))
    drawn = np.where(np.isfinite(drawn), drawn, np.nan)
    half = 50 * (1 - level)
    return np.nanpercentile(drawn, half, axis=0), np.nanpercentile(drawn, 100 - half, axis=0)


def crossed_test(table: pd.DataFrame, value: str, null: float = 0.5) -> dict[str, float]:
    """Is the mean of `value` other than `null`, allowing for listeners and items that differ?

    The mean is that of all rows; its variance is the listeners' plus the items' minus the part counted twice
    (not less than the larger of the two), with t's degrees of freedom from the smaller number of units. With
    one item only listeners count, so the answer is about that item alone, and likewise for one listener.
    Where listeners don't differ at all, nor items (everyone chose the same, say), p is the sign test's with
    one vote per unit of the scarcer kind.

    Returns a dict of mean, se, df, p. With one listener and one item there is no variance to go by: se and p
    are NaN.
    Source: Cameron, Gelbach & Miller 2011, "Robust inference with multiway clustering".
    """
    from scipy.stats import t as student

    x = table[value].to_numpy(float)
    deviation, n = x - x.mean(), len(x)
    parts, units = [], []
    for column in ("listener", "item"):
        code = pd.factorize(table[column])[0]
        count = code.max() + 1
        if count > 1:
            sums = np.bincount(code, weights=deviation)
            parts.append(sums @ sums / n**2 * count / (count - 1))
            units.append(count)
    if not parts:
        return {"mean": float(x.mean()), "se": np.nan, "df": 0, "p": np.nan}
    variance = max(sum(parts) - (deviation @ deviation / n**2 if len(parts) == 2 else 0), *parts, 0.0)
    se, df = float(np.sqrt(variance)), min(units) - 1
    gap = float(x.mean() - null)
    if se > 1e-9 * max(1.0, np.abs(x).max()):
        p = float(2 * student.sf(abs(gap / se), df))
    else:
        p = min(1.0, 2 * 0.5 ** min(units)) if gap else 1.0
    return {"mean": float(x.mean()), "se": se, "df": df, "p": p}


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjustment of several p values: the chance of any false alarm stays below the level."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    return np.minimum(adjusted, 1.0)[np.argsort(order)]


def _share(table: pd.DataFrame, boots: int, level: float, seed: int) -> dict[str, float]:
    """The share of `hit` against one half, with both kinds of interval and both kinds of p.

    If all answers are the same, no draw differs; then the interval is Wilson's with one vote per listener or
    item, whichever are fewer.
    """
    from scipy.stats import binomtest

    hit = table["hit"].to_numpy(float)
    mean = lambda w: np.divide(w @ hit, w.sum(), out=np.full((), np.nan), where=w.sum() > 0)
    lo, hi = bootstrap(table, mean, boots=boots, level=level, seed=seed)
    if hit.min() == hit.max():
        votes = min((n for n in table[["listener", "item"]].nunique() if n > 1), default=1)
        lo, hi = wilson(hit[0] * votes, votes, level)
    wilson_lo, wilson_hi = wilson(hit.sum(), len(hit), level)
    found = {"share": float(hit.mean()), "lo": float(lo), "hi": float(hi)}
    found |= {"p": crossed_test(table, "hit")["p"], "answers": len(hit)}
    found |= {"listeners": table["listener"].nunique(), "items": table["item"].nunique()}
    found |= {"wilson_lo": wilson_lo, "wilson_hi": wilson_hi}
    return found | {"p_binomial": float(binomtest(int(hit.sum()), len(hit)).pvalue)}


def _by_pair(answers: pd.DataFrame, other: str, boots: int, level: float, seed: int) -> pd.DataFrame:
    """`_share` of every pair of conditions; the second is named in the column `other`."""
    rows, names = [], np.sort(answers[["left", "right"]].to_numpy(str), axis=1)
    for (a, b), part in answers.groupby([names[:, 0], names[:, 1]], sort=True):
        rows.append({"condition": a, other: b, **_share(part, boots, level, seed)})
    table = pd.DataFrame(rows)
    table.insert(6, "p_holm", holm(table["p"]))
    return table


def preferences(answers: pd.DataFrame, boots: int = 1000, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """How often each condition was chosen over each other one.

    `answers` has the columns listener, item, left, right (conditions heard as A and B) and chosen (one of the
    two). Returns a pd.DataFrame, one row per pair: condition, over, share (of answers for `condition`), lo,
    hi (drawn by listener and item), p (`crossed_test`), p_holm (over the pairs), answers, listeners, items,
    and, as if every answer were independent, wilson_lo, wilson_hi, p_binomial. The pair's first name is the
    one that comes first in the alphabet.
    """
    need(answers, ["listener", "item", "left", "right", "chosen"])
    first = np.sort(answers[["left", "right"]].to_numpy(str), axis=1)[:, 0]
    return _by_pair(answers.assign(hit=answers["chosen"].to_numpy() == first), "over", boots, level, seed)


def discrimination(
    answers: pd.DataFrame, boots: int = 1000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """How often X was told rightly in ABX, per pair of conditions: columns as in `preferences`, chance 0.5.

    `answers` has the columns listener, item, left, right and correct. Not being told apart is no proof of
    sameness: read the interval's upper end.
    """
    need(answers, ["listener", "item", "left", "right", "correct"])
    return _by_pair(answers.assign(hit=answers["correct"]), "against", boots, level, seed)


def bradley_terry(
    answers: pd.DataFrame, boots: int = 1000, level: float = 0.95, seed: int = 0, half: float = 0.5
) -> pd.DataFrame:
    """One scale for all conditions: P(a is chosen over b) = 1 / (1 + exp(strength_b - strength_a)).

    Parameters
    ----------
    answers : as in `preferences`.
    half : this many wins are added each way to every pair that was compared, so that a condition that never
        lost gets a finite strength (and so does every bootstrap draw). 0 is plain maximum likelihood.

    Returns a pd.DataFrame, one row per condition, strongest first: condition, strength (log odds, mean 0),
    lo, hi, answers. Raises ValueError if some conditions were never compared, even indirectly; or, with
    `half=0`, if one group always won.
    Source: Bradley & Terry 1952, Biometrika 39; existence: Ford 1957; the added half: Haldane 1956.
    """
    from scipy.sparse.csgraph import connected_components

    need(answers, ["listener", "item", "left", "right", "chosen"])
    names = sorted(set(answers["left"]) | set(answers["right"]))
    number = {name: k for k, name in enumerate(names)}
    left, right = (answers[side].map(number).to_numpy() for side in ("left", "right"))
    won = answers["chosen"].map(number).to_numpy()
    lost = left + right - won
    size, cell = len(names), won * len(names) + lost
    compared = np.zeros((size, size), bool)
    compared[left, right] = compared[right, left] = True
    if connected_components(compared, directed=False)[0] > 1:
        raise ValueError("some conditions were never compared, not even through others: add such pairs")
    wins = np.bincount(cell, minlength=size**2).reshape(size, size)
    if half == 0 and connected_components(wins, connection="strong")[0] > 1:
        raise ValueError("some conditions never lost, so their strength has no bound: leave half=0.5")

    def strengths(weights: np.ndarray) -> np.ndarray:
        counts = np.bincount(cell, weights=weights, minlength=size**2).reshape(size, size) + half * compared
        return _strengths(counts)

    estimate = strengths(np.ones(len(answers)))
    lo, hi = bootstrap(answers, strengths, boots=boots, level=level, seed=seed)
    times = np.bincount(np.concatenate([left, right]), minlength=size)
    table = pd.DataFrame({"condition": names, "strength": estimate, "lo": lo, "hi": hi, "answers": times})
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


def ratings(
    answers: pd.DataFrame, reference: str, boots: int = 1000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Mean rating of each condition, and its difference from the reference, within item and listener.

    `answers` has the columns listener, item, condition and rating (0 to 100), one row per slider. Returns a
    pd.DataFrame, one row per condition, highest first: condition, mean, lo, hi, difference, difference_lo,
    difference_hi, p (`crossed_test` of the differences), p_holm, answers; the reference's own differences are
    NaN.
    """
    need(answers, ["listener", "item", "condition", "rating"])
    grid = answers.pivot_table(index=["listener", "item"], columns="condition", values="rating")
    if reference not in grid:
        raise ValueError(f"there is no condition {reference!r}; there are {', '.join(grid)}")
    pairs, rows = grid.index.to_frame(index=False), []
    for name in grid:
        row = {"condition": name, "mean": grid[name].mean()}
        others = [("", grid[name])] + [("difference", grid[name] - grid[reference])] * (name != reference)
        for label, values in others:
            table = pairs.assign(value=values.to_numpy()).dropna()
            x = table["value"].to_numpy()
            mean = lambda w, x=x: w @ x / w.sum() if w.sum() else np.nan
            lo, hi = bootstrap(table, mean, boots=boots, level=level, seed=seed)
            prefix = f"{label}_" if label else ""
            row |= {f"{prefix}lo": float(lo), f"{prefix}hi": float(hi)}
            if label:
                row |= {label: x.mean(), "p": crossed_test(table, "value", 0.0)["p"]}
        rows.append(row | {"answers": int(grid[name].count())})
    moved = ["difference", "difference_lo", "difference_hi", "p", "p_holm"]
    table = pd.DataFrame(rows).reindex(columns=["condition", "mean", "lo", "hi", *moved, "answers"])
    tested = table["p"].notna()
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"])
    return table.sort_values("mean", ascending=False, ignore_index=True)


def agreement(values: pd.DataFrame, kind: str = "nominal", within: Sequence | None = None) -> float:
    """Krippendorff's alpha between listeners: 1 is full agreement, 0 is what chance gives, below 0 is worse.

    Parameters
    ----------
    values : listeners down, what was judged across; NaN where a listener didn't answer.
    kind : "nominal" (choices) or "interval" (ratings).
    within : one label per column. Chance then deals answers out anew among columns with the same label only.
        Needed where columns offer different answers, as trials on different pairs of conditions do: nobody
        can choose what isn't offered, so chance over all columns together would disagree too much, and alpha
        among coin-flippers would be above 0. Default: any answer could have been given in any column.

    Chance keeps the shares (per label): listeners who choose one condition in 3 of 4 trials, each in other
    trials, have alpha 0. So alpha says whether listeners agree on *which* trials are which, and the shares
    say the rest. Where nearly all choices are the same, alpha is near 0 however well listeners agree, because
    there is hardly anything left to agree on. NaN if there are no two answers to compare, or all (per label)
    are the same.

    Observed and expected disagreement are summed over the labels, weighted by their answers, before the ratio
    is taken; a label under which all answers are the same adds nothing to either.

    Source: Krippendorff 2004, "Content Analysis", ch. 11. With two or more choices and no gaps it is close to
    Fleiss' kappa (equal to it but for a correction for few answers).
    """
    distances = {"nominal": lambda a, b: float(a != b), "interval": lambda a, b: (float(a) - float(b)) ** 2}
    if kind not in distances:
        raise ValueError(f"kind {kind!r}; there are {' and '.join(distances)}")
    distance = distances[kind]
    labels = np.zeros(values.shape[1], int) if within is None else pd.factorize(np.asarray(within))[0]
    if len(labels) != values.shape[1]:
        raise ValueError(f"within needs one label per column: {values.shape[1]}, not {len(labels)}")

    def apart(values: Sequence) -> float:
        kinds, counts = np.unique(np.asarray(values), return_counts=True)
        pairs = itertools.product(range(len(kinds)), repeat=2)
        return sum(counts[i] * counts[j] * distance(kinds[i], kinds[j]) for i, j in pairs if i != j)

    grid, observed, expected = values.to_numpy(dtype=object), 0.0, 0.0
    for label in np.unique(labels):
        units = [[v for v in column if not pd.isna(v)] for column in grid.T[labels == label]]
        units = [unit for unit in units if len(unit) > 1]
        if units:
            pooled = [v for unit in units for v in unit]
            observed += sum(apart(unit) / (len(unit) - 1) for unit in units)
            expected += apart(pooled) / (len(pooled) - 1)
    return 1 - observed / expected if expected else float("nan")

"""How sure a number is: shares and means with their 95 % intervals, alone or for every group of a table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

TAIL = 0.975  # the quantile at which the upper half of an interval ends
SHARES = ("accuracy", "balanced_accuracy", "auc")  # metrics between 0 and 1


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    lo: float
    hi: float


def wilson(successes: Any, n: Any) -> tuple[Any, Any]:
    """The ends of Wilson's score interval of a share of n independent trials, of numbers or arrays.

    Neither needs to be whole: a mean that varies like a share of 12.5 trials has one, too.

    Source: Wilson 1927, JASA 22; Brown et al. 2001.
    """
    p, z = successes / n, ndtri(TAIL)
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    low, high = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
    return np.where(p == 0, 0.0, low)[()], np.where(p == 1, 1.0, high)[()]  # there without rounding


def share(values: Any) -> Interval:
    """Share of true values with its Wilson score interval; missing values are left out.

    Clips count as independent of each other: where several share a prompt or a seed, `mean_interval` with
    `groups` says how far that matters. Raises ValueError if no value is left, or one isn't true or false.
    """
    hits = pd.Series(values).dropna()
    if not len(hits) or not hits.isin([True, False]).all():
        raise ValueError(f"a share is of values that are true or false; these are {hits.unique()[:5]}")
    return Interval(float(hits.mean()), *map(float, wilson(hits.sum(), len(hits))))


def mean_interval(values: Any, groups: Any = None, seed: int = 0) -> Interval:
    """Mean with its percentile bootstrap interval over groups; missing values are left out.

    Parameters
    ----------
    values : (clip,), numbers or bools
    groups : (clip,), optional
        What is drawn anew as a whole: seeds, prompts, or scores. Left out, each clip is a group.
    seed : of the 2,000 resamples; the same values in any order give the same interval.

    Returns an Interval; its ends are NaN with fewer than two groups, which say nothing about others. Raises
    ValueError if no value is left, or `groups` has another length.
    Source: Efron & Tibshirani 1993, ch. 13; groups: Davison & Hinkley 1997, sec. 3.8.
    """
    values = pd.Series(np.asarray(values, dtype=object)).astype("Float64").astype(float)
    groups = np.arange(len(values)) if groups is None else pd.Series(np.asarray(groups)).to_numpy()
    if len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} values; give one each")
    kept = values.notna().to_numpy()
    if not kept.any():
        raise ValueError("no values to average: all are missing")
    table = values[kept].groupby(groups[kept], dropna=False).agg(["sum", "count"])
    table = table.sort_values(["sum", "count"]).to_numpy(float)
    mean = float(table[:, 0].sum() / table[:, 1].sum())
    if len(table) < 2:
        return Interval(mean, np.nan, np.nan)
    drawn = table[np.random.default_rng(seed).integers(len(table), size=(2000, len(table)))].sum(1)
    lo, hi = np.quantile(drawn[:, 0] / drawn[:, 1], [1 - TAIL, TAIL])
    return Interval(mean, float(lo), float(hi))


def need(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise ValueError unless a table has rows and these columns; names what is missing and what is there."""
    if missing := [column for column in columns if column not in table]:
        lacks = f"the table lacks the column(s) {', '.join(missing)}"
        raise ValueError(f"{lacks}; it has {', '.join(map(str, table))}")
    if table.empty:
        raise ValueError("the table has no rows, so there is nothing to average or to draw")


def means_by(table: pd.DataFrame, by: Sequence[str], value: str = "score") -> pd.DataFrame:
    """Mean of `value` in each group of `by`, with its interval over the group's rows: folds, seeds or clips.

    Parameters
    ----------
    table : one row per fold, seed or clip of each group, such as `accuracy_by_layer` gives.
    by : columns that make a group; a missing value in one (the input has no layer) makes a group as well.
    value : the column to average; missing values are left out.

    Returns a pd.DataFrame, one row per group: `by`, `mean`, `lo`, `hi`, `n`. Of one value the ends are NaN.
    Raises ValueError for a missing column, or a table without rows.

    Notes
    -----
    n independent values (seeds, clips) of variance s² have a mean of variance v = s²/n, and the interval is
    Student's. Values in a column beside a column `fold` are scores of one cross-validation: its k folds share
    training data, and v = (1/n + 1/(k - 1)) s² [1].

    Shares (`value` is "score", and a column `metric` says one of `SHARES`) get Wilson's interval, which stays
    between 0 and 1: of as many trials as a share of that mean would need for the variance v, times (z/t)²,
    because v is an estimate [2]. They are never more than there are test rows, if a column `rows` says how
    many each fold has. Without that column n equal values, for which v is 0, count as n trials: one a fold
    is all that is known. The interval then is wide.

    Sources: [1] Nadeau & Bengio 2003, *Inference for the generalization error*, n_test/n_train = 1/(k - 1).
    [2] Korn & Graubard 1998; Dean & Pagano 2015 (Wilson's interval on effective trials).
    """
    need(table, [*by, value])
    is_share = table["metric"].isin(SHARES) if value == "score" and "metric" in table else False
    rows = table["rows"].where(table[value].notna()) if "rows" in table else np.nan
    columns = table[[*by, value]].assign(is_share=is_share, rows=rows, folds=table.get("fold", 0))
    groups = columns.groupby(list(by), observed=True, dropna=False)
    found = groups.agg(
        mean=(value, "mean"), variance=(value, "var"), n=(value, "count"),
        is_share=("is_share", "all"), rows=("rows", "mean"), folds=("folds", "nunique"),
    ).reset_index()  # fmt: skip
    mean, n, t = found["mean"], found["n"], stdtrit((found["n"] - 1).clip(lower=1), TAIL)
    overlap = (1 / (found["folds"] - 1)).where(found["folds"] > 1, 0.0)
    variance = (1 / n + overlap) * found["variance"]
    known = found["rows"] * found["folds"].where(found["folds"] > 1, n)  # a fold's rows count once
    trials = mean * (1 - mean) / variance.where(variance > 0) * (ndtri(TAIL) / t) ** 2
    trials = trials.fillna(known.fillna(n)).clip(upper=known.fillna(np.inf)).where(n > 1)
    inside = wilson(mean * trials, trials)
    half = t * np.sqrt(variance)
    lo, hi = (e.mask(found["is_share"], w) for e, w in zip((mean - half, mean + half), inside, strict=True))
    return found.assign(lo=lo, hi=hi)[[*by, "mean", "lo", "hi", "n"]]

"""How sure a number is: shares and means with their intervals."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    lo: float
    hi: float


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of n independent trials.

    Source: Wilson 1927, JASA 22; Brown et al. 2001.
    """
    low, high = stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return float(low), float(high)


def share(values: Any, level: float = 0.95) -> Interval:
    """Share of true values with its Wilson score interval; missing values are left out.

    Clips count as independent of each other: where several share a prompt or a seed, `mean_interval` with
    `groups` says how far that matters.

    Raises
    ------
    ValueError  if no value is left, or one isn't true or false.
    """
    hits = pd.Series(values).dropna()
    if not len(hits) or not hits.isin([True, False]).all():
        raise ValueError(f"a share is of values that are true or false; these are {hits.unique()[:5]}")
    return Interval(float(hits.mean()), *wilson(hits.sum(), len(hits), level))


def mean_interval(
    values: Any, groups: Any = None, level: float = 0.95, n: int = 2000, seed: int = 0
) -> Interval:
    """Mean with its percentile bootstrap interval over groups; missing values are left out.

    Parameters
    ----------
    values : (clip,), numbers or bools
    groups : (clip,), optional
        What is drawn anew as a whole: seeds, prompts, or scores. Left out, each clip is a group.
    n : number of resamples
    seed : of the resampling; the same values in any order give the same interval.

    Returns
    -------
    Interval; its ends are NaN with fewer than two groups, which say nothing about others.

    Raises
    ------
    ValueError  if no value is left, or `groups` has another length.

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
    drawn = table[np.random.default_rng(seed).integers(len(table), size=(n, len(table)))].sum(1)
    lo, hi = np.quantile(drawn[:, 0] / drawn[:, 1], [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(lo), float(hi))

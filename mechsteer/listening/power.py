"""Before the test: how many listeners does it take to see a preference?

`power` plays the test many times with made-up answers of a stated strength and counts how often
`crossed_test`, the test used on the real answers, sees it. These answers stay in memory and are reported as a
number only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .._shared import number
from .stats import crossed_p


def power(
    preference: float = 0.65,
    listeners: Sequence[int] = (5, 10, 15, 20, 30, 40),
    items: int = 12,
    listener_sd: float = 0.5,
    item_sd: float = 0.5,
    alpha: float = 0.05,
    runs: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of simulated tests that would see a preference, by number of listeners.

    Parameters
    ----------
    preference : share of choices for the favoured condition over all (0.5 gives the false alarms).
    listeners : numbers of listeners to try, each at least 2.
    items : pairs that each listener judges once; at least 2.
    listener_sd, item_sd : how much listeners and items differ, in log odds. 0.5 means that among listeners
        whose mean is 65 %, two thirds lie between 53 and 76 %. 0 is the optimist's case.
    alpha : two-sided level of the test; of k questions at once (`p_holm`) the first is seen at 0.05 / k.
    runs : simulated tests per row; the simulation's own error is at most 0.5 / sqrt(runs).

    Returns a pd.DataFrame, one row per number: listeners, answers (in all), power, error (one standard error
    of `power`). Raises ValueError for a preference outside (0, 1), or fewer than two listeners or items.
    """
    runs = number("runs", runs, 1, whole=True)
    if not 0 < preference < 1 or min(listeners) < 2 or items < 2:
        raise ValueError("power needs a preference between 0 and 1, and at least two listeners and two items")
    rng, rows = np.random.default_rng(seed), []
    centre = _centre(preference, np.hypot(listener_sd, item_sd))
    for n in listeners:
        seen = 0
        for start in range(0, runs, 200):  # 200 tests at a time bound the memory
            m = min(200, runs - start)
            odds = centre + listener_sd * rng.standard_normal((m, n, 1))
            odds = odds + item_sd * rng.standard_normal((m, 1, items))
            chosen = (rng.random((m, n, items)) < 1 / (1 + np.exp(-odds))).astype(float)
            mean = chosen.mean((1, 2))
            deviation = chosen - mean[:, None, None]
            sums, squares = (deviation.sum(2), deviation.sum(1)), np.square(deviation).sum((1, 2))
            seen += (crossed_p(sums, squares, mean - 0.5, n * items) < alpha).sum()
        share = seen / runs
        rows.append((n, n * items, share, np.sqrt(share * (1 - share) / runs)))
    return pd.DataFrame(rows, columns=["listeners", "answers", "power", "error"])


def listeners_needed(preference: float = 0.65, target: float = 0.8, most: int = 500, **options) -> int:
    """The smallest number of listeners with which `power` reaches `target`; the options are those of `power`.

    Raises ValueError if `most` don't reach it: where items differ, listeners can't stand in for more items.
    """
    reach = lambda n: float(power(preference, [n], **options)["power"].iloc[0])
    low, high = 2, min(4, most)
    while reach(high) < target:
        low, high = high, min(2 * high, most)
        if low >= most:
            raise ValueError(f"{most} listeners don't reach a power of {target:.0%}: use more items")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reach(middle) >= target else (middle, high)
    return high


def binomial_power(preference: float, answers: int, alpha: float = 0.05) -> float:
    """Exact power of the two-sided binomial test against 0.5 with independent answers, as one a listener."""
    from scipy.stats import binom

    k = np.arange(answers + 1)
    tail = np.minimum(1, 2 * np.minimum(binom.cdf(k, answers, 0.5), binom.sf(k - 1, answers, 0.5)))
    return float(binom.pmf(k, answers, preference)[tail <= alpha].sum())


def _centre(preference: float, sd: float) -> float:
    """Log odds around which normal differences of `sd` average out to this preference, by Gauss-Hermite."""
    from scipy.optimize import brentq

    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    average = lambda c: (weights / (1 + np.exp(-(c + sd * nodes)))).sum() / weights.sum()
    return float(brentq(lambda c: average(c) - preference, -40, 40))

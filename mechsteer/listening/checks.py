"""Checks of the exercises of 05; see `mechsteer.checks` for how they work."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from ..checks import EMPTY, exercise

__all__ = ["chance_of", "draw_listeners", "surprise"]


@exercise("so 15 of 20 is rare for a coin, and 12 of 20 isn't")
def surprise(answer: Callable) -> Iterator[str]:
    """05: `answer(k, n)` is the two-sided p value of k choices out of n under a fair coin."""
    from scipy.stats import binomtest

    cases = [(15, 20), (5, 20), (12, 20), (10, 20)]
    got = [answer(*case) for case in cases]
    if None in got:
        yield EMPTY
    truth = [binomtest(k, n).pvalue for k, n in cases]
    if np.allclose(got[0], truth[0] / 2):
        yield "this is one-sided. Before the test nobody knew which way it would go, so both tails count"
    if not np.isclose(got[0], got[1]):
        yield "15 of 20 and 5 of 20 are equally surprising: the coin doesn't know which side we hope for"
    if got[3] > 1 + 1e-9:
        yield f"a p value of {got[3]:.2f}: the middle was counted twice, so take 1 at most"
    if not np.allclose(got, truth):
        yield f"15 of 20 should give {truth[0]:.4f}, not {got[0]:.4f}: add up the chances of all counts as rare as this"


@exercise("whole listeners were drawn, so answers that hang together stay together")
def draw_listeners(answer: Callable) -> Iterator[str]:
    """05: `answer(table, rng)` draws listeners with replacement; a listener drawn twice brings its rows twice."""
    table = pd.DataFrame({"listener": np.repeat(["a", "b", "c", "d", "e", "f"], 4), "chosen": np.arange(24)})
    got = [answer(table, np.random.default_rng(seed)) for seed in range(20)]
    if any(g is None for g in got):
        yield EMPTY
    if any(len(g) != len(table) for g in got):
        yield f"as many listeners as there were should be drawn, so {len(table)} rows, not {len(got[0])}"
    times = [g["chosen"].value_counts().reindex(range(24), fill_value=0).to_numpy().reshape(6, 4) for g in got]
    if any((t != t[:, :1]).any() for t in times):
        yield "single answers were drawn. Draw listeners, then take all the answers of each"
    if all((t == 1).all() for t in times):
        yield "every listener came exactly once: draw with replacement"
    if all((t == times[0]).all() for t in times):
        yield "every draw is the same: use the generator that is passed in"


@exercise("strengths turn into choices by their difference alone")
def chance_of(answer: Callable) -> Iterator[str]:
    """05: `answer(strength_a, strength_b)` is the chance that a is chosen over b (Bradley and Terry)."""
    cases = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (3.0, 1.0)]
    got = [answer(*case) for case in cases]
    if None in got:
        yield EMPTY
    truth = [1 / (1 + np.exp(b - a)) for a, b in cases]
    if not np.isclose(got[0], 0.5):
        yield f"two equal strengths should give one half, not {got[0]:.2f}"
    if np.isclose(got[1], 1 - truth[1]):
        yield "this is the chance that b is chosen: the sign of the difference is turned round"
    if not np.isclose(got[1] + got[2], 1):
        yield "one of the two is always chosen: the chances of a over b and of b over a should add up to 1"
    if not np.allclose(got, truth):
        yield f"a difference of 1 should give {truth[1]:.3f}, not {got[1]:.3f}: log odds of 1 are odds of e to 1"

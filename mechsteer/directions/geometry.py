"""How alike are the directions that different methods, concepts and layers find, and how sure is that?

The last dimension of a direction is the features (d_model, or d_head for one head); DataArrays in give
DataArrays out. Uncertainty comes from resampling groups (scores, tracks), never single clips. Taught in
04_compare_directions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from .. import _shared
from ._labels import Batch, fits_by_layer
from ._solvers import METHODS, Fitting, prepare, takes_fitting
from .scores import PROBES

SPACES = ("raw", "read", "whitened")


def unit(direction):
    """Scale to length 1 over the last dimension. Raises ValueError for a zero or non-finite vector."""
    values = np.asarray(direction)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    if not np.isfinite(length).all() or (length == 0).any():
        raise ValueError("a direction is zero or not finite, so it has no unit vector")
    return direction.copy(data=values / length) if isinstance(direction, xr.DataArray) else values / length


def cosine(a, b, metric: np.ndarray | None = None):
    """Cosine of a and b over the last dimension; other dimensions broadcast (by name for DataArrays).

    `metric` [d, d] is an inner product a.M.b in place of a.b. With the `covariance` of the activations it is
    the correlation of what a and b *read* from the data; with its inverse the cosine after whitening, of a
    and b as things to *write* (steps in activation space, measured in standard deviations).
    """
    if isinstance(a, xr.DataArray):
        dims = [[a.dims[-1]], [b.dims[-1]]]
        return xr.apply_ufunc(cosine, a, b, input_core_dims=dims, kwargs={"metric": metric})
    a, b = np.asarray(a, float), np.asarray(b, float)
    mapped = (lambda v: v) if metric is None else (lambda v: v @ metric)
    inner = lambda u, v: (mapped(u) * v).sum(-1)
    return inner(a, b) / np.sqrt(inner(a, a) * inner(b, b))


def covariance(x) -> np.ndarray:
    """Covariance [d, d] of activations x [row, d], shrunk so that it can be inverted (Ledoit & Wolf 2004)."""
    from sklearn.covariance import ledoit_wolf

    return ledoit_wolf(np.asarray(x, float))[0]


def null_cosine(
    d: int, level: float = 0.95, metric: np.ndarray | None = None, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Interval that holds `level` of the cosines of two random directions in d dimensions.

    Exact ((cosine + 1) / 2 is Beta((d - 1)/2, (d - 1)/2)), and about +-2 / sqrt(d) for 95 %. With a `metric`
    (see `cosine`), whose few large axes widen the band, from `draws` random pairs.
    """
    from scipy.stats import beta

    if not 2 <= d < np.inf:
        raise ValueError(f"directions in {d} dimension have no null band")
    if metric is not None:
        drawn = cosine(*np.random.default_rng(seed).standard_normal((2, draws, d)), metric)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)
    high = float(2 * beta.ppf((1 + level) / 2, (d - 1) / 2, (d - 1) / 2) - 1)
    return -high, high


@takes_fitting
def direction_cosines(
    acts: xr.Dataset,
    label: str,
    methods: Sequence[str] = PROBES,
    site: str = "resid",
    layers: Sequence[int] | None = None,
    group: str | None = "group",
    kind: str = "auto",
    space: str = "raw",
    boots: int = 200,
    halves: int = 20,
    level: float = 0.95,
    progress: bool = True,
    **fitting,
) -> pd.DataFrame:
    """Cosine between the directions of each pair of methods, per concept and layer, with intervals.

    Parameters
    ----------
    acts, label, methods, site, layers, group, kind, fitting : see `find_directions`
    space : "raw" (plain cosine), "read" (correlation of what the two read from the data) or "whitened"
        (cosine as steps in whitened space), see `cosine`; the covariance is that of all rows of the layer
    boots, halves : bootstrap samples of groups, and random splits of the groups into two halves
    level : of the intervals and of the null band

    Returns
    -------
    pd.DataFrame with columns label, concept, layer, [head,] method_a, method_b, cosine, lo, hi, null_lo,
    null_hi. method_a != method_b: the cosine of the two on all rows; lo, hi from refits on the bootstrap
    samples at the penalty chosen on all rows (`cosine_interval`). method_a == method_b: how stable a method
    is with itself, the mean cosine of its directions from two halves of the groups (each has half the data),
    with the spread over splits. null_lo, null_hi: two random directions. Methods share the same clips, so
    their cosine can be high where both are unstable: read it beside the halves. Raises ValueError and
    TypeError as `find_directions`, and ValueError for an unknown space or fewer than 4 groups.
    """
    if space not in SPACES:
        raise ValueError(f"space={space!r} is not known; use one of {', '.join(SPACES)}")
    fitting, records = Fitting(**fitting), []
    level = _shared.number("level", level, 0, 1)
    boots, halves = (_shared.number("boots and halves", n, 1, whole=True) for n in (boots, halves))
    places = fits_by_layer(acts, label, kind, group, methods, site, layers, fitting)
    for where, x, batch, fits in _shared.progress(places, progress, desc=f"cosines, {label}", unit="layer"):
        x, penalties = x[batch.rows], {method: fit.alpha for method, fit in fits.items()}
        metric = None if space == "raw" else covariance(x)
        metric = np.linalg.inv(metric) if space == "whitened" else metric
        null_lo, null_hi = null_cosine(x.shape[1], level, metric, seed=fitting.seed)
        samples = _samples(batch.groups, boots, halves, fitting.seed)
        booted, split = (_refits(batch, x, penalties, fitting.standardize, some) for some in samples)
        for a, b in itertools.combinations_with_replacement(fits, 2):
            if a == b:
                drawn = cosine(split[a][::2], split[a][1::2], metric)
                value = np.nanmean(drawn, axis=0)
                lo, hi = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
            else:
                value = cosine(fits[a].w.T, fits[b].w.T, metric)
                lo, hi = cosine_interval(value, cosine(booted[a], booted[b], metric), level)
            for i, concept in enumerate(batch.targets[0].concepts):
                pair = {"label": label, "concept": concept, **where, "method_a": a, "method_b": b}
                pair |= {"cosine": value[i], "lo": lo[i], "hi": hi[i], "null_lo": null_lo, "null_hi": null_hi}
                records.append(pair)
    return pd.DataFrame(records)


def cosine_interval(value: np.ndarray, drawn: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap interval of cosines `value` [K] from refits `drawn` [B, K], NaN refits left out.

    Normal on Fisher's z = arctanh(cosine), centred on `value`, with the refits' standard deviation: refits on
    resampled groups are noisier than `value` itself, which shifts plain percentiles (in a simulation those
    held the true cosine 75 to 100 % of the time at level 0.95, this interval 90 to 100 %).
    """
    from scipy.stats import norm

    z, spread = (np.arctanh(np.clip(c, -1 + 1e-12, 1 - 1e-12)) for c in (value, drawn))
    reach = norm.ppf((1 + level) / 2) * np.nanstd(spread, axis=0)
    return np.tanh(z - reach), np.tanh(z + reach)


def _samples(groups, boots, halves, seed) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights of rows: for samples of the groups with replacement; for halves of the groups, two by two."""
    names, of_row = np.unique(groups, return_inverse=True)
    rng, n = np.random.default_rng(seed), len(names)
    if n < 4:
        raise ValueError(f"two halves need at least 4 groups, there are {n}")
    drawn = [np.bincount(rng.integers(0, n, n), minlength=n)[of_row] for _ in range(boots)]
    first = [(rng.permutation(n) < n // 2)[of_row] for _ in range(halves)]
    return drawn, [half.astype(float) for one in first for half in (one, ~one)]


def _refits(batch: Batch, x, penalties, standardize, samples) -> dict[str, np.ndarray]:
    """Directions [sample, K, D] of every method on weighted rows; NaN for a concept that a sample lacks."""
    found = {method: [] for method in penalties}
    for weights in samples:
        rows = weights > 0
        y, design = np.asfortranarray(batch.y[rows]), prepare(x[rows], weights[rows], standardize)
        constant = (y == y[0]).all(0)[:, None]
        for method, alpha in penalties.items():
            w, _ = METHODS[method].solve(design, y, [alpha], batch.values)
            found[method].append(np.where(constant, np.nan, w[0].T))
    return {method: np.stack(refits) for method, refits in found.items()}

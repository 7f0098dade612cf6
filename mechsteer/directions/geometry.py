"""How alike are the directions that different methods, concepts and layers find, and how sure is that?

A direction is an array whose last dimension is the features (d_model, or d_head for one head); DataArrays in give
DataArrays out. What chance looks like: two random directions in d dimensions have a cosine of about +-2 / sqrt(d)
(95 %). Uncertainty comes from resampling groups (scores, tracks), never single clips. Taught in
03_compare_directions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from . import _solvers as solvers
from ._labels import Batch, batches, frames_of, read_groups, read_target, states
from ._solvers import ALPHAS
from .scores import METHODS, check_methods

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

    Parameters
    ----------
    metric : float [d, d], optional
        Inner product a.M.b in place of a.b. With the covariance of the activations it is the correlation of
        what a and b *read* from the data. With its inverse it is the cosine after whitening, of a and b as
        things to *write* (steps in activation space, measured in standard deviations). See `covariance`.
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


def null_cosine(d: int, level: float = 0.95) -> tuple[float, float]:
    """Interval that holds `level` of the cosines of two random directions in d dimensions, exactly.

    (cosine + 1) / 2 is Beta((d - 1)/2, (d - 1)/2).
    """
    from scipy.stats import beta

    if d < 2:
        raise ValueError(f"directions in {d} dimension are all the same or opposite: there is no null band")
    high = float(2 * beta.ppf((1 + level) / 2, (d - 1) / 2, (d - 1) / 2) - 1)
    return -high, high


def null_cosine_drawn(
    d: int, level: float = 0.95, metric: np.ndarray | None = None, draws: int = 2000, seed: int = 0
):
    """The same interval from random directions; needed with a `metric`, whose few large axes widen the band."""
    a, b = np.random.default_rng(seed).standard_normal((2, draws, d))
    return tuple(float(q) for q in np.quantile(cosine(a, b, metric), [(1 - level) / 2, (1 + level) / 2]))


def principal_angles(a, b, rank: int | None = None) -> np.ndarray:
    """Principal angles in degrees, smallest first, between the spans of a [k, d] and b [m, d].

    `rank` keeps that many main axes of each span. The k one-vs-rest directions of k classes span k - 1
    dimensions (or nearly; the class scores of `mse` add to a constant), so pass rank=k - 1 there. Source:
    Bjoerck & Golub 1973.
    """
    from scipy.linalg import subspace_angles

    spans = []
    for name, span in (("a", a), ("b", b)):
        u, s, _ = np.linalg.svd(np.asarray(unit(span), float).T, full_matrices=False)
        found = int((s > 1e-6 * s[0]).sum())
        if rank is not None and rank > found:
            raise ValueError(f"{name} spans {found} dimensions, fewer than rank={rank}")
        spans.append(u[:, : rank or found])
    return np.degrees(subspace_angles(*spans))[::-1]


def gram_schmidt(directions):
    """Make directions [..., k, d] orthonormal in order: the first stays, each next one loses what those
    before it hold.

    Every result keeps a positive cosine with what it came from. Raises ValueError if one lies in the span of
    those before.
    """
    if isinstance(directions, xr.DataArray):
        return directions.copy(data=gram_schmidt(directions.values).astype(directions.dtype))
    q, r = np.linalg.qr(np.swapaxes(np.asarray(unit(directions), float), -1, -2))
    left = np.diagonal(r, axis1=-2, axis2=-1)
    if q.shape[-1] < np.shape(directions)[-2] or (np.abs(left) < 1e-6).any():
        raise ValueError("a direction lies in the span of those before it, so nothing of it is left")
    return np.swapaxes(q * np.sign(left)[..., None, :], -1, -2)


def share_in_top(directions, x, k: Sequence[int] = (1, 10, 50)) -> np.ndarray:
    """Share (0 to 1) of each direction's squared length in the top k principal components of activations x
    [row, d].

    Returns [..., len(k)]; a random direction has k / d.
    """
    _, axes = np.linalg.eigh(covariance(x))
    inside = np.cumsum(np.square(np.asarray(unit(directions), float) @ axes[:, ::-1]), axis=-1)
    if max(k) > inside.shape[-1] or min(k) < 1:
        raise ValueError(f"k={list(k)} must lie in 1..{inside.shape[-1]}")
    return inside[..., np.asarray(k) - 1]


def direction_cosines(
    acts: xr.Dataset,
    label: str,
    methods: Sequence[str] = METHODS,
    site: str = "resid",
    layers: Sequence[int] | None = None,
    group: str | None = "group",
    kind: str = "auto",
    space: str = "raw",
    boots: int = 200,
    halves: int = 20,
    level: float = 0.95,
    alphas: Sequence[float] = ALPHAS,
    folds: int = 3,
    standardize: str = "feature",
    max_rows: int = 20_000,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Cosine between the directions of each pair of methods, per concept and layer, with intervals.

    Parameters
    ----------
    acts, label, site, layers, group, kind, alphas, folds, standardize, max_rows, seed
        See `probes.find_directions`.
    space : "raw", "read" or "whitened"
        Plain cosine; correlation of what the two read from the data; cosine as steps in whitened space. See
        `directions.cosine`. The covariance is that of all rows of the layer.
    boots, halves : int
        Bootstrap samples of groups, and random splits of the groups into two halves.
    level : float
        Of the intervals and of the null band.

    Returns
    -------
    pd.DataFrame with columns label, concept, layer, [head,] method_a, method_b, cosine, lo, hi, null_lo, null_hi.
    method_a != method_b: the cosine of the two on all rows; lo, hi from refits on the bootstrap samples at the
    penalty chosen on all rows (`interval`). method_a == method_b: how stable a method is with itself, the mean cosine
    of its directions from two halves of the groups (each has half the data), with the spread over splits. null_lo,
    null_hi: two random directions. Methods share the same clips, so their cosine can be high where both are unstable:
    read it beside the halves.

    Raises
    ------
    ValueError  for an unknown space, and as `probes.find_directions`.

    Taught in 03_compare_directions.
    """
    from tqdm.auto import tqdm

    if space not in SPACES:
        raise ValueError(f"space={space!r} is not known; use one of {', '.join(SPACES)}")
    target, groups = read_target(acts, label, kind), read_groups(acts, group)
    methods, batch, records = check_methods(methods, [target]), None, []
    for where, x in tqdm(
        states(acts, site, layers), desc=f"cosines, {label}", unit="layer", delay=2, disable=not progress
    ):
        if batch is None:
            (batch,) = batches(
                [target], groups, frames=frames_of(acts, site), x=x, max_rows=max_rows, seed=seed
            )
        fits = batch.fit(x, slice(None), methods, folds, alphas, standardize, seed)
        x, penalties = x[batch.rows], {method: fit.alpha for method, fit in fits.items()}
        metric = None if space == "raw" else covariance(x)
        metric = np.linalg.inv(metric) if space == "whitened" else metric
        d = x.shape[1]
        null = null_cosine(d, level) if metric is None else null_cosine_drawn(d, level, metric, seed=seed)
        rng = np.random.default_rng(seed)
        refits = list(_refits(batch, x, penalties, standardize, _resampled(batch.groups, boots, rng)))
        split = list(_refits(batch, x, penalties, standardize, _halved(batch.groups, halves, rng)))
        for a, b in itertools.combinations_with_replacement(methods, 2):
            if a == b:
                drawn = np.stack(
                    [
                        cosine(one[a], other[a], metric)
                        for one, other in zip(split[::2], split[1::2], strict=True)
                    ]
                )
                value, lo, hi = (
                    np.nanmean(drawn, 0),
                    *np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0),
                )
            else:
                value = cosine(fits[a].w.T, fits[b].w.T, metric)
                lo, hi = interval(value, np.stack([cosine(r[a], r[b], metric) for r in refits]), level)
            for i, concept in enumerate(target.concepts):
                pair = {"label": label, "concept": concept, **where, "method_a": a, "method_b": b}
                numbers = {
                    "cosine": value[i],
                    "lo": lo[i],
                    "hi": hi[i],
                    "null_lo": null[0],
                    "null_hi": null[1],
                }
                records.append(pair | numbers)
    return pd.DataFrame(records)


def interval(value: np.ndarray, drawn: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap interval of cosines `value` [K] from refits `drawn` [B, K], NaN refits left out.

    Normal on Fisher's z = arctanh(cosine), centred on `value`, with the refits' standard deviation. Refits on
    resampled groups are noisier than `value` itself, which shifts the plain percentiles: in a simulation (20
    dimensions, 150 or 600 rows, 60 samples each) percentiles held the true cosine 75 to 100 % of the time at
    level 0.95, this interval 90 to 100 %.
    """
    from scipy.stats import norm

    z, spread = (np.arctanh(np.clip(c, -1 + 1e-12, 1 - 1e-12)) for c in (value, drawn))
    reach = norm.ppf((1 + level) / 2) * np.nanstd(spread, axis=0)
    return np.tanh(z - reach), np.tanh(z + reach)


def pairwise_cosines(directions: xr.DataArray, over: str = "concept") -> pd.DataFrame:
    """Cosines between all pairs along "concept", "layer" or "method" of what `probes.find_directions`
    returns.

    Returns a tidy frame: <over>_a, <over>_b, the other dimensions, cosine, null_lo, null_hi (two random
    directions). One-vs-rest directions of k classes lean away from each other by construction: for equally
    spread classes their cosine is -1/(k - 1).
    """
    plain = _plain(directions)
    if over not in plain.dims[:-1]:
        raise ValueError(f"over={over!r} is not a dimension of the directions: {', '.join(plain.dims[:-1])}")
    a, b = (plain.rename({over: f"{over}_{side}"}) for side in "ab")
    table = cosine(a, b).rename("cosine").to_dataframe().reset_index()
    lo, hi = null_cosine(directions.shape[-1])
    return table.assign(null_lo=lo, null_hi=hi)


def span_angles(directions: xr.DataArray, rank: int | None = None) -> pd.DataFrame:
    """Principal angles between the concept spans that two methods find at each layer (and head).

    Returns a tidy frame: layer, [head,] method_a, method_b, index (0 is the smallest), angle in degrees, and
    null: the mean angle of two random spans (20 draws). `rank` defaults to the number of concepts, less one
    for classes, whose directions against the rest span no more.
    """
    plain = _plain(directions)
    k, d = plain.sizes["concept"], plain.shape[-1]
    rank = rank or (k - 1 if directions.attrs.get("kind") == "class" else k)
    rng = np.random.default_rng(0)
    null = np.mean([principal_angles(*rng.standard_normal((2, rank, d))) for _ in range(20)], axis=0)
    places = [dim for dim in plain.dims if dim not in ("concept", "method", plain.dims[-1])]
    records = []
    for place in itertools.product(*(plain[p].values.tolist() for p in places)):
        where = dict(zip(places, place, strict=True))
        spans = plain.sel(where).transpose("method", "concept", ...)
        for a, b in itertools.combinations(spans["method"].values.tolist(), 2):
            angles = principal_angles(spans.loc[a].values, spans.loc[b].values, rank)
            pair = {**where, "method_a": a, "method_b": b}
            records += [{**pair, "index": i, "angle": angles[i], "null": null[i]} for i in range(rank)]
    return pd.DataFrame(records)


def top_component_shares(
    directions: xr.DataArray, acts: xr.Dataset, k: Sequence[int] = (1, 10, 50)
) -> pd.DataFrame:
    """How much of each direction lies in the top k principal components of its layer's activations.

    Returns a tidy frame: concept, method, layer, [head,] k, share (of squared length, 0 to 1) and null, a
    random direction's k / d.
    """
    site, d = directions.attrs["site"], directions.shape[-1]
    layers = directions["layer"].values if "layer" in directions.dims else [directions["layer"].item()]
    tables = []
    for where, x in states(acts, site, layers):
        part = _plain(directions.sel({dim: i for dim, i in where.items() if dim in directions.dims}))
        rows = np.flatnonzero(np.isfinite(x).all(1))
        rows = np.random.default_rng(0).permutation(rows)[:20_000]
        shares = share_in_top(part.values, x[rows], k)
        array = xr.DataArray(
            shares, dims=(*part.dims[:-1], "k"), coords={**part.coords, "k": list(k)}, name="share"
        )
        tables.append(array.to_dataframe().reset_index().assign(**where))
    table = pd.concat(tables, ignore_index=True)
    columns = [c for c in ("concept", "method", "layer", "head", "k", "share") if c in table]
    return table[columns].assign(null=table["k"] / d)


def _plain(directions: xr.DataArray) -> xr.DataArray:
    """Without its other coords, and with `finder` named as in tables: method."""
    plain = directions.reset_coords(drop=True)
    return plain.rename(finder="method") if "finder" in plain.dims else plain


def _resampled(groups, boots, rng) -> Iterator[np.ndarray]:
    """Row weights for samples of the groups with replacement."""
    names, of_row = np.unique(groups, return_inverse=True)
    for _ in range(boots):
        yield np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))[of_row]


def _halved(groups, halves, rng) -> Iterator[np.ndarray]:
    """Row weights 0/1 for one half of the groups, then for the other."""
    names, of_row = np.unique(groups, return_inverse=True)
    if len(names) < 4:
        raise ValueError(f"two halves need at least 4 groups, there are {len(names)}")
    for _ in range(halves):
        first = (rng.permutation(len(names)) < len(names) // 2)[of_row]
        yield first.astype(float)
        yield 1.0 - first


def _refits(batch: Batch, x, penalties, standardize, samples) -> Iterator[dict[str, np.ndarray]]:
    """Directions [K, D] of every method on weighted samples of the rows; NaN for a concept that a sample lacks."""
    values = np.full(batch.y.shape[1], batch.targets[0].kind == "value")
    for weights in samples:
        rows = weights > 0
        y = batch.y[rows]
        design = solvers.prepare(x[rows], weights[rows], standardize)
        constant = (y == y[0]).all(0)[:, None]
        found = {m: solvers.solve(m, design, y, values, [alpha])[0][0].T for m, alpha in penalties.items()}
        yield {m: np.where(constant, np.nan, w) for m, w in found.items()}
